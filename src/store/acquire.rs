//! Taking a lock that somebody else may hold: how often it is tried, and for how long.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use tracing::debug;

use super::waiting::Watch;
use super::{Acquired, Lease, LockName, Store};
use crate::error::{Error, Result};

/// How often a waiter for news is asked whether it was cancelled.
const ATTENTIVE: Duration = Duration::from_millis(100);

/// How often a held lock is tried.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The pause after the first attempt; it doubles with every further one …
    pub first: Duration,
    /// … up to this.
    pub longest: Duration,
    /// The pause of a waiter that is told of changes and hears of none: for what nobody tells, as
    /// when the connection for it has died unnoticed.
    pub told: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            longest: Duration::from_millis(250),
            told: Duration::from_secs(1),
        }
    }
}

/// Takes a lock, waiting at most `wait` for whoever holds it; with no wait there is one attempt.
/// `cancelled` is asked all the while.
///
/// # Errors
/// [`Error::Locked`] or [`Error::Replaced`] when the wait is over, [`Error::Store`] at once when
/// the store fails, [`Error::Interrupted`] when cancelled.
pub fn acquire_waiting(
    store: &dyn Store,
    name: &LockName,
    owner: &str,
    ttl: Duration,
    wait: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<Lease> {
    acquire_paced(store, name, owner, ttl, wait, Pace::default(), cancelled)
}

/// As [`acquire_waiting`], at a pace of the caller's.
///
/// Where the store tells of changes, a waiter tries when it is told of one, but no sooner after its
/// last try than it would without news: a lock that goes from hand to hand is news all the time.
///
/// # Errors
/// Those of [`acquire_waiting`].
pub fn acquire_paced(
    store: &dyn Store,
    name: &LockName,
    owner: &str,
    ttl: Duration,
    wait: Duration,
    pace: Pace,
    cancelled: &dyn Fn() -> bool,
) -> Result<Lease> {
    let start = Instant::now();
    // before the first attempt, so that no release after it goes unseen
    let watch = match wait.is_zero() {
        true => Watch::blind(),
        false => store.watch(name),
    };
    let mut pause = pace.first;
    loop {
        watch.forget();
        let refusal = match store.acquire(name, owner, ttl)? {
            Acquired::Held(lease) => return Ok(lease),
            Acquired::Busy(holder) => Error::Locked {
                key: name.key(),
                holder: holder.to_string(),
            },
            Acquired::Fenced => Error::Replaced {
                runid: name.runid.clone(),
            },
        };
        let left = || wait.saturating_sub(start.elapsed());
        if left().is_zero() {
            return Err(refusal);
        }
        debug!(%refusal, "waiting");
        thread::sleep(jittered(pause).min(left()));
        pause = (pause * 2).min(pace.longest);
        let news = match cancelled() {
            true => None,
            false => listen(&watch, pace.told.min(left()), cancelled),
        };
        match news {
            // not all who were told at once try at once
            Some(true) => thread::sleep((pace.first / 4).mul_f64(random())),
            Some(false) => {}
            None => return Err(Error::Interrupted(Box::new(refusal))),
        }
    }
}

/// Waits for news for at most `at_most`, as long as the store tells any; whether there were some.
/// `None`: cancelled.
fn listen(watch: &Watch<'_>, at_most: Duration, cancelled: &dyn Fn() -> bool) -> Option<bool> {
    let start = Instant::now();
    while watch.is_told() {
        let left = at_most.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        if watch.wait(left.min(ATTENTIVE)) {
            return Some(true);
        }
        if cancelled() {
            return None;
        }
    }
    Some(false)
}

/// Between half the pause and all of it, so that waiters on several hosts do not meet again.
fn jittered(pause: Duration) -> Duration {
    pause / 2 + (pause / 2).mul_f64(random())
}

/// Between nought and one.
fn random() -> f64 {
    // every RandomState has other keys
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}
