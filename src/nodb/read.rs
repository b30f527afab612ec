//! Reading a controller: memory, then the DB 13 entry with its seal, then the disk.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat};
use tracing::{debug, warn};

use crate::error::{Errno, Error, InStep, Result};
use crate::fs::attr::{Attr, unix_nanos};
use crate::fs::inode::Place;
use crate::fs::plain;
use crate::nodb::Nodb;
use crate::nodb::controller::{Controller, Origin};
use crate::nodb::document::Document;
use crate::nodb::generation::{Generation, Payload};
use crate::nodb::seal::Seal;
use crate::store::Cached;
use crate::telemetry::event::Event;

/// How long a reader waits for an in-place writer (PROTOCOL.md 6) to finish its document.
const TORN: Duration = Duration::from_millis(1000);

/// A file that was not touched for this long is not in the middle of being written.
const SETTLED: Duration = Duration::from_secs(2);

/// A generation's bytes and the attributes of the file they are of.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub attr: Attr,
    pub payload: Arc<Payload>,
    pub from: Origin,
}

impl Loaded {
    /// The bytes, if they are a document of a size nodbfs handles.
    pub fn bytes(&self) -> Result<&Arc<Vec<u8>>> {
        match &*self.payload {
            Payload::Bytes(bytes, _) => Ok(bytes),
            Payload::File(_) => Err(Errno::FBIG.into()),
        }
    }
}

impl Nodb {
    /// The generation that the name leads to now. ENOENT, or whatever the source says.
    pub fn look(&self, controller: &Arc<Controller>) -> Result<Arc<Generation>> {
        loop {
            let epoch = controller.epoch();
            let attr = self.plain.stat_now(&controller.place)?;
            if !attr.is_file() {
                return Err(Error::Superseded);
            }
            if let Some(generation) = self.see(controller, epoch, &attr) {
                if controller.notice(attr.stamp()) {
                    let size = attr.size;
                    self.note(controller, &Event::Changed { size });
                }
                return Ok(generation);
            }
        }
    }

    fn see(
        &self,
        controller: &Arc<Controller>,
        epoch: u64,
        attr: &Attr,
    ) -> Option<Arc<Generation>> {
        let id = || self.plain.inodes.claim_id(attr.ident);
        let new = || Generation::new(id(), controller.clone(), *attr);
        controller.see(epoch, attr, new)
    }

    /// For a thread on its second try: the current generation, which it may open even if it is
    /// superseded before the kernel comes back. It was current within the thread's one `open`.
    pub fn look_again(&self, controller: &Arc<Controller>, tid: u32) -> Result<Arc<Generation>> {
        loop {
            let epoch = controller.epoch();
            let loaded = self.load(controller)?;
            controller.read_from(loaded.from);
            if let Some(generation) = self.see(controller, epoch, &loaded.attr) {
                controller.pin(tid, generation.id, &loaded.payload);
                return Ok(generation);
            }
        }
    }

    /// Opens `generation` for reading if that needs nothing but memory and a look at the source.
    /// `None`: it must be loaded. ESTALE: the name leads elsewhere, and the kernel will look again.
    pub fn open_hot(&self, generation: &Generation, tid: u32) -> Result<Option<Arc<Payload>>> {
        let controller = &generation.controller;
        if let Some(payload) = controller.take_pin(tid, generation.id) {
            return Ok(Some(payload));
        }
        let attr = self.plain.stat_now(&controller.place);
        match attr {
            Ok(attr) if attr.stamp() == generation.stamp() && self.is_current(generation) => {
                Ok(self
                    .payloads
                    .get(&attr)
                    .inspect(|_| controller.read_from(Origin::Memory)))
            }
            _ => {
                controller.expect_reader(tid);
                Err(Error::Superseded)
            }
        }
    }

    /// Opens `generation` for reading, loading it.
    pub fn open_cold(&self, generation: &Generation, tid: u32) -> Result<Arc<Payload>> {
        let controller = &generation.controller;
        match self.load(controller) {
            Ok(loaded) if loaded.attr.stamp() == generation.stamp() => {
                controller.read_from(loaded.from);
                Ok(loaded.payload)
            }
            Ok(_) | Err(Error::Superseded) | Err(Error::Source(Errno::NOENT)) => {
                controller.expect_reader(tid);
                Err(Error::Superseded)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the controller's name leads to `generation`.
    pub fn is_current(&self, generation: &Generation) -> bool {
        generation
            .controller
            .current()
            .is_some_and(|current| current.id == generation.id)
    }

    /// The bytes of the current generation.
    pub fn load(&self, controller: &Controller) -> Result<Loaded> {
        self.load_of(&controller.place, Some(controller), true)
    }

    /// As [`Nodb::load`], of the file at `place`; the cache is asked only if `ask` says so.
    pub fn load_from(&self, place: &Place, ask: bool) -> Result<Loaded> {
        self.load_of(place, None, ask)
    }

    fn load_of(&self, place: &Place, controller: Option<&Controller>, ask: bool) -> Result<Loaded> {
        let mut torn_since = None;
        loop {
            let attr = self.plain.stat_now(place)?;
            if !attr.is_file() {
                return Err(Error::Superseded);
            }
            if let Some(payload) = self.payloads.get(&attr) {
                return Ok(Loaded {
                    attr,
                    payload,
                    from: Origin::Memory,
                });
            }
            let key = self.cache_key(place)?;
            // a store that is away costs a read nothing but its speed
            let cached = ask.then(|| self.store.get(&key)).transpose();
            if let Ok(Some(cached)) = &cached
                && let Some(bytes) = self.unseal(cached, &attr)
            {
                let loaded = self.keep(attr, bytes);
                self.loaded(controller, &loaded);
                return Ok(loaded);
            }
            let Some((attr, payload)) = self.read_disk(place)? else {
                continue;
            };
            let Payload::Bytes(bytes, _) = &payload else {
                return Ok(Loaded {
                    attr,
                    payload: Arc::new(payload),
                    from: Origin::Disk,
                });
            };
            let (payload, is_document) = match Document::parse(bytes) {
                Ok(document) => (Payload::of_document(bytes.clone(), document), true),
                // an in-place writer may be at work; promise 2 forbids to show its half document
                Err(invalid)
                    if may_be_torn(&attr)
                        && torn_since.get_or_insert_with(Instant::now).elapsed() < TORN =>
                {
                    debug!(key, %invalid, "half a document on disk, waiting for its writer");
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(invalid) => {
                    warn!(key, %invalid, "the file on disk is no document; served as it is");
                    (payload, false)
                }
            };
            let payload = Arc::new(payload);
            self.payloads.put(&attr, &payload);
            let loaded = Loaded {
                attr,
                payload,
                from: Origin::Disk,
            };
            if let Some(controller) = controller {
                self.identify_once(controller, &loaded.payload);
                match &cached {
                    Ok(_) => self.note(controller, &Event::Missed),
                    Err(error) => self.note(controller, &Event::CacheAway { error }),
                }
            }
            self.loaded(controller, &loaded);
            if let (true, Ok(Some(seen))) = (is_document, &cached) {
                self.warm(&key, seen, place, controller, &loaded);
            }
            return Ok(loaded);
        }
    }

    /// A document came from somewhere else than memory.
    fn loaded(&self, controller: Option<&Controller>, loaded: &Loaded) {
        if let Some(controller) = controller {
            self.identify_once(controller, &loaded.payload);
            let (from, size) = (loaded.from, loaded.attr.size);
            self.note(controller, &Event::Loaded { from, size });
        }
    }

    fn keep(&self, attr: Attr, bytes: Vec<u8>) -> Loaded {
        let payload = Arc::new(Payload::of(Arc::new(bytes)));
        self.payloads.put(&attr, &payload);
        Loaded {
            attr,
            payload,
            from: Origin::Cache,
        }
    }

    /// The exact bytes of the file that `attr` describes, if entry and seal are of that.
    pub fn unseal(&self, cached: &Cached, attr: &Attr) -> Option<Vec<u8>> {
        let seal = Seal::from_bytes(cached.seal.as_deref()?)?;
        let bytes = seal.open(cached.entry.as_deref()?, attr.signature())?;
        (bytes.len() as u64 == attr.size).then_some(bytes)
    }

    /// The file's bytes with the attributes they belong to; `None`: it changed meanwhile.
    pub fn read_disk(&self, place: &Place) -> Result<Option<(Attr, Payload)>> {
        let fd = self.open_lower(place)?;
        let attr = Attr::of_fd(&fd).in_step("stat the controller")?;
        if attr.size > self.settings.max_payload {
            return Ok(Some((attr, Payload::File(fd))));
        }
        // one byte more than there should be: a file that grows is noticed
        let bytes = plain::read(&fd, 0, attr.size as usize + 1)?;
        let unchanged = Attr::of_fd(&fd).in_step("stat the controller")?.stamp() == attr.stamp();
        let complete = unchanged && bytes.len() as u64 == attr.size;
        Ok(complete.then(|| (attr, Payload::of(Arc::new(bytes)))))
    }

    /// Opens the controller's file for reading.
    pub fn open_lower(&self, place: &Place) -> Result<OwnedFd> {
        let dir = self.plain.inodes.fd(&place.dir)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*dir, &place.name, flags, Mode::empty())?)
    }

    /// Leaves entry and seal for the next reader, unless somebody else has refreshed them.
    fn warm(
        &self,
        key: &str,
        seen: &Cached,
        place: &Place,
        controller: Option<&Controller>,
        loaded: &Loaded,
    ) {
        let Loaded { attr, payload, .. } = loaded;
        let (Payload::Bytes(bytes, _), Some(document)) = (&**payload, payload.document()) else {
            return;
        };
        let Some(patched) = document.patch(bytes, attr.signature()) else {
            return;
        };
        let seal = Seal::new(bytes, &patched, attr.signature()).to_bytes();
        let seen = seen.entry.as_deref();
        let put = self.store.put_if_unchanged(key, seen, &patched.text, &seal);
        // a commit may have come between the read and the put: old readers trust any entry
        let moved_on = self
            .plain
            .stat_now(place)
            .map_or(true, |now| now.stamp() != attr.stamp());
        // what is not ours is the commit's own
        let undone = match put {
            Ok(false) => Ok(()),
            _ if moved_on => self.store.delete(&[key.to_owned()]),
            _ => Ok(()),
        };
        match (put, undone) {
            (Ok(true), Ok(())) if !moved_on => {
                let size = bytes.len();
                let refreshed = |one| self.note(one, &Event::Refreshed { size });
                controller.into_iter().for_each(refreshed);
            }
            (Err(error), _) | (_, Err(error)) => debug!(key, %error, "cache entry not refreshed"),
            _ => {}
        }
    }
}

/// Whether the file was written so recently that its writer may still be at it.
fn may_be_torn(attr: &Attr) -> bool {
    let age = unix_nanos(SystemTime::now()) - attr.mtime;
    age < SETTLED.as_nanos() as i128
}
