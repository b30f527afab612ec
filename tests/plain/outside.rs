//! What happens behind the mount's back, and what lies around the source.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use rustix::fs::StatVfsMountFlags;

use crate::common::mount::Mount;
use crate::common::twins::Twins;
use crate::eventually;

#[test]
fn what_is_made_beneath_shows_at_once_where_nobody_asked_for_it() {
    let twins = Twins::new([]);
    let (mounted, source) = (twins.mounted(), twins.source());
    for i in 0..50 {
        let name = format!("file{i}");
        fs::write(source.join(&name), &name).unwrap();
        assert_eq!(fs::read_to_string(mounted.join(&name)).unwrap(), name);
        assert_eq!(fs::read_dir(mounted).unwrap().count(), i + 1);
    }
}

#[test]
fn what_was_missing_and_is_made_beneath_shows_soon() {
    let twins = Twins::new([]);
    let (mounted, source) = (twins.mounted().join("file"), twins.source().join("file"));
    assert!(!mounted.exists());
    fs::write(&source, "made").unwrap();
    eventually("it shows", || fs::read_to_string(&mounted).is_ok());
    // what the mount itself makes shows at once
    for i in 0..50 {
        let name = twins.mounted().join(format!("file{i}"));
        assert!(!name.exists());
        fs::write(&name, "made").unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), "made");
        fs::remove_file(&name).unwrap();
        assert!(!name.exists());
    }
}

#[test]
fn without_a_lifetime_everything_beneath_shows_at_once() {
    let twins = Twins::new(["--plain-ttl", "0s"]);
    let (mounted, source) = (twins.mounted().join("file"), twins.source().join("file"));
    for i in 0..20 {
        assert!(!mounted.exists());
        fs::write(&source, "x".repeat(i)).unwrap();
        assert_eq!(fs::metadata(&mounted).unwrap().len(), i as u64);
        fs::write(&source, "x".repeat(2 * i)).unwrap();
        assert_eq!(fs::metadata(&mounted).unwrap().len(), 2 * i as u64);
        fs::remove_file(&source).unwrap();
    }
}

#[test]
fn what_changes_beneath_shows_soon() {
    let twins = Twins::new([]);
    let (mounted, source) = (twins.mounted(), twins.source());
    fs::create_dir(mounted.join("dir")).unwrap();
    for name in ["grows", "goes", "moves", "replaced", "dir/in"] {
        fs::write(mounted.join(name), "old").unwrap();
        assert_eq!(fs::metadata(mounted.join(name)).unwrap().len(), 3);
    }
    let mut open = File::open(mounted.join("grows")).unwrap();
    OpenOptions::new()
        .append(true)
        .open(source.join("grows"))
        .unwrap()
        .write_all(b" and new")
        .unwrap();
    fs::remove_file(source.join("goes")).unwrap();
    fs::rename(source.join("moves"), source.join("dir/moved")).unwrap();
    fs::write(source.join("coming"), "replacement").unwrap();
    fs::rename(source.join("coming"), source.join("replaced")).unwrap();
    fs::rename(source.join("dir"), source.join("other")).unwrap();
    let read = |name: &str| fs::read_to_string(mounted.join(name)).ok();
    eventually("a longer file", || {
        read("grows").as_deref() == Some("old and new")
    });
    eventually("a file less", || read("goes").is_none());
    eventually("a file elsewhere", || {
        read("other/moved").as_deref() == Some("old") && read("moves").is_none()
    });
    eventually("another file", || {
        read("replaced").as_deref() == Some("replacement")
    });
    eventually("a directory moved", || {
        read("other/in").as_deref() == Some("old") && read("dir/in").is_none()
    });
    let mut seen = String::new();
    std::io::Read::read_to_string(&mut open, &mut seen).unwrap();
    assert_eq!(seen, "old and new");
    eventually("an equal listing", || {
        let names = |dir| {
            let mut names: Vec<_> = fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        names(mounted) == names(&source)
    });
}

/// What is written to a name is in the file of that name, even where another file has just come
/// to it beneath and the kernel still remembers the one before.
#[test]
fn a_write_goes_to_the_file_that_is_there() {
    let twins = Twins::new([]);
    for round in 0..20 {
        let name = format!("log{round}");
        fs::write(twins.mounted().join(&name), "first\n").unwrap();
        fs::write(twins.source().join("next"), "second\n").unwrap();
        fs::rename(twins.source().join("next"), twins.source().join(&name)).unwrap();
        let mut log = OpenOptions::new()
            .append(true)
            .open(twins.mounted().join(&name))
            .unwrap();
        log.write_all(b"third\n").unwrap();
        assert_eq!(
            fs::read_to_string(twins.source().join(&name)).unwrap(),
            "second\nthird\n"
        );
        fs::remove_file(twins.source().join(&name)).unwrap();
        fs::write(twins.mounted().join(&name), "fourth").unwrap();
        assert_eq!(
            fs::read_to_string(twins.source().join(&name)).unwrap(),
            "fourth"
        );
    }
}

#[test]
fn a_mount_over_its_own_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("run");
    fs::create_dir_all(source.join("wepp/runs")).unwrap();
    fs::write(source.join("wepp/runs/p1.sol"), "below").unwrap();
    // a descriptor that stays on the lower directory
    let below = File::open(&source).unwrap();
    let below = |name: &str| {
        format!(
            "/proc/self/fd/{}/{name}",
            std::os::fd::AsRawFd::as_raw_fd(&below)
        )
    };
    {
        let mount = Mount::builder(&source).mountpoint(&source).start();
        assert_eq!(
            fs::read_to_string(source.join("wepp/runs/p1.sol")).unwrap(),
            "below"
        );
        fs::write(source.join("wepp/new"), "through the mount").unwrap();
        fs::rename(source.join("wepp"), source.join("moved")).unwrap();
        assert_eq!(
            fs::read_to_string(below("moved/new")).unwrap(),
            "through the mount"
        );
        assert_ne!(
            fs::metadata(&source).unwrap().dev(),
            fs::metadata(below(".")).unwrap().dev()
        );
        let listed = Command::new("find").arg(mount.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 5);
    }
    assert_eq!(
        fs::read_to_string(source.join("moved/new")).unwrap(),
        "through the mount"
    );
}

#[test]
fn symlinks_lead_where_they_lead_for_the_caller() {
    let twins = Twins::new([]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "outside").unwrap();
    twins.same("links to the outside", |dir| {
        symlink(outside.path(), dir.join("absolute")).unwrap();
        symlink("../plain", dir.join("relative")).unwrap();
        fs::write(
            dir.join("absolute").join(dir.file_name().unwrap()),
            "made outside",
        )
        .unwrap();
        (
            fs::read_to_string(dir.join("absolute/file")).unwrap(),
            fs::metadata(dir.join("relative")).is_ok(),
            fs::symlink_metadata(dir.join("absolute")).unwrap().len(),
        )
    });
    assert!(outside.path().join("mnt").exists() && outside.path().join("plain").exists());
    let across = fs::rename(
        twins.mounted().join("absolute/file"),
        twins.mounted().join("here"),
    )
    .unwrap_err();
    assert_eq!(across.kind(), std::io::ErrorKind::CrossesDevices);
}

/// A symlink that takes a directory's place beneath does not lead the daemon outside.
#[test]
fn a_swapped_symlink_leads_nowhere() {
    let twins = Twins::new([]);
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(twins.mounted().join("dir")).unwrap();
    fs::write(twins.mounted().join("dir/file"), "inside").unwrap();
    fs::write(outside.path().join("file"), "outside").unwrap();
    let dir = File::open(twins.mounted().join("dir")).unwrap();
    fs::rename(twins.source().join("dir"), twins.source().join("away")).unwrap();
    symlink(outside.path(), twins.source().join("dir")).unwrap();
    let file = rustix::fs::openat(
        &dir,
        "file",
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    );
    if let Ok(file) = file {
        rustix::io::pwrite(file, b"INSIDE", 0).unwrap();
    }
    let _ = rustix::fs::unlinkat(&dir, "file", rustix::fs::AtFlags::empty());
    assert_eq!(
        fs::read_to_string(outside.path().join("file")).unwrap(),
        "outside"
    );
}

/// Nobody gets by way of the mount what an administrator has forbidden below.
#[test]
fn what_the_sources_mount_forbids() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let options = ["-t", "tmpfs", "-o", "nosuid,nodev,noexec", "tmpfs"];
    let mounted = Command::new("mount").args(options).arg(&source).status();
    if !mounted.unwrap().success() {
        eprintln!("needs the right to mount");
        return;
    }
    let _unmount = scopeguard(|| {
        let _ = Command::new("umount").arg("-l").arg(&source).status();
    });
    let mount = Mount::builder(&source).args(["-o", "dev,suid"]).start();
    let flags = rustix::fs::statvfs(mount.path()).unwrap().f_flag;
    let forbidden =
        StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
    assert!(flags.contains(forbidden), "{flags:?}");
}

/// Other file systems may be mounted below the source.
#[test]
fn a_file_system_within_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let tmpfs = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
    if !Command::new("mount")
        .args(tmpfs)
        .arg(&inner)
        .status()
        .unwrap()
        .success()
    {
        eprintln!("needs the right to mount");
        return;
    }
    let unmount = scopeguard(|| {
        let _ = Command::new("umount").arg("-l").arg(&inner).status();
    });
    let mount = Mount::builder(dir.path()).start();
    let through = mount.path().join("inner");
    fs::write(through.join("file"), "content").unwrap();
    fs::hard_link(through.join("file"), through.join("linked")).unwrap();
    let (mounted, source) = (
        fs::metadata(through.join("linked")).unwrap(),
        fs::metadata(inner.join("file")).unwrap(),
    );
    assert_eq!((mounted.ino(), mounted.nlink()), (source.ino(), 2));
    let across = fs::rename(through.join("file"), mount.path().join("file")).unwrap_err();
    assert_eq!(across.kind(), std::io::ErrorKind::CrossesDevices);
    // and it is full when it is full
    let full = fs::write(through.join("large"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(mount);
    drop(unmount);
}

fn scopeguard(act: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(act)
}
