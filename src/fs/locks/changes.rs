//! Whoever waits for a lock on a file is told when one is given back through the mount. What is given back
//! elsewhere nobody tells.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The files whose locks are waited for.
#[derive(Debug, Default)]
pub struct Changes {
    waited_for: Mutex<HashMap<u64, News>>,
    told: Condvar,
}

#[derive(Debug, Default)]
struct News {
    waiters: usize,
    changes: u64,
}

impl Changes {
    /// A lock on the file `id` was given back.
    pub fn tell(&self, id: u64) {
        if let Some(news) = self.waited_for.lock().get_mut(&id) {
            news.changes += 1;
            self.told.notify_all();
        }
    }

    /// Somebody begins to wait for a lock on the file `id`.
    pub fn watch(&self, id: u64) -> Waiter<'_> {
        self.waited_for.lock().entry(id).or_default().waiters += 1;
        Waiter { changes: self, id }
    }
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub struct Waiter<'a> {
    changes: &'a Changes,
    id: u64,
}

impl Waiter<'_> {
    /// How many changes there have been; to be asked before the lock is tried.
    pub fn seen(&self) -> u64 {
        let waited_for = self.changes.waited_for.lock();
        waited_for.get(&self.id).map_or(0, |news| news.changes)
    }

    /// Waits for a change after the first `seen`, for at most `at_most`.
    pub fn wait(&self, seen: u64, at_most: Duration) {
        let mut waited_for = self.changes.waited_for.lock();
        let unchanged = |files: &mut HashMap<u64, News>| {
            files.get(&self.id).is_some_and(|news| news.changes == seen)
        };
        let told = &self.changes.told;
        // whether it was told or not, it tries
        let _ = told.wait_while_for(&mut waited_for, unchanged, at_most);
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waited_for = self.changes.waited_for.lock();
        if let Some(news) = waited_for.get_mut(&self.id) {
            news.waiters -= 1;
            if news.waiters == 0 {
                waited_for.remove(&self.id);
            }
        }
    }
}
