//! `fcntl` locks of an open file description (`F_OFD_SETLK`): they conflict with those of processes and
//! are not lost when the daemon closes another descriptor of the file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{Strength, ranges};
use crate::error::{Errno, Result};

/// A lock in the way; `pid` is -1 where it is an open file description's.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub first: u64,
    pub last: u64,
    pub strength: Strength,
    pub pid: i32,
}

/// Locks or unlocks, without waiting. EAGAIN: another lock is in the way.
pub fn set(fd: &OwnedFd, first: u64, last: u64, strength: Option<Strength>) -> Result<()> {
    call(fd, libc::F_OFD_SETLK, &mut lock(first, last, strength)?)
}

/// What keeps such a lock from being set.
pub fn test(fd: &OwnedFd, first: u64, last: u64, strength: Strength) -> Result<Option<Found>> {
    let mut lock = lock(first, last, Some(strength))?;
    call(fd, libc::F_OFD_GETLK, &mut lock)?;
    let strength = match i32::from(lock.l_type) {
        libc::F_RDLCK => Strength::Shared,
        libc::F_WRLCK => Strength::Exclusive,
        _ => return Ok(None),
    };
    let first = u64::try_from(lock.l_start).map_err(|_| Errno::IO)?;
    let last = match u64::try_from(lock.l_len) {
        Ok(0) => ranges::END,
        Ok(length) => first.saturating_add(length - 1).min(ranges::END),
        Err(_) => return Err(Errno::IO.into()),
    };
    Ok(Some(Found {
        first,
        last,
        strength,
        pid: lock.l_pid,
    }))
}

fn lock(first: u64, last: u64, strength: Option<Strength>) -> Result<libc::flock> {
    if first > last || last > ranges::END {
        return Err(Errno::INVAL.into());
    }
    let kind = match strength {
        Some(Strength::Shared) => libc::F_RDLCK,
        Some(Strength::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    // to the end of all files is written as nought
    let length = match last {
        ranges::END => 0,
        _ => last - first + 1,
    };
    Ok(libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: first as i64,
        l_len: length as i64,
        l_pid: 0,
    })
}

fn call(fd: &OwnedFd, command: i32, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: the descriptor is open, and these commands take a pointer to such a structure.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => {
            let error = io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO).into())
        }
        _ => Ok(()),
    }
}
