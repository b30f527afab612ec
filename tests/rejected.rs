//! `nodbfs rejected`: what was refused can be listed and read, exactly, and is bounded (promise 3).

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::mount::Mount;
use common::run::{BOTH, KNOWN_AS, Kind, Run, eventually};
use serde_json::Value;

const NAME: &str = "wepp.nodb";

/// Exit code, stdout and stderr of `nodbfs rejected`.
fn nodbfs(state_dir: &Path, args: &[&str]) -> (i32, Vec<u8>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodbfs"))
        .arg("rejected")
        .args(args)
        .arg("--state-dir")
        .arg(state_dir)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), output.stdout, said)
}

/// What it says, if it succeeds without a word on stderr.
#[track_caller]
fn said(state_dir: &Path, args: &[&str]) -> Vec<u8> {
    let (code, out, errors) = nodbfs(state_dir, args);
    assert_eq!((code, errors.as_str()), (0, ""), "{args:?}");
    out
}

#[track_caller]
fn list(state_dir: &Path) -> Vec<Value> {
    serde_json::from_slice(&said(state_dir, &["list", "--json"])).unwrap()
}

fn text<'a>(facts: &'a Value, field: &str) -> &'a str {
    facts[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field}: {facts}"))
}

fn refuse(run: &Run, name: &str, what: &str, errno: &str) {
    assert_eq!(run.python(name, what), errno, "{what}");
}

/// By every road of a write: the facts are those of the refusal, and the bytes the writer's own.
#[test]
fn what_was_refused_is_listed_and_shown_exactly() {
    for kind in BOTH {
        let run = Run::new(kind);
        let state = run.mount.state_dir();
        let child = "_pups/omni/scenarios/uniform_low/wepp.nodb";
        let close = r#"
fd = os.open(path, os.O_WRONLY | os.O_TRUNC); os.write(fd, CONTENT); os.close(fd)"#;
        let rename = r#"
fd = os.open(path + ".t", os.O_WRONLY | os.O_CREAT); os.write(fd, CONTENT); os.close(fd)
os.rename(path + ".t", path)"#;
        let sync = r#"
fd = os.open(path, os.O_WRONLY | os.O_CREAT); os.write(fd, CONTENT); os.fsync(fd)"#;
        let readonly = r#"
fd = os.open(path, os.O_WRONLY | os.O_TRUNC); os.write(fd, CONTENT)
open(os.path.join(os.path.dirname(disk), "READONLY"), "w").close(); os.close(fd)"#;
        let stale = r#"
fd = os.open(path, os.O_WRONLY | os.O_TRUNC); os.write(fd, CONTENT)
open(disk + ".t", "w").write("{}"); os.rename(disk + ".t", disk); os.close(fd)"#;
        let refused: [(_, _, &[u8], _, _); 5] = [
            (NAME, close, b"{\0\xff'\r\n", "EBADMSG", libc::EBADMSG),
            (child, rename, b"half of ", "EBADMSG", libc::EBADMSG),
            ("new.nodb", sync, b"[1,]", "EBADMSG", libc::EBADMSG),
            (NAME, stale, b"{\"by\": \"me\"}", "ESTALE", libc::ESTALE),
            (NAME, readonly, b"{\"late\": 1}", "EROFS", libc::EROFS),
        ];
        for (number, (name, road, content, errno, code)) in refused.into_iter().enumerate() {
            let written = format!("b'{}'", content.escape_ascii());
            refuse(&run, name, &road.replace("CONTENT", &written), errno);
            eventually("it is kept", || list(state).len() > number);
            let kept = list(state);
            assert_eq!(kept.len(), number + 1, "{road}");
            let latest = &kept[0];
            assert!(
                said(state, &["show", text(latest, "id")]) == content,
                "{road}"
            );
            assert_eq!(fs::read(text(latest, "document")).unwrap(), content);
            assert_eq!(text(latest, "path"), name);
            assert_eq!(Path::new(text(latest, "source")), run.source());
            assert_eq!(text(latest, "key"), format!("{KNOWN_AS}/{name}"));
            assert_eq!(latest["errno"], code);
            assert_eq!(latest["size"], content.len());
            assert_eq!(latest["uid"], rustix::process::geteuid().as_raw());
            assert!(latest["pid"].is_u64(), "{latest}");
            // what other tools make of the bytes
            let sum = Command::new("sha256sum")
                .arg(text(latest, "document"))
                .output()
                .unwrap();
            assert!(sum.stdout.starts_with(text(latest, "sha256").as_bytes()));
            // the log says how to get at it
            let command = format!(
                "rejected show {} --state-dir {}",
                text(latest, "id"),
                state.display()
            );
            eventually("the log names the command", || {
                run.mount.log().contains(&command)
            });
        }
        // people see the same, the latest first
        let table = String::from_utf8(said(state, &["list"])).unwrap();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("ID "), "{table}");
        let kept = list(state);
        assert_eq!(lines.len(), kept.len() + 1, "{table}");
        for (line, facts) in lines[1..].iter().zip(&kept) {
            let controller = format!("{}/{}", text(facts, "source"), text(facts, "path"));
            for cell in [
                text(facts, "id"),
                text(facts, "time"),
                &controller,
                text(facts, "reason"),
            ] {
                assert!(line.contains(cell), "{cell} is not in {line}");
            }
        }
        assert!(
            kept.iter()
                .map(|facts| text(facts, "time"))
                .is_sorted_by(|new, old| new >= old)
        );
    }
}

/// A writer that is killed before any commit was tried leaves what it wrote, too.
#[test]
fn half_a_document_of_a_killed_writer_is_listed() {
    let run = Run::new(Kind::Embedded);
    let code = "import os, signal, sys
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC), b'{\"half\": ')
os.kill(os.getpid(), signal.SIGKILL)";
    let mut writer = Command::new("python3")
        .args(["-c", code])
        .arg(run.at(NAME))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    writer.wait().unwrap();
    let state = run.mount.state_dir();
    eventually("it is kept", || !list(state).is_empty());
    let kept = list(state).remove(0);
    assert_eq!(said(state, &["show", text(&kept, "id")]), b"{\"half\": ");
    assert_eq!(kept["pid"], writer.id());
}

/// A controller's name of any length is no obstacle.
#[test]
fn a_controller_with_the_longest_name_is_kept() {
    let run = Run::new(Kind::Embedded);
    let name = format!("{}.nodb", "x".repeat(250));
    refuse(
        &run,
        &name,
        "with open(path, 'w') as f: f.write('{')",
        "EBADMSG",
    );
    let state = run.mount.state_dir();
    eventually("it is kept", || !list(state).is_empty());
    assert_eq!(text(&list(state)[0], "path"), name);
}

/// Two mounts that share the state directory, as all of a user's do by default, are listed together.
#[test]
fn several_mounts_are_listed_together_and_bounded_together() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let runs = ["one", "two"].map(|name| {
        let run = dir.path().join(name);
        fs::create_dir(&run).unwrap();
        fs::write(run.join(NAME), "{}").unwrap();
        run
    });
    let mounts = runs
        .clone()
        .map(|run| Mount::builder(run).state_dir(&state).start());
    let code = "import errno, os, sys
for n in range(40):
    for path in sys.argv[1:]:
        try:
            with open(path, 'w') as file:
                file.write('[%d' % n)
        except OSError as error:
            assert error.errno == errno.EBADMSG
        else:
            raise AssertionError('not refused')";
    let status = Command::new("python3")
        .args(["-c", code])
        .args(mounts.iter().map(|mount| mount.path().join(NAME)))
        .status();
    assert!(status.unwrap().success());
    let sources = || -> HashSet<_> {
        let kept = list(&state);
        kept.iter()
            .map(|facts| text(facts, "source").to_owned())
            .collect()
    };
    let contents = || -> Vec<_> {
        let kept = list(&state);
        let read = |facts: &Value| fs::read_to_string(text(facts, "document")).unwrap_or_default();
        kept.iter().map(read).collect()
    };
    eventually("the latest of both are kept", || {
        contents()
            .iter()
            .filter(|content| *content == "[39")
            .count()
            == 2
    });
    eventually("as many as may be", || list(&state).len() == 64);
    assert_eq!(sources(), runs.map(|run| run.display().to_string()).into());
    // the oldest have gone
    assert!(!contents().contains(&"[0".to_owned()));
}

/// 256 MiB: the oldest go, however few there are.
#[test]
fn what_is_kept_is_bounded_in_bytes() {
    let run = Run::new(Kind::Embedded);
    let state = run.mount.state_dir();
    let refuse = |content: &str| {
        let what = format!("with open(path, 'w') as f: f.write('{content}')");
        refuse(&run, NAME, &what, "EBADMSG");
        eventually("it is kept", || {
            let latest = list(state)
                .first()
                .map(|facts| said(state, &["show", text(facts, "id")]));
            latest.as_deref() == Some(content.as_bytes())
        });
    };
    // as if the first had been so large
    let grow = |facts: &Value, size: u64| {
        let document = fs::File::options()
            .write(true)
            .open(text(facts, "document"));
        document.unwrap().set_len(size).unwrap();
    };
    refuse("[1");
    let first = list(state).remove(0);
    grow(&first, (256 << 20) - 2);
    refuse("[2");
    assert_eq!(list(state).len(), 2, "just within the bound");
    refuse("[3");
    eventually("the first has gone", || list(state).len() == 2);
    assert!(list(state).iter().all(|facts| facts["id"] != first["id"]));
}

/// By the id or the beginning of one; what is ambiguous or unknown says what to do.
#[test]
fn they_are_removed_by_id_or_all_at_once() {
    let run = Run::new(Kind::Embedded);
    let state = run.mount.state_dir();
    // more than there are beginnings: two share theirs
    for number in 0..17 {
        refuse(
            &run,
            NAME,
            &format!("with open(path, 'w') as f: f.write('[{number}')"),
            "EBADMSG",
        );
    }
    eventually("all are kept", || list(state).len() == 17);
    let ids: Vec<_> = list(state)
        .iter()
        .map(|facts| text(facts, "id").to_owned())
        .collect();
    let shared = (0..16).map(|digit| format!("{digit:x}"));
    let shared = shared
        .into_iter()
        .find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1);
    let shared = shared.expect("17 ids begin with 16 digits");
    let (code, out, errors) = nodbfs(state, &["show", &shared]);
    assert_eq!((code, out.as_slice()), (2, &b""[..]));
    assert!(errors.contains("Hint: write more of it"), "{errors}");
    for args in [&["show", "nothing"][..], &["remove", &ids[0], "nothing"]] {
        let (code, out, errors) = nodbfs(state, args);
        assert_eq!((code, out.as_slice()), (1, &b""[..]), "{errors}");
        assert!(
            errors.contains("no rejected document 'nothing'")
                && errors.contains("Hint: 'nodbfs rejected list'"),
            "{errors}"
        );
    }
    assert_eq!(
        list(state).len(),
        17,
        "of several that are named none goes unless all are there"
    );
    said(state, &["remove", &ids[3], &ids[5]]);
    let left: Vec<_> = list(state)
        .iter()
        .map(|facts| text(facts, "id").to_owned())
        .collect();
    assert_eq!(left.len(), 15);
    assert!(!left.contains(&ids[3]) && !left.contains(&ids[5]));
    said(state, &["remove", "--all"]);
    assert_eq!(list(state).len(), 0);
    let (code, out, errors) = nodbfs(state, &["list"]);
    assert_eq!((code, out.as_slice()), (0, &b""[..]));
    assert!(errors.contains("Nothing is kept in"), "{errors}");
    for args in [
        &["remove"][..],
        &["remove", "--all", "x"],
        &["show"],
        &["show", ""],
        &[],
    ] {
        assert_eq!(nodbfs(state, args).0, 2, "{args:?}");
    }
}
