//! A redis-server of the test's own, on a loopback port and a unix socket, gone on drop.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct RedisServer {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl RedisServer {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // another process may take the port between here and the server's bind: then the wait below says so
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--notify-keyspace-events",
                "Kh",
            ])
            .args(["--port", &port.to_string()])
            .arg("--unixsocket")
            .arg(dir.path().join("redis.sock"))
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self { child, dir, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while server.connect(0).is_err() {
            assert!(
                Instant::now() < deadline,
                "redis-server does not answer on port {port}"
            );
            sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn unix_url(&self) -> String {
        format!("unix://{}/redis.sock", self.dir.path().display())
    }

    /// Runs one command in database `db`; panics on an error.
    pub fn cmd<T: redis::FromRedisValue>(&self, db: i64, args: &[&str]) -> T {
        let mut command = redis::cmd(args[0]);
        command.arg(&args[1..]);
        let mut connection = self.connect(db).expect("a connection");
        command
            .query(&mut connection)
            .unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    fn connect(&self, db: i64) -> redis::RedisResult<redis::Connection> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        redis::cmd("SELECT").arg(db).query::<()>(&mut connection)?;
        Ok(connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // it may be dead already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
