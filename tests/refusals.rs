//! Writers that are turned away: each with its errno, the old generation in place, somebody else's
//! lock untouched, and what was written recoverable (promises 3, 5, 6 and 11; DESIGN.md, "Errors a
//! program sees").

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::run::{BOTH, KNOWN_AS, Kind, RUNID, Run, STRANGER};
use nodbfs::nodb::lock::NEWS;
use serde_json::{Value, json};

const NAME: &str = "wepp.nodb";

/// Python that prints the errno of `$what`, a statement in which every error ends.
fn attempt(what: &str) -> String {
    format!(
        r#"
def write(text, mode="w"):
    with open(path, mode) as file:
        file.write(text)
def nonblocking():
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
def beside(text):
    with open(disk + ".t", "w") as file:
        file.write(text)
    os.replace(disk + ".t", disk)
def rename(text):
    with open(path + ".t", "w") as file:
        file.write(text)
    try:
        os.replace(path + ".t", path)
    finally:
        if os.path.exists(path + ".t"):
            os.unlink(path + ".t")
{what}
print("done")
"#
    )
}

/// `what` fails with `errno` and leaves everything as it was. Returns the reason that is told.
#[track_caller]
fn refused(run: &Run, what: &str, errno: &str) -> String {
    let before = fs::read(run.on_disk(NAME)).unwrap();
    assert_eq!(run.python(NAME, &attempt(what)), errno, "{what}");
    assert!(fs::read(run.on_disk(NAME)).unwrap() == before, "{what}");
    assert!(fs::read(run.at(NAME)).unwrap() == before, "{what}");
    run.attribute(NAME, "last_error").unwrap_or_default()
}

/// What was refused was kept, in one file or the other, and it is said where.
#[track_caller]
fn assert_kept(run: &Run, content: &str) {
    let kept = || {
        let rejected = run.rejected();
        rejected
            .into_iter()
            .find(|path| fs::read_to_string(path).is_ok_and(|text| text == content))
    };
    // the last close of a descriptor is answered before it is done
    common::run::eventually("the refused content is kept", || kept().is_some());
    let path = kept().expect("just seen").display().to_string();
    common::run::eventually("the log says where", || run.mount.log().contains(&path));
}

/// Promise 3: by every road, what is no document is refused, kept, and said to be kept.
#[test]
fn what_is_no_document_is_refused_and_kept() {
    for kind in BOTH {
        let run = Run::new(kind);
        for (i, bad) in [
            "{\"a\": ",
            "not json at all",
            "{\"a\": 1,}",
            "{} {}",
            "\u{feff}{}",
        ]
        .iter()
        .enumerate()
        {
            let text = format!("{bad}   {i}");
            refused(&run, &format!("write({})", json!(text)), "EBADMSG");
            assert_kept(&run, &text);
            let text = format!("{bad}   {i} renamed");
            refused(&run, &format!("rename({})", json!(text)), "EBADMSG");
            assert_kept(&run, &text);
        }
        let synced = "f = open(path, 'w'); f.write('half'); f.flush(); os.fsync(f.fileno())";
        let reason = refused(&run, synced, "EBADMSG");
        assert!(reason.contains("not a JSON document"), "{reason}");
        common::run::eventually("the reason says where", || {
            let reason = run.attribute(NAME, "last_error").unwrap();
            let dir = run.mount.state_dir().join("rejected");
            reason.contains(&dir.display().to_string())
        });
        // and Python's own dialect is good
        let good = "write('{\"a\": NaN, \"b\": -Infinity, \"a\": \"\\\\ud800\"}')";
        assert_eq!(run.python(NAME, &attempt(good)), "done");
        assert_eq!(run.attribute(NAME, "last_error"), None);
        run.assert_settled(NAME);
    }
}

/// A document beyond `--max-payload` is EFBIG, as it is written and as it is brought.
#[test]
fn what_is_too_large_is_refused() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--max-payload", "64k"]);
        let large = "json.dumps({'a': 'x' * 70_000})";
        refused(&run, &format!("write({large})"), "EFBIG");
        let reason = refused(&run, &format!("rename({large})"), "EFBIG");
        assert!(reason.contains("--max-payload"), "{reason}");
        refused(&run, "os.truncate(path, 1 << 40)", "EFBIG");
        let fits = "write(json.dumps({'a': 'x' * 60_000}))";
        assert_eq!(run.python(NAME, &attempt(fits)), "done");
        run.await_unlocked(NAME);
        run.assert_settled(NAME);
    }
}

/// PROTOCOL.md 1: `READONLY` holds for its own directory only, and from the moment it is there.
#[test]
fn a_run_marked_readonly_takes_no_writes() {
    for kind in BOTH {
        let run = Run::new(kind);
        fs::write(run.at("READONLY"), "").unwrap();
        for what in [
            "write('{}')",
            "write('{}', 'r+')",
            "rename('{}')",
            "os.unlink(path)",
            "os.rename(path, path + '.bak')",
            "os.truncate(path, 0)",
        ] {
            let reason = refused(&run, what, "EROFS");
            assert!(reason.contains("READONLY"), "{what}: {reason}");
        }
        assert_eq!(run.python("new.nodb", &attempt("write('{}')")), "EROFS");
        // plain files are not its business, and neither is a child run
        fs::write(run.at("plain.txt"), "x").unwrap();
        let child = "_pups/omni/scenarios/uniform_low/wepp.nodb";
        assert_eq!(run.python(child, &attempt("write('{}')")), "done");
        fs::remove_file(run.at("READONLY")).unwrap();
        assert_eq!(run.python(NAME, &attempt("write('{}')")), "done");
    }
}

/// The mount's own `--read-only`.
#[test]
fn a_read_only_mount_takes_no_writes() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--read-only"]);
        for what in [
            "write('{}')",
            "os.unlink(path)",
            "os.rename(path, path + '.bak')",
        ] {
            refused(&run, what, "EROFS");
        }
    }
}

/// Promise 5: a lock of somebody else's is waited for, and then respected; its value stays.
#[test]
fn a_lock_of_somebody_elses_is_respected() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
    for value in [
        STRANGER,
        "a bare token",
        "[1]",
        "\"text\"",
        "{\"owner\": 5}",
    ] {
        run.lock_away(NAME, value);
        for what in [
            "write('{}')",
            "rename('{}')",
            "os.unlink(path)",
            "os.truncate(path, 1)",
        ] {
            let reason = refused(&run, what, "EBUSY");
            assert!(reason.contains(&run.lock_key(NAME)), "{reason}");
        }
        refused(&run, "nonblocking()", "EAGAIN");
        assert_eq!(run.lock(NAME).as_deref(), Some(value));
    }
    assert!(
        run.mount.log().contains("elsewhere:17"),
        "the holder is named"
    );
    // nobody else's business
    assert_eq!(run.python("soils.nodb", &attempt("write('{}')")), "done");
    run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
    assert_eq!(run.python(NAME, &attempt("write('{}')")), "done");
    run.assert_settled(NAME);
}

/// A writer whose file is closed by its own `execve` is refused, and goes on: the kernel says nothing of a process in the
/// middle of that, so nobody may wait to learn who it is.
#[test]
fn a_file_closed_by_execve_is_refused_and_hangs_nobody() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
    run.lock_away("fresh.nodb", STRANGER);
    let code = r#"
writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
os.write(writer, b"{}")
os.execvp("echo", ["echo", "became another program"])
"#;
    let path = run.at("fresh.nodb");
    let disk = run.on_disk("fresh.nodb");
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn({
        let disk = disk.clone();
        // a program that hangs there cannot be killed: the test must not wait for it
        move || drop(done.send(common::run::python(code, &[&path, &disk])))
    });
    let said = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(said.as_deref(), Ok("became another program"));
    assert!(!disk.exists());
    assert_eq!(run.lock("fresh.nodb").as_deref(), Some(STRANGER));
}

/// Promise 5, on both stores: an open writer keeps the others out, and lets them in as it closes.
#[test]
fn an_open_writer_keeps_others_out() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "300ms"]);
        let code = r#"
import subprocess
def other(mode):
    code = "import errno, sys\ntry:\n with open(sys.argv[1], sys.argv[2]) as f: f.write(sys.argv[3])\n print('done')\nexcept OSError as e: print(errno.errorcode[e.errno])"
    return subprocess.run([sys.executable, "-c", code, path, mode, '{"by": "other"}'], capture_output=True, text=True, close_fds=True).stdout.strip()
writer = open(path, "r+")
print(other("w"), other("r+"))
writer.close()
# nobody waits for the end of a writer that has written nothing
for _ in range(200):
    said = other("w")
    if said != "EBUSY":
        break
print(said)
"#;
        assert_eq!(run.python(NAME, code), "EBUSY EBUSY\ndone");
        run.assert_settled(NAME);
    }
}

/// A waiting writer gets the lock as soon as it is free.
#[test]
fn a_waiting_writer_gets_its_turn() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "60s"]);
    run.lock_away(NAME, STRANGER);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run.python(NAME, &attempt("write('{\"a\": 1}')")));
        // plain files and readers have nothing to wait for meanwhile
        fs::write(run.at("plain.txt"), "x").unwrap();
        fs::read(run.at(NAME)).unwrap();
        assert_eq!(run.python(NAME, &attempt("nonblocking()")), "EAGAIN");
        run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
        assert_eq!(waiting.join().unwrap(), "done");
    });
    run.assert_settled(NAME);
}

/// A signal ends the wait by every road, and a caller that is killed leaves no lock behind.
#[test]
fn a_signal_ends_the_wait() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "1h"]);
        let holder = File::options().write(true).open(run.at(NAME)).unwrap();
        let held = run.holder(NAME).expect("a holder");
        // Python repeats an interrupted call; the library's functions do not
        let interrupted = r#"
import ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)
name, other = path.encode(), path.encode() + b".t"
open(path + ".t", "w").write("{}")
signal.signal(signal.SIGALRM, lambda *_: None)
for call in (lambda: libc.open(name, os.O_RDWR), lambda: libc.unlink(name), lambda: libc.truncate(name, 1),
             lambda: libc.rename(other, name), lambda: libc.rename(name, other)):
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    print(call(), errno.errorcode.get(ctypes.get_errno()))
signal.setitimer(signal.ITIMER_REAL, 0)
os.unlink(path + ".t")
"#;
        let said = run.python(NAME, interrupted);
        assert_eq!(said, ["-1 EINTR"; 5].join("\n"));
        let reason = run.attribute(NAME, "last_error").unwrap();
        assert!(
            reason.contains(&held) && run.mount.log().contains(&reason),
            "{reason}"
        );
        let mut killed = Command::new("python3")
            .args([
                "-c",
                "import sys; print('now', flush=True); open(sys.argv[1], 'r+')",
            ])
            .arg(run.at(NAME))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let said = killed.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(run.holder(NAME), Some(held));
        drop(holder);
        run.await_unlocked(NAME);
        assert_eq!(run.python(NAME, &attempt("write('{\"a\": 1}')")), "done");
        run.assert_settled(NAME);
    }
}

/// PROTOCOL.md 2: a run that is being replaced takes no new lock.
#[test]
fn a_run_being_replaced_takes_no_writes() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
    // printf 'run\0mercuric-subcontract' | sha256sum
    let fence =
        "nodb:run-replacement:f1ce333b4aa72b16d852d3075d99844c4c9163c778fef89583bbf4a7b9bfc00d";
    run.redis().cmd(&["SET", fence, "1"]);
    for what in ["write('{}')", "rename('{}')", "os.unlink(path)"] {
        let reason = refused(&run, what, "EBUSY");
        assert!(reason.contains("being replaced"), "{reason}");
    }
    assert_eq!(run.lock(NAME), None);
    run.redis().cmd(&["DEL", fence]);
    assert_eq!(run.python(NAME, &attempt("write('{}')")), "done");
}

/// Promise 6: who opened one generation cannot overwrite another, and loses nothing.
#[test]
fn a_stale_base_is_not_overwritten() {
    for kind in BOTH {
        let run = Run::new(kind);
        for replace in [
            "beside('{\"by\": \"other\"}')",
            "open(disk, 'w').write('{\"by\": \"other\"}')",
        ] {
            let code =
                format!("f = open(path, 'w'); {replace}; f.write('{{\"by\": \"me\"}}'); f.close()");
            assert_eq!(run.python(NAME, &attempt(&code)), "ESTALE", "{replace}");
            for path in [run.on_disk(NAME), run.at(NAME)] {
                assert_eq!(fs::read_to_string(path).unwrap(), "{\"by\": \"other\"}");
            }
            assert_kept(&run, "{\"by\": \"me\"}");
            run.await_unlocked(NAME);
            run.assert_settled(NAME);
        }
        // gone altogether: it does not come back
        let code = "f = open(path, 'w'); os.unlink(disk); f.write('{}'); f.close()";
        assert_eq!(run.python(NAME, &attempt(code)), "ESTALE");
        assert!(!run.on_disk(NAME).exists() && !run.at(NAME).exists());
    }
}

/// Promise 5: a lock that was taken away during the writing ends the commit, and stays with whoever
/// has it now.
#[test]
fn a_stolen_lock_ends_the_commit() {
    let run = Run::new(Kind::Redis);
    let (socket, key) = (run.redis().socket(), run.lock_key(NAME));
    // until a moment later what Redis said of the lock counts
    let steal = format!(
        "os.system({:?}); import time; time.sleep({})",
        format!(
            "redis-cli -s {} SET {key} stolen > /dev/null",
            socket.display()
        ),
        (2 * NEWS).as_secs_f64()
    );
    let code = format!("f = open(path, 'w'); {steal}; f.write('{{\"by\": \"me\"}}'); f.close()");
    let reason = refused(&run, &code, "ESTALE");
    assert!(reason.contains("lock"), "{reason}");
    assert_kept(&run, "{\"by\": \"me\"}");
    assert_eq!(run.lock(NAME).as_deref(), Some("stolen"));
}

/// PROTOCOL.md 3: identity fields that are broken leave the path to decide, and the log says so.
#[test]
fn a_broken_identity_falls_back_to_the_path() {
    for (field, told) in [
        ("\"_parent_wd\": 5", "_parent_wd"),
        ("\"_parent_wd\": \"relative/run\"", "_parent_wd"),
        ("\"_run_group\": \"batch\"", "_run_group"),
        ("\"_run_group\": {\"a\": 1}", "_run_group"),
    ] {
        let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
        fs::write(run.on_disk(NAME), format!("{{\"py/state\": {{{field}}}}}")).unwrap();
        assert_eq!(
            run.attribute(NAME, "runid").as_deref(),
            Some(RUNID),
            "{field}"
        );
        run.lock_away(NAME, STRANGER);
        refused(&run, "write('{}')", "EBUSY");
        assert!(
            run.mount.log().contains(told),
            "{field}: {}",
            run.mount.log()
        );
    }
}

/// PROTOCOL.md 3: the document decides whose lock it is, and the new one's identity counts as well.
#[test]
fn the_documents_identity_names_the_lock() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
    let child = "_pups/omni/scenarios/uniform_low/wepp.nodb";
    assert_eq!(run.attribute(child, "relpath").as_deref(), Some(child));
    run.lock_away(child, STRANGER);
    assert_eq!(run.python(child, &attempt("write('{}')")), "EBUSY");
    // the lock of the old document is held, but not the one of the new
    let batch = format!(
        "{{\"_run_group\": \"batch\", \"_group_name\": \"spring\", \"wd\": \"{KNOWN_AS}\"}}"
    );
    let theirs = format!("nodb-lock:batch;;spring;;{RUNID}:{NAME}");
    run.redis().cmd(&["SET", &theirs, STRANGER]);
    refused(&run, &format!("write({batch:?})"), "EBUSY");
    run.await_unlocked(NAME);
    run.redis().cmd(&["DEL", &theirs]);
    assert_eq!(
        run.python(NAME, &attempt(&format!("write({batch:?})"))),
        "done"
    );
    assert_eq!(run.redis().text(&["GET", &theirs]), None);
    run.assert_settled(NAME);
}

/// A source that disappears gives clear errnos, and the daemon lives on.
#[test]
fn a_run_that_disappears_is_gone() {
    for kind in BOTH {
        let run = Run::new(kind);
        let child = "_pups/omni/scenarios/uniform_low";
        let path = format!("{child}/wepp.nodb");
        fs::read(run.at(&path)).unwrap();
        let code = r#"
import shutil
reader, writer = open(path), open(path, "w")
shutil.rmtree(os.path.dirname(disk))
print(json.loads(reader.read()) is not None)
writer.write("{}")
def anew():
    with open(path, "w") as file:
        file.write("{}")
for what in (writer.close, lambda: open(path), anew, lambda: os.stat(path)):
    try:
        what()
    except OSError as error:
        print(errno.errorcode[error.errno])
"#;
        let said = run.python(&path, code);
        let (first, errnos) = said.split_once('\n').unwrap();
        assert_eq!(first, "True");
        assert_eq!(errnos.lines().count(), 4, "{said}");
        assert!(
            errnos
                .lines()
                .all(|errno| errno == "ENOENT" || errno == "ESTALE"),
            "{said}"
        );
        // a new document that names no parent is under the run's own lock
        run.await_unlocked(NAME);
        run.assert_consistent(NAME);
        assert_eq!(run.python(NAME, &attempt("write('{}')")), "done");
    }
}

/// Promise 11: the reason stays with the controller until a commit succeeds.
#[test]
fn the_last_error_is_told_until_a_commit_succeeds() {
    for kind in BOTH {
        let run = Run::new(kind);
        assert_eq!(run.attribute(NAME, "last_error"), None);
        assert!(refused(&run, "write('{')", "EBADMSG").contains("JSON"));
        assert_eq!(run.python(NAME, &attempt("write('{}')")), "done");
        assert_eq!(run.attribute(NAME, "last_error"), None);
        let document: Value = serde_json::from_slice(&fs::read(run.at(NAME)).unwrap()).unwrap();
        assert_eq!(document, json!({}));
    }
}
