//! The matrix: each step of each road fails, dies, is stopped for longer than the lease or told to end, one run each, and a
//! program in another language looks whether the promises hold and whether all goes on by itself. Which
//! steps there are says the code, and which of them a road takes is tried out: none is left out by hand.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/site.rs"]
mod site;

mod case;
mod process;
mod roads;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use case::{Case, Field, Moment, Outcome, Store, Worker, is_possible};
use nodbfs::step::Step;
use roads::{BEHIND, Failure, GAPS, ROADS};

/// Most of a case is waiting.
const WORKERS: usize = 8;

/// On a busy machine a lease may end before the step is reached.
const TRIES: usize = 3;

/// Runs all cases, several at a time, and gives what came of them in their order.
fn run_all(field: &Field, cases: &[Case]) -> Vec<Result<Outcome, String>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut worker = Worker::new();
                while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
                    let mut outcome = case.run(field, &mut worker, 0);
                    for again in 1..TRIES {
                        if outcome.is_ok() {
                            break;
                        }
                        // its processes may still wait for what never comes
                        worker = Worker::new();
                        outcome = case.run(field, &mut worker, again);
                    }
                    outcomes.lock().unwrap().insert(case.number, outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap().into_values().collect()
}

/// The moments of a road that come after what fails on it in any case.
fn moments(case: &Case, reached: &[Step]) -> Vec<Moment> {
    let mut times = BTreeMap::new();
    let mut moments: Vec<_> = reached
        .iter()
        .map(|&step| {
            let time = times.entry(step).or_insert(0);
            *time += 1;
            Moment {
                step,
                time: *time - 1,
            }
        })
        .collect();
    if let Some((preset, _)) = case.road.preset {
        let mut after = false;
        moments.retain(|moment| {
            let kept = after || BEHIND.contains(&moment.step);
            after |= moment.step == preset;
            kept
        });
    }
    moments
}

#[test]
fn every_step_of_every_road_fails_dies_stops_or_ends_and_the_promises_hold() {
    let start = Instant::now();
    // part of it, as `close, Redis, kill at put`; a line as this names each case that breaks something
    let only = env::var("MATRIX").unwrap_or_default();
    let field = Field::new();
    let mut learning = Vec::new();
    let (mut done, mut impossible) = (0, 0);
    for store in [Store::Redis, Store::Embedded] {
        for road in ROADS {
            // nobody takes over from a daemon that has all locks to itself
            let stops = road
                .preset
                .is_some_and(|(_, failure)| failure == Failure::Stop);
            if stops && store == Store::Embedded {
                impossible += Step::ALL.len() * Failure::ALL.len();
            } else {
                learning.push(Case {
                    number: learning.len(),
                    road,
                    store,
                    failure: None,
                });
            }
        }
    }
    let learned = run_all(&field, &learning);
    let mut violations = Vec::new();
    let mut cases = Vec::new();
    let mut covered = BTreeSet::new();
    for (case, outcome) in learning.iter().zip(learned) {
        let outcome = outcome.unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
        violations.extend(
            outcome
                .broken
                .iter()
                .map(|broken| format!("{}: {broken}", case.describe())),
        );
        let moments = moments(case, &outcome.reached);
        covered.extend(moments.iter().map(|moment| moment.step));
        for failure in Failure::ALL {
            let steps: BTreeSet<_> = moments.iter().map(|moment| moment.step).collect();
            for &step in &steps {
                if is_possible(step, failure, case.road, case.store) {
                    done += 1;
                } else {
                    impossible += 1;
                }
            }
            cases.extend(
                moments
                    .iter()
                    .filter(|moment| is_possible(moment.step, failure, case.road, case.store))
                    .map(|&moment| Case {
                        failure: Some((moment, failure)),
                        ..*case
                    }),
            );
        }
    }
    let never: Vec<_> = Step::ALL
        .iter()
        .filter(|step| !covered.contains(step))
        .collect();
    if !never.is_empty() {
        violations.push(format!("steps that no road takes: {never:?}"));
    }
    cases.retain(|case| case.describe().contains(&only));
    for (number, case) in cases.iter_mut().enumerate() {
        case.number = learning.len() + number;
    }
    let mut gaps = vec![0; GAPS.len()];
    let mut told = BTreeMap::<_, usize>::new();
    for (case, outcome) in cases.iter().zip(run_all(&field, &cases)) {
        let what = case.describe();
        match outcome {
            Ok(outcome) => {
                outcome.gaps.iter().for_each(|&number| gaps[number] += 1);
                let failure = case.failure.map(|(_, failure)| failure.name());
                *told.entry((failure, outcome.told)).or_default() += 1;
                violations.extend(
                    outcome
                        .broken
                        .iter()
                        .map(|broken| format!("{what}: {broken}")),
                );
            }
            Err(error) => violations.push(format!("{what}: {error}")),
        }
    }
    for (gap, &count) in GAPS.iter().zip(&gaps) {
        println!("known gap, {count} times: {}", gap.why);
        if count == 0 && only.is_empty() {
            violations.push(format!("no gap any more: {}", gap.why));
        }
    }
    for ((failure, told), count) in told {
        println!("{} -> {told}: {count}", failure.unwrap_or_default());
    }
    let (steps, failures, roads) = (Step::ALL.len(), Failure::ALL.len(), ROADS.len());
    let product = steps * failures * roads * 2;
    let line = format!(
        "matrix: {steps} steps × {failures} failures × {roads} roads × 2 stores = {product}: {done} done in {} runs, \
         {impossible} that cannot happen there, {} not on that road, {} in known gaps, {} violations ({:?})",
        cases.len(),
        product - done - impossible,
        gaps.iter().sum::<usize>(),
        violations.len(),
        start.elapsed(),
    );
    println!("{line}");
    // at the end, where somebody who sees only the last lines finds them
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
