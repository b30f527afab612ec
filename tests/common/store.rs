//! What the suites of the stores share.

// every suite uses a part of it
#![allow(dead_code)]

use std::thread;
use std::time::{Duration, Instant};

use nodbfs::store::redis::{Limits, Redis, Settings};
use nodbfs::store::{Acquired, Holder, Lease, LockName, Store};

pub const TTL: Duration = Duration::from_secs(60);
pub const OWNER: &str = "host:17";

pub fn name(relpath: &str) -> LockName {
    LockName {
        runid: "mercuric-subcontract".into(),
        relpath: relpath.into(),
    }
}

pub fn take(store: &dyn Store, name: &LockName) -> Lease {
    take_for(store, name, TTL)
}

pub fn take_for(store: &dyn Store, name: &LockName, ttl: Duration) -> Lease {
    match store.acquire(name, OWNER, ttl).unwrap() {
        Acquired::Held(lease) => lease,
        other => panic!("{other:?}"),
    }
}

pub fn busy(store: &dyn Store, name: &LockName) -> Holder {
    match store.acquire(name, "other:1", TTL).unwrap() {
        Acquired::Busy(holder) => holder,
        other => panic!("{other:?}"),
    }
}

/// Polls; a condition that never comes true is a failure, however long it is given.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn settings(url: &str, limits: Limits) -> Settings {
    let mut settings = Settings::from_url("test", url).unwrap();
    settings.limits = limits;
    settings
}

/// Patient, as a loaded machine needs it.
pub fn patient() -> Limits {
    let long = Duration::from_secs(30);
    let pause = Duration::from_millis(10);
    Limits {
        connect: long,
        reply: long,
        first_pause: pause,
        longest_pause: pause,
    }
}

pub fn connect(url: &str) -> Redis {
    Redis::new(settings(url, patient()))
}
