//! SQLite lives on range locks: two writers lose nothing, both on the mount or one beside it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;

use crate::common::mount::Mount;

const WRITER: &str = r#"
import sqlite3, sys
path, name, rounds, again = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "again"
def connect():
    base = sqlite3.connect(path, timeout=60, isolation_level=None)
    base.execute("pragma synchronous = off")
    return base
base = connect()
for _ in range(rounds):
    if again:
        base.close()
        base = connect()
    base.execute("begin immediate")
    count, = base.execute("select count(*) from entries").fetchone()
    base.execute("insert into entries values (?, ?, ?)", (name, count, "x" * 700))
    base.execute("commit")
"#;

const SETUP: &str = r#"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
base.execute("pragma journal_mode = " + sys.argv[2])
base.execute("create table entries (name, number, filling)")
base.commit()
"#;

const CHECK: &str = r#"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
print(base.execute("pragma integrity_check").fetchall())
print(base.execute("select count(*), count(distinct number), max(number) from entries").fetchall())
"#;

const ROUNDS: usize = 40;

fn python(code: &str, path: &Path, args: &[&str]) -> Child {
    let mut command = Command::new("python3");
    command.args(["-c", code]).arg(path).args(args);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn two_writers(journal: &str, again: &str) {
    let source = tempfile::tempdir().unwrap();
    let mount = Mount::builder(source.path()).start();
    let mut ways = vec![("mounted", mount.path())];
    // without kernel passthrough a memory map on the mount is not one of the source
    if journal != "wal" || geteuid().is_root() {
        ways.push(("below", source.path()));
    }
    for (name, other) in ways {
        output(python(SETUP, &mount.path().join(name), &[journal]));
        let writers = [mount.path(), other].map(|way| {
            let args = ["writer", &ROUNDS.to_string(), again];
            python(WRITER, &way.join(name), &args)
        });
        writers.into_iter().map(output).for_each(drop);
        let all = 2 * ROUNDS;
        let expected = format!("[('ok',)]\n[({all}, {all}, {})]\n", all - 1);
        for way in [mount.path(), other] {
            let seen = output(python(CHECK, &way.join(name), &[]));
            assert_eq!(seen, expected, "{journal} {name}");
        }
    }
}

#[test]
fn two_writers_with_a_journal_lose_nothing() {
    two_writers("delete", "once");
}

#[test]
fn two_writers_with_a_write_ahead_log_lose_nothing() {
    two_writers("wal", "once");
}

#[test]
fn writers_that_open_the_database_again_and_again_lose_nothing() {
    two_writers("wal", "again");
}
