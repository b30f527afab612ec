//! What a store has said of its keys, remembered for as long as it would tell of a change. It saves
//! questions and decides nothing: whoever acts on an answer asks the store in acting.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// How many keys are remembered: the controllers of hundreds of runs.
const KEPT: NonZeroUsize = NonZeroUsize::new(8192).unwrap();

/// A key's value, and how long it can be that: for ever, if it has no expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub value: Option<Vec<u8>>,
    pub until: Option<Instant>,
}

/// Answers by key.
///
/// Lock order: `state` is taken alone and held across nothing that can wait.
#[derive(Debug)]
pub struct Remembered {
    /// Whether anybody has asked lately, for those who only tell.
    in_use: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    answers: LruCache<String, Known>,
    asked: u64,
    /// When somebody asked last.
    used: Option<Instant>,
    /// Changes made before this have been told.
    told: Option<Instant>,
}

#[derive(Debug)]
enum Known {
    /// The question of this number is under way.
    Asked(u64),
    Said(Answer),
}

impl Default for Remembered {
    fn default() -> Self {
        Self {
            in_use: AtomicBool::new(false),
            state: Mutex::new(State {
                answers: LruCache::new(KEPT),
                asked: 0,
                used: None,
                told: None,
            }),
        }
    }
}

impl Remembered {
    /// The answer for `key`: remembered, if all changes made until `doubt` ago have been told; else
    /// what `ask` says, which is remembered unless a change is told while it is under way.
    pub fn get<E>(
        &self,
        key: &str,
        doubt: Duration,
        ask: impl FnOnce() -> Result<Answer, E>,
    ) -> Result<Answer, E> {
        let question = {
            let mut state = self.state();
            let now = Instant::now();
            state.used = Some(now);
            self.in_use.store(true, SeqCst);
            let trusted = state.told.is_some_and(|told| now < told + doubt);
            if trusted
                && let Some(Known::Said(answer)) = state.answers.get(key)
                && answer.until.is_none_or(|until| now < until)
            {
                return Ok(answer.clone());
            }
            state.asked += 1;
            let question = state.asked;
            state.answers.put(key.to_owned(), Known::Asked(question));
            question
        };
        let answer = ask();
        let mut state = self.state();
        let open = matches!(state.answers.peek(key), Some(Known::Asked(open)) if *open == question);
        if open {
            match &answer {
                Ok(answer) if state.told.is_some() => {
                    let known = Known::Said(answer.clone());
                    state.answers.put(key.to_owned(), known);
                }
                _ => drop(state.answers.pop(key)),
            }
        }
        answer
    }

    /// `key` has changed, or may have.
    pub fn forget(&self, key: &str) {
        if self.is_in_use() {
            self.state().answers.pop(key);
        }
    }

    /// Anything may have changed.
    pub fn forget_all(&self) {
        self.state().answers.clear();
    }

    /// All changes made before `when` have been told, and those made from now on will be.
    pub fn told(&self, when: Instant) {
        let mut state = self.state();
        if state.told.is_none() {
            // asked before anything was told, and perhaps answered before it changed
            state.answers.clear();
        }
        state.told = Some(when);
    }

    /// Changes are told no more.
    pub fn untold(&self) {
        let mut state = self.state();
        state.told = None;
        state.answers.clear();
    }

    /// Whether anybody has asked since the last time nobody had for `long`.
    pub fn is_wanted(&self, long: Duration) -> bool {
        if !self.is_in_use() {
            return false;
        }
        let state = self.state();
        let wanted = state.used.is_some_and(|used| used.elapsed() < long);
        self.in_use.store(wanted, SeqCst);
        wanted
    }

    /// Whether a change is worth telling.
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn said(value: &str) -> Answer {
        Answer {
            value: Some(value.into()),
            until: None,
        }
    }

    /// What `get` says, and whether it had to ask.
    fn get(remembered: &Remembered, key: &str, answer: Answer) -> (Answer, bool) {
        let asked = Cell::new(false);
        let ask = || {
            asked.set(true);
            Ok::<_, ()>(answer)
        };
        (remembered.get(key, LONG, ask).unwrap(), asked.get())
    }

    #[test]
    fn an_answer_holds_until_a_change_is_told() {
        let remembered = Remembered::default();
        let now = Instant::now();
        // nobody tells yet
        for _ in 0..2 {
            assert_eq!(get(&remembered, "k", said("a")), (said("a"), true));
        }
        remembered.told(now);
        assert_eq!(get(&remembered, "k", said("a")), (said("a"), true));
        assert_eq!(get(&remembered, "k", said("b")), (said("a"), false));
        // absence is an answer
        assert!(get(&remembered, "none", Answer::default()).1);
        assert_eq!(get(&remembered, "none", said("c")).0, Answer::default());
        remembered.forget("k");
        assert_eq!(get(&remembered, "k", said("b")), (said("b"), true));
        assert!(!get(&remembered, "none", said("c")).1);
        remembered.forget_all();
        assert_eq!(get(&remembered, "none", said("c")), (said("c"), true));
        remembered.untold();
        assert_eq!(get(&remembered, "none", said("d")), (said("d"), true));
    }

    #[test]
    fn what_changes_while_it_is_asked_for_is_not_remembered() {
        let remembered = Remembered::default();
        remembered.told(Instant::now());
        let ask = || {
            remembered.forget("k");
            Ok::<_, ()>(said("old"))
        };
        assert_eq!(remembered.get("k", LONG, ask).unwrap(), said("old"));
        assert_eq!(get(&remembered, "k", said("new")), (said("new"), true));
        // nor what was asked for before changes were told
        remembered.untold();
        let ask = || {
            remembered.told(Instant::now());
            Ok::<_, ()>(said("older"))
        };
        assert_eq!(remembered.get("k3", LONG, ask).unwrap(), said("older"));
        assert_eq!(get(&remembered, "k3", said("new")), (said("new"), true));
        let failed = remembered.get("k2", LONG, || Err(()));
        assert_eq!(
            (failed, get(&remembered, "k2", said("x")).1),
            (Err(()), true)
        );
    }

    #[test]
    fn an_answer_ends_with_its_expiry_and_with_the_word_that_nothing_changed() {
        let remembered = Remembered::default();
        let now = Instant::now();
        remembered.told(now);
        let over = Answer {
            until: Some(now),
            ..said("a")
        };
        get(&remembered, "k", over);
        assert_eq!(get(&remembered, "k", said("b")), (said("b"), true));
        let doubted = remembered.get("k", Duration::ZERO, || Ok::<_, ()>(said("c")));
        assert_eq!(doubted.unwrap(), said("c"));
    }

    #[test]
    fn nobody_who_asks_means_nothing_to_tell() {
        let remembered = Remembered::default();
        assert!(!remembered.is_in_use() && !remembered.is_wanted(LONG));
        get(&remembered, "k", said("a"));
        assert!(remembered.is_in_use() && remembered.is_wanted(LONG));
        assert!(!remembered.is_wanted(Duration::ZERO) && !remembered.is_in_use());
    }
}
