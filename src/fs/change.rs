//! What a `setattr` changes, and which bits of its mode a changed file loses.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat,
    chownat, ftruncate, openat, utimensat,
};

use crate::error::Result;
use crate::fs::attr::{Attr, timespec};
use crate::fs::credentials::Caller;
use crate::fs::inode::reopen_path;

/// A time as `utimensat` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    /// Nanoseconds since the epoch.
    At(i128),
}

/// What a `setattr` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// Changes attributes of the file behind `fd`, which may be `O_PATH`.
pub fn change(
    fd: &impl AsFd,
    handle: Option<&OwnedFd>,
    set: &SetAttr,
    caller: Caller,
) -> Result<()> {
    if set.uid.is_some() || set.gid.is_some() {
        if caller.uid != 0 {
            kill_privileges(fd, caller)?;
        }
        let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if let Some(size) = set.size {
        match handle {
            Some(handle) => ftruncate(handle, size)?,
            None => ftruncate(
                openat(
                    CWD,
                    reopen_path(fd),
                    OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?,
                size,
            )?,
        }
        if set.mode.is_none() && caller.uid != 0 {
            kill_privileges(fd, caller)?;
        }
    }
    if let Some(mode) = set.mode {
        // the mode of a symlink cannot be changed; following /proc to it would change nothing else
        chmodat(
            CWD,
            reopen_path(fd),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )?;
    }
    if set.atime.is_some() || set.mtime.is_some() {
        let times = Timestamps {
            last_access: time(set.atime),
            last_modification: time(set.mtime),
        };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// A changed file is set-uid no more: the daemon's own rights must not spare the bits.
pub fn kill_privileges(fd: &impl AsFd, caller: Caller) -> Result<()> {
    keep_mode(fd, |attr| {
        let set_gid = if attr.mode & libc::S_IXGRP != 0 {
            libc::S_ISGID
        } else {
            foreign_set_gid(attr, caller)
        };
        if attr.is_file() {
            attr.mode & !libc::S_ISUID & !set_gid
        } else {
            attr.mode
        }
    })
}

/// The set-gid bit, unless the caller is in the file's group.
pub fn foreign_set_gid(attr: &Attr, caller: Caller) -> u32 {
    if attr.mode & libc::S_ISGID != 0 && !caller.is_in(attr.gid) {
        libc::S_ISGID
    } else {
        0
    }
}

/// Leaves a file only the bits of its mode that `kept` names.
pub fn keep_mode(fd: &impl AsFd, kept: impl FnOnce(&Attr) -> u32) -> Result<()> {
    let attr = Attr::of_fd(fd)?;
    let kept = kept(&attr);
    if kept != attr.mode {
        chmodat(
            CWD,
            reopen_path(fd),
            Mode::from_raw_mode(kept & 0o7777),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}

fn time(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(nanos)) => timespec(nanos),
    }
}
