//! A network of the test's own, which loses and refuses packets as it is told.

// every suite uses a part of it
#![allow(dead_code)]

use std::process::Command;

use crate::common::redis::RedisServer;
use crate::site::eventually;

/// The network of this thread and of everything it starts from now on; gone with the last of them.
pub struct Network {
    port: String,
}

impl Network {
    /// Leaves the machine's network for one that has a loopback device only. Then starts Redis in it.
    pub fn with_redis() -> (Self, RedisServer) {
        // SAFETY: no memory is shared with it, and no descriptor changes.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
        run("ip", "link set lo up");
        run("nft", "add table inet test");
        run(
            "nft",
            "add chain inet test in { type filter hook input priority 0; }",
        );
        let redis = RedisServer::start();
        let url = redis.bare_url();
        let port = url.rsplit(':').next().expect("a port").to_owned();
        (Self { port }, redis)
    }

    /// What happens to packets from now on, as in nft(8); `PORT` stands for Redis's.
    pub fn rule(&self, rule: &str) {
        let rule = rule.replace("PORT", &self.port);
        run("nft", &format!("add rule inet test in {rule}"));
    }

    /// All packets arrive again.
    pub fn heal(&self) {
        run("nft", "flush chain inet test in");
    }

    /// How many bytes are on their way to Redis and have not been acknowledged.
    fn underway(&self) -> u64 {
        let output = Command::new("ss")
            .args(["-tnH", "state", "all", "dport", "=", &self.port])
            .output()
            .unwrap();
        let sockets = String::from_utf8(output.stdout).unwrap();
        let queued = sockets
            .lines()
            .filter_map(|socket| socket.split_whitespace().nth(2));
        queued.map(|bytes| bytes.parse::<u64>().unwrap()).sum()
    }

    /// Waits until whatever was sent has arrived or is given up for good.
    pub fn drained(&self) {
        eventually("nothing is underway", || self.underway() == 0);
    }

    pub fn is_stuck(&self) -> bool {
        self.underway() > 0
    }
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}
