//! The least a FUSE file system can do: a tree in memory that never changes, everything the kernel may
//! remember remembered for long, its pages and listings kept. Served and mounted as nodbfs is.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyOpen, Request, Session,
};

/// The kernel asks once.
const TTL: Duration = Duration::from_secs(3600);
const GENERATION: Generation = Generation(0);
/// Larger files are left out, in bytes.
const LARGEST: u64 = 64 << 20;

/// The node with the number `n` is the one before the `n`th.
struct Bare(Vec<Node>);

struct Node {
    attr: FileAttr,
    content: Content,
}

enum Content {
    File(Vec<u8>),
    Directory {
        /// With `.` and `..`.
        listing: Vec<(OsString, INodeNo)>,
        names: HashMap<OsString, INodeNo>,
    },
}

/// Serves what is below the directory `source` at `mountpoint` until that is unmounted.
pub fn serve(source: &Path, mountpoint: &Path) -> Result<()> {
    let mut bare = Bare(Vec::new());
    bare.take_in(source, INodeNo::ROOT)?;
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
    /// Reads `path` and all that is below it into memory.
    fn take_in(&mut self, path: &Path, parent: INodeNo) -> Result<INodeNo> {
        let ino = INodeNo(self.0.len() as u64 + 1);
        let is_dir = path.is_dir();
        let content = match is_dir {
            true => Vec::new(),
            false => fs::read(path)?,
        };
        self.0.push(Node {
            attr: attr(ino, is_dir, content.len() as u64),
            content: Content::File(content),
        });
        if is_dir {
            let mut listing = vec![(".".into(), ino), ("..".into(), parent)];
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if entry.metadata()?.size() <= LARGEST {
                    listing.push((entry.file_name(), self.take_in(&entry.path(), ino)?));
                }
            }
            let names = listing[2..].iter().cloned().collect();
            self.0[ino.0 as usize - 1].content = Content::Directory { listing, names };
        }
        Ok(ino)
    }

    fn node(&self, ino: INodeNo) -> Result<&Node, Errno> {
        let at = (ino.0 as usize).checked_sub(1).ok_or(Errno::ENOENT)?;
        self.0.get(at).ok_or(Errno::ENOENT)
    }

    /// What is listed behind `offset`, each with the offset behind it.
    fn listing(
        &self,
        ino: INodeNo,
        offset: u64,
    ) -> Result<impl Iterator<Item = (u64, &OsStr, &FileAttr)>, Errno> {
        let Content::Directory { listing, .. } = &self.node(ino)?.content else {
            return Err(Errno::ENOTDIR);
        };
        let left = listing.iter().enumerate().skip(offset as usize);
        Ok(left.filter_map(|(at, (name, ino))| {
            Some((at as u64 + 1, name.as_os_str(), &self.node(*ino).ok()?.attr))
        }))
    }
}

fn attr(ino: INodeNo, is_dir: bool, size: u64) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: match is_dir {
            true => FileType::Directory,
            false => FileType::RegularFile,
        },
        perm: if is_dir { 0o755 } else { 0o644 },
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS;
        config
            .add_capabilities(wanted)
            .map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Ok(Content::Directory { names, .. }) = self.node(parent).map(|node| &node.content)
        else {
            return reply.error(Errno::ENOTDIR);
        };
        match names.get(name).map(|ino| self.node(*ino)) {
            Some(Ok(node)) => reply.entry(&TTL, &node.attr, GENERATION),
            // number 0: the kernel remembers that there is nothing
            _ => reply.entry(&TTL, &attr(INodeNo(0), false, 0), GENERATION),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok(node) => reply.attr(&TTL, &node.attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(Content::File(content)) = self.node(ino).map(|node| &node.content) else {
            return reply.error(Errno::EISDIR);
        };
        let start = content.len().min(offset as usize);
        let end = content.len().min(start + size as usize);
        reply.data(&content[start..end]);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(0), kept);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.listing(ino, offset) {
            Ok(mut all) => {
                all.any(|(next, name, attr)| reply.add(attr.ino, next, attr.kind, name));
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.listing(ino, offset) {
            Ok(mut all) => {
                all.any(|(next, name, attr)| {
                    reply.add(attr.ino, next, name, &TTL, attr, GENERATION)
                });
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }
}
