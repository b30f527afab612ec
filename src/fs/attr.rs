//! What `stat` says of a lower file, and how two such answers are compared.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, StatxTimestamp, makedev, statx};
use rustix::path::Arg;

use crate::error::Errno;
use crate::nodb::document::Signature;

/// Nanoseconds in a second.
const NANOS: i128 = 1_000_000_000;

/// Which lower file it is. The birth time tells a file from a later one that got the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ident {
    /// As the kernel has it: 12 bits of major, 20 of minor number.
    pub dev: u32,
    pub ino: u64,
    /// Nanoseconds since the epoch, of which 64 bits tell two files apart in any year; 0 where the file
    /// system keeps none.
    pub btime: i64,
    /// The file type bits of the mode.
    pub format: u32,
}

/// The attributes of a lower file.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    pub ident: Ident,
    pub size: u64,
    pub blocks: u64,
    pub blksize: u32,
    /// Type and permission bits.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Times in nanoseconds since the epoch.
    pub atime: i128,
    pub mtime: i128,
    pub ctime: i128,
}

/// What must be equal for two looks at a name to have seen the same generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    ident: Ident,
    size: u64,
    mtime: i128,
}

impl Attr {
    /// The attributes of `name` in `dir`, of the link itself where it is one.
    pub fn of_name(dir: impl AsFd, name: impl Arg) -> Result<Self, Errno> {
        Self::look(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// As [`Attr::of_name`], from the server where there is one: a network file system may otherwise
    /// answer from memory.
    pub fn of_name_now(dir: impl AsFd, name: impl Arg) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        Self::look(dir, name, flags)
    }

    /// The attributes of an open descriptor.
    pub fn of_fd(fd: impl AsFd) -> Result<Self, Errno> {
        Self::look(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
    }

    /// As [`Attr::of_fd`], from the server where there is one. NFS believes a directory's names for as
    /// long as its attributes, up to a minute: after this they are asked for anew if it has changed.
    pub fn of_fd_now(fd: impl AsFd) -> Result<Self, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        Self::look(fd, c"", flags)
    }

    /// The attributes of what a path leads to.
    pub fn of_path(path: impl Arg) -> Result<Self, Errno> {
        Self::look(CWD, path, AtFlags::empty())
    }

    fn look(fd: impl AsFd, name: impl Arg, flags: AtFlags) -> Result<Self, Errno> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        Ok(Self::from(&statx(fd, name, flags, wanted)?))
    }

    /// The type of the file.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::RegularFile
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether it is a file that runs with its owner's or its group's rights.
    pub fn is_set_id(&self) -> bool {
        self.is_file() && self.mode & (libc::S_ISUID | libc::S_ISGID) != 0
    }

    /// `(mtime, size)`, by which NoDb processes tell generations apart (PROTOCOL.md 5).
    pub fn signature(&self) -> Signature {
        Signature {
            mtime_ns: self.mtime,
            size: self.size,
        }
    }

    /// What tells this generation from any other.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            ident: self.ident,
            size: self.size,
            mtime: self.mtime,
        }
    }
}

impl From<&Statx> for Attr {
    fn from(stat: &Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        let kept = StatxFlags::from_bits_retain(stat.stx_mask);
        Self {
            ident: Ident {
                dev: stat.stx_dev_major << 20 | stat.stx_dev_minor,
                ino: stat.stx_ino,
                btime: if kept.contains(StatxFlags::BTIME) {
                    nanos(stat.stx_btime) as i64
                } else {
                    0
                },
                format: mode & libc::S_IFMT,
            },
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            blksize: stat.stx_blksize,
            mode,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            atime: nanos(stat.stx_atime),
            mtime: nanos(stat.stx_mtime),
            ctime: nanos(stat.stx_ctime),
        }
    }
}

fn nanos(time: StatxTimestamp) -> i128 {
    i128::from(time.tv_sec) * NANOS + i128::from(time.tv_nsec)
}

/// Nanoseconds since the epoch as seconds and the rest, for the kernel.
pub fn timespec(nanos: i128) -> rustix::fs::Timespec {
    rustix::fs::Timespec {
        tv_sec: nanos.div_euclid(NANOS) as i64,
        tv_nsec: nanos.rem_euclid(NANOS) as i64,
    }
}

/// Nanoseconds since the epoch as the standard library's time.
pub fn system_time(nanos: i128) -> SystemTime {
    let distance = nanos.unsigned_abs();
    // as seconds and the rest: 64 bits of nanoseconds end in the year 2554
    let span = Duration::new(
        (distance / NANOS.unsigned_abs()) as u64,
        (distance % NANOS.unsigned_abs()) as u32,
    );
    if nanos < 0 {
        UNIX_EPOCH - span
    } else {
        UNIX_EPOCH + span
    }
}

/// What changed this recently may change again within the grain of its time stamp, in nanoseconds.
const GRAIN: i128 = 20_000_000;

/// Whether what changed at `time` will not change again without its time stamp saying so.
pub fn is_settled(time: i128) -> bool {
    unix_nanos(SystemTime::now()) - time > GRAIN
}

/// The standard library's time as nanoseconds since the epoch.
pub fn unix_nanos(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_age_survive_the_way_there_and_back() {
        for nanos in [0, 1, -1, -5_999_999_999, (1_i128 << 40) * NANOS + 3] {
            assert_eq!(unix_nanos(system_time(nanos)), nanos);
        }
    }
}
