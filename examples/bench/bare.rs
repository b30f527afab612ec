//! The least a FUSE file system can do: one directory in memory with one file, everything the
//! kernel may remember remembered for long, its pages kept. Served and mounted as nodbfs is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session,
};

/// The kernel asks once.
const TTL: Duration = Duration::from_secs(3600);
const FILE: INodeNo = INodeNo(2);
const GENERATION: Generation = Generation(0);

struct Bare {
    name: OsString,
    content: Vec<u8>,
    made: SystemTime,
}

/// Serves `file`'s content at `mountpoint` until that is unmounted.
pub fn serve(file: &Path, mountpoint: &Path) -> Result<()> {
    let bare = Bare {
        name: file.file_name().context("no file")?.to_owned(),
        content: fs::read(file)?,
        made: SystemTime::now(),
    };
    let mut options = fuser::Config::default();
    options.mount_options = vec![
        MountOption::FSName("bare".into()),
        MountOption::CUSTOM("subtype=bare".into()),
        MountOption::DefaultPermissions,
    ];
    options.n_threads = Some(4);
    options.clone_fd = true;
    Session::new(bare, mountpoint, &options)?.run()?;
    Ok(())
}

impl Bare {
    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 4096),
            FILE => (FileType::RegularFile, 0o644, self.content.len() as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Bare {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(FILE) {
            Some(attr) if name == self.name => reply.entry(&TTL, &attr, GENERATION),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = self.content.len().min(offset as usize);
        let end = self.content.len().min(start + size as usize);
        reply.data(&self.content[start..end]);
    }
}
