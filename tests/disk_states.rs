//! Real disks in bad states: full to the last block, out of inodes, over quota, gone in the middle of commits
//! as in a crash of the machine, hanging (promises 3, 4, 6 and 9). As root: file systems of the test's own are mounted.

mod common;
#[path = "common/loop_disk.rs"]
mod loop_disk;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use common::mount::Mount;
use loop_disk::{Disk, run};
use rustix::fs::{XattrFlags, getxattr, setxattr, syncfs};
use site::{document, eventually, listing, save};
use tracer::{Tracer, is_root};

const NAME: &str = "wepp.nodb";

/// Takes all the space there is, also what a file system finds once it has written everything down.
fn fill(dir: &Path, errno: i32) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    let mut size = None;
    while size != Some(file.metadata().unwrap().len()) {
        size = Some(file.metadata().unwrap().len());
        for piece in [1 << 16, 1 << 10] {
            let full = (0..).find_map(|_| file.write_all(&vec![b'x'; piece]).err());
            assert_eq!(full.unwrap().raw_os_error(), Some(errno));
        }
        // it may be over quota already
        let _ = file.sync_all();
    }
    path
}

/// By way of a file that is there already and a rename.
fn bring(draft: &Path, path: &Path) -> Result<(), i32> {
    let (draft, path) = (draft.to_owned(), path.to_owned());
    site::call("a rename", move || fs::rename(draft, path))
}

fn assert_no_leftover(dir: &Path) {
    eventually("no leftover", || {
        !listing(dir).iter().any(|name| name.starts_with(".nodbfs"))
    });
}

/// With none, one, two … blocks to spare, so that the space runs out at each step of a commit in turn.
#[test]
fn a_disk_full_to_the_last_blocks_is_enospc_or_enough() {
    if !is_root() {
        return;
    }
    let disk = Disk::new("ext4", 2, &["-b", "1024", "-m", "0"]);
    let (at, name) = (disk.path().join(NAME), "user.note");
    let pad = "x".repeat(9000);
    let doc = |n: u64| format!("{{\"n\": {n}, \"pad\": \"{pad}\"}}");
    fs::write(&at, doc(0)).unwrap();
    // has a block of its own
    setxattr(&at, name, &[b'x'; 700], XattrFlags::empty()).unwrap();
    let nodbfs = Mount::builder(disk.path()).start();
    let (mut refused, mut saved) = (0, 0);
    for spare in 0..12 {
        for by_rename in [false, true] {
            let draft = nodbfs.path().join("draft");
            let (old, new) = (
                fs::read_to_string(&at).unwrap(),
                doc(spare * 2 + u64::from(by_rename) + 1),
            );
            fs::write(&draft, &new).unwrap();
            // a new file needs its blocks, once they are chosen
            File::open(disk.path().join("draft"))
                .unwrap()
                .sync_all()
                .unwrap();
            let filler = fill(disk.path(), libc::ENOSPC);
            let full = fs::metadata(&filler).unwrap().len();
            let rest = File::options().write(true).open(&filler).unwrap();
            rest.set_len((full - full % 1024).saturating_sub(spare * 1024))
                .unwrap();
            rest.sync_all().unwrap();
            let through = nodbfs.path().join(NAME);
            let said = match by_rename {
                true => bring(&draft, &through),
                false => save(&through, &new),
            };
            let now = fs::read_to_string(&at).unwrap();
            match said {
                Ok(()) => saved += 1,
                Err(errno) => {
                    assert_eq!(errno, libc::ENOSPC, "{spare} blocks to spare");
                    refused += 1;
                }
            }
            assert!(
                now == if said.is_ok() { new } else { old },
                "{spare}: {said:?}"
            );
            assert!(fs::read_to_string(&through).unwrap() == now);
            assert_eq!(getxattr(&at, name, &mut [0; 800]), Ok(700));
            assert_no_leftover(disk.path());
            fs::remove_file(&filler).unwrap();
            let _ = fs::remove_file(&draft);
            // the blocks are free when the journal says so
            syncfs(File::open(disk.path()).unwrap()).unwrap();
        }
    }
    println!("{refused} refused, {saved} saved");
    assert!(refused > 4 && saved > 4);
}

/// No inode is left for the temporary file; what needs none goes on.
#[test]
fn a_disk_without_inodes_is_enospc_and_renames_go_on() {
    if !is_root() {
        return;
    }
    let disk = Disk::new("ext4", 2, &["-N", "32"]);
    let at = disk.path().join(NAME);
    fs::write(&at, document(NAME, 0)).unwrap();
    fs::write(disk.path().join("draft"), document(NAME, 1)).unwrap();
    let nodbfs = Mount::builder(disk.path()).start();
    let through = nodbfs.path().join(NAME);
    let taken: Vec<_> = (0..)
        .map(|n| disk.path().join(format!("file-{n}")))
        .take_while(|path| File::create(path).is_ok())
        .collect();
    assert_eq!(save(&through, "{}"), Err(libc::ENOSPC));
    let new = File::create(nodbfs.path().join("new.nodb")).unwrap();
    let said = site::call("a new controller", || site::write(new, "{}"));
    assert_eq!(said, Err(libc::ENOSPC));
    assert!(!disk.path().join("new.nodb").exists());
    assert_eq!(fs::read_to_string(&through).unwrap(), document(NAME, 0));
    assert_eq!(bring(&nodbfs.path().join("draft"), &through), Ok(()));
    assert_eq!(fs::read_to_string(&at).unwrap(), document(NAME, 1));
    fs::remove_file(&taken[0]).unwrap();
    assert_eq!(save(&through, "{}"), Ok(()));
    assert_no_leftover(disk.path());
}

/// EDQUOT, of a real quota (btrfs: there it counts for root too).
#[test]
fn a_quota_used_up_is_edquot_and_the_old_generation_stands() {
    if !is_root() {
        return;
    }
    let disk = Disk::new("btrfs", 128, &[]);
    let at = disk.path().join(NAME);
    fs::write(&at, document(NAME, 0)).unwrap();
    run(Command::new("btrfs")
        .args(["quota", "enable"])
        .arg(disk.path()));
    let limit = |limit: &str| {
        run(Command::new("btrfs")
            .args(["qgroup", "limit", limit])
            .arg(disk.path()))
    };
    limit("8M");
    let nodbfs = Mount::builder(disk.path()).start();
    let through = nodbfs.path().join(NAME);
    fill(disk.path(), libc::EDQUOT);
    let large = format!("{{\"pad\": \"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(save(&through, &large), Err(libc::EDQUOT));
    for path in [&at, &through] {
        assert_eq!(fs::read_to_string(path).unwrap(), document(NAME, 0));
    }
    eventually("what could not be saved is kept", || {
        let kept = nodbfs.rejected();
        kept.iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|text| text == large))
    });
    limit("none");
    assert_eq!(save(&through, &large), Ok(()));
    assert_eq!(fs::read_to_string(&at).unwrap(), large);
    assert_no_leftover(disk.path());
}

/// ESTALE and EDQUOT, of each call of a commit in turn: told and undone, or done.
#[test]
fn estale_and_edquot_of_any_call_are_told_or_harmless() {
    if !is_root() {
        return;
    }
    let (mut refused, mut saved) = (0, 0);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join(NAME);
    for (error, calls) in [
        (
            "ESTALE",
            &["openat", "statx", "renameat2", "fsync", "pread64"][..],
        ),
        (
            "EDQUOT",
            &["openat", "pwrite64", "fchown", "fsync", "renameat2"],
        ),
    ] {
        for name in calls {
            for time in 1..=4 {
                let what = format!("{error} of {name}, {time}");
                fs::write(&disk, document(NAME, 0)).unwrap();
                let daemon = Mount::builder(dir.path()).start();
                let at = daemon.path().join(NAME);
                let tracer = Tracer::inject(&daemon, &format!("{name}:error={error}:when={time}"));
                let said = save(&at, &document(NAME, 1));
                drop(tracer);
                let expected = if said.is_ok() { 1 } else { 0 };
                assert_eq!(
                    fs::read_to_string(&disk).unwrap(),
                    document(NAME, expected),
                    "{what}: {said:?}"
                );
                assert_eq!(
                    fs::read_to_string(&at).unwrap(),
                    document(NAME, expected),
                    "{what}"
                );
                match said {
                    Ok(()) => saved += 1,
                    Err(errno) => {
                        assert!(
                            [libc::ESTALE, libc::EDQUOT, libc::EIO].contains(&errno),
                            "{what}: {errno}"
                        );
                        refused += 1;
                    }
                }
                eventually("saves go on", || save(&at, "{}").is_ok());
                drop(daemon);
                assert_no_leftover(dir.path());
            }
        }
    }
    println!("{refused} refused, {saved} saved");
    assert!(refused > 0 && saved > 0);
}

/// One program's documents, and what it has been told of them.
#[derive(Default)]
struct Program {
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

impl Program {
    /// Large enough to be torn if it could be.
    fn document(n: u64) -> String {
        format!(
            "{{\"n\": {n}, \"pad\": \"{}\"}}",
            "x".repeat((n * 7919 % 60_000) as usize)
        )
    }

    /// Saves by `road` until it is told of an error, which it returns.
    fn work(&self, road: usize, path: &Path, broken: &AtomicBool) -> i32 {
        let draft = path.with_extension("draft");
        loop {
            let n = self.tried.fetch_add(1, SeqCst) + 1;
            let text = Self::document(n);
            let said = match road {
                0 => File::options()
                    .write(true)
                    .truncate(true)
                    .open(path)
                    .and_then(|file| site::write(file, &text)),
                1 => fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)),
                _ => fs::write(&draft, text).and_then(|()| {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    let cwd = rustix::fs::CWD;
                    Ok(rustix::fs::renameat_with(cwd, &draft, cwd, path, exchange)?)
                }),
            };
            match said {
                Ok(()) => self.acknowledged.store(n, SeqCst),
                Err(error) => {
                    assert!(broken.load(SeqCst), "{error}");
                    return error.raw_os_error().expect("an errno");
                }
            }
        }
    }
}

/// The file system is shut down in the middle of commits, as in a crash of the machine: what was acknowledged is there
/// when the journal has been replayed, and every document is whole.
#[test]
fn a_crash_of_the_file_system_loses_nothing_that_was_acknowledged() {
    if !is_root() {
        return;
    }
    let mut told = Vec::new();
    for (kind, size, crashes) in [("ext4", 32, 6), ("xfs", 320, 4)] {
        let disk = Disk::new(kind, size, &[]);
        let programs: [Program; 3] = Default::default();
        let names = ["a.nodb", "b.nodb", "c.nodb"];
        for name in names {
            fs::write(disk.path().join(name), Program::document(0)).unwrap();
        }
        for crash in 0..crashes {
            let mut nodbfs = Mount::builder(disk.path()).start();
            let broken = AtomicBool::new(false);
            thread::scope(|scope| {
                let at_work: Vec<_> = programs
                    .iter()
                    .zip(names)
                    .enumerate()
                    .map(|(road, (program, name))| {
                        let path = nodbfs.path().join(name);
                        let broken = &broken;
                        scope.spawn(move || program.work(road, &path, broken))
                    })
                    .collect();
                let begin = programs
                    .each_ref()
                    .map(|program| program.acknowledged.load(SeqCst));
                eventually("saves go on", || {
                    let now = programs
                        .iter()
                        .map(|program| program.acknowledged.load(SeqCst));
                    now.zip(begin).all(|(now, begin)| now > begin + crash % 3)
                });
                broken.store(true, SeqCst);
                disk.crash();
                told.extend(at_work.into_iter().map(|program| program.join().unwrap()));
            });
            nodbfs.stop();
            disk.restart();
            for (program, name) in programs.iter().zip(names) {
                let text = fs::read_to_string(disk.path().join(name)).unwrap();
                let (acknowledged, tried) = (
                    program.acknowledged.load(SeqCst),
                    program.tried.load(SeqCst),
                );
                let found = (acknowledged..=tried).find(|&n| Program::document(n) == text);
                assert!(
                    found.is_some(),
                    "{kind}, {name}: {acknowledged} acknowledged, {tried} tried: {text:.40}"
                );
            }
        }
        let nodbfs = Mount::builder(disk.path()).start();
        for name in names {
            assert_eq!(save(&nodbfs.path().join(name), "{}"), Ok(()));
        }
        listing(nodbfs.path());
        assert_no_leftover(disk.path());
    }
    println!("told: {told:?}");
}
