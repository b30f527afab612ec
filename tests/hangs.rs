//! Sources that hang: a frozen disk, and a FUSE source whose daemon is stopped. Everything else goes on
//! meanwhile, the lock of a hanging commit stays its own, and all heals when the source does (promises 5, 8 and 9).
//! As root: file systems of the test's own are mounted.

#[path = "common/bindfs.rs"]
mod bindfs;
mod common;
#[path = "common/loop_disk.rs"]
mod loop_disk;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread::{self, JoinHandle};

use bindfs::Bindfs;
use common::mount::Mount;
use common::redis::RedisServer;
use loop_disk::Disk;
use rustix::process::Signal;
use site::{document, eventually, listing, save, within};
use tracer::is_root;

const NAME: &str = "wepp.nodb";
/// Whoever waits for a lock gives up soon; a lease is renewed soon, and still outlives a busy machine's pauses.
const ARGS: [&str; 4] = ["--lock-wait", "300ms", "--lease-ttl", "10s"];

/// A run with one controller and one plain file, for its own mount.
fn make_run(dir: &Path) {
    site::prepare_saves();
    fs::write(dir.join(NAME), document(NAME, 0)).unwrap();
    fs::write(dir.join("plain"), "x").unwrap();
}

fn mount(run: &Path, redis: &RedisServer) -> Mount {
    Mount::builder(run).redis(&redis.url()).args(ARGS).start()
}

/// Another run, on another mount, that goes on whatever happens here.
struct Elsewhere {
    mount: Mount,
    run: tempfile::TempDir,
}

impl Elsewhere {
    fn new(redis: &RedisServer) -> Self {
        let run = tempfile::tempdir().unwrap();
        make_run(run.path());
        Self {
            mount: mount(run.path(), redis),
            run,
        }
    }

    #[track_caller]
    fn goes_on(&self, n: u64) {
        let at = self.mount.path().to_owned();
        within("plain files of another mount", move || {
            fs::write(at.join("new"), "new").unwrap();
            fs::rename(at.join("new"), at.join("plain")).unwrap();
            assert_eq!(fs::read_to_string(at.join("plain")).unwrap(), "new");
        });
        assert_eq!(
            save(&self.mount.path().join(NAME), &document(NAME, n)),
            Ok(())
        );
        let text = fs::read_to_string(self.run.path().join(NAME)).unwrap();
        assert_eq!(text, document(NAME, n));
    }
}

/// A save that may hang.
fn begin_save(path: &Path, text: String) -> JoinHandle<Result<(), i32>> {
    let path = path.to_owned();
    thread::spawn(move || save(&path, &text))
}

/// The key of the lock of a controller in `run`.
fn lock_of(run: &Path, name: &str) -> String {
    let runid = run.file_name().unwrap().to_str().unwrap();
    format!("nodb-lock:{runid}:{name}")
}

/// The value of the only lock there is.
fn lock(redis: &RedisServer) -> Option<String> {
    let keys: Vec<String> = redis::from_redis_value(redis.cmd(&["KEYS", "nodb-lock:*"])).unwrap();
    redis.text(&["GET", keys.first()?])
}

/// For how long a lease of this key lasts if nobody renews it, in milliseconds.
fn left(redis: &RedisServer, key: &str) -> i64 {
    let left = redis::from_redis_value(redis.cmd(&["PTTL", key])).unwrap();
    assert!(left > 0, "the lock has ended: {left}");
    left
}

/// Writes hang in the kernel, reads go on.
#[test]
fn a_frozen_disk_holds_its_own_writers_and_nobody_else() {
    if !is_root() {
        return;
    }
    let redis = RedisServer::start();
    let elsewhere = Elsewhere::new(&redis);
    let disk = Disk::new("ext4", 16, &[]);
    make_run(disk.path());
    let (one, other) = (mount(disk.path(), &redis), mount(disk.path(), &redis));
    let at = one.path().join(NAME);
    fs::read(&at).unwrap();

    let frozen = disk.freeze();
    let hanging = begin_save(&at, document(NAME, 1));
    let plain = one.path().join("plain");
    let plain = thread::spawn(move || fs::write(plain, "written"));
    // the lease is renewed for as long as the writer hangs, so nobody comes between
    eventually("the lock is taken", || lock(&redis).is_some());
    // the first renewal is due to the open, the others to the one before
    for _ in 0..2 {
        let mut before = left(&redis, &lock_of(disk.path(), NAME));
        eventually("the lease is renewed", || {
            let now = left(&redis, &lock_of(disk.path(), NAME));
            std::mem::replace(&mut before, now) < now
        });
    }
    assert!(!hanging.is_finished() && !plain.is_finished());
    assert_eq!(save(&other.path().join(NAME), "{}"), Err(libc::EBUSY));
    elsewhere.goes_on(1);
    for mount in [&one, &other] {
        let dir = mount.path().to_owned();
        let read = within("reads and lookups of the frozen disk", move || {
            assert!(fs::metadata(dir.join("not there")).is_err());
            assert_eq!(listing(&dir).iter().filter(|name| *name == NAME).count(), 1);
            fs::read_to_string(dir.join(NAME)).unwrap()
        });
        assert_eq!(read, document(NAME, 0));
    }

    drop(frozen);
    assert_eq!(hanging.join().unwrap(), Ok(()));
    plain.join().unwrap().unwrap();
    assert_eq!(
        fs::read_to_string(disk.path().join(NAME)).unwrap(),
        document(NAME, 1)
    );
    assert_eq!(
        fs::read_to_string(other.path().join(NAME)).unwrap(),
        document(NAME, 1)
    );
    assert_eq!(lock(&redis), None);
    for (mount, n) in [(&other, 2), (&one, 3)] {
        assert_eq!(save(&mount.path().join(NAME), &document(NAME, n)), Ok(()));
    }
    elsewhere.goes_on(2);
}

/// `--max-hold` for a commit that hangs: its lock goes to others, and the commit is refused when the disk is back.
#[test]
fn a_commit_that_hangs_for_too_long_loses_its_lock_and_is_estale() {
    if !is_root() {
        return;
    }
    let redis = RedisServer::start();
    let disk = Disk::new("ext4", 16, &[]);
    make_run(disk.path());
    let one = Mount::builder(disk.path())
        .redis(&redis.url())
        .args(ARGS)
        .args(["--max-hold", "1s"])
        .start();
    let frozen = disk.freeze();
    let hanging = begin_save(&one.path().join(NAME), document(NAME, 1));
    site::await_held_too_long(&one);
    assert_eq!(lock(&redis), None);
    assert!(!hanging.is_finished());
    drop(frozen);
    assert_eq!(hanging.join().unwrap(), Err(libc::ESTALE));
    assert_eq!(
        fs::read_to_string(disk.path().join(NAME)).unwrap(),
        document(NAME, 0)
    );
    // a pause of a busy machine may be too long, too
    let again = [libc::ESTALE];
    site::save_despite(&one.path().join(NAME), &document(NAME, 2), &again);
    assert_eq!(lock(&redis), None);
}

/// A daemon that is told to end while a commit hangs ends without it: what is not saved is kept, also what the
/// commit works on, and the locks of those who do not hang are nobody's.
#[test]
fn a_mount_that_ends_while_a_commit_hangs_keeps_what_was_not_saved() {
    if !is_root() {
        return;
    }
    let redis = RedisServer::start();
    let disk = Disk::new("ext4", 16, &[]);
    make_run(disk.path());
    fs::write(disk.path().join("soils.nodb"), "{}").unwrap();
    // no lease ends by itself
    let mount = Mount::builder(disk.path()).redis(&redis.url()).start();
    let held = || redis.text(&["GET", &lock_of(disk.path(), "soils.nodb")]);
    let mut open = fs::File::create(mount.path().join("soils.nodb")).unwrap();
    open.write_all(b"{\"open\": ").unwrap();
    assert!(held().is_some());

    let frozen = disk.freeze();
    let hanging = begin_save(&mount.path().join(NAME), document(NAME, 1));
    eventually("it hangs in its commit", || {
        redis.text(&["GET", &lock_of(disk.path(), NAME)]).is_some()
    });
    mount.signal(Signal::TERM);
    eventually("the lock of who does not hang is released", || {
        held().is_none()
    });
    let kept = || {
        let texts = mount.rejected().into_iter().map(fs::read_to_string);
        texts.flatten().collect::<BTreeSet<_>>()
    };
    let left = BTreeSet::from(["{\"open\": ".to_owned(), document(NAME, 1)]);
    eventually("what was not saved is kept", || kept() == left);
    drop(frozen);
    assert!(hanging.join().unwrap().is_err());
    drop(open);
    let text = fs::read_to_string(disk.path().join(NAME)).unwrap();
    assert!([0, 1].map(|n| document(NAME, n)).contains(&text), "{text}");
}

/// A source that is a FUSE mount itself, whose daemon is stopped: everything of it hangs, looks at it too.
#[test]
fn a_stopped_fuse_source_holds_its_own_mount_and_nobody_else() {
    if !is_root() {
        return;
    }
    let redis = RedisServer::start();
    let elsewhere = Elsewhere::new(&redis);
    let source = Bindfs::new();
    make_run(&source.path());
    let mount = mount(&source.path(), &redis);
    let at = mount.path().join(NAME);
    assert_eq!(save(&at, &document(NAME, 1)), Ok(()));

    let stopped = source.stop();
    let saving = begin_save(&at, document(NAME, 2));
    let dir = mount.path().to_owned();
    let looking = thread::spawn(move || fs::read_to_string(dir.join("plain")));
    let path = at.clone();
    let reading = thread::spawn(move || fs::read_to_string(path));
    for n in 1..4 {
        elsewhere.goes_on(n);
    }
    assert!(!saving.is_finished() && !reading.is_finished());

    drop(stopped);
    assert_eq!(saving.join().unwrap(), Ok(()));
    assert_eq!(looking.join().unwrap().unwrap(), "x");
    let seen = reading.join().unwrap().unwrap();
    assert!([1, 2].map(|n| document(NAME, n)).contains(&seen), "{seen}");
    assert_eq!(
        fs::read_to_string(source.beneath(NAME)).unwrap(),
        document(NAME, 2)
    );
    assert_eq!(save(&at, &document(NAME, 3)), Ok(()));
    assert_eq!(
        fs::read_to_string(source.beneath(NAME)).unwrap(),
        document(NAME, 3)
    );
    eventually("no lock is left", || lock(&redis).is_none());
}
