//! A run on a Redis of its own and its mount, and what the suites of failures ask of it.

// every suite uses a part of it
#![allow(dead_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

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
        files(&self.dir.path().join("state/debts"))
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

/// Overwrites in place and closes; the errno of whatever failed.
#[track_caller]
pub fn save(path: &Path, text: &str) -> Result<(), i32> {
    let (path, text) = (path.to_owned(), text.to_owned());
    within("a save", move || {
        let file = OpenOptions::new().write(true).truncate(true).open(path);
        errno(file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            close(file)
        }))
    })
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

/// The files below a directory that need not exist.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // what is there may go while it is looked at
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}
