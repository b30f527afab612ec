//! Content and attributes that come by other ways than a plain `write`, and removals.

use std::fs;

use crate::common::run::{BOTH, Kind, Run, STRANGER, listing};
use crate::{CHILD, WEPP, assert_gone, python_says, text};

/// Promise 6: who removes a controller that it has open for writing does not bring it back by closing.
#[test]
fn a_controller_removed_while_open_stays_removed() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "100ms"]);
        let code = r#"
import subprocess
writer = open(path, "w")
other = subprocess.run(["rm", path], stderr=subprocess.PIPE, env={"LC_ALL": "C"})
print(other.returncode, b"busy" in other.stderr, os.path.exists(disk))
os.unlink(path)
writer.write("{}")
try:
    writer.close()
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.path.exists(path), os.path.exists(disk))
"#;
        assert_eq!(
            run.python(WEPP, code),
            "1 True True\nESTALE\nFalse False",
            "{kind:?}"
        );
        run.await_unlocked(WEPP);
        assert_gone(&run, WEPP);
        assert_eq!(listing(run.mount.path()), listing(run.source()));
    }
}

/// Promise 3: a hole is no JSON; a document that is written around one and fills it is.
#[test]
fn a_hole_is_refused_until_it_is_filled() {
    python_says(
        r#"
before = open(disk).read()
fd = os.open(path, os.O_RDWR | os.O_TRUNC)
os.pwrite(fd, b"1}", 4096)
try:
    os.fsync(fd)
except OSError as error:
    print(errno.errorcode[error.errno], open(path).read() == before)
os.pwrite(fd, b'{"a":'.ljust(4096), 0)
os.fsync(fd)
print(os.lseek(fd, 0, os.SEEK_HOLE) == os.stat(disk).st_size == 4098)
os.close(fd)
print(json.load(open(disk)))
"#,
        "EBADMSG True\nTrue\n{'a': 1}",
    );
}

/// Promise 3: what the kernel copies into a controller is committed as if the program had written it; blocks
/// cannot be shared with one.
#[test]
fn copies_by_the_kernel_are_committed() {
    python_says(
        r#"
import fcntl
FICLONE = 0x40049409
other = os.path.join(os.path.dirname(path), "soils.nodb")
plain = os.path.join(os.path.dirname(path), "plain")
open(plain, "w").write('{"from": "a plain file"}')
def copies(source, copy):
    fd = os.open(path, os.O_RDWR | os.O_TRUNC)
    with open(source, "rb") as file:
        copy(file.fileno(), fd)
    os.close(fd)
    print(open(source).read() == open(disk).read())
size = 1 << 20
for source in (plain, other):
    copies(source, lambda file, fd: os.copy_file_range(file, fd, size))
    copies(source, lambda file, fd: os.sendfile(fd, file, 0, size))
# within itself, and out of it
fd = os.open(path, os.O_RDWR)
os.pwrite(fd, b'{"a": 1}    ', 0)
os.ftruncate(fd, 12)
os.copy_file_range(fd, fd, 1, 6, 5)
os.fsync(fd)
with open(plain, "wb") as file:
    os.copy_file_range(fd, file.fileno(), size, 0)
print(open(plain).read(), os.stat(plain).st_size)
with open(plain) as file:
    try:
        fcntl.ioctl(fd, FICLONE, file.fileno())
    except OSError as error:
        print(error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY))
os.close(fd)
print(os.system(f"cp --reflink=auto {other} {path}"), open(disk).read() == open(other).read())
"#,
        "True\nTrue\nTrue\nTrue\n{\"a\":11}     12\nTrue\n0 True",
    );
}

/// Promise 3: space can be asked for, and zeros are no JSON.
#[test]
fn allocation_is_no_content() {
    python_says(
        r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO = 1, 2, 8, 16
def allocate(fd, mode, offset, length):
    done = libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    return errno.errorcode[ctypes.get_errno()] if done else "done"
def sync(fd):
    try:
        os.fsync(fd)
        return "synced"
    except OSError as error:
        return errno.errorcode[error.errno]
before = open(disk).read()
fd = os.open(path, os.O_RDWR)
print(allocate(fd, KEEP_SIZE, 0, 1 << 20), sync(fd), open(disk).read() == before)
print(allocate(fd, COLLAPSE, 0, 4096), sync(fd), open(disk).read() == before)
print(allocate(fd, 0, 0, len(before) + 10), os.fstat(fd).st_size - len(before), sync(fd))
os.ftruncate(fd, len(before))
print(sync(fd), open(disk).read() == before)
for mode in (PUNCH_HOLE | KEEP_SIZE, ZERO):
    print(allocate(fd, mode, 1, 3), sync(fd), open(disk).read() == before)
os.pwrite(fd, before[1:4].encode(), 1)
print(allocate(fd, 0, 0, 1 << 40), sync(fd), open(disk).read() == before)
os.close(fd)
"#,
        "done synced True\n\
         ENOTSUP synced True\n\
         done 10 EBADMSG\n\
         synced True\n\
         done EBADMSG True\n\
         done EBADMSG True\n\
         EFBIG synced True",
    );
}

/// PROTOCOL.md 5: `utimens`, `chmod`, `chown` and `setxattr` reach the file, and entry and seal are true at once,
/// without anybody's reading; a daemon that does not know the document deletes them.
#[test]
fn attributes_leave_no_entry_that_is_not_the_files() {
    let mut run = Run::new(Kind::Redis);
    let changes = [
        "os.utime(path, ns=(5, 1_700_000_001_123_456_789))",
        "os.utime(path)",
        "os.chmod(path, 0o604)",
        "os.getuid() or os.chown(path, 1234, 4321)",
        "os.setxattr(path, 'user.note', b'x'); os.removexattr(path, 'user.note')",
        "os.utime(os.open(path, os.O_RDONLY), ns=(5, 1_600_000_000_000_000_001))",
    ];
    fs::read(run.at(WEPP)).unwrap();
    for change in changes {
        assert_eq!(
            run.python(WEPP, &format!("{change}; print('done')")),
            "done"
        );
        // before anything is read
        run.assert_cached(WEPP);
        run.assert_settled(WEPP);
    }
    for change in changes {
        fs::read(run.at(WEPP)).unwrap();
        run.remount();
        assert_eq!(
            run.python(WEPP, &format!("{change}; print('done')")),
            "done"
        );
        if run.entry(WEPP).is_some() {
            run.assert_cached(WEPP);
        }
    }
}

/// PROTOCOL.md 3: through a child run's symlink the parent's controller is written, under its lock, and no
/// path that leads to it keeps an old entry.
#[test]
fn a_childs_symlink_writes_the_parents_controller() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "100ms"]);
    let (name, link) = ("climate.nodb", format!("{CHILD}/climate.nodb"));
    let write = "with open(path, 'a') as file: file.write(' ')\nprint('done')";
    run.lock_away(name, STRANGER);
    assert_eq!(run.python(&link, write), "EBUSY");
    assert_eq!(run.python(&link, "os.truncate(path, 0)"), "EBUSY");
    run.redis().cmd(&["DEL", &run.lock_key(name)]);
    // as an old NoDb process of the child's leaves it
    let leave = || {
        run.redis()
            .cmd_in(13, &["SET", &run.key(&link), "{\"old\": 1}"])
    };
    for code in [
        write,
        "os.utime(path)\nprint('done')",
        "open(path + '.t', 'w').write('{\"a\": 1}')\nos.rename(path + '.t', os.path.realpath(path))\nprint('done')",
    ] {
        fs::read(run.at(name)).unwrap();
        leave();
        assert_eq!(run.python(&link, code), "done");
        assert!(run.on_disk(&link).is_symlink());
        assert_eq!(run.entry(&link), None, "{code}");
        assert_eq!(run.lock(&link), None);
        run.assert_settled(name);
    }
    // a file takes the symlink's place: from then on it is the child's own
    leave();
    let replace =
        "open(path + '.t', 'w').write('{\"own\": 1}')\nos.rename(path + '.t', path)\nprint('done')";
    assert_eq!(run.python(&link, replace), "done");
    assert!(!run.on_disk(&link).is_symlink());
    run.assert_cached(&link);
    assert_eq!(text(&run, name), "{\"a\": 1}");
    run.assert_settled(name);
}
