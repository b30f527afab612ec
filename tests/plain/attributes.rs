//! What is known of a file besides its content.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, StatVfs, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    statvfs, statx, utimensat,
};
use rustix::io::Errno;

use crate::common::mount::Mount;
use crate::common::twins::Twins;

#[test]
fn times_to_the_nanosecond() {
    let twins = Twins::new([]);
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    for last_modification in [
        time(1_500_000_000, 123_456_789),
        time(0, 0),
        time(0, 1),
        time(-1, 999_999_999),
        time(-6, 1),
        time(-2_000_000_000, 500_000_000),
        time(4_000_000_000, 7),
        time(9_999_999_999, 0),
        time(1 << 40, 3),
        time(1, 1_000_000_000),
    ] {
        twins.same(&format!("{last_modification:?}"), |dir| {
            fs::write(dir.join("file"), "content").unwrap();
            let _ = symlink("file", dir.join("link"));
            let times = Timestamps {
                last_access: time(7, 8),
                last_modification,
            };
            let answers = [
                ("file", AtFlags::empty()),
                ("link", AtFlags::SYMLINK_NOFOLLOW),
            ]
            .map(|(name, flags)| utimensat(CWD, dir.join(name), &times, flags));
            let stat = |name: &str| {
                let stat = fs::symlink_metadata(dir.join(name)).unwrap();
                (
                    stat.atime(),
                    stat.atime_nsec(),
                    stat.mtime(),
                    stat.mtime_nsec(),
                )
            };
            answers
                .iter()
                .all(Result::is_ok)
                .then(|| (stat("file"), stat("link")))
                .ok_or(answers)
        });
    }
    twins.same("one of two", |dir| {
        let path = dir.join("file");
        let set = |last_access, last_modification| {
            utimensat(
                CWD,
                &path,
                &Timestamps {
                    last_access,
                    last_modification,
                },
                AtFlags::empty(),
            )
            .unwrap();
            let stat = fs::metadata(&path).unwrap();
            (stat.atime(), stat.mtime())
        };
        let first = set(time(100, 5), time(200, 6));
        let second = set(time(0, UTIME_OMIT), time(300, 6));
        let third = set(time(0, UTIME_NOW), time(0, UTIME_OMIT));
        (first, second, third.0 > 1_000_000_000, third.1)
    });
}

#[test]
fn modes_and_owners() {
    let twins = Twins::new([]);
    twins.script(
        "umask 027; echo >a; mkdir d; mkfifo p; umask 0; echo >b; mkdir e; umask 077; mknod q p
        chmod 6755 a; chmod 1777 d; chmod 000 b; chmod 400 p; chmod u+s,g+s e
        ln -s a l; chown -h 12:34 l 2>&1; chown 56:78 b d 2>&1; chown :9 e 2>&1
        echo >>b; chmod 6777 b; chown 5 b 2>&1
        cd e && mkdir inherits && echo >too
        find .. -mindepth 1 -printf '%P %y %m %U:%G %s %n\\n' | sort",
    );
}

#[test]
fn extended_attributes() {
    let twins = Twins::new([]);
    twins.same("one after another", |dir| {
        let path = dir.join("file");
        fs::write(&path, "").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        symlink("file", dir.join("link")).unwrap();
        let mut said: Vec<Result<usize, Errno>> = Vec::new();
        let mut set = |name: &str, length: usize, flags| {
            let answer = rustix::fs::setxattr(&path, name, &vec![b'v'; length], flags);
            said.push(answer.map(|()| 0));
        };
        let any = XattrFlags::empty();
        set("user.empty", 0, any);
        set("user.some", 100, XattrFlags::CREATE);
        set("user.some", 100, XattrFlags::CREATE);
        set("user.none", 1, XattrFlags::REPLACE);
        set("user.some", 20, XattrFlags::REPLACE);
        set("user.large", 3000, any);
        set("user.larger", 60_000, any);
        set("user.largest", 65_537, any);
        set("user.", 1, any);
        set("no.such", 1, any);
        set(&format!("user.{}", "n".repeat(250)), 1, any);
        set(&format!("user.{}", "n".repeat(251)), 1, any);
        set("user.\u{e9}", 3, any);
        for (name, size) in [
            ("user.some", 0),
            ("user.some", 19),
            ("user.some", 20),
            ("user.empty", 0),
            ("user.none", 9),
            ("user.large", 1),
        ] {
            let mut value = vec![0; size];
            said.push(rustix::fs::getxattr(&path, name, &mut value[..]));
        }
        let mut names = [0; 4096];
        for size in [0, 5, 4096] {
            said.push(rustix::fs::listxattr(&path, &mut names[..size]));
        }
        let mut names: Vec<_> = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort();
        for name in ["user.some", "user.some", "user.\u{e9}"] {
            said.push(rustix::fs::removexattr(&path, name).map(|()| 0));
        }
        for (name, what) in [
            ("dir", "user.x"),
            ("link", "user.x"),
            ("dir", "trusted.x"),
            ("link", "trusted.x"),
            ("file", "security.x"),
        ] {
            said.push(rustix::fs::lsetxattr(dir.join(name), what, b"1", any).map(|()| 0));
            said.push(rustix::fs::lgetxattr(dir.join(name), what, &mut [0; 9][..]));
        }
        (said, names)
    });
}

/// Most programs ask how large a value is before they read it.
#[test]
fn extended_attributes_of_programs() {
    let twins = Twins::new([]);
    let said = twins.script(
        "echo >f; mkdir d; setfattr -n user.a -v value f; setfattr -n user.empty f; setfattr -n user.b -v other d
        getfattr -d f d; cp -a f g; cp -a d e; getfattr -d g e; setfattr -x user.a f; getfattr -d f",
    );
    assert_eq!(said.matches("user.a=\"value\"").count(), 2, "{said}");
}

/// Ordinary mounts, which no other user enters, keep ACLs as well.
#[test]
fn access_control_lists_are_kept() {
    for args in [&[][..], &["--allow-other"]] {
        let twins = Twins::new(args.iter().copied());
        let said = twins.script(
            "echo >f; mkdir d; setfacl -m u:1234:rw,g:99:r f && setfacl -d -m u:1234:rwx d
            umask 077; echo >d/in; mkdir d/deep; chmod 640 f; getfacl -R . ; stat -c '%n %a' f d d/in d/deep
            setfacl -b f; getfacl f; cp -a f g; getfacl g",
        );
        assert!(
            said.ends_with("exit status: 0") && said.contains("user:1234:rw"),
            "{said}"
        );
    }
}

#[test]
fn the_file_system_says_how_full_it_is() {
    let twins = Twins::new([]);
    let constant = |stat: &StatVfs| {
        (
            stat.f_blocks,
            stat.f_files,
            stat.f_bsize,
            stat.f_frsize,
            stat.f_namemax,
        )
    };
    twins.same("statvfs", |dir| constant(&statvfs(dir).unwrap()));
    fs::write(twins.mounted().join("file"), "").unwrap();
    let (mounted, source) = (
        statvfs(twins.mounted().join("file")).unwrap(),
        statvfs(twins.source()).unwrap(),
    );
    assert_eq!(constant(&mounted), constant(&source));
    // others use the same disk meanwhile
    assert!(mounted.f_bfree.abs_diff(source.f_bfree) < source.f_blocks / 10);
}

/// Whatever the source's own mount says.
#[test]
fn times_of_access_are_kept_as_mounted() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let second = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let last_modification = second(200);
    let (old, recent) = (
        second(100),
        Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
    );
    // `relatime` would say the contrary of each
    for (options, last_access, leaves_a_time) in [
        ("noatime", old, false),
        ("strictatime", recent, true),
        ("ro,strictatime", old, false),
    ] {
        let source = tempfile::tempdir().unwrap();
        let file = source.path().join("file");
        fs::write(&file, "content").unwrap();
        let mount = Mount::builder(source.path()).args(["-o", options]).start();
        let times = Timestamps {
            last_access,
            last_modification,
        };
        utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        let atime = || {
            let stat = fs::metadata(&file).unwrap();
            (stat.atime(), stat.atime_nsec())
        };
        let before = atime();
        let read = || fs::read(mount.path().join("file")).unwrap();
        assert_eq!(read(), b"content");
        assert_eq!(atime() != before, leaves_a_time, "{options}");
        // and what is read for the third time is no less read
        read();
        let before = atime();
        // as fine as a time of access may be
        sleep(Duration::from_millis(20));
        read();
        assert_eq!(atime() != before, leaves_a_time, "{options}, again");
    }
}

#[test]
fn everything_stat_says_is_the_sources() {
    let twins = Twins::new([]);
    fs::write(twins.mounted().join("file"), vec![b'x'; 12_345]).unwrap();
    File::open(twins.mounted().join("file"))
        .unwrap()
        .sync_all()
        .unwrap();
    fs::create_dir(twins.mounted().join("dir")).unwrap();
    symlink("dir", twins.mounted().join("link")).unwrap();
    for name in ["file", "dir", "link"] {
        let [mounted, source] =
            [twins.mounted().join(name), twins.source().join(name)].map(|path| {
                let stat = fs::symlink_metadata(path).unwrap();
                (
                    (
                        stat.ino(),
                        stat.mode(),
                        stat.nlink(),
                        stat.uid(),
                        stat.gid(),
                        stat.size(),
                        stat.blocks(),
                        stat.blksize(),
                    ),
                    (
                        stat.mtime(),
                        stat.mtime_nsec(),
                        stat.ctime(),
                        stat.ctime_nsec(),
                    ),
                )
            });
        assert_eq!(mounted, source, "{name}");
    }
}

#[test]
fn the_time_of_birth() {
    let twins = Twins::new([]);
    twins.same_but("birth-time", |dir| {
        let stat = statx(CWD, dir, AtFlags::empty(), StatxFlags::BTIME).unwrap();
        StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME)
    });
}

#[test]
fn inode_flags() {
    let twins = Twins::new([]);
    twins.same_but("inode-flags", |dir| {
        fs::write(dir.join("file"), "").unwrap();
        rustix::fs::ioctl_getflags(File::open(dir.join("file")).unwrap()).is_ok()
    });
}

/// What a call ends with that only Python's `ctypes` and `fcntl` have: 0, or 1 for an error.
fn ended(dir: &Path, program: &str) -> Option<i32> {
    fs::write(dir.join("file"), "content").unwrap();
    let mut python = Command::new("python3");
    let quiet = python.args(["-c", program]).stderr(Stdio::null());
    quiet.current_dir(dir).status().unwrap().code()
}

#[test]
fn file_handles() {
    Twins::new([]).same_but("file-handles", |dir| {
        let program = "import ctypes, struct
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 136)
mount = ctypes.c_int()
assert ctypes.CDLL(None).name_to_handle_at(-100, b'file', handle, ctypes.byref(mount), 0) == 0";
        ended(dir, program)
    });
}

#[test]
fn extent_maps() {
    Twins::new([]).same_but("extent-maps", |dir| {
        let program = "import fcntl, struct
fcntl.ioctl(open('file'), 0xc020660b, struct.pack('QQIIII', 0, 4096, 0, 0, 0, 0))";
        ended(dir, program)
    });
}

#[test]
fn a_change_shows_in_the_directory_too() {
    let twins = Twins::new([]);
    twins.same("times of a directory", |dir| {
        let long_ago = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: long_ago,
            last_modification: long_ago,
        };
        let mut changed = Vec::new();
        let mut after = |what: &str, act: &dyn Fn()| {
            utimensat(CWD, dir, &times, AtFlags::empty()).unwrap();
            act();
            let stat = fs::metadata(dir).unwrap();
            changed.push(format!("{what}: {} {}", stat.mtime() > 1, stat.nlink()));
        };
        after("create", &|| fs::write(dir.join("file"), "").unwrap());
        after("write", &|| fs::write(dir.join("file"), "more").unwrap());
        after("mkdir", &|| fs::create_dir(dir.join("dir")).unwrap());
        after("rename", &|| {
            fs::rename(dir.join("file"), dir.join("dir/file")).unwrap()
        });
        after("chmod", &|| {
            fs::set_permissions(dir.join("dir"), fs::Permissions::from_mode(0o700)).unwrap()
        });
        after("unlink below", &|| {
            fs::remove_file(dir.join("dir/file")).unwrap()
        });
        after("rmdir", &|| fs::remove_dir(dir.join("dir")).unwrap());
        changed
    });
}
