//! The real binary on a mount point of the test's own; unmounted and cleaned up on drop, after a
//! failure too, and then with the daemon's log.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::redis::without_settings;

/// `statfs` says this of a FUSE mount.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// Long enough for a loaded machine; only a failure waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a mount is to be made.
pub struct Builder {
    source: PathBuf,
    mountpoint: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    args: Vec<OsString>,
    failpoints: String,
}

/// A mounted source.
pub struct Mount {
    child: Child,
    mountpoint: PathBuf,
    state_dir: PathBuf,
    log: PathBuf,
    // holds the log and, unless the test named others, the mount point and the state directory
    _dir: TempDir,
}

impl Mount {
    pub fn builder(source: impl Into<PathBuf>) -> Builder {
        Builder {
            source: source.into(),
            mountpoint: None,
            state_dir: None,
            args: Vec::new(),
            failpoints: String::new(),
        }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Where rejected documents are kept.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The documents that were refused and kept, the latest last.
    pub fn rejected(&self) -> Vec<PathBuf> {
        let kept = fs::read_dir(self.state_dir.join("rejected"));
        // what is there may go while it is looked at
        let mut kept: Vec<_> = kept
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            // the others are not whole yet
            .filter(|kept| {
                !kept
                    .file_name()
                    .unwrap()
                    .as_encoded_bytes()
                    .starts_with(b".")
            })
            .map(|kept| kept.join("document"))
            .collect();
        kept.sort();
        kept
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the daemon is our child");
    }

    /// Ends the daemon as a service manager would, and waits for it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
            .unwrap_or_else(|| panic!("the daemon does not end\n{}", self.log()))
    }

    /// Kills the daemon, as a crash would, and leaves the mount behind.
    pub fn crash(&mut self) {
        self.child.kill().expect("the daemon is our child");
        self.child.wait().expect("the daemon is our child");
    }

    /// Waits for the daemon to end by itself; `None` if it does not.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        poll(|| self.child.try_wait().expect("the daemon is our child"))
    }
}

impl Builder {
    /// Where to mount; otherwise an empty directory of the test's own.
    pub fn mountpoint(mut self, path: impl Into<PathBuf>) -> Self {
        self.mountpoint = Some(path.into());
        self
    }

    /// Where the daemon keeps what must outlive it; otherwise a directory that does not outlive the mount.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// With the Redis store; otherwise the embedded one.
    pub fn redis(self, url: &str) -> Self {
        self.args(["--redis", url])
    }

    /// Further options of `nodbfs mount`.
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// What happens at which step of a commit, in a build with failpoints.
    pub fn failpoints(mut self, spec: &str) -> Self {
        self.failpoints = spec.to_owned();
        self
    }

    /// Mounts and waits until the mount answers; panics with the daemon's log if it does not.
    pub fn start(self) -> Mount {
        self.try_start()
            .unwrap_or_else(|log| panic!("no mount:\n{log}"))
    }

    /// As `start`, for a mount that may be refused: then the daemon's log.
    pub fn try_start(self) -> Result<Mount, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mountpoint = self.mountpoint.unwrap_or_else(|| dir.path().join("mnt"));
        fs::create_dir_all(&mountpoint).expect("a mount point");
        let state_dir = self.state_dir.unwrap_or_else(|| dir.path().join("state"));
        let log = dir.path().join("log");
        let out = File::create(&log).expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodbfs"));
        command
            .args(["mount", "--foreground", "--state-dir"])
            .arg(&state_dir)
            .args(&self.args)
            .arg(&self.source)
            .arg(&mountpoint);
        without_settings(&mut command);
        let child = command
            .env("FAILPOINTS", &self.failpoints)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second descriptor"))
            .stderr(out)
            .spawn()
            .expect("the binary was built");
        let mut mount = Mount {
            child,
            mountpoint,
            state_dir,
            log,
            _dir: dir,
        };
        let answered = poll(
            || match mount.child.try_wait().expect("the daemon is our child") {
                Some(status) => Some(Err(status)),
                None => is_fuse(&mount.mountpoint).then_some(Ok(())),
            },
        );
        match answered {
            Some(Ok(())) => Ok(mount),
            Some(Err(status)) => Err(format!("{status}\n{}", mount.log())),
            None => Err(format!("the mount does not answer\n{}", mount.log())),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if panicking() {
            eprintln!(
                "--- log of the daemon on {}\n{}---",
                self.mountpoint.display(),
                self.log()
            );
        }
        // nothing here may panic, and each step is as good if the one before has done its work
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(5);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                sleep(Duration::from_millis(5));
            }
        }
        if is_fuse(&self.mountpoint) {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(&self.mountpoint)
                .stderr(Stdio::null())
                .status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a FUSE mount is there, even one whose daemon has died.
fn is_fuse(path: &Path) -> bool {
    match rustix::fs::statfs(path) {
        Ok(stat) => stat.f_type == FUSE_SUPER_MAGIC,
        Err(errno) => errno == rustix::io::Errno::NOTCONN,
    }
}

/// Asks until there is an answer.
fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        sleep(Duration::from_millis(5));
    }
    None
}
