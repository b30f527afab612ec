//! A Python program of the matrix, asked in JSON line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::Value;

use crate::common::in_crate;
use crate::site::PATIENCE;

/// Killed on drop.
pub struct Process {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    /// Starts `tests/matrix/<script>`.
    pub fn start(script: &str) -> Self {
        let mut child = Command::new("python3")
            .arg(in_crate("tests/matrix").join(script))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("WEPPPY_LOCK_TTL_SECONDS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let requests = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (tell, answers) = channel();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        Self {
            child,
            requests,
            answers,
        }
    }

    /// Asks, and does not wait.
    pub fn send(&mut self, request: &Value) {
        writeln!(self.requests, "{request}").expect("the program lives");
    }

    /// The answer to what was sent last; an error if none comes.
    pub fn answer(&mut self) -> Result<Value, String> {
        let line = self.answers.recv_timeout(PATIENCE);
        let line = line.map_err(|_| "a call does not return".to_owned())?;
        Ok(serde_json::from_str(&line).expect("an answer is JSON"))
    }

    /// Asks and waits.
    pub fn call(&mut self, request: &Value) -> Result<Value, String> {
        self.send(request);
        self.answer()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
