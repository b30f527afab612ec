//! `nodbfs locks`, `lock` and `unlock`, on a mount, below it and without it.

mod common;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::command::{Ended, command, nodbfs};
use common::mount::Mount;
use common::shell::Shell;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use site::{PATIENCE, STRANGER, Site, eventually, lock_key};

const NAME: &str = "wepp.nodb";

fn site() -> Site {
    Site::new(&["--lock-wait", "200ms"])
}

/// `nodbfs VERB PATH` with more words.
fn on(verb: &str, path: &Path, more: &[&str]) -> Ended {
    let mut words = vec![verb, path.to_str().unwrap()];
    words.extend(more);
    nodbfs(&words)
}

fn listed(path: &Path, more: &[&str]) -> Vec<Value> {
    let ended = on("locks", path, &[more, &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.json().as_array().unwrap().clone()
}

#[test]
fn locks_lists_who_holds_what() {
    let site = site();
    let url = site.redis.url();
    site.redis.cmd(&[
        "SET",
        &lock_key("bare.nodb"),
        "a \u{1b}[1m token",
        "EX",
        "1000",
    ]);
    for other in [
        "nodb-lock:run:runtime-paths/x",
        "nodb-lock:other:wepp.nodb",
        "nodb-lock:run",
    ] {
        site.redis.cmd(&["SET", other, STRANGER]);
    }
    let mut shell = Shell::new(&site.at(""));
    shell.ok("echo '{\"label\": \"nightly\"}' >soils.nodb.lock");
    for (path, more) in [
        (site.at(""), &[][..]),
        (site.on_disk(""), &[]),
        (site.on_disk(""), &["--redis", &url]),
    ] {
        let rows = listed(&path, more);
        let names: Vec<_> = rows
            .iter()
            .map(|row| row["relpath"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["bare.nodb", "held.nodb", "soils.nodb"]);
        assert_eq!(
            (&rows[0]["owner"], &rows[0]["age"]),
            (&Value::Null, &Value::Null)
        );
        assert!((900..=1000).contains(&rows[0]["seconds_left"].as_u64().unwrap()));
        assert_eq!(rows[1]["owner"], "elsewhere:17");
        assert_eq!(rows[1]["seconds_left"], Value::Null);
        assert!(rows[1]["age"].as_u64().unwrap() > 1000);
        // what the daemon knows beside the store, only the daemon says
        let asked_daemon = more.is_empty();
        assert_eq!(rows[2]["own"], asked_daemon);
        let session = rows[2]["session"].as_u64() == Some(shell.pid().into());
        assert_eq!(
            (session, rows[2]["label"] == "nightly"),
            (asked_daemon, asked_daemon)
        );
    }
    let said = on("locks", &site.at(""), &[]).ok();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("RUN  CONTROLLER  HOLDER"), "{said}");
    assert!(
        lines[3].ends_with("lock file, nightly") && lines.len() == 4,
        "{said}"
    );
    assert_eq!(listed(&site.at("held.nodb"), &[]).len(), 1);
    assert_eq!(listed(&site.at(NAME), &[]).len(), 0);
    assert!(
        on("locks", &site.at(NAME), &[])
            .err
            .contains("No lock is held")
    );
    let failed = on("locks", &site.at("none"), &[]).failed(1);
    assert!(failed.contains("No such file"), "{failed}");
}

/// The root of a tree of runs means all of them, a directory without a run none.
#[test]
fn a_tree_of_runs_shows_all_locks() {
    let dir = tempfile::tempdir().unwrap();
    for run in ["me/one", "me/two"] {
        fs::create_dir_all(dir.path().join(run)).unwrap();
        fs::write(dir.path().join(run).join(NAME), "{}").unwrap();
    }
    let mount = Mount::builder(dir.path()).start();
    let mut shell = Shell::new(mount.path());
    shell.ok("touch me/one/wepp.nodb.lock me/two/wepp.nodb.lock");
    assert_eq!(listed(mount.path(), &[]).len(), 2);
    let rows = listed(&mount.path().join("me/two"), &[]);
    assert_eq!((rows.len(), &rows[0]["runid"]), (1, &"two".into()));
    let failed = on("locks", &mount.path().join("me"), &[]).failed(1);
    assert!(failed.contains("is no run"), "{failed}");
}

#[test]
fn a_command_runs_under_the_lock_and_its_status_is_passed_on() {
    let site = site();
    let (url, mnt) = (site.redis.url(), site.at(""));
    let mnt = mnt.to_str().unwrap();
    let offline = ["--redis", &url, "--lock-wait", "200ms"];
    for (path, more) in [
        (site.at(NAME), &[][..]),
        (site.on_disk(NAME), &[]),
        (site.on_disk(NAME), &offline),
    ] {
        let run = |script: &str| {
            let words = [more, &["--", "sh", "-c", script, "sh", mnt]].concat();
            on("lock", &path, &words)
        };
        let said = run("cat $1/wepp.nodb.lock; echo out; echo err >&2; exit 7");
        assert_eq!(said.code, Some(7), "{said:?}");
        assert!(
            said.out.ends_with("out\n") && said.err == "err\n",
            "{said:?}"
        );
        assert!(said.out.starts_with('{'), "{said:?}");
        assert_eq!(site.lock(NAME), None);
        assert_eq!(run("kill -9 $$").code, Some(137));
        assert_eq!(site.lock(NAME), None);
    }
    // and what it writes through the mount goes through; another of the same session is refused
    let script = "printf '{\"n\": 1}' | cp /dev/stdin $1/wepp.nodb && nodbfs=$2; ! $nodbfs lock $1/wepp.nodb -- true";
    let words = [
        "--",
        "sh",
        "-c",
        script,
        "sh",
        mnt,
        env!("CARGO_BIN_EXE_nodbfs"),
    ];
    let ended = on("lock", &site.at(NAME), &words);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("is held by"), "{ended:?}");
    assert_eq!(site.text(NAME), "{\"n\": 1}");
    // with the lock of somebody else, or without a command, it does not run
    let refused = on(
        "lock",
        &site.at("held.nodb"),
        &["--", "touch", site.at("ran").to_str().unwrap()],
    )
    .failed(1);
    assert!(refused.contains("held by elsewhere:17"), "{refused}");
    assert!(!site.on_disk("ran").exists());
    on("lock", &site.at(NAME), &["--", "no-such-program"]).failed(1);
    on("lock", &site.at(NAME), &[]).failed(2);
    // the daemon notices a little later who has hung up
    eventually("the lock is given back", || site.lock(NAME).is_none());
}

/// `nodbfs lock` with a command that goes on until it is told to end; killed on drop.
struct Holding(Child);

impl Holding {
    fn start(path: &Path, more: &[&str], script: &str) -> Self {
        let mut words = vec!["lock", path.to_str().unwrap()];
        words.extend(more);
        words.extend(["--", "sh", "-c", script]);
        let mut command = command(&words);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Returns when it is `so`, of which it must not lose hope before.
    fn until(&mut self, what: &str, so: impl Fn() -> bool) {
        eventually(what, || {
            if self.0.try_wait().unwrap().is_some() {
                let mut said = String::new();
                let stderr = self.0.stderr.as_mut().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("it has ended: {said}");
            }
            so()
        });
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Its input ends; what it said, and its status.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.0.stdin.take());
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut said = String::new();
        self.0
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the lock is for is seen, and it is the command's alone.
#[test]
fn the_lock_of_a_command_is_no_others_of_its_session() {
    let site = site();
    let mut holding = Holding::start(&site.at(NAME), &["--label", "nightly"], "read -r line");
    // it is in Redis a moment before the daemon knows what it is for
    let row = || listed(&site.at(NAME), &[]).pop().unwrap_or_default();
    holding.until("it is held", || row()["label"] == "nightly");
    assert_eq!(row()["through"], "command");
    let refused = Command::new("sh")
        .args(["-c", "echo {} >\"$1\"", "sh"])
        .arg(site.at(NAME))
        .status()
        .unwrap();
    assert!(!refused.success(), "a command beside it is not served");
    assert!(
        on("unlock", &site.at(NAME), &[]).code
            == Some(if rustix::process::geteuid().is_root() {
                0
            } else {
                1
            })
    );
    let (code, said) = holding.end();
    if rustix::process::geteuid().is_root() {
        assert!(
            code == Some(1) && said.contains("was lost"),
            "{code:?} {said}"
        );
    }
}

/// A lock that ends before its command does is told at the end.
#[test]
fn a_command_that_outlives_its_lock_is_told() {
    let site = site();
    for more in [&["--ttl", "50ms"][..], &[]] {
        let mut holding = Holding::start(&site.at(NAME), more, "read -r line; exit 0");
        if more.is_empty() {
            holding.until("it is held", || site.lock(NAME).is_some());
            site.redis.cmd(&["DEL", &lock_key(NAME)]);
        } else {
            eventually("it was held", || {
                site.mount.log().contains("its time is over")
            });
        }
        assert_eq!(site.lock(NAME), None);
        let (code, said) = holding.end();
        assert!(
            code == Some(1) && said.contains("was lost while the command ran"),
            "{code:?} {said}"
        );
    }
}

/// However it ends, the lock is given back; a terminal's ^C is for the command.
#[test]
fn signals_end_the_command_and_then_the_lock() {
    let site = site();
    for (signal, status) in [(Signal::TERM, 3), (Signal::HUP, 4)] {
        let script =
            "trap 'exit 3' TERM; trap 'exit 4' HUP; echo >&2; while :; do sleep 0.01; done";
        let mut holding = Holding::start(&site.at(NAME), &[], script);
        let mut line = [0];
        holding
            .0
            .stderr
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        kill_process(holding.pid(), Signal::INT).unwrap();
        kill_process(holding.pid(), signal).unwrap();
        assert_eq!(holding.end().0, Some(status));
        assert_eq!(site.lock(NAME), None);
    }
    let mut holding = Holding::start(&site.at(NAME), &[], "read -r line");
    holding.until("it is held", || site.lock(NAME).is_some());
    kill_process(holding.pid(), Signal::KILL).unwrap();
    eventually("it is given back", || site.lock(NAME).is_none());
}

/// Who is ended while it waits gets nothing later.
#[test]
fn whoever_gives_up_waiting_gets_no_lock() {
    let site = Site::new(&["--lock-wait", "1h", "--log-level", "debug"]);
    let mut waiting = Holding::start(&site.at("held.nodb"), &[], "true");
    waiting.until("it waits", || site.mount.log().contains("waiting"));
    kill_process(waiting.pid(), Signal::INT).unwrap();
    drop(waiting);
    eventually("the wait is over", || {
        site.mount.log().contains("interrupted")
    });
    site.redis.cmd(&["DEL", &lock_key("held.nodb")]);
    assert_eq!(site.lock("held.nodb"), None);
}

#[test]
fn unlock_gives_back_what_is_ones_own_and_takes_away_with_a_reason() {
    let site = site();
    let url = site.redis.url();
    let nobody = on("unlock", &site.at(NAME), &[]).failed(1);
    assert!(nobody.contains("nobody holds"), "{nobody}");
    let mut shell = Shell::new(&site.at(""));
    let nodbfs = env!("CARGO_BIN_EXE_nodbfs");
    let said = shell.ok(&format!("touch wepp.nodb.lock; {nodbfs} unlock wepp.nodb"));
    assert!(
        said.contains("Released: wepp.nodb") && said.contains("lock file"),
        "{said}"
    );
    assert_eq!(site.lock(NAME), None);

    for (path, more) in [
        (site.at("held.nodb"), &[][..]),
        (site.on_disk("held.nodb"), &["--redis", &url]),
    ] {
        site.redis.cmd(&["HSET", "run", "locked:held.nodb", "true"]);
        let refused = on("unlock", &path, more).failed(1);
        assert!(
            refused.contains("elsewhere:17") && refused.contains("--force"),
            "{refused}"
        );
        on("unlock", &path, &[more, &["--force"]].concat()).failed(2);
        on(
            "unlock",
            &path,
            &[more, &["--force", "--reason", ""]].concat(),
        )
        .failed(2);
        assert!(site.lock("held.nodb").is_some());
        let done = on(
            "unlock",
            &path,
            &[more, &["--force", "--reason", "it hangs"]].concat(),
        );
        let logged = if more.is_empty() {
            site.mount.log()
        } else {
            done.err.clone()
        };
        let said = done.ok();
        assert!(said.contains("elsewhere:17"), "{said}");
        assert!(
            logged.contains("released by force") && logged.contains("it hangs"),
            "{logged}"
        );
        assert_eq!(site.lock("held.nodb"), None);
        assert_eq!(
            site.redis
                .text(&["HGET", "run", "locked:held.nodb"])
                .as_deref(),
            Some("false")
        );
        site.lock_away();
    }
    // the daemon's own, of a session: that is told at its next write
    shell.ok("touch soils.nodb.lock");
    on(
        "unlock",
        &site.at("soils.nodb"),
        &["--force", "--reason", "x"],
    )
    .ok();
    assert_eq!(site.lock("soils.nodb"), None);
    shell.fails("echo '{}' >new && mv new soils.nodb", "Stale file handle");
    shell.ok("rm -f soils.nodb.lock && mv new soils.nodb");
    let read_only = Mount::builder(site.on_disk(""))
        .redis(&url)
        .args(["--read-only"])
        .start();
    let refused = on(
        "unlock",
        &read_only.path().join("held.nodb"),
        &["--force", "--reason", "x"],
    )
    .failed(1);
    assert!(refused.contains("read-only"), "{refused}");
}
