//! A source, a mount point and the daemons between them, for tests of a mount's beginnings and ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

use crate::common::redis::without_settings;

/// A source with one file and a mount point. Leaves no mount and no daemon behind.
pub struct Place {
    scratch: TempDir,
    /// Daemons in the foreground, which end with the test.
    pub daemons: Vec<Child>,
}

impl Place {
    pub fn new() -> Self {
        let scratch = tempdir().unwrap();
        for name in ["run", "mnt"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        fs::write(scratch.path().join("run/file"), "content").unwrap();
        Self {
            scratch,
            daemons: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().canonicalize().unwrap().join(name)
    }

    pub fn mount_command(&self, source: &str, mountpoint: &str) -> Command {
        let mut command = nodbfs();
        command
            .arg("mount")
            .args([self.path(source), self.path(mountpoint)]);
        command
            .arg("--state-dir")
            .arg(self.path("state"))
            .env_remove("NOTIFY_SOCKET");
        without_settings(&mut command);
        command
    }

    /// Mounts in the background; what the command said.
    pub fn mount(&self, source: &str, mountpoint: &str) -> Output {
        self.mount_command(source, mountpoint).output().unwrap()
    }

    /// Mounts in the foreground and returns once it says that it is mounted: which daemon.
    pub fn serve(&mut self, source: &str, mountpoint: &str) -> usize {
        self.serve_by(self.mount_command(source, mountpoint))
    }

    /// The same in a network namespace of its own: a daemon without a mount keeps the names of its sockets, and the
    /// mount that gets its number may be another test's.
    pub fn serve_apart(&mut self, source: &str, mountpoint: &str) -> usize {
        let mount = self.mount_command(source, mountpoint);
        let mut apart = Command::new("unshare");
        apart.arg("--net").arg(mount.get_program());
        apart.args(mount.get_args()).env_remove("NOTIFY_SOCKET");
        without_settings(&mut apart);
        self.serve_by(apart)
    }

    pub fn serve_by(&mut self, mut command: Command) -> usize {
        let mut daemon = command
            .arg("--foreground")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        self.daemons.push(daemon);
        let mounted = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("is mounted at"));
        assert!(mounted.is_some(), "the daemon ended before it was mounted");
        // its pipe must not fill up
        thread::spawn(move || lines.for_each(drop));
        self.daemons.len() - 1
    }

    pub fn signal(&self, daemon: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.daemons[daemon]), signal).unwrap();
    }

    pub fn exit_code(&mut self, daemon: usize) -> Option<i32> {
        self.daemons[daemon].wait().unwrap().code()
    }

    pub fn umount(&self, mountpoint: &str, options: &[&str]) -> Output {
        nodbfs()
            .arg("umount")
            .arg(self.path(mountpoint))
            .args(options)
            .output()
            .unwrap()
    }

    /// A second source, with another file.
    pub fn make_other(&self) {
        fs::create_dir(self.path("other")).unwrap();
        fs::write(self.path("other/file"), "other").unwrap();
    }

    pub fn mount_tmpfs(&self, mountpoint: &str) {
        let tmpfs = Command::new("mount")
            .args(["-t", "tmpfs", "nodbfs-test"])
            .arg(self.path(mountpoint))
            .status();
        assert!(tmpfs.unwrap().success());
    }

    /// What umount(8) does, whoever has mounted.
    pub fn detach(&self, mountpoint: &str) {
        let detached = Command::new("umount")
            .args(["--lazy", "--internal-only"])
            .arg(self.path(mountpoint))
            .status();
        assert!(detached.unwrap().success());
    }

    /// What cuts the connection of the mount when something is written to it.
    pub fn switch(&self, mountpoint: &str) -> OwnedFd {
        let dev = fs::metadata(self.path(mountpoint)).unwrap().dev();
        nodbfs::mount::unmount::switch((rustix::fs::major(dev), rustix::fs::minor(dev))).unwrap()
    }

    #[track_caller]
    pub fn assert_serves(&self, mountpoint: &str, content: &str) {
        assert_eq!(self.mounts(mountpoint), 1);
        let file = self.path(mountpoint).join("file");
        assert_eq!(fs::read_to_string(file).unwrap(), content);
    }

    /// How many mounts lie at the mount point.
    pub fn mounts(&self, mountpoint: &str) -> usize {
        mounts_at(&self.path(mountpoint))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for name in ["mnt", "run"] {
            while mounts_at(&self.scratch.path().join(name)) > 0 {
                let _ = Command::new("umount")
                    .arg("-l")
                    .arg(self.scratch.path().join(name))
                    .status();
            }
        }
    }
}

pub fn nodbfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nodbfs"))
}

fn mounts_at(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4) == path.to_str())
        .count()
}

/// What is in a file, read by another process: a child of another test may have this one's descriptor
/// for a moment, and then the mount is in use.
pub fn content(path: &Path) -> Vec<u8> {
    Command::new("cat").arg(path).output().unwrap().stdout
}

#[track_caller]
pub fn assert_done(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""));
}

#[track_caller]
pub fn assert_refused(output: &Output, what: &str, hint: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let (error, advice) = said.split_once("\nHint: ").expect("a hint");
    assert!(
        error.starts_with("Error: ") && error.contains(what) && advice.contains(hint),
        "{said}"
    );
}
