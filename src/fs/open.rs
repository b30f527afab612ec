//! Opening, closing and syncing.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::fs::attr::{Attr, is_settled};
use crate::fs::credentials::Caller;
use crate::fs::flush::flush;
use crate::fs::handle::Handle;
use crate::fs::inode::{Inode, maps};
use crate::fs::local::is_local;
use crate::fs::locks::Through;
use crate::fs::pages::Treat;
use crate::fs::{Entry, Fs, Open, Opened, plain};
use crate::nodb::caller;
use crate::nodb::controller::Controller;
use crate::nodb::generation::{Generation, Payload};
use crate::nodb::lock::Asking;
use crate::nodb::staging::{Staging, Writer};
use crate::node::{Node, is_controller};

/// Where an `open` leads.
enum Way {
    Here(Open),
    /// The kernel is to look the controller's name up again and will find what the caller needs.
    Back(Arc<Controller>),
}

impl Fs {
    /// Opens what needs no waiting; `None`: ask [`Fs::open`].
    pub fn open_at_once(&self, id: u64, flags: i32, caller: Caller) -> Option<Result<Open>> {
        match self.plain.inodes.get(id) {
            Ok(Node::Generation(generation)) if !writes(flags) && !generation.has_departed() => {
                let hot = self.nodb.open_hot(&generation, caller.tid).transpose()?;
                Some(hot.map(|payload| self.reader(payload)))
            }
            Ok(Node::Plain(inode)) => {
                let plain = inode.is_named(is_controller) != Some(true);
                plain.then(|| self.open_plain(&inode, flags, caller))
            }
            Ok(Node::Staging(staging))
                if staging.is_ready() && self.is_expected(&staging, flags, caller) =>
            {
                Some(self.enter(&staging, flags, caller))
            }
            Ok(Node::Log(file)) => Some(self.open_log(file, flags, caller)),
            Ok(Node::Generation(_) | Node::Staging(_) | Node::Lock(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Opens a node. ESTALE sends the kernel back to look the name up again. There may be something
    /// left to do when `answer` has been called.
    pub fn open(&self, id: u64, flags: i32, caller: Caller, answer: impl FnOnce(Result<Open>)) {
        match self.find(id, flags, caller) {
            Ok(Way::Here(open)) => answer(Ok(open)),
            Ok(Way::Back(controller)) if writes(flags) => {
                let asking = asking(flags, caller);
                self.nodb
                    .open_writer(&controller, flags, asking, |error| answer(Err(error)));
            }
            Ok(Way::Back(controller)) => {
                controller.expect_reader(caller.tid);
                answer(Err(Error::Superseded));
            }
            Err(error) => answer(Err(error)),
        }
    }

    fn find(&self, id: u64, flags: i32, caller: Caller) -> Result<Way> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => match self.became(&inode) {
                Some(controller) => Ok(Way::Back(controller)),
                None => self.open_plain(&inode, flags, caller).map(Way::Here),
            },
            Node::Generation(generation) => self.find_generation(&generation, flags, caller),
            Node::Staging(staging) => self.find_staging(&staging, flags, caller),
            Node::Log(file) => self.open_log(file, flags, caller).map(Way::Here),
            Node::Lock(file) => {
                let asking = asking(flags, caller);
                let open = self.nodb.open_lock(&file, flags, asking)?;
                Ok(Way::Here(self.lock_opened(open)))
            }
        }
    }

    fn open_plain(&self, inode: &Arc<Inode>, flags: i32, caller: Caller) -> Result<Open> {
        let (attr, fd) = self.plain.open(inode, flags, caller)?;
        if maps(flags) {
            // writes through a shared mapping change its times, of which the kernel's FUSE client does not hear
            self.nodb.kernel().attributes_changed(inode.id);
        }
        Ok(self.plain_opened(inode, &attr, fd, writes(flags)))
    }

    fn plain_opened(
        &self,
        inode: &Arc<Inode>,
        attr: &Attr,
        fd: Arc<OwnedFd>,
        writes: bool,
    ) -> Open {
        let local = self.plain.inodes.is_local(&inode.ident);
        let flush = inode.is_locked_in_ranges() || writes && !local && !is_local(&*fd);
        Open {
            handle: self.handles.add(Handle::File(fd.clone()), flush),
            opened: Opened::Plain {
                flush,
                fd,
                treat: Treat::new(inode, attr, writes, local),
            },
        }
    }

    fn find_generation(&self, generation: &Generation, flags: i32, caller: Caller) -> Result<Way> {
        if generation.has_departed() {
            return Err(Error::Superseded);
        }
        if writes(flags) {
            return Ok(Way::Back(generation.controller.clone()));
        }
        let payload = self.nodb.open_cold(generation, caller.tid)?;
        Ok(Way::Here(self.reader(payload)))
    }

    fn find_staging(&self, staging: &Arc<Staging>, flags: i32, caller: Caller) -> Result<Way> {
        let controller = &staging.controller;
        if self.is_expected(staging, flags, caller) {
            return self.enter(staging, flags, caller).map(Way::Here);
        }
        // once more, by way of /proc/self/fd
        if Some(staging.tgid) == caller::process_of(caller.tid) {
            if flags & libc::O_TRUNC != 0 {
                staging.draft().empty();
            }
            staging.opened();
            return Ok(Way::Here(self.writer(staging, flags)));
        }
        if caller.tid == 0 && !writes(flags) {
            // nobody can tell the threads of invisible processes apart: serve it here
            let loaded = self.nodb.load(controller)?;
            return Ok(Way::Here(Open {
                handle: self.handles.add(Handle::Reader(loaded.payload), true),
                opened: Opened::Direct,
            }));
        }
        Ok(Way::Back(controller.clone()))
    }

    /// The writer for whom `staging` was made has come.
    fn enter(&self, staging: &Arc<Staging>, flags: i32, caller: Caller) -> Result<Open> {
        self.nodb.enter(staging, flags, asking(flags, caller))?;
        Ok(self.writer(staging, flags))
    }

    /// Whether the caller was sent back to look for just this staging.
    fn is_expected(&self, staging: &Arc<Staging>, flags: i32, caller: Caller) -> bool {
        let own = staging.controller.staging_for(caller.tid);
        writes(flags) && own.is_some_and(|own| Arc::ptr_eq(&own, staging))
    }

    fn reader(&self, payload: Arc<Payload>) -> Open {
        Open {
            handle: self.handles.add(Handle::Reader(payload), false),
            opened: Opened::Generation,
        }
    }

    /// A handle more on `staging`, which has counted it.
    fn writer(&self, staging: &Arc<Staging>, flags: i32) -> Open {
        let writer = Writer {
            staging: staging.clone(),
            append: flags & libc::O_APPEND != 0,
        };
        Open {
            handle: self.handles.add(Handle::Writer(Arc::new(writer)), true),
            opened: Opened::Direct,
        }
    }

    /// Creates and opens a file.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Open)> {
        let place = self.place(parent, name)?;
        if is_controller(name) {
            let controller = self.nodb.controllers.at(&place);
            let staging =
                self.nodb
                    .create(&controller, mode & !umask, flags, asking(flags, caller))?;
            staging.opened();
            let open = self.writer(&staging, flags);
            return Ok((self.staging_entry(staging), open));
        }
        if let Some(controller) = self.locked_at(&place)? {
            return self.create_lock(
                &controller,
                flags & libc::O_EXCL != 0,
                asking(flags, caller),
            );
        }
        let (inode, attr, fd) = self.plain.create(&place, mode, umask, flags, caller)?;
        let open = self.plain_opened(&inode, &attr, fd, true);
        Ok((self.plain_entry(name, &inode, attr), open))
    }

    /// Opens a directory.
    pub fn opendir(&self, id: u64) -> Result<Open> {
        let inode = self.plain.inodes.plain(id)?;
        let dir = self.plain.opendir(&inode)?;
        let changed = dir.attr()?.mtime;
        let keep = inode.is_listed(is_settled(changed).then_some(changed), self.plain_ttl);
        let handle = self.handles.add(Handle::Dir(Arc::new(dir)), false);
        Ok(Open {
            handle,
            opened: Opened::Directory { keep },
        })
    }

    /// Whether closing a descriptor of `handle`, or the last one, may wait.
    pub fn close_may_wait(&self, handle: u64) -> bool {
        match self.handles.get(handle) {
            Ok(Handle::Writer(_) | Handle::Log(_)) => true,
            Ok(Handle::Reader(_)) => self.nodb.any_flock(),
            _ => false,
        }
    }

    /// One of the descriptors of an open file is closed, by whom the kernel calls `owner` of its locks.
    pub fn flush(&self, id: u64, handle: u64, owner: u64, caller: Caller) -> Result<()> {
        match self.handles.get(handle)? {
            Handle::File(fd) => {
                self.plain.locks.closed(id, owner);
                flush(&*fd)
            }
            Handle::Writer(writer) => {
                let flushed = self.nodb.flush(&writer, asking(0, caller));
                self.nodb.flock_closed(&writer.staging.controller, owner);
                flushed
            }
            Handle::Log(log) => self.nodb.flush_log(&log, caller),
            Handle::Reader(_) | Handle::Dir(_) | Handle::Lock(_) => Ok(()),
        }
    }

    /// `fsync`, or `fdatasync`; of a controller: a commit.
    pub fn fsync(&self, handle: u64, data_only: bool, caller: Caller) -> Result<()> {
        match self.handles.get(handle)? {
            Handle::File(fd) => plain::sync(&fd, data_only),
            Handle::Writer(writer) => self.nodb.sync(&writer, asking(0, caller)),
            Handle::Dir(dir) => plain::sync(dir.fd(), data_only),
            Handle::Reader(_) | Handle::Lock(_) | Handle::Log(_) => Ok(()),
        }
    }

    /// The last descriptor is gone: nothing can be reported any more, only cleaned up. With `flocked`, it
    /// has had a `flock`.
    pub fn release(&self, id: u64, handle: u64, flocked: bool) {
        match self.handles.remove(handle) {
            Some(Handle::File(fd)) => {
                let through = Through {
                    id,
                    handle,
                    fd: &fd,
                };
                self.plain.locks.released(through, flocked);
            }
            Some(Handle::Writer(writer)) => {
                if writer.staging.closed() {
                    self.nodb.abandon(&writer);
                }
                self.nodb.flock_released(handle);
            }
            Some(Handle::Reader(_)) => self.nodb.flock_released(handle),
            Some(Handle::Log(log)) => self.nodb.release_log(&log),
            Some(Handle::Dir(_) | Handle::Lock(_)) | None => {}
        }
    }

    /// The mount has ended, and the kernel tells of no closing any more: whatever is open is released, so that nothing
    /// is lost and no lock stays. It returns within the time of a few requests to the store.
    pub fn end(&self) {
        let _one = self.end.lock();
        let open = self.handles.take();
        let writers = open.iter().filter_map(|handle| match handle {
            Handle::Writer(writer) => Some(writer),
            _ => None,
        });
        let left: Vec<_> = writers.filter(|writer| writer.staging.closed()).collect();
        // what cannot be had again comes first
        for writer in &left {
            let why = match writer.staging.is_committing() {
                false => "the mount ended before it was closed",
                true => "the mount ended during its commit",
            };
            self.nodb.keep_left(writer, why);
        }
        for writer in left.iter().filter(|writer| !writer.staging.is_committing()) {
            writer.staging.desert();
        }
        for handle in &open {
            if let Handle::Log(log) = handle {
                self.nodb.release_log(log);
            }
        }
        self.nodb.end();
    }
}

fn asking(flags: i32, caller: Caller) -> Asking {
    Asking {
        nonblocking: flags & libc::O_NONBLOCK != 0,
        ..Asking::by(caller)
    }
}

/// Whether an `open` with these flags can change the file.
pub fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}
