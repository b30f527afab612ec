//! Readers against commits: nobody ever sees a torn, empty, mixed or outdated document (promises 2
//! and 7), whoever commits, through the mount or beside it.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::OnDrop;
use common::run::{BOTH, Kind, Run, python};
use serde_json::Value;

const NAME: &str = "wepp.nodb";
const COMMITS: u64 = 300;
/// For so long readers wait for a writer in place that has come halfway (`src/nodb/read.rs`).
const TORN: Duration = Duration::from_secs(1);
/// When a writer in place was done last that had taken longer; locked while one is at work.
static SLOW: Mutex<Option<Instant>> = Mutex::new(None);

/// The document of the nth commit: its number stands at both ends, its size is not its neighbours'.
fn document(n: u64) -> String {
    let pad = "x".repeat((n * 7919 % 30_000) as usize);
    format!("{{\"py/object\": \"wepp\", \"first\": {n}, \"pad\": \"{pad}\", \"last\": {n}}}")
}

/// Whether a writer in place was so slow since then that its half may have been read: on a busy machine.
fn was_slow(since: Instant) -> bool {
    SLOW.lock().unwrap().is_some_and(|end| end >= since)
}

/// The number of the commit that was read; a panic if it was not whole.
fn read_once(path: &Path) -> u64 {
    let start = Instant::now();
    let mut file = File::open(path).expect("a reader is never turned away");
    let size = file.metadata().unwrap().len();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(size, text.len() as u64, "fstat and read agree");
    assert_eq!(file.metadata().unwrap().len(), size, "and go on to");
    let document: Value = match serde_json::from_str(&text) {
        Err(_) if was_slow(start) => return read_once(path),
        document => document.expect("a whole document"),
    };
    assert_eq!(document["first"], document["last"]);
    document["first"].as_u64().unwrap()
}

/// The ways in which a generation comes to be.
const ROADS: [fn(&Run, &str); 4] = [
    |run, text| {
        let mut file = File::options().write(true).open(run.at(NAME)).unwrap();
        file.set_len(0).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
    },
    |run, text| replace(&run.at("t"), &run.at(NAME), text),
    // as modern and old NoDb processes beside the mount
    |run, text| replace(&run.on_disk(".wepp.nodb.x.tmp"), &run.on_disk(NAME), text),
    |run, text| {
        let mut slow = SLOW.lock().unwrap();
        let start = Instant::now();
        fs::write(run.on_disk(NAME), text).unwrap();
        if start.elapsed() >= TORN {
            *slow = Some(Instant::now());
        }
    },
];

fn replace(temporary: &Path, path: &Path, text: &str) {
    fs::write(temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// Commits by all `roads` in turn, with readers at work in this process and in another.
fn race(kind: Kind, roads: &[fn(&Run, &str)]) {
    let run = Run::new(kind);
    fs::write(run.on_disk(NAME), document(0)).unwrap();
    let (committed, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let path: PathBuf = run.at(NAME);
    let stranger = r#"
import json, os, sys
for _ in range(400):
    with open(sys.argv[1]) as file:
        size = os.fstat(file.fileno()).st_size
        text = file.read()
    doc = json.loads(text)
    assert doc["first"] == doc["last"] and size == len(text), (size, len(text))
"#;
    let stranger = Command::new("python3")
        .args(["-c", stranger])
        .arg(&path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let before = committed.load(Ordering::SeqCst);
                        let seen = read_once(&path);
                        assert!(
                            seen >= before,
                            "{seen} was read when {before} was committed"
                        );
                    }
                })
            })
            .collect();
        // also when a commit fails, or the readers would go on for ever
        let _end = OnDrop(&done);
        for n in 1..=COMMITS {
            roads[n as usize % roads.len()](&run, &document(n));
            committed.store(n, Ordering::SeqCst);
            if readers.iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
    });
    let stranger = stranger.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&stranger.stderr);
    assert!(stranger.status.success() || was_slow(start), "{errors}");
    assert_eq!(read_once(&path), COMMITS);
}

/// Promises 2 and 7, against commits through the mount.
#[test]
fn readers_never_see_a_torn_document_of_the_mounts_writers() {
    for kind in BOTH {
        race(kind, &ROADS[..2]);
    }
}

/// Promises 2 and 7, against NoDb processes beside the mount, in-place writers among them.
#[test]
fn readers_never_see_a_torn_document_of_neighbours() {
    for kind in BOTH {
        race(kind, &ROADS[2..]);
    }
}

/// Promises 2 and 7, against everybody at once.
#[test]
fn readers_never_see_a_torn_document_of_anybody() {
    for kind in BOTH {
        race(kind, &ROADS);
    }
}

/// Promise 2: what was opened is read to its end, whatever happens to the name.
#[test]
fn an_open_descriptor_keeps_its_generation() {
    for kind in BOTH {
        let run = Run::new(kind);
        let old = document(29_999);
        fs::write(run.on_disk(NAME), &old).unwrap();
        let mut readers: Vec<(File, String)> = Vec::new();
        for (n, road) in ROADS.iter().enumerate() {
            let text = fs::read_to_string(run.on_disk(NAME)).unwrap();
            let mut reader = File::open(run.at(NAME)).unwrap();
            let mut start = [0; 10];
            reader.read_exact(&mut start).unwrap();
            readers.push((reader, text));
            road(&run, &document(n as u64));
        }
        fs::remove_file(run.at(NAME)).unwrap();
        for (mut reader, text) in readers {
            assert_eq!(reader.metadata().unwrap().len(), text.len() as u64);
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            assert!(rest == text[10..]);
            let mut whole = String::new();
            reader.seek(SeekFrom::Start(0)).unwrap();
            reader.read_to_string(&mut whole).unwrap();
            assert!(whole == text);
        }
    }
}

/// Promise 2, for a reader that maps the file.
#[test]
fn a_mapping_keeps_its_generation() {
    for kind in BOTH {
        let run = Run::new(kind);
        fs::write(run.on_disk(NAME), document(29_999)).unwrap();
        let code = r#"
import mmap
want = open(path, "rb").read()
with open(path, "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    first = pages[:10]
    for where in (path, disk):
        with open(where, "w") as writer:
            writer.write('{"first": 1, "last": 1}')
    print(pages[:] == want)
"#;
        assert_eq!(python(code, &[&run.at(NAME), &run.on_disk(NAME)]), "True");
    }
}

/// Promise 2: nothing of a writer shows before its commit, neither content nor size nor a new name.
#[test]
fn an_open_writer_is_invisible() {
    for kind in BOTH {
        let run = Run::new(kind);
        fs::write(run.on_disk(NAME), document(1)).unwrap();
        let code = r#"
directory, text = os.path.dirname(path), '{"first": 2, "last": 2}'
def look():
    new = os.path.join(directory, "new.nodb")
    return open(path).read(), os.stat(path).st_size, os.listdir(directory), os.path.exists(new)
before = look()
with open(path, "w") as writer, open(os.path.join(directory, "new.nodb"), "x") as newborn:
    assert look() == before, look()
    for file in writer, newborn:
        file.write(text)
        file.flush()
    assert look() == before, look()
after = look()
print(after[:2] == (text, len(text)), after[3], len(after[2]) - len(before[2]))
"#;
        assert_eq!(run.python(NAME, code), "True True 1");
        assert_eq!(read_once(&run.at("new.nodb")), 2);
        run.assert_settled(NAME);
        run.assert_settled("new.nodb");
    }
}
