//! Controllers: `flock` and `fcntl` take the distributed lock for the caller's session.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::mount::Mount;
use crate::common::run::{BOTH, Kind, Run, STRANGER, eventually};
use crate::locker::Locker;

const TAKES: [(&str, &str, &str); 3] = [
    (
        "flock(f, LOCK_EX | LOCK_NB)",
        "flock(f, LOCK_EX)",
        "flock(f, LOCK_UN)",
    ),
    (
        "flock(f, LOCK_SH | LOCK_NB)",
        "flock(f, LOCK_SH)",
        "flock(f, LOCK_UN)",
    ),
    (
        "lock(f, 'read', 7, 1)",
        "lock(f, 'read', 3, 2, wait=True)",
        "unlock(f)",
    ),
];

fn run(kind: Kind) -> Run {
    Run::with_args(kind, &["--lock-wait", "0s"])
}

/// A document that is another one each time.
fn edit(path: &Path) -> String {
    format!(
        "sed 's/\"py/ \"py/' {0:?} > {0:?}.new && mv {0:?}.new {0:?}",
        path
    )
}

fn is_locked(run: &Run) -> bool {
    match run.kind() {
        Kind::Redis => run.lock("wepp.nodb").is_some(),
        Kind::Embedded => run.holder("wepp.nodb").is_some(),
    }
}

fn await_unlocked(run: &Run) {
    run.await_unlocked("wepp.nodb");
}

#[test]
fn a_command_under_flock_edits_while_everybody_else_is_kept_out() {
    for kind in BOTH {
        let run = run(kind);
        let path = run.at("wepp.nodb");
        let before = fs::read_to_string(&path).unwrap();
        let (mut one, mut two) = (Locker::new(), Locker::new());
        // as the manual of flock has it; what is locked is the name, so the second edit is under it too
        let twice = format!("{0}; {0}", edit(&path));
        let script = format!(
            "flock {path:?} -c 'read go < {0:?}/go; {1}'",
            run.source(),
            twice.replace('\'', "'\\''")
        );
        two.ok(&format!("os.mkfifo('{}/go')", run.source().display()));
        one.send(&format!("shell({script:?})"));
        eventually("it is locked", || is_locked(&run));
        assert_eq!(two.call(&format!("write({path:?}, '{{}}')")), "EBUSY");
        assert_eq!(two.call(&format!("os.unlink({path:?})")), "EBUSY");
        assert_eq!(
            two.call(&format!("shell('flock -n {} true')", path.display())),
            json!([1, ""])
        );
        assert_eq!(two.call(&format!("read({path:?})")), before.as_str());
        two.ok(&format!("write('{}/go', 'go\\n')", run.source().display()));
        assert_eq!(one.answer(), json!([0, ""]), "{}", run.mount.log());
        fs::remove_file(run.source().join("go")).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            before.replacen("\"py", "  \"py", 1)
        );
        await_unlocked(&run);
        run.assert_settled("wepp.nodb");
    }
}

#[test]
fn it_is_the_lock_that_nodb_processes_know() {
    let run = run(Kind::Redis);
    let mut one = Locker::new();
    for (take, _, give_back) in TAKES {
        run.lock_away("wepp.nodb", STRANGER);
        one.open_with("f", &run.at("soils.nodb"), "O_RDONLY");
        one.ok(take);
        assert!(run.lock("soils.nodb").is_some());
        assert_eq!(run.mirror("soils.nodb").as_deref(), Some("true"));
        one.ok(give_back);
        assert_eq!(run.lock("soils.nodb"), None);
        assert_eq!(run.mirror("soils.nodb").as_deref(), Some("false"));
        one.ok("close(f)");
        one.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
        assert_eq!(one.call(take), "EAGAIN");
        assert_eq!(one.call("test(f, 'read')"), json!(["write", 0, 0, 0]));
        one.ok("close(f)");
    }
    assert_eq!(run.lock("wepp.nodb").as_deref(), Some(STRANGER));
}

#[test]
fn everybody_excludes_everybody_else_on_every_mount() {
    for kind in BOTH {
        let run = run(kind);
        let other = (kind == Kind::Redis).then(|| {
            Mount::builder(run.source())
                .redis(&run.redis().unix_url())
                .args(["--key-root", crate::common::run::KNOWN_AS])
                .start()
        });
        let path = run.at("wepp.nodb");
        let elsewhere = other
            .as_ref()
            .map_or(path.clone(), |mount| mount.path().join("wepp.nodb"));
        let (mut one, mut two) = (Locker::new(), Locker::new());
        for (take, wait, give_back) in TAKES {
            for end in [give_back, "close(f)"] {
                one.open_with("f", &path, "O_RDONLY");
                two.open_with("f", &elsewhere, "O_RDONLY");
                one.ok(take);
                // again is no more than once
                one.ok(take);
                assert_eq!(two.call(take), "EAGAIN", "{take}");
                assert_eq!(two.call("alarmed(lambda: flock(f, LOCK_EX))"), "EINTR");
                two.send(wait);
                two.await_waiting();
                one.ok(end);
                assert_eq!(two.answer(), Value::Null, "{wait}");
                one.ok("os.closerange(3, 10)");
                two.ok("os.closerange(3, 10)");
                await_unlocked(&run);
            }
        }
    }
}

#[test]
fn a_writer_that_locks_its_own_descriptor_has_one_lock() {
    for kind in BOTH {
        let run = run(kind);
        let path = run.at("wepp.nodb");
        let (mut one, mut two) = (Locker::new(), Locker::new());
        let document = |n: usize| format!("{{\"py/object\": \"wepp\", \"_n\": {n}}}");
        let steps: [(&str, &[&str]); 3] = [
            ("flock(f, LOCK_EX)", &["flock(f, LOCK_UN)", "close(f)"]),
            ("flock(f, LOCK_EX)", &["close(f)"]),
            (
                "lock(f) or flock(f, LOCK_EX) or unlock(f)",
                &["flock(f, LOCK_UN)", "close(f)"],
            ),
        ];
        for (n, (take, ends)) in steps.into_iter().enumerate() {
            let text = document(n);
            one.open_with("f", &path, "O_RDWR | os.O_TRUNC");
            one.ok(take);
            assert_eq!(
                one.call(&format!("os.pwrite(f, {text:?}.encode(), 0)")),
                text.len()
            );
            for end in ends {
                // whatever it has given back: what it has written is under the lock until it is committed
                assert_eq!(two.call(&format!("write({path:?}, '{{}}')")), "EBUSY");
                one.ok(end);
            }
            assert_eq!(two.call(&format!("read({path:?})")), text.as_str());
            await_unlocked(&run);
            run.assert_settled("wepp.nodb");
        }
        // what was committed under a lock that is still held leaves it held
        one.open_with("f", &path, "O_RDWR | os.O_TRUNC");
        one.ok("flock(f, LOCK_EX)");
        let text = document(9);
        assert_eq!(
            one.call(&format!("os.pwrite(f, {text:?}.encode(), 0)")),
            text.len()
        );
        one.ok("os.fsync(f)");
        assert_eq!(two.call(&format!("read({path:?})")), text.as_str());
        assert_eq!(two.call(&format!("write({path:?}, '{{}}')")), "EBUSY");
        one.ok("close(f)");
        await_unlocked(&run);
    }
}

/// `exec 9<>x.nodb; flock 9; …`: the shell's descriptor, locked by a child, worked under by others.
#[test]
fn a_shell_locks_a_descriptor_of_its_own_for_its_commands() {
    for kind in BOTH {
        let run = run(kind);
        let path = run.at("wepp.nodb");
        let before = fs::read_to_string(&path).unwrap();
        let mut one = Locker::new();
        for redirection in ["9<", "9<>", "9>>"] {
            let now = fs::read_to_string(&path).unwrap();
            let script = format!(
                "exec {redirection}{path:?}; flock 9 && {} && flock -u 9",
                edit(&path)
            );
            assert_eq!(
                one.call(&format!("shell({script:?})")),
                json!([0, ""]),
                "{redirection}"
            );
            assert_ne!(fs::read_to_string(&path).unwrap(), now);
            await_unlocked(&run);
        }
        assert_ne!(fs::read_to_string(&path).unwrap(), before);
        run.assert_settled("wepp.nodb");
    }
}

#[test]
fn a_lock_ends_with_who_held_it() {
    for kind in BOTH {
        let run = run(kind);
        for (take, wait, _) in TAKES {
            let (mut one, mut two) = (Locker::new(), Locker::new());
            one.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
            two.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
            one.ok(take);
            two.send(wait);
            two.await_waiting();
            one.kill();
            assert_eq!(two.answer(), Value::Null);
            drop(two);
            await_unlocked(&run);
        }
    }
}

#[test]
fn who_is_in_the_way_is_named_and_nobody_stands_in_his_own() {
    for kind in BOTH {
        let run = run(kind);
        let (mut one, mut two) = (Locker::new(), Locker::new());
        one.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
        two.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
        assert_eq!(two.call("test(f)"), json!(["none"]));
        one.ok("lock(f, 'read', 10, 10)");
        assert_eq!(two.call("test(f)"), json!(["write", 0, 0, one.pid()]));
        assert_eq!(one.call("test(f)"), json!(["none"]));
        // one part more, and all of it until the last part is given back
        one.ok("lock(f, 'read', 50, 1)");
        one.ok("unlock(f, 10, 10)");
        assert_eq!(two.call("lock(f, 'read')"), "EAGAIN");
        one.ok("unlock(f, 50, 1)");
        two.ok("lock(f, 'read')");
        // by the other means it is the same process's
        two.ok("flock(f, LOCK_EX)");
        two.ok("unlock(f)");
        assert_eq!(one.call("flock(f, LOCK_SH | LOCK_NB)"), "EAGAIN");
        two.ok("flock(f, LOCK_UN)");
        one.ok("flock(f, LOCK_SH | LOCK_NB)");
    }
}

#[test]
fn a_controller_that_is_not_there_yet_is_locked_by_its_name() {
    for kind in BOTH {
        let run = run(kind);
        let path = run.at("landuse2.nodb");
        let mut one = Locker::new();
        let script = format!("flock {path:?} -c 'cp {:?} {path:?}'", run.at("wepp.nodb"));
        assert_eq!(
            one.call(&format!("shell({script:?})")),
            json!([0, ""]),
            "{}",
            run.mount.log()
        );
        assert_eq!(
            fs::read(&path).unwrap(),
            fs::read(run.at("wepp.nodb")).unwrap()
        );
        run.await_unlocked("landuse2.nodb");
    }
}

#[test]
fn a_flock_that_was_taken_away_is_no_lock_any_more() {
    let run = run(Kind::Redis);
    let path = run.at("wepp.nodb");
    let before = fs::read_to_string(&path).unwrap();
    let mut one = Locker::new();
    one.open_with("f", &path, "O_RDONLY");
    one.ok("flock(f, LOCK_EX)");
    run.lock_away("wepp.nodb", STRANGER);
    assert_eq!(one.call(&format!("write({path:?}, '{{}}')")), "ESTALE");
    assert_eq!(one.call("flock(f, LOCK_EX | LOCK_NB)"), "EAGAIN");
    one.ok("close(f)");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert_eq!(run.lock("wepp.nodb").as_deref(), Some(STRANGER));
}

#[test]
fn without_the_store_nothing_is_locked() {
    let mut run = run(Kind::Redis);
    let mut one = Locker::new();
    one.open_with("f", &run.at("wepp.nodb"), "O_RDONLY");
    run.redis_mut().kill();
    assert_eq!(one.call("flock(f, LOCK_EX)"), "ENOLCK");
    assert_eq!(one.call("flock(f, LOCK_EX | LOCK_NB)"), "ENOLCK");
    assert_eq!(one.call("test(f)"), "ENOLCK");
    one.open("g", &run.at("wepp.log"));
    one.ok("flock(g, LOCK_EX) or lock(g)");
}

#[test]
fn a_mount_that_ends_keeps_nobody_waiting_and_no_lock() {
    let mut run = run(Kind::Redis);
    let mut pairs = Vec::new();
    for file in ["wepp.nodb", "wepp.log"] {
        let (mut holder, mut waiting) = (Locker::new(), Locker::new());
        for locker in [&mut holder, &mut waiting] {
            locker.open_with("f", &run.at(file), "O_RDONLY");
        }
        holder.ok("flock(f, LOCK_EX)");
        waiting.send("flock(f, LOCK_EX)");
        waiting.await_waiting();
        pairs.push((holder, waiting));
    }
    assert!(run.mount.stop().success(), "{}", run.mount.log());
    assert_eq!(run.lock("wepp.nodb"), None);
    for (_holder, waiting) in &mut pairs {
        assert_ne!(waiting.answer(), Value::Null);
    }
}
