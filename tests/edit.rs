//! `nodbfs edit`: a read-modify-write under the lock, on a mount and without one.

mod common;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use common::command::{Ended, command, nodbfs, run};
use common::mount::Mount;
use rustix::process::{Pid, Signal, kill_process_group};
use site::{STRANGER, Site, document, eventually, lock_key};

const NAME: &str = "wepp.nodb";
/// A document of which nothing may be written anew that was not changed.
const ODD: &str = r#"{"py/object": "wepp", "n": 0, "n": 1.50, "py/state": {"_n": 0, "big": 123456789012345678901234567890, "x": [NaN, {"a": -0.0}], "s": "\u00e9\ud800"}}"#;

/// What the daemon does not get is kept beside the run, where it goes with it, but where a test says otherwise.
fn edit(path: &Path, more: &[&str]) -> Ended {
    let mut words = vec!["edit", path.to_str().unwrap()];
    let state = path.ancestors().nth(2).unwrap().join("state of edit");
    if !more.contains(&"--state-dir") {
        words.extend(["--state-dir", state.to_str().unwrap()]);
    }
    words.extend(more);
    nodbfs(&words)
}

/// What was not committed and is kept, as the hint says.
fn kept(failed: &str) -> String {
    let (_, hint) = failed.split_once("is kept: nodbfs ").expect(failed);
    let (show, state) = hint.trim().split_once(" --state-dir ").expect(hint);
    let words: Vec<_> = show.split(' ').chain(["--state-dir", state]).collect();
    nodbfs(&words).ok()
}

/// Waits until `go` is there, and says so before.
fn waiting(site: &Site) -> String {
    let [ready, go] = ["ready", "go"].map(|name| site.on_disk(name).display().to_string());
    format!("touch {ready}; until test -e {go}; do sleep 0.02; done")
}

fn odd() -> Site {
    let site = Site::new(&["--lock-wait", "200ms"]);
    fs::write(site.on_disk(NAME), ODD).unwrap();
    site
}

/// Every way of editing, on the mount, below it and without it.
#[test]
fn fields_filters_programs_and_the_editor_change_what_they_are_to_and_nothing_else() {
    let site = odd();
    let url = site.redis.url();
    let offline = ["--redis", &url, "--lock-wait", "200ms"];
    let copy = site.at("seen");
    for (at, more) in [
        (site.at(NAME), &[][..]),
        (site.on_disk(NAME), &[]),
        (site.on_disk(NAME), &offline),
    ] {
        fs::write(site.on_disk(NAME), ODD).unwrap();
        let done = |words: &[&str]| {
            let ended = edit(&at, &[more, words].concat());
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert_eq!(site.lock(NAME), None);
            let text = site.text(NAME);
            assert_eq!(fs::read_to_string(site.at(NAME)).unwrap(), text);
            let entry = site.entry(NAME).expect("a warm cache");
            assert!(entry.starts_with(&text[..text.len() - 2]), "{entry}");
            text
        };
        let expected = ODD.replace("\"_n\": 0", "\"_n\": 7");
        assert_eq!(done(&["--set", "_n=7"]), expected);
        let expected = expected
            .replace("-0.0", "\"a=b\"")
            .replace("\"}}", "\", \"new\": null}}");
        assert_eq!(done(&["--set", "x.1.a=a=b", "--set", "new=null"]), expected);
        let expected = expected.replace("null", "\"two\"");
        assert_eq!(done(&["--", "sed", "s/null/\"two\"/"]), expected);
        let expected = expected.replace("two", "three");
        let script = format!(
            "sed -i s/two/three/ \"$1\"; stat -c %a \"$1\" \"$(dirname \"$1\")\" > {}",
            copy.display()
        );
        assert_eq!(done(&["--", "sh", "-ec", &script, "sh", "{}"]), expected);
        assert!(
            fs::read_to_string(&copy).unwrap().ends_with("700\n"),
            "a private place"
        );
        let mut typed = command(&["edit", at.to_str().unwrap()]);
        typed
            .args(more)
            .env_remove("VISUAL")
            .env("EDITOR", "sed -i s/three/four/");
        assert_eq!(run(&mut typed).code, Some(0));
        assert_eq!(site.text(NAME), expected.replace("three", "four"));
        // nothing to do is no commit
        let before = fs::metadata(site.on_disk(NAME))
            .unwrap()
            .modified()
            .unwrap();
        assert!(
            edit(&at, &[more, &["--", "cat"]].concat())
                .err
                .contains("Nothing changed")
        );
        assert_eq!(
            fs::metadata(site.on_disk(NAME))
                .unwrap()
                .modified()
                .unwrap(),
            before
        );
    }
    site.assert_clean();
}

#[test]
fn a_command_that_fails_commits_nothing_and_its_status_is_passed_on() {
    let site = odd();
    for (script, code) in [("cat; exit 7", 7), ("kill -9 $$", 137)] {
        let failed = edit(&site.at(NAME), &["--", "sh", "-c", script]).failed(code);
        assert!(failed.contains("Nothing was committed"), "{failed}");
    }
    let failed = edit(&site.at(NAME), &["--", "no-such-program"]).failed(1);
    assert!(failed.contains("cannot run no-such-program"), "{failed}");
    let failed = edit(&site.at(NAME), &["--set", "no.such=1"]).failed(1);
    assert!(failed.contains("there is no 'no'"), "{failed}");
    edit(&site.at(NAME), &["--set", "=1"]).failed(2);
    edit(&site.at(NAME), &["--set", "a=1", "--", "cat"]).failed(2);
    assert_eq!(site.text(NAME), ODD);
    // the daemon notices a little later who has hung up
    eventually("the lock is given back", || site.lock(NAME).is_none());
    site.assert_clean();
}

#[test]
fn what_is_refused_is_said_and_kept() {
    let site = odd();
    for at in [site.at(NAME), site.on_disk(NAME)] {
        let failed = edit(&at, &["--", "echo", "{"]).failed(1);
        assert!(failed.contains("not a JSON document"), "{failed}");
        let kept = site.rejected().pop().unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap(), "{\n");
    }
    // the daemon has kept it, and nobody else need do so
    let before = site.rejected().len();
    let state = site.mount.state_dir().to_str().unwrap();
    let refused = edit(
        &site.at(NAME),
        &["--state-dir", state, "--", "echo", "[", "1"],
    );
    assert_eq!(kept(&refused.failed(1)), "[ 1\n");
    assert_eq!(site.rejected().len(), before + 1);
    // not even UTF-8
    edit(&site.at(NAME), &["--", "printf", "\\377"]).failed(1);
    assert_eq!(fs::read(site.rejected().pop().unwrap()).unwrap(), b"\xff");
    fs::write(site.on_disk("READONLY"), "").unwrap();
    let failed = edit(&site.at(NAME), &["--set", "_n=1"]).failed(1);
    assert!(failed.contains("READONLY"), "{failed}");
    fs::remove_file(site.on_disk("READONLY")).unwrap();
    let failed = edit(&site.at("none.nodb"), &["--set", "_n=1"]).failed(1);
    assert!(failed.contains("No such file"), "{failed}");
    let failed = edit(site.mount.path(), &["--set", "_n=1"]).failed(1);
    assert!(failed.contains("is a directory"), "{failed}");
    assert_eq!(site.text(NAME), ODD);
    assert_eq!(site.lock(NAME), None);
}

/// An editor is open while the mount ends, by itself or not; then it saves.
#[test]
fn what_was_edited_is_kept_when_the_mount_ends_meanwhile() {
    for (end, is_filter) in [
        ("umount", false),
        ("umount", true),
        ("TERM", false),
        ("KILL", true),
    ] {
        let mut site = odd();
        let (at, wait) = (site.at(NAME), waiting(&site));
        let program = format!("{wait}; sed -i 's/0/7/' \"$1\"");
        let filter = format!("{wait}; sed 's/0/7/'");
        let command = match is_filter {
            false => ["--", "sh", "-ec", &program, "sh", "{}"].map(str::to_owned),
            true => ["--", "sh", "-ec", &filter, "sh", "-"].map(str::to_owned),
        };
        let editing = thread::spawn(move || edit(&at, &command.each_ref().map(String::as_str)));
        eventually("it is edited", || site.on_disk("ready").exists());
        match end {
            "umount" => drop(nodbfs(&["umount", site.mount.path().to_str().unwrap()]).ok()),
            "TERM" => drop(site.mount.stop()),
            _ => site.mount.crash(),
        }
        fs::write(site.on_disk("go"), "").unwrap();
        let failed = editing.join().unwrap().failed(1);
        assert_eq!(kept(&failed), ODD.replacen('0', "7", 1), "{end}: {failed}");
        assert_eq!(site.text(NAME), ODD);
        if end != "KILL" {
            assert!(failed.contains("the mount has ended"), "{end}: {failed}");
            assert_eq!(site.lock(NAME), None, "{end}");
        }
    }
}

#[test]
fn what_is_too_large_for_the_daemon_is_kept_all_the_same() {
    let site = Site::new(&["--max-payload", "1k"]);
    let large = format!("[{}1]", "1, ".repeat(400_000));
    let printed = format!("print('{large}', end='')");
    fs::write(site.on_disk("large.py"), printed).unwrap();
    let program = site.on_disk("large.py").display().to_string();
    let failed = edit(&site.at(NAME), &["--", "python3", &program]).failed(1);
    assert!(failed.contains("bytes are too many"), "{failed}");
    assert!(kept(&failed) == large);
    assert_eq!(site.lock(NAME), None);
}

#[test]
fn without_a_state_directory_what_was_not_committed_is_kept_beside_it() {
    let site = odd();
    let words = ["--state-dir", "/dev/null/none", "--", "echo", "{"];
    let failed = edit(&site.at(NAME), &words).failed(1);
    assert!(
        failed.contains("the state directory cannot be used"),
        "{failed}"
    );
    let (_, copy) = failed.split_once("what it was to be is in ").unwrap();
    let copy = Path::new(copy.trim());
    assert_eq!(fs::read_to_string(copy).unwrap(), "{\n");
    fs::remove_dir_all(copy.parent().unwrap()).unwrap();
}

#[test]
fn what_a_program_has_written_before_it_failed_stays() {
    let site = odd();
    let left_by = |script: &str, code| {
        let failed = edit(&site.at(NAME), &["--", "sh", "-c", script, "sh", "{}"]).failed(code);
        let (_, left) = failed.split_once("What it has written stays in ")?;
        let dir = Path::new(left.trim());
        let text = fs::read_to_string(dir.join(NAME)).unwrap_or_default();
        fs::remove_dir_all(dir).unwrap();
        Some(text)
    };
    assert_eq!(left_by("exit 3", 3), None);
    let changed = Some("changed\n".to_owned());
    assert_eq!(left_by("echo changed > \"$1\"; exit 3", 3), changed);
    assert_eq!(left_by("echo > \"$1~\"; kill -9 $$", 137).unwrap(), ODD);
    assert_eq!(site.text(NAME), ODD);
    let failed = edit(
        &site.at(NAME),
        &["--", "sh", "-c", "mv \"$1\" \"$1~\"", "sh", "{}"],
    );
    let failed = failed.failed(1);
    let (_, dir) = failed
        .split_once("what the command has written is in ")
        .unwrap();
    let beside = Path::new(dir.trim()).join(format!("{NAME}~"));
    assert_eq!(fs::read_to_string(beside).unwrap(), ODD);
    fs::remove_dir_all(dir.trim()).unwrap();
}

#[test]
fn a_held_lock_is_tried_again_until_it_is_free() {
    let site = odd();
    site.redis.cmd(&["SET", &lock_key(NAME), STRANGER]);
    let failed = edit(&site.at(NAME), &["--tries", "1", "--set", "_n=1"]).failed(1);
    assert!(failed.contains("held by elsewhere:17"), "{failed}");
    thread::scope(|scope| {
        let editing = scope.spawn(|| edit(&site.at(NAME), &["--tries", "9", "--set", "_n=1"]));
        let refusals = || site.mount.log().matches("lock refused").count();
        eventually("it was tried again", || refusals() >= 3);
        site.redis.cmd(&["DEL", &lock_key(NAME)]);
        let ended = editing.join().unwrap();
        assert!(ended.err.contains("trying again"), "{ended:?}");
        ended.ok();
    });
    assert!(site.text(NAME).contains("\"_n\": 1"));
}

/// The lock is held while the command runs, and nobody else comes between.
#[test]
fn nobody_comes_between_read_and_write() {
    let site = odd();
    let url = site.redis.url();
    let add = "import re, sys; print(re.sub('\"_n\": (\\d+)', lambda n: '\"_n\": %d' % (int(n[1]) + 1), sys.stdin.read()), end='')";
    let ways = [
        (site.at(NAME), vec![]),
        (site.at(NAME), vec![]),
        (site.on_disk(NAME), vec!["--redis", &url]),
    ];
    thread::scope(|scope| {
        for (at, more) in &ways {
            scope.spawn(move || {
                for _ in 0..4 {
                    let words =
                        [&more[..], &["--tries", "30", "--", "python3", "-c", add]].concat();
                    edit(at, &words).ok();
                }
            });
        }
    });
    assert_eq!(site.text(NAME), ODD.replace("\"_n\": 0", "\"_n\": 12"));
}

/// Whoever edits and is killed leaves no lock.
#[test]
fn an_editor_that_is_killed_gives_the_lock_back() {
    let site = odd();
    let at = site.at(NAME);
    let mut words = vec!["edit", at.to_str().unwrap(), "--"];
    words.extend(["sh", "-c", "echo >&2; exec sleep 300"]);
    let mut editing = command(&words);
    editing.process_group(0).stderr(Stdio::piped());
    let mut editing = editing.spawn().unwrap();
    let group = Pid::from_child(&editing);
    // the lock is taken before the command runs
    let mut said = editing.stderr.take().unwrap();
    said.read_exact(&mut [0]).unwrap();
    assert!(site.lock(NAME).is_some());
    editing.kill().unwrap();
    editing.wait().unwrap();
    // what it ran goes on without it
    kill_process_group(group, Signal::KILL).unwrap();
    eventually("the lock is given back", || site.lock(NAME).is_none());
    assert_eq!(site.text(NAME), ODD);
}

/// With an embedded store: through the daemon on the mount and below it, and alone where there is none.
#[test]
fn without_a_redis_the_daemon_is_asked_or_nobody_is_there_to_ask() {
    let source = tempfile::tempdir().unwrap();
    let (at, state) = (source.path().join(NAME), tempfile::tempdir().unwrap());
    fs::write(&at, document("wepp", 0)).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o640)).unwrap();
    let mount = Mount::builder(source.path()).start();
    edit(&mount.path().join(NAME), &["--set", "_n=1"]).ok();
    edit(&at, &["--set", "_n=2"]).ok();
    assert_eq!(
        fs::read_to_string(mount.path().join(NAME)).unwrap(),
        document("wepp", 2)
    );
    assert_eq!(mount.log().matches("committed").count(), 2);
    let state = [
        "--state-dir",
        state.path().to_str().unwrap(),
        "--source",
        source.path().to_str().unwrap(),
    ];
    let failed = edit(&at, &[&state[..], &["--set", "_n=3"]].concat()).failed(1);
    assert!(
        failed.contains("another nodbfs with an embedded store"),
        "{failed}"
    );
    drop(mount);
    edit(&at, &[&state[..2], &["--set", "_n=3"]].concat()).ok();
    assert_eq!(fs::read_to_string(&at).unwrap(), document("wepp", 3));
    assert_eq!(
        fs::metadata(&at).unwrap().permissions().mode() & 0o777,
        0o640
    );
    let left = fs::read_dir(source.path()).unwrap().count();
    assert_eq!(left, 1, "no temporary file");
}

#[test]
fn a_read_only_mount_is_not_edited() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join(NAME), document("wepp", 0)).unwrap();
    let mount = Mount::builder(source.path()).args(["--read-only"]).start();
    let failed = edit(&mount.path().join(NAME), &["--set", "_n=1"]).failed(1);
    assert!(failed.contains("read-only"), "{failed}");
}
