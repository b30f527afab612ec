//! Controllers: the documents, who they are, and how they are read and committed.

pub mod append;
pub mod attributes;
pub mod cached;
pub mod caller;
pub mod commit;
pub mod controller;
pub mod debts;
pub mod document;
pub mod facts;
pub mod flock;
pub mod generation;
pub mod identity;
pub mod leftovers;
pub mod lock;
pub mod lockfile;
pub mod logfile;
pub mod moved;
pub mod publish;
pub mod read;
pub mod reaper;
pub mod rejected;
pub mod roads;
pub mod seal;
pub mod seen;
pub mod session;
pub mod session_lock;
pub mod staging;
mod told;
pub mod transaction;
pub mod writer;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::{debug, info};

use crate::error::{Error, Result};
use crate::fs::attr::{Attr, unix_nanos};
use crate::fs::inode::{Inode, Place};
use crate::fs::plain::Plain;
use crate::step::{self, Step};
use crate::store::Store;
use crate::telemetry::Telemetry;
use controller::{Controller, Controllers, RETRY};
use debts::Debts;
use flock::Flocks;
use generation::Payloads;
use lock::Locker;
use lockfile::LockFiles;
use moved::Moved;
use reaper::Reaper;
use rejected::{Bounds, Rejected};

/// What a mount is told about its controllers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory that is mounted.
    pub source: PathBuf,
    /// The path of the source as NoDb processes know it.
    pub key_root: PathBuf,
    /// How long a writer waits for a held lock.
    pub lock_wait: Duration,
    /// How long a lock lasts that is not renewed.
    pub lease_ttl: Duration,
    /// How long a writer may hold a lock.
    pub max_hold: Duration,
    /// Largest document, in bytes.
    pub max_payload: u64,
    /// Bound of the in-memory payload cache, in bytes.
    pub cache_size: usize,
    /// Where rejected documents and debts lie.
    pub state_dir: PathBuf,
    /// How long the kernel may remember where a controller's name leads: not at all among NoDb processes,
    /// which trust what `stat` says (PROTOCOL.md 5). A notice would come late while the daemon is stopped,
    /// or while the kernel holds the directory for a rename that waits for its lock.
    pub name_ttl: Duration,
    /// Whether nodbfs's own commits and lock events are published on the status channels.
    pub publish_events: bool,
}

/// The way to tell the kernel that what it remembers is no longer so.
pub trait Kernel: Send + Sync + fmt::Debug {
    /// Makes the kernel look `name` in the directory `dir` up again. With `wait`, returns when it
    /// has; without, some time before it does.
    fn entry_changed(&self, dir: u64, name: &OsStr, wait: bool);
    /// Makes the kernel ask for the attributes of the inode `id` again.
    fn attributes_changed(&self, id: u64);
}

/// The controllers of a mount.
#[derive(Debug)]
pub struct Nodb {
    plain: Arc<Plain>,
    store: Arc<dyn Store>,
    kernel: Arc<dyn Kernel>,
    settings: Settings,
    pub controllers: Arc<Controllers>,
    pub telemetry: Arc<Telemetry>,
    payloads: Payloads,
    locker: Locker,
    flocks: Flocks,
    lock_files: LockFiles,
    rejected: Rejected,
    debts: Debts,
    moved: Moved,
    reaper: Reaper,
}

impl Nodb {
    /// The controllers among the files of `plain`.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn new(
        plain: Arc<Plain>,
        store: Arc<dyn Store>,
        kernel: Arc<dyn Kernel>,
        settings: Settings,
    ) -> io::Result<Self> {
        let controllers = Arc::<Controllers>::default();
        let telemetry = Arc::<Telemetry>::default();
        telemetry.connect(&store, settings.publish_events)?;
        Ok(Self {
            plain,
            kernel,
            controllers,
            payloads: Payloads::new(settings.cache_size),
            locker: Locker::new(
                store.clone(),
                telemetry.clone(),
                settings.lock_wait,
                settings.lease_ttl,
            )?,
            flocks: Flocks::default(),
            lock_files: LockFiles::default(),
            rejected: Rejected::new(&settings.state_dir, Bounds::default()),
            debts: Debts::new(&settings.state_dir, store.clone()),
            moved: Moved::default(),
            reaper: Reaper::start()?,
            telemetry,
            store,
            settings,
        })
    }

    /// What is to be done from time to time: forget who never came back, pay debts.
    pub fn tidy(&self) {
        self.controllers.sweep(RETRY);
        self.lock_files.sweep();
        self.controllers
            .release_held_longer_than(self.settings.max_hold);
        self.forget_entries(self.moved.void_keys(&self.plain.inodes));
        self.debts.pay();
        self.plain.inodes.shrink();
    }

    /// The mount has ended, and everybody who used it is gone: no lock stays, and what can be told is told, within
    /// the time of a few requests.
    pub fn end(&self) {
        self.flocks.end();
        self.controllers.sweep(Duration::ZERO);
        self.locker.end();
        self.tidy();
    }

    /// The mount is about to end: nobody waits for a lock any more.
    pub fn end_waits(&self) {
        self.locker.end_waits();
    }

    /// Whether it is.
    pub fn is_ending(&self) -> bool {
        self.locker.is_ending()
    }

    /// How long the kernel may remember where the controller's name leads. To be asked before the look at
    /// the source that is to be remembered.
    pub fn name_ttl(&self, controller: &Controller) -> Duration {
        if controller.is_being_written() {
            Duration::ZERO
        } else {
            self.settings.name_ttl
        }
    }

    /// As [`Nodb::name_ttl`], for what nobody can be writing.
    pub fn settled_name_ttl(&self) -> Duration {
        self.settings.name_ttl
    }

    /// The inode at `place` is about to be renamed; to be told when it was. `None`: no directory.
    pub fn before_move(&self, place: &Place, inode: &Arc<Inode>) -> Option<(Arc<Inode>, PathBuf)> {
        if !inode.is_dir() {
            return None;
        }
        let parent = self.plain.inodes.relative_path(&place.dir).ok()?;
        let old = self.settings.key_root.join(parent).join(&place.name);
        Some((inode.clone(), old))
    }

    /// A directory was renamed: what the cache knows by its old path is void.
    pub fn after_move(&self, (dir, old): (Arc<Inode>, PathBuf)) {
        self.moved.note(dir, old);
    }

    /// A temporary file in `dir` came in sight: it goes if its daemon is gone.
    pub fn clear_leftover(&self, dir: &Arc<Inode>, name: &OsStr) {
        let place = Place::new(dir, name);
        let Ok(attr) = self.plain.stat(&place) else {
            return;
        };
        // the old generation of a commit under way has an old mtime, but was renamed just now
        let age = unix_nanos(SystemTime::now()) - attr.ctime;
        if leftovers::is_leftover(name, age) && attr.is_file() {
            let reached = step::at(Step::ClearLeftover).map_err(Error::from);
            match reached.and_then(|()| self.plain.unlink(&place)) {
                Ok(()) => info!(?name, "cleared what a crashed nodbfs left"),
                Err(error) => debug!(?name, %error, "a leftover stays"),
            }
        }
    }

    /// The kernel, to be told what has changed.
    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Where cache and locks live.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The path of the source as NoDb processes know it.
    pub fn key_root(&self) -> &Path {
        &self.settings.key_root
    }

    /// The largest document, in bytes.
    pub fn max_payload(&self) -> u64 {
        self.settings.max_payload
    }

    /// The DB 13 key of a controller: its path as NoDb processes name it (PROTOCOL.md 2).
    fn cache_key(&self, place: &Place) -> Result<String> {
        let dir = self.plain.inodes.relative_path(&place.dir)?;
        Ok(key_of(&self.settings.key_root.join(dir), &place.name))
    }

    /// The keys under which child runs cache the same file: they hold symlinks to their parent's
    /// controllers, and NoDb keys by the path with the symlink unresolved (PROTOCOL.md 1 and 3).
    fn aliases(&self, place: &Place) -> Vec<String> {
        self.find_aliases(place).unwrap_or_default()
    }

    fn find_aliases(&self, place: &Place) -> Result<Vec<String>> {
        let run = self.plain.inodes.fd(&place.dir)?;
        let file = Attr::of_name(&*run, &place.name).map(|attr| attr.ident);
        let root = self
            .settings
            .key_root
            .join(self.plain.inodes.relative_path(&place.dir)?);
        let mut keys = Vec::new();
        for kind in ["_pups/omni/scenarios", "_pups/omni/contrasts"] {
            let here = PathBuf::from(crate::fs::inode::reopen_path(&*run)).join(kind);
            let Ok(children) = std::fs::read_dir(here) else {
                continue;
            };
            for child in children.filter_map(io::Result::ok) {
                let link = child.path().join(&place.name);
                let is_link = std::fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink());
                let leads_here = || Attr::of_path(&link).map(|attr| attr.ident) == file;
                if is_link && leads_here() {
                    keys.push(key_of(
                        &root.join(kind).join(child.file_name()),
                        &place.name,
                    ));
                }
            }
        }
        Ok(keys)
    }
}

fn key_of(dir: &Path, name: &OsStr) -> String {
    dir.join(name).to_string_lossy().into_owned()
}
