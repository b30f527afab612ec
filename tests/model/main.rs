//! Random sequences of what programs, NoDb processes, crashes and expiry do to two mounts of one run, each
//! step compared with a reference model: what it answers, what is then on disk, in the cache, and whose the
//! locks are (promises 1 to 7, 9 and 12).
//!
//! PROPTEST_CASES asks for more sequences.

#[path = "../common/mod.rs"]
mod common;
mod op;
mod reference;
mod world;

use std::cell::RefCell;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::{TestCaseError, TestRunner};

use op::Op;
use reference::Model;
use world::World;

const CASES: u32 = 80;
/// How many things are done in a sequence.
const HABITS: std::ops::Range<usize> = 1..70;

/// No lock takes so long to be given back: only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does the sequence, and says where the world left the model.
fn run(world: &mut World, case: u64, ops: &[Op]) -> Result<(), String> {
    world.begin(case);
    let mut possible = vec![Model::new()];
    for (at, op) in ops.iter().chain(&op::epilogue()).enumerate() {
        // the first two documents are there already
        let n = at as u64 + 2;
        let mut outcomes: Vec<_> = possible
            .iter()
            .flat_map(|model| model.outcomes(op, n))
            .collect();
        if outcomes.is_empty() {
            continue;
        }
        if let Op::Rename { program, .. } = *op {
            // all the possible agree on what is open
            world.await_writers(program, possible[0].writers(program).count());
        }
        let answer = world.act(op, n);
        let allowed: Vec<_> = outcomes.iter().map(|(answer, _)| answer.clone()).collect();
        outcomes.retain(|(allowed, _)| *allowed == answer);
        let texts = world.texts();
        outcomes.retain(|(_, model)| model.texts() == texts);
        if outcomes.is_empty() {
            return Err(format!(
                "step {at}, {op:?}: {answer:?}, files {texts:?}; allowed: {allowed:?}, {possible:?}"
            ));
        }
        let entries = world.entries();
        for (entry, text) in entries.iter().zip(&texts) {
            if entry.is_some() && entry != text {
                return Err(format!(
                    "step {at}, {op:?}: files {texts:?}, cache {entries:?}"
                ));
            }
        }
        // nobody waits for the last close of a writer, and that gives its lock back
        let patience = Instant::now() + PATIENCE;
        let mut locks = world.locks();
        while outcomes.iter().all(|(_, model)| model.locks() != locks) {
            if Instant::now() > patience {
                return Err(format!(
                    "step {at}, {op:?}: locks {locks:?}; allowed: {outcomes:?}"
                ));
            }
            thread::sleep(Duration::from_millis(1));
            locks = world.locks();
        }
        possible.clear();
        for (_, model) in outcomes {
            if model.locks() == locks && !possible.contains(&model) {
                possible.push(model);
            }
        }
    }
    world.assert_settled();
    Ok(())
}

#[test]
fn every_step_of_any_sequence_does_what_the_model_allows() {
    let config = ProptestConfig {
        cases: env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().expect("a number")),
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    // one for all sequences, and another after one that failed
    let world: RefCell<Option<World>> = RefCell::default();
    let case = RefCell::new(0);
    let answer = TestRunner::new(config).run(&op::sequences(HABITS), |ops| {
        *case.borrow_mut() += 1;
        let mut there = world.take().unwrap_or_else(World::new);
        let done = catch_unwind(AssertUnwindSafe(|| run(&mut there, *case.borrow(), &ops)));
        match done.unwrap_or_else(|_| Err("a panic, see above".to_owned())) {
            Ok(()) => {
                world.replace(Some(there));
                Ok(())
            }
            Err(why) => Err(TestCaseError::fail(format!("{why}\n{}", there.logs()))),
        }
    });
    if let Err(error) = answer {
        panic!("{error}");
    }
}
