//! Names: making, moving, listing and removing them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags, fchmod,
    fsetxattr, fstat, ftruncate, linkat, makedev, mkdirat, mknodat, open, openat, renameat_with,
    seek, unlinkat,
};
use rustix::io::Errno;

use crate::common::twins::Twins;

fn rename(dir: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, dir.join(from), CWD, dir.join(to), flags)
}

fn directory(path: &Path) -> OwnedFd {
    open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .expect("a directory")
}

/// Says how a call on a path ended, without the path.
fn errno<T>(answer: std::io::Result<T>) -> Result<T, Option<i32>> {
    answer.map_err(|error| error.raw_os_error())
}

#[test]
fn every_error_of_a_name_is_the_sources() {
    let twins = Twins::new([]);
    twins.same("preparation", |dir| {
        fs::create_dir_all(dir.join("full/below")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        fs::write(dir.join("file"), "content").unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink("full", dir.join("way")).unwrap();
    });
    let long = "n".repeat(256);
    let names = [
        "full",
        "full/below",
        "empty",
        "file",
        "loop",
        "dangling",
        "way",
        "way/below",
        "none",
        "none/x",
        "file/x",
        "loop/x",
        ".",
        "..",
        "full/.",
        "",
        &long,
    ];
    for name in names {
        for call in 0..11 {
            twins.same(&format!("call {call} of {name:?}"), |dir| {
                let path = if name.is_empty() {
                    "".into()
                } else {
                    dir.join(name)
                };
                match call {
                    0 => errno(fs::create_dir(&path)),
                    1 => errno(fs::remove_file(&path)),
                    2 => errno(fs::remove_dir(&path)),
                    3 => errno(File::create_new(&path).map(drop)),
                    4 => errno(fs::OpenOptions::new().write(true).open(&path).map(drop)),
                    5 => errno(fs::read_link(&path).map(drop)),
                    6 => errno(fs::hard_link(&path, dir.join("linked"))),
                    7 => errno(fs::rename(&path, dir.join("full"))),
                    8 => errno(fs::rename(dir.join("file"), &path)),
                    9 => errno(fs::read_dir(&path).map(drop)),
                    _ => errno(fs::metadata(&path).map(drop)),
                }
            });
        }
    }
    twins.script("find . -mindepth 1 -printf '%p %y %l\\n' | sort");
}

#[test]
fn names_of_any_bytes_and_any_length() {
    let twins = Twins::new([]);
    let longest = "x".repeat(255);
    let names: [&[u8]; 6] = [
        b"\xff\xfe\x80",
        b"new\nline",
        b" ",
        b"*",
        "\u{e9}\u{301}".as_bytes(),
        longest.as_bytes(),
    ];
    let listed = twins.agreed("strange names", |dir| {
        for name in names {
            let path = dir.join(OsStr::from_bytes(name));
            fs::write(&path, name).unwrap();
            symlink(&path, dir.join("link")).unwrap();
            assert_eq!(fs::read(dir.join("link")).unwrap(), name);
            fs::remove_file(dir.join("link")).unwrap();
        }
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names.collect::<BTreeSet<_>>()
    });
    assert_eq!(listed.len(), names.len());
    twins.same("the longest target of a symlink", |dir| {
        let target = "t".repeat(4095);
        symlink(&target, dir.join("far")).unwrap();
        assert_eq!(fs::read_link(dir.join("far")).unwrap(), Path::new(&target));
        errno(symlink("t".repeat(4096), dir.join("farther")))
    });
}

#[test]
fn rename_with_its_flags() {
    let twins = Twins::new([]);
    twins.same("renames", |dir| {
        for name in ["a", "b"] {
            fs::write(dir.join(name), name).unwrap();
        }
        fs::create_dir_all(dir.join("d/e")).unwrap();
        let number = |name: &str| {
            fs::symlink_metadata(dir.join(name))
                .map(|stat| stat.ino())
                .ok()
        };
        let (a, b, d) = (number("a"), number("b"), number("d"));
        let answers = [
            rename(dir, "a", "b", RenameFlags::NOREPLACE),
            rename(dir, "a", "none", RenameFlags::EXCHANGE),
            rename(
                dir,
                "a",
                "b",
                RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
            ),
            rename(dir, "d", "d/e/f", RenameFlags::empty()),
            rename(dir, "a", "d", RenameFlags::empty()),
            rename(dir, "d", "a", RenameFlags::empty()),
            rename(dir, "a", "b", RenameFlags::EXCHANGE),
            rename(dir, "d", "a", RenameFlags::EXCHANGE),
        ];
        assert_eq!((number("a"), number("b"), number("d")), (d, a, b));
        fs::write(dir.join("a/e/new"), "in a directory that moved").unwrap();
        let last = rename(dir, "a/e/new", "none", RenameFlags::NOREPLACE);
        (answers, last, fs::read(dir.join("d")).unwrap())
    });
    twins.same("a whiteout", |dir| {
        rename(dir, "b", "c", RenameFlags::WHITEOUT).map(|()| {
            let left = fs::symlink_metadata(dir.join("b")).unwrap();
            (left.mode(), left.rdev())
        })
    });
}

#[test]
fn hard_links_are_one_inode() {
    let twins = Twins::new([]);
    twins.same("links", |dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("one"), "first").unwrap();
        fs::hard_link(dir.join("one"), dir.join("d/two")).unwrap();
        symlink("one", dir.join("soft")).unwrap();
        fs::hard_link(dir.join("soft"), dir.join("d/soft")).unwrap();
        fs::write(dir.join("d/two"), "second").unwrap();
        let stat = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
        assert_eq!(stat("one").ino(), stat("d/two").ino());
        assert_eq!(stat("soft").ino(), stat("d/soft").ino());
        let both = (
            stat("one").nlink(),
            stat("soft").nlink(),
            fs::read_to_string(dir.join("one")).unwrap(),
        );
        fs::remove_file(dir.join("one")).unwrap();
        fs::write(dir.join("d/two"), "third, through what is left").unwrap();
        (both, stat("d/two").nlink(), stat("d/two").len())
    });
}

/// Who has a file open goes on with it, whichever way its last name went.
#[test]
fn a_file_without_a_name_stays_whole() {
    let twins = Twins::new([]);
    for way in ["unlink", "rename", "rmdir"] {
        twins.same(way, |dir| {
            let path = dir.join(way);
            let flags = match way {
                "rmdir" => {
                    fs::create_dir(&path).unwrap();
                    OFlags::RDONLY
                }
                _ => {
                    fs::write(&path, "content").unwrap();
                    OFlags::RDWR
                }
            };
            let kept = open(&path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let by_path = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            // a later descriptor that is closed earlier
            drop(open(&path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap());
            match way {
                "unlink" => fs::remove_file(&path).unwrap(),
                "rmdir" => fs::remove_dir(&path).unwrap(),
                _ => {
                    fs::write(dir.join("coming"), "other").unwrap();
                    fs::rename(dir.join("coming"), &path).unwrap();
                }
            }
            let mut said = vec![
                fchmod(&kept, Mode::RWXU),
                ftruncate(&kept, 6),
                fsetxattr(&kept, "user.x", b"1", XattrFlags::empty()),
                rustix::io::pwrite(&kept, b"CON", 0).map(drop),
                openat(&kept, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop),
            ];
            let again = format!("/proc/self/fd/{}", kept.as_raw_fd());
            let again = open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let mut content = [0; 16];
            said.push(rustix::io::pread(&again, &mut content, 0).map(drop));
            let stats = [&kept, &by_path, &again].map(|fd| {
                let stat = fstat(fd).unwrap();
                (stat.st_nlink, stat.st_mode)
            });
            (said, content, stats)
        });
    }
}

#[test]
fn fifos_sockets_and_devices() {
    let twins = Twins::new([]);
    twins.same("a socket", |dir| {
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        fs::symlink_metadata(&path).unwrap().mode()
    });
    for (kind, device) in [
        (FileType::Fifo, 0),
        (FileType::CharacterDevice, makedev(1, 3)),
        (FileType::BlockDevice, makedev(259, 0x1_2345)),
        (FileType::RegularFile, 0),
    ] {
        twins.same(&format!("{kind:?}"), |dir| {
            let path = dir.join("node");
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).map(|()| {
                let stat = fs::symlink_metadata(&path).unwrap();
                fs::remove_file(&path).unwrap();
                (stat.mode(), stat.rdev(), stat.len())
            })
        });
    }
    twins.script("mkfifo pipe && { echo through >pipe & cat pipe; wait; }");
}

#[test]
fn a_large_directory_is_listed_completely_while_names_are_removed() {
    const NAMES: usize = 5000;
    let twins = Twins::new([]);
    let dir = twins.mounted().join("large");
    fs::create_dir(&dir).unwrap();
    for i in 0..NAMES {
        fs::write(dir.join(format!("p{i}.sol")), "").unwrap();
    }
    let all: BTreeSet<_> = (0..NAMES).map(|i| format!("p{i}.sol")).collect();
    let names = |path: &Path| -> Vec<String> {
        let names = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let listed = names(&dir);
    assert_eq!(listed.len(), NAMES);
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), all);
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.ino(),
            entry.metadata().unwrap().ino(),
            "{:?}",
            entry.file_name()
        );
    }
    // every name that stays is listed exactly once, whatever else goes meanwhile
    let mut seen = Vec::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        seen.push(entry.unwrap().file_name().into_string().unwrap());
        if at % 2 == 0 {
            fs::remove_file(dir.join(seen.last().unwrap())).unwrap();
        }
    }
    assert_eq!(seen.len(), NAMES);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), all);
    let left: BTreeSet<_> = names(&dir).into_iter().collect();
    assert_eq!(left.len(), NAMES / 2);
    assert_eq!(
        left,
        names(&twins.source().join("large")).into_iter().collect()
    );
    fs::remove_dir_all(&dir).unwrap();
    assert!(!twins.source().join("large").exists());
}

#[test]
fn a_listing_goes_on_where_it_was_left() {
    let twins = Twins::new([]);
    let dir = twins.mounted();
    for i in 0..300 {
        fs::write(dir.join(format!("name{i}")), "").unwrap();
    }
    let fd = directory(dir);
    let names = |dir: Dir| -> Vec<_> {
        dir.map(|entry| entry.unwrap().file_name().to_owned())
            .collect()
    };
    let first = names(Dir::read_from(&fd).unwrap());
    let mut places = Vec::new();
    for entry in Dir::read_from(&fd).unwrap() {
        places.push(entry.unwrap().offset());
    }
    for at in [0, 1, 150, 299] {
        seek(&fd, SeekFrom::Start(places[at] as u64)).unwrap();
        let rest = names(Dir::new(fd.try_clone().unwrap()).unwrap());
        assert_eq!(rest, first[at + 1..], "after name {at}");
    }
    // a name that comes later shows to who begins anew on an old descriptor
    fs::write(dir.join("later"), "").unwrap();
    let again = names(Dir::read_from(&fd).unwrap());
    assert!(again.iter().any(|name| name.as_bytes() == b"later"));
}

/// And whatever was removed meanwhile, the place itself included.
#[test]
fn a_place_in_a_directory_survives_removals() {
    let twins = Twins::new([]);
    twins.same("the names after the place", |dir| {
        for i in 0..1000 {
            fs::write(dir.join(format!("name{i}")), "").unwrap();
        }
        let fd = directory(dir);
        let mut listing = Dir::read_from(&fd).unwrap();
        let gone: Vec<_> = listing.by_ref().take(500).map(Result::unwrap).collect();
        let place = gone.last().unwrap().offset();
        let left: Vec<_> = listing
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        for entry in &gone {
            // the two that cannot be removed are as good
            let _ = unlinkat(&fd, entry.file_name(), AtFlags::empty());
        }
        seek(&fd, SeekFrom::Start(place as u64)).unwrap();
        let rest: Vec<_> = Dir::new(fd)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        assert_eq!(rest, left);
        rest.len()
    });
}

#[test]
fn the_numbers_of_dot_and_dot_dot() {
    let twins = Twins::new([]);
    twins.same("numbers", |dir| {
        fs::create_dir_all(dir.join("upper/middle/lower")).unwrap();
        let number = |path: &str| fs::metadata(dir.join(path)).unwrap().ino();
        for (path, above) in [("upper", "."), ("upper/middle", "upper")] {
            let listed = |name: &[u8]| {
                let mut entries = Dir::read_from(directory(&dir.join(path))).unwrap();
                let entry =
                    entries.find(|entry| entry.as_ref().unwrap().file_name().to_bytes() == name);
                entry.unwrap().unwrap().ino()
            };
            assert_eq!(listed(b"."), number(path), "{path}");
            assert_eq!(listed(b".."), number(above), "above {path}");
        }
    });
}

/// Deep beyond what any path can name.
#[test]
fn a_deep_tree() {
    const DEPTH: usize = 3000;
    let twins = Twins::new([]);
    let below = |dir: &Path| {
        let mut at = directory(dir);
        for _ in 0..DEPTH {
            at = openat(
                &at,
                "deeper",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
        }
        Ok::<_, Errno>(at)
    };
    let mut at = directory(twins.mounted());
    for _ in 0..DEPTH {
        mkdirat(&at, "deeper", Mode::RWXU).unwrap();
        at = openat(
            &at,
            "deeper",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
    }
    drop(openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
    linkat(
        &at,
        "file",
        CWD,
        twins.mounted().join("up"),
        AtFlags::empty(),
    )
    .unwrap();
    unlinkat(below(&twins.source()).unwrap(), "file", AtFlags::empty()).unwrap();
    assert_eq!(fs::metadata(twins.source().join("up")).unwrap().nlink(), 1);
    drop(below(twins.mounted()).unwrap());
    drop(at);
    twins.script("rm -rf deeper; ls deeper");
}
