//! `nodbfs edit`: a read-modify-write under the lock, on a mount and without one.

mod common;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread;

use common::command::{Ended, command, nodbfs, run};
use common::mount::Mount;
use rustix::process::{Pid, Signal, kill_process_group};
use site::{STRANGER, Site, document, eventually, lock_key};

const NAME: &str = "wepp.nodb";
/// A document of which nothing may be written anew that was not changed.
const ODD: &str = r#"{"py/object": "wepp", "n": 0, "n": 1.50, "py/state": {"_n": 0, "big": 123456789012345678901234567890, "x": [NaN, {"a": -0.0}], "s": "\u00e9\ud800"}}"#;

fn edit(path: &Path, more: &[&str]) -> Ended {
    let mut words = vec!["edit", path.to_str().unwrap()];
    words.extend(more);
    nodbfs(&words)
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
    assert_eq!(site.lock(NAME), None);
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
    let words = [
        "edit",
        site.at(NAME).to_str().unwrap(),
        "--",
        "sleep",
        "300",
    ]
    .map(str::to_owned);
    let mut editing = command(&words).process_group(0).spawn().unwrap();
    let group = Pid::from_child(&editing);
    eventually("the lock is taken", || site.lock(NAME).is_some());
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
