//! `fcntl` and `flock`: which lock is meant, and the wait for it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use crate::error::{Errno, Result};
use crate::fs::Fs;
use crate::fs::handle::Handle;
use crate::fs::locks::{InTheWay, Sort, Through, Wanted};
use crate::nodb::caller;
use crate::nodb::controller::Controller;
use crate::nodb::flock::Open;
use crate::nodb::staging::Writer;
use crate::node::Node;

/// The pauses between two attempts at a lock: the first, doubled with each, and the longest. Only who holds
/// it beside the mount is waited for by trying; what is given back through the mount is told.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// For how long a lock is tried for somebody who does not wait, if it may be one that is just being given
/// back.
const SETTLE: Duration = Duration::from_millis(50);

/// The open file through which a lock is asked for, by the kernel's numbers.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub id: u64,
    pub handle: u64,
}

impl At {
    fn through(self, fd: &Arc<OwnedFd>) -> Through<'_> {
        Through {
            id: self.id,
            handle: self.handle,
            fd,
        }
    }
}

/// What a lock is to be on.
enum On {
    Plain(Arc<OwnedFd>),
    Controller(Arc<Controller>, Option<Arc<Writer>>),
}

impl Fs {
    /// Locks or unlocks, if that needs no waiting; `None`: to be asked of [`Fs::await_lock`], by a thread
    /// that may wait. Whoever holds the lock may need those that others wait in.
    pub fn lock_at_once(&self, at: At, wanted: &Wanted, waits: bool) -> Option<Result<()>> {
        // asked first: what is given back during the attempt is in nobody's way after it
        let waits = waits || self.may_settle(at, wanted);
        match self.try_lock(at, wanted) {
            Err(error) if waits && error.errno() == Errno::AGAIN => None,
            answer => Some(answer),
        }
    }

    /// Locks; `waits`: for as long as it takes, or until a signal comes.
    pub fn await_lock(&self, at: At, wanted: &Wanted, waits: bool) -> Result<()> {
        let cancelled = || self.nodb.is_ending() || caller::is_interrupted(wanted.caller.tid);
        let start = Instant::now();
        if let On::Controller(controller, writer) = self.on(at)? {
            let open = open(&controller, at, writer.as_deref());
            let settles = || start.elapsed() < SETTLE && self.may_settle(at, wanted);
            while !waits && (self.nodb.is_flock_closing(open) || settles()) {
                thread::sleep(PAUSES.0);
            }
            let cancelled: &dyn Fn() -> bool = &cancelled;
            return self.nodb.flock(open, wanted, waits.then_some(cancelled));
        }
        let waiter = self.plain.locks.changes.watch(at.id);
        let mut pause = PAUSES.0;
        loop {
            let seen = waiter.seen();
            let tried = self.try_lock(at, wanted);
            match &tried {
                Err(error) if error.errno() == Errno::AGAIN => {}
                _ => return tried,
            }
            if !waits && start.elapsed() > SETTLE {
                return tried;
            }
            if cancelled() {
                return Err(Errno::INTR.into());
            }
            waiter.wait(seen, pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One attempt. EAGAIN: another lock is in the way.
    fn try_lock(&self, at: At, wanted: &Wanted) -> Result<()> {
        let fd = match self.on(at)? {
            On::Plain(fd) => fd,
            On::Controller(controller, writer) => {
                let open = open(&controller, at, writer.as_deref());
                return self.nodb.flock(open, wanted, None);
            }
        };
        if wanted.sort == Sort::Range
            && wanted.strength.is_some()
            && let Node::Plain(inode) = self.plain.inodes.get(at.id)?
        {
            inode.locked_in_ranges();
        }
        self.plain.locks.set(at.through(&fd), wanted)?;
        if wanted.strength.is_some() {
            // whoever had the lock before may have changed the file beside the mount
            self.nodb.kernel().attributes_changed(at.id);
        }
        Ok(())
    }

    /// Whether what is in the way may be a lock whose file has been closed.
    fn may_settle(&self, at: At, wanted: &Wanted) -> bool {
        match self.on(at) {
            Ok(On::Plain(_)) => self.plain.locks.may_be_closed(at.id, at.handle, wanted),
            Ok(On::Controller(controller, _)) => self
                .nodb
                .flock_may_be_closed(open(&controller, at, None), wanted),
            Err(_) => false,
        }
    }

    /// The lock that keeps `wanted` from being set.
    pub fn lock_in_the_way(&self, at: At, wanted: &Wanted) -> Result<Option<InTheWay>> {
        match self.on(at)? {
            On::Plain(fd) => self.plain.locks.in_the_way(at.through(&fd), wanted),
            On::Controller(controller, _) => self
                .nodb
                .flock_in_the_way(open(&controller, at, None), wanted),
        }
    }

    fn on(&self, at: At) -> Result<On> {
        match self.handles.get(at.handle)? {
            Handle::File(fd) => Ok(On::Plain(fd)),
            Handle::Writer(writer) => {
                let controller = writer.staging.controller.clone();
                Ok(On::Controller(controller, Some(writer)))
            }
            Handle::Reader(_) => match self.plain.inodes.get(at.id)? {
                Node::Generation(generation) => {
                    Ok(On::Controller(generation.controller.clone(), None))
                }
                Node::Staging(staging) => Ok(On::Controller(staging.controller.clone(), None)),
                Node::Plain(_) | Node::Lock(_) | Node::Log(_) => Err(Errno::BADF.into()),
            },
            Handle::Dir(_) => Err(Errno::BADF.into()),
            // its being there is the lock
            Handle::Lock(_) | Handle::Log(_) => Err(Errno::OPNOTSUPP.into()),
        }
    }

    /// The mount is about to end: nobody waits for a lock any more.
    pub fn end_waits(&self) {
        self.nodb.end_waits();
    }
}

fn open<'a>(controller: &'a Arc<Controller>, at: At, writer: Option<&'a Writer>) -> Open<'a> {
    Open {
        controller,
        handle: at.handle,
        writer,
    }
}
