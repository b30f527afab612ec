//! A private redis-server for tests: on a unix socket and a free loopback port, in a directory of
//! its own, gone when dropped.

// every suite uses a part of it
#![allow(dead_code)]

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisResult, Value};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Keeps the machine's own settings (PROTOCOL.md 2) from the daemon that `command` starts.
pub fn without_settings(command: &mut Command) {
    for name in [
        "NODBFS_LOG",
        "REDIS_URL",
        "RQ_REDIS_URL",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
        "REDIS_PASSWORD_FILE",
    ] {
        command.env_remove(name);
    }
}

pub struct RedisServer {
    directory: TempDir,
    port: u16,
    password: Option<String>,
    durable: bool,
    child: Option<Child>,
}

impl RedisServer {
    /// Without a password.
    pub fn start() -> Self {
        Self::new(None).launch()
    }

    pub fn with_password(password: &str) -> Self {
        Self::new(Some(password.to_owned())).launch()
    }

    /// One that keeps what it has confirmed, whatever becomes of it, until `forget`.
    pub fn durable() -> Self {
        let mut server = Self::new(None);
        server.durable = true;
        server.launch()
    }

    /// A server that is not running yet; `restart` starts it.
    pub fn stopped() -> Self {
        Self::new(None)
    }

    fn launch(mut self) -> Self {
        // somebody else may get the port between our look and the server's bind
        for _ in 0..5 {
            if self.try_run() {
                return self;
            }
            self.port = free_port();
        }
        panic!("redis-server does not start");
    }

    fn new(password: Option<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            port: free_port(),
            password,
            durable: false,
            child: None,
        }
    }

    /// Starts redis-server; whether it answers, or has given up.
    fn try_run(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--unixsocket", &self.socket().display().to_string()])
            .args(["--dir", &self.directory.path().display().to_string()])
            .args([
                "--save",
                "",
                "--appendonly",
                if self.durable { "yes" } else { "no" },
                "--appendfsync",
                "always",
                "--notify-keyspace-events",
                "Kh",
            ])
            // a ^C is for the program that started it
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(password) = &self.password {
            command.args(["--requirepass", password]);
        }
        let mut child = command.spawn().expect("redis-server is installed");
        while child.try_wait().unwrap().is_none() {
            if self.try_cmd(0, &["PING"]).is_ok() {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// `redis://`, with the password.
    pub fn url(&self) -> String {
        let user = self
            .password
            .as_ref()
            .map(|password| format!(":{password}@"));
        format!(
            "redis://{}127.0.0.1:{}",
            user.unwrap_or_default(),
            self.port
        )
    }

    /// `redis://` without the password.
    pub fn bare_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `unix://`, with the password.
    pub fn unix_url(&self) -> String {
        let query = self
            .password
            .as_ref()
            .map(|password| format!("?pass={password}"));
        format!(
            "unix://{}{}",
            self.socket().display(),
            query.unwrap_or_default()
        )
    }

    /// Ends the server at once; nothing is kept, unless it is durable.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What a durable server that was killed has kept is lost.
    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(self.directory.path().join("appendonlydir"));
    }

    /// Starts it again at the same addresses, empty unless it is durable.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_run(), "redis-server does not start again");
    }

    /// SIGSTOP: connections are accepted, nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// A connection of the test's own.
    pub fn connect(&self, database: i64) -> RedisResult<redis::Connection> {
        let mut info = RedisConnectionInfo::default().set_db(database);
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        let address: ConnectionInfo = self.unix_url().into_connection_info()?;
        redis::Client::open(address.set_redis_settings(info))?.get_connection()
    }

    /// One command in DB 0, as with redis-cli.
    pub fn cmd(&self, words: &[&str]) -> Value {
        self.cmd_in(0, words)
    }

    /// One command in another database.
    pub fn cmd_in(&self, database: i64, words: &[&str]) -> Value {
        self.try_cmd(database, words).unwrap()
    }

    /// The text a command answers in DB 0, if any.
    pub fn text(&self, words: &[&str]) -> Option<String> {
        self.text_in(0, words)
    }

    /// The text a command answers in another database, if any.
    pub fn text_in(&self, database: i64, words: &[&str]) -> Option<String> {
        redis::from_redis_value(self.cmd_in(database, words)).unwrap()
    }

    pub fn try_cmd(&self, database: i64, words: &[&str]) -> RedisResult<Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut self.connect(database)?)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has, and that the kernel gives nobody who asks for any: the server must find it
/// free after an outage too.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // other test programs count from elsewhere
        let nth = std::process::id() * 64 + NEXT.fetch_add(1, Relaxed);
        let port = 10_000 + (nth % 20_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
