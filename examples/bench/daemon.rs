//! The daemons measured, each a process of its own, and gone with its mount when dropped.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::statfs;

use crate::redis_server::without_settings;

/// `statfs` says this of a FUSE mount.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// Long enough for a loaded machine; only a failure waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Fine enough for the time a mount takes.
const STEP: Duration = Duration::from_micros(200);

pub struct Daemon {
    child: Child,
    mountpoint: PathBuf,
}

impl Daemon {
    /// `nodbfs mount` of the release that was built beside this program.
    pub fn nodbfs<T: AsRef<OsStr>>(
        source: &Path,
        mountpoint: PathBuf,
        options: &[T],
    ) -> Result<Self> {
        let binary = target_dir()?.join("release/nodbfs");
        ensure!(
            binary.exists(),
            "no {}: cargo build --release first",
            binary.display()
        );
        let mut command = Command::new(binary);
        // info, the default, tells of every commit: here into a file, as on a worker host
        let state = mountpoint.with_extension("state");
        fs::create_dir_all(&state)?;
        command
            .args(["mount", "--foreground", "--state-dir"])
            .arg(&state)
            .arg("--log-file")
            .arg(state.join("log"))
            .args(options)
            .args([source, &mountpoint]);
        without_settings(&mut command);
        // a mount answers a little before its daemon is done with mounting
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("notify");
        let ready = UnixDatagram::bind(&socket)?;
        ready.set_nonblocking(true)?;
        command.env("NOTIFY_SOCKET", &socket);
        Self::start(command, mountpoint, || {
            let mut message = [0; 4096];
            let size = ready.recv(&mut message).unwrap_or(0);
            message[..size]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1")
        })
    }

    /// The bare file system of [`crate::bare`], with what is in `source` now.
    pub fn bare(source: &Path, mountpoint: PathBuf) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--serve-bare").args([source, &mountpoint]);
        let mounted = mountpoint.clone();
        Self::start(command, mountpoint, || is_fuse(&mounted))
    }

    /// Another FUSE file system, which shows `source` at `mountpoint`.
    pub fn peer(program: &str, args: &[&str], source: &OsStr, mountpoint: PathBuf) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args).args([source, mountpoint.as_os_str()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mounted = mountpoint.clone();
        Self::start(command, mountpoint, || is_fuse(&mounted))
    }

    /// Starts it and waits until it is `ready`.
    fn start(mut command: Command, mountpoint: PathBuf, ready: impl Fn() -> bool) -> Result<Self> {
        fs::create_dir_all(&mountpoint)?;
        // a Ctrl-C is for this program, which then unmounts in order
        command.process_group(0).stdin(Stdio::null());
        let child = command.spawn().context("the daemon does not start")?;
        let mut daemon = Self { child, mountpoint };
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{} was not mounted: {status}", daemon.mountpoint.display());
            }
            ensure!(Instant::now() < deadline, "the mount does not answer");
            sleep(STEP);
        }
        Ok(daemon)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The memory the daemon has resident (`VmRSS`).
    pub fn resident(&self) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?
            .parse()?;
        Ok(format!("{:.1} MiB", kib / 1024.0))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // whichever of these is needed; none may panic
        for how in ["-u", "-uz"] {
            if is_fuse(&self.mountpoint) {
                let mut unmount = Command::new("fusermount3");
                let _ = unmount.arg(how).arg(&self.mountpoint).status();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(STEP);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a FUSE mount is there, even one whose daemon has died.
fn is_fuse(path: &Path) -> bool {
    match statfs(path) {
        Ok(stat) => stat.f_type == FUSE_SUPER_MAGIC,
        Err(errno) => errno == rustix::io::Errno::NOTCONN,
    }
}

/// Cargo's target directory: this program lies in `release/examples` of it.
pub fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own
        .ancestors()
        .nth(3)
        .context("not in a target directory")?;
    Ok(target.to_owned())
}
