//! Does operations below one directory and says what came of them.

use std::fmt::Debug;
use std::path::Path;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::*;
use rustix::io::Errno;

use crate::common::twins::is_known_gap;
use crate::op::{Move, Op, SLOTS, Set};

/// Times below this were set; later ones are the clock's, which no two directories share.
const SET_BEFORE: i64 = 1_700_000_000;

/// A directory and what is open below it.
pub struct Actor {
    root: OwnedFd,
    path: std::path::PathBuf,
    open: [Option<OwnedFd>; SLOTS],
}

type Answer = Result<String, Errno>;

impl Actor {
    pub fn new(dir: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self {
            root: rustix::fs::open(dir, flags, Mode::empty()).expect("the case's directory"),
            path: dir.to_owned(),
            open: Default::default(),
        }
    }

    /// What the operation answers.
    pub fn act(&mut self, op: &Op) -> String {
        format!("{:?}", self.answer(op))
    }

    fn slot(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.open[slot].as_ref().ok_or(Errno::BADF)
    }

    fn keep(&mut self, slot: usize, fd: OwnedFd) -> Answer {
        let answer = stat_of(&rustix::fs::fstat(&fd)?);
        self.open[slot] = Some(fd);
        Ok(answer)
    }

    fn answer(&mut self, op: &Op) -> Answer {
        match *op {
            Op::Open { slot, path, how } => {
                let (flags, mode) = (
                    OFlags::from_bits_retain(how.flags),
                    Mode::from_raw_mode(how.mode),
                );
                let fd = openat(&self.root, path, flags, mode)?;
                self.keep(slot, fd)
            }
            Op::OpenDir { slot, path } => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = openat(&self.root, path, flags, Mode::empty())?;
                self.keep(slot, fd)
            }
            Op::Close { slot } => {
                self.open[slot] = None;
                done(Ok(()))
            }
            Op::Dup { from, to } => {
                let fd = rustix::io::fcntl_dupfd_cloexec(self.slot(from)?, 0)?;
                self.keep(to, fd)
            }
            Op::Reopen { from, to, how } => {
                let flags = how.flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW) as u32;
                let path = magic(self.slot(from)?);
                let fd = open(path, OFlags::from_bits_retain(flags), Mode::empty())?;
                self.keep(to, fd)
            }
            Op::Read {
                slot,
                offset,
                length,
            } => {
                let mut data = vec![0; length];
                let count = rustix::io::pread(self.slot(slot)?, &mut data, offset)?;
                Ok(content(&data[..count]))
            }
            Op::Write {
                slot,
                offset,
                length,
                fill,
            } => value(rustix::io::pwrite(
                self.slot(slot)?,
                &vec![fill; length],
                offset,
            )),
            Op::Append { slot, .. } | Op::Seek { slot, .. }
                if is_known_gap("directory-seek") && is_dir(self.slot(slot)?)? =>
            {
                done(Ok(()))
            }
            Op::Append { slot, length, fill } => {
                let fd = self.slot(slot)?;
                seek(fd, SeekFrom::End(0))?;
                let written = rustix::io::write(fd, &vec![fill; length])?;
                value(Ok((written, tell(fd)?)))
            }
            Op::Resize { slot, size } => done(ftruncate(self.slot(slot)?, size)),
            Op::Allocate {
                slot,
                mode,
                offset,
                length,
            } => {
                let mode = FallocateFlags::from_bits_retain(mode);
                done(fallocate(self.slot(slot)?, mode, offset, length))
            }
            Op::Seek { slot, offset, hole } => {
                let to = if hole {
                    SeekFrom::Hole(offset)
                } else {
                    SeekFrom::Data(offset)
                };
                value(seek(self.slot(slot)?, to))
            }
            Op::CopyRange {
                from,
                to,
                offsets: (mut input, mut output),
                length,
            } => value(copy_file_range(
                self.slot(from)?,
                Some(&mut input),
                self.slot(to)?,
                Some(&mut output),
                length,
            )),
            Op::Sync { slot } => done(fsync(self.slot(slot)?)),
            Op::Fstat { slot } => Ok(stat_of(&fstat(self.slot(slot)?)?)),
            Op::ListOpen { slot } => list(self.slot(slot)?),
            Op::ChmodOpen { slot, mode } => {
                done(fchmod(self.slot(slot)?, Mode::from_raw_mode(mode)))
            }
            Op::TimesOpen { slot, time } => done(futimens(self.slot(slot)?, &times(time))),
            Op::Truncate { path, size } => truncate(&self.path.join(path), size),
            Op::Stat { path } => Ok(stat_of(&statat(
                &self.root,
                path,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)),
            Op::List { path } => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                list(&openat(&self.root, path, flags, Mode::empty())?)
            }
            Op::Mkdir { path, mode } => done(mkdirat(&self.root, path, Mode::from_raw_mode(mode))),
            Op::Rmdir { path } => done(unlinkat(&self.root, path, AtFlags::REMOVEDIR)),
            Op::Unlink { path } => done(unlinkat(&self.root, path, AtFlags::empty())),
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Move::Over => RenameFlags::empty(),
                    Move::NoReplace => RenameFlags::NOREPLACE,
                    Move::Exchange => RenameFlags::EXCHANGE,
                };
                done(renameat_with(&self.root, from, &self.root, to, flags))
            }
            Op::Link { from, to } => {
                done(linkat(&self.root, from, &self.root, to, AtFlags::empty()))
            }
            Op::LinkOpen { slot, to } => {
                let path = magic(self.slot(slot)?);
                done(linkat(CWD, path, &self.root, to, AtFlags::SYMLINK_FOLLOW))
            }
            Op::Symlink { target, path } => done(symlinkat(target, &self.root, path)),
            Op::Readlink { path } => value(readlinkat(&self.root, path, Vec::new())),
            Op::Mkfifo { path, mode } => done(mknodat(
                &self.root,
                path,
                FileType::Fifo,
                Mode::from_raw_mode(mode),
                0,
            )),
            Op::Chmod { path, mode } => done(chmodat(
                &self.root,
                path,
                Mode::from_raw_mode(mode),
                AtFlags::empty(),
            )),
            Op::Times { path, time } => done(utimensat(
                &self.root,
                path,
                &times(time),
                AtFlags::SYMLINK_NOFOLLOW,
            )),
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                done(chownat(
                    &self.root,
                    path,
                    uid,
                    gid,
                    AtFlags::SYMLINK_NOFOLLOW,
                ))
            }
            Op::SetXattr {
                path,
                name,
                length,
                how,
            } => {
                let flags = match how {
                    Set::Any => XattrFlags::empty(),
                    Set::Create => XattrFlags::CREATE,
                    Set::Replace => XattrFlags::REPLACE,
                };
                done(lsetxattr(
                    self.path.join(path),
                    name,
                    &vec![b'x'; length],
                    flags,
                ))
            }
            Op::GetXattr { path, name, size } => {
                let mut buffer = vec![0; size];
                value(lgetxattr(self.path.join(path), name, &mut buffer[..]))
            }
            Op::ListXattrs { path } => Ok(xattrs(&self.path.join(path))?.join(" ")),
            Op::RemoveXattr { path, name } => done(lremovexattr(self.path.join(path), name)),
            Op::Access { path } => {
                let ways = [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK];
                value(Ok(
                    ways.map(|way| accessat(&self.root, path, way, AtFlags::empty()))
                ))
            }
        }
    }
}

fn is_dir(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

fn done(answer: Result<(), Errno>) -> Answer {
    answer.map(|()| String::new())
}

fn value<T: Debug>(answer: Result<T, Errno>) -> Answer {
    answer.map(|value| format!("{value:?}"))
}

/// `truncate`, which rustix does not have, with its own errno.
fn truncate(path: &Path, size: u64) -> Answer {
    let fd = rustix::fs::open(
        path,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    done(rustix::fs::ftruncate(fd, size))
}

fn magic(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn times((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// What two files that were made alike agree in.
pub fn stat_of(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    // how a directory keeps its names is its own affair
    let size = if kind == FileType::Directory {
        0
    } else {
        stat.st_size
    };
    let mtime = if stat.st_mtime < SET_BEFORE || stat.st_mtime > 2 * SET_BEFORE {
        format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec)
    } else {
        "now".to_owned()
    };
    format!(
        "{kind:?} {:o} size {size} links {} owner {}:{} device {} mtime {mtime}",
        stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_rdev
    )
}

/// The names in a directory with their types, in an order of our own.
fn list(fd: &OwnedFd) -> Answer {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()));
    }
    names.sort();
    Ok(names.join(", "))
}

/// The extended attributes of a file, sorted; of a symlink its own.
pub fn xattrs(path: &Path) -> Result<Vec<String>, Errno> {
    let mut buffer = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut buffer[..])?;
    let names = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut found = Vec::new();
    for name in names.split_terminator('\0') {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        found.push(format!(
            "{name}={}",
            String::from_utf8_lossy(&value[..length])
        ));
    }
    found.sort();
    Ok(found)
}

/// Bytes in short: runs of equal ones.
pub fn content(data: &[u8]) -> String {
    let runs = data.chunk_by(|a, b| a == b);
    runs.map(|run| format!("{}x{}", run[0], run.len()))
        .collect::<Vec<_>>()
        .join(" ")
}
