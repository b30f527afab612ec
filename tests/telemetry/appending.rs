//! Appending to `x.nodb.log` publishes, and writes the real log, once.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::common::run::{BOTH, Kind, RUNID, Run};
use super::{await_followed, await_line, lines, log, run_without_log, text};

/// The messages of the real log.
fn real(run: &Run) -> Vec<String> {
    let text = fs::read_to_string(run.on_disk("wepp.log")).unwrap_or_default();
    let start = format!(" [INFO] wepppy.run.{RUNID}.wepp: ");
    let message = |line: &str| line[19..].strip_prefix(&start).map(str::to_owned);
    text.lines()
        .map(|line| message(line).unwrap_or_else(|| panic!("{line}")))
        .collect()
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

/// One write to the log, opened for it.
fn append(run: &Run, bytes: &[u8]) -> Option<i32> {
    let log = File::options().append(true).open(run.at("wepp.nodb.log"));
    errno(log.and_then(|mut log| log.write_all(bytes)))
}

#[test]
fn each_line_is_published_once_and_written_once() {
    for kind in BOTH {
        let run = run_without_log(kind);
        await_followed(&run, "wepp");
        let script = "
            echo 'first line' >> wepp.nodb.log
            printf 'second\\nthird: a=1\\n\\nfou' >> wepp.nodb.log
            python3 -c '
import os
log = os.open(\"wepp.nodb.log\", os.O_WRONLY | os.O_APPEND)
os.write(log, b\"fi\")
os.write(log, b\"fth\")
if os.fork() == 0:
    os._exit(0)  # a close of it, but not its writer who closes
os.wait()
os.write(log, b\" line\\nsixth\")
os.close(log)'";
        let mut connection = (kind == Kind::Redis).then(|| run.redis().connect(0).unwrap());
        let listener = connection.as_mut().map(|connection| {
            let mut listener = connection.as_pubsub();
            listener.subscribe(format!("{RUNID}:wepp")).unwrap();
            let patience = Some(Duration::from_secs(60));
            listener.set_read_timeout(patience).unwrap();
            listener
        });
        let appended = run.shell(script, &[]);
        assert!(appended.status.success(), "{appended:?}");
        let told = [
            "first line",
            "second",
            "third: a=1",
            "fou",
            "fifth line",
            "sixth",
        ];
        assert_eq!(real(&run), told);
        if let Some(mut listener) = listener {
            for text in told {
                let message: String = listener.get_message().unwrap().get_payload().unwrap();
                assert_eq!(message, text);
            }
        }
        await_line(&run, "wepp", "text=sixth");
        let log = log(&run, "wepp");
        assert_eq!(lines(&log, "message channel=").len(), told.len(), "{log}");
        let mode = fs::metadata(run.on_disk("wepp.log"))
            .unwrap()
            .permissions()
            .mode();
        let controllers = fs::metadata(run.on_disk("wepp.nodb")).unwrap();
        assert_eq!(mode & 0o777, controllers.permissions().mode() & 0o666);
    }
}

#[test]
fn what_cannot_be_a_message_is_refused_and_nothing_is_half_published() {
    let run = run_without_log(Kind::Redis);
    let long = vec![b'a'; 1_000_000];
    for (bytes, errno, why) in [
        (&long[..], libc::EMSGSIZE, "more than a message may have"),
        (
            &[&b"good\n"[..], &long, b"\n"].concat(),
            libc::EMSGSIZE,
            "more than a message may have",
        ),
        (b"good\nnot \xff text\n", libc::EINVAL, "UTF-8 text"),
        (b"good\nbell \x07\n", libc::EINVAL, "UTF-8 text"),
        (b"good\nzero \0\n", libc::EINVAL, "UTF-8 text"),
    ] {
        let before = lines(&log(&run, "wepp"), why).len();
        assert_eq!(append(&run, bytes), Some(errno), "{why}");
        assert!(
            lines(&log(&run, "wepp"), why).len() > before,
            "{}",
            log(&run, "wepp")
        );
        assert!(
            run.attribute("wepp.nodb", "last_error")
                .unwrap()
                .contains(why)
        );
    }
    assert_eq!(real(&run), Vec::<String>::new());
    // in pieces, as a pipe brings it; its end is not another line
    let mut log = File::options()
        .append(true)
        .open(run.at("wepp.nodb.log"))
        .unwrap();
    for piece in [
        &long[..60_000],
        &long[..60_000],
        &long[..60_000],
        b"its end\n",
    ] {
        let _ = log.write_all(piece);
    }
    log.write_all(b"after it\n").unwrap();
    drop(log);
    assert_eq!(real(&run), ["after it"]);
}

#[test]
fn while_redis_is_away_nothing_is_appended_and_a_retry_appends_once() {
    let mut run = run_without_log(Kind::Redis);
    assert_eq!(append(&run, b"before\n"), None);
    run.redis_mut().kill();
    let mut log = File::options()
        .append(true)
        .open(run.at("wepp.nodb.log"))
        .unwrap();
    assert_eq!(errno(log.write_all(b"away\n")), Some(libc::ECOMM));
    await_line(&run, "wepp", "refused errno=ECOMM");
    assert_eq!(real(&run), ["before"]);
    run.redis_mut().restart();
    super::eventually("it is published", || log.write_all(b"away\n").is_ok());
    assert_eq!(real(&run), ["before", "away"]);
}

#[test]
fn who_may_not_write_the_controller_may_not_append() {
    let run = run_without_log(Kind::Embedded);
    fs::set_permissions(run.at("wepp.nodb"), fs::Permissions::from_mode(0o444)).unwrap();
    let log = fs::metadata(run.at("wepp.nodb.log")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o444);
    for (script, works) in [
        ("chmod 600 wepp.nodb.log", false),
        ("chown 1 wepp.nodb.log", false),
        ("rm wepp.nodb.log", false),
        ("mv wepp.nodb.log other", false),
        ("ln wepp.nodb.log other", false),
        ("touch -c wepp.nodb.log", true),
    ] {
        let done = run.shell(script, &[]);
        assert_eq!(done.status.success(), works, "{script}: {done:?}");
    }
    assert!(
        text(&run.at("wepp.nodb.log")).is_empty(),
        "nothing has happened"
    );
}
