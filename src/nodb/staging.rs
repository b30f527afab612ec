//! The private content of an open writer. It is in memory until its commit, so a writer that dies
//! leaves nothing behind and a reader can never come across it.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::fs::attr::{Attr, Ident, unix_nanos};
use crate::fs::change::{SetAttr, SetTime};
use crate::nodb::controller::Controller;
use crate::nodb::generation::window;
use crate::nodb::lock::Leases;
use crate::nodb::rejected::Refusal;

/// What one `open` for writing works on, as an inode of the kernel's.
///
/// Lock order: `committing` before `draft`. `committing` is the one lock of nodbfs that is held
/// across I/O: it makes the commits of one writer's descriptors take turns, and nobody else's.
#[derive(Debug)]
pub struct Staging {
    /// The number by which the kernel knows it.
    pub id: u64,
    pub controller: Arc<Controller>,
    /// The process that opened it; 0 if it cannot be seen.
    pub tgid: u32,
    /// The attributes of a file that does not exist yet.
    newborn: Attr,
    committing: Mutex<Leases>,
    draft: Mutex<Draft>,
}

/// The state of a staging.
#[derive(Debug)]
pub struct Draft {
    /// The generation the writer opened; none for a new controller.
    pub base: Option<Attr>,
    pub content: Arc<Vec<u8>>,
    /// Written since the last commit.
    pub dirty: bool,
    /// Emptied by `O_TRUNC`, and not written since: nothing to commit yet.
    pub emptied: bool,
    /// Whether any commit was made.
    pub committed: bool,
    /// Attributes the writer gave its descriptor, for the next commit.
    pub set: SetAttr,
    /// When it was last written, in nanoseconds since the epoch.
    mtime: i128,
    /// Open handles.
    handles: u32,
    /// Its process has closed a descriptor, and used none since: if that was the last, the kernel tells of it a moment
    /// later.
    left: bool,
    /// Why the content was refused last.
    pub refused: Option<Refusal>,
    /// Why the writer cannot have the lock, to be told when it comes.
    pub unlocked: Option<Error>,
}

/// What a commit works on.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub base: Option<Attr>,
    pub content: Arc<Vec<u8>>,
    pub set: SetAttr,
}

impl Staging {
    /// A staging for `base` with `content` to start from. `newborn` are a new file's attributes.
    pub fn new(
        id: u64,
        controller: Arc<Controller>,
        tgid: u32,
        base: Option<Attr>,
        newborn: Attr,
        content: Arc<Vec<u8>>,
    ) -> Self {
        let emptied = content.is_empty();
        let draft = Draft {
            base,
            content,
            dirty: false,
            emptied,
            committed: false,
            set: SetAttr::default(),
            mtime: base.map_or(newborn.mtime, |base| base.mtime),
            handles: 0,
            left: false,
            refused: None,
            unlocked: None,
        };
        Self {
            id,
            controller,
            tgid,
            newborn,
            committing: Mutex::default(),
            draft: Mutex::new(draft),
        }
    }

    /// The staging's own state, for the shortest time.
    pub fn draft(&self) -> MutexGuard<'_, Draft> {
        self.draft.lock()
    }

    /// One commit at a time; gives the leases the writer holds.
    pub fn committing(&self) -> MutexGuard<'_, Leases> {
        self.committing.lock()
    }

    /// Whether a commit is under way.
    pub fn is_committing(&self) -> bool {
        self.committing.try_lock().is_none()
    }

    /// What `fstat` says: the size and time of the draft; the number and the rest are those of the
    /// file it came from or became.
    pub fn attr(&self) -> Attr {
        let draft = self.draft.lock();
        let mut attr = draft.base.unwrap_or(self.newborn);
        if draft.dirty || draft.emptied {
            attr.size = draft.content.len() as u64;
            attr.blocks = attr.size.div_ceil(512);
            attr.mtime = draft.mtime;
        }
        draft.set.show_in(&mut attr);
        attr
    }

    /// Whether a writer that comes for it need not wait.
    pub fn is_ready(&self) -> bool {
        let leases = self.committing.try_lock();
        leases.is_some_and(|leases| !leases.is_empty())
    }

    /// Whether there is no file yet.
    pub fn is_newborn(&self) -> bool {
        self.draft.lock().base.is_none()
    }

    /// The writer never came for it: the leases go, even if the kernel still remembers the inode.
    pub fn desert(&self) {
        if self.draft.lock().handles == 0 {
            drop(std::mem::take(&mut *self.committing.lock()));
        }
    }

    /// Whether any handle is left.
    pub fn is_open(&self) -> bool {
        self.draft.lock().handles > 0
    }

    /// Whether its process has it open, as far as is known.
    pub fn is_in_use(&self) -> bool {
        let draft = self.draft.lock();
        draft.handles > 0 && !draft.left
    }

    /// A descriptor was closed by the process `tgid`.
    pub fn left_by(&self, tgid: u32) {
        if tgid == self.tgid {
            self.draft.lock().left = true;
        }
    }

    /// One more handle.
    pub fn opened(&self) {
        self.draft.lock().handles += 1;
    }

    /// One handle less; `true`: it was the last.
    pub fn closed(&self) -> bool {
        let mut draft = self.draft.lock();
        draft.handles = draft.handles.saturating_sub(1);
        draft.handles == 0
    }
}

impl Draft {
    /// What a commit has to publish, if anything was written.
    pub fn to_commit(&self) -> Option<Snapshot> {
        self.dirty.then(|| Snapshot {
            base: self.base,
            content: self.content.clone(),
            set: self.set,
        })
    }

    /// The commit of `snapshot` succeeded and made the file `attr`.
    pub fn settle(&mut self, snapshot: &Snapshot, attr: Attr) {
        self.base = Some(attr);
        self.committed = true;
        self.refused = None;
        self.set = SetAttr::default();
        self.emptied = false;
        self.dirty = !Arc::ptr_eq(&self.content, &snapshot.content);
    }

    /// Nothing is written yet, and `base` has become the current generation.
    pub fn rebase(&mut self, base: Attr, content: Arc<Vec<u8>>) {
        self.mtime = base.mtime;
        self.base = Some(base);
        self.content = content;
    }

    /// As `O_TRUNC`: without a write that follows there is nothing to commit.
    pub fn empty(&mut self) {
        self.content = Arc::default();
        self.dirty = false;
        self.emptied = true;
    }

    fn touch(&mut self) {
        self.left = false;
        // a write is later than any time that was set before
        self.set.mtime = None;
        self.dirty = true;
        self.emptied = false;
        self.mtime = unix_nanos(SystemTime::now());
    }

    /// Changes the size, filling with zeros. EFBIG: beyond `limit`, in bytes.
    pub fn resize(&mut self, size: u64, limit: u64) -> Result<()> {
        within(size, limit)?;
        Arc::make_mut(&mut self.content).resize(size as usize, 0);
        self.touch();
        Ok(())
    }

    /// Writes `data` at `offset`, or at the end. EFBIG: beyond `limit`, in bytes.
    pub fn write(&mut self, offset: Option<u64>, data: &[u8], limit: u64) -> Result<()> {
        let offset = offset.unwrap_or(self.content.len() as u64);
        let end = offset.saturating_add(data.len() as u64);
        within(end, limit)?;
        let content = Arc::make_mut(&mut self.content);
        if content.len() < end as usize {
            content.resize(end as usize, 0);
        }
        content[offset as usize..end as usize].copy_from_slice(data);
        self.touch();
        Ok(())
    }

    /// Overwrites a range with zeros, as far as there is content.
    pub fn zero(&mut self, offset: u64, length: u64) {
        let content = Arc::make_mut(&mut self.content);
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len());
        let end = usize::try_from(offset.saturating_add(length))
            .unwrap_or(usize::MAX)
            .min(content.len());
        content[start..end].fill(0);
        self.touch();
    }
}

/// An open file description of a staging.
#[derive(Debug)]
pub struct Writer {
    pub staging: Arc<Staging>,
    /// `O_APPEND`: every write goes to the end.
    pub append: bool,
}

impl Writer {
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let content = {
            let mut draft = self.staging.draft();
            draft.left = false;
            draft.content.clone()
        };
        window(&content, offset, size).to_vec()
    }
}

/// The attributes of a controller that has not been published: a regular file of the caller's.
pub fn newborn(id: u64, mode: u32, uid: u32, gid: u32) -> Attr {
    let now = unix_nanos(SystemTime::now());
    Attr {
        ident: Ident {
            dev: 0,
            ino: id,
            btime: now as i64,
            format: libc::S_IFREG,
        },
        size: 0,
        blocks: 0,
        blksize: 4096,
        mode: libc::S_IFREG | (mode & 0o7777),
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        atime: now,
        mtime: now,
        ctime: now,
    }
}

fn within(size: u64, limit: u64) -> Result<()> {
    if size > limit {
        Err(Error::TooLarge { size, max: limit })
    } else {
        Ok(())
    }
}

impl SetAttr {
    /// Whether nothing changes but the size.
    pub fn is_empty(&self) -> bool {
        Self {
            size: None,
            ..*self
        } == Self::default()
    }

    /// Takes over what `later` changes.
    pub fn merge(&mut self, later: &Self) {
        self.mode = later.mode.or(self.mode);
        self.uid = later.uid.or(self.uid);
        self.gid = later.gid.or(self.gid);
        self.atime = later.atime.or(self.atime);
        self.mtime = later.mtime.or(self.mtime);
    }

    /// What `attr` will be once the changes are made.
    fn show_in(&self, attr: &mut Attr) {
        attr.mode = self
            .mode
            .map_or(attr.mode, |mode| attr.mode & libc::S_IFMT | mode & 0o7777);
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        if let Some(SetTime::At(mtime)) = self.mtime {
            attr.mtime = mtime;
        }
        if let Some(SetTime::At(atime)) = self.atime {
            attr.atime = atime;
        }
    }
}
