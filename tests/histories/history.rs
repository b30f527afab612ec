//! What clients did to one controller and when, and whether that can be: every history must be one of a
//! register that a commit changes only from the value it was made from.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

/// Only a history that is wrong in a knotty way takes so long to judge.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of an operation. Every commit writes a mark of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Read this mark: at a mount, from the source, or as modern code does, which believes the cache only
    /// with the file's signature.
    Read(u64),
    /// Read this mark as old code does, which believes the cache. Promise 7 speaks of commits that have
    /// returned, so until then it may still see the mark before, even after others have seen the new one.
    ReadCached(u64),
    /// Replaced `base` by `mark`, and was told so.
    Committed { base: u64, mark: u64 },
    /// Was told that nothing has changed.
    Refused { mark: u64 },
    /// Was told nothing that says which.
    Open { base: u64, mark: u64 },
}

/// An operation, with the time of its call and of its return.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub call: i64,
    pub done: i64,
    pub did: Did,
}

/// Whether a daemon may have been stopped for longer than its lease in the middle of a publication: then what it
/// published in vain can be read until it takes it back (docs/SEMANTICS.md, "Fenced").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glimpses {
    Allowed,
    Forbidden,
}

/// Clients write down what they do.
pub struct Recorder {
    start: Instant,
    marks: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// The register holds mark 0.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            marks: AtomicU64::new(1),
            events: Mutex::default(),
        }
    }

    pub fn now(&self) -> i64 {
        self.start.elapsed().as_nanos() as i64
    }

    /// One that nobody has used.
    pub fn mark(&self) -> u64 {
        self.marks.fetch_add(1, Relaxed)
    }

    /// What was called at `call` has returned now.
    pub fn returned(&self, call: i64, did: Did) {
        let event = Event {
            call,
            done: self.now(),
            did,
        };
        self.events.lock().unwrap().push(event);
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// How many commits have been acknowledged.
    pub fn committed(&self) -> usize {
        let events = self.events.lock().unwrap();
        let committed = events
            .iter()
            .filter(|event| matches!(event.did, Did::Committed { .. }));
        committed.count()
    }
}

/// A register that a commit changes only from the mark it was made from.
#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Copy, Debug)]
enum Step {
    Read(u64),
    Commit { base: u64, mark: u64 },
}

impl Model for Register {
    type State = u64;
    type Op = Step;
    type Metadata = ();

    fn init() -> u64 {
        0
    }

    fn step(state: &u64, step: &Step) -> (bool, u64) {
        match *step {
            Step::Read(mark) => (mark == *state, *state),
            Step::Commit { base, mark } => (base == *state, mark),
        }
    }
}

/// Says what is wrong with a history, if anything. Counts the commits that were told, refused and open, the
/// reads, and the glimpses.
pub fn judge(events: &[Event], glimpses: Glimpses) -> Result<[usize; 5], String> {
    let mut counts = [0; 5];
    let mut steps = Vec::new();
    let seen: HashSet<u64> = events.iter().flat_map(|event| event.did.seen()).collect();
    let refused: HashMap<u64, &Event> = events
        .iter()
        .filter_map(|event| match event.did {
            Did::Refused { mark } => Some((mark, event)),
            _ => None,
        })
        .collect();
    for event in events {
        let (count, step) = match event.did {
            Did::Committed { base, mark } => (0, Some((Step::Commit { base, mark }, event.done))),
            Did::Refused { .. } => (1, None),
            // it took effect if anybody saw it, at any time since; else nobody can tell, and it does not matter
            Did::Open { base, mark } => {
                let took_effect = seen.contains(&mark);
                (
                    2,
                    took_effect.then_some((Step::Commit { base, mark }, i64::MAX)),
                )
            }
            Did::Read(mark) => match refused.get(&mark) {
                Some(vain) if glimpses == Glimpses::Allowed => {
                    if event.call > vain.done || vain.call > event.done {
                        return Err(format!("{event:?} has what was not there: {vain:?}"));
                    }
                    (4, None)
                }
                _ => (3, Some((Step::Read(mark), event.done))),
            },
            Did::ReadCached(_) => (3, None),
        };
        counts[count] += 1;
        steps.extend(step.map(|(op, return_time)| Operation::<Register> {
            client_id: None,
            call_time: event.call,
            return_time,
            op,
            metadata: None,
        }));
    }
    match check_operations_timeout(&steps, PATIENCE) {
        CheckResult::Ok => {}
        CheckResult::Illegal => return Err(format!("not linearizable{}", culprits(&steps))),
        CheckResult::Unknown => return Err("too knotty to be judged".to_owned()),
    }
    judge_cached(events, &steps)?;
    Ok(counts)
}

/// The end of the shortest history that is wrong already.
fn culprits(steps: &[Operation<Register>]) -> String {
    let mut steps = steps.to_vec();
    steps.sort_by_key(|step| step.return_time);
    let wrong = |returned: usize| {
        // what had not returned by then may have taken effect already
        let until = steps[returned - 1].return_time;
        let begun = steps[returned..]
            .iter()
            .filter(|step| step.call_time < until);
        let commits = begun.filter(|step| matches!(step.op, Step::Commit { .. }));
        let seen: HashSet<u64> = steps[..returned]
            .iter()
            .map(|step| step.op.seen())
            .collect();
        let open = commits
            .filter(|step| matches!(step.op, Step::Commit { mark, .. } if seen.contains(&mark)));
        let history: Vec<_> = steps[..returned].iter().chain(open).cloned().collect();
        check_operations_timeout(&history, PATIENCE) == CheckResult::Illegal
    };
    let counts: Vec<usize> = (1..=steps.len()).collect();
    let shortest = counts.partition_point(|returned| !wrong(*returned)) + 1;
    let last = &steps[shortest.saturating_sub(12)..shortest.min(steps.len())];
    let line = |step: &Operation<Register>| {
        format!(
            "\n  {:>12} {:>12} {:?}",
            step.call_time, step.return_time, step.op
        )
    };
    last.iter().map(line).collect()
}

impl Step {
    fn seen(&self) -> u64 {
        match *self {
            Self::Read(mark) | Self::Commit { base: mark, .. } => mark,
        }
    }
}

impl Did {
    /// The mark that whoever did it had seen.
    fn seen(self) -> Option<u64> {
        match self {
            Self::Read(mark) | Self::ReadCached(mark) => Some(mark),
            Self::Committed { base, .. } | Self::Open { base, .. } => Some(base),
            Self::Refused { .. } => None,
        }
    }
}

/// Old readers see no mark older than the last commit that had returned when they asked, and none whose commit
/// had not begun.
fn judge_cached(events: &[Event], steps: &[Operation<Register>]) -> Result<(), String> {
    let commits = steps.iter().filter_map(|step| match step.op {
        Step::Commit { base, mark } => Some((base, (mark, step))),
        Step::Read(_) => None,
    });
    let after: HashMap<u64, _> = commits.collect();
    // the marks in the order in which they were current
    let mut order = vec![(0, i64::MIN, i64::MIN)];
    while let Some((mark, step)) = after.get(&order[order.len() - 1].0) {
        order.push((*mark, step.call_time, step.return_time));
    }
    for event in events {
        let Did::ReadCached(mark) = event.did else {
            continue;
        };
        let at = order.iter().position(|(known, ..)| *known == mark);
        let begun = at.is_some_and(|at| order[at].1 < event.done);
        let newest = order
            .iter()
            .rposition(|(.., returned)| *returned < event.call);
        if !begun || at < newest {
            let newest = newest.map(|newest| order[newest]);
            return Err(format!(
                "{event:?}, and the last commit before was {newest:?}"
            ));
        }
    }
    Ok(())
}

/// The judge is not blind.
mod tests {
    use super::Glimpses::{Allowed, Forbidden};
    use super::*;

    fn history(events: &[(i64, i64, Did)]) -> Vec<Event> {
        let event = |&(call, done, did)| Event { call, done, did };
        events.iter().map(event).collect()
    }

    fn commit(base: u64, mark: u64) -> Did {
        Did::Committed { base, mark }
    }

    #[test]
    fn a_lost_update_is_found() {
        let lost = history(&[
            (0, 10, commit(0, 1)),
            (5, 15, commit(0, 2)),
            (20, 30, Did::Read(2)),
        ]);
        assert!(judge(&lost, Allowed).is_err());
        let kept = history(&[
            (0, 10, commit(0, 1)),
            (5, 15, commit(1, 2)),
            (20, 30, Did::Read(2)),
        ]);
        assert_eq!(judge(&kept, Forbidden), Ok([2, 0, 0, 1, 0]));
    }

    #[test]
    fn a_stale_read_is_found() {
        let stale = history(&[(0, 10, commit(0, 1)), (11, 20, Did::Read(0))]);
        assert!(judge(&stale, Allowed).is_err());
        let early = history(&[(0, 10, commit(0, 1)), (9, 20, Did::Read(0))]);
        assert_eq!(judge(&early, Forbidden), Ok([1, 0, 0, 1, 0]));
        let back = history(&[
            (0, 30, commit(0, 1)),
            (5, 10, Did::Read(1)),
            (11, 20, Did::Read(0)),
        ]);
        assert!(judge(&back, Allowed).is_err());
    }

    #[test]
    fn an_open_commit_may_come_late_or_never_and_only_once() {
        let open = Did::Open { base: 0, mark: 1 };
        let never = history(&[
            (0, 10, open),
            (11, 20, Did::Read(0)),
            (21, 30, commit(0, 2)),
        ]);
        assert_eq!(judge(&never, Forbidden), Ok([1, 0, 1, 1, 0]));
        let late = history(&[
            (0, 10, open),
            (11, 20, Did::Read(0)),
            (21, 30, Did::Read(1)),
        ]);
        assert_eq!(judge(&late, Forbidden), Ok([0, 0, 1, 2, 0]));
        let twice = [
            (0, 10, open),
            (11, 20, Did::Read(1)),
            (21, 30, commit(0, 2)),
            (31, 40, Did::Read(2)),
        ];
        assert!(judge(&history(&twice), Allowed).is_err());
        let before_its_call = history(&[(0, 4, Did::Read(1)), (5, 10, open)]);
        assert!(judge(&before_its_call, Allowed).is_err());
    }

    #[test]
    fn a_refused_commit_has_no_effect_but_a_glimpse() {
        let refused = (5, 10, Did::Refused { mark: 1 });
        let glimpse = history(&[refused, (0, 20, Did::Read(1)), (21, 30, Did::Read(0))]);
        assert_eq!(judge(&glimpse, Allowed), Ok([0, 1, 0, 1, 1]));
        assert!(judge(&glimpse, Forbidden).is_err());
        let stays = history(&[refused, (11, 20, Did::Read(1))]);
        assert!(judge(&stays, Allowed).is_err());
        let built_upon = history(&[refused, (6, 9, Did::Read(1)), (8, 20, commit(1, 2))]);
        assert!(judge(&built_upon, Allowed).is_err());
    }

    #[test]
    fn an_old_reader_may_lag_behind_a_commit_only_until_it_returns() {
        let seen_first = [(0, 30, commit(0, 1)), (5, 10, Did::Read(1))];
        let lagging = [&seen_first[..], &[(11, 20, Did::ReadCached(0))]].concat();
        assert_eq!(judge(&history(&lagging), Forbidden), Ok([1, 0, 0, 2, 0]));
        let stale = [&seen_first[..], &[(31, 40, Did::ReadCached(0))]].concat();
        assert!(judge(&history(&stale), Allowed).is_err());
        let unknown = [&seen_first[..], &[(31, 40, Did::ReadCached(7))]].concat();
        assert!(judge(&history(&unknown), Allowed).is_err());
    }
}
