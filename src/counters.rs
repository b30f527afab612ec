//! What a daemon counts: how often each operation, each call of the store and each event came, and
//! how long operations and calls took. A process serves one mount, so there is one of each.
//!
//! Counting is a relaxed addition or two and, for a time, two looks at the clock: some 60 ns, of an
//! operation's ten microseconds and more.

mod histogram;

use std::collections::{BTreeMap, VecDeque};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use histogram::Histogram;

macro_rules! counted {
    ($(#[doc = $doc:literal])+ $kind:ident { $($(#[doc = $each:literal])* $one:ident = $name:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind {
            $($(#[doc = $each])* $one,)+
        }

        impl $kind {
            const ALL: &[Self] = &[$(Self::$one),+];

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$one => $name,)+
                }
            }
        }
    };
}

counted! {
    /// What the kernel asks for.
    Op {
        Lookup = "lookup",
        Forget = "forget",
        Getattr = "getattr",
        Setattr = "setattr",
        Readlink = "readlink",
        Mknod = "mknod",
        Mkdir = "mkdir",
        Unlink = "unlink",
        Rmdir = "rmdir",
        Symlink = "symlink",
        Rename = "rename",
        Link = "link",
        Open = "open",
        Read = "read",
        Write = "write",
        Flush = "flush",
        Release = "release",
        Fsync = "fsync",
        Opendir = "opendir",
        Readdir = "readdir",
        Readdirplus = "readdirplus",
        Releasedir = "releasedir",
        Fsyncdir = "fsyncdir",
        Statfs = "statfs",
        Setxattr = "setxattr",
        Getxattr = "getxattr",
        Listxattr = "listxattr",
        Removexattr = "removexattr",
        Create = "create",
        Fallocate = "fallocate",
        Lseek = "lseek",
        CopyFileRange = "copy_file_range",
        Getlk = "getlk",
        Setlk = "setlk",
    }
}

counted! {
    /// What happens to controllers.
    Counted {
        /// An `open` for reading was served from the daemon's memory …
        FromMemory = "read from memory",
        /// … from the cache entry …
        FromCache = "read from cache",
        /// … or from the disk.
        FromDisk = "read from disk",
        /// A read went to the disk because the store could not be asked.
        CacheAway = "read without cache",
        /// The cache was asked and did not have it.
        CacheMiss = "cache miss",
        CacheRefreshed = "cache refreshed",
        CacheEvicted = "cache entries removed",
        Committed = "commit",
        Refused = "refusal",
        Kept = "refused content kept",
        Removed = "removal",
        ChangedElsewhere = "change elsewhere",
        LockWaits = "lock waited for",
        LockTaken = "lock taken",
        LockAdopted = "lock adopted",
        LockRefused = "lock not taken",
        LockRenewed = "lock renewed",
        LockReleased = "lock released",
        LockForced = "lock released by force",
        LockLost = "lock lost",
        Message = "message",
        Trigger = "trigger",
        DebtMade = "debt made",
        DebtPaid = "debt paid",
    }
}

/// At one every 2 s, the rates are those of the last half minute.
const MOST_SAMPLES: usize = 15;
/// A rate over less time than this says nothing.
const LEAST: Duration = Duration::from_secs(1);

static OPS: [Histogram; Op::ALL.len()] = [const { Histogram::new() }; Op::ALL.len()];
static EVENTS: [AtomicU64; Counted::ALL.len()] = [const { AtomicU64::new(0) }; Counted::ALL.len()];
static CALLS: Mutex<BTreeMap<&'static str, Histogram>> = Mutex::new(BTreeMap::new());

/// Times an operation of the kernel's, until it is dropped.
#[derive(Debug)]
pub struct Timed {
    op: Op,
    since: Instant,
}

/// `op` begins.
pub fn time(op: Op) -> Timed {
    let since = Instant::now();
    Timed { op, since }
}

impl Drop for Timed {
    fn drop(&mut self) {
        OPS[self.op as usize].add(self.since.elapsed());
    }
}

/// `event` happened.
pub fn count(event: Counted) {
    EVENTS[event as usize].fetch_add(1, Relaxed);
}

/// A call of the store's was answered, or failed, after `took`.
pub fn called(what: &'static str, took: Duration) {
    CALLS
        .lock()
        .entry(what)
        .or_insert_with(Histogram::new)
        .add(took);
}

/// How often something came, and how long it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub count: u64,
    /// Per second: of operations over the last half minute, of calls since the start.
    pub rate: f64,
    /// Microseconds: half took no longer, …
    pub p50: f64,
    /// … 99 of 100 took no longer, and this is the mean.
    pub p99: f64,
    pub mean: f64,
}

/// What came so far of the kernel's operations; nothing of those that never came.
pub fn operations() -> Vec<Line> {
    let rates = rates();
    let lines = Op::ALL.iter().map(|op| {
        let at = *op as usize;
        line(op.name(), &OPS[at], rates[at])
    });
    lines.filter(|line| line.count > 0).collect()
}

/// What came so far of the store's calls.
pub fn calls(uptime: Duration) -> Vec<Line> {
    let calls = CALLS.lock();
    let lines = calls.iter().map(|(name, histogram)| {
        let rate = histogram.count() as f64 / uptime.max(LEAST).as_secs_f64();
        line(name, histogram, rate)
    });
    lines.collect()
}

/// What came so far of events.
pub fn events() -> BTreeMap<String, u64> {
    let each = Counted::ALL.iter();
    let each = each.map(|event| {
        (
            event.name().to_owned(),
            EVENTS[*event as usize].load(Relaxed),
        )
    });
    each.collect()
}

fn line(name: &str, histogram: &Histogram, rate: f64) -> Line {
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
    Line {
        name: name.to_owned(),
        count: histogram.count(),
        rate,
        p50: micros(histogram.quantile(0.5)),
        p99: micros(histogram.quantile(0.99)),
        mean: micros(histogram.mean()),
    }
}

type Counts = [u64; Op::ALL.len()];

fn counts() -> Counts {
    std::array::from_fn(|at| OPS[at].count())
}

/// The counts of some earlier moments, the latest last.
///
/// Lock order: taken alone.
static SAMPLES: LazyLock<Mutex<VecDeque<(Instant, Counts)>>> = LazyLock::new(Mutex::default);

/// Remembers what was counted so far, for the rates; to be called at the start and every other second.
pub fn sample() {
    let now = (Instant::now(), counts());
    let mut samples = SAMPLES.lock();
    samples.push_back(now);
    if samples.len() > MOST_SAMPLES {
        samples.pop_front();
    }
}

/// Per second, since the oldest sample.
fn rates() -> [f64; Op::ALL.len()] {
    let now = counts();
    let samples = SAMPLES.lock();
    let Some((since, before)) = samples.front() else {
        return [0.0; Op::ALL.len()];
    };
    let seconds = since.elapsed().max(LEAST).as_secs_f64();
    std::array::from_fn(|at| (now[at] - before[at]) as f64 / seconds)
}
