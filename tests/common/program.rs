//! Programs of their own that know plain files and errnos (`program.py`), each driven step by step
//! through its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::in_crate;

/// No call takes so long: only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a call gave: the text that was read, if any, or the name of an errno.
pub type Answer = Result<Option<String>, String>;

/// A program with files open in slots that it is told; killed on drop.
pub struct Program {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    /// In `dir`.
    pub fn spawn(dir: &Path) -> Self {
        let mut child = Command::new("python3")
            .arg(in_crate("tests/common/program.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let requests = child.stdin.take().expect("its standard input is a pipe");
        let output = child.stdout.take().expect("its standard output is a pipe");
        let (tell, answers) = channel();
        // ends with the program
        thread::spawn(move || {
            let mut lines = BufReader::new(output).lines();
            while let Some(Ok(line)) = lines.next() {
                // whoever no longer listens has dropped the program
                let _ = tell.send(line);
            }
        });
        let mut program = Self {
            child,
            requests,
            answers,
        };
        program.enter(dir);
        program
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives up whatever is open and goes on in `dir`.
    pub fn enter(&mut self, dir: &Path) {
        let entered = self.call(json!({"op": "enter", "dir": dir}));
        assert_eq!(entered, Ok(None));
    }

    /// One step. A call that does not return is a failure, not a test that hangs.
    pub fn call(&mut self, request: Value) -> Answer {
        writeln!(self.requests, "{request}").expect("the program lives");
        let answer = self.answers.recv_timeout(PATIENCE);
        let answer = answer.unwrap_or_else(|_| panic!("{request} does not return"));
        let answer: Value = serde_json::from_str(&answer).expect("a JSON answer");
        match answer["errno"].as_str() {
            Some(errno) => Err(errno.to_owned()),
            None => Ok(answer["text"].as_str().map(str::to_owned)),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
