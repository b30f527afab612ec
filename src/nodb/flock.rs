//! `flock` and `fcntl` locks of controllers: the distributed lock, held for the session of whoever asks, so
//! that it may write meanwhile and nobody else. A shared lock keeps out what an exclusive one does, and a
//! range of bytes is the whole document. It is the name's lock, whatever generation was opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::credentials::Caller;
use crate::fs::locks::{END, InTheWay, Range, Ranges, Sort, Strength, Wanted};
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::controller::Controller;
use crate::nodb::lock::Asking;
use crate::nodb::session_lock::{SessionLock, Through};
use crate::nodb::staging::Writer;
use crate::store::LockName;
use crate::store::lease::Held;

/// An open file of a controller's.
#[derive(Clone, Copy, Debug)]
pub struct Open<'a> {
    pub controller: &'a Arc<Controller>,
    /// The kernel's number.
    pub handle: u64,
    /// Where it was opened for writing.
    pub writer: Option<&'a Writer>,
}

/// What is locked through open files of this mount.
///
/// Lock order: `held`, then a lock's `ranges`; neither is held during a call to the store.
#[derive(Debug, Default)]
pub struct Flocks {
    held: Mutex<Vec<Arc<Flock>>>,
    /// Whether there is any: a `close` of what was never locked costs nothing.
    any: AtomicBool,
}

#[derive(Debug)]
struct Flock {
    controller: Arc<Controller>,
    sort: Sort,
    owner: u64,
    handle: u64,
    pid: u32,
    /// `None`: the process that asked has the lock of its own.
    lock: Option<Arc<SessionLock>>,
    /// What a lock of ranges was asked for.
    ranges: Mutex<Ranges>,
    /// It is being given back.
    closing: AtomicBool,
}

impl Flock {
    fn is(&self, controller: &Arc<Controller>, wanted: &Wanted) -> bool {
        let owned = (self.sort, self.owner) == (wanted.sort, wanted.owner);
        owned && Arc::ptr_eq(&self.controller, controller)
    }

    fn is_lost(&self) -> bool {
        let lock = self.lock.as_ref();
        lock.is_some_and(|lock| lock.held().value().is_none())
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

impl Flocks {
    /// The mount has ended, and with it whatever was open.
    pub fn end(&self) {
        // dropped when the list can be had again
        let _ended = std::mem::take(&mut *self.held.lock());
    }

    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn find(&self, is: impl Fn(&Flock) -> bool) -> Option<Arc<Flock>> {
        let held = self.held.lock();
        held.iter()
            .find(|flock| !flock.is_closing() && is(flock))
            .cloned()
    }

    /// Adds `flock` with a lock that is at hand: its process's by the other means, for nobody waits for
    /// itself, or the `writers`, which only one of each sort may share. Without one it comes back.
    fn share(
        &self,
        flock: Flock,
        writers: impl FnOnce() -> Result<Option<Arc<SessionLock>>>,
    ) -> Result<Option<Flock>> {
        let mut held = self.held.lock();
        let mut others = held.iter().filter(|other| {
            Arc::ptr_eq(&other.controller, &flock.controller)
                && !other.is_closing()
                && !other.is_lost()
        });
        let same_sort = others.clone().any(|other| other.sort == flock.sort);
        let own = others
            .find(|other| other.sort != flock.sort && other.pid == flock.pid && flock.pid != 0);
        let lock = match own {
            Some(own) => Some(own.lock.clone()),
            None if same_sort => None,
            None => writers()?.map(Some),
        };
        let Some(lock) = lock else {
            return Ok(Some(flock));
        };
        held.push(Arc::new(Flock { lock, ..flock }));
        self.any.store(true, Ordering::Release);
        Ok(None)
    }

    fn add(&self, flock: Flock, lock: Option<Arc<SessionLock>>) {
        let mut held = self.held.lock();
        held.push(Arc::new(Flock { lock, ..flock }));
        self.any.store(true, Ordering::Release);
    }

    /// What is given back now, and which of their locks nobody else here has.
    fn close(&self, is: impl Fn(&Flock) -> bool) -> (Vec<Arc<Flock>>, Vec<Arc<SessionLock>>) {
        let held = self.held.lock();
        let mut closed = Vec::new();
        for flock in held.iter().filter(|flock| is(flock)) {
            if !flock.closing.swap(true, Ordering::Relaxed) {
                closed.push(flock.clone());
            }
        }
        let still: Vec<_> = held.iter().filter(|flock| !flock.is_closing()).collect();
        let is_left = |lock: &Arc<SessionLock>| {
            let others = still.iter().filter_map(|flock| flock.lock.as_ref());
            others.into_iter().any(|other| Arc::ptr_eq(other, lock))
        };
        let locks = closed.iter().filter_map(|flock| flock.lock.clone());
        let locks = locks.filter(|lock| !is_left(lock)).collect();
        (closed, locks)
    }

    fn remove(&self, closed: &[Arc<Flock>]) {
        let mut held = self.held.lock();
        held.retain(|flock| !closed.iter().any(|gone| Arc::ptr_eq(gone, flock)));
        self.any.store(!held.is_empty(), Ordering::Release);
    }
}

impl Nodb {
    /// Locks or unlocks. Without `cancelled` it does not wait; with it, until that says so.
    ///
    /// Errors: EAGAIN (somebody else has the lock), EINTR, EPERM (a caller that cannot be seen), ENOLCK.
    pub fn flock(
        &self,
        open: Open<'_>,
        wanted: &Wanted,
        cancelled: Option<&dyn Fn() -> bool>,
    ) -> Result<()> {
        let Some(strength) = wanted.strength else {
            return self.unflock(open, wanted);
        };
        let own = |flock: &Flock| flock.is(open.controller, wanted);
        let range = Range {
            first: wanted.first,
            last: wanted.last,
            pid: wanted.pid,
            handle: open.handle,
        };
        match self.flocks.find(own) {
            Some(flock) if !flock.is_lost() => {
                flock.ranges.lock().set(range, Some(strength));
                return Ok(());
            }
            Some(_) => self.give_back(own),
            None => {}
        }
        let mut ranges = Ranges::default();
        ranges.set(range, Some(strength));
        let flock = Flock {
            controller: open.controller.clone(),
            sort: wanted.sort,
            owner: wanted.owner,
            handle: open.handle,
            pid: wanted.pid,
            lock: None,
            ranges: Mutex::new(ranges),
            closing: AtomicBool::new(false),
        };
        let name = self.lock_name(&open.controller.place)?;
        let own = self.writers_lease(open, &name, wanted.caller);
        let share = |held| {
            self.locker
                .share_with_session(held, Through::Flock, wanted.caller)
        };
        if let Some(flock) = self.flocks.share(flock, || own.map(share).transpose())? {
            let lock = self.take(&name, wanted.caller, cancelled)?;
            self.flocks.add(flock, lock);
        }
        Ok(())
    }

    /// The lock that the caller has for writing, or that this very file was opened with.
    fn writers_lease(&self, open: Open<'_>, name: &LockName, caller: Caller) -> Option<Arc<Held>> {
        let own = open
            .writer
            .and_then(|writer| writer.staging.committing().own(name));
        let process = || caller::process_of(caller.tid).unwrap_or(0);
        own.or_else(|| open.controller.lease_of(process(), name))
    }

    /// `None`: it is the caller's own, taken without nodbfs.
    fn take(
        &self,
        name: &LockName,
        caller: Caller,
        cancelled: Option<&dyn Fn() -> bool>,
    ) -> Result<Option<Arc<SessionLock>>> {
        let asking = Asking {
            nonblocking: true,
            ..Asking::by(caller)
        };
        let refused = match self.locker.take_for_session(name, Through::Flock, asking) {
            Err(refused @ (Error::WouldBlock { .. } | Error::Replaced { .. })) => refused,
            taken => return taken.map(Some),
        };
        if self.locker.is_callers(name, caller)? {
            return Ok(None);
        }
        let cancelled = cancelled.ok_or(refused)?;
        let taken = self
            .locker
            .await_for_session(name, Through::Flock, caller, cancelled);
        taken.map(Some)
    }

    fn unflock(&self, open: Open<'_>, wanted: &Wanted) -> Result<()> {
        let own = |flock: &Flock| flock.is(open.controller, wanted);
        if let Some(flock) = self.flocks.find(own) {
            let mut ranges = flock.ranges.lock();
            let range = Range {
                first: wanted.first,
                last: wanted.last,
                pid: wanted.pid,
                handle: open.handle,
            };
            ranges.set(range, None);
            let all = ranges.is_empty();
            drop(ranges);
            if all {
                self.give_back(own);
            }
        }
        Ok(())
    }

    fn give_back(&self, is: impl Fn(&Flock) -> bool) {
        let (closed, locks) = self.flocks.close(is);
        for lock in locks {
            self.locker.sessions.give_up(&lock);
        }
        self.flocks.remove(&closed);
    }

    /// Whether anything is locked through this mount.
    pub fn any_flock(&self) -> bool {
        self.flocks.any()
    }

    /// A descriptor of `owner`'s was closed: its locks of ranges go.
    pub fn flock_closed(&self, controller: &Arc<Controller>, owner: u64) {
        if self.flocks.any() {
            self.give_back(|flock| {
                let owned = (flock.sort, flock.owner) == (Sort::Range, owner);
                owned && Arc::ptr_eq(&flock.controller, controller)
            });
        }
    }

    /// The last descriptor of `handle` was closed: whatever was locked through it goes.
    pub fn flock_released(&self, handle: u64) {
        if self.flocks.any() {
            self.give_back(|flock| flock.handle == handle);
        }
    }

    /// The lock that keeps `wanted` from being set.
    pub fn flock_in_the_way(&self, open: Open<'_>, wanted: &Wanted) -> Result<Option<InTheWay>> {
        let name = self.lock_name(&open.controller.place)?;
        let Some(holder) = self.locker.holder(&name)? else {
            return Ok(None);
        };
        let is_holder = |flock: &Flock| flock.lock.as_ref().is_some_and(|lock| lock.is(&holder));
        let mut own = false;
        let mut pid = None;
        for flock in self
            .flocks
            .held
            .lock()
            .iter()
            .filter(|flock| is_holder(flock))
        {
            own |= flock.is(open.controller, wanted);
            pid = Some(flock.pid);
        }
        if own || self.locker.is_callers(&name, wanted.caller)? {
            return Ok(None);
        }
        Ok(Some(InTheWay {
            first: 0,
            last: END,
            strength: Strength::Exclusive,
            pid: pid
                .or_else(|| caller::pid_here(holder.owner.as_deref()?))
                .unwrap_or(0),
        }))
    }

    /// Whether the lock that is in the way of `wanted` was taken through another file of this mount, which
    /// may have been closed: the kernel says so a moment after `close` has returned.
    pub fn flock_may_be_closed(&self, open: Open<'_>, wanted: &Wanted) -> bool {
        let held = self.flocks.held.lock();
        held.iter().any(|flock| {
            Arc::ptr_eq(&flock.controller, open.controller) && !flock.is(open.controller, wanted)
        })
    }

    /// Whether a lock of this controller is being given back.
    pub fn is_flock_closing(&self, open: Open<'_>) -> bool {
        let held = self.flocks.held.lock();
        held.iter()
            .any(|flock| Arc::ptr_eq(&flock.controller, open.controller) && flock.is_closing())
    }
}
