//! A file that is about to become a generation, and the moment when it does.

use std::ffi::{CStr, OsStr, OsString};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, fremovexattr, fsetxattr, fsync, futimens, openat, renameat_with, unlinkat,
};
use rustix::io::pread;
use tracing::{error, warn};

use crate::error::{Errno, Error, InStep, Result};
use crate::fs::attr::{Attr, timespec};
use crate::fs::change::{SetAttr, change};
use crate::fs::credentials::Caller;
use crate::fs::inode::Place;
use crate::fs::plain::{self, XattrReply, list_xattrs, read_xattr, xattr_names};
use crate::nodb::leftovers::temporary_name;
use crate::step::{self, Step};

/// How much later than its base a generation must be for every participant to see it: `st_mtime`
/// as a float resolves some 0.2 µs, and cached signatures are compared to 1 µs (PROTOCOL.md 5).
const LATER: i128 = 10_000;

/// The extended attribute in which an access ACL lies.
const ACL: &CStr = c"system.posix_acl_access";

/// How long another daemon may take to take back what it published in vain over what we did.
pub const TAKE_BACK: Duration = Duration::from_secs(5);

/// Where a file system keeps no finer times, in nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// A complete file beside the controller, or one that a rename brings.
#[derive(Debug)]
pub struct Candidate {
    dir: Arc<OwnedFd>,
    name: OsString,
    fd: OwnedFd,
    target_dir: Arc<OwnedFd>,
    /// Whether the file is nodbfs's own and goes when it is not published.
    temporary: bool,
    synced: Synced,
    /// The base's ctime when its mode, owner and attributes were taken over, in nanoseconds since the epoch.
    taken_at: Option<i128>,
}

/// Whether a file is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Synced {
    No,
    Yes,
    /// The kernel forgets a failed `fsync`: a later one would succeed and say nothing.
    Failed(Errno),
}

impl Candidate {
    /// Writes `content` to a temporary file in `dir`. A new controller is the caller's; whoever
    /// `replaces` one may write the file, but perhaps not the directory.
    pub fn write(
        dir: Arc<OwnedFd>,
        content: &[u8],
        mode: u32,
        caller: Caller,
        replaces: bool,
    ) -> Result<Self> {
        step::at(Step::CreateTemporary)?;
        let name = OsString::from(temporary_name());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = || openat(&*dir, &name, flags, Mode::from_raw_mode(mode & 0o7777));
        let as_caller = {
            let _as_caller = caller.assume();
            create()
        };
        let fd = match as_caller {
            Err(Errno::ACCESS) if replaces => create(),
            answer => answer,
        };
        let fd = fd.in_step("create a temporary file")?;
        let candidate = Self {
            target_dir: dir.clone(),
            dir,
            name,
            fd,
            temporary: true,
            synced: Synced::No,
            taken_at: None,
        };
        candidate.fill(content)?;
        Ok(candidate)
    }

    /// The regular file `name` in `dir`, which a rename brings into `target_dir`.
    pub fn brought(dir: Arc<OwnedFd>, target_dir: Arc<OwnedFd>, name: &OsStr) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*dir, name, flags, Mode::empty())?;
        Ok(Self {
            dir,
            name: name.to_owned(),
            fd,
            target_dir,
            temporary: false,
            synced: Synced::No,
            taken_at: None,
        })
    }

    /// The open file.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn fill(&self, content: &[u8]) -> Result<()> {
        let mut written = 0;
        while written < content.len() {
            let part = step::part(&content[written..], written);
            written += plain::write(&self.fd, written as u64, part)?;
            if written < content.len() {
                step::at(Step::WriteRest)?;
            }
        }
        Ok(())
    }

    /// Takes over mode, owner and extended attributes of the base (promise 4), as they are now:
    /// they may have been changed since the writer opened it.
    pub fn take_after(&mut self, old: &OwnedFd) -> Result<()> {
        step::at(Step::TakeAfter)?;
        let base = Attr::of_fd(old)?;
        self.taken_at = Some(base.ctime);
        let now = Attr::of_fd(&self.fd)?;
        if (now.uid, now.gid) != (base.uid, base.gid) {
            let (uid, gid) = (Some(Uid::from_raw(base.uid)), Some(Gid::from_raw(base.gid)));
            self.touched();
            fchown(&self.fd, uid, gid).in_step("keep the owner")?;
        }
        if now.mode != base.mode {
            self.touched();
            fchmod(&self.fd, Mode::from_raw_mode(base.mode & 0o7777)).in_step("keep the mode")?;
        }
        self.drop_acl()?;
        self.copy_xattrs(old)
    }

    /// Whether `base` has nothing that was not taken over.
    pub fn is_after(&self, base: &Attr) -> bool {
        self.taken_at.is_none_or(|ctime| ctime == base.ctime)
    }

    /// A directory's default ACL grants nothing that the base did not.
    fn drop_acl(&mut self) -> Result<()> {
        // ext4 removes one that is not there too, and has the inode to write
        match fgetxattr(&self.fd, ACL, &mut [0u8; 0]) {
            Ok(_) => {
                self.touched();
                fremovexattr(&self.fd, ACL).in_step("keep the ACL")
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno).in_step("keep the ACL"),
        }
    }

    fn copy_xattrs(&mut self, old: &OwnedFd) -> Result<()> {
        let XattrReply::Size(size) = (match list_xattrs(old, 0) {
            Err(Error::Source(Errno::OPNOTSUPP)) => return Ok(()),
            answer => answer?,
        }) else {
            return Ok(());
        };
        if size == 0 {
            return Ok(());
        }
        let XattrReply::Data(list) = list_xattrs(old, size)? else {
            return Ok(());
        };
        self.touched();
        for name in xattr_names(list) {
            let XattrReply::Size(size) = read_xattr(old, &name, 0)? else {
                continue;
            };
            let value = match read_xattr(old, &name, size.max(1))? {
                XattrReply::Data(value) => value,
                XattrReply::Size(_) => Vec::new(),
            };
            fsetxattr(&self.fd, &name, &value, XattrFlags::empty())
                .in_step("keep the extended attributes")?;
        }
        Ok(())
    }

    /// The writer's own changes, and a time that tells it from the base.
    pub fn finish(&mut self, set: &SetAttr, base: Option<&Attr>, caller: Caller) -> Result<()> {
        if !set.is_empty() {
            self.touched();
            change(&self.fd, None, &SetAttr { size: None, ..*set }, caller)?;
        }
        if let Some(base) = base {
            step::at(Step::SetTime)?;
            self.later_than(base.mtime)?;
        }
        Ok(())
    }

    /// The way to the disk, for what is not there yet. A failure is final.
    pub fn sync(&mut self) -> Result<()> {
        if self.synced == Synced::No {
            let synced = step::at(Step::Sync).and_then(|()| fsync(&self.fd));
            self.synced = synced.map_or_else(Synced::Failed, |()| Synced::Yes);
        }
        match self.synced {
            Synced::Failed(errno) => Err(errno).in_step("fsync the new generation"),
            _ => Ok(()),
        }
    }

    /// Something is about to change that has to be on stable storage too.
    fn touched(&mut self) {
        if self.synced == Synced::Yes {
            self.synced = Synced::No;
        }
    }

    /// Strictly later than the base, by so much that nobody takes one for the other.
    fn later_than(&mut self, base: i128) -> Result<()> {
        for mtime in [base + LATER, (base / SECOND + 2) * SECOND] {
            if Attr::of_fd(&self.fd)?.mtime >= base + LATER {
                break;
            }
            let omit = rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            };
            let times = Timestamps {
                last_access: omit,
                last_modification: timespec(mtime),
            };
            self.touched();
            futimens(&self.fd, &times).in_step("set a later mtime")?;
        }
        Ok(())
    }

    /// Step 6: the name `place` leads to this file, in place of `base` and of nothing else. A pause
    /// at any instruction can at worst show for a moment what is then taken back. It is durable after
    /// [`Published::sync_dirs`].
    pub fn publish(mut self, place: &Place, base: Option<&Attr>) -> Result<Published> {
        let attr = Attr::of_fd(&self.fd)?;
        let target = place.name.clone();
        let back = match base {
            Some(base) => self.exchange(&target, base)?,
            None => self.link_in(&target)?,
        };
        // what lies under the old name is no longer the candidate
        let temporary = std::mem::take(&mut self.temporary);
        Ok(Published {
            candidate: self,
            target,
            attr,
            back,
            temporary,
        })
    }

    /// Takes the place of `base` only, and says how that can be taken back.
    fn exchange(&mut self, target: &OsStr, base: &Attr) -> Result<Option<RenameFlags>> {
        step::at(Step::Exchange)?;
        match self.rename_to(target, RenameFlags::EXCHANGE) {
            Ok(()) => {
                let out = step::at(Step::Look).and_then(|()| Attr::of_name(&*self.dir, &self.name));
                if out.is_ok_and(|out| out.stamp() == base.stamp()) {
                    return Ok(Some(RenameFlags::EXCHANGE));
                }
                // unless that succeeds, somebody else's file is under the temporary name
                let temporary = std::mem::take(&mut self.temporary);
                step::at(Step::TakeBack)?;
                self.take_back(target)
                    .in_step("take a stale publication back")?;
                self.temporary = temporary;
                Err(Error::StaleBase)
            }
            Err(Errno::NOENT) => Err(Error::StaleBase),
            Err(errno) if is_unsupported(errno) => {
                // NFS and the like: the check and the rename stand side by side
                let now = Attr::of_fd_now(&*self.target_dir)
                    .and_then(|_| Attr::of_name_now(&*self.target_dir, target));
                if !now.is_ok_and(|now| now.stamp() == base.stamp()) {
                    return Err(Error::StaleBase);
                }
                self.rename_to(target, RenameFlags::empty())
                    .in_step("publish")?;
                Ok(None)
            }
            Err(errno) => Err(errno).in_step("publish"),
        }
    }

    /// The name leads again to what it led to before. Others may have put theirs in the place of what was
    /// published in vain: if for good, theirs stays; if in vain, too, each waits to get its own file back.
    fn take_back(&self, target: &OsStr) -> std::result::Result<(), Errno> {
        let own = Attr::of_fd(&self.fd)?.ident;
        let is_back = || Ok(Attr::of_name(&*self.dir, &self.name)?.ident == own);
        let give_up = Instant::now() + TAKE_BACK;
        while Attr::of_fd(&self.fd)?.nlink > 0 {
            // the second puts back what is neither ours nor was there before
            for _ in 0..2 {
                self.rename_to(target, RenameFlags::EXCHANGE)?;
                if is_back()? {
                    return Ok(());
                }
            }
            if Instant::now() > give_up {
                return Err(Errno::BUSY);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Takes a name that is free.
    fn link_in(&self, target: &OsStr) -> Result<Option<RenameFlags>> {
        step::at(Step::LinkIn)?;
        match self.rename_to(target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(RenameFlags::NOREPLACE)),
            Err(Errno::EXIST) => Err(Error::StaleBase),
            Err(errno) if is_unsupported(errno) => {
                if Attr::of_name(&*self.target_dir, target).is_ok() {
                    return Err(Error::StaleBase);
                }
                self.rename_to(target, RenameFlags::empty())
                    .in_step("publish")?;
                Ok(None)
            }
            Err(errno) => Err(errno).in_step("publish"),
        }
    }

    fn rename_to(&self, target: &OsStr, flags: RenameFlags) -> std::result::Result<(), Errno> {
        renameat_with(&*self.dir, &self.name, &*self.target_dir, target, flags)
    }

    fn rename_in_place(&self, to: &OsStr) -> std::result::Result<(), Errno> {
        renameat_with(&*self.dir, &self.name, &*self.dir, to, RenameFlags::empty())
    }

    /// Makes the names durable.
    pub fn sync_dirs(&self) -> Result<()> {
        self.try_sync_dirs().in_step("fsync the directory")
    }

    fn try_sync_dirs(&self) -> std::result::Result<(), Errno> {
        step::at(Step::SyncDir)?;
        sync_dir(&self.target_dir)?;
        if !Arc::ptr_eq(&self.dir, &self.target_dir) {
            sync_dir(&self.dir)?;
        }
        // xfs that has shut down meanwhile says so of a file, and not always of a directory
        pread(&self.fd, &mut [0; 1], 0).map(drop)
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.temporary
            && let Err(errno) = step::at(Step::RemoveTemporary)
                .and_then(|()| unlinkat(&*self.dir, &self.name, AtFlags::empty()))
        {
            warn!(%errno, name = ?self.name, "temporary file left behind");
        }
    }
}

/// A publication that can still be taken back.
#[derive(Debug)]
pub struct Published {
    candidate: Candidate,
    target: OsString,
    attr: Attr,
    /// How the candidate gets its old name back; `None`: it cannot.
    back: Option<RenameFlags>,
    /// Whether the candidate is nodbfs's own and goes when it is taken back.
    temporary: bool,
}

impl Published {
    /// The attributes of the file that was published.
    pub fn attr(&self) -> Attr {
        self.attr
    }

    /// Whether the file has lost the name: somebody has put another in its place for good.
    pub fn is_replaced(&self) -> Result<bool> {
        Ok(Attr::of_fd(&self.candidate.fd)?.nlink < self.attr.nlink)
    }

    /// Makes the publication durable.
    pub fn sync_dirs(&self) -> Result<()> {
        self.candidate.sync_dirs()
    }

    /// The old generation, which lies under the candidate's old name, goes: it is given to be removed
    /// where nobody waits for that. The name of a file that was brought is free at once.
    pub fn settle(mut self) -> Option<Candidate> {
        if self.back != Some(RenameFlags::EXCHANGE) {
            return None;
        }
        self.candidate.temporary = true;
        if !self.temporary {
            let hidden = OsString::from(temporary_name());
            self.candidate
                .rename_in_place(&hidden)
                .inspect_err(|errno| warn!(%errno, name = ?self.candidate.name, "removed at once"))
                .ok()?;
            self.candidate.name = hidden;
        }
        Some(self.candidate)
    }

    /// The old generation comes back; what was published takes its old name again. Where that fails,
    /// both files stay.
    pub fn undo(mut self) {
        match self.take_back() {
            Ok(()) => self.candidate.temporary = self.temporary,
            Err(errno) => {
                error!(%errno, name = ?self.target, "a bad publication could not be taken back")
            }
        }
    }

    /// As with the publication itself, what comes out says whether it was the right moment.
    fn take_back(&self) -> std::result::Result<(), Errno> {
        let Candidate {
            dir,
            name,
            target_dir,
            ..
        } = &self.candidate;
        let back = self.back.ok_or(Errno::OPNOTSUPP)?;
        step::at(Step::Undo)?;
        if back == RenameFlags::EXCHANGE {
            return self.candidate.take_back(&self.target);
        }
        renameat_with(&**target_dir, &self.target, &**dir, name, back)?;
        if Attr::of_name(&**dir, name).is_ok_and(|out| out.stamp() != self.attr.stamp()) {
            // a neighbour has replaced it meanwhile, and its generation stands
            renameat_with(&**dir, name, &**target_dir, &self.target, back)?;
        }
        Ok(())
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &OwnedFd) -> std::result::Result<(), Errno> {
    // the descriptor at hand is O_PATH, which cannot be synced
    fsync(openat(
        dir,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// What file systems without `RENAME_EXCHANGE` or `RENAME_NOREPLACE` answer.
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}
