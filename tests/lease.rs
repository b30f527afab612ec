//! Keeping leases when the store fails or somebody else takes the lock.

mod common {
    pub mod store;
}

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::store::{OWNER, TTL, busy, eventually, name, take, take_for};
use nodbfs::error::{Errno, Error};
use nodbfs::store::embedded::Embedded;
use nodbfs::store::lease::{Keeper, acquire_waiting};
use nodbfs::store::{
    Acquired, Cache, Cached, Committed, Holder, Lease, LockName, Locks, Meanwhile, Status, Store,
    StoreError, StoreErrorKind,
};

/// The embedded store, counting renewals and failing when told to.
struct Probe {
    inner: Embedded,
    failing: AtomicBool,
    renewals: AtomicUsize,
    failures: AtomicUsize,
}

impl Probe {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Embedded::new(1 << 20),
            failing: AtomicBool::new(false),
            renewals: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        })
    }

    fn pass(&self) -> Result<(), StoreError> {
        if self.failing.load(SeqCst) {
            self.failures.fetch_add(1, SeqCst);
            let cause = "down".to_owned();
            return Err(StoreError {
                kind: StoreErrorKind::Unreachable,
                during: "probe",
                cause,
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Cache for Probe {
    fn get(&self, key: &str) -> Result<Cached, StoreError> {
        self.inner.get(key)
    }
    fn put_while(
        &self,
        key: &str,
        entry: &[u8],
        seal: &[u8],
        meanwhile: Meanwhile<'_>,
    ) -> Result<(), StoreError> {
        self.inner.put_while(key, entry, seal, meanwhile)
    }
    fn put_if_unchanged(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        entry: &[u8],
        seal: &[u8],
    ) -> Result<bool, StoreError> {
        self.inner.put_if_unchanged(key, seen, entry, seal)
    }
    fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.inner.delete(keys)
    }
}

impl Locks for Probe {
    fn acquire_while(
        &self,
        name: &LockName,
        owner: &str,
        ttl: Duration,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Acquired, StoreError> {
        self.pass()?;
        self.inner.acquire_while(name, owner, ttl, meanwhile)
    }
    fn renew(&self, lease: &Lease) -> Result<Option<Lease>, StoreError> {
        self.pass()?;
        self.renewals.fetch_add(1, SeqCst);
        self.inner.renew(lease)
    }
    fn release_while(
        &self,
        lease: &Lease,
        committed: Option<&Committed>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<bool, StoreError> {
        self.pass()?;
        self.inner.release_while(lease, committed, meanwhile)
    }
    fn holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError> {
        self.inner.holder(name)
    }
    fn held(&self) -> Result<Vec<(LockName, Holder)>, StoreError> {
        self.inner.held()
    }
    fn touch(&self, runid: &str, last_modified: i64) -> Result<(), StoreError> {
        self.inner.touch(runid, last_modified)
    }
}

impl Status for Probe {
    fn publish(&self, channel: &str, message: &str) -> Result<(), StoreError> {
        self.inner.publish(channel, message)
    }
}

impl Store for Probe {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn ping(&self) -> Result<(), StoreError> {
        self.pass()
    }
}

#[test]
fn the_keeper_renews_for_longer_than_the_ttl() {
    let (store, keeper) = (Probe::new(), Keeper::start().unwrap());
    let (short, long) = (name("short.nodb"), name("long.nodb"));
    // long enough for the keeper to come in time on a busy machine
    let ttl = Duration::from_secs(3);
    let held = keeper.hold(store.clone(), take_for(&*store, &short, ttl));
    let other = keeper.hold(store.clone(), take(&*store, &long));
    eventually("four renewals", || store.renewals.load(SeqCst) >= 4);
    held.check(Duration::ZERO).unwrap();
    other.check(Duration::ZERO).unwrap();
    assert_eq!(busy(&*store, &short).owner.as_deref(), Some(OWNER));
}

#[test]
fn the_keeper_goes_on_after_failed_renewals() {
    let (store, keeper) = (Probe::new(), Keeper::start().unwrap());
    let ttl = Duration::from_secs(6);
    let lease = take_for(&*store, &name("wepp.nodb"), ttl);
    let held = keeper.hold(store.clone(), lease);
    store.failing.store(true, SeqCst);
    eventually("a renewal fails", || store.failures.load(SeqCst) > 0);
    assert!(held.check(ttl).unwrap_err().contains("probe: down"));
    store.failing.store(false, SeqCst);
    eventually("a renewal", || store.renewals.load(SeqCst) > 0);
    held.check(Duration::ZERO).unwrap();
}

#[test]
fn a_lease_lost_at_renewal_stays_lost() {
    let (store, keeper) = (Probe::new(), Keeper::start().unwrap());
    let name = name("wepp.nodb");
    let lease = take(&*store, &name);
    let held = keeper.hold(store.clone(), lease.clone());
    // a forced release, and the next one has it
    assert!(store.release(&lease, None).unwrap());
    let theirs = take(&*store, &name);
    assert!(held.check(2 * TTL).unwrap_err().contains("taken away"));
    assert!(
        held.check(Duration::ZERO)
            .unwrap_err()
            .contains("taken away")
    );
    assert!(!held.release(None).unwrap());
    assert_eq!(store.holder(&name).unwrap().unwrap().value, theirs.value);
}

#[test]
fn a_release_that_fails_is_made_up_for() {
    let (store, keeper) = (Probe::new(), Keeper::start().unwrap());
    let name = name("wepp.nodb");
    let held = keeper.hold(store.clone(), take(&*store, &name));
    store.failing.store(true, SeqCst);
    held.release(None).unwrap_err();
    eventually("the keeper tries too", || store.failures.load(SeqCst) > 1);
    store.failing.store(false, SeqCst);
    eventually("the lock is released", || {
        store.holder(&name).unwrap().is_none()
    });
}

#[test]
fn a_failing_store_is_no_reason_to_wait() {
    let store = Probe::new();
    store.failing.store(true, SeqCst);
    let long = Duration::from_secs(3600);
    let error = acquire_waiting(&*store, &name("a.nodb"), OWNER, TTL, long, &|| false).unwrap_err();
    assert_eq!(error.errno(), Errno::NOLCK);
    assert!(matches!(error, Error::Store(_)));
}
