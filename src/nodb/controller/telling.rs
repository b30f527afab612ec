//! What a controller remembers for those who tell of it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::Controller;
use crate::fs::attr::Stamp;
use crate::nodb::logfile::LogFiles;
use crate::store::LockName;

/// How long a thread that wants to write a real log may take to make it: it may try more than one way.
const LOGGER: Duration = Duration::from_secs(2);

impl Controller {
    /// The name of its lock, if a document has said it.
    pub fn name(&self) -> Option<LockName> {
        self.state.lock().name.clone()
    }

    /// What its document says of it.
    pub fn set_name(&self, name: LockName) {
        self.state.lock().name = Some(name);
    }

    /// The inodes that show its log.
    pub fn log_files(&self) -> MutexGuard<'_, LogFiles> {
        self.log_files.lock()
    }

    /// `tid` opens the virtual log that stands for the real one to write, and was answered ESTALE: for a
    /// while there is no such name for it, so that it makes the file if it wants one.
    pub fn expect_logger(&self, tid: u32) {
        let mut loggers = self.loggers.lock();
        loggers.retain(|(known, since)| *known != tid && since.elapsed() < LOGGER);
        loggers.push((tid, Instant::now()));
    }

    /// Whether `tid` is about to make the real log.
    pub fn is_logger(&self, tid: u32) -> bool {
        let loggers = self.loggers.lock();
        let mut own = loggers.iter().filter(|(known, _)| *known == tid);
        own.any(|(_, since)| since.elapsed() < LOGGER)
    }

    /// How many `open`s were answered from memory since the last time this was asked.
    pub fn take_hits(&self) -> u64 {
        match self.hits.load(Relaxed) {
            0 => 0,
            _ => self.hits.swap(0, Relaxed),
        }
    }

    /// nodbfs is about to change the file itself, until this is dropped.
    pub fn changing(&self) -> Changing<'_> {
        self.state.lock().changing += 1;
        Changing(self)
    }

    /// What the disk shows now; `true`: somebody else has changed it.
    pub fn notice(&self, stamp: Stamp) -> bool {
        let mut state = self.state.lock();
        if state.changing > 0 {
            return false;
        }
        let before = state.seen.replace(stamp);
        before.is_some_and(|before| before != stamp)
    }
}

/// A change of nodbfs's own that is under way.
#[derive(Debug)]
pub struct Changing<'a>(&'a Controller);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.changing -= 1;
        state.seen = None;
    }
}
