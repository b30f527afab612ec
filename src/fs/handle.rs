//! Open file descriptions, by the numbers the kernel got for them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir, SeekFrom, seek};

use crate::error::{Errno, Result};
use crate::fs::attr::Attr;
use crate::fs::inode::Inode;
use crate::nodb::generation::Payload;
use crate::nodb::lockfile::OpenLock;
use crate::nodb::logfile::OpenLog;
use crate::nodb::staging::Writer;

/// An open file description.
#[derive(Clone, Debug)]
pub enum Handle {
    /// A plain file.
    File(Arc<OwnedFd>),
    /// A directory.
    Dir(Arc<OpenDir>),
    /// A controller, reading: one generation for as long as it is open (promise 2).
    Reader(Arc<Payload>),
    /// A controller, writing.
    Writer(Arc<Writer>),
    /// The virtual file of a lock.
    Lock(Arc<OpenLock>),
    /// A virtual log.
    Log(Arc<OpenLog>),
}

impl Handle {
    /// The descriptor of a plain file. EBADF: it is something else.
    pub fn file(self) -> Result<Arc<OwnedFd>> {
        match self {
            Self::File(fd) => Ok(fd),
            _ => Err(Errno::BADF.into()),
        }
    }

    /// The open directory. ENOTDIR: it is something else.
    pub fn dir(self) -> Result<Arc<OpenDir>> {
        match self {
            Self::Dir(dir) => Ok(dir),
            _ => Err(Errno::NOTDIR.into()),
        }
    }
}

/// All open file descriptions of a mount.
#[derive(Debug, Default)]
pub struct Handles {
    open: RwLock<HashMap<u64, Handle>>,
    last: AtomicU64,
}

/// The bit of a handle's number that says that the kernel does not tell of its closing, only of its end.
const QUIET: u64 = 1 << 63;

impl Handles {
    /// Gives `handle` a number. `tells_close`: whether the kernel is to tell of each descriptor's closing.
    pub fn add(&self, handle: Handle, tells_close: bool) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let number = if tells_close { number } else { number | QUIET };
        self.open.write().insert(number, handle);
        number
    }

    /// What was said when the handle got its number.
    pub fn tells_close(number: u64) -> bool {
        number & QUIET == 0
    }

    /// EBADF: no such number is open.
    pub fn get(&self, number: u64) -> Result<Handle> {
        Ok(self.open.read().get(&number).ok_or(Errno::BADF)?.clone())
    }

    /// The kernel let go of it.
    pub fn remove(&self, number: u64) -> Option<Handle> {
        self.open.write().remove(&number)
    }

    /// The kernel has let go of all of them.
    pub fn take(&self) -> Vec<Handle> {
        self.open
            .write()
            .drain()
            .map(|(_, handle)| handle)
            .collect()
    }
}

/// One name of a listing.
#[derive(Debug)]
pub struct DirEntry {
    pub name: OsString,
    pub ino: u64,
    pub file_type: FileType,
    /// Where a listing that stopped after this name goes on.
    pub next: u64,
}

/// An open directory.
#[derive(Debug)]
pub struct OpenDir {
    pub inode: Arc<Inode>,
    fd: OwnedFd,
    /// The descriptor's position is shared: one listing at a time.
    listing: Mutex<()>,
}

/// How much is read of a directory at a time, in bytes.
const LISTING: usize = 32 << 10;

impl OpenDir {
    pub fn new(inode: Arc<Inode>, fd: OwnedFd) -> Self {
        Self {
            inode,
            fd,
            listing: Mutex::new(()),
        }
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The attributes of the directory.
    pub fn attr(&self) -> Result<Attr> {
        Ok(Attr::of_fd(&self.fd)?)
    }

    /// Passes the names from `offset` on to `each` until that returns `false`.
    pub fn list(&self, offset: u64, mut each: impl FnMut(DirEntry) -> Result<bool>) -> Result<()> {
        let _one = self.listing.lock();
        seek(&self.fd, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(LISTING);
        let mut names = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        let mut ended = true;
        while let Some(entry) = names.next() {
            ended = false;
            let entry = entry?;
            // not every file system says it, and the kernel's reply has no room for not knowing
            let file_type = match entry.file_type() {
                FileType::Unknown => Attr::of_name(&self.fd, entry.file_name())
                    .map_or(FileType::Unknown, |attr| attr.file_type()),
                known => known,
            };
            let more = each(DirEntry {
                name: std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                ino: entry.ino(),
                file_type,
                next: entry.next_entry_cookie(),
            })?;
            if !more {
                break;
            }
        }
        if ended {
            self.inode.was_listed();
        }
        Ok(())
    }
}
