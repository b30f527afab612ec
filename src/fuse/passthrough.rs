//! Kernel passthrough: reads and writes of plain files go to the lower file without the daemon.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{BackingId, INodeNo, Notifier};
use parking_lot::Mutex;

/// Which inodes have a backing file at the kernel's, and who has them open that way. The kernel
/// wants one backing file per inode, and all its opens through it or none.
#[derive(Debug, Default)]
pub struct Passthrough {
    allowed: AtomicBool,
    kernel: OnceLock<Notifier>,
    inodes: Mutex<HashMap<u64, Backed>>,
}

#[derive(Debug)]
struct Backed {
    /// `None`: opened through the page cache, so the others must be too.
    backing: Option<Arc<BackingId>>,
    handles: Vec<u64>,
}

impl Passthrough {
    /// Whether the kernel and the daemon's rights allow it.
    pub fn allow(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    /// The kernel can be told from now on.
    pub fn connect(&self, kernel: Notifier) {
        // there is one connection in a mount's life
        let _ = self.kernel.set(kernel);
    }

    /// The lower file is about to be mapped: writes through the mapping change its times, of which the
    /// kernel's FUSE client does not hear. So it forgets what it knows.
    pub fn forget_times(&self, id: u64) {
        if let Some(kernel) = self.kernel.get()
            && let Err(error) = kernel.inval_inode(INodeNo(id), -1, 0)
        {
            tracing::debug!(%error, id, "the kernel was not told");
        }
    }

    /// A new open of the inode `id`: its backing file, registered with `open` for the first one if
    /// that is `wanted`. `None`: through the page cache.
    pub fn attach(
        &self,
        id: u64,
        handle: u64,
        wanted: bool,
        open: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut inodes = self.inodes.lock();
        let backed = inodes.entry(id).or_insert_with(|| Backed {
            backing: if wanted { self.register(open) } else { None },
            handles: Vec::new(),
        });
        backed.handles.push(handle);
        backed.backing.clone()
    }

    fn register(&self, open: impl FnOnce() -> io::Result<BackingId>) -> Option<Arc<BackingId>> {
        if !self.allowed.load(Ordering::Relaxed) {
            return None;
        }
        match open() {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                tracing::info!(%error, "no kernel passthrough here; plain files go through the page cache");
                self.allow(false);
                None
            }
        }
    }

    /// An open of the inode `id` ended.
    pub fn detach(&self, id: u64, handle: u64) {
        let mut inodes = self.inodes.lock();
        if let Some(backed) = inodes.get_mut(&id) {
            backed.handles.retain(|open| *open != handle);
            if backed.handles.is_empty() {
                inodes.remove(&id);
            }
        }
    }
}
