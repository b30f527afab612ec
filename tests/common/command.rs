//! `nodbfs` as it is typed.

// every suite uses a part of it
#![allow(dead_code)]

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::redis::without_settings;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// What it said, when it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// What it complained of, when it must have failed like this.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }

    /// What it said, for programs.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// To be run with more settings.
pub fn command(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodbfs"));
    without_settings(&mut command);
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end. One that does not end is killed, and a failure.
pub fn run(command: &mut Command) -> Ended {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=1", "60"]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = limited
        .stdin(Stdio::null())
        .output()
        .expect("timeout is installed");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (code, out, err) = (status.code(), text(stdout), text(stderr));
    assert_ne!(code, Some(124), "it does not end: {command:?}\n{err}");
    Ended { code, out, err }
}

/// `nodbfs` with these arguments.
pub fn nodbfs(args: &[impl AsRef<OsStr>]) -> Ended {
    run(&mut command(args))
}
