//! A run on a Redis of its own and its mount, and what the suites of failures ask of it.

// every suite uses a part of it
#![allow(dead_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::files_below;
use crate::common::mount::Mount;
use crate::common::redis::RedisServer;

/// No call takes so long, and no recovery: only a failure waits for it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The lock of a NoDb process that is not here.
pub const STRANGER: &str = r#"{"token":"0123456789abcdef0123456789abcdef","owner":"elsewhere:17","acquired_at":1760000000,"expires_at":4000000000,"ttl":21600}"#;

pub struct Site {
    // unmounted first
    pub mount: Mount,
    pub redis: RedisServer,
    args: Vec<String>,
    dir: TempDir,
}

impl Site {
    pub fn new(args: &[&str]) -> Self {
        Self::on(RedisServer::start(), args)
    }

    /// A run with the controllers `wepp`, `soils` and `held`, whose lock is a stranger's.
    pub fn on(redis: RedisServer, args: &[&str]) -> Self {
        prepare_saves();
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        for name in ["wepp.nodb", "soils.nodb", "held.nodb"] {
            fs::write(run.join(name), document(name, 0)).unwrap();
        }
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mount = start(dir.path(), &redis, &args);
        let site = Self {
            mount,
            redis,
            args,
            dir,
        };
        site.lock_away();
        site
    }

    /// A stranger takes the lock of `held`.
    pub fn lock_away(&self) {
        self.redis.cmd(&["SET", &lock_key("held.nodb"), STRANGER]);
    }

    /// The next daemon, on the same state directory.
    pub fn remount(&mut self) {
        self.mount = start(self.dir.path(), &self.redis, &self.args);
    }

    /// Through the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// Beside the mount.
    pub fn on_disk(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// What is on disk.
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.on_disk(name)).unwrap()
    }

    /// The entry in DB 13.
    pub fn entry(&self, name: &str) -> Option<String> {
        self.redis.text_in(13, &["GET", &self.key(name)])
    }

    /// Its key.
    pub fn key(&self, name: &str) -> String {
        self.on_disk(name).to_str().unwrap().to_owned()
    }

    pub fn lock(&self, name: &str) -> Option<String> {
        self.redis.text(&["GET", &lock_key(name)])
    }

    /// The debts on disk.
    pub fn debts(&self) -> Vec<PathBuf> {
        files_below(&self.dir.path().join("state/debts"), "")
    }

    /// The refused documents that were kept, the latest last.
    pub fn rejected(&self) -> Vec<PathBuf> {
        self.mount.rejected()
    }

    /// No commit left a trace in the run.
    pub fn assert_clean(&self) {
        let mut left = Vec::new();
        // the replaced generation goes right behind the writer's back
        eventually("no temporary file is left", || {
            left = listing(&self.on_disk(""));
            !left.iter().any(|name| name.starts_with(".nodbfs"))
        });
        let shown = self.at("");
        assert_eq!(within("a listing", move || listing(&shown)), left);
    }
}

fn start(dir: &Path, redis: &RedisServer, args: &[String]) -> Mount {
    Mount::builder(dir.join("run"))
        .state_dir(dir.join("state"))
        .redis(&redis.url())
        .args(args)
        .start()
}

pub fn lock_key(name: &str) -> String {
    format!("nodb-lock:run:{name}")
}

/// The nth document of a controller.
pub fn document(name: &str, n: u64) -> String {
    format!("{{\"py/object\": \"{name}\", \"_n\": {n}}}")
}

/// Calls on a thread of its own: a call that does not return is a failure, not a test that hangs.
#[track_caller]
pub fn within<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = channel();
    thread::spawn(move || tell.send(call()));
    answer(what, &told)
}

/// Starts the threads that save. They share their descriptors with each other and not with the tests: a program that
/// a test starts gets no duplicate of them, which it would close, and so commit.
static SAVERS: LazyLock<Sender<Box<dyn FnOnce() + Send>>> = LazyLock::new(|| {
    let (start, jobs) = channel();
    within("a new table of descriptors", || {
        leave_descriptors();
        // what this thread starts shares its descriptors
        thread::spawn(move || {
            for job in jobs {
                thread::spawn(job);
            }
        });
    });
    start
});

/// The thread that calls this no longer shares its descriptors with others.
fn leave_descriptors() {
    // SAFETY: this thread has opened nothing, and by the flag the others keep what they have.
    let left = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_UNSHARE as i32) };
    assert_eq!(left, 0, "{}", io::Error::last_os_error());
}

/// For the time before something hangs: at the first save, the kernel closes duplicates of what is open, as at the
/// start of a program, and that waits for whoever hangs.
pub fn prepare_saves() {
    LazyLock::force(&SAVERS);
}

#[track_caller]
fn answer<T>(what: &str, told: &Receiver<T>) -> T {
    match told.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => panic!("{what} does not return"),
        Err(RecvTimeoutError::Disconnected) => panic!("{what} panicked"),
    }
}

/// Asks until it is so; a condition that never comes true is a failure, however long it is given.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `--max-hold` has ended somebody's lease.
#[track_caller]
pub fn await_held_too_long(mount: &Mount) {
    eventually("the lock goes back", || {
        let told = "held for too long by a writer that does not close";
        mount.log().contains(told)
    });
}

/// Overwrites in place and closes; the errno of whatever failed.
#[track_caller]
pub fn save(path: &Path, text: &str) -> Result<(), i32> {
    let (path, text) = (path.to_owned(), text.to_owned());
    let (tell, told) = channel();
    let save = move || {
        let file = OpenOptions::new().write(true).truncate(true).open(path);
        let saved = errno(file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            close(file)
        }));
        // whoever no longer listens has failed
        let _ = tell.send(saved);
    };
    SAVERS.send(Box::new(save)).expect("somebody listens");
    answer("a save", &told)
}

/// Saves as a program does that tries again for as long as it is refused with one of `again`.
#[track_caller]
pub fn save_despite(path: &Path, text: &str, again: &[i32]) {
    eventually("a save is done", || match save(path, text) {
        Ok(()) => true,
        Err(errno) => {
            assert!(again.contains(&errno), "errno {errno}");
            false
        }
    });
}

/// Closes a file and passes on what that says, which a drop does not. It is a commit, and after an
/// `fsync` that was refused another try.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is given up here, and nobody else has it.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes all of an open file and syncs it.
pub fn write(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// One call; the errno if it failed.
pub fn call(what: &str, call: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), i32> {
    errno(within(what, call))
}

fn errno(result: io::Result<()>) -> Result<(), i32> {
    result.map_err(|error| error.raw_os_error().expect("an errno"))
}

/// The names in a directory, in order.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
