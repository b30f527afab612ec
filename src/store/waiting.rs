//! Who waits for which lock, and who tells them that it may be free. The waiters' side is the same
//! for every store; what differs is where the news comes from.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Everybody in this process who waits for a lock of one store.
///
/// Lock order: `state` is taken alone and held across nothing that can wait.
#[derive(Debug)]
pub struct Waiters {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: HashMap<u64, Waiting>,
    registered: u64,
    /// Whether changes are told now.
    told: bool,
    /// When the last waiter left.
    idle_since: Instant,
}

#[derive(Debug)]
struct Waiting {
    /// The store's keys on which the lock depends.
    keys: Vec<String>,
    changed: bool,
}

impl Waiters {
    /// `told`: whether the store tells of changes from the start.
    pub fn new(told: bool) -> Self {
        let state = State {
            waiting: HashMap::new(),
            registered: 0,
            told,
            idle_since: Instant::now(),
        };
        Self {
            state: Mutex::new(state),
            news: Condvar::new(),
        }
    }

    /// Somebody begins to wait for a change of one of `keys`.
    pub fn watch(&self, keys: Vec<String>) -> Watch<'_> {
        let mut state = self.state();
        state.registered += 1;
        let id = state.registered;
        let changed = false;
        state.waiting.insert(id, Waiting { keys, changed });
        Watch(Some((self, id)))
    }

    /// `key` has changed: locked, renewed, released or expired.
    pub fn tell(&self, key: &str) {
        self.mark(|keys| keys.iter().any(|own| own == key));
    }

    /// Any lock may have changed.
    pub fn tell_all(&self) {
        self.mark(|_| true);
    }

    fn mark(&self, concerned: impl Fn(&[String]) -> bool) {
        let mut state = self.state();
        for waiting in state.waiting.values_mut() {
            waiting.changed |= concerned(&waiting.keys);
        }
        self.news.notify_all();
    }

    /// Changes are told from now on, or no longer. What came before is not known in either case.
    pub fn set_told(&self, told: bool) {
        self.state().told = told;
        self.tell_all();
    }

    /// For how long nobody has waited; `None`: somebody does.
    pub fn idle(&self) -> Option<Duration> {
        let state = self.state();
        state.waiting.is_empty().then(|| state.idle_since.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One waiter's place among the others, until it is dropped.
#[derive(Debug)]
pub struct Watch<'a>(Option<(&'a Waiters, u64)>);

impl Watch<'_> {
    /// Of a store that tells of nothing.
    pub fn blind() -> Self {
        Self(None)
    }

    /// Whether the waiter is told of changes. It may become so, or cease to be, at any time.
    pub fn is_told(&self) -> bool {
        self.0.is_some_and(|(waiters, _)| waiters.state().told)
    }

    /// What has changed so far is known; to be called before the lock is tried, so that no release
    /// after that goes unseen.
    pub fn forget(&self) {
        if let Some((waiters, id)) = self.0
            && let Some(waiting) = waiters.state().waiting.get_mut(&id)
        {
            waiting.changed = false;
        }
    }

    /// Waits for a change for at most `at_most`; whether there was one.
    pub fn wait(&self, at_most: Duration) -> bool {
        let Some((waiters, id)) = self.0 else {
            std::thread::sleep(at_most);
            return false;
        };
        let unchanged = |state: &mut State| !state.waiting.get(&id).is_some_and(|own| own.changed);
        let (mut state, _) = waiters
            .news
            .wait_timeout_while(waiters.state(), at_most, unchanged)
            .unwrap_or_else(PoisonError::into_inner);
        !unchanged(&mut state)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some((waiters, id)) = self.0 {
            let mut state = waiters.state();
            state.waiting.remove(&id);
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_waiter_hears_of_its_own_keys_and_of_what_came_before_it_waited() {
        let waiters = Waiters::new(true);
        let watch = waiters.watch(vec!["lock".into(), "fence".into()]);
        waiters.tell("another");
        assert!(!watch.wait(NOW));
        for key in ["lock", "fence"] {
            waiters.tell(key);
            assert!(watch.wait(NOW), "{key}");
            watch.forget();
            assert!(!watch.wait(NOW), "{key}");
        }
    }

    #[test]
    fn whether_changes_are_told_is_a_change_itself() {
        let waiters = Waiters::new(false);
        let watch = waiters.watch(vec!["lock".into()]);
        for told in [true, false] {
            waiters.set_told(told);
            assert_eq!(watch.is_told(), told);
            assert!(watch.wait(NOW), "what came before may be a release");
            watch.forget();
        }
        assert!(!Watch::blind().is_told() && !Watch::blind().wait(NOW));
    }

    #[test]
    fn nobody_is_left_when_the_last_watch_is_dropped() {
        let waiters = Waiters::new(true);
        assert!(waiters.idle().is_some());
        let (one, two) = (waiters.watch(Vec::new()), waiters.watch(Vec::new()));
        drop(one);
        assert!(waiters.idle().is_none());
        drop(two);
        assert!(waiters.idle().is_some());
    }
}
