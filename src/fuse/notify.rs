//! Notices to the kernel. Those about names come from a thread of their own with nothing held: the kernel
//! takes its own locks to carry them out, and an operation may be waiting for a reply under those.

use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::nodb::Kernel;

/// How long somebody waits for a notice to be carried out. It is late only while the kernel holds
/// the directory for an operation that waits itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// The queue of notices.
#[derive(Debug)]
pub struct Notices {
    queue: Sender<Notice>,
    waiting: Mutex<Option<Receiver<Notice>>>,
    kernel: OnceLock<Notifier>,
}

#[derive(Debug)]
struct Notice {
    dir: u64,
    name: OsString,
    done: Option<SyncSender<()>>,
}

impl Default for Notices {
    fn default() -> Self {
        let (queue, waiting) = channel();
        Self {
            queue,
            waiting: Mutex::new(Some(waiting)),
            kernel: OnceLock::new(),
        }
    }
}

impl Notices {
    /// The kernel can be told from now on.
    pub fn connect(&self, kernel: Notifier) {
        let Some(waiting) = self.waiting.lock().take() else {
            return;
        };
        // the first and only one
        let _ = self.kernel.set(kernel.clone());
        let tell = move || {
            for notice in waiting {
                if let Err(error) = kernel.inval_entry(INodeNo(notice.dir), &notice.name) {
                    debug!(%error, name = ?notice.name, "the kernel was not told");
                }
                if let Some(done) = notice.done {
                    // whoever waited may have given up
                    let _ = done.send(());
                }
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("nodbfs-notices".to_owned())
            .spawn(tell)
        {
            warn!(%error, "no thread for notices to the kernel");
        }
    }
}

impl Kernel for Notices {
    fn entry_changed(&self, dir: u64, name: &OsStr, wait: bool) {
        let (done, carried_out) = sync_channel(1);
        let notice = Notice {
            dir,
            name: name.to_owned(),
            done: wait.then_some(done),
        };
        // without a connection there is no kernel that remembers anything
        if self.queue.send(notice).is_ok() && wait && carried_out.recv_timeout(PATIENCE).is_err() {
            debug!(?name, "the kernel is busy with the directory; told later");
        }
    }

    fn attributes_changed(&self, id: u64) {
        // before the first byte of the content: only the attributes, for which the kernel waits for nobody
        let told = self
            .kernel
            .get()
            .map(|kernel| kernel.inval_inode(INodeNo(id), -1, 0));
        if let Some(Err(error)) = told {
            debug!(%error, id, "the kernel was not told");
        }
    }
}
