//! Whose pages a plain file's reads come from: the lower file's, by kernel passthrough, or the kernel's own of the mount,
//! which cost less where files are small and are read as they are.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;

use crate::fs::pages::{Paged, Treat};

/// How each inode is open. The kernel wants all opens of an inode to go to one backing file, or none.
#[derive(Debug, Default)]
pub struct Passthrough {
    allowed: AtomicBool,
    inodes: Mutex<HashMap<u64, Backed>>,
}

#[derive(Debug)]
struct Backed {
    /// `None`: opened through the page cache, so the others must be too.
    backing: Option<Arc<BackingId>>,
    handles: Vec<Opening>,
}

#[derive(Debug)]
struct Opening {
    handle: u64,
    /// Through the page cache: to be dropped when it is closed.
    _paged: Option<Paged>,
}

/// How the kernel is to treat an open plain file.
pub enum Way {
    /// By passthrough.
    Lower(Arc<BackingId>),
    /// Through the page cache; with `keep`, what it has of the file is still right.
    Pages { keep: bool },
    /// By asking for every read: others have the file open through the page cache, and the kernel does not know yet
    /// what it is like now.
    Asking,
}

impl Passthrough {
    /// Whether the kernel and the daemon's rights allow it.
    pub fn allow(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    fn is_allowed(&self) -> bool {
        self.allowed.load(Ordering::Relaxed)
    }

    /// A new open of the inode `id`, which had better be treated like `treat`. `open` registers the backing file
    /// if this is the first open that needs one.
    pub fn attach(
        &self,
        id: u64,
        handle: u64,
        treat: &Treat,
        open: impl FnOnce() -> io::Result<BackingId>,
    ) -> Way {
        let mut inodes = self.inodes.lock();
        let wanted = treat.by_passthrough();
        let backed = inodes.entry(id).or_insert_with(|| Backed {
            backing: if wanted { self.register(open) } else { None },
            handles: Vec::new(),
        });
        let (way, _paged) = match &backed.backing {
            Some(backing) => (Way::Lower(backing.clone()), None),
            None if self.is_allowed() && treat.is_news() => (Way::Asking, None),
            None => {
                let (paged, keep) = treat.page();
                (Way::Pages { keep }, Some(paged))
            }
        };
        backed.handles.push(Opening { handle, _paged });
        way
    }

    fn register(&self, open: impl FnOnce() -> io::Result<BackingId>) -> Option<Arc<BackingId>> {
        if !self.is_allowed() {
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
        let Some(backed) = inodes.get_mut(&id) else {
            return;
        };
        backed.handles.retain(|open| open.handle != handle);
        if backed.handles.is_empty() {
            inodes.remove(&id);
        }
    }
}
