//! Leases while they are held: renewed in the background, sure of themselves before a commit, and
//! released in any case (DESIGN.md, "Lease").

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::warn;

pub use super::acquire::{Pace, acquire_paced, acquire_waiting};
use super::{
    Committed, Holder, Lease, LockName, Meanwhile, Store, StoreError, StoreErrorKind, payload,
};
use crate::step::{self, Step};
use crate::telemetry::Telemetry;
use crate::telemetry::event::{Event, Who};

/// How soon what could not be delivered is tried again at the latest.
const AGAIN: Duration = Duration::from_secs(1);

/// Renews the held leases of a process at a third of their TTL, in one thread. When it ends, by a call or by being
/// dropped, it makes one last attempt at what is still to be released; leases held longer than that end with their
/// TTL.
///
/// Lock order: none. The keeper's queue and a lease's state are never locked together, and neither
/// during a call to the store.
pub struct Keeper {
    queue: Arc<Queue>,
    telemetry: Arc<Telemetry>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread, so it belongs after the fork of a daemon.
    pub fn start() -> std::io::Result<Self> {
        Self::telling(Arc::default())
    }

    /// As [`Keeper::start`]; what becomes of the leases is noted.
    pub fn telling(telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let worked = queue.clone();
        let thread = thread::Builder::new()
            .name("nodbfs-leases".to_owned())
            .spawn(move || worked.work())?;
        Ok(Self {
            queue,
            telemetry,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Keeps a lease alive until it is released or dropped.
    pub fn hold(&self, store: Arc<dyn Store>, lease: Lease) -> Arc<Held> {
        let due = lease.renewal_due();
        let held = Arc::new(Held {
            name: lease.name.clone(),
            store,
            queue: Arc::downgrade(&self.queue),
            telemetry: self.telemetry.clone(),
            state: Mutex::new(State::Held(lease)),
        });
        self.queue.push(due, Task::Renew(Arc::downgrade(&held)));
        held
    }

    /// Renews no more, and releases what was dropped, as far as the store answers.
    pub fn end(&self) {
        self.queue.lock().stopping = true;
        self.queue.changed.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // the thread has nothing to say, and a panic of it has been reported
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// A lease in the keeper's hands. Dropped, it is released in the keeper's thread.
pub struct Held {
    name: LockName,
    store: Arc<dyn Store>,
    queue: Weak<Queue>,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
}

enum State {
    Held(Lease),
    /// And why.
    Lost(Lease, String),
    Released,
}

impl Held {
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The stored value as last known, while the lease is held.
    pub fn value(&self) -> Option<String> {
        self.lease().ok().map(|lease| lease.value)
    }

    /// The lock as others see it.
    ///
    /// # Errors
    /// In words, why it is not held.
    pub fn holder(&self) -> std::result::Result<Holder, String> {
        let lease = self.lease()?;
        Ok(Holder {
            left: Some(lease.remaining()),
            ..payload::holder(lease.value.as_bytes())
        })
    }

    /// Says that the lock is surely ours for at least `min_remaining` more, on the monotonic clock;
    /// renews it once if that is not so yet. A process that is paused afterwards knows nothing, so
    /// a publication is fenced besides.
    ///
    /// # Errors
    /// In words, why it is not.
    pub fn check(&self, min_remaining: Duration) -> std::result::Result<(), String> {
        let lease = self.lease()?;
        if lease.remaining() >= min_remaining {
            return Ok(());
        }
        let renewed = self.renew(&lease);
        let remaining = self.lease()?.remaining();
        match renewed {
            _ if remaining >= min_remaining => Ok(()),
            Ok(()) => Err(format!("the lock is surely ours for {remaining:?} only")),
            Err(error) => Err(format!(
                "the lock is surely ours for {remaining:?} only: {error}"
            )),
        }
    }

    /// Asks the store whether the lock is still ours, prolonging it on the way: a forced release, or a
    /// store that lost its memory, ends a lease before its time. The answer is [`Held::check`]'s.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub fn confirm(&self) -> std::result::Result<(), StoreError> {
        self.lease().map_or(Ok(()), |lease| self.renew(&lease))
    }

    /// Notes something that happened to the lock.
    pub fn note(&self, event: &Event<'_>) {
        self.telemetry.note(&self.name, event);
    }

    /// When the store was asked last with success; `None`: the lock is not ours any more.
    pub fn asked(&self) -> Option<Instant> {
        self.lease().ok().map(|lease| lease.deadline - lease.ttl)
    }

    /// Releases the lock by its token and passes on what was committed under it. `false`: it was not
    /// ours any more; what was committed is passed on all the same.
    ///
    /// # Errors
    /// The store cannot be told; the keeper goes on trying until the lease has run out.
    pub fn release(&self, committed: Option<Committed>) -> std::result::Result<bool, StoreError> {
        self.release_while(committed, Meanwhile::default())
    }

    /// As [`Held::release`]; `meanwhile` is done while the store is told.
    ///
    /// # Errors
    /// Those of [`Held::release`].
    pub fn release_while(
        &self,
        committed: Option<Committed>,
        meanwhile: Meanwhile<'_>,
    ) -> std::result::Result<bool, StoreError> {
        let Some(release) = self.let_go(committed) else {
            return Ok(false);
        };
        let released = release.attempt(meanwhile);
        if released.is_err() {
            self.leave(release);
        }
        released
    }

    /// Releases the lock in the keeper's thread, in words why.
    pub fn release_later(&self, why: &str) {
        if let Some(release) = self.let_go(None) {
            let who = &Who::default();
            self.note(&Event::LockReleased { who, why });
            self.leave(release);
        }
    }

    /// The release of the lease, if it was not let go before. Of a lost one too: it has something to pass on, and the
    /// mirror flag may want clearing.
    fn let_go(&self, committed: Option<Committed>) -> Option<Release> {
        match std::mem::replace(&mut *self.state(), State::Released) {
            State::Held(lease) | State::Lost(lease, _) => Some(Release {
                store: self.store.clone(),
                lease,
                committed,
            }),
            State::Released => None,
        }
    }

    /// Leaves a release to the keeper.
    fn leave(&self, release: Release) {
        if let Some(queue) = self.queue.upgrade() {
            queue.push(Instant::now(), Task::Release(release));
        }
    }

    fn renew(&self, lease: &Lease) -> std::result::Result<(), StoreError> {
        let renewed = self.store.renew(lease)?;
        let mut state = self.state();
        // it may have been released meanwhile, or renewed by another thread
        if let State::Held(current) = &mut *state {
            match renewed {
                Some(lease) if lease.deadline > current.deadline => *current = lease,
                Some(_) => {}
                None => {
                    let why = "it expired or was taken away";
                    *state = State::Lost(lease.clone(), why.to_owned());
                    drop(state);
                    self.telemetry
                        .note(&self.name, &Event::LockLost { reason: why });
                }
            }
        }
        Ok(())
    }

    fn lease(&self) -> std::result::Result<Lease, String> {
        match &*self.state() {
            State::Held(lease) => Ok(lease.clone()),
            State::Lost(_, why) => Err(why.clone()),
            State::Released => Err("it has been released".to_owned()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release_later("whoever it was for is gone");
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.name).finish()
    }
}

impl Lease {
    /// How long it is surely ours.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A third of the TTL after the request that got it.
    fn renewal_due(&self) -> Instant {
        self.deadline - self.ttl * 2 / 3
    }
}

/// What is to be done in the keeper's thread, by the time it is due.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// The number tells apart what is due at the same instant.
    tasks: BTreeMap<(Instant, u64), Task>,
    pushed: u64,
    stopping: bool,
}

enum Task {
    Renew(Weak<Held>),
    Release(Release),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, due: Instant, task: Task) {
        let mut waiting = self.lock();
        waiting.pushed += 1;
        let key = (due, waiting.pushed);
        waiting.tasks.insert(key, task);
        // what is not due first changes nothing for the thread
        let first = waiting.tasks.first_key_value().map(|(first, _)| *first);
        drop(waiting);
        if first == Some(key) {
            self.changed.notify_one();
        }
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            if let Some((due, task)) = task.run() {
                self.push(due, task);
            }
        }
        for task in std::mem::take(&mut self.lock().tasks).into_values() {
            let Task::Release(release) = task else {
                continue;
            };
            let failure = release.run().err().map(|error| error.kind);
            // whoever does not answer one answers none, and nobody is to wait for all of them
            if let Some(StoreErrorKind::Unreachable | StoreErrorKind::TimedOut) = failure {
                return;
            }
        }
    }

    /// Waits for the next task to be due; `None` when the keeper stops.
    fn next(&self) -> Option<Task> {
        let mut waiting = self.lock();
        loop {
            if waiting.stopping {
                return None;
            }
            let now = Instant::now();
            waiting = match waiting.tasks.first_entry() {
                Some(first) if first.key().0 <= now => return Some(first.remove()),
                Some(first) => {
                    let pause = first.key().0 - now;
                    let woken = self.changed.wait_timeout(waiting, pause);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Task {
    /// Does it, and says when it is to be done again, if it is.
    fn run(self) -> Option<(Instant, Self)> {
        match self {
            Self::Renew(held) => {
                let due = held.upgrade().and_then(|held| held.renew_now())?;
                Some((due, Self::Renew(held)))
            }
            Self::Release(release) => {
                let again = release.run().is_err() && !release.lease.remaining().is_zero();
                again.then(|| (Instant::now() + AGAIN, Self::Release(release)))
            }
        }
    }
}

impl Held {
    /// One renewal in the background. When the next is due, if there is to be one.
    fn renew_now(&self) -> Option<Instant> {
        let lease = self.lease().ok()?;
        match self.renew(&lease) {
            Ok(()) => {
                let lease = self.lease().ok()?;
                let ttl = lease.ttl;
                self.telemetry.note(&self.name, &Event::LockRenewed { ttl });
                Some(lease.renewal_due())
            }
            Err(error) => {
                warn!(lock = self.name.key(), %error, "the lock could not be renewed");
                Some(Instant::now() + AGAIN.min(lease.ttl / 3))
            }
        }
    }
}

/// A release with all it needs, so that it can outlive the [`Held`].
struct Release {
    store: Arc<dyn Store>,
    lease: Lease,
    committed: Option<Committed>,
}

impl Release {
    fn attempt(&self, meanwhile: Meanwhile<'_>) -> std::result::Result<bool, StoreError> {
        step::at(Step::Release)?;
        self.store
            .release_while(&self.lease, self.committed.as_ref(), meanwhile)
    }

    /// One attempt in the background; after an error it is worth another.
    fn run(&self) -> std::result::Result<bool, StoreError> {
        let released = self.attempt(Meanwhile::default());
        released.inspect_err(|error| {
            warn!(lock = self.lease.name.key(), %error, "the lock could not be released");
        })
    }
}
