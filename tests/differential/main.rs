//! Random sequences of operations, done to a mounted directory and to a plain one beside it: every
//! answer is the same, and so are the trees at the end. Once with the kernel's passthrough, where
//! root has it, and once through the page cache.

mod act;
#[path = "../common/mod.rs"]
mod common;
mod op;
mod tree;

use std::cell::Cell;
use std::env;
use std::fs;
use std::process::Command;

use common::twins::Twins;
use proptest::collection::vec;
use proptest::prelude::ProptestConfig;
use proptest::test_runner::{TestCaseError, TestRunner};

use act::Actor;

/// Unless PROPTEST_CASES asks for more.
const CASES: u32 = 150;
const OPERATIONS: std::ops::Range<usize> = 1..60;

#[test]
fn any_sequence_of_operations_gives_what_the_source_gives() {
    let twins = Twins::new([]);
    let config = ProptestConfig {
        cases: env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().expect("a number")),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    };
    let case = Cell::new(0);
    let answer = TestRunner::new(config).run(&vec(op::any(), OPERATIONS), |operations| {
        case.set(case.get() + 1);
        let name = format!("case{}", case.get());
        let dirs = [twins.mounted(), &twins.plain()].map(|dir| dir.join(&name));
        let [mut mounted, mut plain] = dirs.each_ref().map(|dir| {
            fs::create_dir(dir).expect("a directory for the case");
            Actor::new(dir)
        });
        for (at, operation) in operations.iter().enumerate() {
            let (on_mount, on_plain) = (mounted.act(operation), plain.act(operation));
            if on_mount != on_plain {
                return Err(TestCaseError::fail(format!(
                    "operation {at}, {operation:?}:\n  mount:  {on_mount}\n  source: {on_plain}"
                )));
            }
        }
        // with the handles still open, so that unlinked files are still there
        tree::alike(&dirs[0], &dirs[1])?;
        tree::identical(&dirs[0], &twins.source().join(&name))?;
        drop((mounted, plain));
        for dir in &dirs {
            fs::remove_dir_all(dir).map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        Ok(())
    });
    if let Err(error) = answer {
        panic!("{error}\n{}", twins.mount.log());
    }
}

/// In a user namespace of its own the daemon has no right to passthrough.
#[test]
fn the_same_through_the_page_cache() {
    let own = env::current_exe().expect("this program");
    let test = "any_sequence_of_operations_gives_what_the_source_gives";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(own)
        .args(["--exact", test, "--nocapture"])
        .output()
        .expect("unshare is installed");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
