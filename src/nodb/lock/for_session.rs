//! Locks that a session holds: taken for it, shared with it, given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::{Asking, Locker};
use crate::error::{Error, Result};
use crate::fs::credentials::Caller;
use crate::nodb::caller;
use crate::nodb::session::Session;
use crate::nodb::session_lock::{SessionLock, Through};
use crate::store::lease::Held;
use crate::store::{self, LockName};
use crate::telemetry::event::{Event, Who};

/// An attempt that took longer has waited for a holder.
const WAITED: Duration = Duration::from_millis(10);

impl Locker {
    /// Takes the lock `name` for the caller's session, as patiently as it asks. Each call is an
    /// acquisition of its own: whoever holds the lock is waited for, the same session too.
    ///
    /// Errors: EPERM (a caller that cannot be seen), EBUSY, EAGAIN, EINTR, ENOLCK.
    pub fn take_for_session(
        &self,
        name: &LockName,
        through: Through,
        asking: Asking,
    ) -> Result<Arc<SessionLock>> {
        self.take_with(through, asking.caller, |who| {
            self.wait_for(who, name, asking)
        })
    }

    /// As [`Locker::take_for_session`], waiting until it has the lock or is `cancelled`.
    pub fn await_for_session(
        &self,
        name: &LockName,
        through: Through,
        caller: Caller,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Arc<SessionLock>> {
        self.take_with(through, caller, |who| {
            let answer = self.acquire(name, Duration::MAX, cancelled);
            answer.inspect_err(|error| {
                self.telemetry
                    .note(name, &Event::LockRefused { who, error });
            })
        })
    }

    fn take_with(
        &self,
        through: Through,
        caller: Caller,
        acquire: impl FnOnce(&Who) -> Result<store::Lease>,
    ) -> Result<Arc<SessionLock>> {
        // asked for first: a waiter may be killed, and its session would not be known
        let session = Session::of(caller.tid).ok_or(Error::OutOfSight)?;
        let who = Who::of_thread(caller.tid);
        let start = Instant::now();
        let lease = acquire(&who)?;
        self.tell_taken(&who, &lease, start);
        let held = self.keeper.hold(self.store.clone(), lease);
        Ok(self.give_to_session(session, through, caller, held))
    }

    /// What a writer of the caller's session has is the session's, too.
    ///
    /// Errors: EPERM (a caller that cannot be seen).
    pub fn share_with_session(
        &self,
        held: Arc<Held>,
        through: Through,
        caller: Caller,
    ) -> Result<Arc<SessionLock>> {
        let session = Session::of(caller.tid).ok_or(Error::OutOfSight)?;
        Ok(self.give_to_session(session, through, caller, held))
    }

    fn tell_taken(&self, who: &Who, lease: &store::Lease, since: Instant) {
        let taken = Event::LockTaken {
            who,
            ttl: lease.ttl,
            waited: Some(since.elapsed()).filter(|waited| *waited > WAITED),
        };
        self.telemetry.note(&lease.name, &taken);
    }

    fn give_to_session(
        &self,
        session: Session,
        through: Through,
        caller: Caller,
        held: Arc<Held>,
    ) -> Arc<SessionLock> {
        let lock = SessionLock::new(session, through, (caller.tid, caller.uid), held);
        debug!(
            lock = lock.name().key(),
            session = lock.session.sid,
            process = lock.process,
            ?through,
            "lock of a session"
        );
        self.sessions.add(&lock);
        lock
    }

    /// Whether the lock `name` is the caller's own, taken without nodbfs.
    pub fn is_callers(&self, name: &LockName, caller: Caller) -> Result<bool> {
        let holder = self.store.holder(name)?;
        let foreign = holder.filter(|holder| {
            let session = self.sessions.get(name);
            !session.is_some_and(|lock| lock.is(holder))
        });
        let owner = foreign.and_then(|holder| holder.owner);
        Ok(owner.is_some() && owner == caller::owner_of(caller.tid))
    }

    /// Gives a session's lock back. `false`: it was not the session's any more.
    ///
    /// # Errors
    /// The store cannot be told now; it will be, or the lock expires.
    pub fn release_for_session(&self, lock: &SessionLock) -> Result<bool> {
        self.sessions.remove(lock);
        let released = lock.held().release(None)?;
        self.released(lock.name(), released, &lock.who());
        Ok(released)
    }
}
