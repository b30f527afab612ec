//! Redis goes away, hangs or comes back empty (promise 9): reads and plain files notice nothing,
//! writers of controllers fail closed, and all heals without a remount.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::run::{Kind, Run, assert_equal, eventually};
use common::{OnDrop, files_below};
use nodbfs::nodb::lock::NEWS;
use rustix::io::Errno;

const NAME: &str = "wepp.nodb";

/// Readers and plain files go on, whatever was read before and whatever changes.
fn assert_unharmed(run: &Run) {
    for name in [NAME, "soils.nodb", "climate.nodb"] {
        assert_equal(&run.at(name), &run.on_disk(name));
    }
    let text = fs::read_to_string(run.on_disk("ron.nodb")).unwrap();
    fs::write(run.on_disk("ron.nodb"), text + " ").unwrap();
    assert_equal(&run.at("ron.nodb"), &run.on_disk("ron.nodb"));
    fs::write(run.at("t"), "plain").unwrap();
    fs::rename(run.at("t"), run.at("plain.txt")).unwrap();
    assert_eq!(fs::read_to_string(run.at("plain.txt")).unwrap(), "plain");
    fs::remove_file(run.at("plain.txt")).unwrap();
}

/// Every road of a write is closed.
fn assert_closed(run: &Run) {
    let before = fs::read(run.on_disk(NAME)).unwrap();
    for what in [
        "open(path, 'w')",
        "open(path, 'r+')",
        "os.unlink(path)",
        "os.truncate(path, 0)",
        "open(path + '.t', 'w').write('{}'); os.rename(path + '.t', path)",
    ] {
        assert_eq!(run.python(NAME, what), "ENOLCK", "{what}");
    }
    assert!(fs::read(run.on_disk(NAME)).unwrap() == before);
}

/// Writers work again, soon, without a remount, and what the cache could not be told, it is told.
fn assert_healed(run: &Run) {
    let write = |text: &str| {
        // `fs::write` does not hear what its close says
        fs::write(run.at(NAME), text).is_ok()
            && fs::read(run.on_disk(NAME)).unwrap() == text.as_bytes()
    };
    eventually("writers work again", || write("{\"healed\": 1}"));
    eventually("no debt is left", || {
        files_below(run.mount.state_dir(), ".json").is_empty()
    });
    assert!(write("{\"healed\": true}"));
    run.assert_settled(NAME);
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn rewrite(file: &mut File, text: &str) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn errno(result: std::io::Result<()>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

/// Promises 3 and 9: Redis dies under an open writer.
#[test]
fn redis_killed_before_the_close() {
    let mut run = Run::new(Kind::Redis);
    fs::read(run.at(NAME)).unwrap();
    let before = fs::read(run.on_disk(NAME)).unwrap();
    let mut writer = open(&run.at(NAME));
    run.redis_mut().kill();
    // the daemon does not believe what Redis said before
    thread::sleep(2 * NEWS);
    assert_eq!(
        errno(rewrite(&mut writer, "{\"a\": 1}")),
        Some(Errno::NOLCK)
    );
    assert!(fs::read(run.on_disk(NAME)).unwrap() == before);
    assert!(fs::read(run.at(NAME)).unwrap() == before);
    drop(writer);
    eventually("the content is kept", || {
        run.rejected()
            .iter()
            .any(|path| fs::read(path).is_ok_and(|kept| kept == b"{\"a\": 1}"))
    });
    assert_unharmed(&run);
    assert_closed(&run);
    run.redis_mut().restart();
    assert_healed(&run);
}

/// Promise 9: Redis accepts connections and answers nothing.
#[test]
fn redis_that_hangs() {
    let run = Run::new(Kind::Redis);
    fs::read(run.at(NAME)).unwrap();
    let before = fs::read(run.on_disk(NAME)).unwrap();
    let mut writer = open(&run.at(NAME));
    run.redis().pause();
    // the daemon does not believe what Redis said before
    thread::sleep(2 * NEWS);
    assert_eq!(
        errno(rewrite(&mut writer, "{\"a\": 1}")),
        Some(Errno::NOLCK)
    );
    assert!(fs::read(run.on_disk(NAME)).unwrap() == before);
    drop(writer);
    assert_unharmed(&run);
    assert_eq!(run.python(NAME, "open(path, 'w')"), "ENOLCK");
    run.redis().cont();
    assert_healed(&run);
}

/// Promise 5: a Redis that lost its memory has forgotten the lock, and others may have it by now.
#[test]
fn redis_that_comes_back_empty() {
    let mut run = Run::new(Kind::Redis);
    let before = fs::read(run.on_disk(NAME)).unwrap();
    let mut writer = open(&run.at(NAME));
    run.redis_mut().restart();
    let mut said = None;
    eventually("an answer of the new Redis", || {
        said = errno(rewrite(&mut writer, "{\"a\": 1}"));
        said != Some(Errno::NOLCK)
    });
    assert_eq!(said, Some(Errno::STALE));
    assert!(fs::read(run.on_disk(NAME)).unwrap() == before);
    drop(writer);
    assert_healed(&run);
}

/// Promise 9: a mount that lives through it all loses no update and turns no reader away.
#[test]
fn redis_killed_again_and_again() {
    let mut run = Run::new(Kind::Redis);
    fs::write(run.on_disk(NAME), "{\"n\": 0}").unwrap();
    let path = run.at(NAME);
    let done = AtomicBool::new(false);
    let increment = || {
        let mut file = File::options().read(true).write(true).open(&path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let document: serde_json::Value = serde_json::from_str(&text).expect("a document");
        let n = document["n"].as_u64().expect("a number");
        rewrite(&mut file, &format!("{{\"n\": {}}}", n + 1))
    };
    let acknowledged: u64 = thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut acknowledged = 0;
                    while !done.load(Ordering::SeqCst) {
                        match errno(increment()) {
                            None => acknowledged += 1,
                            Some(Errno::NOLCK | Errno::STALE | Errno::BUSY) => {}
                            Some(other) => panic!("{other}"),
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let text = fs::read_to_string(&path).expect("readers are never turned away");
                serde_json::from_str::<serde_json::Value>(&text).expect("a document");
            }
        });
        let end = OnDrop(&done);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(100));
            run.redis_mut().kill();
            thread::sleep(Duration::from_millis(100));
            run.redis_mut().restart();
        }
        // and something must have come of it
        let before = fs::read_to_string(run.on_disk(NAME)).unwrap();
        eventually("commits go on", || {
            reader.is_finished() || fs::read_to_string(run.on_disk(NAME)).unwrap() != before
        });
        drop(end);
        reader.join().expect("a reader without errors");
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    let text = fs::read_to_string(run.on_disk(NAME)).unwrap();
    assert_eq!(text, format!("{{\"n\": {acknowledged}}}"));
    assert_healed(&run);
}
