//! Faults injected into the daemon's system calls.

// every suite uses a part of it
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::mount::Mount;
use crate::site::{eventually, listing};

/// Mounting a file system and tracing another process take root; without, such a test has nothing to
/// look at.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: nothing is tested");
    }
    root
}

/// A tracer on the daemon that injects a fault; gone when dropped.
pub struct Tracer(Child);

impl Tracer {
    /// `inject` as in strace(1).
    pub fn inject(daemon: &Mount, inject: &str) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-p", &daemon.pid().to_string(), "-o", "/dev/null"])
            .args(["-e", &format!("inject={inject}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        let tracer = Self(child);
        let tasks = format!("/proc/{}/task", daemon.pid());
        eventually("all threads are traced", || {
            listing(Path::new(&tasks)).iter().all(|task| {
                // a thread may end while it is looked at
                fs::read_to_string(format!("{tasks}/{task}/status"))
                    .is_ok_and(|status| !status.contains("TracerPid:\t0"))
            })
        });
        tracer
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // as by ^C: it lets go of the daemon; of one that has died it sometimes never does
        let pid = Pid::from_child(&self.0);
        let _ = kill_process(pid, Signal::INT);
        let patience = Instant::now() + Duration::from_secs(2);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
