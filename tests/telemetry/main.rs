//! Telemetry: what is told of what happens to controllers, and what is told to them (promises 10
//! and 11, PROTOCOL.md 7).

#[path = "../common/mod.rs"]
mod common;

mod appending;
mod channels;
mod commands;
mod events;
mod names;
mod reading;

use std::fs;
use std::path::Path;

use common::run::{Kind, RUNID, Run, eventually};

/// A run without a real log of `wepp`.
fn run_without_log(kind: Kind) -> Run {
    let run = Run::new(kind);
    let _ = fs::remove_file(run.on_disk("wepp.log"));
    run
}

/// What the virtual log of a controller says now.
fn log(run: &Run, name: &str) -> String {
    text(&run.at(&format!("{name}.nodb.log")))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits until the virtual log of a controller says so.
#[track_caller]
fn await_line(run: &Run, name: &str, words: &str) {
    let told = || log(run, name).contains(words);
    eventually(&format!("{words}: {}", log(run, name)), told);
}

/// Waits until what is published on the run's channels arrives.
fn await_followed(run: &Run, name: &str) {
    fs::read(run.at(&format!("{name}.nodb"))).unwrap();
    if run.kind() == Kind::Redis {
        await_line(run, name, "following the status channel");
    }
}

/// Somebody else publishes on a channel of the run.
fn publish(run: &Run, channel: &str, text: &str) {
    let channel = format!("{RUNID}:{channel}");
    run.redis().cmd(&["PUBLISH", &channel, text]);
}

/// Saves a document that is another each time.
fn save(run: &Run, name: &str, n: u32) {
    let document = format!("{{\"py/object\": \"{name}\", \"_n\": {n}}}");
    fs::write(run.at(&format!("{name}.nodb")), document).unwrap();
}

/// The lines that hold these words.
fn lines<'a>(log: &'a str, words: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(words)).collect()
}
