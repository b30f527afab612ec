//! Waiting for a lock on Redis: who and what wakes a waiter, what it costs the server, and that a
//! server that tells nothing only makes waiters look for themselves.

mod common {
    pub mod redis;
    pub mod store;
}

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use common::redis::RedisServer;
use common::store::{
    AWAITS_NEWS, LONG, OWNER, TTL, await_news, connect, eventually, impatient, name, take,
};
use nodbfs::error::{Errno, Error, Result};
use nodbfs::store::lease::{Pace, acquire_paced};
use nodbfs::store::redis::Redis;
use nodbfs::store::{Lease, Locks};

const KEY: &str = "nodb-lock:mercuric-subcontract:wepp.nodb";
// python: hashlib.sha256(b"run\0mercuric-subcontract").hexdigest()
const FENCE: &str =
    "nodb:run-replacement:f1ce333b4aa72b16d852d3075d99844c4c9163c778fef89583bbf4a7b9bfc00d";

/// Waits as only news can end it; counts what it asks.
fn await_turn(store: &Redis, asked: &AtomicUsize) -> Result<Lease> {
    let name = name("wepp.nodb");
    let patience = impatient(asked);
    acquire_paced(store, &name, OWNER, TTL, LONG, AWAITS_NEWS, &patience)
}

/// The scripts the server has run: each attempt to take a lock is one, once the server knows it.
fn attempts(server: &RedisServer) -> usize {
    let stats = server.text(&["INFO", "commandstats"]).unwrap();
    let calls = |line: &str| {
        line.strip_prefix("cmdstat_evalsha:calls=")?
            .split(',')
            .next()?
            .parse()
            .ok()
    };
    stats.lines().find_map(calls).unwrap_or(0)
}

/// The ids of the connections that are told of changes.
fn listeners(server: &RedisServer) -> Vec<String> {
    let clients = server.text(&["CLIENT", "LIST"]).unwrap();
    let field = |line: &str, name: &str| {
        let value = line.split(' ').find_map(|field| field.strip_prefix(name));
        value.unwrap().to_owned()
    };
    let told = |line: &&str| field(line, "flags=").contains('t');
    let ids = clients.lines().filter(told).map(|line| field(line, "id="));
    ids.collect()
}

/// How often a user was denied something.
fn denials(server: &RedisServer) -> usize {
    redis::from_redis_value::<Vec<redis::Value>>(server.cmd(&["ACL", "LOG"]))
        .unwrap()
        .len()
}

/// Whatever frees a lock wakes its waiter: the forced release of a NoDb process, an expiry, a
/// server that forgets everything, the end of a replacement.
#[test]
fn whatever_frees_a_lock_wakes_its_waiter() {
    for (held_by, freed_by) in [
        (KEY, vec!["DEL", KEY]),
        (KEY, vec!["PEXPIRE", KEY, "20"]),
        (KEY, vec!["RENAME", KEY, "elsewhere"]),
        (KEY, vec!["FLUSHALL"]),
        (FENCE, vec!["DEL", FENCE]),
    ] {
        let server = RedisServer::start();
        let store = connect(&server.url());
        server.cmd(&["SET", held_by, "theirs"]);
        let _told = await_news(&store, &name("wepp.nodb"));
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                eventually("somebody waits", || asked.load(SeqCst) > 1);
                server.cmd(&freed_by);
            });
            await_turn(&store, &asked).unwrap_or_else(|error| panic!("{freed_by:?}: {error}"));
        });
    }
}

/// On a server that tells of no keyspace event at all, over TCP and a unix socket.
#[test]
fn news_need_no_keyspace_events() {
    let server = RedisServer::start();
    server.cmd(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    for url in [server.url(), server.unix_url()] {
        let store = connect(&url);
        let lease = take(&store, &name("wepp.nodb"));
        let _told = await_news(&store, &name("wepp.nodb"));
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| await_turn(&store, &asked));
            eventually("somebody waits", || asked.load(SeqCst) > 1);
            assert!(store.release(&lease, None).unwrap());
            let lease = waiting.join().unwrap().unwrap();
            assert!(store.release(&lease, None).unwrap());
        });
    }
}

/// A waiter that is told asks the server for nothing until there is news of its own lock, and then
/// once.
#[test]
fn a_waiter_that_is_told_makes_no_needless_attempts() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    take(&store, &name("wepp.nodb"));
    server.cmd(&["SET", KEY, "theirs"]);
    let _told = await_news(&store, &name("wepp.nodb"));
    let asked = AtomicUsize::new(0);
    let before = attempts(&server);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| await_turn(&store, &asked));
        // each question but the first is a pause in which it might have tried
        eventually("it waits", || asked.load(SeqCst) > 8);
        server.cmd(&["SET", "nodb-lock:mercuric-subcontract:soils.nodb", "x"]);
        server.cmd(&["HSET", "mercuric-subcontract", "locked:wepp.nodb", "true"]);
        let seen = asked.load(SeqCst);
        eventually("it waits on", || asked.load(SeqCst) > seen + 4);
        assert_eq!(attempts(&server) - before, 1);
        server.cmd(&["DEL", KEY]);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(attempts(&server) - before, 2);
}

/// A lock that changes all the time is news all the time; a waiter tries no more often for it.
#[test]
fn a_busy_lock_is_tried_no_more_often_than_without_news() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    take(&store, &name("wepp.nodb"));
    let _told = await_news(&store, &name("wepp.nodb"));
    let pause = Duration::from_millis(100);
    let pace = Pace {
        first: pause,
        longest: pause,
        told: LONG,
    };
    let asked = AtomicUsize::new(0);
    let (before, start) = (attempts(&server), Instant::now());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let (wanted, patience) = (name("wepp.nodb"), impatient(&asked));
            acquire_paced(&store, &wanted, OWNER, TTL, LONG, pace, &patience)
        });
        let mut connection = server.connect(0).unwrap();
        while attempts(&server) - before < 10 {
            let renew = redis::cmd("PEXPIRE")
                .arg(KEY)
                .arg(60_000)
                .exec(&mut connection);
            renew.unwrap();
        }
        let tried = (attempts(&server) - before) as f64;
        // a pause is half as long at the least, and on a slow machine it is longer
        let most = start.elapsed().div_duration_f64(pause / 2) + 1.0;
        assert!(tried <= most, "{tried} attempts, {most} would do");
        server.cmd(&["DEL", KEY]);
        waiting.join().unwrap().unwrap();
    });
}

/// One connection for all waiters, and none when nobody waits.
#[test]
fn the_server_is_listened_to_once_and_only_while_somebody_waits() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    take(&store, &name("wepp.nodb"));
    assert_eq!(listeners(&server).len(), 0);
    let watches: Vec<_> = ["wepp.nodb", "wepp.nodb", "soils.nodb"]
        .map(|relpath| await_news(&store, &name(relpath)))
        .into();
    assert_eq!(listeners(&server).len(), 1);
    drop(watches);
    eventually("nobody listens", || listeners(&server).is_empty());
    let again = await_news(&store, &name("wepp.nodb"));
    assert_eq!(listeners(&server).len(), 1);
    drop(again);
    drop(store);
    eventually("a store that is gone does not listen", || {
        listeners(&server).is_empty()
    });
}

/// A user who may not listen: waiters look for themselves, and nothing else is different.
#[test]
fn without_permission_to_listen_a_waiter_looks_for_itself() {
    for denied in ["-client|tracking", "-client"] {
        let server = RedisServer::start();
        server.cmd(&[
            "ACL", "SETUSER", "nodb", "on", ">geheim", "~*", "&*", "+@all", denied,
        ]);
        let url = server.url().replace("redis://", "redis://nodb:geheim@");
        let store = connect(&url);
        let lease = take(&store, &name("wepp.nodb"));
        let watch = store.watch(&name("wepp.nodb"));
        eventually("the listener is denied", || denials(&server) > 0);
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                eventually("somebody waits", || asked.load(SeqCst) > 1);
                assert!(store.release(&lease, None).unwrap());
            });
            await_turn(&store, &asked).unwrap();
        });
        assert!(!watch.is_told() && listeners(&server).is_empty());
    }
}

/// A connection that is lost in the middle of a wait takes no news with it: the waiter looks for
/// itself, and is told again as soon as there is a connection.
#[test]
fn a_lost_connection_leaves_the_waiter_to_look_for_itself() {
    let server = RedisServer::start();
    server.cmd(&[
        "ACL", "SETUSER", "nodb", "on", ">geheim", "~*", "&*", "+@all",
    ]);
    let store = connect(&server.url().replace("redis://", "redis://nodb:geheim@"));
    let lease = take(&store, &name("wepp.nodb"));
    let watch = await_news(&store, &name("wepp.nodb"));
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| await_turn(&store, &asked));
        eventually("somebody waits", || asked.load(SeqCst) > 1);
        server.cmd(&["ACL", "SETUSER", "nodb", "-client|tracking"]);
        for id in listeners(&server) {
            server.cmd(&["CLIENT", "KILL", "ID", &id]);
        }
        eventually("nobody is told", || !watch.is_told());
        assert!(store.release(&lease, None).unwrap());
        let lease = waiting.join().unwrap().unwrap();
        server.cmd(&["ACL", "SETUSER", "nodb", "+client|tracking"]);
        eventually("waiters are told again", || watch.is_told());
        let waiting = scope.spawn(|| await_turn(&store, &asked));
        assert!(store.release(&lease, None).unwrap());
        waiting.join().unwrap().unwrap();
    });
}

/// A server that dies during a wait is an error at the next attempt, not a wait for news that
/// nobody will ever send.
#[test]
fn a_server_that_dies_ends_the_wait() {
    let mut server = RedisServer::start();
    let store = connect(&server.url());
    take(&store, &name("wepp.nodb"));
    let _told = await_news(&store, &name("wepp.nodb"));
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| await_turn(&store, &asked));
        eventually("somebody waits", || asked.load(SeqCst) > 1);
        server.kill();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Store(_)), "{error:?}");
    });
}

/// An interrupt is noticed while the waiter is told of changes, and there are none.
#[test]
fn a_waiter_that_is_told_can_be_cancelled() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    take(&store, &name("wepp.nodb"));
    let _told = await_news(&store, &name("wepp.nodb"));
    let asked = AtomicUsize::new(0);
    let later = || asked.fetch_add(1, SeqCst) > 3;
    let wanted = name("wepp.nodb");
    let error = acquire_paced(&store, &wanted, OWNER, TTL, LONG, AWAITS_NEWS, &later).unwrap_err();
    assert_eq!(error.errno(), Errno::INTR, "{error:?}");
    assert!(error.to_string().contains(OWNER), "{error}");
}
