//! The stores: one conformance suite for both, and the keeping of leases on top of them. What only
//! Redis has is in store_redis.rs.

mod common {
    pub mod redis;
    pub mod store;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::redis::RedisServer;
use common::store::{
    AWAITS_NEWS, LONG, OWNER, TTL, await_news, busy, connect, eventually, impatient, name, take,
    take_for,
};
use nodbfs::error::{Errno, Error};
use nodbfs::store::embedded::Embedded;
use nodbfs::store::lease::{Keeper, acquire_paced, acquire_waiting};
use nodbfs::store::{Acquired, Cached, Committed, LockName, Locks, Status, Store};

/// Each of the functions for both stores.
macro_rules! conformance {
    ($($test:ident)*) => {
        mod embedded {
            $(#[test] fn $test() {
                super::conformance::$test(std::sync::Arc::new(super::Embedded::new(64 << 20)));
            })*
        }
        mod redis {
            $(#[test] fn $test() {
                let server = super::RedisServer::start();
                super::conformance::$test(std::sync::Arc::new(super::connect(&server.url())));
            })*
        }
    };
}

conformance! {
    the_cache_gives_back_what_was_put
    the_cache_deletes_entries_with_their_seals
    a_reader_never_replaces_what_a_commit_put_meanwhile
    a_lock_is_exclusive_until_it_is_released
    who_holds_a_lock_is_seen_at_once
    all_locks_that_are_held_are_listed
    locks_of_other_names_are_free
    a_renewed_lease_and_its_older_self_are_the_same_lock
    a_lost_lease_is_neither_renewed_nor_released
    an_expired_lock_is_free
    a_commit_is_passed_on
    calls_come_from_threads_of_every_kind
    many_threads_share_a_store
    waiting_ends_with_the_holders_name
    waiting_ends_when_the_lock_is_free
    waiting_can_be_cancelled
    a_waiter_is_woken_by_a_release
    every_waiter_of_a_crowd_is_woken_in_its_turn
    a_held_lease_is_checked_released_and_gone
    a_dropped_lease_is_released
    a_stopping_keeper_releases_what_was_dropped
}

mod conformance {
    use super::*;

    pub fn the_cache_gives_back_what_was_put(store: Arc<dyn Store>) {
        assert_eq!(store.get("/a b/ü.nodb").unwrap(), Cached::default());
        let large = vec![b'x'; 3 << 20];
        for (entry, seal) in [
            (&b"{}"[..], &b"seal"[..]),
            (b"\0\xff\r\n", b""),
            (&large, b"s"),
        ] {
            store.put("/a b/ü.nodb", entry, seal).unwrap();
            let cached = store.get("/a b/ü.nodb").unwrap();
            assert!(cached.entry.as_deref() == Some(entry) && cached.seal.as_deref() == Some(seal));
        }
        assert_eq!(store.get("/a b/u.nodb").unwrap(), Cached::default());
    }

    pub fn a_reader_never_replaces_what_a_commit_put_meanwhile(store: Arc<dyn Store>) {
        assert!(store.put_if_unchanged("/a", None, b"1", b"s1").unwrap());
        assert!(!store.put_if_unchanged("/a", None, b"2", b"s2").unwrap());
        assert!(
            !store
                .put_if_unchanged("/a", Some(b""), b"2", b"s2")
                .unwrap()
        );
        assert!(
            !store
                .put_if_unchanged("/a", Some(b"0"), b"2", b"s2")
                .unwrap()
        );
        assert_eq!(store.get("/a").unwrap().entry.as_deref(), Some(&b"1"[..]));
        assert!(
            store
                .put_if_unchanged("/a", Some(b"1"), b"3", b"s3")
                .unwrap()
        );
        let cached = store.get("/a").unwrap();
        assert_eq!(cached.entry.as_deref(), Some(&b"3"[..]));
        assert_eq!(cached.seal.as_deref(), Some(&b"s3"[..]));
    }

    pub fn the_cache_deletes_entries_with_their_seals(store: Arc<dyn Store>) {
        let keys = ["/a", "/b", "/c"].map(str::to_owned);
        for key in &keys {
            store.put(key, key.as_bytes(), b"seal").unwrap();
        }
        store.delete(&[]).unwrap();
        store
            .delete(&["/a".into(), "/b".into(), "/missing".into()])
            .unwrap();
        assert_eq!(store.get("/a").unwrap(), Cached::default());
        assert_eq!(store.get("/b").unwrap(), Cached::default());
        assert_eq!(store.get("/c").unwrap().entry.as_deref(), Some(&b"/c"[..]));
    }

    pub fn a_lock_is_exclusive_until_it_is_released(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        assert_eq!(store.holder(&name).unwrap(), None);
        let lease = take(&*store, &name);
        assert!(lease.remaining() <= TTL);
        let holder = busy(&*store, &name);
        assert_eq!(holder.owner.as_deref(), Some(OWNER));
        assert_eq!(holder.value, lease.value);
        let now = store.holder(&name).unwrap().unwrap();
        assert!(now.left.is_some_and(|left| left <= TTL), "{now:?}");
        assert_eq!(now.value, holder.value);
        assert!(store.release(&lease, None).unwrap());
        assert_eq!(store.holder(&name).unwrap(), None);
        assert!(!store.release(&lease, None).unwrap());
        let next = take(&*store, &name);
        assert_ne!(next.value, lease.value);
    }

    /// Whoever looks at a lock again and again is not behind what this process has done itself.
    pub fn who_holds_a_lock_is_seen_at_once(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let seen = || Some(store.seen_holder(&name).unwrap()?.value);
        for _ in 0..50 {
            assert_eq!(seen(), None);
            let lease = take(&*store, &name);
            assert_eq!(seen(), Some(lease.value.clone()));
            let renewed = store.renew(&lease).unwrap().unwrap();
            assert_eq!(seen(), Some(renewed.value.clone()));
            assert!(store.release(&renewed, None).unwrap());
        }
    }

    pub fn all_locks_that_are_held_are_listed(store: Arc<dyn Store>) {
        assert_eq!(store.held().unwrap(), []);
        let names = [
            "wepp.nodb",
            "_pups/omni/scenarios/x/wepp.nodb",
            "soils.nodb",
        ]
        .map(name);
        let leases = names.each_ref().map(|name| take(&*store, name));
        let listed = || -> Vec<_> {
            let held = store.held().unwrap().into_iter();
            held.map(|(name, holder)| (name, holder.value)).collect()
        };
        let held = leases
            .iter()
            .map(|lease| (lease.name.clone(), lease.value.clone()));
        let mut held: Vec<_> = held.collect();
        held.sort();
        assert_eq!(listed(), held);
        for lease in &leases {
            assert!(store.release(lease, None).unwrap());
        }
        assert_eq!(listed(), []);
    }

    pub fn locks_of_other_names_are_free(store: Arc<dyn Store>) {
        take(&*store, &name("wepp.nodb"));
        take(&*store, &name("_pups/omni/scenarios/x/wepp.nodb"));
        take(
            &*store,
            &LockName {
                runid: "batch;;spring;;run-001".into(),
                ..name("wepp.nodb")
            },
        );
    }

    pub fn a_renewed_lease_and_its_older_self_are_the_same_lock(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let first = take(&*store, &name);
        let second = store.renew(&first).unwrap().unwrap();
        assert!(second.deadline > first.deadline);
        // as after a renewal that was never answered
        let third = store.renew(&first).unwrap().unwrap();
        assert!(third.deadline > second.deadline);
        assert_eq!(store.holder(&name).unwrap().unwrap().value, third.value);
        assert!(store.release(&first, None).unwrap());
        assert!(store.renew(&third).unwrap().is_none());
    }

    pub fn a_lost_lease_is_neither_renewed_nor_released(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let lost = take(&*store, &name);
        assert!(store.release(&lost, None).unwrap());
        let theirs = take(&*store, &name);
        assert!(store.renew(&lost).unwrap().is_none());
        assert!(!store.release(&lost, None).unwrap());
        assert_eq!(store.holder(&name).unwrap().unwrap().value, theirs.value);
    }

    pub fn an_expired_lock_is_free(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let old = take_for(&*store, &name, Duration::from_millis(20));
        eventually("the lock expires", || {
            store.holder(&name).unwrap().is_none()
        });
        assert!(store.renew(&old).unwrap().is_none());
        take(&*store, &name);
        assert!(!store.release(&old, None).unwrap());
        busy(&*store, &name);
    }

    pub fn a_commit_is_passed_on(store: Arc<dyn Store>) {
        let lease = take(&*store, &name("wepp.nodb"));
        let message = Some((
            "mercuric-subcontract:wepp".to_owned(),
            "committed".to_owned(),
        ));
        let committed = Committed {
            last_modified: 1_770_000_000,
            message,
        };
        assert!(store.release(&lease, Some(&committed)).unwrap());
        assert!(!store.release(&lease, Some(&committed)).unwrap());
        store.touch("mercuric-subcontract", 1_770_000_001).unwrap();
        store.publish("mercuric-subcontract:wepp", "text").unwrap();
        store.ping().unwrap();
    }

    pub fn calls_come_from_threads_of_every_kind(store: Arc<dyn Store>) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let moved = store.clone();
        let blocking = runtime.spawn_blocking(move || moved.put("/a", b"1", b"2"));
        runtime.block_on(blocking).unwrap().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| assert!(store.get("/a").unwrap().entry.is_some()));
        });
        // the last reference may go in an async context
        runtime.block_on(async move { drop(store) });
    }

    pub fn many_threads_share_a_store(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let won = AtomicUsize::new(0);
        thread::scope(|scope| {
            for number in 0..16 {
                let (store, name, won) = (&store, &name, &won);
                scope.spawn(move || {
                    let key = format!("/{number}");
                    store.put(&key, key.as_bytes(), b"").unwrap();
                    assert_eq!(store.get(&key).unwrap().entry.unwrap(), key.as_bytes());
                    if let Acquired::Held(_) = store.acquire(name, OWNER, TTL).unwrap() {
                        won.fetch_add(1, SeqCst);
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }

    pub fn waiting_ends_with_the_holders_name(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        take(&*store, &name);
        for wait in [Duration::ZERO, Duration::from_millis(60)] {
            match acquire_waiting(&*store, &name, "other:1", TTL, wait, &|| false) {
                Err(Error::Locked { key, holder }) => {
                    assert_eq!(key, "nodb-lock:mercuric-subcontract:wepp.nodb");
                    assert_eq!(holder, OWNER);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn waiting_ends_when_the_lock_is_free(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let lease = take(&*store, &name);
        let tries = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                eventually("somebody waits", || tries.load(SeqCst) > 1);
                assert!(store.release(&lease, None).unwrap());
            });
            // asked after every attempt that failed
            let counting = || {
                tries.fetch_add(1, SeqCst);
                false
            };
            let long = Duration::from_secs(60);
            acquire_waiting(&*store, &name, "other:1", TTL, long, &counting).unwrap();
        });
    }

    pub fn waiting_can_be_cancelled(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        take(&*store, &name);
        let long = Duration::from_secs(3600);
        let error = acquire_waiting(&*store, &name, "other:1", TTL, long, &|| true).unwrap_err();
        assert_eq!(error.errno(), Errno::INTR, "{error:?}");
        assert!(error.to_string().contains(OWNER), "{error}");
    }

    /// Without news it would try again in an hour.
    pub fn a_waiter_is_woken_by_a_release(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let lease = take(&*store, &name);
        let _told = await_news(&*store, &name);
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                eventually("somebody waits", || asked.load(SeqCst) > 1);
                assert!(store.release(&lease, None).unwrap());
            });
            let patience = impatient(&asked);
            acquire_paced(&*store, &name, "other:1", TTL, LONG, AWAITS_NEWS, &patience).unwrap();
        });
    }

    pub fn every_waiter_of_a_crowd_is_woken_in_its_turn(store: Arc<dyn Store>) {
        let name = name("wepp.nodb");
        let first = take(&*store, &name);
        let _told = await_news(&*store, &name);
        let (served, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let patience = impatient(&asked);
                    let lease =
                        acquire_paced(&*store, &name, OWNER, TTL, LONG, AWAITS_NEWS, &patience);
                    assert!(store.release(&lease.unwrap(), None).unwrap());
                    served.fetch_add(1, SeqCst);
                });
            }
            eventually("all of them wait", || asked.load(SeqCst) > 32);
            assert!(store.release(&first, None).unwrap());
        });
        assert_eq!(served.into_inner(), 8);
    }

    pub fn a_held_lease_is_checked_released_and_gone(store: Arc<dyn Store>) {
        let keeper = Keeper::start().unwrap();
        let name = name("wepp.nodb");
        let held = keeper.hold(store.clone(), take(&*store, &name));
        held.check(TTL / 2).unwrap();
        assert!(held.check(2 * TTL).unwrap_err().contains("only"));
        assert_eq!(
            held.value(),
            store.holder(&name).unwrap().map(|holder| holder.value)
        );
        assert!(
            held.release(Some(Committed {
                last_modified: 1,
                message: None
            }))
            .unwrap()
        );
        assert!(held.check(Duration::ZERO).unwrap_err().contains("released"));
        assert!(!held.release(None).unwrap());
        let theirs = take(&*store, &name);
        drop(held);
        drop(keeper);
        assert_eq!(store.holder(&name).unwrap().unwrap().value, theirs.value);
    }

    pub fn a_dropped_lease_is_released(store: Arc<dyn Store>) {
        let keeper = Keeper::start().unwrap();
        let name = name("wepp.nodb");
        drop(keeper.hold(store.clone(), take(&*store, &name)));
        eventually("the lock is released", || {
            store.holder(&name).unwrap().is_none()
        });
    }

    pub fn a_stopping_keeper_releases_what_was_dropped(store: Arc<dyn Store>) {
        let keeper = Keeper::start().unwrap();
        let name = name("wepp.nodb");
        let held = keeper.hold(store.clone(), take(&*store, &name));
        drop(held);
        drop(keeper);
        assert_eq!(store.holder(&name).unwrap(), None);
    }
}

#[test]
fn embedded_messages_are_counted() {
    let store = Embedded::new(0);
    let lease = take(&store, &name("wepp.nodb"));
    let message = Some(("channel".to_owned(), "text".to_owned()));
    store
        .release(
            &lease,
            Some(&Committed {
                last_modified: 1,
                message,
            }),
        )
        .unwrap();
    store.publish("channel", "text").unwrap();
    assert_eq!(store.published(), 2);
    assert_eq!(store.describe(), "embedded");
}
