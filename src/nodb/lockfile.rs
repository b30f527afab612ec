//! `x.nodb.lock`, a virtual file that is there exactly while the lock of `x.nodb` is held. Reading
//! it says by whom; creating it takes the lock for the caller's session, removing it gives it back.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Ident};
use crate::fs::change::SetAttr;
use crate::fs::credentials::Caller;
use crate::fs::inode::Place;
use crate::fs::open::writes;
use crate::nodb::Nodb;
use crate::nodb::controller::RETRY;
use crate::nodb::generation::window;
use crate::nodb::lock::Asking;
use crate::nodb::seen::{Own, Seen};
use crate::nodb::session::Session;
use crate::nodb::session_lock::{Said, SessionLock, Through};
use crate::nodb::staging::newborn;
use crate::store::Lease;
use crate::telemetry::event::{Event, Who};

/// More than anybody has to say of a lock, in bytes.
const MOST_SAID: usize = 64 << 10;

/// Labels are shown up to here, in characters.
const LABEL: usize = 1000;

/// The file of one controller's lock, as an inode of the kernel's: one for all that ever hold it.
#[derive(Debug)]
pub struct LockFile {
    /// The number by which the kernel knows it.
    pub id: u64,
    /// Where `x.nodb` lies.
    pub place: Place,
    /// What the last look at the lock gave.
    shown: Mutex<Attr>,
}

impl LockFile {
    /// What was seen last: the kernel asks right after a look.
    pub fn attr(&self) -> Attr {
        *self.shown.lock()
    }
}

/// An open file description of a lock's file.
#[derive(Debug)]
pub struct OpenLock {
    pub file: Arc<LockFile>,
    /// What is read: one content, whatever becomes of the lock.
    content: Vec<u8>,
    /// The lock, for whom it was opened to write, and what has been written.
    lock: Option<(Arc<SessionLock>, Mutex<Vec<u8>>)>,
}

impl OpenLock {
    /// At most `size` bytes from `offset` on.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        window(&self.content, offset, size).to_vec()
    }

    /// Of what is read, in bytes.
    pub fn size(&self) -> u64 {
        self.content.len() as u64
    }
}

/// The lock files that the kernel knows.
///
/// Lock order: `known`, `returning` and a file's `shown` are taken alone, and not held across I/O.
#[derive(Debug, Default)]
pub struct LockFiles {
    known: Mutex<HashMap<(Ident, OsString), Weak<LockFile>>>,
    /// Threads that were to create a file while somebody had the lock, and got ESTALE: the kernel holds
    /// the directory for a creation, and nobody could remove anything from it while they wait. So they
    /// are shown a file, and wait when they open that.
    returning: Mutex<Vec<Returning>>,
}

#[derive(Debug)]
struct Returning {
    tid: u32,
    dir: Ident,
    name: OsString,
    since: Instant,
}

impl Returning {
    fn is(&self, place: &Place, tid: u32) -> bool {
        self.tid == tid && self.dir == place.dir.ident && self.name == place.name
    }
}

impl LockFiles {
    /// Forgets what the kernel has forgotten, and threads that never came back.
    pub fn sweep(&self) {
        let mut known = self.known.lock();
        known.retain(|_, file| file.strong_count() > 0);
        drop(known);
        let mut returning = self.returning.lock();
        returning.retain(|one| one.since.elapsed() < RETRY);
    }

    fn expect(&self, place: &Place, tid: u32) {
        let mut returning = self.returning.lock();
        returning.retain(|one| one.tid != tid);
        returning.push(Returning {
            tid,
            dir: place.dir.ident,
            name: place.name.clone(),
            since: Instant::now(),
        });
    }

    fn expects(&self, place: &Place, tid: u32) -> bool {
        self.returning.lock().iter().any(|one| one.is(place, tid))
    }

    /// The thread has come back.
    fn arrived(&self, place: &Place, tid: u32) -> bool {
        let mut returning = self.returning.lock();
        let expected = returning.len();
        returning.retain(|one| !one.is(place, tid));
        returning.len() < expected
    }
}

impl Nodb {
    /// The file that shows the lock of `x.nodb` at `place`. ENOENT: nobody holds it.
    pub fn lock_file(&self, place: &Place, caller: Caller) -> Result<Arc<LockFile>> {
        match self.see_lock(place, caller) {
            Ok(seen) => self.show(place, Some(&seen)),
            Err(Error::Source(Errno::NOENT)) if self.lock_files.expects(place, caller.tid) => {
                self.show(place, None)
            }
            Err(error) => Err(error),
        }
    }

    /// The kernel's inode for what was `seen`, which shows it from now on.
    fn show(&self, place: &Place, seen: Option<&Seen>) -> Result<Arc<LockFile>> {
        let dir = self.plain.getattr(&place.dir)?;
        // whoever may write the directory may take a lock in it
        let mode = 0o444 | (dir.mode & 0o222);
        let (mode, uid) = match seen.and_then(|seen| seen.own.as_ref()) {
            Some(Own::Session(lock)) => (mode | 0o200, lock.uid),
            _ => (mode, dir.uid),
        };
        let mut attr = newborn(0, mode, uid, dir.gid);
        attr.size = seen.map_or(0, |seen| seen.content().len() as u64);
        attr.blocks = attr.size.div_ceil(512);
        let key = (place.dir.ident, place.name.clone());
        let mut known = self.lock_files.known.lock();
        let file = known.get(&key).and_then(Weak::upgrade);
        let file = file.filter(|file| Arc::ptr_eq(&file.place.dir, &place.dir));
        let file = file.unwrap_or_else(|| {
            let file = Arc::new(LockFile {
                id: self.plain.inodes.fresh_id(),
                place: place.clone(),
                shown: Mutex::new(attr),
            });
            known.insert(key, Arc::downgrade(&file));
            file
        });
        drop(known);
        attr.ident.ino = file.id;
        let since = seen.and_then(|seen| seen.holder.acquired_at());
        let since = since.unwrap_or_else(|| file.attr().mtime);
        (attr.atime, attr.mtime, attr.ctime) = (since, since, since);
        *file.shown.lock() = attr;
        Ok(file)
    }

    /// Opens the file of a lock: to see who holds it or, if it is to be written, to have it. The kernel
    /// has found it, so `O_CREAT` and `O_EXCL` are not among the flags.
    ///
    /// Errors: ESTALE (it is free by now, look again); EBUSY, EAGAIN, EINTR, ENOLCK as for any writer; EPERM
    /// (whose session would have it cannot be known).
    pub fn open_lock(&self, file: &LockFile, flags: i32, asking: Asking) -> Result<OpenLock> {
        let (place, tid) = (&file.place, asking.caller.tid);
        let takes = self.lock_files.arrived(place, tid) || writes(flags);
        match self.see_lock(place, asking.caller) {
            Ok(seen) if !takes => {
                return Ok(OpenLock {
                    file: self.show(place, Some(&seen))?,
                    content: seen.content(),
                    lock: None,
                });
            }
            Ok(Seen {
                own: Some(Own::Session(lock)),
                ..
            }) if lock.through == Through::File && lock.is_shared_with(tid) => {
                if flags & libc::O_TRUNC != 0 {
                    lock.say(Said::default());
                }
                return self.opened(place, lock);
            }
            Err(Error::Source(Errno::NOENT)) if !takes => return Err(Error::Superseded),
            Err(error) if !takes => return Err(error),
            _ => {}
        }
        self.take_lock(place, asking)
            .inspect_err(|error| self.lock_refused(place, error))
    }

    /// Creates the file of the lock of `x.nodb` at `place`: takes it for the caller's session.
    ///
    /// Errors: EEXIST (`exclusive`, and it is held), and those of [`Nodb::open_lock`]; ESTALE means that
    /// the caller has to wait.
    pub fn create_lock(&self, place: &Place, exclusive: bool, asking: Asking) -> Result<OpenLock> {
        let at_once = Asking {
            nonblocking: true,
            ..asking
        };
        let error = match self.take_lock(place, at_once) {
            Err(Error::WouldBlock { .. }) if exclusive => Errno::EXIST.into(),
            Err(Error::WouldBlock { .. } | Error::Replaced { .. })
                if !exclusive && !asking.nonblocking =>
            {
                self.lock_files.expect(place, asking.caller.tid);
                return Err(Error::Superseded);
            }
            Err(error) => error,
            opened => return opened,
        };
        self.lock_refused(place, &error);
        Err(error)
    }

    fn take_lock(&self, place: &Place, asking: Asking) -> Result<OpenLock> {
        let name = self.lock_name(place)?;
        let lock = self.locker.take_for_session(&name, Through::File, asking)?;
        self.opened(place, lock.clone()).inspect_err(|_| {
            // nobody would know of it
            let _ = self.locker.release_for_session(&lock);
        })
    }

    fn opened(&self, place: &Place, lock: Arc<SessionLock>) -> Result<OpenLock> {
        let holder = lock.held().holder().map_err(Error::LeaseLost)?;
        let seen = Seen {
            name: lock.name().clone(),
            holder,
            own: Some(Own::Session(lock.clone())),
        };
        Ok(OpenLock {
            file: self.show(place, Some(&seen))?,
            content: seen.content(),
            lock: Some((lock, Mutex::default())),
        })
    }

    /// Something is written into a lock's file. What it says of time and purpose counts; anything else
    /// is accepted and means nothing.
    pub fn write_lock(&self, open: &OpenLock, offset: u64, data: &[u8]) -> Result<()> {
        let (lock, written) = open.lock.as_ref().ok_or(Errno::BADF)?;
        let mut written = written.lock();
        let start = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
        let end = start.saturating_add(data.len());
        if end > MOST_SAID {
            return Err(Errno::FBIG.into());
        }
        if written.len() < end {
            written.resize(end, b' ');
        }
        written[start..end].copy_from_slice(data);
        if let Some(said) = understood(&written) {
            lock.say(said);
            self.locker.sessions.wake();
        }
        Ok(())
    }

    /// Changes attributes of a lock's file: nothing but its time, which stays what it is, and its
    /// size, with which goes what has been said of the lock.
    pub fn set_lock(&self, file: &LockFile, set: &SetAttr, caller: Caller) -> Result<Attr> {
        let seen = self.see_lock(&file.place, caller)?;
        let changes = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        match &seen.own {
            Some(Own::Session(lock)) if lock.serves(caller.tid) && !changes => {
                if set.size.is_some() {
                    lock.say(Said::default());
                }
            }
            _ => return Err(self.not_own(&file.place, &seen)),
        }
        Ok(self.show(&file.place, Some(&seen))?.attr())
    }

    /// Gives the lock of `x.nodb` at `place` back. ENOENT: nobody holds it. EPERM: this mount has not
    /// taken it, or for another session than the caller's, who is not root.
    pub fn remove_lock(&self, place: &Place, caller: Caller) -> Result<()> {
        let seen = self.see_lock(place, caller)?;
        let root = caller.uid == 0;
        let released = match &seen.own {
            Some(Own::Session(lock)) if lock.serves(caller.tid) => {
                self.locker.release_for_session(lock)?
            }
            // its session does not know yet, and is told at its next write
            Some(Own::Session(lock)) if root => lock.held().release(None)?,
            Some(Own::Writer(process, held)) if root || are_one(*process, caller.tid) => {
                held.release(None)?
            }
            _ => return Err(self.not_own(place, &seen)),
        };
        // it had been lost, and may be somebody else's by now
        if !released && self.see_lock(place, caller).is_ok() {
            return Err(self.not_own(place, &seen));
        }
        Ok(())
    }

    /// Takes the lock of `x.nodb` at `place` for the caller and whatever it starts, for at most `ttl`.
    pub fn lock_for_command(
        &self,
        place: &Place,
        said: Said,
        asking: Asking,
    ) -> Result<Arc<SessionLock>> {
        let name = self.lock_name(place)?;
        let taken = self
            .locker
            .take_for_session(&name, Through::Command, asking);
        let lock = taken.inspect_err(|error| self.lock_refused(place, error))?;
        lock.say(said);
        self.locker.sessions.wake();
        Ok(lock)
    }

    /// The end of [`Nodb::lock_for_command`]. `false`: the lock was lost before.
    pub fn unlock_for_command(&self, lock: &SessionLock) -> Result<bool> {
        self.locker.release_for_session(lock)
    }

    /// Takes the lock of `x.nodb` at `place` away from whoever holds it, exactly as it is now seen; who
    /// that was. ENOENT: nobody holds it. ESTALE: it has changed hands meanwhile.
    pub fn force_lock(&self, place: &Place, reason: &str, caller: Caller) -> Result<Seen> {
        let name = self.lock_name(place)?;
        let holder = self.store.holder(&name)?.ok_or(Errno::NOENT)?;
        let seen = self.with_own(name, holder);
        let released = match &seen.own {
            Some(Own::Session(lock)) => lock.held().release(None)?,
            Some(Own::Writer(_, held)) => held.release(None)?,
            None => {
                let ttl = seen.holder.left.unwrap_or_default();
                let lease = Lease {
                    name: seen.name.clone(),
                    value: seen.holder.value.clone(),
                    deadline: Instant::now() + ttl,
                    ttl,
                };
                self.store.release(&lease, None)?
            }
        };
        if !released {
            return Err(Error::LeaseLost("it changed hands meanwhile".to_owned()));
        }
        let forced = Event::LockForced {
            who: &Who::of_thread(caller.tid),
            uid: caller.uid,
            holder: &seen.holder.value,
            reason,
        };
        self.telemetry.note(&seen.name, &forced);
        Ok(seen)
    }

    fn not_own(&self, place: &Place, seen: &Seen) -> Error {
        let error = Error::NotOwnLock {
            key: seen.name.key(),
            holder: seen.holder.to_string(),
        };
        self.lock_refused(place, &error);
        error
    }

    /// The reason belongs to the controller.
    fn lock_refused(&self, place: &Place, error: &Error) {
        self.refused(&self.controllers.at(place), error);
    }

    /// Something else than a lock was to get the name of one. EEXIST: that is there.
    pub fn lock_name_refused(&self, place: &Place, caller: Caller) -> Error {
        match self.lock_file(place, caller) {
            Ok(_) => Errno::EXIST.into(),
            Err(Error::Source(Errno::NOENT)) => {
                let error = Error::LockName(format!("{}.lock", place.name.to_string_lossy()));
                self.lock_refused(place, &error);
                error
            }
            Err(error) => error,
        }
    }
}

/// What `written` says of a lock, if it is anything that can be understood.
fn understood(written: &[u8]) -> Option<Said> {
    #[derive(Deserialize)]
    struct Written {
        ttl: Option<f64>,
        label: Option<String>,
    }
    let written: Written = serde_json::from_slice(written).ok()?;
    let ttl = match written.ttl {
        Some(ttl) => Some(
            Duration::try_from_secs_f64(ttl)
                .ok()
                .filter(|ttl| !ttl.is_zero())?,
        ),
        None => None,
    };
    let label = written.label;
    let label = label.map(|label| label.chars().take(LABEL).collect());
    Some(Said::new(label, ttl))
}

/// Whether the thread `tid` belongs to the session of `process`.
fn are_one(process: u32, tid: u32) -> bool {
    Session::of(process).is_some_and(|session| session.includes(tid))
}
