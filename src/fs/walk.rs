//! Walking the source for those who do not come through the kernel: each directory on the way stays
//! in the table of inodes as if the kernel knew it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::fs::Fs;
use crate::fs::attr::Attr;
use crate::fs::inode::{Inode, Place, reopen_path};
use crate::fs::inodes::ROOT;

/// More names than a path that somebody can type.
const MOST_NAMES: usize = 2048;

/// The path of a directory relative to the root, from memory: the source, which may hang, is not asked.
pub fn remembered_path(dir: &Arc<Inode>) -> PathBuf {
    let mut names = Vec::new();
    let mut above = dir.clone();
    // names learnt at different times may go round in a circle
    while names.len() < MOST_NAMES
        && let Some(place) = above.places().into_iter().next()
    {
        names.push(place.name);
        above = place.dir;
    }
    names.iter().rev().collect()
}

/// A directory below the source that somebody has gone into.
pub struct Entered {
    fs: Arc<Fs>,
    inode: Arc<Inode>,
    /// Stays as well; `None`: this is the root.
    above: Option<Arc<Self>>,
}

impl Entered {
    /// The source itself.
    pub fn root(fs: &Arc<Fs>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            fs: fs.clone(),
            inode: fs.plain.inodes.plain(ROOT)?,
            above: None,
        }))
    }

    /// The directory above; the root's is the root.
    pub fn up(self: &Arc<Self>) -> Arc<Self> {
        self.above.as_ref().unwrap_or(self).clone()
    }

    /// Goes into `name`. ENOTDIR: it is no directory.
    pub fn down(self: &Arc<Self>, name: &OsStr) -> Result<Arc<Self>> {
        let (inode, attr) = self.fs.plain.lookup(&self.place(name))?;
        let entered = Arc::new(Self {
            fs: self.fs.clone(),
            inode,
            above: Some(self.clone()),
        });
        match attr.is_dir() {
            true => Ok(entered),
            false => Err(Errno::NOTDIR.into()),
        }
    }

    pub fn place(&self, name: &OsStr) -> Place {
        Place::new(&self.inode, name)
    }

    /// What the source says of a name in here.
    pub fn stat(&self, name: &OsStr) -> Result<Attr> {
        self.fs.plain.stat(&self.place(name))
    }

    /// Where a symlink in here leads.
    pub fn readlink(&self, name: &OsStr) -> Result<PathBuf> {
        let fd = self.fs.nodb.lower(&self.place(name))?;
        let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// All names in here, in order.
    pub fn list(&self) -> Result<Vec<OsString>> {
        let fd = self.fs.plain.inodes.fd(&self.inode)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(reopen_path(&*fd))? {
            names.push(entry?.file_name());
        }
        names.sort();
        Ok(names)
    }

    /// The path below the source.
    pub fn path(&self) -> Result<PathBuf> {
        self.fs.plain.inodes.relative_path(&self.inode)
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entered").field(&self.inode.id).finish()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.above.is_some() {
            self.fs.forget(self.inode.id, 1);
        }
    }
}
