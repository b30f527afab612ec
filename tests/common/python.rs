//! NoDb processes of the field, written in Python from PROTOCOL.md (`tests/neighbours`), each driven
//! step by step through its standard input.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::in_crate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Code since 2026-04-26.
    Modern,
    /// Code before it.
    Old,
}

/// Where a neighbour runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Host,
    /// In PID and UTS namespaces of its own, as in a container: its host name and pid are not the host's.
    /// Its copy of the mount table keeps a FUSE mount busy until it ends.
    Container,
}

/// One NoDb process with one controller; killed on drop.
pub struct Neighbour {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Neighbour {
    /// `wd` is where it does its file I/O, `key_wd` the path by which it names its cache keys.
    pub fn spawn(
        style: Style,
        wd: &Path,
        key_wd: &Path,
        controller: &str,
        redis_url: &str,
        place: Place,
    ) -> Self {
        let mut command = match place {
            Place::Host => Command::new("python3"),
            Place::Container => container(),
        };
        let mut child = command
            .arg(in_crate("tests/neighbours/drive.py"))
            .args([
                "--style",
                if style == Style::Modern {
                    "modern"
                } else {
                    "old"
                },
            ])
            .arg("--wd")
            .arg(wd)
            .arg("--key-wd")
            .arg(key_wd)
            .args(["--controller", controller, "--redis", redis_url])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("WEPPPY_LOCK_TTL_SECONDS")
            // a ^C is for the program that started it
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 and unshare are installed");
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its standard output is a pipe"));
        Self {
            child,
            requests,
            answers,
        }
    }

    /// Its process id, on this host.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request without waiting; `answer` fetches what comes of it. One at a time.
    pub fn send(&mut self, request: &Value) {
        let requests = self.requests.as_mut().expect("open until dropped");
        writeln!(requests, "{request}").expect("the neighbour lives");
    }

    /// Waits for the answer to what was sent last.
    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the neighbour lives");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the neighbour answered {line:?}: {error}"))
    }

    /// One step and its answer, whatever it is.
    pub fn call(&mut self, request: Value) -> Value {
        self.send(&request);
        self.answer()
    }

    /// One step that must succeed.
    pub fn ok(&mut self, request: Value) -> Value {
        let answer = self.call(request.clone());
        assert_eq!(answer["ok"], true, "{request}: {answer}");
        answer
    }

    /// One step that must fail; returns the class of the exception.
    pub fn refused(&mut self, request: Value) -> String {
        let answer = self.call(request.clone());
        assert_eq!(answer["ok"], false, "{request} must fail: {answer}");
        answer["error"]
            .as_str()
            .expect("an exception has a class")
            .to_owned()
    }

    /// One field of the state as this process has it.
    pub fn get(&mut self, key: &str) -> Value {
        self.ok(json!({"op": "get", "key": key}))["value"].take()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // unshare passes the kill on; the neighbour may be gone already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `python3` as process 1 of a container. Whoever is not root needs a user namespace for it.
fn container() -> Command {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let name = format!(
        "neighbour-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    command.args(["--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]);
    command.args([
        "sh",
        "-c",
        &format!("hostname {name} && exec python3 \"$@\""),
        "python3",
    ]);
    command
}
