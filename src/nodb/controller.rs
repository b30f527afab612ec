//! A controller: a name in a run directory, which generation it leads to, and which threads are in
//! the middle of opening it.

mod telling;

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::counters::{self, Counted};
use crate::fs::attr::{Attr, Ident, Stamp};
use crate::fs::inode::Place;
use crate::nodb::generation::{Generation, Payload};
use crate::nodb::logfile::LogFiles;
use crate::nodb::session::Living;
use crate::nodb::staging::Staging;
use crate::store::LockName;
use crate::store::lease::Held;
use crate::telemetry::event::{Event, Who};

/// How long an `open` may take between the answer ESTALE and the kernel's second try.
pub const RETRY: Duration = Duration::from_secs(10);

/// One controller's name.
///
/// Lock order: each is taken alone and held across nothing that can wait.
#[derive(Debug)]
pub struct Controller {
    pub place: Place,
    state: Mutex<State>,
    /// How many `open`s were answered from memory and not told yet.
    hits: AtomicU64,
    log_files: Mutex<LogFiles>,
    /// Threads that are about to make the real log, and since when.
    loggers: Mutex<Vec<(u32, Instant)>>,
    /// An [`Origin`].
    read_from: AtomicU8,
}

/// Where the bytes of a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    Memory = 1,
    Cache,
    Disk,
}

impl Origin {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cache => "cache",
            Self::Disk => "disk",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    current: Weak<Generation>,
    /// Goes up whenever a commit installs or removes a generation: a look at the disk from before
    /// is void then.
    epoch: u64,
    retries: Vec<Retry>,
    leases: Vec<Leased>,
    writers: Vec<Weak<Staging>>,
    last_error: Option<String>,
    /// As the document said last.
    name: Option<LockName>,
    /// What the disk showed last; none if nodbfs has changed that itself.
    seen: Option<Stamp>,
    /// How many changes of nodbfs's own are under way.
    changing: u32,
}

/// A lease that nodbfs took for a writer.
#[derive(Debug)]
struct Leased {
    tgid: u32,
    held: Weak<Held>,
    since: Instant,
}

/// A thread that got ESTALE from an `open` and is on its way back.
#[derive(Debug)]
struct Retry {
    tid: u32,
    since: Instant,
    goal: Goal,
    /// The process of a writer, which may be killed on its way.
    process: Option<Living>,
}

impl Retry {
    fn is_dead(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| !process.lives())
    }
}

/// What a returning thread is to be given.
#[derive(Debug)]
enum Goal {
    /// Whatever is current when it looks; then that, even if it is superseded before it opens.
    Current(Vec<(u64, Arc<Payload>)>),
    /// Its own staging.
    Staging(Arc<Staging>),
}

impl Controller {
    pub fn new(place: Place) -> Self {
        Self {
            place,
            state: Mutex::default(),
            hits: AtomicU64::new(0),
            log_files: Mutex::default(),
            loggers: Mutex::default(),
            read_from: AtomicU8::new(0),
        }
    }

    /// Somebody was given bytes that came from there.
    pub fn read_from(&self, origin: Origin) {
        counters::count(match origin {
            Origin::Memory => Counted::FromMemory,
            Origin::Cache => Counted::FromCache,
            Origin::Disk => Counted::FromDisk,
        });
        self.read_from.store(origin as u8, Relaxed);
        if origin == Origin::Memory {
            self.hits.fetch_add(1, Relaxed);
        }
    }

    /// Where the bytes of the last `open` for reading came from.
    pub fn last_read_from(&self) -> Option<Origin> {
        let last = self.read_from.load(Relaxed);
        let all = [Origin::Memory, Origin::Cache, Origin::Disk];
        all.into_iter().find(|origin| *origin as u8 == last)
    }

    /// The number of commits seen; to be read before the disk is looked at.
    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// The current generation.
    pub fn current(&self) -> Option<Arc<Generation>> {
        self.state.lock().current.upgrade()
    }

    /// The generation that `attr`, read from the disk at `epoch`, describes: the current one, or
    /// one made by `new`. `None`: a commit came between, look again.
    pub fn see(
        &self,
        epoch: u64,
        attr: &Attr,
        new: impl FnOnce() -> Generation,
    ) -> Option<Arc<Generation>> {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return None;
        }
        if let Some(current) = state
            .current
            .upgrade()
            .filter(|current| current.stamp() == attr.stamp())
        {
            current.refresh(*attr);
            return Some(current);
        }
        let generation = Arc::new(new());
        state.current = Arc::downgrade(&generation);
        Some(generation)
    }

    /// The name leads to another generation now, or to none: the next look makes it.
    pub fn supersede(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.current = Weak::new();
        state.seen = None;
    }

    /// `tid` was answered ESTALE and will look for the current generation.
    pub fn expect_reader(&self, tid: u32) {
        self.expect(tid, Goal::Current(Vec::new()), None);
    }

    /// `tid` was answered ESTALE and will look for its staging.
    pub fn expect_writer(&self, tid: u32, staging: Arc<Staging>) {
        let process = Living::open(staging.tgid);
        self.expect(tid, Goal::Staging(staging), process);
    }

    fn expect(&self, tid: u32, goal: Goal, process: Option<Living>) {
        let mut state = self.state.lock();
        state.retries.retain(|retry| retry.tid != tid || tid == 0);
        state.retries.push(Retry {
            tid,
            since: Instant::now(),
            goal,
            process,
        });
    }

    /// Whether `tid` was answered ESTALE and is looking for the current generation.
    pub fn is_returning(&self, tid: u32) -> bool {
        let state = self.state.lock();
        state
            .retries
            .iter()
            .any(|retry| retry.tid == tid && matches!(retry.goal, Goal::Current(_)))
    }

    /// The staging that `tid` is on its way to.
    pub fn staging_for(&self, tid: u32) -> Option<Arc<Staging>> {
        let state = self.state.lock();
        state.retries.iter().find_map(|retry| match &retry.goal {
            Goal::Staging(staging) if retry.tid == tid => Some(staging.clone()),
            _ => None,
        })
    }

    /// A returning reader was shown this generation: it may open it, whatever is committed between.
    pub fn pin(&self, tid: u32, generation: u64, payload: &Arc<Payload>) {
        let mut state = self.state.lock();
        for retry in &mut state.retries {
            if let Goal::Current(pins) = &mut retry.goal
                && retry.tid == tid
            {
                pins.push((generation, payload.clone()));
            }
        }
    }

    /// A returning reader has arrived at the generation it was shown.
    pub fn take_pin(&self, tid: u32, generation: u64) -> Option<Arc<Payload>> {
        let mut state = self.state.lock();
        let at = state.retries.iter().position(|retry| {
            retry.tid == tid
                && matches!(&retry.goal, Goal::Current(pins) if pins.iter().any(|(id, _)| *id == generation))
        })?;
        match state.retries.swap_remove(at).goal {
            Goal::Current(pins) => pins
                .into_iter()
                .rev()
                .find(|(id, _)| *id == generation)
                .map(|(_, payload)| payload),
            Goal::Staging(_) => None,
        }
    }

    /// A returning writer has arrived.
    pub fn arrived(&self, staging: &Arc<Staging>) {
        let mut state = self.state.lock();
        state
            .retries
            .retain(|retry| !matches!(&retry.goal, Goal::Staging(s) if Arc::ptr_eq(s, staging)));
    }

    /// Forgets threads that have not come back for so long or never will, and with them their stagings and leases.
    fn expire(&self, limit: Duration) {
        let gone: Vec<Retry> = {
            let mut state = self.state.lock();
            state
                .retries
                .extract_if(.., |retry| {
                    retry.since.elapsed() >= limit || retry.is_dead()
                })
                .collect()
        };
        for retry in gone {
            if let Goal::Staging(staging) = retry.goal {
                staging.desert();
            }
        }
    }

    /// The lease `name` that the process `tgid` already holds for this controller.
    pub fn lease_of(&self, tgid: u32, name: &LockName) -> Option<Arc<Held>> {
        let state = self.state.lock();
        let own = state
            .leases
            .iter()
            .filter(|leased| tgid != 0 && leased.tgid == tgid);
        let mut held = own.filter_map(|leased| leased.held.upgrade());
        // a lost or returned one must not spoil what the process opens next
        held.find(|held| held.name() == name && held.value().is_some())
    }

    /// The lease `name` that any process holds for this controller, and which one.
    pub fn leased_to(&self, name: &LockName) -> Option<(u32, Arc<Held>)> {
        let state = self.state.lock();
        let mut held = state
            .leases
            .iter()
            .filter_map(|leased| Some((leased.tgid, leased.held.upgrade()?)));
        held.find(|(_, held)| held.name() == name && held.value().is_some())
    }

    /// A writer begins.
    pub fn staged(&self, staging: Staging) -> Arc<Staging> {
        let staging = Arc::new(staging);
        let mut state = self.state.lock();
        state.writers.retain(|writer| writer.strong_count() > 0);
        state.writers.push(Arc::downgrade(&staging));
        staging
    }

    /// Whether a writer is at work: then the kernel is not to remember where the name leads, and so
    /// need not be told of the commit. What it remembered before, the writer's own `open` ended.
    pub fn is_being_written(&self) -> bool {
        let state = self.state.lock();
        let mut retries = state.retries.iter();
        if retries.any(|retry| matches!(retry.goal, Goal::Staging(_))) {
            return true;
        }
        let writers: Vec<_> = state.writers.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        writers.iter().any(|writer| writer.is_open())
    }

    /// Whether the process `tgid` has the controller open for writing as it was before `current`:
    /// what it brings by a rename may have been made of that.
    pub fn is_outdated(&self, tgid: u32, current: Option<Stamp>) -> bool {
        let writers: Vec<_> = self
            .state
            .lock()
            .writers
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let own = writers
            .iter()
            .filter(|writer| tgid != 0 && writer.tgid == tgid);
        let mut open = own.filter(|writer| writer.is_in_use());
        open.any(|writer| writer.draft().base.map(|base| base.stamp()) != current)
    }

    /// The process `tgid` holds a lease now.
    pub fn leased(&self, tgid: u32, held: &Arc<Held>) {
        let held = Arc::downgrade(held);
        let mut state = self.state.lock();
        state.leases.retain(|leased| leased.held.strong_count() > 0);
        state.leases.push(Leased {
            tgid,
            held,
            since: Instant::now(),
        });
    }

    /// The open writers' processes; 0 for one that cannot be seen.
    pub fn writers(&self) -> Vec<u32> {
        let writers = self.state.lock().writers.clone();
        let writers = writers.iter().filter_map(Weak::upgrade);
        writers
            .filter(|writer| writer.is_open())
            .map(|writer| writer.tgid)
            .collect()
    }

    /// The leases that nodbfs holds for writers, with their processes and ages.
    pub fn held(&self) -> Vec<(LockName, u32, Duration)> {
        let state = self.state.lock();
        let held = state.leases.iter().filter_map(|leased| {
            let held = leased
                .held
                .upgrade()
                .filter(|held| held.value().is_some())?;
            Some((held.name().clone(), leased.tgid, leased.since.elapsed()))
        });
        held.collect()
    }

    /// The leases that writers have held for longer than `limit`.
    fn overdue(&self, limit: Duration) -> Vec<Arc<Held>> {
        let state = self.state.lock();
        let overdue = state
            .leases
            .iter()
            .filter(|leased| leased.since.elapsed() > limit);
        overdue.filter_map(|leased| leased.held.upgrade()).collect()
    }

    /// The reason of the last refusal, in words.
    pub fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    pub fn set_last_error(&self, error: Option<String>) {
        self.state.lock().last_error = error;
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.retries.is_empty() && state.last_error.is_none() && state.current.strong_count() == 0
    }
}

/// All controllers that somebody has asked for, by directory and name.
///
/// Lock order: `known` before a controller's `state`.
#[derive(Debug, Default)]
pub struct Controllers {
    known: Mutex<HashMap<(Ident, OsString), Arc<Controller>>>,
}

impl Controllers {
    /// The controller of this name, whether or not there is a file.
    pub fn at(&self, place: &Place) -> Arc<Controller> {
        let fresh = || Arc::new(Controller::new(place.clone()));
        let mut known = self.known.lock();
        let controller = known.entry(key(place)).or_insert_with(fresh);
        // the kernel may have forgotten the directory and found it again
        if !Arc::ptr_eq(&controller.place.dir, &place.dir) {
            *controller = fresh();
        }
        controller.clone()
    }

    /// The controller of this name, if somebody has asked for it.
    pub fn get(&self, place: &Place) -> Option<Arc<Controller>> {
        self.known.lock().get(&key(place)).cloned()
    }

    /// Gives back leases of writers that never close. Their commits fail then, with ESTALE.
    pub fn release_held_longer_than(&self, limit: Duration) {
        let all: Vec<_> = self.known.lock().values().cloned().collect();
        for held in all.iter().flat_map(|controller| controller.overdue(limit)) {
            // tried again the next time
            if let Ok(true) = held.release(None) {
                held.note(&Event::LockReleased {
                    who: &Who::default(),
                    why: "held for too long by a writer that does not close",
                });
            }
        }
    }

    /// The lease `name` that any process holds for any controller, and which one.
    pub fn leased_to(&self, name: &LockName) -> Option<(u32, Arc<Held>)> {
        let mut known = self.known().into_iter();
        known.find_map(|controller| controller.leased_to(name))
    }

    /// The controllers that somebody has asked for.
    pub fn known(&self) -> Vec<Arc<Controller>> {
        self.known.lock().values().cloned().collect()
    }

    /// Forgets what nobody uses, and threads that have not come back for `limit` or never will.
    pub fn sweep(&self, limit: Duration) {
        let all: Vec<_> = self.known.lock().values().cloned().collect();
        all.iter().for_each(|controller| controller.expire(limit));
        drop(all);
        self.known
            .lock()
            .retain(|_, controller| Arc::strong_count(controller) > 1 || !controller.is_idle());
    }
}

fn key(place: &Place) -> (Ident, OsString) {
    (place.dir.ident, place.name.clone())
}
