//! A host: a daemon of its own, its mount and its state directory, which outlive one another.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::fs::statfs;
use rustix::process::{Pid, Signal, kill_process};

use crate::redis_server::without_settings;

/// `statfs` says this of a FUSE mount.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// Long enough for a loaded machine; only a failure waits for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(2);

pub struct Host {
    pub name: &'static str,
    pub mount: PathBuf,
    pub state: PathBuf,
    source: PathBuf,
    options: Vec<String>,
    daemon: Mutex<Option<Child>>,
    /// Odd while it is down or on its way there; another one after that.
    epoch: AtomicU64,
}

impl Host {
    pub fn new(name: &'static str, source: &Path, dir: &Path, options: &[&str]) -> Result<Self> {
        let host = Self {
            name,
            mount: dir.join(name),
            state: dir.join(format!("{name}.state")),
            source: source.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            daemon: Mutex::new(None),
            epoch: AtomicU64::new(1),
        };
        fs::create_dir_all(&host.mount)?;
        fs::create_dir_all(&host.state)?;
        host.start()?;
        Ok(host)
    }

    /// Starts a daemon, over the stale mount of the one before if there is one.
    pub fn start(&self) -> Result<()> {
        let binary = env::current_exe()?;
        let binary = binary.ancestors().nth(2).context("no target directory")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.state.join("stderr"))?;
        let mut command = Command::new(binary.join("nodbfs"));
        command
            .args(["mount", "--foreground", "--state-dir"])
            .arg(&self.state)
            .arg("--log-file")
            .arg(self.log())
            .args(&self.options)
            .args([&self.source, &self.mount]);
        without_settings(&mut command);
        // a ^C is for this program, which then unmounts in order
        command.process_group(0).stdin(Stdio::null()).stderr(log);
        let mut child = command.spawn().context("no nodbfs: cargo build first")?;
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            if let Some(status) = child.try_wait()? {
                bail!("{} was not mounted: {status}", self.name);
            }
            ensure!(Instant::now() < deadline, "{} does not answer", self.name);
            sleep(STEP);
        }
        *self.daemon.lock() = Some(child);
        self.epoch.fetch_add(1, SeqCst);
        Ok(())
    }

    /// `kill -9`, and the mount stays behind.
    pub fn crash(&self) -> Result<()> {
        self.epoch.fetch_add(1, SeqCst);
        let mut daemon = self.daemon.lock().take().context("no daemon")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// SIGTERM, as from a service manager.
    pub fn end(&self) -> Result<()> {
        self.epoch.fetch_add(1, SeqCst);
        let mut daemon = self.daemon.lock().take().context("no daemon")?;
        kill_process(Pid::from_child(&daemon), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        while daemon.try_wait()?.is_none() {
            if Instant::now() > deadline {
                daemon.kill()?;
                daemon.wait()?;
                bail!("{} does not end", self.name);
            }
            sleep(STEP);
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.lock();
        let daemon = daemon.as_ref().context("no daemon")?;
        Ok(kill_process(Pid::from_child(daemon), signal)?)
    }

    pub fn log(&self) -> PathBuf {
        self.state.join("log")
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// Whether nobody has harmed the daemon since the epoch was `before`.
    pub fn is_unharmed_since(&self, before: u64) -> bool {
        before.is_multiple_of(2) && self.epoch() == before
    }

    /// How many debts to the cache lie in the state directory.
    pub fn debts(&self) -> usize {
        let stores = fs::read_dir(self.state.join("debts")).into_iter().flatten();
        stores
            .flatten()
            .flat_map(|store| fs::read_dir(store.path()).into_iter().flatten())
            .flatten()
            .filter(|debt| debt.path().extension().is_some_and(|end| end == "json"))
            .count()
    }

    /// Whether a living daemon serves the mount.
    fn answers(&self) -> bool {
        statfs(&self.mount).is_ok_and(|stat| stat.f_type == FUSE_SUPER_MAGIC)
    }

    fn is_mounted(&self) -> bool {
        match statfs(&self.mount) {
            Ok(stat) => stat.f_type == FUSE_SUPER_MAGIC,
            Err(errno) => errno == rustix::io::Errno::NOTCONN,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // none of these may panic, and each is as good if the one before has done its work
        let _ = self.signal(Signal::CONT);
        let _ = self.end();
        if self.is_mounted() {
            let mut unmount = Command::new("fusermount3");
            let _ = unmount.arg("-uz").arg(&self.mount).status();
        }
    }
}
