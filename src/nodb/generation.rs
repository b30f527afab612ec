//! A generation: one committed payload of a controller, and the memory of the latest ones read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;

use crate::error::Result;
use crate::fs::attr::{Attr, Ident, Stamp};
use crate::fs::plain;
use crate::nodb::controller::Controller;
use crate::nodb::document::Document;

/// One committed payload of a controller, as an inode of the kernel's: its content never changes,
/// so its pages and attributes may stay cached for ever.
#[derive(Debug)]
pub struct Generation {
    /// The number by which the kernel knows it.
    pub id: u64,
    pub controller: Arc<Controller>,
    /// Follows `chmod` and the like; the stamp stays.
    attr: Mutex<Attr>,
    departed: AtomicBool,
}

impl Generation {
    pub fn new(id: u64, controller: Arc<Controller>, attr: Attr) -> Self {
        Self {
            id,
            controller,
            attr: Mutex::new(attr),
            departed: AtomicBool::new(false),
        }
    }

    /// A rename takes the file to another name, and the kernel takes this inode along.
    pub fn depart(&self) {
        self.departed.store(true, Ordering::Relaxed);
    }

    /// Whether whoever comes to this inode came by another name than the controller's.
    pub fn has_departed(&self) -> bool {
        self.departed.load(Ordering::Relaxed)
    }

    pub fn attr(&self) -> Attr {
        *self.attr.lock()
    }

    /// Takes over attributes that do not make another generation.
    pub fn refresh(&self, attr: Attr) {
        *self.attr.lock() = attr;
    }

    pub fn stamp(&self) -> Stamp {
        self.attr().stamp()
    }
}

/// The bytes of a generation, held as long as a reader has it open.
#[derive(Debug)]
pub enum Payload {
    /// In memory, and what they say as a document once somebody has asked.
    Bytes(Arc<Vec<u8>>, OnceLock<Option<Document>>),
    /// Larger than `--max-payload`: read from the file, which an in-place writer can change.
    File(OwnedFd),
}

impl Payload {
    /// Bytes that nobody has judged yet.
    pub fn of(bytes: Arc<Vec<u8>>) -> Self {
        Self::Bytes(bytes, OnceLock::new())
    }

    /// The bytes of `document`.
    pub fn of_document(bytes: Arc<Vec<u8>>, document: Document) -> Self {
        Self::Bytes(bytes, OnceLock::from(Some(document)))
    }

    /// As a document, if it is one and in memory.
    pub fn document(&self) -> Option<&Document> {
        match self {
            Self::Bytes(bytes, document) => document
                .get_or_init(|| Document::parse(bytes).ok())
                .as_ref(),
            Self::File(_) => None,
        }
    }

    /// In bytes.
    pub fn size(&self) -> Result<u64> {
        match self {
            Self::Bytes(bytes, _) => Ok(bytes.len() as u64),
            Self::File(fd) => Ok(Attr::of_fd(fd)?.size),
        }
    }

    /// At most `size` bytes from `offset` on.
    pub fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes, _) => Ok(window(bytes, offset, size).to_vec()),
            Self::File(fd) => plain::read(fd, offset, size),
        }
    }
}

/// The part of `bytes` that a read of `size` bytes at `offset` gives.
pub fn window(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    &bytes[start..start.saturating_add(size).min(bytes.len())]
}

/// The payloads read or written last, bounded in bytes.
#[derive(Debug)]
pub struct Payloads {
    kept: Mutex<Kept>,
    limit: usize,
}

#[derive(Debug)]
struct Kept {
    payloads: LruCache<Ident, (Stamp, Arc<Payload>)>,
    bytes: usize,
}

impl Payloads {
    /// `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Mutex::new(Kept {
                payloads: LruCache::unbounded(),
                bytes: 0,
            }),
            limit,
        }
    }

    /// The payload of the generation that `attr` describes, if it is in memory.
    pub fn get(&self, attr: &Attr) -> Option<Arc<Payload>> {
        let mut kept = self.kept.lock();
        let (stamp, payload) = kept.payloads.get(&attr.ident)?;
        (*stamp == attr.stamp()).then(|| payload.clone())
    }

    /// How many there are, and how large they are together, in bytes.
    pub fn usage(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.payloads.len(), kept.bytes)
    }

    /// Forgets the payload of the file that `attr` describes.
    pub fn remove(&self, attr: &Attr) {
        let mut kept = self.kept.lock();
        let removed = kept.payloads.pop(&attr.ident);
        kept.bytes -= removed.map_or(0, |(_, payload)| weight(&payload));
    }

    /// Keeps `payload`, at the expense of those not asked for the longest.
    pub fn put(&self, attr: &Attr, payload: &Arc<Payload>) {
        let size = weight(payload);
        if size > self.limit {
            return;
        }
        let mut kept = self.kept.lock();
        let replaced = kept
            .payloads
            .put(attr.ident, (attr.stamp(), payload.clone()));
        kept.bytes += size;
        kept.bytes -= replaced.map_or(0, |(_, payload)| weight(&payload));
        while kept.bytes > self.limit {
            let Some((_, (_, payload))) = kept.payloads.pop_lru() else {
                break;
            };
            kept.bytes -= weight(&payload);
        }
    }
}

/// What a payload costs: its bytes and the bookkeeping.
fn weight(payload: &Payload) -> usize {
    match payload {
        Payload::Bytes(bytes, _) => bytes.len() + 256,
        Payload::File(_) => 256,
    }
}
