//! With unmodified NoDb processes, old and modern, through the mount and beside it, on this host and
//! in containers (promises 5, 6, 7 and 12).

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::in_crate;
use common::python::{Neighbour, Place, Style};
use common::run::{KNOWN_AS, Kind, RUNID, Run, STRANGER};
use rustix::process::Signal;
use serde_json::{Value, json};

const NAME: &str = "wepp.nodb";
const STYLES: [Style; 2] = [Style::Modern, Style::Old];
const PLACES: [Place; 2] = [Place::Host, Place::Container];

/// Where a neighbour has its run: in the mount, or in the source beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Mount,
    Source,
}

const SIDES: [Side; 2] = [Side::Mount, Side::Source];

fn spawn(run: &Run, style: Style, side: Side, controller: &str, place: Place) -> Neighbour {
    let wd = match side {
        Side::Mount => run.mount.path(),
        Side::Source => run.source(),
    };
    let url = run.redis().unix_url();
    Neighbour::spawn(style, wd, Path::new(KNOWN_AS), controller, &url, place)
}

/// All kinds of neighbours.
fn kinds() -> Vec<(Style, Side, Place)> {
    let mut kinds = Vec::new();
    for style in STYLES {
        for side in SIDES {
            kinds.extend(PLACES.map(|place| (style, side, place)));
        }
    }
    kinds
}

fn state(path: &Path) -> Value {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    match document.get_mut("py/state") {
        Some(state) => state.take(),
        None => document,
    }
}

/// Promise 12: both kinds of code take the entry that a read of nodbfs leaves, and the one of a commit,
/// for what the file is.
#[test]
fn neighbours_accept_the_entries_nodbfs_leaves() {
    let run = Run::new(Kind::Redis);
    // old layout, modern layout, and both at once in a dialect all of Python's own
    for controller in ["wepp", "soils", "observed"] {
        let name = format!("{controller}.nodb");
        let text = fs::read_to_string(run.at(&name)).unwrap();
        let mut neighbours: Vec<Neighbour> = kinds()
            .into_iter()
            .map(|(style, side, place)| spawn(&run, style, side, controller, place))
            .collect();
        for committed in [false, true] {
            if committed {
                fs::write(run.at(&name), &text).unwrap();
            }
            for (neighbour, kind) in neighbours.iter_mut().zip(kinds()) {
                let loaded = neighbour.ok(json!({"op": "reload"}));
                assert_eq!(loaded["from"], "cache", "{name} {kind:?}");
                assert_eq!(neighbour.get("_config"), "disturbed9002.cfg");
            }
        }
    }
}

/// Promise 7 and 12: what a neighbour dumps is what nodbfs shows next, and the other way round,
/// wherever the neighbour runs.
#[test]
fn neighbours_and_tools_see_each_others_commits() {
    let run = Run::new(Kind::Redis);
    for (style, side, place) in kinds() {
        let what = format!("{style:?} {side:?} {place:?}");
        for controller in ["wepp", "soils"] {
            let name = format!("{controller}.nodb");
            let mut neighbour = spawn(&run, style, side, controller, place);
            for round in [what.clone(), what.clone() + " again"] {
                fs::read(run.at(&name)).unwrap();
                neighbour.ok(json!({"op": "locked_update", "values": {"_theirs": round}}));
                assert_eq!(state(&run.at(&name))["_theirs"], round);
                let edited = fs::read_to_string(run.at(&name)).unwrap();
                let mut document: Value = serde_json::from_str(&edited).unwrap();
                let ours = match document.get_mut("py/state") {
                    Some(state) => state,
                    None => &mut document,
                };
                ours["_ours"] = json!(round);
                fs::write(run.at(&name), document.to_string()).unwrap();
                // the singleton notices that the file is another
                neighbour.ok(json!({"op": "load"}));
                assert_eq!(neighbour.get("_ours"), round);
                assert_eq!(neighbour.get("_theirs"), round);
            }
            run.assert_settled(&name);
        }
    }
}

/// Promise 5 and 12: who holds the lock itself writes through the mount, as often as it likes, and
/// keeps its lock until it gives it back.
#[test]
fn a_process_that_holds_the_lock_is_let_through() {
    for style in STYLES {
        for place in PLACES {
            let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
            let mut neighbour = spawn(&run, style, Side::Mount, "wepp", place);
            neighbour.ok(json!({"op": "load"}));
            neighbour.ok(json!({"op": "lock"}));
            let value = run.lock(NAME);
            for round in 0..3 {
                neighbour.ok(json!({"op": "set", "key": "_theirs", "value": round}));
                neighbour.ok(json!({"op": "dump"}));
                assert_eq!(
                    state(&run.on_disk(NAME))["_theirs"],
                    round,
                    "{style:?} {place:?}"
                );
                assert_eq!(run.lock(NAME), value, "{style:?} {place:?}");
                // and nobody else
                assert_eq!(run.python(NAME, "open(path, 'r+')"), "EBUSY");
            }
            neighbour.ok(json!({"op": "unlock"}));
            run.assert_settled(NAME);
        }
    }
}

/// Promise 5: the lock is the process's, so any thread of it may write.
#[test]
fn a_thread_of_the_holder_is_let_through() {
    for place in PLACES {
        for style in ["ModernNoDb", "OldNoDb"] {
            let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
            let code = r#"
import sys, threading
sys.path.insert(0, sys.argv[1])
import nodb
one = getattr(nodb, sys.argv[2])(sys.argv[3], sys.argv[4], "wepp", sys.argv[5])
one.load()
one.lock()
one.state["_theirs"] = 1
failed = []
def dump():
    try:
        one.dump()
    except Exception as error:
        failed.append(error)
thread = threading.Thread(target=dump)
thread.start()
thread.join()
one.unlock()
print(failed)
"#;
            let mut command = match place {
                Place::Host => Command::new("python3"),
                Place::Container => contained_python(),
            };
            let output = command
                .args(["-B", "-c", code])
                .arg(in_crate("tests/neighbours"))
                .arg(style)
                .arg(run.mount.path())
                .arg(KNOWN_AS)
                .arg(run.redis().unix_url())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.trim(), "[]", "{place:?} {style} {output:?}");
            assert_eq!(state(&run.on_disk(NAME))["_theirs"], 1);
            run.assert_settled(NAME);
        }
    }
}

/// `python3` in PID and UTS namespaces of its own.
fn contained_python() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]);
    command.args([
        "sh",
        "-c",
        "hostname elsewhere && exec python3 \"$@\"",
        "python3",
    ]);
    command
}

/// Promise 5: a holder with the same number in another namespace is not this one.
#[test]
fn another_process_of_the_same_number_is_kept_out() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "300ms"]);
    let mut holder = spawn(&run, Style::Modern, Side::Source, "wepp", Place::Container);
    holder.ok(json!({"op": "lock"}));
    let value = run.lock(NAME);
    // it too is process 1 of its namespace, on a host of another name
    let output = contained_python()
        .args(["-c", "import sys; open(sys.argv[1], 'r+')"])
        .arg(run.at(NAME))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("[Errno 16]"), "{errors}");
    assert_eq!(run.lock(NAME), value);
}

/// Promise 12: an open writer of the mount keeps NoDb processes out, as any holder does.
#[test]
fn a_writer_of_the_mount_keeps_neighbours_out() {
    let run = Run::new(Kind::Redis);
    for (style, side, place) in kinds() {
        let mut neighbour = spawn(&run, style, side, "wepp", place);
        neighbour.ok(json!({"op": "load"}));
        let writer = fs::File::options().write(true).open(run.at(NAME)).unwrap();
        assert_eq!(run.mirror(NAME).as_deref(), Some("true"));
        assert_eq!(
            neighbour.refused(json!({"op": "lock"})),
            "NoDbAlreadyLockedError"
        );
        assert_eq!(neighbour.ok(json!({"op": "is_locked"}))["value"], true);
        drop(writer);
        run.await_unlocked(NAME);
        neighbour.ok(json!({"op": "lock"}));
        neighbour.ok(json!({"op": "unlock"}));
    }
}

/// A plain program that increments through the mount, `times` times: it knows files and errnos, and
/// nothing of locks.
fn plain_counter(run: &Run, how: &str, times: u32) -> Child {
    let code = r#"
import errno, json, os, sys, time
path, how, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
def changed(text):
    doc = json.loads(text)
    state = doc.get("py/state", doc)
    state["_counter"] += 1
    return json.dumps(doc)
def increment():
    with open(path, "r+") as file:
        text = changed(file.read())
        if how == "in place":
            file.seek(0)
            file.write(text)
            file.truncate()
            return
        # as an editor that holds its file open while it replaces it
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w") as other:
            other.write(text)
        os.rename(temporary, path)
for _ in range(times):
    while True:
        try:
            increment()
            break
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ESTALE):
                raise
            time.sleep(0.005)
"#;
    Command::new("python3")
        .args(["-c", code])
        .arg(run.at(NAME))
        .args([how, &times.to_string()])
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Promise 6: hundreds of increments by everybody at once, and none is lost.
#[test]
fn no_update_is_lost_among_everybody() {
    const TIMES: u32 = 40;
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "60s"]);
    let mut plain = ["in place", "by rename"].map(|how| plain_counter(&run, how, TIMES));
    let mut neighbours: Vec<Neighbour> = [
        (Style::Modern, Side::Mount, Place::Host),
        (Style::Modern, Side::Mount, Place::Container),
        (Style::Modern, Side::Source, Place::Host),
        (Style::Modern, Side::Source, Place::Container),
        (Style::Old, Side::Mount, Place::Host),
    ]
    .into_iter()
    .map(|(style, side, place)| {
        let mut neighbour = spawn(&run, style, side, "wepp", place);
        neighbour.send(&json!({"op": "increment", "times": TIMES, "retry": true}));
        neighbour
    })
    .collect();
    let mut acknowledged = 0;
    for neighbour in &mut neighbours {
        let answer = neighbour.answer();
        assert_eq!(answer["ok"], true, "{answer}");
        acknowledged += TIMES;
    }
    for counter in &mut plain {
        assert!(counter.wait().unwrap().success());
        acknowledged += TIMES;
    }
    assert_eq!(state(&run.on_disk(NAME))["_counter"], acknowledged);
    drop(neighbours);
    run.await_unlocked(NAME);
    run.assert_consistent(NAME);
    let modified = run.redis().text(&["HGET", RUNID, "last_modified"]);
    assert!(modified.is_some());
}

/// Promise 6, on the embedded store, where the mount is the only way in.
#[test]
fn no_update_is_lost_among_plain_programs() {
    const TIMES: u32 = 40;
    let run = Run::with_args(Kind::Embedded, &["--lock-wait", "60s"]);
    let mut counters = ["in place", "by rename", "in place", "by rename"]
        .map(|how| plain_counter(&run, how, TIMES));
    for counter in &mut counters {
        assert!(counter.wait().unwrap().success());
    }
    assert_eq!(state(&run.on_disk(NAME))["_counter"], 4 * TIMES);
    run.await_unlocked(NAME);
    run.assert_consistent(NAME);
}

/// Promise 6: a modern process that loaded before a tool's commit refuses its own stale dump.
#[test]
fn a_stale_neighbour_notices_a_tools_commit() {
    let run = Run::new(Kind::Redis);
    for side in SIDES {
        let mut neighbour = spawn(&run, Style::Modern, side, "wepp", Place::Host);
        neighbour.ok(json!({"op": "load"}));
        // of the same size: only the time tells
        let text = fs::read_to_string(run.at(NAME)).unwrap();
        let flipped = if text.contains("true") {
            text.replacen("true", "null", 1)
        } else {
            text.replacen("null", "true", 1)
        };
        assert_eq!(text.len(), flipped.len());
        fs::write(run.at(NAME), &flipped).unwrap();
        neighbour.ok(json!({"op": "set", "key": "_theirs", "value": 1}));
        neighbour.ok(json!({"op": "lock"}));
        assert_eq!(
            neighbour.refused(json!({"op": "dump"})),
            "NoDbStaleWriteError"
        );
        neighbour.ok(json!({"op": "unlock"}));
        assert_eq!(fs::read_to_string(run.on_disk(NAME)).unwrap(), flipped);
        run.assert_consistent(NAME);
    }
}

/// Promises 6 and 7: a modern process on the mount trusts what `stat` says of the file. Once a neighbour's commit
/// has returned, that is what `stat` must say, also while the daemon cannot tell the kernel.
#[test]
fn a_stopped_daemon_hides_no_commit_from_a_neighbour_on_its_mount() {
    let run = Run::new(Kind::Redis);
    let mut ours = spawn(&run, Style::Modern, Side::Mount, "wepp", Place::Host);
    let mut theirs = spawn(&run, Style::Modern, Side::Source, "wepp", Place::Host);
    ours.ok(json!({"op": "locked_update", "values": {"_ours": 1}}));
    ours.ok(json!({"op": "load"}));
    run.mount.signal(Signal::STOP);
    theirs.ok(json!({"op": "locked_update", "values": {"_theirs": 1}}));
    ours.send(&json!({"op": "locked_update", "values": {"_ours": 2}}));
    thread::sleep(Duration::from_millis(500));
    run.mount.signal(Signal::CONT);
    assert_eq!(ours.answer()["ok"], true);
    let now = state(&run.on_disk(NAME));
    assert_eq!((&now["_ours"], &now["_theirs"]), (&json!(2), &json!(1)));
}

/// Where no NoDb process works, the kernel may remember: `stat` may be late then, an open never is.
#[test]
fn with_a_name_ttl_stat_may_be_late_and_an_open_never_is() {
    let run = Run::with_args(Kind::Redis, &["--name-ttl", "1h"]);
    let (at, disk) = (run.at(NAME), run.on_disk(NAME));
    let before = fs::metadata(&at).unwrap().len();
    let draft = run.on_disk("draft");
    let new = String::from_utf8(fs::read(&disk).unwrap()).unwrap() + "  ";
    fs::write(&draft, &new).unwrap();
    fs::rename(&draft, &disk).unwrap();
    assert_eq!(fs::metadata(&at).unwrap().len(), before);
    assert_eq!(fs::read_to_string(&at).unwrap(), new);
    assert_eq!(fs::metadata(&at).unwrap().len(), before + 2);
    // what goes through the mount shows at once
    fs::write(&at, new.clone() + " ").unwrap();
    assert_eq!(fs::metadata(&at).unwrap().len(), before + 3);
}

/// While a rename waits for its lock, the kernel holds the directory, and takes no notices about it.
#[test]
fn a_rename_that_waits_hides_no_commit_from_a_neighbour_on_the_mount() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "3s"]);
    let child = Path::new("_pups/omni/scenarios/uniform_low");
    let url = run.redis().unix_url();
    let key_wd = Path::new(KNOWN_AS).join(child);
    let neighbour = |wd: &Path| {
        let (style, place) = (Style::Modern, Place::Host);
        Neighbour::spawn(style, &wd.join(child), &key_wd, "wepp", &url, place)
    };
    let (mut ours, mut theirs) = (neighbour(run.mount.path()), neighbour(run.source()));
    ours.ok(json!({"op": "locked_update", "values": {"_ours": 1}}));
    ours.ok(json!({"op": "load"}));
    fs::read(run.at("ron.nodb")).unwrap();
    run.lock_away("soils.nodb", STRANGER);
    fs::write(run.at("draft"), fs::read(run.at("soils.nodb")).unwrap()).unwrap();
    let (draft, soils) = (run.at("draft"), run.at("soils.nodb"));
    let waits = thread::spawn(move || fs::rename(draft, soils).map_err(|e| e.raw_os_error()));
    thread::sleep(Duration::from_millis(500));
    // a notice about that directory, before the one that matters
    let ron = fs::read(run.on_disk("ron.nodb")).unwrap();
    fs::write(run.on_disk("ron.nodb"), ron).unwrap();
    theirs.ok(json!({"op": "locked_update", "values": {"_theirs": 1}}));
    ours.ok(json!({"op": "locked_update", "values": {"_ours": 2}}));
    let now = state(&run.on_disk(child.join(NAME).to_str().unwrap()));
    assert_eq!((&now["_ours"], &now["_theirs"]), (&json!(2), &json!(1)));
    assert_eq!(waits.join().unwrap(), Err(Some(libc::EBUSY)));
}

/// PROTOCOL.md 6: forks and clones write without any lock, beside the mount and in place.
#[test]
fn a_fork_beside_the_mount_shows() {
    let run = Run::new(Kind::Redis);
    for name in ["wepp.nodb", "soils.nodb"] {
        let text = fs::read_to_string(run.at(name)).unwrap();
        let forked = text.replace("mercuric-subcontract", "ventilated-gag");
        assert_ne!(text, forked);
        fs::write(run.on_disk(name), &forked).unwrap();
        assert_eq!(fs::read_to_string(run.at(name)).unwrap(), forked);
        run.assert_consistent(name);
    }
}
