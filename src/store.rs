//! The store: where the payload cache, the locks and the status channel live. `redis` is the
//! NoDb processes' own; `embedded` keeps the same things in the daemon.
//!
//! All calls are synchronous and return within a limit of their own, so callers may hold them
//! against a deadline. None is made by an operation on a plain file (promise 8).

mod acquire;
pub mod embedded;
pub mod lease;
mod meanwhile;
pub mod payload;
pub mod redis;
mod remembered;
pub mod waiting;

use std::fmt;
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

pub use meanwhile::Meanwhile;
use serde::Deserialize;

use crate::error::Errno;
use crate::node::is_controller;
use waiting::Watch;

/// How long an entry and its seal live (PROTOCOL.md 2).
pub const CACHE_EXPIRY: Duration = Duration::from_secs(72 * 60 * 60);

/// The store cannot be reached, or answered with an error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{during}: {cause}")]
pub struct StoreError {
    pub kind: StoreErrorKind,
    /// What was being asked, for the log: `acquire lock`, `read cache` …
    pub during: &'static str,
    /// What went wrong, in words; never a secret.
    pub cause: String,
}

/// Only a test says so: the connection broke.
impl From<Errno> for StoreError {
    fn from(errno: Errno) -> Self {
        Self {
            kind: StoreErrorKind::Unreachable,
            during: "reach a step",
            cause: errno.to_string(),
        }
    }
}

/// What kind of failure it was: what a person does about it differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No connection could be made, or it broke.
    Unreachable,
    /// No answer within the limit; the request may still have been carried out.
    TimedOut,
    /// User or password are missing or wrong, or may not do this: NOAUTH, WRONGPASS, NOPERM.
    Denied,
    /// The server is there and says no: LOADING, READONLY, OOM …
    Refused,
    /// The answer is none to the question.
    Answer,
}

/// What the keys of locks begin with.
const LOCK: &str = "nodb-lock:";

/// The names of one distributed lock (PROTOCOL.md 2 and 3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockName {
    pub runid: String,
    pub relpath: String,
}

impl LockName {
    /// `nodb-lock:<runid>:<relpath>` in DB 0.
    pub fn key(&self) -> String {
        format!("{LOCK}{}:{}", self.runid, self.relpath)
    }

    /// The lock of a controller that has this key, if it is one.
    pub fn of_key(key: &str) -> Option<Self> {
        let (runid, relpath) = key.strip_prefix(LOCK)?.split_once(':')?;
        let name = Path::new(relpath).file_name()?;
        is_controller(name).then(|| Self {
            runid: runid.to_owned(),
            relpath: relpath.to_owned(),
        })
    }

    /// The controller: the file's name without its ending.
    pub fn controller(&self) -> &str {
        let name = self.relpath.rsplit('/').next().unwrap_or_default();
        name.strip_suffix(".nodb").unwrap_or(name)
    }

    /// The controller's status channel, `<runid>:<controller>`, or the omni controller's for its child
    /// runs.
    pub fn channel(&self) -> String {
        let dir = self.relpath.rsplit_once('/').map_or("", |(dir, _)| dir);
        let controller = match dir.starts_with("_pups/omni/") {
            true => "omni",
            false => self.controller(),
        };
        format!("{}:{controller}", self.runid)
    }
}

/// What a lock's stored value says (PROTOCOL.md 2 and 4). A value that is not JSON is a bare token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The stored value; bytes that are no UTF-8 are replaced, so it is for showing.
    pub value: String,
    /// `<hostname>:<pid>` as the holder sees itself, if the value says so.
    pub owner: Option<String>,
    /// How long the lock lasts unless it is renewed; none if it does not end by itself, or if that
    /// was not asked for.
    pub left: Option<Duration>,
}

impl Holder {
    /// When the lock was taken, in nanoseconds since the epoch, if the value says so.
    pub fn acquired_at(&self) -> Option<i128> {
        #[derive(Deserialize)]
        struct Taken {
            acquired_at: f64,
        }
        let taken: Taken = serde_json::from_str(&self.value).ok()?;
        Some((taken.acquired_at * 1e9) as i128)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.owner.as_deref().unwrap_or("an unnamed holder"))
    }
}

/// A held lock: the value that proves it and how long it is surely ours.
#[derive(Clone, Debug)]
pub struct Lease {
    pub name: LockName,
    /// The stored value; release and renewal compare all of it but its expiry (promise 5).
    pub value: String,
    /// Counted from before the request was sent.
    pub deadline: Instant,
    pub ttl: Duration,
}

/// What the neighbours are told when a commit was made under a lock (PROTOCOL.md 6 and 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The run's new `last_modified`, unix seconds.
    pub last_modified: i64,
    /// Channel and bare text of a status message.
    pub message: Option<(String, String)>,
}

/// The answer to an attempt to take a lock.
#[derive(Debug)]
pub enum Acquired {
    Held(Lease),
    /// Somebody else holds it.
    Busy(Holder),
    /// The run is being replaced: no new lock may be taken.
    Fenced,
}

/// A cached controller: the entry NoDb knows and nodbfs's seal, each as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    pub entry: Option<Vec<u8>>,
    pub seal: Option<Vec<u8>>,
}

/// The payload cache, DB 13. Keys are paths as the NoDb processes name them.
pub trait Cache: Send + Sync {
    /// Entry and seal in one round trip.
    fn get(&self, key: &str) -> Result<Cached, StoreError>;
    /// Sets entry and seal together, each expiring after 72 h.
    fn put_while(
        &self,
        key: &str,
        entry: &[u8],
        seal: &[u8],
        meanwhile: Meanwhile<'_>,
    ) -> Result<(), StoreError>;
    /// As [`Cache::put_while`], with nothing to do meanwhile.
    fn put(&self, key: &str, entry: &[u8], seal: &[u8]) -> Result<(), StoreError> {
        self.put_while(key, entry, seal, Meanwhile::default())
    }
    /// As [`Cache::put`], but only if the entry is still `seen`, what the caller read before: a
    /// reader must not put its generation over that of a commit made meanwhile. `false`: it is not.
    fn put_if_unchanged(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        entry: &[u8],
        seal: &[u8],
    ) -> Result<bool, StoreError>;
    /// Removes the entries and seals of all `keys`.
    fn delete(&self, keys: &[String]) -> Result<(), StoreError>;
}

/// The distributed locks, DB 0.
pub trait Locks: Send + Sync {
    /// One attempt: checks the fence, sets the key if it is free and the mirror flag with it,
    /// atomically. `owner` is `<hostname>:<pid>`. An error means that the caller holds nothing.
    fn acquire_while(
        &self,
        name: &LockName,
        owner: &str,
        ttl: Duration,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Acquired, StoreError>;
    /// As [`Locks::acquire_while`], with nothing to do meanwhile.
    fn acquire(&self, name: &LockName, owner: &str, ttl: Duration) -> Result<Acquired, StoreError> {
        self.acquire_while(name, owner, ttl, Meanwhile::default())
    }
    /// Prolongs a lease that is still ours by its TTL, counted from now; `None` if it is not. The
    /// stored value changes in its expiry only, and an older lease of the same acquisition stays
    /// good for renewal and release: after a timeout nobody knows which value is stored.
    fn renew(&self, lease: &Lease) -> Result<Option<Lease>, StoreError>;
    /// Releases by value, clears the mirror flag if nobody holds the lock afterwards, and passes on
    /// what was committed, all in one round trip. `false`: it was no longer ours; what was
    /// committed is passed on all the same.
    fn release_while(
        &self,
        lease: &Lease,
        committed: Option<&Committed>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<bool, StoreError>;
    /// As [`Locks::release_while`], with nothing to do meanwhile.
    fn release(&self, lease: &Lease, committed: Option<&Committed>) -> Result<bool, StoreError> {
        self.release_while(lease, committed, Meanwhile::default())
    }
    /// Who holds the lock now. A mirror flag that says `true` although nobody does is repaired on
    /// the way (PROTOCOL.md 4).
    fn holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError>;
    /// As [`Locks::holder`], for who only wants to see: from memory where the store tells of changes.
    fn seen_holder(&self, name: &LockName) -> Result<Option<Holder>, StoreError> {
        self.holder(name)
    }
    /// Every controller's lock that anybody holds; other keys of the same kind are left out (PROTOCOL.md 2).
    fn held(&self) -> Result<Vec<(LockName, Holder)>, StoreError>;
    /// Whether the mirror flag says `true` although nobody holds the lock, as it never does for longer than
    /// a moment if all is well. Unlike [`Locks::holder`], repairs nothing. A store without flags has none.
    fn is_flag_stale(&self, _name: &LockName) -> Result<bool, StoreError> {
        Ok(false)
    }
    /// Somebody begins to wait for the lock and is to be told when it may be free, if the store can
    /// tell. Returns at once and needs no connection.
    fn watch(&self, _name: &LockName) -> Watch<'_> {
        Watch::blind()
    }
    /// Sets the run's `last_modified` (unix seconds), for a commit under somebody else's lock.
    fn touch(&self, runid: &str, last_modified: i64) -> Result<(), StoreError>;
}

/// The status channel and the log levels (PROTOCOL.md 2 and 7). By default a store that tells nothing.
pub trait Status: Send + Sync {
    /// Publishes the bare message text.
    fn publish(&self, channel: &str, message: &str) -> Result<(), StoreError>;
    /// From now on `news` is told of the runs that are followed.
    fn listen(&self, _news: Weak<dyn News>) {}
    /// The channels and the log level of a run are to be told. Returns at once and needs no connection. `true`: they are
    /// from now on; else [`News::following`] says when.
    fn follow(&self, _runid: &str) -> bool {
        false
    }
    /// They need not be told any more.
    fn unfollow(&self, _runid: &str) {}
    /// The log level of a run as it is set, whatever it is (PROTOCOL.md 2).
    fn level(&self, _runid: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }
    /// Sets the log level of a run, or removes it.
    fn set_level(&self, _runid: &str, _level: Option<&str>) -> Result<(), StoreError> {
        Err(StoreError {
            kind: StoreErrorKind::Refused,
            during: "set log level",
            cause: "this store keeps none".to_owned(),
        })
    }
}

/// Who is told what happens on status channels and to log levels, by a thread of the store's.
pub trait News: Send + Sync {
    /// The bare text of a message.
    fn message(&self, channel: &str, text: &str);
    /// The level that is set, if any.
    fn level(&self, runid: &str, level: Option<&str>);
    /// Whether messages of the run arrive.
    fn following(&self, runid: &str, on: bool);
}

/// A store is all three.
pub trait Store: Cache + Locks + Status + fmt::Debug {
    /// For the log and `--version`-like output: `embedded` or the URL without its password.
    fn describe(&self) -> String;
    /// For how long no connection will be tried, after one that failed.
    fn resting(&self) -> Option<Duration> {
        None
    }
    /// Whether the store answers now; the mount asks at its start.
    fn ping(&self) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_controllers_have_locks_of_their_own() {
        let name = LockName::of_key("nodb-lock:batch;;spring;;run-001:_pups/x/wepp.nodb").unwrap();
        assert_eq!(name.runid, "batch;;spring;;run-001");
        assert_eq!(name.relpath, "_pups/x/wepp.nodb");
        assert_eq!(LockName::of_key(&name.key()), Some(name));
        for key in [
            "nodb-lock:run:runtime-paths/x",
            "nodb-lock:run",
            "other:run:x.nodb",
            "nodb-lock:run:nodir/.nodb",
        ] {
            assert_eq!(LockName::of_key(key), None, "{key}");
        }
    }

    #[test]
    fn a_holder_says_when_it_took_the_lock_if_it_does() {
        let at = |value: &str| payload::holder(value.as_bytes()).acquired_at();
        assert_eq!(
            at(r#"{"acquired_at": 1760000000}"#),
            Some(1_760_000_000_000_000_000)
        );
        assert_eq!(at("bare"), None);
        assert_eq!(at(r#"{"acquired_at": "x"}"#), None);
    }
}
