//! A daemon that is stopped for longer than its lease, at whatever instruction, does not overwrite
//! what others committed meanwhile (promises 5 and 6). Two daemons on one source and one Redis, as
//! on two hosts, take turns at being stopped while programs go on adding marks through both.

mod common;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::collections::BTreeSet;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use common::mount::Mount;
use common::program::Program;
use common::redis::RedisServer;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::Signal;
use serde_json::json;
use site::{Site, document, save};
use tracer::{Tracer, is_root};

/// Programs at each mount.
const WRITERS: usize = 3;
/// Marks that each program must have had acknowledged in the end.
const MARKS: usize = 25;
/// How often the daemons are stopped at least.
const STOPS: usize = 12;

/// Adds `mark` to the list in `path` as any program would: read, change, write, `fsync`, close.
/// `Ok`: the mount said that it is on stable storage.
fn add(path: &Path, mark: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut marks: Vec<String> = serde_json::from_str(&text).expect("a whole document");
    marks.push(mark.to_owned());
    let text = serde_json::to_string(&marks).expect("strings are JSON");
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// As `add`, by way of a new file and a rename.
fn add_by_rename(path: &Path, mark: &str) -> io::Result<()> {
    // the rename of a file that somebody else may have read too cannot know what it was made from,
    // so the program holds the document open for writing, and with it the lock
    let held = OpenOptions::new().read(true).write(true).open(path)?;
    let text = io::read_to_string(&held)?;
    let mut marks: Vec<String> = serde_json::from_str(&text).expect("a whole document");
    marks.push(mark.to_owned());
    let draft = path.with_file_name(format!("draft-{mark}"));
    std::fs::write(
        &draft,
        serde_json::to_string(&marks).expect("strings are JSON"),
    )?;
    std::fs::rename(&draft, path)
}

#[test]
fn no_acknowledged_mark_is_lost_to_stopped_daemons() {
    let redis = RedisServer::start();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("marks.nodb"), "[]").unwrap();
    let lease = ["--lease-ttl", "200ms", "--lock-wait", "20s"];
    let mount = || Mount::builder(&run).redis(&redis.url()).args(lease).start();
    let mounts = [mount(), mount()];

    let working = AtomicBool::new(true);
    let acknowledged = thread::scope(|scope| {
        let chaos = scope.spawn(|| {
            let mut stops = 0;
            while working.load(Relaxed) || stops < STOPS {
                let victim = &mounts[stops % 2];
                victim.signal(Signal::STOP);
                // longer than the lease
                thread::sleep(Duration::from_millis(300));
                victim.signal(Signal::CONT);
                thread::sleep(Duration::from_millis(50 + (stops as u64 * 37) % 90));
                stops += 1;
            }
        });
        let mut writers = Vec::new();
        for (number, mount) in mounts.iter().enumerate() {
            for writer in 0..WRITERS {
                let path = mount.path().join("marks.nodb");
                writers.push(scope.spawn(move || {
                    let mut kept = Vec::new();
                    let mut tries = 0;
                    while kept.len() < MARKS {
                        tries += 1;
                        assert!(tries < 4000, "no progress: {} marks", kept.len());
                        let mark = format!("{number}-{writer}-{tries}");
                        let by_rename = writer == 0 && tries % 2 == 0;
                        let added = if by_rename {
                            add_by_rename(&path, &mark)
                        } else {
                            add(&path, &mark)
                        };
                        match added.map_err(|error| error.raw_os_error()) {
                            Ok(()) => kept.push(mark),
                            // whoever is refused tries again, as NoDb processes do
                            Err(Some(libc::EBUSY | libc::ESTALE | libc::ENOLCK | libc::EAGAIN)) => {
                                thread::sleep(Duration::from_millis(5));
                            }
                            Err(errno) => panic!("errno {errno:?}"),
                        }
                    }
                    kept
                }));
            }
        }
        let kept: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        working.store(false, Relaxed);
        chaos.join().unwrap();
        kept.into_iter()
            .flat_map(|kept| kept.unwrap())
            .collect::<BTreeSet<_>>()
    });

    let text = std::fs::read(run.join("marks.nodb")).unwrap();
    let marks: BTreeSet<String> = serde_json::from_slice(&text).unwrap();
    let lost: Vec<_> = acknowledged.difference(&marks).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    for mount in &mounts {
        assert_eq!(
            std::fs::read(mount.path().join("marks.nodb")).unwrap(),
            text
        );
    }
}

/// Two daemons are both in the middle of taking back what they published in vain, one over the other: neither
/// brings back what the other has refused.
#[test]
fn publications_taken_back_at_the_same_time_leave_what_was_acknowledged() {
    if !is_root() {
        return;
    }
    let site = Site::new(&["--lock-wait", "10s"]);
    let other = Mount::builder(site.on_disk(""))
        .redis(&site.redis.url())
        .start();
    let pause = |enter, exit| format!("renameat2:delay_enter={enter}:delay_exit={exit}:when=1");
    // the second exchanges 2 s after the first and 3 s before that one looks, which then waits for the second
    let tracer = Tracer::inject(&site.mount, &pause(3_000_000, 5_000_000));
    let _other_tracer = Tracer::inject(&other, &pause(5_000_000, 4_000_000));
    let [first, second] = [site.at("wepp.nodb"), other.path().join("wepp.nodb")];
    let first = thread::spawn(move || save(&first, &document("wepp.nodb", 1)));
    tracer.await_call(libc::SYS_renameat2);
    site.redis.cmd(&["DEL", &site::lock_key("wepp.nodb")]);
    let acknowledged = document("wepp.nodb", 2);
    let draft = site.on_disk("draft");
    std::fs::write(&draft, &acknowledged).unwrap();
    std::fs::rename(&draft, site.on_disk("wepp.nodb")).unwrap();
    let second = thread::spawn(move || save(&second, &document("wepp.nodb", 3)));
    assert_eq!(first.join().unwrap(), Err(libc::ESTALE));
    assert_eq!(second.join().unwrap(), Err(libc::ESTALE));
    assert_eq!(site.text("wepp.nodb"), acknowledged);
    let shown = std::fs::read_to_string(site.at("wepp.nodb")).unwrap();
    assert_eq!(shown, acknowledged);
    site.assert_clean();
}

/// A daemon is stopped between its vain publication and the look at what that replaced, and meanwhile somebody
/// replaces the file: theirs stays.
#[test]
fn what_replaced_a_vain_publication_stays() {
    if !is_root() {
        return;
    }
    let site = Site::new(&[]);
    let pause = "renameat2:delay_enter=2000000:delay_exit=2000000:when=1";
    let tracer = Tracer::inject(&site.mount, pause);
    let path = site.at("wepp.nodb");
    let late = thread::spawn(move || save(&path, &document("wepp.nodb", 1)));
    let replace = |n| {
        let draft = site.on_disk("draft");
        std::fs::write(&draft, document("wepp.nodb", n)).unwrap();
        std::fs::rename(&draft, site.on_disk("wepp.nodb")).unwrap();
    };
    tracer.await_call(libc::SYS_renameat2);
    replace(2);
    let vain = || site.text("wepp.nodb") == document("wepp.nodb", 1);
    site::eventually("the publication in vain", vain);
    replace(3);
    assert_eq!(late.join().unwrap(), Err(libc::ESTALE));
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 3));
    site.assert_clean();
}

/// Mode and attributes of a document change, beside the mount, while its next generation is on its way to the disk:
/// that has them, too (promise 4).
#[test]
fn a_mode_that_changes_during_a_commit_survives_it() {
    if !is_root() {
        return;
    }
    let site = Site::new(&[]);
    let tracer = Tracer::inject(&site.mount, "fsync:delay_enter=2000000:when=1");
    let path = site.at("wepp.nodb");
    let saving = thread::spawn(move || save(&path, &document("wepp.nodb", 1)));
    tracer.await_call(libc::SYS_fsync);
    let disk = site.on_disk("wepp.nodb");
    std::fs::set_permissions(&disk, Permissions::from_mode(0o604)).unwrap();
    setxattr(&disk, "user.kept", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(saving.join().unwrap(), Ok(()));
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 1));
    assert_eq!(disk.metadata().unwrap().mode() & 0o777, 0o604);
    let mut value = [0; 8];
    assert_eq!(getxattr(&disk, "user.kept", &mut value[..]), Ok(1));
}

/// The lock of an open writer was taken away, and nobody has noticed: what the process opens next has a lock of
/// its own.
#[test]
fn a_lost_lock_does_not_spoil_what_its_process_opens_next() {
    let site = Site::new(&[]);
    let mut program = Program::spawn(&site.at(""));
    let open =
        |slot| json!({"op": "open", "slot": slot, "name": "wepp.nodb", "flags": libc::O_RDWR});
    let write = |slot| json!({"op": "write", "slot": slot, "text": document("wepp.nodb", slot)});
    let close = |slot| json!({"op": "close", "slot": slot});
    assert_eq!(program.call(open(1)), Ok(None));
    site.redis.cmd(&["DEL", &site::lock_key("wepp.nodb")]);
    assert_eq!(program.call(open(2)), Ok(None));
    assert!(site.lock("wepp.nodb").is_some());
    assert_eq!(program.call(write(2)), Ok(None));
    assert_eq!(program.call(close(2)), Ok(None));
    assert_eq!(program.call(write(1)), Ok(None));
    assert_eq!(program.call(close(1)), Err("ESTALE".to_owned()));
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 2));
}
