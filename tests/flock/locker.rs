//! Processes that lock, each in a session of its own and driven step by step.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::in_crate;
use crate::common::run::eventually;

/// Only a failure waits for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One process; killed on drop.
pub struct Locker {
    child: Child,
    steps: ChildStdin,
    answers: Receiver<String>,
}

impl Locker {
    pub fn new() -> Self {
        let mut child = Command::new("python3")
            .arg(in_crate("tests/flock/locker.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let steps = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, answers) = channel();
        // a process that waits for ever fails its test
        thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        Self {
            child,
            steps,
            answers,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins a step; `answer` gives what comes of it.
    pub fn send(&mut self, step: &str) {
        writeln!(self.steps, "{step}").expect("the process lives");
    }

    #[track_caller]
    pub fn answer(&mut self) -> Value {
        let line = self.answers.recv_timeout(PATIENCE).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the process answered {line:?}"))
    }

    /// One step: what it gives, or the name of the errno it ended with.
    #[track_caller]
    pub fn call(&mut self, step: &str) -> Value {
        self.send(step);
        self.answer()
    }

    /// One step that gives nothing.
    #[track_caller]
    pub fn ok(&mut self, step: &str) {
        assert_eq!(self.call(step), Value::Null, "{step}");
    }

    /// Opens a file under a name.
    #[track_caller]
    pub fn open(&mut self, name: &str, path: &std::path::Path) {
        self.open_with(name, path, "O_RDWR");
    }

    #[track_caller]
    pub fn open_with(&mut self, name: &str, path: &std::path::Path, flags: &str) {
        let opened = self.call(&format!(
            "globals().__setitem__({name:?}, os.open({path:?}, {flags}))"
        ));
        assert_eq!(opened, Value::Null, "open {}", path.display());
    }

    /// Waits until the process is in the middle of `flock` or `fcntl`.
    pub fn await_waiting(&self) {
        let calls = [libc::SYS_flock, libc::SYS_fcntl].map(|number| format!("{number} "));
        eventually("it waits for a lock", || {
            let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid()));
            calls
                .iter()
                .any(|number| call.as_ref().is_ok_and(|call| call.starts_with(number)))
        });
    }

    /// Ends it without any of its own doing.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
