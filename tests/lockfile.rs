//! `x.nodb.lock` as programs see it: there while the lock is held, by whomever; made, read, removed
//! (promises 5 and 8).

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::run::{BOTH, KNOWN_AS, Kind, RUNID, Run, STRANGER, eventually, listing};
use common::shell::Shell;
use serde_json::Value;

const NAME: &str = "wepp.nodb";
const LOCK: &str = "wepp.nodb.lock";
const USER: u32 = 1234;
const BUSY: &str = "Device or resource busy";
const DENIED: &str = "Operation not permitted";
const MISSING: &str = "No such file or directory";

fn read(run: &Run) -> Value {
    serde_json::from_str(&fs::read_to_string(run.at(LOCK)).unwrap()).unwrap()
}

/// Both stores, and writers that wait for nobody.
fn impatient() -> [Run; 2] {
    BOTH.map(|kind| Run::with_args(kind, &["--lock-wait", "0s"]))
}

#[test]
fn the_file_is_there_exactly_while_the_lock_is_held() {
    for run in impatient() {
        let mut shell = Shell::new(run.mount.path());
        assert!(!run.at(LOCK).exists());
        shell.ok("touch wepp.nodb.lock");
        let said = read(&run);
        assert_eq!(said["own"], true);
        assert_eq!(said["command"], "touch");
        assert_eq!(said["session"], shell.pid());
        assert!(
            said["owner"]
                .as_str()
                .unwrap()
                .ends_with(&format!(":{}", run.mount.pid()))
        );
        assert!(said["seconds_left"].as_u64().unwrap() <= 60);
        let stat = run.at(LOCK).metadata().unwrap();
        let line = fs::read_to_string(run.at(LOCK)).unwrap();
        assert_eq!(stat.len(), line.len() as u64);
        assert!(
            line.ends_with("}\n") && line.lines().count() == 1,
            "{line:?}"
        );
        assert_eq!(stat.mtime() as u64, said["acquired_at"].as_u64().unwrap());
        assert!(stat.is_file() && stat.nlink() == 1 && stat.ino() > 1);
        assert!(!run.on_disk(LOCK).exists());
        shell.ok("rm wepp.nodb.lock");
        assert!(!run.at(LOCK).exists());
        shell.fails("rm wepp.nodb.lock", MISSING);
        run.assert_consistent(NAME);
    }
}

/// Taken by anybody, in any form, without a word to the daemon.
#[test]
fn locks_of_others_show_and_go() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "0s"]);
    let mut shell = Shell::new(run.mount.path());
    for value in [
        STRANGER,
        "a bare token",
        "{}",
        "{\n\"owner\": \"a:1\"}",
        "\"",
        "[1]",
    ] {
        assert!(!run.at(LOCK).exists());
        run.lock_away(NAME, value);
        eventually("it shows", || run.at(LOCK).exists());
        let said = read(&run);
        assert_eq!(
            (&said["own"], &said["seconds_left"]),
            (&false.into(), &Value::Null)
        );
        match serde_json::from_str(value) {
            Ok(Value::Object(stored)) => stored
                .iter()
                .for_each(|(name, value)| assert_eq!(&said[name], value)),
            _ => assert_eq!(said["token"], value),
        }
        // not even root's to take away, or to change
        shell.fails("rm wepp.nodb.lock", DENIED);
        shell.fails("echo >wepp.nodb.lock", BUSY);
        shell.fails("chmod 600 wepp.nodb.lock", DENIED);
        shell.fails("touch wepp.nodb.lock", "temporarily unavailable");
        assert_eq!(run.lock(NAME).as_deref(), Some(value));
        let why = run.attribute(NAME, "last_error").unwrap();
        assert!(why.contains(&run.lock_key(NAME)), "{why}");
        run.redis().cmd(&["DEL", &run.lock_key(NAME)]);
        eventually("it goes", || !run.at(LOCK).exists());
    }
    run.redis()
        .cmd(&["SET", &run.lock_key(NAME), STRANGER, "PX", "50"]);
    eventually("it shows that it expired", || !run.at(LOCK).exists());
}

#[test]
fn what_is_open_reads_one_content() {
    for run in impatient() {
        let mut shell = Shell::new(run.mount.path());
        shell.ok("touch wepp.nodb.lock; exec 3<wepp.nodb.lock");
        let line = fs::read_to_string(run.at(LOCK)).unwrap();
        shell.ok("echo '{\"label\": \"nightly \\u00e9\"}' >wepp.nodb.lock");
        assert_eq!(read(&run)["label"], "nightly é");
        shell.ok("rm wepp.nodb.lock");
        // byte for byte, in pieces, and with an end
        let read = "python3 -c 'import os; print(os.read(3, 10).decode() + os.read(3, 9999).decode(), os.read(3, 1))'";
        let seconds = |text: &str| text.split("seconds_left").next().unwrap().to_owned();
        let said = shell.ok(read);
        assert_eq!(seconds(&said), seconds(&line));
        assert!(said.ends_with("b''"), "{said}");
    }
}

#[test]
fn creating_takes_the_lock_as_the_flags_say() {
    for run in impatient() {
        let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
        one.ok("set -C; echo 1760000000.123 >wepp.nodb.lock");
        two.fails(
            "set -C; : >wepp.nodb.lock",
            "cannot overwrite existing file",
        );
        let open = |flags: &str| format!("python3 -c 'import os; os.open(\"{LOCK}\", {flags})'");
        two.fails(
            &open("os.O_CREAT | os.O_EXCL | os.O_RDWR"),
            "FileExistsError",
        );
        two.fails(
            &open("os.O_CREAT | os.O_NONBLOCK | os.O_RDWR"),
            "BlockingIOError",
        );
        two.fails(&open("os.O_CREAT | os.O_WRONLY"), BUSY);
        // only to look, it may be opened by anybody
        two.ok(&open("os.O_CREAT"));
        one.ok("rm wepp.nodb.lock");
        two.ok(&open("os.O_CREAT | os.O_EXCL"));
        assert_eq!(read(&run)["session"], two.pid());
    }
}

#[test]
fn who_asks_waits_for_whoever_has_it() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "1h"]);
        let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
        one.ok("touch wepp.nodb.lock");
        two.send("echo mine >wepp.nodb.lock");
        two.send("echo ours >soils.nodb.lock");
        eventually("somebody waits", || run.mount.log().contains("waiting"));
        assert_eq!(read(&run)["session"], one.pid());
        one.ok("rm wepp.nodb.lock");
        assert_eq!((two.answer().status, two.answer().status), (0, 0));
        assert_eq!(read(&run)["session"], two.pid());
        // and a signal ends the wait
        let waits = run.mount.log().matches("waiting").count();
        one.ok("sh -c ': >wepp.nodb.lock' &");
        eventually("it waits", || {
            run.mount.log().matches("waiting").count() > waits
        });
        one.fails("kill $!; wait $!", "");
        assert_eq!(read(&run)["session"], two.pid());
    }
}

/// Only the holder's session, or root, on the mount that took it.
#[test]
fn a_lock_is_removed_by_whom_it_belongs_to() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root: skipped");
        return;
    }
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "0s", "--allow-other"]);
        for dir in [run.source(), run.mount.path().parent().unwrap()] {
            fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(run.source(), Permissions::from_mode(0o777)).unwrap();
        let at = run.mount.path();
        let (mut one, mut two) = (Shell::of_user(at, USER), Shell::of_user(at, USER));
        one.ok("touch wepp.nodb.lock");
        let stat = run.at(LOCK).metadata().unwrap();
        assert_eq!((stat.uid(), stat.mode() & 0o777), (USER, 0o666));
        two.fails("rm wepp.nodb.lock", DENIED);
        two.fails(
            "cat wepp.nodb.lock >/dev/null && touch -d yesterday wepp.nodb.lock",
            "",
        );
        one.ok("sh -c 'rm wepp.nodb.lock'");
        one.ok("touch wepp.nodb.lock");
        let mut root = Shell::new(at);
        root.ok("rm wepp.nodb.lock");
        // who may not write the directory may not lock in it
        fs::set_permissions(run.source(), Permissions::from_mode(0o755)).unwrap();
        one.fails("touch wepp.nodb.lock", "Permission denied");
        root.ok("touch wepp.nodb.lock");
        one.fails("rm wepp.nodb.lock", "Permission denied");
        one.fails("echo >wepp.nodb.lock", "Permission denied");
    }
}

/// The lock of an open writer is one that this mount took, too.
#[test]
fn the_lock_of_a_writer_that_hangs_can_be_removed_by_its_session() {
    for run in impatient() {
        let (mut one, before) = (
            Shell::new(run.mount.path()),
            fs::read(run.on_disk(NAME)).unwrap(),
        );
        one.ok("exec 3<>wepp.nodb");
        let said = read(&run);
        assert_eq!(
            (&said["through"], &said["command"]),
            (&"open file".into(), &"bash".into())
        );
        one.ok("rm wepp.nodb.lock");
        assert!(!run.at(LOCK).exists());
        one.fails(
            "python3 -c 'import os; os.write(3, b\"[]\"); os.ftruncate(3, 2); os.fsync(3)'",
            "Stale",
        );
        one.run("exec 3>&-");
        assert!(fs::read(run.on_disk(NAME)).unwrap() == before);
    }
}

#[test]
fn nothing_but_a_lock_gets_its_name() {
    for run in impatient() {
        fs::write(run.at("plain"), "plain").unwrap();
        let before = listing(run.source());
        let mut shell = Shell::new(run.mount.path());
        for held in [false, true] {
            if held {
                shell.ok("touch wepp.nodb.lock");
            }
            let there = if held { "File exists" } else { DENIED };
            shell.fails("mkdir wepp.nodb.lock", there);
            shell.fails("mkfifo wepp.nodb.lock", there);
            shell.fails("ln -T plain wepp.nodb.lock", there);
            shell.fails("ln -sT plain wepp.nodb.lock", there);
            shell.fails(
                "python3 -c 'import os; os.rename(\"plain\", \"wepp.nodb.lock\")'",
                if held { "File" } else { DENIED },
            );
            let gone = if held { DENIED } else { MISSING };
            shell.fails(
                "python3 -c 'import os; os.rename(\"wepp.nodb.lock\", \"other\")'",
                gone,
            );
            shell.fails(
                "python3 -c 'import os; os.link(\"wepp.nodb.lock\", \"other\")'",
                gone,
            );
            shell.fails("chmod 600 wepp.nodb.lock", gone);
            shell.fails(
                "rmdir wepp.nodb.lock",
                if held { "Not a directory" } else { MISSING },
            );
            shell.fails(
                "ls wepp.nodb.lock/x",
                if held { "Not a directory" } else { MISSING },
            );
            shell.fails(
                "setfattr -n user.note -v x wepp.nodb.lock",
                if held { "not supported" } else { MISSING },
            );
        }
        assert_eq!(
            shell.ok("getfattr -d wepp.nodb.lock; truncate -s 0 wepp.nodb.lock"),
            ""
        );
        assert_eq!(listing(run.source()), before);
        assert_eq!(fs::read_to_string(run.on_disk("plain")).unwrap(), "plain");
    }
}

/// What can be written into it is anything; what is no time and no label means nothing.
#[test]
fn garbage_is_accepted_and_means_nothing() {
    for run in impatient() {
        let mut shell = Shell::new(run.mount.path());
        for text in [
            "1760000000.25",
            "{",
            "[]",
            "null",
            r#"{"ttl": -1}"#,
            r#"{"ttl": "x"}"#,
            r#"{"ttl": 0}"#,
            r#"{"ttl": 1e300}"#,
            r#"{"label": 7}"#,
            r#"\377\000\n"#,
        ] {
            shell.ok(&format!("printf '{text}' >wepp.nodb.lock"));
            let said = read(&run);
            assert!(
                said["own"] == true && said["label"].is_null(),
                "{text}: {said}"
            );
        }
        shell.ok("echo '{\"label\": \"a\\u0007\\\"b\", \"more\": [1]}' >>wepp.nodb.lock");
        assert_eq!(read(&run)["label"], "a\u{7}\"b");
        shell.ok(": >wepp.nodb.lock");
        assert_eq!(read(&run)["label"], Value::Null);
        shell.fails("head -c 100000 /dev/zero >wepp.nodb.lock", "File too large");
        shell.ok("rm wepp.nodb.lock");
    }
}

/// As old code leaves it where nothing is mounted.
#[test]
fn a_real_file_of_that_name_is_a_plain_file() {
    for run in impatient() {
        let mut shell = Shell::new(run.mount.path());
        fs::write(run.on_disk(LOCK), "1760000000").unwrap();
        assert_eq!(shell.ok("cat wepp.nodb.lock"), "1760000000");
        assert_eq!(listing(run.mount.path()), listing(run.source()));
        shell.ok("echo 2 >>wepp.nodb.lock; ln wepp.nodb.lock copy; chmod 600 wepp.nodb.lock");
        assert_eq!(
            fs::read_to_string(run.on_disk(LOCK)).unwrap(),
            "17600000002\n"
        );
        assert_eq!(run.attribute(NAME, "holder"), None);
        shell.ok("mv wepp.nodb.lock moved && rm moved");
        assert!(!run.on_disk(LOCK).exists());
        // and names that only look alike always are
        shell.ok("echo x >nodb.lock; echo x >.wepp.nodb.lock; echo x >wepp.lock; mkdir d.nodb; mkdir d.nodb.lock");
        assert!(run.on_disk("nodb.lock").exists() && run.on_disk("d.nodb.lock").is_dir());
    }
}

/// Before its first dump a controller is known by its path; then by its document.
#[test]
fn a_controller_that_is_not_there_yet_can_be_locked() {
    for run in impatient() {
        let (mut one, mut two) = (Shell::new(run.mount.path()), Shell::new(run.mount.path()));
        one.ok("echo >new.nodb.lock");
        if run.kind() == Kind::Redis {
            assert!(run.lock("new.nodb").is_some());
            assert_eq!(run.mirror("new.nodb").as_deref(), Some("true"));
        }
        two.fails(
            "python3 -c 'file = open(\"new.nodb\", \"w\"); file.write(\"{}\"); file.close()'",
            BUSY,
        );
        one.ok("echo '{}' >new.nodb; rm new.nodb.lock");
        assert_eq!(fs::read_to_string(run.on_disk("new.nodb")).unwrap(), "{}\n");
        two.ok("echo '[]' >new.nodb");
    }
}

/// The document says whose lock it is: a child run's, a batch's, a parent's behind a symlink.
#[test]
fn the_lock_is_that_of_the_document() {
    let source = tempfile::tempdir().unwrap();
    let child = "_pups/omni/scenarios/low";
    fs::create_dir_all(source.path().join(child)).unwrap();
    let of = |name: &str, text: &str| fs::write(source.path().join(name), text).unwrap();
    of(
        "wepp.nodb",
        r#"{"_run_group": "batch", "_group_name": "spring"}"#,
    );
    of(
        &format!("{child}/soils.nodb"),
        &format!(r#"{{"_parent_wd": "{KNOWN_AS}"}}"#),
    );
    std::os::unix::fs::symlink(
        "../../../../wepp.nodb",
        source.path().join(child).join("wepp.nodb"),
    )
    .unwrap();
    let run = Run::of(Kind::Redis, source, KNOWN_AS, &[]);
    let grouped = format!("nodb-lock:batch;;spring;;{RUNID}:wepp.nodb");
    let nested = format!("nodb-lock:{RUNID}:{child}/soils.nodb");
    for (name, key) in [
        ("wepp.nodb", &grouped),
        (&format!("{child}/soils.nodb"), &nested),
        (&format!("{child}/wepp.nodb"), &grouped),
    ] {
        let mut shell = Shell::new(run.mount.path());
        shell.ok(&format!("touch {name}.lock"));
        assert!(run.redis().text(&["GET", key]).is_some(), "{name}");
        shell.ok(&format!("echo {{}} >{name}.tmp && rm {name}.lock"));
        assert!(run.redis().text(&["GET", key]).is_none(), "{name}");
    }
}
