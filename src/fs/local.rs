//! Which file systems are this host's alone, and which want to know of every read.

use rustix::fd::AsFd;
use rustix::fs::{StatVfsMountFlags, fstatfs, fstatvfs};

/// `f_type` of file systems that change only through this host's kernel: ext4, XFS, btrfs, tmpfs,
/// F2FS, bcachefs, ZFS.
const LOCAL: [i64; 7] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
];

/// Whether the file behind `fd` changes only through this host's kernel, and has no more to say at
/// `close` than it said at `write`.
pub fn is_local(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|fs| LOCAL.contains(&fs.f_type))
}

/// Whether each read leaves its time (`-o strictatime`), so that none may be answered from memory.
pub fn is_strictatime(fd: impl AsFd) -> bool {
    let otherwise = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME;
    fstatvfs(fd).is_ok_and(|fs| !fs.f_flag.intersects(otherwise))
}
