//! What stands at a Redis server's address in its place.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::common::redis::RedisServer;

/// Listens, accepts nobody, and its queue is full: the kernel drops every SYN.
pub struct Deaf(Child);

impl Deaf {
    pub fn in_place_of(redis: &RedisServer) -> Self {
        let code = r#"
import socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(0)
filler = []
try:
    while len(filler) < 100:
        filler.append(socket.create_connection(listener.getsockname(), timeout=0.5))
except TimeoutError:
    print("full", flush=True)
sys.stdin.read()
"#;
        let mut child = Command::new("python3")
            .args(["-c", code, &port(redis).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut said).unwrap();
        let deaf = Self(child);
        assert_eq!(said, "full\n");
        deaf
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that loads slowly what another saved; gone when dropped.
pub struct Loading(Child);

impl Loading {
    pub fn in_place_of(redis: &RedisServer) -> Self {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port(redis).to_string()])
            .arg("--unixsocket")
            .arg(redis.socket())
            .arg("--dir")
            .arg(redis.socket().parent().expect("its directory"))
            .args(["--key-load-delay", "500000"])
            .args(["--loading-process-events-interval-bytes", "1024"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn port(redis: &RedisServer) -> u16 {
    redis
        .bare_url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}
