//! The NoDb processes' own Redis (PROTOCOL.md 2): locks, run hashes and the status channel through
//! DB 0 (pub/sub knows no databases), the payload cache in DB 13, log levels in DB 15.

mod connection;
mod listener;
mod settings;
mod subscriber;

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::{ConnectionLike, RedisResult, Script};
use sha2::{Digest, Sha256};

pub use settings::{Limits, Settings, SettingsError};

use self::connection::{Database, Server};
use self::listener::Listener;
use self::subscriber::Subscriber;
use super::remembered::Answer;
use super::waiting::Watch;
use super::{
    Acquired, CACHE_EXPIRY, Cache, Cached, Committed, Holder, LOCK, Lease, LockName, Locks,
    Meanwhile, News, Status, Store, StoreError, StoreErrorKind, payload,
};

const LOCKS: u8 = 0;
const CACHE: u8 = 13;
const LEVELS: u8 = 15;
/// What the keys of run replacement fences begin with.
const FENCE: &str = "nodb:run-replacement:";

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/acquire.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/release.lua")));
static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/put.lua")));
static HOLDER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/holder.lua")));

/// A Redis or Valkey server. Every call answers within the [`Limits`].
pub struct Redis {
    server: Arc<Server>,
    locks: Database,
    cache: Database,
    listener: Listener,
    subscriber: Subscriber,
    unanswered: Mutex<VecDeque<Unanswered>>,
}

/// An acquire whose caller was told that it failed, though it may have happened, or happen yet when
/// a stopped server wakes up. Nobody holds such a lock, so the next acquire may take its place.
struct Unanswered {
    name: LockName,
    value: String,
}

/// Beyond this many the oldest is forgotten; its lock then ends with its TTL.
const MOST_UNANSWERED: usize = 256;

impl Redis {
    /// Connects when first used.
    pub fn new(settings: Settings) -> Self {
        let server = Arc::new(Server::new(settings));
        Self {
            locks: Database::new(server.clone(), LOCKS),
            cache: Database::new(server.clone(), CACHE),
            listener: Listener::new(server.clone()),
            subscriber: Subscriber::new(server.clone()),
            server,
            unanswered: Mutex::default(),
        }
    }

    fn ask_holder(&self, name: &LockName) -> Result<Answer, StoreError> {
        let asked = Instant::now();
        let answer = self.locks.call("read lock", |redis| {
            let mut script = HOLDER.key(name.key());
            script.key(&name.runid).arg(mirror_field(name));
            script.invoke(redis)
        })?;
        Ok(expiring(answer, asked))
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, VecDeque<Unanswered>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: &LockName, value: String) {
        let mut unanswered = self.unanswered();
        if unanswered.len() == MOST_UNANSWERED {
            unanswered.pop_front();
        }
        unanswered.push_back(Unanswered {
            name: name.clone(),
            value,
        });
    }
}

impl Cache for Redis {
    fn get(&self, key: &str) -> Result<Cached, StoreError> {
        let (entry, seal) = self.cache.call("read cache", |redis| {
            redis::cmd("MGET").arg(key).arg(seal_key(key)).query(redis)
        })?;
        Ok(Cached { entry, seal })
    }

    fn put_while(
        &self,
        key: &str,
        entry: &[u8],
        seal: &[u8],
        meanwhile: Meanwhile<'_>,
    ) -> Result<(), StoreError> {
        self.cache.call_while("write cache", meanwhile, |redis| {
            let mut both = redis::pipe();
            both.atomic();
            for (key, value) in [(key, entry), (&seal_key(key), seal)] {
                both.cmd("SET")
                    .arg(key)
                    .arg(value)
                    .arg("EX")
                    .arg(CACHE_EXPIRY.as_secs());
            }
            both.exec(redis)
        })
    }

    fn put_if_unchanged(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        entry: &[u8],
        seal: &[u8],
    ) -> Result<bool, StoreError> {
        self.cache.call("write cache", |redis| {
            let mut script = PUT.key(key);
            script.key(seal_key(key)).arg(entry).arg(seal);
            script.arg(CACHE_EXPIRY.as_secs());
            // an absent entry is told from an empty one by the number of arguments
            if let Some(seen) = seen {
                script.arg(seen);
            }
            script.invoke(redis)
        })
    }

    fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.cache.call("delete cache", |redis| {
            let mut all = redis::cmd("DEL");
            for key in keys {
                all.arg(key).arg(seal_key(key));
            }
            all.exec(redis)
        })
    }
}

impl Locks for Redis {
    fn acquire_while(
        &self,
        name: &LockName,
        owner: &str,
        ttl: Duration,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Acquired, StoreError> {
        let value = payload::new(owner, ttl);
        // these are acquires that failed, so no live lease can be meant
        let unanswered: Vec<String> = self
            .unanswered()
            .iter()
            .filter(|one| one.name == *name)
            .map(|one| one.value.clone())
            .collect();
        let sent = Cell::new(false);
        let deadline = Instant::now() + ttl;
        let ask = |meanwhile| {
            self.locks.call_while("acquire lock", meanwhile, |redis| {
                sent.set(true);
                let mut script = ACQUIRE.key(name.key());
                script.key(&name.runid).key(fence_key(&name.runid));
                script
                    .arg(&value)
                    .arg(milliseconds(ttl))
                    .arg(mirror_field(name))
                    .arg(&unanswered);
                script.invoke::<(u8, Option<Vec<u8>>)>(redis)
            })
        };
        // Find out what became of a request without an answer: the same value asked for once more
        // finds itself stored, or takes the lock, or finds another. The deadline stays the first's.
        let first = ask(meanwhile);
        let timed_out = matches!(&first, Err(error) if error.kind == StoreErrorKind::TimedOut);
        let answer = if timed_out {
            ask(Meanwhile::default())
        } else {
            first
        };
        self.listener.changed(name);
        let held = matches!(answer, Ok((1, _)));
        if !held && (timed_out || sent.get() && answer.is_err()) {
            self.remember(name, value.clone());
        }
        Ok(match answer? {
            (1, _) => Acquired::Held(Lease {
                name: name.clone(),
                value,
                deadline,
                ttl,
            }),
            (0, stored) => Acquired::Busy(payload::holder(stored.as_deref().unwrap_or_default())),
            _ => Acquired::Fenced,
        })
    }

    fn renew(&self, lease: &Lease) -> Result<Option<Lease>, StoreError> {
        let value = payload::renewed(&lease.value, lease.ttl);
        let deadline = Instant::now() + lease.ttl;
        let ours: bool = self.locks.call("renew lock", |redis| {
            let mut script = RENEW.key(lease.name.key());
            script
                .arg(&lease.value)
                .arg(payload::identity(&lease.value).unwrap_or_default());
            script.arg(&value).arg(milliseconds(lease.ttl));
            script.invoke(redis)
        })?;
        self.listener.changed(&lease.name);
        Ok(ours.then(|| Lease {
            value,
            deadline,
            ..lease.clone()
        }))
    }

    fn release_while(
        &self,
        lease: &Lease,
        committed: Option<&Committed>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<bool, StoreError> {
        let last_modified = committed.map(|committed| committed.last_modified.to_string());
        let (channel, message) = committed
            .and_then(|committed| committed.message.as_ref())
            .map_or(("", ""), |(channel, message)| (channel, message));
        let asked = Cell::new(0);
        let result = self.locks.call_while("release lock", meanwhile, |redis| {
            asked.set(asked.get() + 1);
            let mut script = RELEASE.key(lease.name.key());
            script.key(&lease.name.runid);
            script
                .arg(&lease.value)
                .arg(payload::identity(&lease.value).unwrap_or_default());
            script
                .arg(mirror_field(&lease.name))
                .arg(last_modified.as_deref().unwrap_or_default());
            script.arg(channel).arg(message);
            script.invoke::<i8>(redis)
        });
        self.listener.changed(&lease.name);
        let result = result?;
        // nobody's at the second time of asking: the first, unanswered, released it
        let by_the_first = result < 0 && asked.get() > 1 && Instant::now() < lease.deadline;
        Ok(result > 0 || by_the_first)
    }

    fn holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError> {
        self.ask_holder(name).map(shown)
    }

    fn seen_holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError> {
        let ask = || self.ask_holder(name);
        self.listener.remembered(&name.key(), ask).map(shown)
    }

    fn is_flag_stale(&self, name: &LockName) -> Result<bool, StoreError> {
        let (held, flag): (bool, Option<Vec<u8>>) = self.locks.call("read lock", |redis| {
            let mut both = redis::pipe();
            both.atomic();
            both.cmd("EXISTS").arg(name.key());
            both.cmd("HGET").arg(&name.runid).arg(mirror_field(name));
            both.query(redis)
        })?;
        Ok(!held && flag.as_deref() == Some(b"true"))
    }

    fn held(&self) -> Result<Vec<(LockName, Holder)>, StoreError> {
        let asked = Instant::now();
        let held = self.locks.call("list locks", |redis| {
            let names = scan(redis)?;
            let mut all = redis::pipe();
            for name in &names {
                all.cmd("GET").arg(name.key()).cmd("PTTL").arg(name.key());
            }
            let values: Vec<(Option<Vec<u8>>, i64)> = match names.is_empty() {
                true => Vec::new(),
                false => all.query(redis)?,
            };
            Ok(names.into_iter().zip(values).collect::<Vec<_>>())
        })?;
        let held = held.into_iter().filter_map(|(name, answer)| {
            // it may have gone since it was found
            Some((name, shown(expiring(answer, asked))?))
        });
        Ok(held.collect())
    }

    fn watch(&self, name: &LockName) -> Watch<'_> {
        self.listener
            .watch(vec![name.key(), fence_key(&name.runid)])
    }

    fn touch(&self, runid: &str, last_modified: i64) -> Result<(), StoreError> {
        self.locks.call("set last_modified", |redis| {
            let mut set = redis::cmd("HSET");
            set.arg(runid).arg("last_modified").arg(last_modified);
            set.exec(redis)
        })
    }
}

impl Status for Redis {
    fn publish(&self, channel: &str, message: &str) -> Result<(), StoreError> {
        // sent twice if the connection breaks in between: better than a message lost
        self.locks.call("publish status", |redis| {
            redis::cmd("PUBLISH").arg(channel).arg(message).exec(redis)
        })
    }

    fn listen(&self, news: Weak<dyn News>) {
        self.subscriber.listen(news);
    }

    fn follow(&self, runid: &str) -> bool {
        self.subscriber.follow(runid);
        false
    }

    fn unfollow(&self, runid: &str) {
        self.subscriber.unfollow(runid);
    }

    fn level(&self, runid: &str) -> Result<Option<String>, StoreError> {
        self.subscriber.level(runid)
    }

    fn set_level(&self, runid: &str, level: Option<&str>) -> Result<(), StoreError> {
        self.subscriber.set_level(runid, level)
    }
}

impl Store for Redis {
    fn describe(&self) -> String {
        self.server.settings().to_string()
    }

    fn resting(&self) -> Option<Duration> {
        self.server.resting()
    }

    fn ping(&self) -> Result<(), StoreError> {
        for database in [&self.locks, &self.cache] {
            database.call("reach Redis", |redis| redis::cmd("PING").exec(redis))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis")
            .field(self.server.settings())
            .finish()
    }
}

/// The names of all locks of controllers, in order; a scan may find a key more than once.
fn scan(redis: &mut dyn ConnectionLike) -> RedisResult<BTreeSet<LockName>> {
    let mut names = BTreeSet::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{LOCK}*.nodb"));
        let found: (u64, Vec<Vec<u8>>) = scan.arg("COUNT").arg(1000).query(redis)?;
        let keys = found
            .1
            .iter()
            .filter_map(|key| std::str::from_utf8(key).ok());
        names.extend(keys.filter_map(LockName::of_key));
        cursor = found.0;
        if cursor == 0 {
            return Ok(names);
        }
    }
}

/// A value and its TTL in milliseconds, or less than 0, as they were when asked for.
fn expiring((value, ttl): (Option<Vec<u8>>, i64), asked: Instant) -> Answer {
    let ttl = u64::try_from(ttl).ok().map(Duration::from_millis);
    let until = ttl.map(|ttl| asked + ttl);
    Answer { value, until }
}

/// An answer for somebody who sees it now.
fn shown(answer: Answer) -> Option<Holder> {
    let now = Instant::now();
    let left = answer
        .until
        .map(|until| until.saturating_duration_since(now));
    let value = answer.value?;
    Some(Holder {
        left,
        ..payload::holder(&value)
    })
}

fn seal_key(key: &str) -> String {
    format!("nodbfs:seal:{key}")
}

fn mirror_field(name: &LockName) -> String {
    format!("locked:{}", name.relpath)
}

/// [`FENCE`] and the hex sha256 of `run`, a NUL byte and the runid (PROTOCOL.md 2).
fn fence_key(runid: &str) -> String {
    let digest = Sha256::new()
        .chain_update(b"run\0")
        .chain_update(runid)
        .finalize();
    digest
        .iter()
        .fold(FENCE.to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

/// At least one: Redis knows no expiry of nought.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_key_is_the_one_nodb_processes_look_for() {
        // python: hashlib.sha256(b"run\0mercuric-subcontract").hexdigest()
        assert_eq!(
            fence_key("mercuric-subcontract"),
            "nodb:run-replacement:f1ce333b4aa72b16d852d3075d99844c4c9163c778fef89583bbf4a7b9bfc00d"
        );
    }
}
