//! Where the kernel takes a plain file's pages from: the lower file's by passthrough, or its own of the mount, which cost less
//! where files are small. Its own must be right: of the state that the file is in when it is opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::fs::attr::{Attr, is_settled};
use crate::fs::inode::Inode;

/// A file that is no larger costs less through the kernel's own pages than by way of a backing file, in bytes
/// (measured: 20 kB 1.5 times less, 1 MB 1.1 times).
const SMALL: u64 = 1 << 20;

/// A state of a file, by what changes with its content, whatever else is done to it. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen(u64);

impl Seen {
    fn new(attr: &Attr) -> Self {
        // odd factors: neither time nor size is lost in it
        let time = (attr.ctime as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((time ^ attr.size.wrapping_mul(0xff51_afd7_ed55_8ccd)).max(1))
    }
}

/// The state of a file whose attributes the kernel was told last; 0: none.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

impl Told {
    /// The kernel is about to be told these.
    pub fn tell(&self, attr: &Attr) {
        self.0.store(Seen::new(attr).0, Relaxed);
    }

    fn is(&self, seen: Seen) -> bool {
        self.0.load(Relaxed) == seen.0
    }
}

/// The pages that the kernel has of a file.
#[derive(Debug, Default)]
pub struct Kept {
    /// The state that they are of.
    of: Option<Seen>,
    /// It has dropped those of any state before: since it was told to, it has closed the file.
    confirmed: bool,
    /// How many write through them.
    writers: u32,
}

impl Kept {
    pub fn are_written(&self) -> bool {
        self.writers > 0
    }
}

/// How an open plain file is best treated.
#[derive(Clone, Debug)]
pub struct Treat {
    inode: Arc<Inode>,
    /// What it was like when it was opened.
    seen: Seen,
    /// It will not change again without its time stamp saying so.
    settled: bool,
    /// A set-id file: the kernel would write to the lower one with the daemon's rights, and the bits would stay.
    set_id: bool,
    writes: bool,
    small: bool,
    /// On a local file system: only there is every change seen in the time stamps.
    local: bool,
}

impl Treat {
    /// A file as `attr` says it is, opened for writing or not.
    pub fn new(inode: &Arc<Inode>, attr: &Attr, writes: bool, local: bool) -> Self {
        Self {
            inode: inode.clone(),
            seen: Seen::new(attr),
            settled: is_settled(attr.ctime),
            set_id: attr.is_set_id(),
            writes,
            small: attr.size <= SMALL,
            local,
        }
    }

    /// Whether reads and writes had better go to the lower file, if the file is not open in another way.
    pub fn by_passthrough(&self) -> bool {
        let pages = self.local && self.small && !self.writes && self.was_told();
        !self.set_id && !pages
    }

    /// Whether a reader would read by a size that is no longer right, through the page cache.
    pub fn is_news(&self) -> bool {
        self.local && !self.writes && !self.was_told()
    }

    fn was_told(&self) -> bool {
        self.inode.told.is(self.seen)
    }

    /// The file is about to be opened through the page cache; to be dropped when it is closed. `true`: the pages that the
    /// kernel has are of this state. If not, it is to drop them.
    pub fn page(&self) -> (Paged, bool) {
        let kept = &mut self.inode.in_use().kept;
        if self.writes {
            kept.writers += 1;
        }
        let same = kept.of == Some(self.seen);
        if !same {
            kept.of = (self.local && self.settled).then_some(self.seen);
            kept.confirmed = false;
        }
        let keep = same && kept.confirmed;
        (Paged(self.clone()), keep)
    }
}

/// A file that is open through the page cache.
#[derive(Debug)]
pub struct Paged(Treat);

impl Drop for Paged {
    fn drop(&mut self) {
        let kept = &mut self.0.inode.in_use().kept;
        if self.0.writes {
            kept.writers -= 1;
        }
        kept.confirmed |= kept.of == Some(self.0.seen);
    }
}
