//! What is told of what happens (promise 11): every [`event`] is counted, written into its
//! controller's [`journal`], which `x.nodb.log` shows, and into the daemon's log, whose [`output`] is
//! chosen at the start. What is published on the status channels of the runs that are followed joins
//! it in the [`journal`]s ([`channel`]). How loud a run is to be is a [`level`] in the store.

pub mod channel;
pub mod event;
pub mod journal;
pub mod level;
pub mod line;
pub mod output;

use std::sync::Arc;

use tracing::{debug, error, info, warn};

use crate::counters;
use crate::store::LockName;
use channel::Runs;
use event::Event;
use journal::{Journal, Journals};
use level::Level;

/// The telemetry of a mount.
#[derive(Debug, Default)]
pub struct Telemetry {
    journals: Journals,
    runs: Runs,
}

impl Telemetry {
    /// Something happened to a controller. Takes some microseconds and waits for nothing.
    pub fn note(&self, of: &LockName, event: &Event<'_>) {
        if let Some(counted) = event.counted() {
            counters::count(counted);
        }
        let level = event.level();
        if level < self.runs.level(&of.runid) && !event.is_always_shown() {
            return;
        }
        let message = event.to_string();
        tell(of, event, &message);
        if event.is_published() {
            self.runs.publish(of, &message);
        }
        self.journals.add(of, line::line(of, level, &message));
    }

    /// A controller was touched: its run is followed from now on, and its journal is there to say so. Waits for nothing.
    pub fn touch(&self, name: &LockName) -> Arc<Journal> {
        let journal = self.journals.of(name);
        self.runs.follow(&name.runid);
        journal
    }

    /// What happened to whom.
    pub fn journals(&self) -> &Journals {
        &self.journals
    }

    /// The runs whose status channels are followed.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }
}

/// Writes an event into the daemon's log, where a lock and a cache entry are everyday.
fn tell(of: &LockName, event: &Event<'_>, message: &str) {
    let (runid, controller) = (&of.runid, &of.relpath);
    match event.level() {
        Level::Debug => debug!(runid, controller, "{message}"),
        Level::Info if event.is_everyday() => debug!(runid, controller, "{message}"),
        Level::Info => info!(runid, controller, "{message}"),
        Level::Warning => warn!(runid, controller, "{message}"),
        Level::Error | Level::Critical => error!(runid, controller, "{message}"),
    }
}
