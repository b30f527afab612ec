//! What the suites of the stores share.

// every suite uses a part of it
#![allow(dead_code)]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nodbfs::store::lease::Pace;
use nodbfs::store::redis::{Limits, Redis, Settings};
use nodbfs::store::waiting::Watch;
use nodbfs::store::{Acquired, Holder, Lease, LockName, Store};

pub const TTL: Duration = Duration::from_secs(60);
pub const OWNER: &str = "host:17";
/// Longer than any test lives.
pub const LONG: Duration = Duration::from_secs(3600);
/// The pace of a waiter that hopes for news: only news get it the lock in the time of a test.
pub const AWAITS_NEWS: Pace = Pace {
    first: Duration::from_millis(4),
    longest: Duration::from_millis(4),
    told: LONG,
};

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

/// Returns when waiters for `name` are told of changes, and sees to it that they stay so.
pub fn await_news<'a>(store: &'a dyn Store, name: &LockName) -> Watch<'a> {
    let watch = store.watch(name);
    eventually("waiters are told", || watch.is_told());
    watch
}

/// A waiter's question whether it was cancelled: counted, and answered by yes when no test waits
/// any longer.
pub fn impatient(asked: &AtomicUsize) -> impl Fn() -> bool {
    let start = Instant::now();
    move || {
        asked.fetch_add(1, SeqCst);
        start.elapsed() > Duration::from_secs(60)
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
