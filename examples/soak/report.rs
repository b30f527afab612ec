//! What happened, and what should not have.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many of the latest events are told with a violation.
const CONTEXT: usize = 6;

pub struct Report {
    start: Instant,
    /// No more work is begun.
    pub ended: Arc<AtomicBool>,
    pub commits: AtomicU64,
    pub refusals: AtomicU64,
    pub crashes: AtomicU64,
    pub reads: AtomicU64,
    violations: AtomicU64,
    /// What is known and written down (see the program's own words), by its name.
    accounted: Mutex<BTreeMap<&'static str, u64>>,
    refused: Mutex<BTreeMap<i32, u64>>,
    events: Mutex<VecDeque<String>>,
    doing: Mutex<BTreeMap<String, (Instant, String)>>,
}

impl Report {
    pub fn new(ended: Arc<AtomicBool>) -> Self {
        Self {
            start: Instant::now(),
            ended,
            commits: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            accounted: Mutex::default(),
            refused: Mutex::default(),
            events: Mutex::default(),
            doing: Mutex::default(),
        }
    }

    pub fn is_over(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Something that should never be; told at once, with what had just been done.
    pub fn violation(&self, actor: &str, what: impl fmt::Display) {
        self.violations.fetch_add(1, Relaxed);
        eprintln!("VIOLATION {} {actor}: {what}", self.now());
        for event in self.events.lock().iter() {
            eprintln!("          after {event}");
        }
    }

    /// Something known, for the reason that `name` says.
    pub fn account(&self, name: &'static str) {
        *self.accounted.lock().entry(name).or_default() += 1;
    }

    pub fn commit(&self) {
        self.commits.fetch_add(1, Relaxed);
    }

    pub fn refusal(&self, errno: i32) {
        self.refusals.fetch_add(1, Relaxed);
        *self.refused.lock().entry(errno).or_default() += 1;
    }

    pub fn crash(&self) {
        self.crashes.fetch_add(1, Relaxed);
    }

    /// What the chaos does next.
    pub fn event(&self, what: &str) {
        let mut events = self.events.lock();
        if events.len() == CONTEXT {
            events.pop_front();
        }
        events.push_back(format!("{} {what}", self.now()));
    }

    /// `actor` is busy with `what` until the guard goes.
    pub fn doing(&self, actor: &str, what: impl Into<String>) -> Doing<'_> {
        let entry = (Instant::now(), what.into());
        self.doing.lock().insert(actor.to_owned(), entry);
        Doing(self, actor.to_owned())
    }

    /// Those who have been busy with one thing for longer than `limit`.
    pub fn stuck(&self, limit: Duration) -> Vec<String> {
        let doing = self.doing.lock();
        let stuck = doing
            .iter()
            .filter(|(_, (since, _))| since.elapsed() > limit);
        stuck
            .map(|(actor, (since, what))| format!("{actor} {what} for {:?}", since.elapsed()))
            .collect()
    }

    pub fn violations(&self) -> u64 {
        self.violations.load(Relaxed)
    }

    /// Seconds since the start.
    pub fn now(&self) -> String {
        format!("{:8.3}s", self.start.elapsed().as_secs_f64())
    }

    /// What was accounted for and why writers were refused.
    pub fn details(&self) -> String {
        let mut lines = String::new();
        let refused = self.refused.lock();
        let refused: Vec<String> = refused
            .iter()
            .map(|(errno, count)| match errno {
                0 => format!("{count} by a neighbour's own check"),
                errno => format!("{count} {}", std::io::Error::from_raw_os_error(*errno)),
            })
            .collect();
        lines += &format!(
            "{} reads; refusals: {}\n",
            self.reads.load(Relaxed),
            refused.join(", ")
        );
        for (name, count) in self.accounted.lock().iter() {
            lines += &format!("known: {count} × {name}\n");
        }
        lines
    }
}

/// The one line that says it all.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits, {} refusals, {} crashes, {} violations",
            self.commits.load(Relaxed),
            self.refusals.load(Relaxed),
            self.crashes.load(Relaxed),
            self.violations()
        )
    }
}

pub struct Doing<'a>(&'a Report, String);

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        self.0.doing.lock().remove(&self.1);
    }
}
