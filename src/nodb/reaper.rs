//! What is left of replaced generations goes behind the writer's back: giving their space back
//! takes the file system a good part of a commit's time, and nobody waits for it.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use tracing::warn;

use crate::nodb::publish::Candidate;

/// A thread that removes files under temporary names. Dropped, it finishes what it has.
#[derive(Debug)]
pub struct Reaper {
    queue: Option<Sender<Candidate>>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (queue, left) = channel::<Candidate>();
        let thread = thread::Builder::new().name("nodbfs-reaper".to_owned());
        let thread = thread.spawn(move || left.into_iter().for_each(drop))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Lets `candidate` go, and with it what lies under its temporary name.
    pub fn take(&self, candidate: Candidate) {
        if let Some(queue) = &self.queue {
            // a thread that is gone leaves it to be dropped here
            let _ = queue.send(candidate);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.queue.take();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            warn!("the thread that removes replaced generations panicked");
        }
    }
}
