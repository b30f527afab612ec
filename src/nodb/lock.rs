//! The distributed locks a writer works under: taken by nodbfs, or the writer's own.

mod for_session;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::fs::credentials::Caller;
use crate::nodb::caller;
use crate::nodb::controller::Controller;
use crate::nodb::session::Living;
use crate::nodb::session_lock::{SessionLocks, Worker};
use crate::step::{self, Step};
use crate::store::lease::{Held, Keeper, acquire_waiting};
use crate::store::{self, Acquired, Committed, Holder, LockName, Meanwhile, Store, payload};
use crate::telemetry::Telemetry;
use crate::telemetry::event::{Event, Who};

/// How long a lease must be ours for sure when a publication begins. Longer than any publication
/// on a healthy disk; the publication is fenced for the others.
const MARGIN: Duration = Duration::from_secs(5);

/// For so long the store's word that a lock is ours needs no repetition, though somebody may take it away
/// by force at any time: the publication is fenced for what happens after the word.
pub const NEWS: Duration = Duration::from_millis(5);

/// How many may wait for locks at a time, for `--lock-wait` each: most of the threads for what may wait, and the others
/// are for those who hold the locks, and for plain files. Whoever comes then is refused at once.
pub const WAITERS: usize = 768;

/// The right to publish a controller.
#[derive(Debug)]
enum Lease {
    /// Taken by nodbfs; shared by the writers of one process.
    Own(Arc<Held>),
    /// The writer's own: not taken, not renewed, not released.
    Adopted(Holder),
    /// The writer's session's, taken by nodbfs: renewed and released for the session.
    Session(Worker),
    /// The tail of a dump of a process that cannot be seen, which has just checked its lock.
    Vouched,
}

/// The locks one writer works under.
#[derive(Debug, Default)]
pub struct Leases {
    held: Vec<(LockName, Lease)>,
    /// The process they were taken for; 0 if it cannot be seen.
    process: u32,
    /// The same, as it is told of.
    who: Who,
}

impl Leases {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whom they were taken for.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The lease `name`, if nodbfs took it for this writer.
    pub fn own(&self, name: &LockName) -> Option<Arc<Held>> {
        self.held.iter().find_map(|(held, lease)| match lease {
            Lease::Own(lease) if held == name => Some(lease.clone()),
            _ => None,
        })
    }
}

/// How a writer asks for a lock.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub caller: Caller,
    /// `O_NONBLOCK`: EAGAIN at once.
    pub nonblocking: bool,
    /// A rename of NoDb's own temporary name: the tail of a dump.
    pub dump: bool,
}

impl Asking {
    /// As a patient caller asks, for an operation that is no tail of a dump.
    pub fn by(caller: Caller) -> Self {
        Self {
            caller,
            nonblocking: false,
            dump: false,
        }
    }
}

/// Takes and releases locks for writers.
pub struct Locker {
    store: Arc<dyn Store>,
    keeper: Keeper,
    telemetry: Arc<Telemetry>,
    /// What sessions hold.
    pub sessions: Arc<SessionLocks>,
    /// `<hostname>:<pid>` of the daemon.
    owner: String,
    wait: Duration,
    ttl: Duration,
    /// Nobody is to wait for a lock any more.
    ending: AtomicBool,
    /// How many wait for one, on threads that others need as well.
    waiters: AtomicUsize,
}

impl fmt::Debug for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locker")
            .field("owner", &self.owner)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl Locker {
    /// `wait` is `--lock-wait`, `ttl` is `--lease-ttl`.
    pub fn new(
        store: Arc<dyn Store>,
        telemetry: Arc<Telemetry>,
        wait: Duration,
        ttl: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            keeper: Keeper::telling(telemetry.clone())?,
            sessions: SessionLocks::new()?,
            store,
            telemetry,
            owner: caller::own_owner(),
            wait,
            ttl,
            ending: AtomicBool::default(),
            waiters: AtomicUsize::default(),
        })
    }

    /// Nobody waits for a lock any more.
    pub fn end_waits(&self) {
        self.ending.store(true, Relaxed);
    }

    pub fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// Lets go of all locks, as far as the store answers; for what nobody holds any more.
    pub fn end(&self) {
        self.sessions.end();
        self.keeper.end();
    }

    /// Makes sure that `leases` cover the lock `name` of `controller`.
    ///
    /// Errors: EBUSY or EAGAIN (held by somebody else), EINTR, ENOLCK (the store is away).
    pub fn cover(
        &self,
        leases: &mut Leases,
        controller: &Controller,
        name: &LockName,
        asking: Asking,
    ) -> Result<()> {
        self.cover_while(leases, controller, name, asking, Meanwhile::default())
    }

    /// As [`Locker::cover`]; `meanwhile` is done while the store is asked.
    pub fn cover_while(
        &self,
        leases: &mut Leases,
        controller: &Controller,
        name: &LockName,
        asking: Asking,
        meanwhile: Meanwhile<'_>,
    ) -> Result<()> {
        if self.try_cover(leases, controller, name, asking, meanwhile)? {
            return Ok(());
        }
        leases.who = Who::of(leases.process);
        if !asking.nonblocking {
            let who = &leases.who;
            self.telemetry.note(name, &Event::LockWaits { who });
        }
        let start = Instant::now();
        let lease = self.wait_for(&leases.who, name, asking)?;
        let lease = self.keep(controller, leases, lease, Some(start.elapsed()));
        leases.held.push((name.clone(), lease));
        step::at(Step::Acquired)?;
        Ok(())
    }

    /// As [`Locker::cover_while`], without waiting for whoever holds the lock; `false`: somebody does.
    pub fn try_cover(
        &self,
        leases: &mut Leases,
        controller: &Controller,
        name: &LockName,
        asking: Asking,
        meanwhile: Meanwhile<'_>,
    ) -> Result<bool> {
        if leases.held.iter().any(|(held, _)| held == name) {
            return Ok(true);
        }
        leases.process = caller::process_of(asking.caller.tid).unwrap_or(0);
        let at_hand = match self.of_session(name, asking.caller.tid)? {
            None => self.shared(controller, leases.process, name)?,
            session => session,
        };
        let lease = match at_hand {
            Some(lease) => lease,
            None => {
                step::at(Step::Acquire)?;
                let asked = self
                    .store
                    .acquire_while(name, &self.owner, self.ttl, meanwhile);
                match asked? {
                    Acquired::Held(lease) => {
                        leases.who = Who::of(leases.process);
                        self.keep(controller, leases, lease, None)
                    }
                    Acquired::Busy(holder) => match self.adopt(leases, name, &holder, asking) {
                        Some(lease) => lease,
                        None => return Ok(false),
                    },
                    Acquired::Fenced => return Ok(false),
                }
            }
        };
        leases.held.push((name.clone(), lease));
        step::at(Step::Acquired)?;
        Ok(true)
    }

    /// The lease of a writer whose session has the lock. ESTALE: it has been lost, and the writer
    /// must not go on as if nothing had happened since it was taken.
    fn of_session(&self, name: &LockName, tid: u32) -> Result<Option<Lease>> {
        let Some(lock) = self.sessions.get(name).filter(|lock| lock.serves(tid)) else {
            return Ok(None);
        };
        lock.held().confirm()?;
        lock.held()
            .check(Duration::ZERO)
            .map_err(Error::LeaseLost)?;
        Ok(Some(Lease::Session(lock.join())))
    }

    /// The lease that `process` has already for another writer of its own.
    fn shared(
        &self,
        controller: &Controller,
        process: u32,
        name: &LockName,
    ) -> Result<Option<Lease>> {
        let Some(held) = controller.lease_of(process, name) else {
            return Ok(None);
        };
        // it may have been lost, and nobody has noticed
        held.confirm()?;
        Ok(held.value().is_some().then_some(Lease::Own(held)))
    }

    /// A lease that was taken for the process of `leases`, kept alive from now on.
    fn keep(
        &self,
        controller: &Controller,
        leases: &Leases,
        lease: store::Lease,
        waited: Option<Duration>,
    ) -> Lease {
        let (who, ttl) = (&leases.who, lease.ttl);
        let taken = Event::LockTaken { who, ttl, waited };
        self.telemetry.note(&lease.name, &taken);
        let held = self.keeper.hold(self.store.clone(), lease);
        controller.leased(leases.process, &held);
        Lease::Own(held)
    }

    /// The lease of a writer that holds the lock itself, or that must be believed to.
    fn adopt(
        &self,
        leases: &mut Leases,
        name: &LockName,
        holder: &Holder,
        asking: Asking,
    ) -> Option<Lease> {
        if self.sessions.get(name).is_some_and(|lock| lock.is(holder)) {
            return None;
        }
        match caller::owner_of(asking.caller.tid) {
            Some(owner) if holder.owner.as_ref() == Some(&owner) => {
                leases.who = Who::of(leases.process);
                let adopted = Event::LockAdopted {
                    who: &leases.who,
                    holder: &owner,
                };
                self.telemetry.note(name, &adopted);
                Some(Lease::Adopted(holder.clone()))
            }
            None if asking.dump => {
                self.telemetry.note(name, &Event::LockVouched);
                Some(Lease::Vouched)
            }
            _ => None,
        }
    }

    fn wait_for(&self, who: &Who, name: &LockName, asking: Asking) -> Result<store::Lease> {
        let wait = if asking.nonblocking {
            Duration::ZERO
        } else {
            self.wait
        };
        // who asks over the control socket may end without a signal that could be seen
        let maker = Living::open(asking.caller.tid);
        let ended = || maker.as_ref().is_some_and(|maker| !maker.lives());
        let interrupted = || caller::is_interrupted(asking.caller.tid) || ended();
        let others = self.waiters.fetch_add(1, Relaxed);
        let wait = if others < WAITERS {
            wait
        } else {
            Duration::ZERO
        };
        let answer = self.acquire(name, wait, &interrupted);
        self.waiters.fetch_sub(1, Relaxed);
        let answer = match answer {
            Err(Error::Locked { key, holder }) if asking.nonblocking => {
                Err(Error::WouldBlock { key, holder })
            }
            answer => answer,
        };
        answer.inspect_err(|error| {
            self.telemetry
                .note(name, &Event::LockRefused { who, error });
        })
    }

    /// Takes the lock, waiting at most `wait`, until `cancelled` or the mount's end: what is released then is not for
    /// those who waited on this mount.
    fn acquire(
        &self,
        name: &LockName,
        wait: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<store::Lease> {
        let (store, ttl) = (&*self.store, self.ttl);
        let cancelled = || self.is_ending() || cancelled();
        let lease = acquire_waiting(store, name, &self.owner, ttl, wait, &cancelled)?;
        if !self.is_ending() {
            return Ok(lease);
        }
        let holder = payload::holder(lease.value.as_bytes()).to_string();
        drop(self.keeper.hold(self.store.clone(), lease));
        let key = name.key();
        Err(Error::Interrupted(Box::new(Error::Locked { key, holder })))
    }

    /// Makes sure that every lease is still the writer's, for long enough to publish.
    ///
    /// Errors: ESTALE (lost), ENOLCK (the store is away).
    pub fn check(&self, leases: &Leases) -> Result<()> {
        step::at(Step::Confirm)?;
        for (name, lease) in &leases.held {
            match lease {
                Lease::Own(held) => self.check_held(held)?,
                Lease::Session(worker) => self.check_held(worker.lock().held())?,
                Lease::Adopted(holder) => {
                    let now = self.store.holder(name)?;
                    if now.as_ref().map(|now| &now.value) != Some(&holder.value) {
                        return Err(Error::LeaseLost(format!(
                            "{holder} no longer holds {}",
                            name.key()
                        )));
                    }
                }
                Lease::Vouched => {}
            }
        }
        Ok(())
    }

    fn check_held(&self, held: &Held) -> Result<()> {
        if held.asked().is_none_or(|asked| asked.elapsed() > NEWS) {
            held.confirm()?;
        }
        let sure = held.check(MARGIN.min(self.ttl / 4));
        sure.map_err(Error::LeaseLost)
    }

    /// Gives back what nodbfs took, by its own tokens. With `committed`, the run's `last_modified`
    /// becomes now (PROTOCOL.md 2), also under locks that are the writer's own.
    pub fn release(&self, leases: &mut Leases, committed: bool) {
        self.release_while(leases, committed, Meanwhile::default());
    }

    /// As [`Locker::release`]; `meanwhile` is done while the store is told.
    pub fn release_while(
        &self,
        leases: &mut Leases,
        committed: bool,
        mut meanwhile: Meanwhile<'_>,
    ) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        let committed = committed.then_some(Committed {
            last_modified: now,
            message: None,
        });
        for (name, lease) in leases.held.drain(..) {
            let last = match lease {
                Lease::Own(held) => Arc::into_inner(held),
                Lease::Adopted(_) | Lease::Session(_) | Lease::Vouched => None,
            };
            let told = match (last, &committed) {
                (Some(held), _) => {
                    let meanwhile = std::mem::take(&mut meanwhile);
                    let released = held.release_while(committed.clone(), meanwhile);
                    released.map(|ours| self.released(&name, ours, &leases.who))
                }
                (None, Some(committed)) => self.store.touch(&name.runid, committed.last_modified),
                (None, None) => Ok(()),
            };
            if let Err(error) = told {
                let unreleased = Event::Unreleased { error: &error };
                self.telemetry.note(&name, &unreleased);
            }
        }
    }

    fn released(&self, name: &LockName, ours: bool, who: &Who) {
        let event = match ours {
            true => Event::LockReleased { who, why: "" },
            false => Event::LockLost {
                reason: "it was not ours any more when it was given back",
            },
        };
        self.telemetry.note(name, &event);
    }

    /// Who holds `name` now, in words; for `user.nodbfs.lock`.
    pub fn holder(&self, name: &LockName) -> Result<Option<Holder>> {
        Ok(self.store.holder(name)?)
    }
}
