//! A disk of the test's own: a file system on a loop device, unmounted and let go when dropped.

// every suite uses a part of it
#![allow(dead_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub struct Disk {
    mountpoint: PathBuf,
    // holds the image and the mount point
    _dir: TempDir,
}

impl Disk {
    /// As big as `megabytes`, made by `mkfs.<kind>` with further options.
    pub fn new(kind: &str, megabytes: u64, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, mountpoint) = (dir.path().join("image"), dir.path().join("mnt"));
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        std::fs::create_dir(&mountpoint).unwrap();
        run(Command::new(format!("mkfs.{kind}"))
            .args(["-q"])
            .args(options)
            .arg(&image));
        let disk = Self {
            mountpoint,
            _dir: dir,
        };
        disk.mount();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    fn mount(&self) {
        let image = self.mountpoint.with_file_name("image");
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(&self.mountpoint));
    }

    /// The file system goes away at once and forgets what has not reached the disk, as in a crash of
    /// the machine.
    pub fn crash(&self) {
        let shutdown = r#"
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587d, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
"#;
        run(Command::new("python3")
            .args(["-c", shutdown])
            .arg(&self.mountpoint));
    }

    /// The machine is up again, and the journal is replayed.
    pub fn restart(&self) {
        run(Command::new("umount").arg(&self.mountpoint));
        self.mount();
    }

    /// Whatever writes to it hangs, until the answer is dropped.
    pub fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("-f").arg(&self.mountpoint));
        Frozen(self.mountpoint.clone())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // the loop device goes with its last user; nothing to be done if that fails
        let umount = Command::new("umount")
            .arg("-l")
            .arg(&self.mountpoint)
            .stderr(Stdio::null())
            .status();
        drop(umount);
    }
}

/// A frozen disk. To be dropped before whoever writes to it is waited for.
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
        drop(thawed);
    }
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
