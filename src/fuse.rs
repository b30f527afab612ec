//! The adapter: decodes what the kernel asks, calls one function of [`crate::fs`], replies. Only
//! this file, its children and the life of the mount name `fuser`.

mod capabilities;
mod convert;
mod lock;
mod notify;
mod passthrough;
mod reply;
mod threads;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileHandle, Filesystem,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::control::Context;
use crate::counters::{Op, Timed, time};
use crate::error::{Errno, Error};
use crate::fs::Fs;
use crate::fs::change::SetAttr;
use crate::fs::credentials::Caller;
use crate::fs::lock::At;
use crate::fs::locks::Sort;
use crate::mount::ClaimedSource;
use crate::node::touches_the_store;
pub use notify::Notices;
use passthrough::Passthrough;
use threads::Threads;

/// The file system as `fuser` sees it.
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<Fs>,
    passthrough: Arc<Passthrough>,
    threads: Threads,
    /// POSIX ACLs count where other users than the mount's own come in.
    acl: bool,
    /// Whether the source itself is stacked on other file systems.
    stacked: bool,
    /// What is asked beside the mount; it ends first.
    beside: Arc<Context>,
    /// The embedded store's claim on the source; it ends before the mount says it has ended.
    _claimed: Option<ClaimedSource>,
}

impl Adapter {
    /// Serves `fs` while the source is `claimed`. With `acl`, the kernel honours the source's ACLs;
    /// `stacked` says that the source lies on an overlay.
    ///
    /// # Errors
    /// No threads could be started.
    pub fn new(
        fs: Arc<Fs>,
        acl: bool,
        stacked: bool,
        claimed: Option<ClaimedSource>,
        beside: Arc<Context>,
    ) -> io::Result<Self> {
        Ok(Self {
            fs,
            passthrough: Arc::default(),
            threads: Threads::start()?,
            acl,
            stacked,
            beside,
            _claimed: claimed,
        })
    }

    /// Runs `work` here, or, if it may wait and too many are waiting here, elsewhere.
    fn run(&self, may_wait: bool, timed: Timed, work: impl FnOnce(&Fs) + Send + 'static) {
        let work = move |fs: &Fs| {
            work(fs);
            drop(timed);
        };
        if may_wait {
            self.threads.run(&self.fs, work);
        } else {
            work(&self.fs);
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        tid: request.pid(),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let has_passthrough = capabilities::ask(config, self.acl, self.stacked);
        self.passthrough.allow(has_passthrough);
        Ok(())
    }

    fn destroy(&mut self) {
        self.fs.end_waits();
        self.beside.end();
        self.threads.drain();
        self.fs.end();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let timed = time(Op::Lookup);
        let caller = caller(request);
        match self.fs.lookup_at_once(parent.0, name, caller) {
            Some(Err(Error::Source(Errno::NOENT))) => {
                return reply::missing(reply, self.fs.missing_ttl(name));
            }
            Some(answer) => return reply::entry(reply, answer),
            None => {}
        }
        let name = name.to_owned();
        self.run(true, timed, move |fs| {
            reply::entry(reply, fs.lookup(parent.0, &name, caller))
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        let _timed = time(Op::Forget);
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _timed = time(Op::Getattr);
        reply::attr(reply, self.fs.getattr(ino.0));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let timed = time(Op::Setattr);
        let mode = mode.map(|mode| mode & 0o7777);
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let (handle, caller) = (fh.map(|fh| fh.0), caller(request));
        self.run(self.fs.setattr_may_wait(ino.0), timed, move |fs| {
            reply::attr(reply, fs.setattr(ino.0, handle, &set, caller));
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let _timed = time(Op::Readlink);
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let timed = time(Op::Mknod);
        let (name, rdev, caller) = (name.to_owned(), convert::device(rdev), caller(request));
        self.run(touches_the_store(&name), timed, move |fs| {
            let made = fs.mknod(parent.0, &name, mode, umask, rdev, caller);
            reply::entry(reply, made);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let timed = time(Op::Mkdir);
        let (name, caller) = (name.to_owned(), caller(request));
        self.run(touches_the_store(&name), timed, move |fs| {
            reply::entry(reply, fs.mkdir(parent.0, &name, mode, umask, caller));
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = time(Op::Unlink);
        let (name, caller) = (name.to_owned(), caller(request));
        self.run(touches_the_store(&name), timed, move |fs| {
            reply::empty(reply, fs.unlink(parent.0, &name, caller));
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timed = time(Op::Rmdir);
        reply::empty(reply, self.fs.rmdir(parent.0, name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let timed = time(Op::Symlink);
        let (name, target, caller): (OsString, PathBuf, _) =
            (link_name.into(), target.into(), caller(request));
        self.run(touches_the_store(&name), timed, move |fs| {
            reply::entry(reply, fs.symlink(parent.0, &name, &target, caller));
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Rename);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let (name, newname, caller) = (name.to_owned(), newname.to_owned(), caller(request));
        let may_wait = touches_the_store(&name) || touches_the_store(&newname);
        self.run(may_wait, timed, move |fs| {
            reply::empty(
                reply,
                fs.rename((parent.0, &name), (newparent.0, &newname), flags, caller),
            );
        });
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let timed = time(Op::Link);
        let (name, caller) = (newname.to_owned(), caller(request));
        self.run(touches_the_store(&name), timed, move |fs| {
            reply::entry(reply, fs.link(ino.0, newparent.0, &name, caller));
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let timed = time(Op::Open);
        let caller = caller(request);
        if let Some(answer) = self.fs.open_at_once(ino.0, flags.0, caller) {
            return reply::open(reply, &self.passthrough, ino.0, answer);
        }
        let passthrough = self.passthrough.clone();
        self.run(true, timed, move |fs| {
            fs.open(ino.0, flags.0, caller, |answer| {
                reply::open(reply, &passthrough, ino.0, answer)
            });
        });
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _timed = time(Op::Read);
        match self.fs.read(fh.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let timed = time(Op::Write);
        let caller = caller(request);
        let unprivileged = write_flags
            .contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            .then_some(caller);
        if let Some(written) = self.fs.write(fh.0, offset, data, unprivileged) {
            return reply::write(reply, written);
        }
        let data = data.to_vec();
        self.run(true, timed, move |fs| {
            reply::write(reply, fs.append(fh.0, &data, caller));
        });
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Flush);
        let caller = caller(request);
        self.run(self.fs.close_may_wait(fh.0), timed, move |fs| {
            reply::empty(reply, fs.flush(ino.0, fh.0, lock_owner.0, caller))
        });
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Release);
        self.passthrough.detach(ino.0, fh.0);
        // the kernel names one here where there was a `flock`
        let flocked = lock_owner.is_some();
        self.run(self.fs.close_may_wait(fh.0), timed, move |fs| {
            fs.release(ino.0, fh.0, flocked);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Fsync);
        let caller = caller(request);
        self.run(true, timed, move |fs| {
            reply::empty(reply, fs.fsync(fh.0, datasync, caller))
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _timed = time(Op::Opendir);
        reply::open(reply, &self.passthrough, ino.0, self.fs.opendir(ino.0));
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _timed = time(Op::Readdir);
        let listed = self.fs.readdir(fh.0, offset, |entry| {
            let kind = convert::kind(entry.file_type);
            !reply.add(INodeNo(entry.ino), entry.next, kind, &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _timed = time(Op::Readdirplus);
        let listed = self.fs.readdirplus(fh.0, offset, |listed, entry| {
            let attr = convert::attr(entry.id, &entry.attr);
            let ttl = entry.entry_ttl.min(entry.attr_ttl);
            !reply.add(
                INodeNo(entry.id),
                listed.next,
                &listed.name,
                &ttl,
                &attr,
                reply::GENERATION,
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _timed = time(Op::Releasedir);
        self.fs.release(ino.0, fh.0, false);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Fsyncdir);
        let caller = caller(request);
        self.run(true, timed, move |fs| {
            reply::empty(reply, fs.fsync(fh.0, datasync, caller))
        });
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _timed = time(Op::Statfs);
        match self.fs.statfs(ino.0) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                stat.f_namemax as u32,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let timed = time(Op::Setxattr);
        let (flags, caller) = (flags as u32, caller(request));
        if self.fs.xattr_may_wait(ino.0, name) {
            let (name, value) = (name.to_owned(), value.to_owned());
            return self.run(true, timed, move |fs| {
                reply::empty(reply, fs.setxattr(ino.0, &name, &value, flags, caller));
            });
        }
        reply::empty(reply, self.fs.setxattr(ino.0, name, value, flags, caller));
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let timed = time(Op::Getxattr);
        let name = name.to_owned();
        let acl = self.acl && name.as_bytes().starts_with(b"system.posix_acl_");
        self.run(self.fs.xattr_may_wait(ino.0, &name), timed, move |fs| {
            let answer = match fs.getxattr(ino.0, &name, size as usize) {
                // a source without ACLs, as NFS: told so, the kernel would let no other user in
                Err(Error::Source(Errno::OPNOTSUPP)) if acl => Err(Errno::NODATA.into()),
                answer => answer,
            };
            reply::xattr(reply, answer);
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _timed = time(Op::Listxattr);
        reply::xattr(reply, self.fs.listxattr(ino.0, size as usize));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = time(Op::Removexattr);
        let name = name.to_owned();
        self.run(self.fs.xattr_may_wait(ino.0, &name), timed, move |fs| {
            reply::empty(reply, fs.removexattr(ino.0, &name));
        });
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // the kernel checks by itself (default_permissions) and learns here not to ask
        reply.error(FuseErrno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let timed = time(Op::Create);
        let (name, caller, passthrough) =
            (name.to_owned(), caller(request), self.passthrough.clone());
        self.run(touches_the_store(&name), timed, move |fs| {
            reply::create(
                reply,
                &passthrough,
                fs.create(parent.0, &name, mode, umask, flags, caller),
            );
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        // a `flock` cannot be asked for
        let wanted = lock::wanted(request, Sort::Range, owner, (start, end), kind, 0);
        let at = At {
            id: ino.0,
            handle: fh.0,
        };
        self.run(true, time(Op::Getlk), move |fs| {
            let answer = wanted.and_then(|wanted| fs.lock_in_the_way(at, &wanted));
            lock::in_the_way(reply, answer);
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let sort = lock::sort(request, fh, owner);
        let wanted =
            sort.and_then(|sort| lock::wanted(request, sort, owner, (start, end), kind, pid));
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => return reply::empty(reply, Err(error)),
        };
        let at = At {
            id: ino.0,
            handle: fh.0,
        };
        let Some(patient) = self.threads.patient() else {
            return reply.error(FuseErrno::EINTR);
        };
        let patiently = self.fs.clone();
        self.run(true, time(Op::Setlk), move |fs| {
            match fs.lock_at_once(at, &wanted, sleep) {
                Some(answer) => reply::empty(reply, answer),
                None => drop(patient.spawn_blocking(move || {
                    reply::empty(reply, patiently.await_lock(at, &wanted, sleep))
                })),
            }
        });
    }

    fn bmap(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _blocksize: u32,
        _idx: u64,
        reply: ReplyBmap,
    ) {
        reply.error(FuseErrno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(FuseErrno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(FuseErrno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _timed = time(Op::Fallocate);
        reply::empty(
            reply,
            self.fs
                .fallocate(fh.0, offset, length, mode, caller(request)),
        );
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _timed = time(Op::Lseek);
        match self.fs.lseek(fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(reply::errno(&error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let timed = time(Op::CopyFileRange);
        // the reply holds no more than 32 bits
        let length = len.min(u64::from(u32::MAX >> 1)) as usize;
        let caller = caller(request);
        self.run(true, timed, move |fs| {
            reply::write(
                reply,
                fs.copy_file_range((fh_in.0, offset_in), (fh_out.0, offset_out), length, caller),
            );
        });
    }
}
