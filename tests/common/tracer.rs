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
pub struct Tracer {
    strace: Child,
    daemon: u32,
}

impl Tracer {
    /// `inject` as in strace(1).
    pub fn inject(daemon: &Mount, inject: &str) -> Self {
        // its start is over, which makes the same calls
        eventually("the daemon says so", || {
            daemon.log().contains("is mounted at")
        });
        let strace = Command::new("strace")
            .args(["-f", "-p", &daemon.pid().to_string(), "-o", "/dev/null"])
            .args(["-e", &format!("inject={inject}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        let tracer = Self {
            strace,
            daemon: daemon.pid(),
        };
        eventually("all threads are traced", || {
            let mut threads = tracer.threads("status").into_iter();
            // one that ends while it is looked at says nothing
            threads.all(|status| status.is_some_and(|status| !status.contains("TracerPid:\t0")))
        });
        tracer
    }

    /// Waits until a thread of the daemon is in the system call of this number.
    pub fn await_call(&self, number: i64) {
        eventually("the call is made", || {
            let mut calls = self.threads("syscall").into_iter().flatten();
            calls.any(|call| call.starts_with(&format!("{number} ")))
        });
    }

    /// What `/proc` says of each of the daemon's threads in this file.
    fn threads(&self, file: &str) -> Vec<Option<String>> {
        let tasks = format!("/proc/{}/task", self.daemon);
        let threads = listing(Path::new(&tasks)).into_iter();
        threads
            .map(|task| fs::read_to_string(format!("{tasks}/{task}/{file}")).ok())
            .collect()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // as by ^C: it lets go of the daemon; of one that has died it sometimes never does
        let pid = Pid::from_child(&self.strace);
        let _ = kill_process(pid, Signal::INT);
        let patience = Instant::now() + Duration::from_secs(2);
        while matches!(self.strace.try_wait(), Ok(None)) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
