//! Signals: the first one asks for an orderly end, the second one ends at once.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use super::Event;
use crate::hint;

/// Whether there is something to end in an orderly way. Before that, a signal ends the process at once, for
/// instance while it waits for Redis.
#[derive(Clone, Debug, Default)]
pub struct Armed(Arc<AtomicBool>);

impl Armed {
    /// From now on signals are events.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Catches SIGTERM, SIGINT and SIGHUP from now on. A daemon has no terminal, so to it a SIGHUP
/// says nothing; in the foreground it means that the terminal is gone.
pub fn catch(events: Sender<Event>, daemon: bool) -> Result<Armed> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    let armed = Armed::default();
    let waiting = armed.clone();
    let watch = move || {
        let mut caught = signals
            .forever()
            .filter(|signal| !(daemon && *signal == SIGHUP));
        if let Some(first) = caught.next() {
            if !waiting.0.load(Ordering::SeqCst) {
                info!("signal {first} before anything was mounted");
                process::exit(hint::FAILURE.into());
            }
            // nobody listens any more: the end is under way already
            let _ = events.send(Event::Signal(first));
        }
        if let Some(second) = caught.next() {
            warn!("signal {second}, the second one: ending at once");
            process::exit(hint::FAILURE.into());
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .context("cannot start a thread")?;
    Ok(armed)
}
