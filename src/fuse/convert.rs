//! Between the operations' plain values and `fuser`'s.

use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{major, makedev, minor};

use crate::fs::attr::{Attr, system_time, unix_nanos};
use crate::fs::change::SetTime;

/// Attributes as the kernel takes them, under the number `ino`.
pub fn attr(ino: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(0),
        kind: kind(attr.file_type()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: kernel_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// What the kernel is told of a name that is not there: number 0.
pub fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// File types; what has none is a regular file.
pub fn kind(file_type: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Lower;
    match file_type {
        Lower::Directory => FileType::Directory,
        Lower::Symlink => FileType::Symlink,
        Lower::Fifo => FileType::NamedPipe,
        Lower::Socket => FileType::Socket,
        Lower::CharacterDevice => FileType::CharDevice,
        Lower::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// A time to be set. Before 1970 the kernel's nanoseconds count up from the second, fuser 0.18 takes
/// them for counting down.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(_) => unix_nanos(time),
            Err(before) => {
                let misread = before.duration();
                i128::from(misread.subsec_nanos()) - i128::from(misread.as_secs()) * 1_000_000_000
            }
        }),
    }
}

/// A device number as the C library has it, from the kernel's 32 bits (`new_encode_dev`).
pub fn device(kernel: u32) -> u64 {
    let minor = (kernel & 0xff) | ((kernel >> 12) & 0xf_ff00);
    makedev((kernel >> 8) & 0xfff, minor)
}

fn kernel_device(device: u64) -> u32 {
    let (major, minor) = (major(device), minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_way_there_and_back() {
        for number in [makedev(1, 3), makedev(8, 0x1_2345), makedev(0xfff, 0xff)] {
            assert_eq!(device(kernel_device(number)), number);
        }
    }
}
