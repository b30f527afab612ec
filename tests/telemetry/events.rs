//! What happens shows in `x.nodb.log`, with who and why.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use super::common::run::{BOTH, Kind, RUNID, Run, STRANGER, eventually};
use super::{await_line, lines, log, save};

/// The process of this test as NoDb processes sign their locks.
fn own_name() -> String {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().unwrap().to_owned();
    format!("{host}:{}", std::process::id())
}

#[test]
fn a_line_is_one_of_a_nodb_logger() {
    let run = Run::new(Kind::Embedded);
    save(&run, "wepp", 1);
    let log = log(&run, "wepp");
    let today = Command::new("date").arg("+%Y-%m-%d").output().unwrap();
    let today = String::from_utf8(today.stdout).unwrap();
    let name = format!("wepppy.run.{RUNID}.wepp: ");
    for line in log.lines() {
        // a test may run at midnight
        assert!(line.starts_with(&today[..8]), "{line}");
        let (time, rest) = line.split_at("2026-01-01 00:00:00".len());
        assert!(
            time.bytes().filter(u8::is_ascii_digit).count() == 14,
            "{line}"
        );
        let level = rest.strip_prefix(" [INFO] ");
        assert!(level.is_some_and(|rest| rest.starts_with(&name)), "{line}");
    }
}

#[test]
fn a_save_is_told_from_the_lock_to_its_release() {
    for kind in BOTH {
        let run = Run::new(kind);
        let saved = run.shell("printf '{\"_n\": 7}' > wepp.nodb", &[]);
        assert!(saved.status.success(), "{saved:?}");
        let log = log(&run, "wepp");
        let told = [
            "lock taken",
            "cache refreshed",
            "committed",
            "lock released",
        ];
        let at = told.map(|words| log.rfind(words).unwrap_or_else(|| panic!("{words}: {log}")));
        assert!(at.is_sorted(), "{log}");
        let committed = lines(&log, "committed")[0];
        let generation = run.attribute("wepp.nodb", "generation").unwrap();
        for field in [
            format!("generation={generation}"),
            "size=9".to_owned(),
            "fsync=".to_owned(),
            "publish=".to_owned(),
            "command=sh".to_owned(),
        ] {
            assert!(committed.contains(&field), "{field}: {committed}");
        }
        for words in ["lock taken", "lock released"] {
            let line = lines(&log, words)[0];
            assert!(line.contains("host=") && line.contains("pid="), "{line}");
        }
        fs::remove_file(run.at("wepp.nodb")).unwrap();
        assert!(!run.at("wepp.nodb.log").exists(), "its controller is gone");
        save(&run, "wepp", 8);
        let log = super::log(&run, "wepp");
        assert_eq!(lines(&log, "wepp: removed").len(), 1, "{log}");
    }
}

#[test]
fn a_refusal_is_told_with_its_reason_and_where_the_document_is() {
    for kind in BOTH {
        let run = Run::new(kind);
        // not every shell tells of what `close` says
        let _ = run.shell("echo 'no document' > wepp.nodb", &[]);
        await_line(&run, "wepp", "lock released");
        let log = log(&run, "wepp");
        let line = lines(&log, "wepp: refused errno")[0];
        assert!(
            line.contains("[WARNING]") && line.contains("errno=EBADMSG"),
            "{line}"
        );
        assert!(line.contains("not a JSON document"), "{line}");
        let kept = run.rejected()[0].display().to_string();
        assert!(
            lines(&log, "refused content kept")[0].contains(&kept),
            "{log}"
        );
        assert!(
            run.mount.log().contains("errno=EBADMSG"),
            "in the daemon's log too"
        );
    }
}

#[test]
fn opens_are_told_with_where_the_document_came_from() {
    for kind in BOTH {
        let mut run = Run::new(kind);
        let read = |run: &Run| fs::read(run.at("wepp.nodb")).unwrap();
        read(&run);
        let log = super::log(&run, "wepp");
        assert!(
            log.contains("cache miss") && log.contains("read from disk from=disk"),
            "{log}"
        );
        // whatever the kernel answers by itself is no open
        (0..3).for_each(|_| drop(read(&run)));
        await_line(&run, "wepp", "cache hit: opened from memory times=3");
        if kind == Kind::Redis {
            run.remount();
            read(&run);
            await_line(
                &run,
                "wepp",
                "cache hit: read from the cache entry from=cache",
            );
            run.remount();
            run.redis_mut().kill();
            read(&run);
            await_line(&run, "wepp", "cache fallback: read from disk reason=");
        }
    }
}

#[test]
fn a_change_that_others_make_is_told_and_one_of_its_own_is_not() {
    let run = Run::new(Kind::Redis);
    save(&run, "wepp", 1);
    fs::read(run.at("wepp.nodb")).unwrap();
    save(&run, "wepp", 2);
    fs::read(run.at("wepp.nodb")).unwrap();
    assert!(!log(&run, "wepp").contains("changed elsewhere"));
    fs::write(run.on_disk("wepp.nodb"), "{\"_n\": \"from another host\"}").unwrap();
    fs::read(run.at("wepp.nodb")).unwrap();
    await_line(&run, "wepp", "changed elsewhere size=27");
}

#[test]
fn whoever_waits_for_a_lock_is_told_and_who_cannot_have_it() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "200ms"]);
    run.lock_away("wepp.nodb", STRANGER);
    let refused = File::options().write(true).open(run.at("wepp.nodb"));
    assert!(refused.is_err());
    await_line(&run, "wepp", "lock refused errno=EBUSY");
    let log = log(&run, "wepp");
    assert_eq!(lines(&log, "lock waiting").len(), 1, "{log}");
    assert!(
        lines(&log, "lock refused")[0].contains("elsewhere:17"),
        "{log}"
    );
    let patient = Run::with_args(Kind::Redis, &["--lock-wait", "60s"]);
    patient.lock_away("wepp.nodb", STRANGER);
    let mut writer = Command::new("sh");
    writer
        .args(["-c", "printf '{}' > wepp.nodb"])
        .current_dir(patient.mount.path());
    let mut writer = writer.spawn().unwrap();
    await_line(&patient, "wepp", "lock waiting");
    patient
        .redis()
        .cmd(&["DEL", &patient.lock_key("wepp.nodb")]);
    assert!(writer.wait().unwrap().success());
    await_line(&patient, "wepp", "lock taken waited=");
}

#[test]
fn renewals_and_losses_of_a_lock_are_told() {
    // long enough for the daemon to renew it in time on a busy machine
    let run = Run::with_args(Kind::Redis, &["--lease-ttl", "6s"]);
    let mut writer = File::create(run.at("wepp.nodb")).unwrap();
    await_line(&run, "wepp", "lock renewed ttl=6.0s");
    run.lock_away("wepp.nodb", STRANGER);
    await_line(&run, "wepp", "lock lost reason=");
    writer.write_all(b"{}").unwrap();
    assert!(writer.sync_all().is_err());
    await_line(&run, "wepp", "refused errno=ESTALE");
}

#[test]
fn a_lock_of_the_writers_own_is_adopted() {
    let run = Run::new(Kind::Redis);
    let held = STRANGER.replace("elsewhere:17", &own_name());
    run.lock_away("wepp.nodb", &held);
    save(&run, "wepp", 1);
    let adopted = format!("lock adopted holder={}", own_name());
    await_line(&run, "wepp", &adopted);
    assert!(!log(&run, "wepp").contains("lock released"));
}

#[test]
fn a_debt_to_the_cache_is_told() {
    let mut run = Run::new(Kind::Redis);
    save(&run, "wepp", 1);
    run.redis_mut().kill();
    fs::File::open(run.at("wepp.nodb"))
        .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
        .unwrap();
    await_line(&run, "wepp", "cache debt: to be told later reason=");
    eventually("it is in the daemon's log", || {
        run.mount.log().contains("cache debt")
    });
}

#[test]
fn no_secret_is_shown() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("wepp.nodb"), "{}").unwrap();
    let mut redis = super::common::redis::RedisServer::with_password("hunter2secret");
    let mount = super::common::mount::Mount::builder(source.path())
        .redis(&redis.url())
        .args(["--log-level", "debug", "--publish-events"])
        .start();
    let at = mount.path().join("wepp.nodb");
    fs::write(&at, "{\"_n\": 1}").unwrap();
    redis.kill();
    assert!(fs::write(&at, "{\"_n\": 2}").is_err());
    let log = super::text(&mount.path().join("wepp.nodb.log"));
    assert!(log.contains("errno=ENOLCK"), "{log}");
    assert!(!log.contains("hunter2") && !mount.log().contains("hunter2"));
}
