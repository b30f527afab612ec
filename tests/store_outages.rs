//! The Redis store and a server that is away, slow, restarted, loading or replaced.

mod common {
    pub mod redis;
    pub mod store;
}

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use common::redis::RedisServer;
use common::store::{OWNER, TTL, connect, eventually, name, patient, settings, take};
use nodbfs::store::redis::{Limits, Redis};
use nodbfs::store::{Acquired, Cache, Lease, Locks, Status, Store, StoreError, StoreErrorKind};

const KEY: &str = "nodb-lock:mercuric-subcontract:wepp.nodb";
const RUN: &str = "mercuric-subcontract";

/// A lease that was never taken.
fn forged() -> Lease {
    let deadline = Instant::now() + TTL;
    Lease {
        name: name("wepp.nodb"),
        value: "token".into(),
        deadline,
        ttl: TTL,
    }
}

type Call = fn(&Redis) -> Result<(), StoreError>;

/// Every request but `ping`, and what the log calls it.
const CALLS: [(&str, Call); 9] = [
    ("read cache", |store| store.get("/k").map(drop)),
    ("write cache", |store| store.put("/k", b"{}", b"seal")),
    ("delete cache", |store| store.delete(&["/k".into()])),
    ("acquire lock", |store| {
        store.acquire(&name("wepp.nodb"), OWNER, TTL).map(drop)
    }),
    ("renew lock", |store| store.renew(&forged()).map(drop)),
    ("release lock", |store| {
        store.release(&forged(), None).map(drop)
    }),
    ("read lock", |store| {
        store.holder(&name("wepp.nodb")).map(drop)
    }),
    ("set last_modified", |store| store.touch(RUN, 1)),
    ("publish status", |store| store.publish("channel", "text")),
];

#[test]
fn a_restarted_server_goes_unnoticed_by_an_idle_store() {
    let mut server = RedisServer::start();
    for url in [server.url(), server.unix_url()] {
        for (during, call) in CALLS {
            let store = connect(&url);
            store.ping().unwrap();
            server.restart();
            call(&store).unwrap_or_else(|error| panic!("{during}: {error}"));
        }
    }
}

#[test]
fn a_killed_server_is_unreachable_until_it_is_back() {
    let mut server = RedisServer::start();
    for url in [server.url(), server.unix_url()] {
        let store = connect(&url);
        store.ping().unwrap();
        server.kill();
        for (during, call) in CALLS {
            let error = call(&store).unwrap_err();
            assert_eq!(
                (error.kind, error.during),
                (StoreErrorKind::Unreachable, during),
                "{error}"
            );
        }
        server.restart();
        eventually("the store heals", || store.ping().is_ok());
        for (during, call) in CALLS {
            call(&store).unwrap_or_else(|error| panic!("{during}: {error}"));
        }
    }
}

#[test]
fn a_store_may_be_there_before_its_server() {
    let mut server = RedisServer::stopped();
    let store = connect(&server.url());
    assert_eq!(store.ping().unwrap_err().kind, StoreErrorKind::Unreachable);
    server.restart();
    eventually("the store finds its server", || store.ping().is_ok());
    take(&store, &name("wepp.nodb"));
}

#[test]
fn a_server_that_hangs_costs_no_more_than_the_limits() {
    let server = RedisServer::start();
    let brief = Duration::from_millis(100);
    let limits = Limits {
        connect: brief,
        reply: brief,
        ..patient()
    };
    let store = Redis::new(settings(&server.url(), limits));
    eventually("a connection", || store.ping().is_ok());
    server.pause();
    let error = store.get("/k").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::TimedOut);
    assert!(error.cause.contains("100ms"), "{error}");
    for (_, call) in CALLS {
        let error = call(&store).unwrap_err();
        let kinds = [StoreErrorKind::TimedOut, StoreErrorKind::Unreachable];
        assert!(kinds.contains(&error.kind), "{error}");
    }
    server.cont();
    eventually("the store heals", || {
        CALLS.iter().all(|(_, call)| call(&store).is_ok())
    });
}

/// The limit is for all of a request, also for one that changes two keys.
#[test]
fn a_put_without_an_answer_is_given_up_like_any_request() {
    let server = RedisServer::start();
    let limits = Limits {
        reply: Duration::from_secs(1),
        ..patient()
    };
    let stores: Vec<_> = (0..4)
        .map(|_| Redis::new(settings(&server.url(), limits)))
        .collect();
    for store in &stores {
        store.put("/k", b"{}", b"seal").unwrap();
    }
    server.pause();
    thread::scope(|scope| {
        let (begins, begun) = channel();
        let putting = scope.spawn({
            let store = &stores[0];
            move || {
                begins.send(()).unwrap();
                store.put("/k", b"{}", b"seal").unwrap_err()
            }
        });
        begun.recv().unwrap();
        // one after the other, they take three times as long
        for store in &stores[1..] {
            assert_eq!(store.get("/k").unwrap_err().kind, StoreErrorKind::TimedOut);
        }
        assert!(putting.is_finished());
        assert_eq!(putting.join().unwrap().kind, StoreErrorKind::TimedOut);
    });
}

#[test]
fn an_acquire_without_an_answer_finds_out_what_became_of_it() {
    let server = RedisServer::start();
    let limits = Limits {
        reply: Duration::from_secs(1),
        ..patient()
    };
    let store = Redis::new(settings(&server.url(), limits));
    let warm = take(&store, &name("warm.nodb"));
    assert!(store.release(&warm, None).unwrap());
    server.pause();
    let acquired = thread::scope(|scope| {
        let acquiring = scope.spawn(|| store.acquire(&name("wepp.nodb"), OWNER, TTL));
        // long enough for the first request to be given up; the second waits to connect
        thread::sleep(Duration::from_millis(1300));
        server.cont();
        acquiring.join().unwrap()
    });
    let Acquired::Held(lease) = acquired.unwrap() else {
        panic!("somebody else holds it")
    };
    assert_eq!(server.text(&["GET", KEY]), Some(lease.value.clone()));
    assert!(store.release(&lease, None).unwrap());
    assert_eq!(server.text(&["GET", KEY]), None);
}

#[test]
fn a_lock_taken_by_a_request_given_up_is_no_obstacle() {
    let server = RedisServer::start();
    // longer than the test waits, so that nothing expires
    let ttl = Duration::from_secs(3600);
    let brief = Duration::from_millis(200);
    let limits = Limits {
        connect: brief,
        reply: brief,
        ..patient()
    };
    let store = Redis::new(settings(&server.url(), limits));
    // the script is known to the server, the connection made
    eventually("a first lock", || {
        matches!(
            store.acquire(&name("warm.nodb"), OWNER, TTL),
            Ok(Acquired::Held(_))
        )
    });
    server.pause();
    store.acquire(&name("wepp.nodb"), OWNER, ttl).unwrap_err();
    server.cont();
    eventually("the server wakes up and takes the lock", || {
        server.text(&["GET", KEY]).is_some()
    });
    assert!(matches!(
        connect(&server.url())
            .acquire(&name("wepp.nodb"), "other:1", TTL)
            .unwrap(),
        Acquired::Busy(_)
    ));
    eventually("the store takes its place", || {
        matches!(
            store.acquire(&name("wepp.nodb"), OWNER, ttl),
            Ok(Acquired::Held(_))
        )
    });
    // on a busy machine an answer comes too late for it
    eventually("it is the store's own now", || {
        match store.acquire(&name("wepp.nodb"), "other:1", TTL) {
            Ok(Acquired::Busy(_)) => true,
            Ok(other) => panic!("{other:?}"),
            Err(_) => false,
        }
    });
}

#[test]
fn a_loading_server_refuses_until_it_has_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("loading.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // takes SELECT as a loading server does, and loads for ever
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                let mut answer: &[u8] = b"+OK\r\n";
                while connection.read(&mut bytes).is_ok_and(|count| count > 0) {
                    connection.write_all(answer).unwrap();
                    answer = b"-LOADING Redis is loading the dataset in memory\r\n";
                }
            });
        }
    });
    let store = connect(&format!("unix://{}", socket.display()));
    for error in [store.ping(), store.get("/k").map(drop), store.ping()].map(Result::unwrap_err) {
        assert_eq!(error.kind, StoreErrorKind::Refused);
        assert_eq!(
            error.cause,
            "LOADING Redis is loading the dataset in memory"
        );
    }
}

#[test]
fn tls_to_a_server_without_it_is_an_error() {
    let server = RedisServer::start();
    // such a server waits for the rest of the handshake
    let limits = Limits {
        connect: Duration::from_millis(200),
        ..patient()
    };
    let url = server.url().replace("redis://", "rediss://");
    let store = Redis::new(settings(&url, limits));
    assert_eq!(store.ping().unwrap_err().kind, StoreErrorKind::Unreachable);
}

#[test]
fn a_failover_is_followed() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let directory = tempfile::tempdir().unwrap();
    let address = directory.path().join("primary.sock");
    symlink(old.socket(), &address).unwrap();
    let store = connect(&format!("unix://{}", address.display()));
    store.put("/k", b"{}", b"seal").unwrap();
    old.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    std::fs::remove_file(&address).unwrap();
    symlink(new.socket(), &address).unwrap();
    assert!(
        store
            .put("/k", b"{}", b"seal")
            .unwrap_err()
            .cause
            .starts_with("READONLY")
    );
    store.put("/k", b"{}", b"seal").unwrap();
    assert_eq!(new.text_in(13, &["GET", "/k"]).as_deref(), Some("{}"));
}
