//! A mount with `--read-only`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, removexattr, setxattr};
use rustix::io::Errno;

use crate::common::mount::Mount;

#[test]
fn every_write_is_refused() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), "content").unwrap();
    fs::create_dir(source.path().join("dir")).unwrap();
    setxattr(
        source.path().join("file"),
        "user.x",
        b"1",
        XattrFlags::empty(),
    )
    .unwrap();
    let mount = Mount::builder(source.path()).args(["--read-only"]).start();
    let (file, new) = (mount.path().join("file"), mount.path().join("new"));
    let errno = |answer: std::io::Result<()>| answer.map_err(|error| error.raw_os_error());
    let answers = [
        ("create", errno(File::create(&new).map(drop))),
        (
            "write",
            errno(OpenOptions::new().write(true).open(&file).map(drop)),
        ),
        (
            "append",
            errno(OpenOptions::new().append(true).open(&file).map(drop)),
        ),
        ("truncate", errno(File::create(&file).map(drop))),
        ("mkdir", errno(fs::create_dir(&new))),
        (
            "mknod",
            errno(mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0).map_err(Into::into)),
        ),
        ("symlink", errno(symlink("file", &new))),
        ("link", errno(fs::hard_link(&file, &new))),
        ("rename", errno(fs::rename(&file, &new))),
        ("unlink", errno(fs::remove_file(&file))),
        ("rmdir", errno(fs::remove_dir(mount.path().join("dir")))),
        (
            "chmod",
            errno(fs::set_permissions(&file, Permissions::from_mode(0o600))),
        ),
        ("chown", errno(chown(&file, Some(0), Some(0)))),
        (
            "utimens",
            errno(File::open(&file).and_then(|file| file.set_modified(std::time::UNIX_EPOCH))),
        ),
        (
            "setxattr",
            errno(setxattr(&file, "user.x", b"2", XattrFlags::empty()).map_err(Into::into)),
        ),
        (
            "removexattr",
            errno(removexattr(&file, "user.x").map_err(Into::into)),
        ),
    ];
    for (what, answer) in answers {
        assert_eq!(answer, Err(Some(Errno::ROFS.raw_os_error())), "{what}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 2);
}
