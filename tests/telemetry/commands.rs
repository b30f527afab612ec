//! `nodbfs log`, `publish` and `log-level`.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use super::common::redis::without_settings;
use super::common::run::{BOTH, Kind, RUNID, Run};
use super::{await_followed, await_line, log, publish, save, text};

fn command(args: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodbfs"));
    without_settings(&mut command);
    command.args(args).args(paths).stdin(Stdio::null());
    command
}

fn nodbfs(args: &[&str], paths: &[&Path]) -> Output {
    command(args, paths).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `nodbfs log -f`; killed on drop.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    fn start(args: &[&str], path: &Path) -> Self {
        let mut child = command(&[&["log", "-f"], args].concat(), &[path])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on to a line of which this holds.
    fn until(&mut self, holds: impl Fn(&str) -> bool) {
        assert!(self.lines.any(|line| holds(&line.unwrap())), "it ended");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // it may be gone already, which is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn log_shows_what_the_virtual_log_shows_and_a_run_all_its_controllers() {
    for kind in BOTH {
        let run = Run::new(kind);
        save(&run, "wepp", 1);
        save(&run, "soils", 1);
        await_followed(&run, "wepp");
        let shown = stdout(&nodbfs(&["log"], &[&run.at("wepp.nodb")]));
        assert_eq!(shown, log(&run, "wepp"));
        let all = stdout(&nodbfs(&["log"], &[run.mount.path()]));
        for name in ["wepp", "soils"] {
            assert!(
                all.contains(&format!("wepppy.run.{RUNID}.{name}: committed")),
                "{all}"
            );
        }
        assert!(!all.contains('\u{1b}'), "no colours but on a terminal");
        let json = stdout(&nodbfs(&["log", "--json"], &[run.mount.path()]));
        let rows: Vec<Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let committed = |row: &&Value| row["message"].as_str().unwrap().starts_with("committed");
        let row = rows.iter().find(committed).unwrap();
        assert_eq!(
            (&row["runid"], &row["level"]),
            (&RUNID.into(), &"INFO".into())
        );
        assert_eq!(row["controller"], "wepp.nodb");
    }
}

#[test]
fn log_follows_a_run_with_all_its_controllers() {
    let run = Run::new(Kind::Redis);
    await_followed(&run, "wepp");
    let mut follower = Follower::start(&[], run.mount.path());
    let mut await_words = |words: &str| follower.until(|line| line.contains(words));
    await_words("following the status channel");
    save(&run, "soils", 1);
    await_words("soils: committed");
    publish(&run, "climate", "from elsewhere");
    await_words("climate: message");
    let published = nodbfs(
        &["publish"],
        &[&run.at("wepp.nodb"), Path::new("from a command")],
    );
    stdout(&published);
    await_words("text=from a command");
    assert!(text(&run.on_disk("wepp.log")).ends_with(".wepp: from a command\n"));
}

#[test]
fn levels_are_set_and_shown() {
    for kind in BOTH {
        let run = Run::new(kind);
        await_followed(&run, "wepp");
        let at = run.mount.path();
        let level = |args: &[&str], level: &str| {
            let args = [&["log-level"], args].concat();
            nodbfs(
                &args,
                &[at, Path::new(level)][..if level.is_empty() { 1 } else { 2 }],
            )
        };
        assert_eq!(
            stdout(&level(&[], "")),
            format!("{RUNID}  INFO (default)\n")
        );
        assert_eq!(stdout(&level(&[], "warn")), format!("{RUNID}  WARNING\n"));
        await_line(&run, "wepp", "log level level=WARNING");
        let json: Value = serde_json::from_str(&stdout(&level(&["--json"], ""))).unwrap();
        assert_eq!(
            (&json["set"], &json["level"]),
            (&"30".into(), &"WARNING".into())
        );
        if kind == Kind::Redis {
            let key = format!("loglevel:{RUNID}");
            assert_eq!(run.redis().text_in(15, &["GET", &key]).unwrap(), "30");
        }
        let unknown = level(&[], "loud");
        let errors = String::from_utf8_lossy(&unknown.stderr);
        assert_eq!(unknown.status.code(), Some(2));
        assert!(
            errors.contains("'loud' is no log level") && errors.contains("Hint: "),
            "{errors}"
        );
        assert_eq!(
            stdout(&level(&[], "default")),
            format!("{RUNID}  INFO (default)\n")
        );
    }
}

#[test]
fn what_can_be_known_without_a_mount_is_shown() {
    let run = Run::new(Kind::Redis);
    let source = tempfile::tempdir().unwrap();
    let runid = source
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let file = source.path().join("wepp.nodb");
    fs::write(&file, "{}").unwrap();
    let url = run.redis().unix_url();
    let on_redis = ["--redis", &url];
    let publish = [&["publish"], &on_redis[..]].concat();
    stdout(&nodbfs(&publish, &[&file, Path::new("hello")]));
    let line = text(&source.path().join("wepp.log"));
    assert!(
        line.ends_with(&format!(" [INFO] wepppy.run.{runid}.wepp: hello\n")),
        "{line}"
    );
    assert_eq!(stdout(&nodbfs(&["log"], &[&file])), line);
    let mut follower = Follower::start(&on_redis, source.path());
    follower.until(|line| line.ends_with("wepp: hello"));
    let subscribed = || {
        let count = run.redis().cmd(&["PUBSUB", "NUMPAT"]);
        ::redis::from_redis_value::<u64>(count).unwrap() > 0
    };
    super::eventually("the run is followed", subscribed);
    run.redis()
        .cmd(&["PUBLISH", &format!("{runid}:wepp"), "from elsewhere"]);
    follower.until(|line| line.ends_with("text=from elsewhere"));
}

#[test]
fn errors_come_with_a_hint() {
    let run = Run::new(Kind::Embedded);
    let empty = tempfile::tempdir().unwrap();
    let (wepp, bare) = (run.at("wepp.nodb"), empty.path().join("wepp.nodb"));
    fs::write(&bare, "{}").unwrap();
    for (args, paths, words) in [
        (
            &["log"][..],
            vec![&*run.at("nodb.version")],
            "is no controller",
        ),
        (
            &["publish"],
            vec![run.mount.path(), Path::new("x")],
            "is a directory",
        ),
        (
            &["publish"],
            vec![&*bare, Path::new("x")],
            "there is no Redis",
        ),
        (&["log", "-f"], vec![&*bare], "there is no Redis"),
        (
            &["publish"],
            vec![&*wepp, Path::new("bell \u{7}")],
            "UTF-8 text",
        ),
    ] {
        let failed = nodbfs(args, &paths);
        let errors = String::from_utf8_lossy(&failed.stderr);
        assert!(
            !failed.status.success() && errors.contains(words),
            "{args:?}: {errors}"
        );
    }
}
