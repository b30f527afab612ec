//! What a program's own descriptors and names promise it, with one writer at work: which of its
//! calls commits, what that call answers, and where names lead (promises 3, 4, 6 and 10).

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::program::Program;
use common::run::{BOTH, Kind, Run, assert_equal, eventually, listing};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

const NAME: &str = "wepp.nodb";

/// Runs `code` on both stores and expects it to print `expected`. Afterwards the controller is settled.
#[track_caller]
fn python_says(code: &str, expected: &str) {
    for kind in BOTH {
        let run = Run::new(kind);
        assert_eq!(run.python(NAME, code), expected, "{kind:?}");
        run.await_unlocked(NAME);
        run.assert_settled(NAME);
    }
}

/// Promise 4: each `fsync` and the `close` is a commit of its own, durable when it returns.
#[test]
fn fsync_commits_and_so_does_the_close_after_it() {
    python_says(
        r#"
seen = []
def look():
    seen.append((open(disk).read(), os.stat(disk).st_mtime_ns))
look()
with open(path, "w") as file:
    file.write('{"a": 1}')
    file.flush()
    look()
    os.fsync(file.fileno())
    look()
    file.write(" ")
    file.flush()
    os.fdatasync(file.fileno())
    look()
    file.seek(0)
    file.write('{"b": 2}')
look()
texts, times = zip(*seen)
print(texts[0] == texts[1], texts[2:], sorted(set(times)) == [times[0], *times[2:]])
"#,
        r#"True ('{"a": 1}', '{"a": 1} ', '{"b": 2} ') True"#,
    );
}

/// Promise 3: closing a duplicate in the middle of a document is told, and hurts nothing.
#[test]
fn a_duplicate_closed_too_early_is_told_and_the_rest_still_counts() {
    python_says(
        r#"
fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
os.close(os.dup(fd))
before = open(path).read()
os.write(fd, b'{"a": ')
try:
    os.close(os.dup(fd))
except OSError as error:
    print(errno.errorcode[error.errno], open(path).read() == before)
os.write(fd, b'1}')
os.close(fd)
print(open(path).read())
"#,
        "EBADMSG True\n{\"a\": 1}",
    );
}

/// Promise 4: what a child writes to an inherited descriptor is committed when it ends.
#[test]
fn a_childs_writes_are_committed() {
    python_says(
        r#"
fd = os.open(path, os.O_RDWR | os.O_TRUNC)
if os.fork() == 0:
    os.write(fd, b'{"by": "the child"}')
    os._exit(0)
os.wait()
print(open(disk).read())
os.close(fd)
print(open(disk).read())
"#,
        "{\"by\": \"the child\"}\n{\"by\": \"the child\"}",
    );
}

/// Promise 6: two descriptors of one process are two writers, and the second is too late.
#[test]
fn the_second_of_two_writers_of_a_process_is_stale() {
    for kind in BOTH {
        let run = Run::new(kind);
        let code = r#"
one, other = open(path, "w"), open(path, "w")
one.write('{"by": "one"}')
one.close()
other.write('{"by": "other"}')
try:
    other.close()
except OSError as error:
    print(errno.errorcode[error.errno], open(path).read())
"#;
        assert_eq!(run.python(NAME, code), "ESTALE {\"by\": \"one\"}");
        run.await_unlocked(NAME);
        run.assert_settled(NAME);
    }
}

/// Promise 4: a process that goes on after its own commit, with descriptor after descriptor.
#[test]
fn writers_that_follow_each_other_see_each_other() {
    python_says(
        r#"
with open(path, "w") as file:
    file.write('{"n": 0}')
for _ in range(50):
    with open(path, "r+") as file:
        n = json.load(file)["n"]
        file.seek(0)
        file.write(json.dumps({"n": n + 1}))
        file.truncate()
    with open(path) as file:
        assert json.load(file)["n"] == n + 1
    temporary = path + ".tmp"
    with open(temporary, "w") as file:
        file.write(json.dumps({"n": n + 2}))
    os.rename(temporary, path)
    with open(path, "a") as file:
        file.write("\n")
print(open(path).read())
"#,
        "{\"n\": 100}",
    );
}

/// A writer that writes nothing changes nothing, not even with `O_TRUNC`.
#[test]
fn a_writer_that_writes_nothing_changes_nothing() {
    python_says(
        r#"
def look():
    stat = os.stat(disk)
    return open(disk, "rb").read(), stat.st_mtime_ns, stat.st_ino
before = look()
open(path, "r+").close()
open(path, "a").close()
open(path, "w").close()
fd = os.open(path, os.O_RDWR)
os.read(fd, 10)
os.fsync(fd)
os.close(fd)
print(look() == before)
"#,
        "True",
    );
}

/// Promise 3: what cannot be guarded is refused: a shared mapping for writing has no moment at which
/// it is complete.
#[test]
fn a_shared_mapping_for_writing_is_refused() {
    python_says(
        r#"
import mmap
file = open(path, "r+b")
try:
    mmap.mmap(file.fileno(), 0)
except OSError as error:
    print(errno.errorcode[error.errno])
"#,
        "ENODEV",
    );
}

/// Promises 3 and 4: `truncate` by name is a commit like any other.
#[test]
fn truncation_by_name_is_a_commit_of_what_is_left() {
    python_says(
        r#"
with open(path, "w") as file:
    file.write('{"a": 1}  ')
os.truncate(path, 9)
print(repr(open(disk).read()))
for size in (0, 5, 20):
    try:
        os.truncate(path, size)
    except OSError as error:
        print(errno.errorcode[error.errno], repr(open(disk).read()))
"#,
        "'{\"a\": 1} '\nEBADMSG '{\"a\": 1} '\nEBADMSG '{\"a\": 1} '\nEBADMSG '{\"a\": 1} '",
    );
}

/// Promises 2 and 10: a new controller appears complete, with its creator's mode, or not at all.
#[test]
fn a_new_controller_appears_with_its_first_commit() {
    for kind in BOTH {
        let run = Run::new(kind);
        let code = r#"
os.umask(0o027)
new = os.path.join(os.path.dirname(path), "new.nodb")
def create():
    return os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
# nothing written, no document
os.close(create())
print(os.path.exists(new))
fd, rival = create(), create()
os.write(fd, b'{"by": "the first"}')
os.write(rival, b'{"by": "the rival"}')
os.close(fd)
for late in (lambda: os.close(rival), create):
    try:
        late()
    except OSError as error:
        print(errno.errorcode[error.errno])
print(open(new).read(), oct(os.stat(new).st_mode & 0o7777))
"#;
        let said = "False\nESTALE\nEEXIST\n{\"by\": \"the first\"} 0o640";
        assert_eq!(run.python(NAME, code), said, "{kind:?}");
        run.await_unlocked("new.nodb");
        run.assert_settled("new.nodb");
    }
}

/// Promises 2 and 7: a removed controller is gone for all but those who have it open, and so is its
/// cache entry.
#[test]
fn a_removed_controller_stays_with_its_readers() {
    for kind in BOTH {
        let run = Run::new(kind);
        let code = r#"
reader, text = open(path), open(path).read()
os.unlink(path)
print(reader.read() == text, os.path.exists(path), os.path.exists(disk))
open(path)
"#;
        assert_eq!(run.python(NAME, code), "True False False\nENOENT");
        assert_eq!(listing(run.mount.path()), listing(run.source()));
        if kind == Kind::Redis {
            assert_eq!(run.entry(NAME), None);
            assert_eq!(run.lock(NAME), None);
            assert_eq!(run.mirror(NAME).as_deref(), Some("false"));
        }
        // and another may take its name
        fs::write(run.at(NAME), "{}").unwrap();
        run.assert_settled(NAME);
    }
}

/// Promise 7: a controller that is renamed is a plain file under a plain name, and a controller
/// again under its own, for readers and writers at once.
#[test]
fn a_controller_renamed_away_and_back_is_itself() {
    for kind in BOTH {
        let run = Run::new(kind);
        let text = fs::read_to_string(run.on_disk(NAME)).unwrap();
        assert_eq!(fs::read_to_string(run.at(NAME)).unwrap(), text);
        for round in 0..20 {
            fs::rename(run.at(NAME), run.at("wepp.bak")).unwrap();
            assert_eq!(fs::read_to_string(run.at("wepp.bak")).unwrap(), text);
            assert!(!run.at(NAME).exists() && !run.on_disk(NAME).exists());
            if kind == Kind::Redis {
                assert_eq!(run.entry(NAME), None);
            }
            fs::rename(run.at("wepp.bak"), run.at(NAME)).unwrap();
            if round % 2 == 0 {
                assert_eq!(fs::read_to_string(run.at(NAME)).unwrap(), text);
            } else {
                fs::write(run.at(NAME), &text).unwrap();
            }
        }
        run.assert_settled(NAME);
        fs::rename(run.at(NAME), run.at("wepp2.nodb")).unwrap();
        run.assert_settled("wepp2.nodb");
        assert!(!run.at(NAME).exists());
    }
}

/// A backup by hard link, as editors make it: the copy keeps the old generation.
#[test]
fn a_hard_link_keeps_the_old_generation() {
    for kind in BOTH {
        let run = Run::new(kind);
        let old = fs::read_to_string(run.at(NAME)).unwrap();
        for link in ["wepp.bak", "old.nodb"] {
            fs::hard_link(run.at(NAME), run.at(link)).unwrap();
            assert_equal(&run.at(link), &run.on_disk(link));
        }
        eventually("all links are counted", || {
            fs::metadata(run.at(NAME)).unwrap().nlink() == 3
        });
        assert_equal(&run.at(NAME), &run.on_disk(NAME));
        fs::write(run.at(NAME), "{\"a\": 1}").unwrap();
        run.assert_settled(NAME);
        for link in ["wepp.bak", "old.nodb"] {
            assert_equal(&run.at(link), &run.on_disk(link));
            assert_eq!(fs::read_to_string(run.at(link)).unwrap(), old);
        }
    }
}

/// Promise 3: a link to a plain file makes it a controller only if it is a document.
#[test]
fn a_link_under_a_controllers_name_must_be_a_document() {
    for kind in BOTH {
        let run = Run::new(kind);
        fs::write(run.at("good"), "{\"a\": 1}").unwrap();
        fs::write(run.at("bad"), "{").unwrap();
        fs::hard_link(run.at("good"), run.at("good.nodb")).unwrap();
        run.assert_settled("good.nodb");
        let link = "os.link(os.path.join(os.path.dirname(path), 'bad'), path)";
        assert_eq!(run.python("bad.nodb", link), "EBADMSG");
        assert_eq!(run.python(NAME, link), "EEXIST");
        assert!(!run.on_disk("bad.nodb").exists());
    }
}

/// A run marked READONLY gets no new controller, not by a link of an old one either.
#[test]
fn a_link_under_a_controllers_name_heeds_readonly() {
    for kind in BOTH {
        let run = Run::new(kind);
        fs::write(run.at("plain"), "{\"a\": 1}").unwrap();
        fs::write(run.on_disk("READONLY"), "").unwrap();
        for source in ["plain", NAME] {
            let refused = fs::hard_link(run.at(source), run.at("new.nodb")).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{source}");
            assert!(!run.on_disk("new.nodb").exists());
        }
        fs::hard_link(run.at(NAME), run.at("copy")).unwrap();
    }
}

/// Promise 3: what an exchange of names brings must be a document; otherwise neither name moves.
#[test]
fn an_exchange_brings_a_document_or_nothing() {
    for kind in BOTH {
        let run = Run::new(kind);
        let old = fs::read_to_string(run.at(NAME)).unwrap();
        let exchange = |other: &str| {
            let (one, other) = (run.at(NAME), run.at(other));
            renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        };
        fs::write(run.at("bad"), "{").unwrap();
        assert_eq!(exchange("bad"), Err(rustix::io::Errno::BADMSG));
        assert_eq!(fs::read_to_string(run.at("bad")).unwrap(), "{");
        run.assert_settled(NAME);
        assert_eq!(fs::read_to_string(run.at(NAME)).unwrap(), old);

        fs::write(run.at("good"), "{\"a\": 1}").unwrap();
        exchange("good").unwrap();
        assert_eq!(fs::read_to_string(run.at(NAME)).unwrap(), "{\"a\": 1}");
        assert_eq!(fs::read_to_string(run.at("good")).unwrap(), old);
        run.assert_consistent(NAME);
        fs::write(run.at(NAME), "{\"a\": 2}").unwrap();
        assert_eq!(fs::read_to_string(run.at("good")).unwrap(), old);

        exchange("soils.nodb").unwrap();
        assert_eq!(
            fs::read_to_string(run.at("soils.nodb")).unwrap(),
            "{\"a\": 2}"
        );
        run.assert_consistent(NAME);
        run.assert_consistent("soils.nodb");
    }
}

/// PROTOCOL.md 5: attributes go to the file, and where the signature changes the cache follows.
#[test]
fn attributes_reach_the_file_and_the_cache_follows() {
    python_says(
        r#"
open(path).read()
os.chmod(path, 0o600)
os.setxattr(path, "user.note", b"x")
os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_001_123_456_789))
stat = os.stat(disk)
print(oct(stat.st_mode), os.getxattr(disk, "user.note"), stat.st_mtime_ns)
open(path).read()
with open(path, "r+") as file:
    os.fchmod(file.fileno(), 0o640)
print(oct(os.stat(disk).st_mode), os.listxattr(path))
"#,
        "0o100600 b'x' 1700000001123456789\n0o100640 ['user.note']",
    );
}

/// Promise 4: a daemon that dies leaves the old generation, and a lock that ends soon.
#[test]
fn a_crash_leaves_the_old_generation() {
    let mut run = Run::new(Kind::Redis);
    let old = fs::read(run.on_disk(NAME)).unwrap();
    let names = listing(run.source());
    // a process of its own: one that starts others closes descriptors in them, and so commits
    let mut writer = Program::spawn(run.mount.path());
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    for step in [
        json!({"op": "open", "slot": "a", "name": NAME, "flags": flags}),
        json!({"op": "write", "slot": "a", "text": "{\"a\": 1}"}),
    ] {
        assert_eq!(writer.call(step), Ok(None));
    }
    let ttl = run.redis().cmd(&["TTL", &run.lock_key(NAME)]);
    let ttl: i64 = redis::from_redis_value(ttl).unwrap();
    assert!((1..=60).contains(&ttl), "{ttl}");
    run.mount.crash();
    drop(writer);
    assert!(fs::read(run.on_disk(NAME)).unwrap() == old);
    assert_eq!(listing(run.source()), names);
}
