//! Shells in sessions of their own, each driven line by line.

// every suite uses a part of it
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::redis::without_settings;

use rustix::process::{Pid, Signal, kill_process_group};

/// No line takes so long: only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(90);
const END: &str = "-- that was it:";

/// What a line did: its exit status, and what it printed on both outputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub status: i32,
    pub text: String,
}

/// `bash` in a session of its own; it and what it started are killed on drop.
pub struct Shell {
    child: Child,
    lines: ChildStdin,
    said: Receiver<String>,
}

impl Shell {
    /// In `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::start(Command::new("setsid"), dir)
    }

    /// As another user.
    pub fn of_user(dir: &Path, user: u32) -> Self {
        let mut command = Command::new("setsid");
        command.uid(user).gid(user);
        Self::start(command, dir)
    }

    /// As the first process of a pid namespace, so that nobody there sees the leader of its session.
    pub fn in_new_namespace(dir: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.process_group(0);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        Self::start(command, dir)
    }

    /// In the namespaces that `other` made, as if entered from the host of a container.
    pub fn entering(other: &Self, dir: &Path) -> Self {
        let maker = other.pid();
        let first = fs::read_to_string(format!("/proc/{maker}/task/{maker}/children"));
        let first = first.expect("it lives and its children are told");
        let mut command = Command::new("nsenter");
        command.process_group(0);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--pid", "--mount", "--target", first.trim()]);
        let mut shell = Self::start(command, dir);
        // nsenter starts at the root
        shell.ok(&format!("cd '{}'", dir.display()));
        shell
    }

    fn start(mut command: Command, dir: &Path) -> Self {
        without_settings(&mut command);
        let mut child = command
            .args(["bash", "--norc"])
            .env("LC_ALL", "C")
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("bash and setsid are installed");
        let lines = child.stdin.take().expect("its standard input is a pipe");
        let output = child.stdout.take().expect("its standard output is a pipe");
        let (tell, said) = channel();
        // ends with the shell and all it started
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // whoever no longer listens has dropped the shell
                let _ = tell.send(line);
            }
        });
        let mut shell = Self { child, lines, said };
        shell.ok("exec 2>&1");
        shell
    }

    /// The shell's process, which is its session, too; where namespaces are made or entered, the one that does that.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins a line; `answer` waits for its end.
    pub fn send(&mut self, line: &str) {
        writeln!(self.lines, "{line}\nstatus=$?; echo; echo '{END}' $status")
            .expect("the shell lives");
    }

    pub fn answer(&mut self) -> Said {
        let mut text = Vec::new();
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no answer after {text:?}"));
            if let Some(status) = line.strip_prefix(END) {
                // `echo` has ended what was printed, whether or not it ended in a line break
                let text = text.join("\n").trim_end_matches('\n').to_owned();
                let status = status.trim().parse().expect("a status");
                return Said { status, text };
            }
            text.push(line);
        }
    }

    /// One line.
    pub fn run(&mut self, line: &str) -> Said {
        self.send(line);
        self.answer()
    }

    /// One line that must succeed; what it printed.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        let said = self.run(line);
        assert_eq!(said.status, 0, "{line}: {}", said.text);
        said.text
    }

    /// One line that must fail, and say so with `words`.
    #[track_caller]
    pub fn fails(&mut self, line: &str, words: &str) {
        let said = self.run(line);
        assert!(
            said.status != 0 && said.text.contains(words),
            "{line}: {said:?}"
        );
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
