//! A generated run mounted on one of the two stores, and what the suites ask about it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::mount::Mount;
use super::redis::RedisServer;
use super::sample::{Layout, RunOptions, make_run};

pub const RUNID: &str = "mercuric-subcontract";
/// The run as NoDb processes know it.
pub const KNOWN_AS: &str = "/wc1/runs/me/mercuric-subcontract";
/// A lock of somebody's who is not here.
pub const STRANGER: &str = r#"{"token":"0123456789abcdef0123456789abcdef","owner":"elsewhere:17","acquired_at":1760000000,"expires_at":4000000000,"ttl":21600}"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Embedded,
    Redis,
}

pub const BOTH: [Kind; 2] = [Kind::Embedded, Kind::Redis];

/// A run, its store and its mount.
pub struct Run {
    pub mount: Mount,
    redis: Option<RedisServer>,
    source: TempDir,
    args: Vec<String>,
}

/// The controllers of a whole run and little else.
pub fn options(layout: Layout) -> RunOptions {
    RunOptions {
        hillslopes: 2,
        raster_bytes: 0,
        layout,
        known_as: Some(KNOWN_AS.into()),
        ..RunOptions::default()
    }
}

impl Run {
    /// Both layouts side by side: `wepp` is old, `soils` modern.
    pub fn new(kind: Kind) -> Self {
        Self::with_args(kind, &[])
    }

    pub fn with_args(kind: Kind, args: &[&str]) -> Self {
        Self::with(kind, Layout::Mixed, args)
    }

    pub fn with(kind: Kind, layout: Layout, args: &[&str]) -> Self {
        let source = tempfile::tempdir().unwrap();
        make_run(source.path(), &options(layout)).unwrap();
        Self::of(kind, source, KNOWN_AS, args)
    }

    /// Mounts `source`, known as `known_as`, with further options of `nodbfs mount`.
    pub fn of(kind: Kind, source: TempDir, known_as: &str, args: &[&str]) -> Self {
        let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        all.extend(["--key-root", known_as, "--log-level", "debug"].map(String::from));
        let redis = (kind == Kind::Redis).then(RedisServer::start);
        let mount = start(source.path(), redis.as_ref(), &all);
        Self {
            mount,
            redis,
            source,
            args: all,
        }
    }

    /// Mounts anew: the daemon's memory and the kernel's are empty.
    pub fn remount(&mut self) {
        self.remount_after(|_| ());
    }

    /// As `remount`, with something done while nothing is mounted.
    pub fn remount_after(&mut self, meanwhile: impl FnOnce(&Self)) {
        assert!(self.mount.stop().success(), "{}", self.mount.log());
        meanwhile(self);
        self.mount = start(self.source.path(), self.redis.as_ref(), &self.args);
    }

    /// The source's directory.
    pub fn source(&self) -> &Path {
        self.source.path()
    }

    /// A file beside the mount.
    pub fn on_disk(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    /// A file through the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    pub fn kind(&self) -> Kind {
        match self.redis {
            Some(_) => Kind::Redis,
            None => Kind::Embedded,
        }
    }

    pub fn redis(&self) -> &RedisServer {
        self.redis.as_ref().expect("a run on Redis")
    }

    pub fn redis_mut(&mut self) -> &mut RedisServer {
        self.redis.as_mut().expect("a run on Redis")
    }

    /// The DB 13 key of a controller.
    pub fn key(&self, name: &str) -> String {
        let at = self.args.iter().position(|arg| arg == "--key-root");
        let root = &self.args[at.expect("always given") + 1];
        format!("{root}/{name}")
    }

    pub fn entry(&self, name: &str) -> Option<String> {
        self.redis().text_in(13, &["GET", &self.key(name)])
    }

    pub fn seal_key(&self, name: &str) -> String {
        format!("nodbfs:seal:{}", self.key(name))
    }

    pub fn lock_key(&self, name: &str) -> String {
        format!("nodb-lock:{RUNID}:{name}")
    }

    pub fn lock(&self, name: &str) -> Option<String> {
        self.redis().text(&["GET", &self.lock_key(name)])
    }

    /// Somebody else holds the lock from now on.
    pub fn lock_away(&self, name: &str, value: &str) {
        self.redis().cmd(&["SET", &self.lock_key(name), value]);
    }

    pub fn mirror(&self, name: &str) -> Option<String> {
        self.redis()
            .text(&["HGET", RUNID, &format!("locked:{name}")])
    }

    /// One of `user.nodbfs.*`.
    pub fn attribute(&self, name: &str, attribute: &str) -> Option<String> {
        let mut value = [0; 4096];
        let attribute = format!("user.nodbfs.{attribute}");
        let size = rustix::fs::getxattr(self.at(name), attribute, &mut value).ok()?;
        Some(String::from_utf8_lossy(&value[..size]).into_owned())
    }

    /// `<hostname>:<pid>` of whoever holds the lock, as the mount says it.
    pub fn holder(&self, name: &str) -> Option<String> {
        let holder = self.attribute(name, "lock").filter(|it| !it.is_empty())?;
        let holder: serde_json::Value = serde_json::from_str(&holder).unwrap();
        Some(holder["owner"].as_str().unwrap().to_owned())
    }

    /// The documents that were refused and kept.
    pub fn rejected(&self) -> Vec<PathBuf> {
        self.mount.rejected()
    }

    /// Runs a line of shell in the mounted run.
    pub fn shell(&self, script: &str, env: &[(&str, &Path)]) -> Output {
        Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.mount.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a piece of Python; `path` is the controller through the mount, `disk` beside it. Says
    /// what it printed, or the name of the errno it ended with.
    pub fn python(&self, name: &str, code: &str) -> String {
        python(code, &[&self.at(name), &self.on_disk(name)])
    }

    /// What must hold of a controller whenever nobody is at it: the mount shows what is on disk, no
    /// trace of a commit is left, nobody holds the lock, and the cache tells nothing but the truth
    /// (promises 1, 4, 5, 7 and 10).
    pub fn assert_consistent(&self, name: &str) {
        assert_equal(&self.at(name), &self.on_disk(name));
        // the replaced generation goes right behind the writer's back
        eventually("no temporary file is left", || {
            let left = listing(self.source());
            !left.iter().any(|name| name.starts_with(".nodbfs-"))
        });
        assert_eq!(listing(self.mount.path()), listing(self.source()));
        if self.redis.is_none() {
            assert_eq!(self.holder(name), None);
            return;
        }
        assert_eq!(self.lock(name), None);
        assert_ne!(self.mirror(name).as_deref(), Some("true"));
        if self.entry(name).is_some() {
            self.assert_cached(name);
        }
    }

    /// Waits for the lock of a writer that committed nothing, or was refused: nobody waits for its last
    /// `close`, which gives the lock back. A commit is not answered before that.
    pub fn await_unlocked(&self, name: &str) {
        eventually("the writer's lock is given back", || match &self.redis {
            Some(_) => self.lock(name).is_none() && self.mirror(name).as_deref() != Some("true"),
            None => self.holder(name).is_none(),
        });
    }

    /// As after a commit, which leaves the cache warm.
    pub fn assert_settled(&self, name: &str) {
        self.assert_consistent(name);
        if self.redis.is_some() {
            self.assert_cached(name);
        }
    }

    /// The entry is the document with the file's signature, and sealed (PROTOCOL.md 5).
    pub fn assert_cached(&self, name: &str) {
        let entry = self.entry(name).expect("an entry");
        let scratch = tempfile::NamedTempFile::new().unwrap();
        fs::write(scratch.path(), entry).unwrap();
        let same = r#"
stat = os.stat(path)
doc, entry = json.load(open(path)), json.load(open(disk))
state = doc.get("py/state", doc)
state["_nodb_mtime"], state["_nodb_size"] = stat.st_mtime, stat.st_size
print(json.dumps(doc) == json.dumps(entry))
"#;
        let answer = python(same, &[&self.on_disk(name), scratch.path()]);
        assert_eq!(answer, "True", "{name}: {:?}", self.entry(name));
        for key in [self.key(name), self.seal_key(name)] {
            let expiry = self.redis().cmd_in(13, &["TTL", &key]);
            let expiry: i64 = ::redis::from_redis_value(expiry).unwrap();
            assert!((259_000..=259_200).contains(&expiry), "{key}: {expiry}");
        }
    }
}

fn start(source: &Path, redis: Option<&RedisServer>, args: &[String]) -> Mount {
    let builder = Mount::builder(source).args(args);
    match redis {
        Some(redis) => builder.redis(&redis.unix_url()).start(),
        None => builder.start(),
    }
}

/// Runs a piece of Python on `path` and `disk`. Says what it printed, or the name of the errno it
/// ended with.
pub fn python(code: &str, paths: &[&Path; 2]) -> String {
    let frame = r#"
import errno, json, os, sys, threading
code, path, disk = sys.argv[1:]
try:
    exec(code)
except OSError as error:
    print(errno.errorcode[error.errno])
    # what is still open is closed with the same error, and that is no news
    sys.stdout.flush()
    os._exit(0)
"#;
    let output = Command::new("python3")
        .args(["-c", frame, code])
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{code}\n{errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `mount` shows what is on `disk`, exactly (promise 1).
pub fn assert_equal(mount: &Path, disk: &Path) {
    let look = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (
            (stat.size(), stat.mtime(), stat.mtime_nsec(), stat.mode()),
            (stat.nlink(), stat.ino(), stat.uid(), stat.gid()),
        )
    };
    let what = disk.display();
    assert_eq!(look(mount), look(disk), "stat of {what}");
    assert!(
        fs::read(mount).unwrap() == fs::read(disk).unwrap(),
        "bytes of {what}"
    );
    assert_eq!(look(mount), look(disk), "stat of {what}, once it was read");
}

/// The names in a directory, in order.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Asks until it is so; a condition that never comes true is a failure, however long it is given.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
