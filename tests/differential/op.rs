//! The operations: few names, few slots for open files, so that they meet.

use proptest::prelude::*;
use proptest::sample::select;

use crate::common::twins::is_known_gap;

/// One operation. Paths are relative to the case's directory.
#[derive(Clone, Debug)]
pub enum Op {
    Open {
        slot: usize,
        path: Path,
        how: How,
    },
    OpenDir {
        slot: usize,
        path: Path,
    },
    Close {
        slot: usize,
    },
    Dup {
        from: usize,
        to: usize,
    },
    Reopen {
        from: usize,
        to: usize,
        how: How,
    },
    Read {
        slot: usize,
        offset: u64,
        length: usize,
    },
    Write {
        slot: usize,
        offset: u64,
        length: usize,
        fill: u8,
    },
    Append {
        slot: usize,
        length: usize,
        fill: u8,
    },
    Resize {
        slot: usize,
        size: u64,
    },
    Allocate {
        slot: usize,
        mode: u32,
        offset: u64,
        length: u64,
    },
    Seek {
        slot: usize,
        offset: u64,
        hole: bool,
    },
    CopyRange {
        from: usize,
        to: usize,
        offsets: (u64, u64),
        length: usize,
    },
    Sync {
        slot: usize,
    },
    Fstat {
        slot: usize,
    },
    ListOpen {
        slot: usize,
    },
    ChmodOpen {
        slot: usize,
        mode: u32,
    },
    TimesOpen {
        slot: usize,
        time: (i64, i64),
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Stat {
        path: Path,
    },
    List {
        path: Path,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Rmdir {
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: Move,
    },
    Link {
        from: Path,
        to: Path,
    },
    LinkOpen {
        slot: usize,
        to: Path,
    },
    Symlink {
        target: Path,
        path: Path,
    },
    Readlink {
        path: Path,
    },
    Mkfifo {
        path: Path,
        mode: u32,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Times {
        path: Path,
        time: (i64, i64),
    },
    Chown {
        path: Path,
        uid: u32,
        gid: u32,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        length: usize,
        how: Set,
    },
    GetXattr {
        path: Path,
        name: &'static str,
        size: usize,
    },
    ListXattrs {
        path: Path,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
    },
    Access {
        path: Path,
    },
}

pub type Path = &'static str;

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub flags: u32,
    pub mode: u32,
}

#[derive(Clone, Copy, Debug)]
pub enum Move {
    Over,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug)]
pub enum Set {
    Any,
    Create,
    Replace,
}

pub const SLOTS: usize = 5;

fn path() -> impl Strategy<Value = Path> + Clone {
    // the first ones more often, so that operations meet
    select(
        &[
            "a",
            "a",
            "a",
            "d",
            "d",
            "d/a",
            "d/a",
            "a",
            "b",
            "c",
            "d",
            "d/a",
            "d/b",
            "d/e",
            "d/e/a",
            "d/e/b",
            "f",
            "f/a",
            "f/d",
            "f/d/a",
            "a/x",
            ".",
            "d/..",
            "d/.",
            "nöt-\u{fffd}",
        ][..],
    )
}

fn how() -> impl Strategy<Value = How> + Clone {
    let access = select(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR][..]);
    let create = select(
        &[
            0,
            libc::O_CREAT,
            libc::O_CREAT,
            libc::O_CREAT | libc::O_EXCL,
        ][..],
    );
    let more = select(
        &[
            0,
            0,
            0,
            libc::O_TRUNC,
            libc::O_APPEND,
            libc::O_NOFOLLOW,
            libc::O_DIRECTORY,
            libc::O_SYNC,
            libc::O_PATH,
        ][..],
    );
    (access, create, more, mode()).prop_map(|(access, create, more, mode)| How {
        flags: (access | create | more | libc::O_NONBLOCK | libc::O_CLOEXEC) as u32,
        mode,
    })
}

fn mode() -> impl Strategy<Value = u32> + Clone {
    select(
        &[
            0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2775, 0o1777, 0o2644,
        ][..],
    )
}

fn offset() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        4 => 0_u64..200,
        4 => 4000_u64..9000,
        2 => select(&[4096, 8192, 65536, 1 << 20, 3 << 20][..]),
        1 => select(&[1 << 40, 1 << 44, (1 << 63) - 4097, (1 << 63) - 1][..]),
    ]
}

fn length() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![4 => 0_usize..200, 4 => 4000_usize..9000, 1 => Just(150_000_usize)]
}

/// A size that a directory's worth of test files may have.
fn size() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![8 => 0_u64..9000, 1 => select(&[1 << 20, 1 << 30, 1 << 44, (1 << 63) - 1][..])]
}

fn time() -> impl Strategy<Value = (i64, i64)> + Clone {
    let seconds = select(
        &[
            -5,
            -1,
            0,
            1,
            1_000_000_000,
            2_147_483_647,
            2_147_483_648,
            4_000_000_000,
        ][..],
    );
    (
        seconds,
        select(&[0, 1, 999_999_999, 500_000_000, 123_456_789][..]),
    )
}

fn allocation() -> impl Strategy<Value = u32> + Clone {
    let mut modes = vec![
        0,
        libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_PUNCH_HOLE,
    ];
    if !is_known_gap("fallocate-shift") {
        modes.extend([libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE]);
    }
    select(
        modes
            .into_iter()
            .map(|mode| mode as u32)
            .collect::<Vec<_>>(),
    )
}

fn xattr() -> impl Strategy<Value = &'static str> + Clone {
    select(
        &[
            "user.a",
            "user.b",
            "user.",
            "trusted.a",
            "nonsense.a",
            "user.nodbfs.x",
        ][..],
    )
}

/// Any operation; those that make things are more frequent than those that remove them.
pub fn any() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let files = prop_oneof![
        6 => (slot(), path(), how()).prop_map(|(slot, path, how)| Op::Open { slot, path, how }),
        1 => (slot(), path()).prop_map(|(slot, path)| Op::OpenDir { slot, path }),
        2 => slot().prop_map(|slot| Op::Close { slot }),
        1 => (slot(), slot()).prop_map(|(from, to)| Op::Dup { from, to }),
        1 => (slot(), slot(), how()).prop_map(|(from, to, how)| Op::Reopen { from, to, how }),
        3 => (slot(), offset(), length()).prop_map(|(slot, offset, length)| Op::Read { slot, offset, length }),
        5 => (slot(), offset(), length(), 1_u8..)
            .prop_map(|(slot, offset, length, fill)| Op::Write { slot, offset, length, fill }),
        3 => (slot(), length(), 1_u8..).prop_map(|(slot, length, fill)| Op::Append { slot, length, fill }),
        2 => (slot(), size()).prop_map(|(slot, size)| Op::Resize { slot, size }),
        2 => (slot(), allocation(), 0_u64..20_000, 0_u64..20_000)
            .prop_map(|(slot, mode, offset, length)| Op::Allocate { slot, mode, offset, length }),
        1 => (slot(), offset(), proptest::bool::ANY).prop_map(|(slot, offset, hole)| Op::Seek { slot, offset, hole }),
        1 => (slot(), slot(), (offset(), 0_u64..9000), length())
            .prop_map(|(from, to, offsets, length)| Op::CopyRange { from, to, offsets, length }),
        1 => slot().prop_map(|slot| Op::Sync { slot }),
        3 => slot().prop_map(|slot| Op::Fstat { slot }),
        1 => slot().prop_map(|slot| Op::ListOpen { slot }),
        1 => (slot(), mode()).prop_map(|(slot, mode)| Op::ChmodOpen { slot, mode }),
        1 => (slot(), time()).prop_map(|(slot, time)| Op::TimesOpen { slot, time }),
        1 => (slot(), path()).prop_map(|(slot, to)| Op::LinkOpen { slot, to }),
    ];
    let movement = select(&[Move::Over, Move::Over, Move::NoReplace, Move::Exchange][..]);
    let names = prop_oneof![
        2 => (path(), size()).prop_map(|(path, size)| Op::Truncate { path, size }),
        4 => path().prop_map(|path| Op::Stat { path }),
        2 => path().prop_map(|path| Op::List { path }),
        6 => (path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        1 => path().prop_map(|path| Op::Rmdir { path }),
        3 => path().prop_map(|path| Op::Unlink { path }),
        5 => (path(), path(), movement).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => (path(), path()).prop_map(|(target, path)| Op::Symlink { target, path }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        1 => (path(), mode()).prop_map(|(path, mode)| Op::Mkfifo { path, mode }),
    ];
    let set = select(&[Set::Any, Set::Create, Set::Replace][..]);
    let attributes = prop_oneof![
        2 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (path(), time()).prop_map(|(path, time)| Op::Times { path, time }),
        1 => (path(), 0_u32..1, 0_u32..1).prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        2 => (path(), xattr(), 0_usize..300, set)
            .prop_map(|(path, name, length, how)| Op::SetXattr { path, name, length, how }),
        1 => (path(), xattr(), select(&[0, 10, 300][..]))
            .prop_map(|(path, name, size)| Op::GetXattr { path, name, size }),
        1 => path().prop_map(|path| Op::ListXattrs { path }),
        1 => (path(), xattr()).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
        1 => path().prop_map(|path| Op::Access { path }),
    ];
    prop_oneof![5 => files, 4 => names, 2 => attributes]
}
