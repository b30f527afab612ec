//! Clients that write down what they do. Each works in turns until it is told to stop.

use std::fs;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::program::{Answer, Program};
use crate::common::python::Neighbour;
use crate::history::{Did, Recorder};

/// The controller they all work on.
pub const NAME: &str = "marks.nodb";

/// What all clients of a history share.
pub struct Work {
    pub recorder: Recorder,
    pub going_on: AtomicBool,
    pub hosts: [Host; 2],
}

#[derive(Default)]
pub struct Host {
    /// Where its mount is now; elsewhere after a crash.
    pub path: RwLock<PathBuf>,
    /// Calls that may commit and have not returned.
    pub committing: AtomicUsize,
}

impl Work {
    /// The clients have not begun.
    pub fn new() -> Self {
        Self {
            recorder: Recorder::new(),
            going_on: AtomicBool::new(true),
            hosts: Default::default(),
        }
    }

    fn goes_on(&self) -> bool {
        self.going_on.load(Relaxed)
    }
}

impl Host {
    fn now(&self) -> PathBuf {
        self.path.read().unwrap().clone()
    }
}

pub fn document(mark: u64) -> String {
    format!("{{\"py/object\": \"wepppy.nodb.Marks\", \"_mark\": {mark}}}")
}

pub fn mark_in(text: &str) -> u64 {
    let document: Value = serde_json::from_str(text).expect("a whole document");
    document["_mark"].as_u64().expect("a mark")
}

/// Whether a call that failed has surely changed nothing; otherwise the daemon died over it.
fn is_refusal(errno: &str) -> bool {
    match errno {
        // docs/SEMANTICS.md: after these the old generation stands
        "EBUSY" | "ESTALE" | "ENOLCK" => true,
        // the last: the mount point is gone, too
        "ENOTCONN" | "ECONNABORTED" | "EIO" | "ENOENT" => false,
        other => panic!("{other}"),
    }
}

/// What the answers of all calls that may commit say together.
fn verdict(answers: &[Answer], base: u64, mark: u64) -> Did {
    let unknown = |answer: &Answer| matches!(answer, Err(errno) if !is_refusal(errno));
    // a refused fsync leaves it to the close to try once more; after a success there is nothing left to do
    let last = answers
        .iter()
        .position(Answer::is_ok)
        .unwrap_or(answers.len());
    if answers[..last].iter().any(unknown) {
        Did::Open { base, mark }
    } else if last < answers.len() {
        Did::Committed { base, mark }
    } else {
        Did::Refused { mark }
    }
}

/// A program at a mount that reads, changes and writes: with `fsync`, with `close` alone, or by a rename.
pub fn program(work: &Work, host: usize, number: usize) {
    let host = &work.hosts[host];
    let mut here = host.now();
    let mut program = Program::spawn(&here);
    let draft = format!("draft-{number}");
    for turn in number.. {
        if !work.goes_on() {
            return;
        }
        let now = host.now();
        if now != here {
            program.enter(&now);
            here = now;
        }
        if change(&work.recorder, host, &mut program, turn, &draft).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn change(
    recorder: &Recorder,
    host: &Host,
    program: &mut Program,
    turn: usize,
    draft: &str,
) -> Result<(), ()> {
    // an answer that is no refusal says that the daemon died: there will be another
    let may_fail = |errno: String| {
        is_refusal(&errno);
    };
    let call = recorder.now();
    let open = json!({"op": "open", "slot": 0, "name": NAME, "flags": libc::O_RDWR});
    program.call(open).map_err(may_fail)?;
    let close = json!({"op": "close", "slot": 0});
    let answer = program.call(json!({"op": "read", "slot": 0}));
    let Ok(text) = answer else {
        return program.call(close).map(drop).map_err(may_fail);
    };
    let base = mark_in(&text.expect("what was read"));
    recorder.returned(call, Did::Read(base));
    let mark = recorder.mark();
    let text = document(mark);
    let write = match turn % 3 {
        0 => json!({"op": "put", "name": draft, "text": text}),
        _ => json!({"op": "write", "slot": 0, "text": text}),
    };
    if program.call(write).is_err() {
        return program.call(close).map(drop).map_err(may_fail);
    }
    let call = recorder.now();
    host.committing.fetch_add(1, Relaxed);
    let mut answers = Vec::new();
    match turn % 3 {
        0 => {
            let rename = json!({"op": "rename", "source": draft, "target": NAME});
            answers.push(program.call(rename));
            // nothing was written to this one
            let _ = program.call(close);
        }
        1 => {
            answers.push(program.call(json!({"op": "fsync", "slot": 0})));
            answers.push(program.call(close));
        }
        _ => answers.push(program.call(close)),
    }
    host.committing.fetch_sub(1, Relaxed);
    let did = verdict(&answers, base, mark);
    recorder.returned(call, did);
    match did {
        Did::Committed { .. } => Ok(()),
        _ => Err(()),
    }
}

/// Opens, reads and closes at a mount.
pub fn reader(work: &Work, host: usize) {
    while work.goes_on() {
        let mount = work.hosts[host].now();
        let path = mount.join(NAME);
        let call = work.recorder.now();
        match fs::read_to_string(path) {
            Ok(text) => work.recorder.returned(call, Did::Read(mark_in(&text))),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOTCONN | libc::ECONNABORTED) => {}
                // the mount point of a daemon that was killed
                Some(libc::ENOENT) if work.hosts[host].now() != mount => {}
                _ => panic!("{error}"),
            },
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// A NoDb process that loads, as new each time. `did` says how its code reads.
pub fn loader(work: &Work, mut neighbour: Neighbour, did: fn(u64) -> Did) {
    while work.goes_on() {
        let call = work.recorder.now();
        neighbour.ok(json!({"op": "reload"}));
        let mark = neighbour.get("_mark").as_u64().expect("a mark");
        work.recorder.returned(call, did(mark));
        thread::sleep(Duration::from_millis(3));
    }
}

/// A NoDb process that takes the lock, loads, changes, dumps and unlocks. Under the lock old code, too, must
/// load what is current.
pub fn updater(work: &Work, mut neighbour: Neighbour) {
    while work.goes_on() {
        if neighbour.call(json!({"op": "lock"}))["ok"] != true {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let call = work.recorder.now();
        neighbour.ok(json!({"op": "reload"}));
        let base = neighbour.get("_mark").as_u64().expect("a mark");
        work.recorder.returned(call, Did::Read(base));
        let mark = work.recorder.mark();
        neighbour.ok(json!({"op": "set", "key": "_mark", "value": mark}));
        let call = work.recorder.now();
        let dumped = neighbour.call(json!({"op": "dump"}));
        let did = match dumped["error"].as_str() {
            None => Did::Committed { base, mark },
            Some("NoDbLockLostError") => Did::Refused { mark },
            // before the rename or after it
            Some(_) => Did::Open { base, mark },
        };
        work.recorder.returned(call, did);
        neighbour.ok(json!({"op": "unlock"}));
        thread::sleep(Duration::from_millis(5));
    }
}
