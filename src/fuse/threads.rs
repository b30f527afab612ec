//! The threads on which operations wait, so that enough of the session's own never do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::fs::Fs;
use crate::mount::THREADS;
use crate::nodb::lock::WAITERS;

/// How many operations may wait for the store, for locks or for the disk's `fsync` at a time.
const WAITING: usize = WAITERS + 256;

/// How many callers may wait for a `flock` or `fcntl` lock at a time.
const PATIENT: usize = 4096;

/// How many of the session's threads may be in such an operation themselves, which saves the way to
/// another thread. The others are left for plain files.
const INLINE: usize = THREADS - 2;

/// How long a mount's end waits for operations that are under way.
const DRAIN: Duration = Duration::from_secs(10);

/// The pools, until the mount ends.
#[derive(Debug)]
pub struct Threads {
    /// For operations that may wait.
    waiting: Option<Runtime>,
    /// Threads that wait for locks as long as it takes: whoever holds one may need those above.
    patient: Option<Runtime>,
    /// How many of the session's threads are in an operation that may wait.
    inline: AtomicUsize,
}

impl Threads {
    /// # Errors
    /// No threads could be started.
    pub fn start() -> io::Result<Self> {
        let waiting = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(WAITING)
            .thread_name("nodbfs-waiting")
            .build()?;
        let patient = Builder::new_current_thread()
            .max_blocking_threads(PATIENT)
            .thread_name("nodbfs-patient")
            .build()?;
        Ok(Self {
            waiting: Some(waiting),
            patient: Some(patient),
            inline: AtomicUsize::new(0),
        })
    }

    /// Runs `work`, which may wait, here or, if too many are waiting here, elsewhere.
    pub fn run(&self, fs: &Arc<Fs>, work: impl FnOnce(&Fs) + Send + 'static) {
        let inline = self.inline.fetch_add(1, Relaxed) < INLINE;
        match &self.waiting {
            Some(runtime) if !inline => {
                let fs = fs.clone();
                runtime.spawn_blocking(move || work(&fs));
            }
            _ => work(fs),
        }
        self.inline.fetch_sub(1, Relaxed);
    }

    /// Where locks are waited for; `None`: the mount is about to end.
    pub fn patient(&self) -> Option<Handle> {
        self.patient
            .as_ref()
            .map(|patient| patient.handle().clone())
    }

    /// Waits for what is under way, and takes no more.
    pub fn drain(&mut self) {
        let threads = [self.waiting.take(), self.patient.take()];
        for threads in threads.into_iter().flatten() {
            threads.shutdown_timeout(DRAIN);
        }
    }
}
