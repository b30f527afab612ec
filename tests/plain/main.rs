//! Plain files and directories through a real mount: every operation gives what the source gives
//! (promise 8), listings show what is on disk (promise 10).

mod attributes;
#[path = "../common/mod.rs"]
mod common;
mod content;
mod names;
mod outside;
mod pages;
mod programs;
mod read_only;
mod users;

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks until it is so; only a failure waits to the end.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never came to be: {what}");
        sleep(Duration::from_millis(20));
    }
}
