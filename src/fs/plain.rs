//! Plain files and directories: every operation gives what the source gives (promise 8). All go
//! by descriptor, never by a path from the root, so the mount may lie over its own source and no
//! symlink that is swapped in leads outside.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, StatVfs,
    XattrFlags, copy_file_range, fallocate, fstatvfs, getxattr, getxattr_query, linkat, listxattr,
    listxattr_query, mkdirat, mknodat, openat, readlinkat, removexattr, renameat_with, seek,
    setxattr, symlinkat, unlinkat,
};

use crate::error::{Errno, Result};
use crate::fs::attr::Attr;
use crate::fs::change::{SetAttr, change, foreign_set_gid, keep_mode, kill_privileges};
use crate::fs::credentials::Caller;
use crate::fs::handle::OpenDir;
use crate::fs::inode::{Inode, Place, reopen_path};
use crate::fs::inodes::Inodes;
use crate::fs::locks::Locks;

/// The flags of an `open` that mean something to the lower file. Alignment is the lower file
/// system's affair only where the kernel passes the caller's buffers through, so no `O_DIRECT`.
const PASSED_ON: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_TRUNC
    | libc::O_NOATIME;

/// The source's plain files.
#[derive(Debug)]
pub struct Plain {
    pub inodes: Inodes,
    pub locks: Arc<Locks>,
}

impl Plain {
    /// A name that exists becomes known to the kernel.
    pub fn lookup(&self, place: &Place) -> Result<(Arc<Inode>, Attr)> {
        let attr = self.stat(place)?;
        Ok((self.inodes.found(place.clone(), &attr), attr))
    }

    /// What the source says of a name.
    pub fn stat(&self, place: &Place) -> Result<Attr> {
        Ok(Attr::of_name(&*self.inodes.fd(&place.dir)?, &place.name)?)
    }

    /// What the source says of a name at this moment, whatever it costs: what is current is decided
    /// by it.
    pub fn stat_now(&self, place: &Place) -> Result<Attr> {
        let dir = self.inodes.fd(&place.dir)?;
        if self.inodes.nfs {
            Attr::of_fd_now(&*dir)?;
        }
        Ok(Attr::of_name_now(&*dir, &place.name)?)
    }

    /// What the source says of an inode.
    pub fn getattr(&self, inode: &Inode) -> Result<Attr> {
        Ok(Attr::of_fd(&*self.inodes.fd(inode)?)?)
    }

    /// Changes attributes, through `handle` where the caller has one open.
    pub fn setattr(
        &self,
        inode: &Inode,
        handle: Option<&OwnedFd>,
        set: &SetAttr,
        caller: Caller,
    ) -> Result<Attr> {
        let fd = self.inodes.fd(inode)?;
        change(&fd, handle, set, caller)?;
        Ok(Attr::of_fd(&*fd)?)
    }

    pub fn readlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        Ok(readlinkat(&*self.inodes.fd(inode)?, c"", Vec::new())?.into_bytes())
    }

    /// `mknod` of any type; the file belongs to the caller.
    pub fn mknod(
        &self,
        place: &Place,
        mode: u32,
        umask: u32,
        rdev: u64,
        caller: Caller,
    ) -> Result<(Arc<Inode>, Attr)> {
        let dir = self.inodes.fd(&place.dir)?;
        let permissions = masked(&dir, mode, umask);
        let kind = FileType::from_raw_mode(mode);
        self.make(place, caller, || {
            mknodat(&*dir, &place.name, kind, permissions, rdev)
        })
    }

    /// `mkdir`; the directory belongs to the caller.
    pub fn mkdir(
        &self,
        place: &Place,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<(Arc<Inode>, Attr)> {
        let dir = self.inodes.fd(&place.dir)?;
        let permissions = masked(&dir, mode, umask);
        self.make(place, caller, || mkdirat(&*dir, &place.name, permissions))
    }

    /// `symlink`; the link belongs to the caller.
    pub fn symlink(
        &self,
        place: &Place,
        target: &Path,
        caller: Caller,
    ) -> Result<(Arc<Inode>, Attr)> {
        let dir = self.inodes.fd(&place.dir)?;
        self.make(place, caller, || symlinkat(target, &*dir, &place.name))
    }

    /// Something new at `place`, which belongs to the caller.
    fn make(
        &self,
        place: &Place,
        caller: Caller,
        make: impl FnOnce() -> rustix::io::Result<()>,
    ) -> Result<(Arc<Inode>, Attr)> {
        let made = {
            let _as_caller = caller.assume();
            make()
        };
        made?;
        self.lookup(place)
    }

    /// `link`: one more name for the lower file.
    pub fn link(&self, inode: &Inode, place: &Place) -> Result<(Arc<Inode>, Attr)> {
        let fd = self.inodes.fd(inode)?;
        let dir = self.inodes.fd(&place.dir)?;
        linkat(
            CWD,
            reopen_path(&*fd),
            &*dir,
            &place.name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.lookup(place)
    }

    pub fn unlink(&self, place: &Place) -> Result<()> {
        self.remove(place, AtFlags::empty())
    }

    pub fn rmdir(&self, place: &Place) -> Result<()> {
        self.remove(place, AtFlags::REMOVEDIR)
    }

    fn remove(&self, place: &Place, flags: AtFlags) -> Result<()> {
        let inode = self.inodes.known_at(place);
        let fd = inode.as_ref().and_then(|inode| self.inodes.last_fd(inode));
        unlinkat(&*self.inodes.fd(&place.dir)?, &place.name, flags)?;
        if let Some(inode) = inode {
            self.inodes.removed(&inode, place, fd);
        }
        Ok(())
    }

    /// `renameat2` with its flags.
    pub fn rename(&self, from: &Place, to: &Place, flags: RenameFlags) -> Result<()> {
        let known = [from, to].map(|place| self.inodes.known_at(place));
        self.rename_known(from, to, flags, known)
    }

    /// The same, with the inodes that the kernel knows at the two names.
    pub fn rename_known(
        &self,
        from: &Place,
        to: &Place,
        flags: RenameFlags,
        [moving, target]: [Option<Arc<Inode>>; 2],
    ) -> Result<()> {
        let target_fd = target.as_ref().and_then(|inode| self.inodes.last_fd(inode));
        let (from_dir, to_dir) = (self.inodes.fd(&from.dir)?, self.inodes.fd(&to.dir)?);
        renameat_with(&*from_dir, &from.name, &*to_dir, &to.name, flags)?;
        if let Some(inode) = target {
            if flags.contains(RenameFlags::EXCHANGE) {
                self.inodes.moved(&inode, to, from.clone());
            } else {
                self.inodes.removed(&inode, to, target_fd);
            }
        }
        if let Some(inode) = moving {
            self.inodes.moved(&inode, from, to.clone());
        }
        Ok(())
    }

    /// Opens a regular file with the caller's `flags`: the one that has the name now, whatever the
    /// kernel remembers. What is written must not go to a file that was replaced meanwhile.
    pub fn open(&self, inode: &Inode, flags: i32, caller: Caller) -> Result<(Attr, Arc<OwnedFd>)> {
        if inode.ident.format == libc::S_IFREG && flags & (libc::O_ACCMODE | libc::O_TRUNC) == 0 {
            return self.open_to_read(inode, flags);
        }
        let attr = self.inodes.still_there(inode)?;
        let lower = self.inodes.fd(inode)?;
        let fd = Arc::new(openat(
            CWD,
            reopen_path(&*lower),
            passed_on(flags),
            Mode::empty(),
        )?);
        if flags & libc::O_TRUNC != 0 && caller.uid != 0 {
            kill_privileges(&*fd, caller)?;
        }
        inode.opened(&fd, flags);
        Ok((attr, fd))
    }

    /// By its name, which does no harm should that lead to another file by now, and takes fewer calls.
    fn open_to_read(&self, inode: &Inode, flags: i32) -> Result<(Attr, Arc<OwnedFd>)> {
        let (attr, fd) = match self.inodes.open_by_name(inode, passed_on(flags))? {
            Some(opened) => opened,
            // it has no name any more
            None => {
                let path = reopen_path(&*self.inodes.fd(inode)?);
                let fd = openat(CWD, path, passed_on(flags), Mode::empty())?;
                (Attr::of_fd(&fd)?, fd)
            }
        };
        let fd = Arc::new(fd);
        inode.opened(&fd, flags);
        Ok((attr, fd))
    }

    /// Creates and opens a regular file; it belongs to the caller.
    pub fn create(
        &self,
        place: &Place,
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Arc<Inode>, Attr, Arc<OwnedFd>)> {
        let dir = self.inodes.fd(&place.dir)?;
        let permissions = masked(&dir, mode, umask);
        let exclusive = OFlags::from_bits_retain((flags & libc::O_EXCL) as u32);
        let create = passed_on(flags) | exclusive | OFlags::CREATE | OFlags::NOFOLLOW;
        let fd = {
            let _as_caller = caller.assume();
            openat(&*dir, &place.name, create, permissions)
        };
        let fd = Arc::new(fd?);
        let attr = Attr::of_fd(&*fd)?;
        let inode = self.inodes.found(place.clone(), &attr);
        inode.opened(&fd, flags);
        Ok((inode, attr, fd))
    }

    pub fn opendir(&self, inode: &Arc<Inode>) -> Result<OpenDir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&*self.inodes.fd(inode)?, c".", flags, Mode::empty())?;
        Ok(OpenDir::new(inode.clone(), fd))
    }

    pub fn statfs(&self, inode: &Inode) -> Result<StatVfs> {
        Ok(fstatvfs(&*self.inodes.fd(inode)?)?)
    }

    pub fn getxattr(&self, inode: &Inode, name: &OsStr, size: usize) -> Result<XattrReply> {
        read_xattr(&*self.inodes.fd(inode)?, name, size)
    }

    pub fn listxattr(&self, inode: &Inode, size: usize) -> Result<XattrReply> {
        list_xattrs(&*self.inodes.fd(inode)?, size)
    }

    pub fn setxattr(
        &self,
        inode: &Inode,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        let fd = self.inodes.fd(inode)?;
        let flags = XattrFlags::from_bits_retain(flags);
        setxattr(reopen_path(&*fd), name, value, flags)?;
        if caller.uid != 0 && name == "system.posix_acl_access" {
            keep_mode(&*fd, |attr| attr.mode & !foreign_set_gid(attr, caller))?;
        }
        Ok(())
    }

    pub fn removexattr(&self, inode: &Inode, name: &OsStr) -> Result<()> {
        let fd = self.inodes.fd(inode)?;
        Ok(removexattr(reopen_path(&*fd), name)?)
    }
}

/// The answer to a question for extended attributes: a size for those who ask for 0 bytes.
#[derive(Debug)]
pub enum XattrReply {
    Size(usize),
    Data(Vec<u8>),
}

impl XattrReply {
    /// Nothing, for somebody who has room for `size` bytes.
    pub fn none(size: usize) -> Self {
        match size {
            0 => Self::Size(0),
            _ => Self::Data(Vec::new()),
        }
    }
}

/// One extended attribute of an open file, through a path that works for `O_PATH` as well.
pub fn read_xattr(fd: &impl AsFd, name: &OsStr, size: usize) -> Result<XattrReply> {
    let path = reopen_path(fd);
    if size == 0 {
        return Ok(XattrReply::Size(getxattr_query(path, name)?));
    }
    let mut value = vec![0; size];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(XattrReply::Data(value))
}

/// The names of the extended attributes of an open file.
pub fn list_xattrs(fd: &impl AsFd, size: usize) -> Result<XattrReply> {
    let path = reopen_path(fd);
    if size == 0 {
        return Ok(XattrReply::Size(listxattr_query(path)?));
    }
    let mut names = vec![0; size];
    let length = listxattr(path, &mut names[..])?;
    names.truncate(length);
    Ok(XattrReply::Data(names))
}

/// `pread` until `size` bytes or the end.
pub fn read(fd: &OwnedFd, offset: u64, size: usize) -> Result<Vec<u8>> {
    let mut data = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(fd, &mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    data.truncate(filled);
    Ok(data)
}

/// `pwrite`; may write less than asked, as the source does.
pub fn write(fd: &OwnedFd, offset: u64, data: &[u8]) -> Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::io::pwrite(fd, data, offset)
    })?)
}

/// `fsync`, or `fdatasync`.
pub fn sync(fd: &OwnedFd, data_only: bool) -> Result<()> {
    let synced = if data_only {
        rustix::fs::fdatasync(fd)
    } else {
        rustix::fs::fsync(fd)
    };
    Ok(synced?)
}

/// `fallocate` with the caller's mode bits.
pub fn allocate(fd: &OwnedFd, mode: i32, offset: u64, length: u64, caller: Caller) -> Result<()> {
    fallocate(
        fd,
        FallocateFlags::from_bits_retain(mode as u32),
        offset,
        length,
    )?;
    if caller.uid != 0 {
        kill_privileges(fd, caller)?;
    }
    Ok(())
}

/// `lseek` with `SEEK_DATA` or `SEEK_HOLE`; the kernel answers the others itself.
pub fn seek_to(fd: &OwnedFd, offset: u64, whence: i32) -> Result<u64> {
    let whence = match whence {
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(seek(fd, whence)?)
}

/// `copy_file_range`; may copy less than asked.
pub fn copy(
    from: &OwnedFd,
    mut offset_in: u64,
    to: &OwnedFd,
    mut offset_out: u64,
    length: usize,
    caller: Caller,
) -> Result<usize> {
    let copied = copy_file_range(
        from,
        Some(&mut offset_in),
        to,
        Some(&mut offset_out),
        length,
    )?;
    if caller.uid != 0 {
        kill_privileges(to, caller)?;
    }
    Ok(copied)
}

fn passed_on(flags: i32) -> OFlags {
    OFlags::from_bits_retain((flags & PASSED_ON) as u32) | OFlags::CLOEXEC
}

/// The permission bits of a new file: a directory's default ACL takes the umask's place.
fn masked(dir: &OwnedFd, mode: u32, umask: u32) -> Mode {
    let inherits = umask != 0
        && getxattr_query(reopen_path(dir), c"system.posix_acl_default").is_ok_and(|size| size > 0);
    let mode = mode & 0o7777;
    Mode::from_raw_mode(if inherits { mode } else { mode & !umask })
}

/// An extended attribute's name as bytes ending in NUL, as listings have them.
pub fn xattr_names(list: Vec<u8>) -> Vec<OsString> {
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect()
}
