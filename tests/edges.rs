//! What goes wrong at the edges: a refused rename, symlinks, descriptors that outlive their names,
//! attributes changed while a writer is open, rights.

mod common;

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::mount::Mount;
use common::run::python;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use tempfile::TempDir;

/// Nobody in particular.
const USER: u32 = 65533;

struct Field {
    mount: Mount,
    dir: TempDir,
}

impl Field {
    fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let mount = Mount::builder(dir.path().join("run")).args(args).start();
        Self { mount, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    fn on_disk(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// A file on disk, old enough for nobody to be in the middle of writing it.
    fn given(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.on_disk(name), content).unwrap();
        let before = SystemTime::now() - Duration::from_secs(60);
        let file = File::options().append(true).open(self.on_disk(name));
        file.unwrap()
            .set_times(FileTimes::new().set_modified(before))
            .unwrap();
        self.at(name)
    }
}

#[test]
fn a_refused_rename_leaves_the_controller_where_it_was() {
    let field = Field::new(&[]);
    let path = field.given("broken.nodb", "no document");
    assert_eq!(fs::read_to_string(&path).unwrap(), "no document");
    let refused = fs::rename(&path, field.at("other.nodb")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADMSG));
    assert_eq!(fs::read_to_string(&path).unwrap(), "no document");
}

#[test]
fn a_file_replaces_a_symlinked_controller() {
    let field = Field::new(&[]);
    field.given("parent.nodb", r#"{"parent":1}"#);
    symlink("parent.nodb", field.on_disk("child.nodb")).unwrap();
    fs::write(field.at("t"), r#"{"child":1}"#).unwrap();
    fs::rename(field.at("t"), field.at("child.nodb")).unwrap();
    assert!(!field.on_disk("child.nodb").is_symlink());
    for (name, content) in [
        ("child.nodb", r#"{"child":1}"#),
        ("parent.nodb", r#"{"parent":1}"#),
    ] {
        assert_eq!(fs::read_to_string(field.at(name)).unwrap(), content);
        assert_eq!(fs::read_to_string(field.on_disk(name)).unwrap(), content);
    }
}

#[test]
fn an_unlinked_file_answers_as_long_as_any_descriptor_is_open() {
    let field = Field::new(&[]);
    let path = field.given("plain", "x");
    let first = OpenOptions::new().write(true).open(&path).unwrap();
    drop(File::open(&path).unwrap());
    fs::remove_file(&path).unwrap();
    first.set_len(5).unwrap();
    first
        .set_permissions(Permissions::from_mode(0o600))
        .unwrap();
    let stat = first.metadata().unwrap();
    assert_eq!(
        (stat.len(), stat.nlink(), stat.mode() & 0o777),
        (5, 0, 0o600)
    );
}

#[test]
fn a_removed_directory_answers_whoever_has_it_open() {
    let field = Field::new(&[]);
    fs::create_dir(field.at("d")).unwrap();
    let dir = File::open(field.at("d")).unwrap();
    fs::remove_dir(field.at("d")).unwrap();
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
}

#[test]
fn a_chmod_while_a_writer_is_open_stays() {
    let field = Field::new(&[]);
    let path = field.given("x.nodb", "{}");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"[1]").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    drop(writer);
    assert_eq!(fs::read_to_string(field.on_disk("x.nodb")).unwrap(), "[1]");
    assert_eq!(
        field.on_disk("x.nodb").metadata().unwrap().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_writers_own_times_do_not_make_its_base_stale() {
    let field = Field::new(&[]);
    let path = field.given("x.nodb", "[0]");
    // a process of its own: one that starts others closes descriptors in them
    let code = r#"
fd = os.open(path, os.O_RDWR)
os.utime(fd, (1_000_000_000, 1_000_000_000))
# its close passes the time on to the file
os.close(os.dup(fd))
print(os.stat(disk).st_mtime)
os.write(fd, b"[1]")
os.fsync(fd)
# and the write is later than the time that was set
print(open(disk).read(), os.stat(disk).st_mtime > 1_600_000_000)
"#;
    let said = python(code, &[&path, &field.on_disk("x.nodb")]);
    assert_eq!(said, "1000000000.0\n[1] True");
}

#[test]
fn a_descriptor_opened_anew_truncates() {
    let field = Field::new(&[]);
    let path = field.given("x.nodb", "[1, 2, 3]");
    let mut writer = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let again = format!("/proc/self/fd/{}", writer.as_raw_fd());
    File::create(again).unwrap().write_all(b"[4]").unwrap();
    let mut seen = String::new();
    writer.rewind().unwrap();
    writer.read_to_string(&mut seen).unwrap();
    writer.sync_all().unwrap();
    drop(writer);
    assert_eq!(seen, "[4]");
    assert_eq!(fs::read_to_string(field.on_disk("x.nodb")).unwrap(), "[4]");
}

#[test]
fn a_controller_that_is_not_there_yet_has_no_extended_attributes() {
    let field = Field::new(&[]);
    let mut writer = File::create(field.at("new.nodb")).unwrap();
    let mut room = [0_u8; 64];
    assert_eq!(flistxattr(&writer, &mut room), Ok(0));
    assert_eq!(fgetxattr(&writer, "user.x", &mut room), Err(Errno::NODATA));
    assert_eq!(
        fsetxattr(&writer, "user.x", b"1", XattrFlags::empty()),
        Err(Errno::OPNOTSUPP)
    );
    writer.write_all(b"{}").unwrap();
    writer.sync_all().unwrap();
    assert_ne!(flistxattr(&writer, &mut room), Err(Errno::NOENT));
}

#[test]
fn a_truncation_by_name_leaves_open_readers_their_generation() {
    let field = Field::new(&[]);
    let path = field.given("x.nodb", "[1]\n\n\n");
    let mut reader = File::open(&path).unwrap();
    let truncated = Command::new("truncate")
        .args(["-s", "3"])
        .arg(&path)
        .status();
    assert!(truncated.unwrap().success());
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(
        (seen.as_str(), reader.metadata().unwrap().len()),
        ("[1]\n\n\n", 6)
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "[1]");
}

#[test]
fn a_name_in_another_directory_changes_what_stat_says() {
    let field = Field::new(&[]);
    for dir in ["one", "other"] {
        fs::create_dir(field.on_disk(dir)).unwrap();
    }
    let path = field.given("one/x.nodb", "[1]");
    fs::hard_link(field.on_disk("one/x.nodb"), field.on_disk("other/y")).unwrap();
    assert_eq!(
        (
            path.metadata().unwrap().len(),
            path.metadata().unwrap().nlink()
        ),
        (3, 2)
    );
    fs::write(field.on_disk("other/y"), "[1, 2, 3]").unwrap();
    assert_eq!(path.metadata().unwrap().len(), 9);
}

/// Runs `program` as somebody who is not root; panics if it fails.
fn as_user(program: &str, path: &std::path::Path) {
    let done = Command::new("python3")
        .args(["-c", program])
        .arg(path)
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A mount that others may use. `None`: only root can make one.
fn shared() -> Option<Field> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root: skipped");
        return None;
    }
    let field = Field::new(&["--allow-other"]);
    for dir in [field.dir.path(), field.mount.path()] {
        for above in dir
            .ancestors()
            .take_while(|dir| *dir != std::env::temp_dir())
        {
            fs::set_permissions(above, Permissions::from_mode(0o755)).unwrap();
        }
    }
    Some(field)
}

#[test]
fn the_right_to_the_file_is_enough() {
    let Some(field) = shared() else { return };
    let path = field.given("x.nodb", "{}");
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    as_user(
        "import sys\nwith open(sys.argv[1], 'w') as f: f.write('[1]')",
        &path,
    );
    let stat = field.on_disk("x.nodb").metadata().unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o777), (0, 0o666));
    assert_eq!(fs::read_to_string(&path).unwrap(), "[1]");
}

#[test]
fn set_id_bits_go_with_the_first_change() {
    let Some(field) = shared() else { return };
    for (name, change) in [
        ("written", "os.write(os.open(p, os.O_WRONLY), b'y')"),
        ("emptied", "os.open(p, os.O_WRONLY | os.O_TRUNC)"),
        (
            "allocated",
            "os.posix_fallocate(os.open(p, os.O_WRONLY), 0, 100)",
        ),
    ] {
        let path = field.given(name, "x");
        let special = OpenOptions::new()
            .write(true)
            .mode(0o777)
            .open(field.on_disk(name));
        special
            .unwrap()
            .set_permissions(Permissions::from_mode(0o6777))
            .unwrap();
        as_user(&format!("import os, sys; p = sys.argv[1]; {change}"), &path);
        assert_eq!(
            field.on_disk(name).metadata().unwrap().mode() & 0o7777,
            0o777,
            "{name}"
        );
    }
}

#[test]
fn a_default_acl_grants_nothing_that_the_controller_did_not() {
    let field = Field::new(&[]);
    let path = field.given("x.nodb", "{}");
    fs::set_permissions(field.on_disk("x.nodb"), Permissions::from_mode(0o640)).unwrap();
    // user::rwx user:65533:rw- group::r-x mask::rwx other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 6, USER),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let run = field.on_disk("");
    match rustix::fs::setxattr(&run, "system.posix_acl_default", &acl, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => return eprintln!("no ACLs here: skipped"),
        set => set.unwrap(),
    }
    fs::write(&path, "[1]").unwrap();
    let mut room = [0_u8; 256];
    let acl = rustix::fs::getxattr(
        field.on_disk("x.nodb"),
        "system.posix_acl_access",
        &mut room,
    );
    assert_eq!(acl, Err(Errno::NODATA));
    assert_eq!(
        field.on_disk("x.nodb").metadata().unwrap().mode() & 0o777,
        0o640
    );
}
