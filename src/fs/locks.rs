//! `fcntl` and `flock` locks of plain files. The source's kernel keeps them: whoever locks the file on
//! another mount of it, or beside the mount, meets the same locks (promise 8).
//!
//! A range lock belongs to a process, whatever it has open, and is gone when that closes any of its
//! descriptors of the file. Each owner therefore gets an open file description of the source, and what it
//! locks is locked through that by `F_OFD_SETLK`, which conflicts with range locks of either sort. A
//! `flock` belongs to an open file description, as the handle's own descriptor is one.

mod changes;
mod ends;
mod ofd;
mod ranges;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, fcntl_getfl, flock, openat};
use tracing::debug;

use crate::error::{Errno, Error, Result};
use crate::fs::credentials::Caller;
use crate::fs::handle::Handles;
use crate::fs::inode::reopen_path;
use changes::Changes;
use ends::{Ends, Watch};
pub use ranges::{END, Range, Ranges};

/// Whom a lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Whoever wants an exclusive one.
    Shared,
    /// Everybody.
    Exclusive,
}

/// The two sorts of locks, which know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// `fcntl`: of a range of bytes.
    Range,
    /// `flock`: of the whole file.
    Flock,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub sort: Sort,
    /// The kernel's number for whom the lock is to belong to.
    pub owner: u64,
    /// The first byte and the last.
    pub first: u64,
    pub last: u64,
    /// `None`: to be unlocked.
    pub strength: Option<Strength>,
    /// The process that asks, as the daemon sees it; 0: out of sight, or to be unlocked.
    pub pid: u32,
    /// Its thread.
    pub caller: Caller,
}

/// A lock that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InTheWay {
    pub first: u64,
    pub last: u64,
    pub strength: Strength,
    /// Who holds it; 0: somebody who cannot be named.
    pub pid: u32,
}

/// Through what a lock is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Through<'a> {
    /// The kernel's number of the inode.
    pub id: u64,
    pub handle: u64,
    pub fd: &'a Arc<OwnedFd>,
}

/// The locks of a mount's plain files.
///
/// Lock order: an owner's `state` before `files`. The former is held across the owner's own `fcntl`, which
/// never waits for another lock, so that what is remembered is what is set; nothing else waits for it.
#[derive(Debug, Default)]
pub struct Locks {
    files: Mutex<HashMap<u64, Locked>>,
    /// Whether there may be something in `files`: what is closed without ever having been locked is to
    /// cost nothing.
    any: AtomicBool,
    ends: Ends,
    pub changes: Changes,
}

/// One file's.
#[derive(Debug, Default)]
struct Locked {
    owners: Vec<Arc<Owner>>,
    /// The handles that hold a `flock`.
    flocks: Vec<u64>,
}

#[derive(Debug)]
struct Owner {
    number: u64,
    /// An `F_OFD_SETLK` of the caller's: the locks are an open file description's, not a process's.
    by_description: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Everything has been given back, and the next lock needs another owner.
    gone: bool,
    /// The open file description of the source that has its locks.
    fd: Option<Arc<OwnedFd>>,
    held: Ranges,
    /// Through which handles it asked.
    handles: Vec<u64>,
    /// For the end of its process, where no `close` would be told.
    watch: Option<Watch>,
}

impl Locks {
    /// Locks or unlocks, without waiting for a lock. EAGAIN: somebody else's is in the way.
    pub fn set(self: &Arc<Self>, through: Through<'_>, wanted: &Wanted) -> Result<()> {
        match wanted.sort {
            Sort::Range => self.set_range(through, wanted)?,
            Sort::Flock => self.set_flock(through, wanted.strength)?,
        }
        // a weaker lock lets others in, too
        if wanted.strength != Some(Strength::Exclusive) {
            self.changes.tell(through.id);
        }
        Ok(())
    }

    fn set_flock(&self, through: Through<'_>, strength: Option<Strength>) -> Result<()> {
        let done = flock(
            through.fd,
            match strength {
                Some(Strength::Shared) => FlockOperation::NonBlockingLockShared,
                Some(Strength::Exclusive) => FlockOperation::NonBlockingLockExclusive,
                None => FlockOperation::NonBlockingUnlock,
            },
        );
        let holds = strength.is_some() && done.is_ok();
        self.with_file(through.id, |file| {
            file.flocks.retain(|holder| *holder != through.handle);
            if holds {
                file.flocks.push(through.handle);
            }
        });
        Ok(done?)
    }

    fn set_range(self: &Arc<Self>, through: Through<'_>, wanted: &Wanted) -> Result<()> {
        loop {
            let known = self.owner(through.id, wanted.owner);
            let owner = match (known, wanted.strength) {
                (Some(owner), _) => owner,
                (None, None) => return Ok(()),
                (None, Some(_)) => self.new_owner(through.id, wanted),
            };
            let mut state = owner.state.lock();
            if state.gone {
                continue;
            }
            if !state.handles.contains(&through.handle) {
                state.handles.push(through.handle);
            }
            let fd = match &state.fd {
                Some(fd) => fd.clone(),
                None => state.fd.insert(description(through.fd)).clone(),
            };
            ofd::set(&fd, wanted.first, wanted.last, wanted.strength)?;
            let range = Range {
                first: wanted.first,
                last: wanted.last,
                pid: wanted.pid,
                handle: through.handle,
            };
            state.held.set(range, wanted.strength);
            let untold = !Handles::tells_close(through.handle) && !owner.by_description;
            if untold && state.watch.is_none() && wanted.strength.is_some() {
                state.watch = self.watch_end(through.id, wanted);
            }
            return Ok(());
        }
    }

    /// Lets the locks go when the process that asks has ended.
    fn watch_end(self: &Arc<Self>, id: u64, wanted: &Wanted) -> Option<Watch> {
        let (locks, number) = (Arc::downgrade(self), wanted.owner);
        let ended = move || {
            if let Some(locks) = locks.upgrade() {
                locks.closed(id, number);
            }
        };
        let watch = self.ends.watch(wanted.pid, ended);
        watch
            .inspect_err(|error| debug!(%error, pid = wanted.pid, "its end will not be noticed"))
            .ok()
    }

    /// The lock that keeps `wanted` from being set.
    pub fn in_the_way(&self, through: Through<'_>, wanted: &Wanted) -> Result<Option<InTheWay>> {
        let strength = wanted.strength.ok_or(Errno::INVAL)?;
        let owner = self.owner(through.id, wanted.owner);
        let own = owner.and_then(|owner| owner.state.lock().fd.clone());
        let fd = own.as_ref().unwrap_or(through.fd);
        let Some(found) = ofd::test(fd, wanted.first, wanted.last, strength)? else {
            return Ok(None);
        };
        // to the source it is an open file description's, and that has no process
        let pid = match u32::try_from(found.pid) {
            Ok(pid) if pid != 0 => pid,
            _ => self.holder_at(through.id, wanted.owner, found.first),
        };
        Ok(Some(InTheWay {
            first: found.first,
            last: found.last,
            strength: found.strength,
            pid,
        }))
    }

    /// Which process of the mount has locked the byte `at`, other than `owner`; 0: none.
    fn holder_at(&self, id: u64, owner: u64, at: u64) -> u32 {
        let others = self.owners(id);
        let mut others = others.iter().filter(|other| other.number != owner);
        others
            .find_map(|other| other.state.lock().held.at(at))
            .map_or(0, |range| range.pid)
    }

    /// A descriptor of `owner`'s was closed, or its process has ended: its range locks go.
    pub fn closed(&self, id: u64, owner: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        if let Some(owner) = self.owner(id, owner) {
            self.dismiss(id, &owner, &mut owner.state.lock());
            self.changes.tell(id);
        }
    }

    /// The last descriptor of a handle was closed: what was locked through it and has not been let go
    /// yet goes now. With `flocked`, it has had a `flock`.
    pub fn released(&self, through: Through<'_>, flocked: bool) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        if flocked {
            // kernel passthrough may keep the description open for longer
            if let Err(errno) = self.set_flock(through, None) {
                debug!(%errno, "a flock stays until its descriptor goes");
            }
        }
        let owners = self.owners(through.id);
        for owner in &owners {
            let mut state = owner.state.lock();
            state.handles.retain(|handle| *handle != through.handle);
            if state.handles.is_empty() {
                self.dismiss(through.id, owner, &mut state);
                continue;
            }
            for range in state.held.take(through.handle) {
                state.unlock(range.first, range.last);
            }
        }
        if flocked || !owners.is_empty() {
            self.changes.tell(through.id);
        }
    }

    /// Whether what is in the way of `wanted` may be the lock of a file that has been closed: the kernel
    /// says that a description is gone a moment after `close` has returned.
    pub fn may_be_closed(&self, id: u64, handle: u64, wanted: &Wanted) -> bool {
        match wanted.sort {
            Sort::Flock => {
                let files = self.files.lock();
                let file = files.get(&id);
                file.is_some_and(|file| file.flocks.iter().any(|holder| *holder != handle))
            }
            Sort::Range => self.owners(id).iter().any(|other| {
                other.number != wanted.owner
                    && (other.by_description || other.state.lock().watch.is_some())
            }),
        }
    }

    /// Everything of `owner`'s is given back.
    fn dismiss(&self, id: u64, owner: &Arc<Owner>, state: &mut State) {
        state.unlock(0, END);
        *state = State {
            gone: true,
            ..State::default()
        };
        self.with_file(id, |file| {
            file.owners.retain(|known| !Arc::ptr_eq(known, owner))
        });
    }

    fn owners(&self, id: u64) -> Vec<Arc<Owner>> {
        let files = self.files.lock();
        files
            .get(&id)
            .map_or_else(Vec::new, |file| file.owners.clone())
    }

    fn owner(&self, id: u64, number: u64) -> Option<Arc<Owner>> {
        let files = self.files.lock();
        let mut owners = files.get(&id)?.owners.iter();
        owners.find(|owner| owner.number == number).cloned()
    }

    fn new_owner(&self, id: u64, wanted: &Wanted) -> Arc<Owner> {
        let by_description = ends::locks_by_description(wanted.caller.tid);
        self.with_file(id, |file| {
            let mut known = file.owners.iter();
            if let Some(known) = known.find(|owner| owner.number == wanted.owner) {
                return known.clone();
            }
            let owner = Arc::new(Owner {
                number: wanted.owner,
                by_description,
                state: Mutex::default(),
            });
            file.owners.push(owner.clone());
            owner
        })
    }

    fn with_file<T>(&self, id: u64, change: impl FnOnce(&mut Locked) -> T) -> T {
        let mut files = self.files.lock();
        let file = files.entry(id).or_default();
        let result = change(file);
        if file.owners.is_empty() && file.flocks.is_empty() {
            files.remove(&id);
        }
        self.any.store(!files.is_empty(), Ordering::Release);
        result
    }
}

impl State {
    fn unlock(&self, first: u64, last: u64) {
        let Some(fd) = &self.fd else { return };
        if let Err(Error::Source(errno)) = ofd::set(fd, first, last, None) {
            debug!(%errno, "a lock stays until its descriptor goes");
        }
    }
}

/// An open file description of the file behind `fd` for both sorts of range locks, if the daemon may have
/// one: a shared lock needs one for reading, an exclusive one for writing.
fn description(fd: &Arc<OwnedFd>) -> Arc<OwnedFd> {
    let own = fcntl_getfl(fd).map_or(OFlags::RDONLY, |flags| flags & OFlags::RWMODE);
    let again = |mode| {
        let flags = mode | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(CWD, reopen_path(fd), flags, Mode::empty())
    };
    let opened = again(OFlags::RDWR).or_else(|_| again(own));
    // whoever opened the file may have shut it for everybody else since
    opened.map_or_else(|_| fd.clone(), Arc::new)
}
