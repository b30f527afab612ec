//! Locks that a session holds, not a writer: taken through `x.nodb.lock` or `flock`. Whatever
//! process of the session writes, works under them; they are let go when the session has ended.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use tracing::warn;

use crate::nodb::caller;
use crate::nodb::session::{Living, Session, command_of};
use crate::store::lease::Held;
use crate::store::{Holder, LockName, payload};
use crate::telemetry::event::{Event, Who};

/// How often a session is looked for whose leader has ended, or a lock tried to be let go again.
const LOOK: Duration = Duration::from_secs(1);

/// What a lock was taken through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// `x.nodb.lock`.
    File,
    /// `flock` or `fcntl` on the controller.
    Flock,
    /// `nodbfs lock`: it is the command's and its children's, and no other's of their session.
    Command,
}

/// A lock that a session holds, until it is released or the session ends. Each is one acquisition:
/// two who ask for the same lock exclude each other, in one session too.
#[derive(Debug)]
pub struct SessionLock {
    pub session: Session,
    pub through: Through,
    /// The process that asked for it.
    pub process: u32,
    /// Its program.
    pub command: Option<String>,
    /// Its user.
    pub uid: u32,
    pub since: Instant,
    /// The process itself; none if it had ended at once.
    maker: Option<Living>,
    held: Arc<Held>,
    said: Mutex<Said>,
    work: Mutex<Work>,
}

/// Who works under a session's lock.
#[derive(Debug, Default)]
struct Work {
    writers: usize,
    /// The session wants it no longer.
    given_up: bool,
}

/// A writer at work under a session's lock, which is not given back before it has finished.
#[derive(Debug)]
pub struct Worker(Arc<SessionLock>);

impl Worker {
    pub fn lock(&self) -> &SessionLock {
        &self.0
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut work = self.0.work.lock();
        work.writers -= 1;
        let last = work.given_up && work.writers == 0;
        drop(work);
        if last {
            self.0.give_back();
        }
    }
}

/// What the session says of its lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What it is for.
    pub label: Option<String>,
    /// When it is to be let go at the latest.
    pub until: Option<Instant>,
    /// The same for people, in seconds since the epoch.
    pub ends_at: Option<u64>,
}

impl Said {
    /// A lock for this purpose that is let go after `ttl`.
    pub fn new(label: Option<String>, ttl: Option<Duration>) -> Self {
        let until = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        let ends_at = ttl.and_then(|ttl| SystemTime::now().checked_add(ttl));
        let ends_at = ends_at.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        Self {
            label,
            until,
            ends_at: ends_at.map(|end| end.as_secs()),
        }
    }
}

impl SessionLock {
    /// The session of the thread `tid` holds `held` from now on.
    pub fn new(
        session: Session,
        through: Through,
        (tid, uid): (u32, u32),
        held: Arc<Held>,
    ) -> Arc<Self> {
        let process = caller::process_of(tid).unwrap_or(tid);
        Arc::new(Self {
            session,
            through,
            process,
            command: command_of(process),
            uid,
            since: Instant::now(),
            maker: Living::open(process),
            held,
            said: Mutex::default(),
            work: Mutex::default(),
        })
    }

    pub fn name(&self) -> &LockName {
        self.held.name()
    }

    /// Its maker, as it is told of.
    pub fn who(&self) -> Who {
        Who {
            pid: self.process,
            command: self.command.clone().unwrap_or_default(),
        }
    }

    /// The lease, to be asked whether it is still held.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// One more writer works under it.
    pub fn join(self: &Arc<Self>) -> Worker {
        self.work.lock().writers += 1;
        Worker(self.clone())
    }

    /// The session wants it no longer: it is given back, by the last of its writers if there are any.
    fn give_up(&self) {
        if self.is_last_to_want_it() {
            self.give_back();
        }
    }

    /// As [`SessionLock::give_up`] at the mount's end, when nobody waits for the store.
    fn end(&self) {
        if self.is_last_to_want_it() && self.is_no_writers_own() {
            self.held.release_later("the mount has ended");
        }
    }

    /// The session wants it no longer. `false`: writers still do.
    fn is_last_to_want_it(&self) -> bool {
        let mut work = self.work.lock();
        work.given_up = true;
        work.writers == 0
    }

    fn give_back(&self) {
        if self.is_no_writers_own() {
            self.let_go("");
        }
    }

    /// A writer's own lock is given back by that.
    fn is_no_writers_own(&self) -> bool {
        Arc::strong_count(&self.held) == 1
    }

    /// Whether the thread `tid` works under this lock.
    pub fn serves(&self, tid: u32) -> bool {
        match self.through {
            Through::File | Through::Flock => self.session.includes(tid),
            Through::Command => self.begot(tid),
        }
    }

    fn begot(&self, tid: u32) -> bool {
        self.maker.as_ref().is_some_and(|maker| maker.begot(tid))
    }

    fn has_living_maker(&self) -> bool {
        self.maker.as_ref().is_some_and(Living::lives)
    }

    /// Whether the thread `tid` may have the lock without taking it: it is its maker, or that has ended
    /// and left it to the session. Else two of one session that ask at the same time would both have it.
    pub fn is_shared_with(&self, tid: u32) -> bool {
        self.serves(tid) && (!self.has_living_maker() || self.begot(tid))
    }

    /// Whether `holder` is this very acquisition.
    pub fn is(&self, holder: &Holder) -> bool {
        let value = self.held.value();
        value.is_some_and(|value| payload::same(&holder.value, &value))
    }

    pub fn said(&self) -> Said {
        self.said.lock().clone()
    }

    pub fn say(&self, said: Said) {
        *self.said.lock() = said;
    }

    fn let_go(&self, why: &str) {
        // what cannot be told now is the keeper's to tell
        if let Ok(true) = self.held.release(None) {
            let who = &self.who();
            self.held.note(&Event::LockReleased { who, why });
        }
    }

    fn is_over(&self) -> Option<&'static str> {
        let until = self.said.lock().until;
        if until.is_some_and(|until| until <= Instant::now()) {
            Some("its time is over")
        } else if self.through == Through::Command && !self.has_living_maker() {
            Some("its command has ended")
        } else if !self.session.lives() {
            Some("its session has ended")
        } else {
            None
        }
    }
}

/// The locks that sessions hold through this mount.
///
/// Lock order: `locks` and a lock's `said` are taken alone, and held across nothing that can wait.
#[derive(Debug)]
pub struct SessionLocks {
    locks: Mutex<HashMap<LockName, Arc<SessionLock>>>,
    /// How many there are, for those who need no more than to know that there is none.
    count: AtomicUsize,
    /// Wakes the thread that looks after them.
    changed: Arc<OwnedFd>,
    watched: Mutex<bool>,
}

impl SessionLocks {
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            locks: Mutex::default(),
            count: AtomicUsize::new(0),
            changed: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            watched: Mutex::new(false),
        }))
    }

    /// The lock `name`, if a session had it of this mount; it may have been lost since.
    pub fn get(&self, name: &LockName) -> Option<Arc<SessionLock>> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        self.locks.lock().get(name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<SessionLock>> {
        self.locks.lock().values().cloned().collect()
    }

    /// A session has taken a lock; whatever it had before under that name is lost.
    pub fn add(self: &Arc<Self>, lock: &Arc<SessionLock>) {
        let mut locks = self.locks.lock();
        let lost = locks.insert(lock.name().clone(), lock.clone());
        self.count.store(locks.len(), Relaxed);
        drop(locks);
        drop(lost);
        self.watch();
        self.wake();
    }

    /// Forgets this acquisition; `false`: it had been forgotten.
    pub fn remove(&self, lock: &SessionLock) -> bool {
        let mut locks = self.locks.lock();
        let own = locks.get(lock.name());
        let known = own.is_some_and(|own| std::ptr::eq(&**own, lock));
        let removed = known.then(|| locks.remove(lock.name()));
        self.count.store(locks.len(), Relaxed);
        drop(locks);
        removed.is_some()
    }

    /// The session wants this lock no longer.
    pub fn give_up(&self, lock: &SessionLock) {
        self.remove(lock);
        lock.give_up();
        // the thread holds on to what it looks after
        self.wake();
    }

    /// The session has said something new of its lock.
    pub fn wake(&self) {
        // it can only fail by being awake already
        let _ = rustix::io::write(&*self.changed, &1u64.to_ne_bytes());
    }

    /// Starts the thread that ends with the last lock.
    fn watch(self: &Arc<Self>) {
        let mut watched = self.watched.lock();
        if !*watched {
            let watching = Arc::downgrade(self);
            let thread = thread::Builder::new().name("nodbfs-sessions".to_owned());
            match thread.spawn(move || watch(&watching)) {
                Ok(_) => *watched = true,
                Err(error) => warn!(%error, "locks will not be let go when their sessions end"),
            }
        }
    }

    /// Lets go what is over; what is left. `None`: nothing, and the next lock starts a new thread.
    fn settle(&self) -> Option<Vec<Arc<SessionLock>>> {
        for lock in &self.all() {
            if let Some(why) = lock.is_over() {
                self.remove(lock);
                lock.let_go(why);
            }
        }
        let mut watched = self.watched.lock();
        let left = self.all();
        *watched = !left.is_empty();
        watched.then_some(left)
    }

    /// The mount has ended, and nobody would renew them any more: they go, the others with their last writer.
    pub fn end(&self) {
        let ended = std::mem::take(&mut *self.locks.lock());
        self.count.store(0, Relaxed);
        ended.values().for_each(|lock| lock.end());
        self.wake();
    }
}

/// The thread: sleeps until a leader ends, a lock's time is over, or something changes.
fn watch(locks: &Weak<SessionLocks>) {
    loop {
        let Some((left, changed)) = locks
            .upgrade()
            .and_then(|locks| Some((locks.settle()?, locks.changed.clone())))
        else {
            return;
        };
        let mut news = vec![PollFd::new(&*changed, PollFlags::IN)];
        let mut pause = Duration::from_secs(3600);
        for lock in &left {
            match lock.session.leader() {
                Some(leader) => news.push(PollFd::from_borrowed_fd(leader, PollFlags::IN)),
                None => pause = pause.min(LOOK),
            }
            if let Some(until) = lock.said().until {
                pause = pause.min(until.saturating_duration_since(Instant::now()));
            }
        }
        let pause = Timespec::try_from(pause).unwrap_or_default();
        // an error is a signal, or a reason to look all the same
        let _ = poll(&mut news, Some(&pause));
        drop(news);
        let _ = rustix::io::read(&*changed, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::error::Errno;
    use crate::fs::credentials::Caller;
    use crate::nodb::lock::{Asking, Locker};
    use crate::store::Store;
    use crate::store::embedded::Embedded;

    fn asking(tid: u32) -> Asking {
        let caller = Caller {
            uid: 1000,
            gid: 1000,
            tid,
        };
        Asking {
            nonblocking: true,
            ..Asking::by(caller)
        }
    }

    fn locker() -> (Locker, Arc<dyn Store>) {
        let store: Arc<dyn Store> = Arc::new(Embedded::new(1 << 20));
        let minute = Duration::from_secs(60);
        let telemetry = Arc::default();
        let locker = Locker::new(store.clone(), telemetry, minute, minute);
        (locker.unwrap(), store)
    }

    fn name() -> LockName {
        LockName {
            runid: "run".into(),
            relpath: "wepp.nodb".into(),
        }
    }

    /// A process in a session of its own, which ends with its input.
    fn other_session() -> Child {
        let mut other = Command::new("setsid");
        other.arg("cat").stdin(Stdio::piped()).stdout(Stdio::null());
        let other = other.spawn().unwrap();
        while Session::of(other.id()).is_none_or(|session| session.sid != other.id()) {
            thread::yield_now();
        }
        other
    }

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed().as_secs() < 60, "never: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn each_acquisition_excludes_every_other() {
        let (locker, store) = locker();
        let own = asking(std::process::id());
        let first = locker
            .take_for_session(&name(), Through::Flock, own)
            .unwrap();
        assert!(first.serves(std::process::id()));
        let refused = locker.take_for_session(&name(), Through::File, own);
        assert_eq!(refused.unwrap_err().errno(), Errno::AGAIN);
        assert!(locker.release_for_session(&first).unwrap());
        let second = locker
            .take_for_session(&name(), Through::File, own)
            .unwrap();
        // the first one's handle does nothing to the second
        assert!(!locker.release_for_session(&first).unwrap());
        assert!(second.is(&store.holder(&name()).unwrap().unwrap()));
        assert!(Arc::ptr_eq(&locker.sessions.get(&name()).unwrap(), &second));
    }

    #[test]
    fn nobody_can_hold_for_a_caller_that_cannot_be_seen() {
        let (locker, store) = locker();
        let refused = locker.take_for_session(&name(), Through::File, asking(0));
        assert_eq!(refused.unwrap_err().errno(), Errno::PERM);
        assert!(store.holder(&name()).unwrap().is_none());
    }

    #[test]
    fn a_lock_ends_with_its_session_and_the_next_one_too() {
        let (locker, store) = locker();
        for _ in 0..2 {
            let mut other = other_session();
            let lock = locker
                .take_for_session(&name(), Through::File, asking(other.id()))
                .unwrap();
            assert!(lock.serves(other.id()) && !lock.serves(std::process::id()));
            other.kill().unwrap();
            // dead is enough: nobody has waited for it yet
            eventually("the lock is let go", || {
                store.holder(&name()).unwrap().is_none()
            });
            assert!(locker.sessions.get(&name()).is_none());
            other.wait().unwrap();
        }
    }

    #[test]
    fn a_lock_is_let_go_when_its_maker_said_so() {
        let (locker, store) = locker();
        let own = asking(std::process::id());
        let lock = locker
            .take_for_session(&name(), Through::File, own)
            .unwrap();
        lock.say(Said::new(None, Some(Duration::from_millis(20))));
        locker.sessions.wake();
        eventually("the lock is let go", || {
            store.holder(&name()).unwrap().is_none()
        });
    }
}
