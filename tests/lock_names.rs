//! What a lock's name costs and who comes across it: Redis is asked for such names alone and once, no
//! program that walks a directory sees one, and the oldest code locks with them (promises 8, 10, 12).

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::mount::Mount;
use common::run::{BOTH, KNOWN_AS, Kind, Run, STRANGER, eventually, listing, python};
use common::sample::Layout;
use common::shell::Shell;
use serde_json::Value;

const NAME: &str = "wepp.nodb";
const LOCK: &str = "wepp.nodb.lock";

/// The requests that Redis has been asked, but for those that only keep a connection alive.
fn requests(run: &Run) -> BTreeMap<String, usize> {
    let stats = run.redis().text(&["INFO", "commandstats"]).unwrap();
    let counted = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = rest.split(',').next()?.parse().ok()?;
        let idle = ["info", "ping", "select", "auth", "hello", "client"];
        (!idle.iter().any(|idle| name.starts_with(idle))).then(|| (name.to_owned(), calls))
    });
    counted.collect()
}

fn scripts(run: &Run) -> usize {
    requests(run).get("evalsha").copied().unwrap_or_default()
}

#[test]
fn only_locks_names_are_asked_for_and_those_once() {
    let run = Run::new(Kind::Redis);
    let many = run.on_disk("many");
    fs::create_dir(&many).unwrap();
    (0..10_000).for_each(|n| drop(fs::File::create(many.join(format!("H{n}.txt"))).unwrap()));
    fs::write(many.join("x.nodb"), "{}").unwrap();
    let before = requests(&run);
    let count = "print(sum(os.path.exists(path + name) for n in range(10000) for name in (f'/H{n}.txt', f'/x{n}.lock')))";
    assert_eq!(python(count, &[&run.at("many"), &many]), "10000");
    assert_eq!(listing(&run.at("many")).len(), 10_001);
    assert_eq!(requests(&run), before);

    // the first look asks, and makes the answers last
    let look = |times: usize| (0..times).filter(|_| run.at(LOCK).exists()).count();
    let before = scripts(&run);
    look(1);
    assert!(
        scripts(&run) <= before + 2,
        "a script that Redis does not know is loaded"
    );
    let trusted = || {
        look(1);
        let before = requests(&run);
        look(1);
        requests(&run) == before
    };
    eventually("invalidation is trusted", trusted);
    for held in [false, true] {
        if held {
            run.lock_away(NAME, STRANGER);
        }
        eventually("it shows", || run.at(LOCK).exists() == held);
        eventually("invalidation is trusted", trusted);
        let asks_little = || {
            let before = scripts(&run);
            assert_eq!(look(1000), if held { 1000 } else { 0 });
            scripts(&run) - before < 100
        };
        // a heartbeat may be late on a busy machine
        eventually("looks are answered from memory", asks_little);
    }
}

/// A server that does not tell is asked at each look, and once.
#[test]
fn without_invalidation_each_look_is_one_request() {
    let run = Run::new(Kind::Redis);
    run.redis()
        .cmd(&["ACL", "SETUSER", "default", "-client|tracking"]);
    assert!(!run.at(LOCK).exists());
    let before = scripts(&run);
    for held in [true, false] {
        if held {
            run.lock_away(NAME, STRANGER);
        } else {
            run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
        }
        (0..10).for_each(|_| assert_eq!(run.at(LOCK).exists(), held));
    }
    // where a name is gone that was there, the kernel looks once more
    let looks = scripts(&run) - before;
    assert!((20..=21).contains(&looks), "{looks}");
}

/// A connection that is lost may have had news on it: what was remembered is in doubt.
#[test]
fn what_was_remembered_goes_with_the_connection() {
    let run = Run::new(Kind::Redis);
    for _ in 0..3 {
        assert!(!run.at(LOCK).exists());
        run.lock_away(NAME, STRANGER);
        run.redis().cmd(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("it shows", || run.at(LOCK).exists());
        run.redis().cmd(&["FLUSHALL"]);
        eventually("it goes", || !run.at(LOCK).exists());
    }
}

/// Promise 10: locks that are held show to whoever asks for them by name, and to nobody else.
#[test]
fn no_program_that_walks_sees_a_lock() {
    for run in BOTH.map(Run::new) {
        let scratch = tempfile::tempdir().unwrap();
        let mut shell = Shell::new(run.mount.path());
        for name in listing(run.source())
            .iter()
            .filter(|name| name.ends_with(".nodb"))
        {
            shell.ok(&format!("touch {name}.lock && test -e {name}.lock"));
        }
        if run.kind() == Kind::Redis {
            run.lock_away("other.nodb", STRANGER);
        }
        let at = scratch.path().to_str().unwrap();
        for walk in [
            "ls -a",
            "ls -AlR --time-style=full-iso | sed 's/  */ /g'",
            "find . -printf '%p %s %T@ %m %n\\n' | sort",
            "du -a --apparent-size . | sort",
            "echo * .*",
            "tar --sort=name -c . | sha256sum",
            &format!(
                "rm -f {at}/zip.zip && zip -qrX {at}/zip.zip . && unzip -Z1 {at}/zip.zip | sort"
            ),
            &format!(
                "rm -rf {at}/rsync && rsync -a . {at}/rsync/ && cd {at}/rsync && find . -type f -exec sha256sum {{}} + | sort"
            ),
            &format!(
                "rm -rf {at}/cp && cp -a . {at}/cp && cd {at}/cp && find . -printf '%p %s %T@ %m\\n' | sort"
            ),
        ] {
            let [mount, source] = [run.mount.path(), run.source()].map(|dir| {
                let dir = dir.to_str().unwrap();
                shell.ok(&format!("(cd {dir} && {walk})"))
            });
            assert_eq!(mount, source, "{walk}");
        }
        assert!(run.at(LOCK).exists());
    }
}

/// A process of the oldest code, in a session of its own: it counts to `times`.
fn oldest(dir: &Path, times: u32) -> Child {
    let code = r#"
import json, os, sys, time
wd, times = sys.argv[1], int(sys.argv[2])
nodb, lock = os.path.join(wd, "wepp.nodb"), os.path.join(wd, "wepp.nodb.lock")
for _ in range(times):
    while os.path.exists(lock):
        time.sleep(0.005)
    with open(lock, "w") as fp:
        fp.write(str(time.time()))
    with open(nodb) as fp:
        state = json.load(fp)
    state["_counter"] += 1
    with open(nodb, "w") as fp:
        fp.write(json.dumps(state))
        fp.flush()
        os.fsync(fp.fileno())
    os.remove(lock)
"#;
    Command::new("setsid")
        .args(["python3", "-c", code])
        .arg(dir)
        .arg(times.to_string())
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// Promise 12: code that was never a correct lock anywhere is one on a mount, on two mounts and in
/// sessions of several processes as well.
#[test]
fn the_code_of_the_oldest_nodb_counts_correctly() {
    for kind in BOTH {
        let run = Run::with(kind, Layout::Old, &["--lock-wait", "1h"]);
        let other = (kind == Kind::Redis).then(|| {
            let args = ["--lock-wait", "1h", "--key-root", KNOWN_AS];
            let other = Mount::builder(run.source()).args(args);
            other.redis(&run.redis().url()).start()
        });
        let mounts = [
            run.mount.path(),
            other.as_ref().map_or(run.mount.path(), Mount::path),
        ];
        let counting: Vec<_> = (0..4).map(|n| oldest(mounts[n % 2], 12)).collect();
        for mut process in counting {
            assert!(process.wait().unwrap().success(), "{}", run.mount.log());
        }
        let count = fs::read_to_string(run.on_disk(NAME)).unwrap();
        let count: Value = serde_json::from_str(&count).unwrap();
        assert_eq!(count["_counter"], 48, "{kind:?}");
        run.assert_consistent(NAME);
    }
}
