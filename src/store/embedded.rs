//! The embedded store: the same things in the daemon's memory, for one machine without Redis.
//! It has no thread of its own; what has expired goes when somebody comes across it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::waiting::{Waiters, Watch};
use super::{
    Acquired, CACHE_EXPIRY, Cache, Cached, Committed, Holder, Lease, LockName, Locks, Meanwhile,
    News, Status, Store, StoreError, payload,
};

/// Cache, locks, status channel and log levels in memory. There is no replacement fence, and nobody
/// reads a mirror flag or `last_modified`.
///
/// Lock order: no two locks are held together.
pub struct Embedded {
    entries: Mutex<Entries>,
    locks: Mutex<HashMap<LockName, Stored>>,
    waiters: Waiters,
    levels: Mutex<HashMap<String, String>>,
    news: Mutex<Option<Weak<dyn News>>>,
    published: AtomicU64,
}

impl Embedded {
    /// `cache_bytes` bounds what the cache holds: keys, entries and seals together.
    pub fn new(cache_bytes: usize) -> Self {
        Self {
            entries: Mutex::new(Entries::new(cache_bytes)),
            locks: Mutex::default(),
            waiters: Waiters::new(true),
            levels: Mutex::default(),
            news: Mutex::default(),
            published: AtomicU64::new(0),
        }
    }

    /// How many status messages were published.
    pub fn published(&self) -> u64 {
        self.published.load(Relaxed)
    }

    fn levels(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: impl FnOnce(&dyn News)) {
        let news = {
            let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            news.as_ref().and_then(Weak::upgrade)
        };
        if let Some(news) = news {
            what(&*news);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The locks, and among them `name` only if it has not expired.
    fn locks(&self, name: &LockName) -> MutexGuard<'_, HashMap<LockName, Stored>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks
            .get(name)
            .is_some_and(|stored| stored.expires <= Instant::now())
        {
            locks.remove(name);
        }
        locks
    }
}

impl Cache for Embedded {
    fn get(&self, key: &str) -> Result<Cached, StoreError> {
        Ok(self.entries().get(key, Instant::now()))
    }

    fn put_while(
        &self,
        key: &str,
        entry: &[u8],
        seal: &[u8],
        _meanwhile: Meanwhile<'_>,
    ) -> Result<(), StoreError> {
        self.entries()
            .put(key, entry, seal, Instant::now() + CACHE_EXPIRY);
        Ok(())
    }

    fn put_if_unchanged(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        entry: &[u8],
        seal: &[u8],
    ) -> Result<bool, StoreError> {
        let mut entries = self.entries();
        let now = Instant::now();
        let unchanged = entries.get(key, now).entry.as_deref() == seen;
        if unchanged {
            entries.put(key, entry, seal, now + CACHE_EXPIRY);
        }
        Ok(unchanged)
    }

    fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let mut entries = self.entries();
        keys.iter().for_each(|key| entries.remove(key));
        Ok(())
    }
}

impl Locks for Embedded {
    fn acquire_while(
        &self,
        name: &LockName,
        owner: &str,
        ttl: Duration,
        _meanwhile: Meanwhile<'_>,
    ) -> Result<Acquired, StoreError> {
        let mut locks = self.locks(name);
        if let Some(stored) = locks.get(name) {
            return Ok(Acquired::Busy(payload::holder(stored.value.as_bytes())));
        }
        let value = payload::new(owner, ttl);
        let deadline = Instant::now() + ttl;
        locks.insert(
            name.clone(),
            Stored {
                value: value.clone(),
                expires: deadline,
            },
        );
        Ok(Acquired::Held(Lease {
            name: name.clone(),
            value,
            deadline,
            ttl,
        }))
    }

    fn renew(&self, lease: &Lease) -> Result<Option<Lease>, StoreError> {
        let mut locks = self.locks(&lease.name);
        let Some(stored) = locks
            .get_mut(&lease.name)
            .filter(|stored| stored.belongs_to(lease))
        else {
            return Ok(None);
        };
        stored.value = payload::renewed(&lease.value, lease.ttl);
        stored.expires = Instant::now() + lease.ttl;
        Ok(Some(Lease {
            value: stored.value.clone(),
            deadline: stored.expires,
            ..lease.clone()
        }))
    }

    fn release_while(
        &self,
        lease: &Lease,
        committed: Option<&Committed>,
        _meanwhile: Meanwhile<'_>,
    ) -> Result<bool, StoreError> {
        if committed.is_some_and(|committed| committed.message.is_some()) {
            self.published.fetch_add(1, Relaxed);
        }
        let mut locks = self.locks(&lease.name);
        let ours = locks
            .get(&lease.name)
            .is_some_and(|stored| stored.belongs_to(lease));
        if ours {
            locks.remove(&lease.name);
            drop(locks);
            self.waiters.tell(&lease.name.key());
        }
        Ok(ours)
    }

    fn holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError> {
        let locks = self.locks(name);
        Ok(locks.get(name).map(|stored| stored.holder(Instant::now())))
    }

    fn held(&self) -> Result<Vec<(LockName, Holder)>, StoreError> {
        let now = Instant::now();
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let held = locks.iter().filter(|(_, stored)| stored.expires > now);
        let mut held: Vec<_> = held
            .map(|(name, stored)| (name.clone(), stored.holder(now)))
            .collect();
        held.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(held)
    }

    fn watch(&self, name: &LockName) -> Watch<'_> {
        self.waiters.watch(vec![name.key()])
    }

    fn touch(&self, _runid: &str, _last_modified: i64) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Status for Embedded {
    fn publish(&self, channel: &str, message: &str) -> Result<(), StoreError> {
        self.published.fetch_add(1, Relaxed);
        self.tell(|news| news.message(channel, message));
        Ok(())
    }

    fn listen(&self, news: Weak<dyn News>) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
    }

    fn follow(&self, _runid: &str) -> bool {
        true
    }

    fn unfollow(&self, _runid: &str) {}

    fn level(&self, runid: &str) -> Result<Option<String>, StoreError> {
        Ok(self.levels().get(runid).cloned())
    }

    fn set_level(&self, runid: &str, level: Option<&str>) -> Result<(), StoreError> {
        match level {
            Some(level) => self.levels().insert(runid.to_owned(), level.to_owned()),
            None => self.levels().remove(runid),
        };
        self.tell(|news| news.level(runid, level));
        Ok(())
    }
}

impl Store for Embedded {
    fn describe(&self) -> String {
        "embedded".to_owned()
    }

    fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

/// A lock as it is stored.
struct Stored {
    value: String,
    expires: Instant,
}

impl Stored {
    fn holder(&self, now: Instant) -> Holder {
        Holder {
            left: Some(self.expires.saturating_duration_since(now)),
            ..payload::holder(self.value.as_bytes())
        }
    }

    fn belongs_to(&self, lease: &Lease) -> bool {
        payload::same(&self.value, &lease.value)
    }
}

/// The least recently used go first when there are too many bytes.
struct Entries {
    by_key: LruCache<String, Entry>,
    bytes: usize,
    limit: usize,
}

struct Entry {
    entry: Vec<u8>,
    seal: Vec<u8>,
    expires: Instant,
}

impl Entries {
    fn new(limit: usize) -> Self {
        Self {
            by_key: LruCache::unbounded(),
            bytes: 0,
            limit,
        }
    }

    fn get(&mut self, key: &str, now: Instant) -> Cached {
        match self.by_key.get(key) {
            Some(found) if found.expires > now => Cached {
                entry: Some(found.entry.clone()),
                seal: Some(found.seal.clone()),
            },
            Some(_) => {
                self.remove(key);
                Cached::default()
            }
            None => Cached::default(),
        }
    }

    fn put(&mut self, key: &str, entry: &[u8], seal: &[u8], expires: Instant) {
        // even if the new one is too large to stay: the old one must not outlive it
        self.remove(key);
        let entry = Entry {
            entry: entry.to_vec(),
            seal: seal.to_vec(),
            expires,
        };
        self.bytes += entry.size(key);
        self.by_key.put(key.to_owned(), entry);
        while self.bytes > self.limit
            && let Some((key, entry)) = self.by_key.pop_lru()
        {
            self.bytes -= entry.size(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, entry)) = self.by_key.pop_entry(key) {
            self.bytes -= entry.size(&key);
        }
    }
}

impl Entry {
    fn size(&self, key: &str) -> usize {
        key.len() + self.entry.len() + self.seal.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> Instant {
        Instant::now() + CACHE_EXPIRY
    }

    #[test]
    fn an_expired_entry_is_gone_and_gives_its_bytes_back() {
        let mut entries = Entries::new(1000);
        let now = Instant::now();
        entries.put("/k", b"entry", b"seal", now + CACHE_EXPIRY);
        assert_eq!(entries.get("/k", now).entry.as_deref(), Some(&b"entry"[..]));
        assert_eq!(entries.get("/k", now + CACHE_EXPIRY), Cached::default());
        assert_eq!(entries.bytes, 0);
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut entries = Entries::new(3 * 11);
        for key in ["a", "b", "c"] {
            entries.put(key, b"12345", b"67890", later());
        }
        entries.get("a", Instant::now());
        entries.put("d", b"12345", b"67890", later());
        let left = ["a", "b", "c", "d"].map(|key| entries.get(key, Instant::now()).entry.is_some());
        assert_eq!(left, [true, false, true, true]);
        assert_eq!(entries.bytes, 3 * 11);
    }

    #[test]
    fn an_entry_beyond_the_bound_replaces_the_old_one_with_nothing() {
        let mut entries = Entries::new(20);
        entries.put("a", b"old", b"old", later());
        entries.put("a", &[0; 100], b"new", later());
        assert_eq!(entries.get("a", Instant::now()), Cached::default());
        assert_eq!(entries.bytes, 0);
    }
}
