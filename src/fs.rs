//! The operations: each asks which kind of node it is about and hands on. Nothing here knows the
//! FUSE protocol; every operation takes and returns plain values and runs without a kernel.

pub mod attr;
pub mod change;
pub mod credentials;
mod data;
pub mod flush;
pub mod handle;
pub mod inode;
pub mod inodes;
pub mod local;
pub mod lock;
pub mod lockfile;
pub mod locks;
pub mod logfile;
mod names;
pub mod open;
pub mod pages;
pub mod plain;
pub mod walk;
mod xattr;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, StatVfs};

use crate::error::{Errno, Error, Result};
use crate::nodb::Nodb;
use crate::nodb::controller::Controller;
use crate::nodb::generation::Generation;
use crate::nodb::lock::Asking;
use crate::nodb::staging::Staging;
use crate::node::{Node, goes_with_controllers, is_controller, is_dump, is_hidden};
use attr::Attr;
use change::SetAttr;
use credentials::Caller;
use handle::{DirEntry, Handles};
use inode::{Inode, Place};
use pages::Treat;
use plain::Plain;

/// A generation never changes, so what the kernel knows of it stays true.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A node made known to the kernel, and for how long that may rely on it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub id: u64,
    pub attr: Attr,
    /// How long the name leads here.
    pub entry_ttl: Duration,
    /// How long the attributes are these.
    pub attr_ttl: Duration,
}

/// How the kernel is to treat an open file.
#[derive(Clone, Debug)]
pub enum Opened {
    /// A plain file. Without `flush`, nobody need hear of its closing.
    Plain {
        fd: Arc<OwnedFd>,
        flush: bool,
        treat: Treat,
    },
    /// A generation: pages stay.
    Generation,
    /// A staging, or bytes that are not the inode's: every read and write is asked for.
    Direct,
    /// A directory; with `keep`, what the kernel remembers of its listing is still right.
    Directory { keep: bool },
}

/// What an open file description is called, and how it is treated.
#[derive(Clone, Debug)]
pub struct Open {
    pub handle: u64,
    pub opened: Opened,
}

/// A mounted tree of runs.
#[derive(Debug)]
pub struct Fs {
    plain: Arc<Plain>,
    nodb: Nodb,
    /// How long the kernel may trust names, missing ones too, and attributes of plain files. A change behind
    /// the mount's back shows after that at the latest.
    plain_ttl: Duration,
    handles: Handles,
    /// Held by who ends it: a second one waits for the first.
    end: Mutex<()>,
}

impl Fs {
    pub fn new(plain: Arc<Plain>, nodb: Nodb, plain_ttl: Duration) -> Self {
        Self {
            plain,
            nodb,
            plain_ttl,
            handles: Handles::default(),
            end: Mutex::default(),
        }
    }

    /// The controllers.
    pub fn nodb(&self) -> &Nodb {
        &self.nodb
    }

    /// A name in a directory. Names of nodbfs's own are nobody's to use.
    fn place(&self, parent: u64, name: &OsStr) -> Result<Place> {
        if is_hidden(name) {
            return Err(Errno::NOENT.into());
        }
        Ok(Place::new(&self.plain.inodes.plain(parent)?, name))
    }

    /// The controller a plain inode has become since the kernel came to know it: its file was
    /// renamed onto a controller's name.
    fn became(&self, inode: &Inode) -> Option<Arc<Controller>> {
        // asked of the inode, not of the file: that may have been replaced already
        if inode.ident.format != libc::S_IFREG || !inode.is_named(is_controller)? {
            return None;
        }
        Some(self.nodb.controllers.at(&inode.place()?))
    }

    fn plain_entry(&self, name: &OsStr, inode: &Inode, attr: Attr) -> Entry {
        inode.told.tell(&attr);
        // a symlink may become a regular file, and the kernel takes what it knows of a dump's name along
        let ttl = if is_controller(name) || is_dump(name) {
            self.nodb.settled_name_ttl()
        } else {
            self.plain_ttl
        };
        let attr_ttl = self.plain_attr_ttl(inode, &attr).min(ttl);
        entry(inode.id, attr, ttl, attr_ttl)
    }

    /// A write takes the set-uid bits away without the kernel hearing of it, and one through a mapping of
    /// the lower file changes its times.
    fn plain_attr_ttl(&self, inode: &Inode, attr: &Attr) -> Duration {
        if attr.is_set_id() || inode.changes_unheard() {
            Duration::ZERO
        } else {
            self.plain_ttl
        }
    }

    /// How long the kernel may believe that there is no `name`. The names that go with controllers come
    /// and go without a file.
    pub fn missing_ttl(&self, name: &OsStr) -> Duration {
        if goes_with_controllers(name) {
            Duration::ZERO
        } else {
            self.plain_ttl
        }
    }

    /// The name leads here for `name_ttl`, unless the file has other names by which it may change.
    fn generation_entry(&self, generation: Arc<Generation>, name_ttl: Duration) -> Entry {
        let attr = generation.attr();
        let name_ttl = if attr.nlink == 1 {
            name_ttl
        } else {
            Duration::ZERO
        };
        let shown = entry(generation.id, attr, name_ttl, generation_ttl(&attr));
        self.plain.inodes.raise(Node::Generation(generation));
        shown
    }

    fn staging_entry(&self, staging: Arc<Staging>) -> Entry {
        let shown = entry(staging.id, staging.attr(), Duration::ZERO, Duration::ZERO);
        self.plain.inodes.raise(Node::Staging(staging));
        shown
    }

    /// The kernel forgot `count` references to `id`.
    pub fn forget(&self, id: u64, count: u64) {
        self.plain.inodes.forget(id, count);
    }

    /// The attributes of a node, and for how long they hold.
    pub fn getattr(&self, id: u64) -> Result<(Attr, Duration)> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => {
                let attr = match (self.plain.getattr(&inode), self.became(&inode)) {
                    // it came to a controller's name and was replaced there: whoever asks is on the way
                    // to an `open`, which sends the kernel back, and that goes back only once
                    (Err(Error::Source(Errno::STALE)), Some(controller)) => {
                        return Ok((self.plain.stat(&controller.place)?, Duration::ZERO));
                    }
                    (attr, _) => attr?,
                };
                inode.told.tell(&attr);
                Ok((attr, self.plain_attr_ttl(&inode, &attr)))
            }
            Node::Generation(generation) => {
                let attr = self.nodb.attr_now(&generation);
                Ok((attr, generation_ttl(&attr)))
            }
            Node::Staging(staging) => Ok((staging.attr(), Duration::ZERO)),
            Node::Lock(file) => Ok((file.attr(), Duration::ZERO)),
            Node::Log(file) => Ok((file.attr(), Duration::ZERO)),
        }
    }

    /// Whether changing the attributes of `id` may wait.
    pub fn setattr_may_wait(&self, id: u64) -> bool {
        match self.plain.inodes.get(id) {
            Ok(Node::Plain(inode)) => inode.is_named(is_controller) == Some(true),
            Ok(Node::Generation(_) | Node::Lock(_)) => true,
            Ok(Node::Staging(_) | Node::Log(_)) | Err(_) => false,
        }
    }

    /// Changes attributes.
    pub fn setattr(
        &self,
        id: u64,
        handle: Option<u64>,
        set: &SetAttr,
        caller: Caller,
    ) -> Result<(Attr, Duration)> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => {
                let fd = handle.and_then(|handle| self.handles.get(handle).ok()?.file().ok());
                if fd.is_none()
                    && let Some(controller) = self.became(&inode)
                {
                    let attr = self.set_controller(&controller, set, caller)?;
                    return Ok((attr, Duration::ZERO));
                }
                let attr = self.plain.setattr(&inode, fd.as_deref(), set, caller)?;
                inode.told.tell(&attr);
                Ok((attr, self.plain_attr_ttl(&inode, &attr)))
            }
            Node::Generation(generation) if self.nodb.is_current(&generation) => {
                let attr = self.set_controller(&generation.controller, set, caller)?;
                // a truncation made another generation: this inode keeps its content for its readers
                Ok(match set.size {
                    Some(_) => (generation.attr(), Duration::ZERO),
                    None => (attr, generation_ttl(&attr)),
                })
            }
            // the kernel looks the name up again
            Node::Generation(_) => Err(Error::Superseded),
            Node::Staging(staging) => {
                let mut draft = staging.draft();
                if let Some(size) = set.size {
                    draft.resize(size, self.nodb.max_payload())?;
                }
                draft.set.merge(set);
                drop(draft);
                Ok((staging.attr(), Duration::ZERO))
            }
            Node::Lock(file) => Ok((self.nodb.set_lock(&file, set, caller)?, Duration::ZERO)),
            Node::Log(file) => Ok((self.nodb.set_log(&file, set)?, Duration::ZERO)),
        }
    }

    fn set_controller(
        &self,
        controller: &Arc<Controller>,
        set: &SetAttr,
        caller: Caller,
    ) -> Result<Attr> {
        let asking = Asking::by(caller);
        if let Some(size) = set.size {
            self.nodb.truncate(controller, size, asking)?;
        }
        if set.is_empty() {
            self.plain.stat(&controller.place)
        } else {
            self.nodb.set_attributes(controller, set, asking)
        }
    }

    pub fn readlink(&self, id: u64) -> Result<Vec<u8>> {
        self.plain.readlink(&*self.plain.inodes.plain(id)?)
    }

    pub fn statfs(&self, id: u64) -> Result<StatVfs> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => self.plain.statfs(&inode),
            Node::Generation(generation) => self.plain.statfs(&generation.controller.place.dir),
            Node::Staging(staging) => self.plain.statfs(&staging.controller.place.dir),
            Node::Lock(file) => self.plain.statfs(&file.place.dir),
            Node::Log(file) => self.plain.statfs(&file.controller.place.dir),
        }
    }

    /// The names of an open directory from `offset` on, until `each` returns `false`.
    pub fn readdir(
        &self,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let dir = self.handles.get(handle)?.dir()?;
        dir.list(offset, |entry| {
            Ok(self.hides(&dir.inode, &entry.name) || each(entry))
        })
    }

    /// As [`Fs::readdir`], each name looked up as well. A name that `each` refuses is forgotten.
    pub fn readdirplus(
        &self,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(&DirEntry, &Entry) -> bool,
    ) -> Result<()> {
        let dir = self.handles.get(handle)?.dir()?;
        dir.list(offset, |listed| {
            if self.hides(&dir.inode, &listed.name) {
                return Ok(true);
            }
            let (shown, counted) = match self.list_one(&dir.inode, &listed) {
                Ok(found) => found,
                // gone between the listing and the look
                Err(_) => return Ok(true),
            };
            let taken = each(&listed, &shown);
            if !taken && counted {
                self.forget(shown.id, 1);
            }
            Ok(taken)
        })
    }

    /// Whether a name shows in no listing. What a crashed daemon left goes for good.
    fn hides(&self, dir: &Arc<Inode>, name: &OsStr) -> bool {
        let hidden = is_hidden(name);
        if hidden {
            self.nodb.clear_leftover(dir, name);
        }
        hidden
    }

    /// A listed name's node; `true`: the kernel will know it once more.
    fn list_one(&self, dir: &Arc<Inode>, listed: &DirEntry) -> Result<(Entry, bool)> {
        if listed.name == "." || listed.name == ".." {
            // the kernel takes neither number nor attributes of these two
            let mut attr = self.plain.getattr(dir)?;
            attr.ident.ino = listed.ino;
            return Ok((
                entry(listed.ino, attr, Duration::ZERO, Duration::ZERO),
                false,
            ));
        }
        let place = Place::new(dir, &listed.name);
        if listed.file_type == FileType::RegularFile && is_controller(&listed.name) {
            let controller = self.nodb.controllers.at(&place);
            let name_ttl = self.nodb.name_ttl(&controller);
            let generation = self.nodb.look(&controller)?;
            return Ok((self.generation_entry(generation, name_ttl), true));
        }
        let (inode, attr) = self.plain.lookup(&place)?;
        Ok((self.plain_entry(&listed.name, &inode, attr), true))
    }

    /// A symlink; also under a controller's name, as child runs have them (PROTOCOL.md 1).
    pub fn symlink(
        &self,
        parent: u64,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> Result<Entry> {
        let place = self.place(parent, name)?;
        self.is_no_lock(&place, caller)?;
        let (inode, attr) = self.plain.symlink(&place, target, caller)?;
        Ok(self.plain_entry(name, &inode, attr))
    }

    pub fn mkdir(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Entry> {
        let place = self.place(parent, name)?;
        self.is_no_lock(&place, caller)?;
        let (inode, attr) = self.plain.mkdir(&place, mode, umask, caller)?;
        Ok(self.plain_entry(name, &inode, attr))
    }

    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.plain.rmdir(&self.place(parent, name)?)
    }
}

/// A node as the kernel is told of it. Where its number is not the lower file's, the kernel must
/// ask for the attributes to learn `st_ino`.
fn entry(id: u64, attr: Attr, entry_ttl: Duration, attr_ttl: Duration) -> Entry {
    let attr_ttl = if id == attr.ident.ino {
        attr_ttl
    } else {
        Duration::ZERO
    };
    Entry {
        id,
        attr,
        entry_ttl,
        attr_ttl,
    }
}

/// How long a generation's attributes hold: for ever, but for the link count of one that has had
/// other names.
fn generation_ttl(attr: &Attr) -> Duration {
    if attr.nlink == 1 {
        FOREVER
    } else {
        Duration::ZERO
    }
}
