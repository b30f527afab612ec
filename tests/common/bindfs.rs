//! A directory seen through bindfs: a FUSE file system of somebody else's, which cannot exchange two names.

// every suite uses a part of it
#![allow(dead_code)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::site::eventually;

/// Unmounted and ended when dropped.
pub struct Bindfs {
    daemon: Child,
    dir: TempDir,
}

impl Bindfs {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [beneath, mountpoint] = ["beneath", "mnt"].map(|name| dir.path().join(name));
        for dir in [&beneath, &mountpoint] {
            std::fs::create_dir(dir).unwrap();
        }
        let daemon = Command::new("bindfs")
            .arg("-f")
            .args([&beneath, &mountpoint])
            .stdin(Stdio::null())
            .spawn()
            .expect("bindfs is installed");
        let bindfs = Self { daemon, dir };
        let device = |path: PathBuf| std::fs::metadata(path).unwrap().dev();
        eventually("bindfs is mounted", || {
            device(mountpoint.clone()) != device(beneath.clone())
        });
        bindfs
    }

    /// Through bindfs.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Beside it.
    pub fn beneath(&self, name: &str) -> PathBuf {
        self.dir.path().join("beneath").join(name)
    }

    /// Whoever asks it anything hangs, until the answer is dropped.
    pub fn stop(&self) -> Stopped {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, Signal::STOP).expect("our child");
        Stopped(pid)
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        // nothing here may panic
        let umount = |path: &Path| Command::new("umount").arg("-l").arg(path).status();
        let _ = umount(&self.path());
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A stopped bindfs. To be dropped before whoever asks it is waited for.
pub struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}
