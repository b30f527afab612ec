//! A lock that was made through its file follows its maker's session: whose processes write under it,
//! and with whose end it goes (promise 5).

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::run::{BOTH, Kind, Run, eventually};
use common::shell::Shell;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const NAME: &str = "wepp.nodb";
const LOCK: &str = "wepp.nodb.lock";
const BUSY: &str = "Device or resource busy";
const STALE: &str = "Stale file handle";

fn impatient() -> [Run; 2] {
    BOTH.map(|kind| Run::with_args(kind, &["--lock-wait", "0s"]))
}

fn document(n: usize) -> String {
    format!("{{\"n\": {n}}}")
}

/// A line of shell that overwrites in place and says what came of it.
fn save(n: usize) -> String {
    format!("printf '{}' | cp /dev/stdin wepp.nodb", document(n))
}

/// A line of shell that replaces by a rename.
fn replace(n: usize) -> String {
    format!("printf '{}' >new && mv new wepp.nodb", document(n))
}

fn on_disk(run: &Run) -> String {
    fs::read_to_string(run.on_disk(NAME)).unwrap()
}

#[test]
fn the_session_and_its_children_write_and_nobody_else_does() {
    for run in impatient() {
        let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
        one.ok("touch wepp.nodb.lock");
        let token = || {
            serde_json::from_str::<Value>(&run.lock(NAME)?)
                .ok()?
                .get("token")
                .cloned()
        };
        let taken = (run.kind() == Kind::Redis).then(token);
        let lines = [
            save(0),
            replace(1),
            format!("({})", save(2)),
            format!("setsid -w bash <<'END'\n{}\nEND", save(3)),
        ];
        for (n, line) in lines.iter().enumerate() {
            one.ok(line);
            assert_eq!(on_disk(&run), document(n));
            two.fails(&save(9), BUSY);
            two.fails(&replace(9), BUSY);
            two.fails("rm wepp.nodb", BUSY);
        }
        // it is the same lock all the time, and it stays
        if let Some(taken) = taken {
            assert!(taken.is_some() && token() == taken);
            assert_eq!(run.mirror(NAME).as_deref(), Some("true"));
        }
        assert!(run.at(LOCK).exists());
        assert_eq!(on_disk(&run), document(3));
        one.ok("rm wepp.nodb.lock");
        two.ok(&save(4));
        run.assert_settled(NAME);
    }
}

/// Two processes of one session that ask for the lock have it one after the other.
#[test]
fn processes_of_one_session_exclude_each_other_too() {
    for run in impatient() {
        let mut shell = Shell::new(run.mount.path());
        shell.ok("coproc maker { bash -c ': >wepp.nodb.lock; echo; read -r; rm wepp.nodb.lock'; }");
        shell.ok("read -r -u ${maker[0]}");
        shell.fails("sh -c ': >wepp.nodb.lock'", BUSY);
        shell.fails("sh -c 'set -C; : >wepp.nodb.lock'", "File exists");
        // writing it does nevertheless, as all of the session do
        shell.ok(&save(1));
        shell.ok("echo >&${maker[1]}; wait $maker_PID");
        assert!(!run.at(LOCK).exists());
        // the maker is soon gone, and the lock the session's
        shell.ok("sh -c ': >wepp.nodb.lock'");
        shell.ok("echo '{\"label\": \"x\"}' >wepp.nodb.lock");
        shell.ok("rm wepp.nodb.lock");
    }
}

/// A process that nobody waits for; killed on drop.
struct Orphan(Pid);

impl Drop for Orphan {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// The lock is let go when the last process of the session has ended, and no sooner.
#[test]
fn a_lock_ends_with_its_session() {
    for run in impatient() {
        let mut one = Shell::new(run.mount.path());
        one.ok("touch wepp.nodb.lock");
        drop(one);
        eventually("it goes with the session", || !run.at(LOCK).exists());

        let mut one = Shell::new(run.mount.path());
        one.ok("touch wepp.nodb.lock");
        // in a process group of its own, which the end of the shell leaves alone
        let child = one.ok("set -m; sleep 1000 >/dev/null & echo $!");
        let child = child.lines().last().unwrap().parse().unwrap();
        let child = Orphan(Pid::from_raw(child).unwrap());
        drop(one);
        let mut two = Shell::new(run.mount.path());
        two.fails(&save(9), BUSY);
        assert!(run.at(LOCK).exists());
        drop(child);
        eventually("it goes with the last process", || !run.at(LOCK).exists());
        two.ok(&save(1));
        run.assert_settled(NAME);
    }
}

/// In a container that is entered from its host all sessions look alike to the daemon: their number is 0.
#[test]
fn sessions_whose_leader_is_out_of_sight_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run/wepp.nodb"), document(0)).unwrap();
    let mut one = Shell::in_new_namespace(dir.path());
    one.ok("grep -P '^NSsid:\t0$' /proc/self/status");
    let nodbfs = env!("CARGO_BIN_EXE_nodbfs");
    one.ok(&format!(
        "{nodbfs} mount --state-dir $PWD/state --lock-wait 0s run run && cd run"
    ));
    let enter = |of| {
        let mut shell = Shell::entering(of, dir.path());
        shell.ok("cd run && grep -P '^NSsid:\t0$' /proc/self/status");
        shell
    };
    let (mut two, mut three) = (enter(&one), enter(&one));
    for (lock, unlock) in [
        ("touch wepp.nodb.lock", "rm wepp.nodb.lock"),
        ("exec 3<wepp.nodb && flock 3", "flock -u 3 && exec 3<&-"),
    ] {
        two.ok(lock);
        two.ok(&save(1));
        two.ok(&format!("setsid -w bash <<'END'\n{}\nEND", save(2)));
        for other in [&mut one, &mut three] {
            other.fails(&save(9), BUSY);
            other.fails(": >wepp.nodb.lock", BUSY);
        }
        two.ok(unlock);
        one.ok(&save(3));
        three.ok(&save(4));
    }
    // it goes with the session, and the first one's stays
    two.ok("touch wepp.nodb.lock");
    drop(two);
    eventually("it goes", || three.run("touch wepp.nodb.lock").status == 0);
    three.ok("rm wepp.nodb.lock");
    one.ok("touch wepp.nodb.lock");
    three.fails(&save(9), BUSY);
    one.ok(&save(5));
}

/// Nobody would renew it after that.
#[test]
fn a_lock_ends_with_the_mount() {
    let mut run = Run::new(Kind::Redis);
    let mut one = Shell::new(run.mount.path());
    one.ok("touch wepp.nodb.lock && cd /");
    assert!(run.lock(NAME).is_some());
    assert!(run.mount.stop().success());
    assert_eq!(run.lock(NAME), None);
    assert_eq!(run.mirror(NAME).as_deref(), Some("false"));
}

#[test]
fn a_lock_ends_when_its_maker_has_said_so() {
    for run in impatient() {
        let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
        one.ok("echo '{\"ttl\": 1000, \"label\": \"nightly\"}' >wepp.nodb.lock");
        two.fails(&save(9), BUSY);
        let said: Value = serde_json::from_str(&two.ok("cat wepp.nodb.lock")).unwrap();
        let ends = said["ends_at"].as_u64().unwrap() - said["acquired_at"].as_u64().unwrap();
        assert!((1000..2000).contains(&ends), "{said}");
        one.ok("echo '{\"ttl\": 0.05}' >wepp.nodb.lock");
        eventually("it is let go", || !run.at(LOCK).exists());
        two.ok(&save(1));
        // given back is not lost
        one.ok(&save(2));
        run.assert_settled(NAME);
    }
}

/// For longer than a lease lasts, and than a writer may hold one.
#[test]
fn a_lock_is_renewed_while_its_session_lives() {
    let args = ["--lock-wait", "0s", "--lease-ttl", "6s", "--max-hold", "1s"];
    let run = Run::with_args(Kind::Redis, &args);
    let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
    one.ok("touch wepp.nodb.lock");
    let mut expiries = BTreeSet::new();
    eventually("it is renewed again and again", || {
        let value: Value = serde_json::from_str(&run.lock(NAME).unwrap()).unwrap();
        expiries.insert(value["expires_at"].as_u64().unwrap());
        expiries.len() > 3
    });
    two.fails(&save(9), BUSY);
    one.ok(&save(1));
}

/// Promise 6 for a session: it has read something under a lock that is not its own any more.
#[test]
fn a_session_whose_lock_was_lost_is_told() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "0s"]);
    let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
    for again in [
        "rm -f wepp.nodb.lock",
        "test ! -e wepp.nodb.lock",
        "touch wepp.nodb.lock",
    ] {
        one.ok("touch wepp.nodb.lock");
        let before = on_disk(&run);
        run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
        for line in [save(1), replace(2), save(3), "rm wepp.nodb".to_owned()] {
            one.fails(&line, STALE);
            assert_eq!(on_disk(&run), before, "{line}");
        }
        let why = run.attribute(NAME, "last_error").unwrap();
        assert!(why.contains("lock was lost"), "{why}");
        two.ok(&save(4));
        one.fails(&save(4), STALE);
        // it has seen now what has become of it
        one.ok(again);
        one.ok(&save(5));
        one.ok("rm -f wepp.nodb.lock");
        run.assert_settled(NAME);
    }
}

/// And if it is lost in the middle of a write, that write is not published.
#[test]
fn a_writer_whose_session_loses_the_lock_publishes_nothing() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "0s"]);
    let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
    let before = on_disk(&run);
    for lose in ["rm wepp.nodb.lock", "true"] {
        one.ok("touch wepp.nodb.lock; exec 3<>wepp.nodb");
        run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
        one.run(lose);
        one.fails(
            "python3 -c 'import os; os.ftruncate(3, 0); os.write(3, b\"{}\"); os.fsync(3)'",
            STALE,
        );
        one.run("exec 3>&-");
        assert_eq!(on_disk(&run), before);
        one.ok("rm -f wepp.nodb.lock");
    }
    two.ok(&save(2));
    run.assert_settled(NAME);
}

/// Promise 9: without Redis nobody learns who holds a lock, and nobody gets one.
#[test]
fn without_redis_no_lock_is_taken_or_shown() {
    let mut run = Run::with_args(Kind::Redis, &["--lock-wait", "0s"]);
    let mut one = Shell::new(run.mount.path());
    one.ok("touch soils.nodb.lock");
    run.redis_mut().kill();
    one.fails("touch wepp.nodb.lock", "No locks available");
    eventually("nothing is remembered", || {
        !one.run("ls soils.nodb.lock").text.starts_with("soils")
    });
    one.fails("ls soils.nodb.lock", "No locks available");
    one.ok("ls && cat soils.nodb >/dev/null");
    run.redis_mut().restart();
    eventually("it heals", || one.run("touch wepp.nodb.lock").status == 0);
    assert!(run.lock(NAME).is_some());
}
