//! A disk that fails: full, read-only, or with an error of each system call of a commit in turn, each
//! as an error and as a crash (promises 3, 4 and 9). As root: a file system of the test's own is mounted, and the
//! daemon is traced.

mod common;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::mount::Mount;
use site::{call, document, eventually, listing, save};
use tempfile::TempDir;
use tracer::{Tracer, is_root};

const NAME: &str = "wepp.nodb";

/// A directory with a file system of its own, unmounted on drop.
struct Volume {
    dir: TempDir,
}

impl Volume {
    fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(args, dir.path());
        fs::write(dir.path().join(NAME), document(NAME, 0)).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // nothing to be done if that fails
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn mount(args: &[&str], on: &Path) {
    let done = Command::new("mount").args(args).arg(on).status().unwrap();
    assert!(done.success(), "mount {args:?}");
}

/// Takes all the space there is.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    let full = std::io::copy(&mut std::io::repeat(b'x'), &mut file).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    path
}

/// What `close` says, which Rust's own `File` does not tell.
fn saved_by_close(path: &Path, text: &str) -> String {
    let code = r#"
import errno, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
os.write(fd, sys.argv[2].encode())
try:
    os.close(fd)
    print("saved")
except OSError as error:
    print(errno.errorcode[error.errno])
"#;
    let output = Command::new("python3")
        .args(["-c", code])
        .arg(path)
        .arg(text)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_full_disk_is_enospc_and_the_old_generation_stands() {
    if !is_root() {
        return;
    }
    let volume = Volume::new(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"]);
    let nodbfs = Mount::builder(volume.path()).start();
    let (at, disk) = (nodbfs.path().join(NAME), volume.path().join(NAME));
    let old = fs::read_to_string(&disk).unwrap();
    let new = format!("{{\"pad\": \"{}\"}}", "x".repeat(50_000));
    let filler = fill(volume.path());
    let names = listing(volume.path());

    assert_eq!(saved_by_close(&at, &new), "ENOSPC");
    assert_eq!(save(&at, &new), Err(libc::ENOSPC));
    let writer = File::options()
        .write(true)
        .truncate(true)
        .open(&at)
        .unwrap();
    let again = writer.try_clone().unwrap();
    let text = new.clone();
    let said = call("a save", move || site::write(writer, &text));
    assert_eq!(said, Err(libc::ENOSPC));
    assert_eq!(fs::read_to_string(&disk).unwrap(), old);
    assert_eq!(fs::read_to_string(&at).unwrap(), old);
    // a process that another test starts here closes its copy of the descriptor, which tries once more
    eventually("no leftover", || listing(volume.path()) == names);
    eventually("what could not be saved is kept", || {
        let mut kept = nodbfs.rejected().into_iter();
        kept.any(|document| fs::read_to_string(document).unwrap() == new)
    });

    // the writer that still has it open gets it done once there is room
    fs::remove_file(filler).unwrap();
    assert_eq!(call("another try", move || again.sync_all()), Ok(()));
    assert_eq!(fs::read_to_string(&disk).unwrap(), new);
    assert_eq!(save(&at, &old), Ok(()));
}

#[test]
fn a_source_that_becomes_read_only_is_erofs() {
    if !is_root() {
        return;
    }
    let volume = Volume::new(&["-t", "tmpfs", "tmpfs"]);
    let nodbfs = Mount::builder(volume.path()).start();
    let (at, disk) = (nodbfs.path().join(NAME), volume.path().join(NAME));
    let old = fs::read_to_string(&disk).unwrap();
    mount(&["-o", "remount,ro"], volume.path());
    assert_eq!(saved_by_close(&at, "{}"), "EROFS");
    assert_eq!(save(&at, "{}"), Err(libc::EROFS));
    let path = at.clone();
    assert_eq!(
        call("an unlink", move || fs::remove_file(path)),
        Err(libc::EROFS)
    );
    assert_eq!(fs::read_to_string(&at).unwrap(), old);
    mount(&["-o", "remount,rw"], volume.path());
    assert_eq!(save(&at, "{}"), Ok(()));
    assert_eq!(fs::read_to_string(&disk).unwrap(), "{}");
}

/// The calls that a commit makes on the source.
const CALLS: [&str; 9] = [
    "openat",
    "pwrite64",
    "fsync",
    "fchmod",
    "fchown",
    "renameat2",
    "statx",
    "unlinkat",
    "pread64",
];

/// Saves a text and says how that went.
type Road = fn(&Path, &str) -> String;

/// The ways of a save.
const ROADS: [(&str, Road); 2] = [
    ("in place", saved_by_close),
    ("rename", |path, text| {
        let draft = path.with_extension("draft");
        let (from, to, text) = (draft.clone(), path.to_owned(), text.to_owned());
        let said = call("a rename", move || {
            fs::write(&from, text)?;
            fs::rename(from, to)
        });
        // published or not, it is in nobody's way
        let _ = fs::remove_file(draft);
        said.map_or_else(|errno| errno.to_string(), |()| "saved".to_owned())
    }),
];

/// Every call of a commit, each at its first, second … time, fails with `EIO`: told and undone, or done.
#[test]
fn an_error_of_any_call_of_a_commit_is_told_or_harmless() {
    if !is_root() {
        return;
    }
    let (mut refused, mut saved) = (0, 0);
    for (road, save_by) in ROADS {
        for name in CALLS {
            for time in 1..=4 {
                let dir = tempfile::tempdir().unwrap();
                let disk = dir.path().join(NAME);
                fs::write(&disk, document(NAME, 0)).unwrap();
                let daemon = Mount::builder(dir.path()).start();
                let at = daemon.path().join(NAME);
                fs::read(&at).unwrap();
                let (old, new) = (document(NAME, 0), document(NAME, 1));
                let tracer = Tracer::inject(&daemon, &format!("{name}:error=EIO:when={time}"));
                let said = save_by(&at, &new);
                drop(tracer);
                let what = format!("{road}, {name} {time}: {said}");
                let text = fs::read_to_string(&disk).unwrap();
                if said == "saved" {
                    saved += 1;
                    assert_eq!(text, new, "{what}");
                } else {
                    refused += 1;
                    assert!(text == old, "{what}: {text}");
                }
                assert_eq!(fs::read_to_string(&at).unwrap(), text, "{what}");
                assert_eq!(save(&at, "{}"), Ok(()), "{what}");
                assert_eq!(fs::read_to_string(&disk).unwrap(), "{}", "{what}");
            }
        }
    }
    println!("{refused} refused, {saved} saved");
    assert!(refused > 0 && saved > 0);
}

/// The same with a crash: old or new, whole, and what was acknowledged is there.
#[test]
fn a_crash_in_any_call_of_a_commit_leaves_old_or_new() {
    if !is_root() {
        return;
    }
    let (mut old_stands, mut new_stands) = (0, 0);
    for (road, save_by) in ROADS {
        for name in CALLS {
            for time in 1..=4 {
                let dir = tempfile::tempdir().unwrap();
                let disk = dir.path().join(NAME);
                let (old, new) = (document(NAME, 0), document(NAME, 1));
                fs::write(&disk, &old).unwrap();
                let mut daemon = Mount::builder(dir.path()).start();
                fs::read(daemon.path().join(NAME)).unwrap();
                let tracer = Tracer::inject(&daemon, &format!("{name}:signal=KILL:when={time}"));
                let said = save_by(&daemon.path().join(NAME), &new);
                drop(tracer);
                let what = format!("{road}, {name} {time}: {said}");
                daemon.crash();
                let text = fs::read_to_string(&disk).unwrap();
                assert!(text == old || text == new, "{what}: {text}");
                assert!(said != "saved" || text == new, "{what}: {text}");
                if text == old {
                    old_stands += 1;
                } else {
                    new_stands += 1;
                }
                drop(daemon);
                let daemon = Mount::builder(dir.path()).start();
                let at = daemon.path().join(NAME);
                assert_eq!(fs::read_to_string(&at).unwrap(), text, "{what}");
                listing(daemon.path());
                assert_eq!(save(&at, "{}"), Ok(()), "{what}");
                eventually("no leftover", || {
                    !listing(dir.path())
                        .iter()
                        .any(|name| name.starts_with(".nodbfs"))
                });
            }
        }
    }
    println!("old stands {old_stands} times, new {new_stands} times");
    assert!(old_stands > 0 && new_stands > 0);
}
