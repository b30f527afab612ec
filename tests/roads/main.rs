//! The less trodden roads of a write: renames of every kind, links, removals, holes, copies made by
//! the kernel, attributes. After each of them disk, entry, seal, lock and mirror are what PROTOCOL.md wants
//! (promises 3 to 7).

#[path = "../common/mod.rs"]
mod common;
mod content;
mod renames;

use std::fs;

use common::run::{BOTH, Kind, Run};

const WEPP: &str = "wepp.nodb";
const SOILS: &str = "soils.nodb";
/// A child run that has a `wepp` of its own, and the parent's `climate` by symlink.
const CHILD: &str = "_pups/omni/scenarios/uniform_low";

fn text(run: &Run, name: &str) -> String {
    fs::read_to_string(run.on_disk(name)).unwrap()
}

/// A name that leads nowhere any more, on disk, in the cache and among the locks.
#[track_caller]
fn assert_gone(run: &Run, name: &str) {
    assert!(!run.on_disk(name).exists() && !run.at(name).exists());
    if run.kind() == Kind::Redis {
        assert_eq!(run.entry(name), None, "{name}");
        assert_eq!(run.lock(name), None, "{name}");
        assert_ne!(run.mirror(name).as_deref(), Some("true"), "{name}");
    }
}

/// Runs `code` on both stores and expects it to print `expected`. Afterwards the controller is settled.
#[track_caller]
fn python_says(code: &str, expected: &str) {
    for kind in BOTH {
        let run = Run::new(kind);
        assert_eq!(run.python(WEPP, code), expected, "{kind:?}");
        run.await_unlocked(WEPP);
        run.assert_settled(WEPP);
    }
}
