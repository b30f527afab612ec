//! Daemons and writers that die or hang (promises 3, 4, 5 and 6): whatever the moment, the file holds a whole
//! document that somebody wrote, what was acknowledged stays, and nothing is left in the way.

mod common;
#[path = "common/site.rs"]
mod site;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::OnDrop;
use common::mount::Mount;
use rustix::process::{Pid, Signal, kill_process};
use site::{Site, call, document, eventually, listing, save, within};

/// A Python program that is given `path` and has said its first line, and what else it says: a process of its own, for
/// one that starts others closes descriptors in them, and so commits.
fn python(code: &str, path: &Path) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut program = Command::new("python3")
        .args(["-c", code])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    said.next().unwrap().unwrap();
    (program, said)
}

/// How often the daemon is killed.
const KILLS: u64 = 25;

/// One program's controller, and what it has been told of it.
struct Program {
    name: String,
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

impl Program {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tried: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Its nth document, large enough to be torn if it could be.
    fn document(&self, n: u64) -> String {
        let pad = "x".repeat((n * 7919 % 100_000) as usize);
        format!(
            "{{\"_n\": {n}, \"pad\": \"{pad}\", \"of\": \"{}\"}}",
            self.name
        )
    }

    /// Saves one document after the other, by one road or the other, until the mount dies or the test has ended.
    fn work(&self, run: &Path, ended: &AtomicBool) {
        while !ended.load(SeqCst) {
            let n = self.tried.fetch_add(1, SeqCst) + 1;
            let path = run.join(&self.name);
            let text = self.document(n);
            let saved = if n.is_multiple_of(2) {
                let draft = run.join(format!("draft-{}", self.name));
                let file = File::create(&draft);
                // a lease too short for the draft is told: without one, there is nothing to rename
                let drafted = file.and_then(|file| site::write(file, &text));
                drafted.and_then(|()| fs::rename(draft, path))
            } else {
                let file = File::options().write(true).truncate(true).open(path);
                file.and_then(|file| site::write(file, &text))
            };
            match saved.map_err(|error| error.raw_os_error()) {
                Ok(()) => self.acknowledged.store(n, SeqCst),
                // the lock of the daemon before, for as long as its lease was
                // or, on a busy machine, a lease too short for the commit: refused, and tried again
                Err(Some(libc::EBUSY | libc::ESTALE)) => thread::sleep(Duration::from_millis(20)),
                Err(Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)) => return,
                Err(errno) => panic!("{}: errno {errno:?}", self.name),
            }
        }
    }

    /// What is on disk is whole, its own, and no older than what it was told.
    fn check(&self, path: &Path) {
        let text = fs::read_to_string(path).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).expect("a whole document");
        let n = document["_n"].as_u64().expect("a number");
        assert!(
            text == self.document(n),
            "{}: not what was written",
            self.name
        );
        let (acknowledged, tried) = (self.acknowledged.load(SeqCst), self.tried.load(SeqCst));
        assert!(
            (acknowledged..=tried).contains(&n),
            "{}: {n} on disk, {acknowledged} acknowledged, {tried} tried",
            self.name
        );
    }
}

#[test]
fn a_daemon_killed_at_any_moment_loses_nothing() {
    let mut site = Site::new(&["--lease-ttl", "400ms", "--lock-wait", "10s"]);
    let programs = ["a.nodb", "b.nodb", "c.nodb"].map(Program::new);
    for program in &programs {
        fs::write(site.on_disk(&program.name), program.document(0)).unwrap();
    }
    let theirs = [".a.nodb.x7f3.tmp", ".nodbfs-another-host-17-3.tmp"];
    for name in theirs {
        fs::write(site.on_disk(name), "{").unwrap();
    }
    for kill in 0..KILLS {
        let before: Vec<_> = programs
            .iter()
            .map(|program| program.acknowledged.load(SeqCst))
            .collect();
        let ended = &AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = OnDrop(ended);
            let run = site.at("");
            for program in &programs {
                let run = run.clone();
                scope.spawn(move || program.work(&run, ended));
            }
            // each of them has had a save acknowledged, so all are at it
            eventually("saves go on", || {
                let now = programs
                    .iter()
                    .map(|program| program.acknowledged.load(SeqCst));
                now.zip(&before).all(|(now, before)| now > *before)
            });
            let moment = RandomState::new().hash_one(kill) % 30_000;
            thread::sleep(Duration::from_micros(moment));
            site.mount.crash();
        });
        for program in &programs {
            program.check(&site.on_disk(&program.name));
        }
        site.remount();
        for program in &programs {
            program.check(&site.at(&program.name));
            let bytes = fs::read(site.at(&program.name)).unwrap();
            assert!(bytes == fs::read(site.on_disk(&program.name)).unwrap());
        }
    }
    // whatever the dead daemons left goes when somebody looks, and nothing else does
    eventually("the leftovers go", || {
        listing(&site.at(""));
        let left = listing(&site.on_disk(""));
        left.iter()
            .filter(|name| name.starts_with(".nodbfs"))
            .count()
            == 1
    });
    let left: BTreeSet<_> = listing(&site.on_disk("")).into_iter().collect();
    for name in theirs {
        assert!(left.contains(name), "{name} of {left:?}");
    }
    eventually("all locks end", || {
        programs
            .iter()
            .all(|program| site.lock(&program.name).is_none())
    });
}

/// How many scripts Redis has run.
fn scripts_run(site: &Site) -> u64 {
    let stats = site.redis.text(&["INFO", "commandstats"]).unwrap();
    let calls = stats.split("cmdstat_evalsha:calls=").nth(1);
    let calls = calls.and_then(|rest| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// The kernel holds the directory for a rename that waits for a lock, and a notice of another commit
/// waits for the directory, deaf to signals: neither keeps the dead daemon's connection open.
#[test]
fn a_daemon_killed_in_the_middle_of_a_notice_lets_everybody_go() {
    let mut site = Site::new(&["--lock-wait", "1h"]);
    let path = site.at("wepp.nodb");
    let open = move || File::options().write(true).truncate(true).open(path);
    let writer = within("an open", open).unwrap();
    fs::write(site.at("draft"), document("held.nodb", 1)).unwrap();
    let (from, to) = (site.at("draft"), site.at("held.nodb"));
    let waiting = thread::spawn(move || fs::rename(from, to));
    let before = scripts_run(&site);
    eventually("the rename asks again and again", || {
        scripts_run(&site) > before + 3
    });
    let text = document("wepp.nodb", 1);
    assert_eq!(call("a commit", move || site::write(writer, &text)), Ok(()));
    let pid = Pid::from_raw(site.mount.pid() as i32).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let ended = within("the rename", move || waiting.join().unwrap());
    let errno = ended.unwrap_err().raw_os_error();
    assert!(
        matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED)),
        "{errno:?}"
    );
    site.mount.crash();
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 1));
    assert_eq!(site.text("held.nodb"), document("held.nodb", 0));
    site.remount();
    assert_eq!(
        fs::read_to_string(site.at("wepp.nodb")).unwrap(),
        document("wepp.nodb", 1)
    );
}

#[test]
fn leftovers_of_dead_daemons_go_on_sight_and_others_stay() {
    let mut site = Site::new(&[]);
    let dead = site.mount.pid();
    site.mount.crash();
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap();
    let pids = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let living = std::process::id();
    let left = format!(".nodbfs-{host}-{pids}-{dead}-0.tmp");
    let theirs = [
        format!(".nodbfs-{host}-{pids}-{living}-0.tmp"),
        ".nodbfs-another-host-17-3.tmp".to_owned(),
        ".wepp.nodb.x7f3.tmp".to_owned(),
        ".nodbfs-notes.txt".to_owned(),
    ];
    fs::create_dir(site.on_disk("sub")).unwrap();
    for dir in ["", "sub"] {
        for name in theirs.iter().chain([&left]) {
            fs::write(site.on_disk(dir).join(name), "{").unwrap();
        }
    }
    site.remount();
    for dir in ["", "sub"] {
        eventually("the leftover goes", || {
            listing(&site.at(dir));
            !site.on_disk(dir).join(&left).exists()
        });
        let names = listing(&site.on_disk(dir));
        for name in &theirs {
            assert!(names.contains(name), "{name} of {names:?}");
        }
    }
}

/// The lock of a writer that is killed with half a document goes, and the half is kept.
#[test]
fn a_killed_writer_leaves_the_old_generation_and_no_lock() {
    let site = Site::new(&[]);
    let old = site.text("wepp.nodb");
    let code = "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)\nos.write(fd, b'{\"half\": ')\nprint(1, flush=True)\nsys.stdin.read()";
    let (mut writer, _said) = python(code, &site.at("wepp.nodb"));
    assert!(site.lock("wepp.nodb").is_some());
    assert_eq!(
        save(&site.at("soils.nodb"), &document("soils.nodb", 1)),
        Ok(())
    );
    writer.kill().unwrap();
    writer.wait().unwrap();
    eventually("the lock is released", || site.lock("wepp.nodb").is_none());
    eventually("the half is kept", || {
        let kept = site.rejected();
        kept.iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|kept| kept == "{\"half\": "))
    });
    assert_eq!(site.text("wepp.nodb"), old);
    assert_eq!(
        save(&site.at("wepp.nodb"), &document("wepp.nodb", 1)),
        Ok(())
    );
    site.assert_clean();
}

/// A writer that hangs loses the lock and its commit comes too late, whatever happened meanwhile;
/// others go on, another descriptor of the same process too.
#[test]
fn a_writer_that_hangs_loses_the_lock() {
    let site = Site::new(&["--max-hold", "1s"]);
    let code = r#"
import errno, os, sys
path = sys.argv[1]
def sync(fd):
    try:
        os.fsync(fd)
        return "saved"
    except OSError as error:
        return errno.errorcode[error.errno]
hung = os.open(path, os.O_WRONLY | os.O_TRUNC)
os.write(hung, b'{"late": true}')
print("open", flush=True)
sys.stdin.readline()
print(sync(hung), flush=True)
# a pause of a busy machine may be too long, too
for _ in range(50):
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b'{"second": true}')
    said = sync(fd)
    try:
        os.close(fd)
    except OSError:
        pass
    if said != "ESTALE":
        break
print(said, flush=True)
print(sync(hung), flush=True)
"#;
    let (mut writer, mut said) = python(code, &site.at("wepp.nodb"));
    let mut says = || said.next().unwrap().unwrap();
    site::await_held_too_long(&site.mount);
    // a pause of a busy machine may be too long, too
    let again = [libc::ESTALE];
    site::save_despite(&site.at("wepp.nodb"), &document("wepp.nodb", 1), &again);
    writer.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!([says(), says(), says()], ["ESTALE", "saved", "ESTALE"]);
    // the end of the process is a close, too, and refused without anybody to tell
    assert_eq!(writer.wait().unwrap().code(), Some(0));
    eventually("what it wrote is kept", || {
        let kept = site.rejected();
        kept.iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|kept| kept == "{\"late\": true}"))
    });
    assert_eq!(site.text("wepp.nodb"), "{\"second\": true}");
}

/// Both ends of a fork write to one descriptor; the lock goes with the last of them.
#[test]
fn a_writer_that_forks_keeps_the_lock_until_the_last_has_closed() {
    let site = Site::new(&[]);
    let code = r#"
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
child = os.fork()
if child == 0:
    os.write(fd, b'{"by": ["child"')
    os._exit(0)
os.waitpid(child, 0)
print("half", flush=True)
sys.stdin.readline()
os.write(fd, b', "parent"]}')
os.close(fd)
"#;
    let (mut writer, _said) = python(code, &site.at("wepp.nodb"));
    // the child's end closed a descriptor of half a document: refused, and nobody has lost anything
    assert!(site.lock("wepp.nodb").is_some());
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 0));
    writer.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(writer.wait().unwrap().success());
    assert_eq!(site.text("wepp.nodb"), r#"{"by": ["child", "parent"]}"#);
    eventually("the lock is released", || site.lock("wepp.nodb").is_none());
}

#[test]
fn refused_documents_are_bounded_and_the_latest_are_kept() {
    let site = Site::new(&[]);
    for n in 0..70 {
        assert_eq!(
            save(&site.at("wepp.nodb"), &format!("[{n}")),
            Err(libc::EBADMSG)
        );
    }
    eventually("the last one is kept", || {
        let kept = site.rejected();
        kept.iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|kept| kept == "[69"))
    });
    eventually("the oldest have gone", || site.rejected().len() <= 64);
    assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 0));
    assert_eq!(save(&site.at("wepp.nodb"), "[]"), Ok(()));
}

/// A daemon that is told to end waits for open writers for a while, and then ends without them: what they have
/// written is kept (promise 3), and their locks, whatever they have them for, are nobody's.
#[test]
fn a_mount_that_ends_keeps_what_was_not_saved_and_no_lock() {
    let mut site = Site::new(&["--lock-wait", "1h"]);
    let code = r#"
import os, sys
left = []
for name, text in ("wepp.nodb", b'{"half": '), ("soils.nodb", b'{"whole": 1}'), ("new.nodb", b""):
    left.append(os.open(f"{sys.argv[1]}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    os.write(left[-1], text)
print("open", flush=True)
sys.stdin.readline()
"#;
    let (mut writer, _said) = python(code, &site.at(""));
    for name in ["wepp.nodb", "soils.nodb"] {
        assert!(site.lock(name).is_some());
    }
    // who waits for one of them gets it no more
    let waiting = format!(": >>{}", site.at("soils.nodb").display());
    let mut waiter = Command::new("sh").args(["-c", &waiting]).spawn().unwrap();
    eventually("it waits", || {
        fs::read_to_string(site.at("soils.nodb.log")).is_ok_and(|log| log.contains("lock waiting"))
    });
    assert!(site.mount.stop().success());
    for name in ["wepp.nodb", "soils.nodb", "new.nodb"] {
        assert_eq!(site.lock(name), None, "{name}");
    }
    let texts = site.rejected().into_iter().map(fs::read_to_string);
    let texts: BTreeSet<_> = texts.map(Result::unwrap).collect();
    let left = ["{\"half\": ", "{\"whole\": 1}"].map(str::to_owned);
    assert_eq!(texts, BTreeSet::from(left));
    let log = site.mount.log();
    assert!(
        log.contains("the mount ended before it was closed"),
        "{log}"
    );
    for name in ["wepp.nodb", "soils.nodb"] {
        assert_eq!(site.text(name), document(name, 0));
    }
    drop(writer.stdin.take());
    assert!(writer.wait().unwrap().success());
    assert!(!waiter.wait().unwrap().success());
    site.remount();
    for name in ["wepp.nodb", "soils.nodb"] {
        assert_eq!(save(&site.at(name), &document(name, 1)), Ok(()));
    }
}

/// Without Redis too: locks die with the daemon that had them.
#[test]
fn an_embedded_daemon_that_died_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wepp.nodb");
    fs::write(&path, "{}").unwrap();
    let mut mount = Mount::builder(dir.path()).start();
    let mut writer = File::create(mount.path().join("wepp.nodb")).unwrap();
    // half a document: a program that another test starts closes a duplicate
    writer.write_all(b"[").unwrap();
    mount.crash();
    drop(writer);
    drop(mount);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    let mount = Mount::builder(dir.path()).start();
    assert_eq!(save(&mount.path().join("wepp.nodb"), "[1]"), Ok(()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "[1]");
}
