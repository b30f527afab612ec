//! Programs people use, on a run as it is: archives and comparisons see what is on disk, and none
//! of it waits for Redis.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use crate::common::mount::Mount;
use crate::common::redis::RedisServer;
use crate::common::sample::{RunOptions, make_run};
use crate::common::twins::Twins;

fn run(dir: &Path, script: &str) -> Output {
    Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .expect("a shell")
}

/// A run and its mount.
fn mounted_run() -> (tempfile::TempDir, Mount) {
    let source = tempfile::tempdir().unwrap();
    make_run(source.path(), &RunOptions::default()).unwrap();
    let mount = Mount::builder(source.path()).start();
    (source, mount)
}

#[test]
fn every_comparison_finds_the_mount_equal() {
    let (source, mount) = mounted_run();
    let (from, to) = (mount.path().display(), source.path().display());
    for comparison in [
        format!("diff -r --no-dereference {from} {to}"),
        format!("rsync -naAXHi --delete --checksum {from}/ {to}/"),
        format!("rsync -naAXHi --delete --checksum {to}/ {from}/"),
        format!("(cd {to} && tar --sort=name -cf - .) | tar -df - --directory {from}"),
        format!(
            "du -a {to} | sed s,{to},, | sort >/tmp/$$.du; du -a {from} | sed s,{from},, | sort | diff /tmp/$$.du -; rm /tmp/$$.du"
        ),
    ] {
        // twice: with a cold cache and with a warm one
        for _ in 0..2 {
            let found = run(Path::new("/"), &comparison);
            let said = [found.stdout, found.stderr].concat();
            assert!(
                found.status.success() && said.is_empty(),
                "{comparison}:\n{}",
                String::from_utf8_lossy(&said)
            );
        }
    }
    let listing = "find . -printf '%p %y %m %n %U:%G %s %i %T@ %l\\n' | sort";
    let [mounted, lower] = [mount.path(), source.path()]
        .map(|dir| String::from_utf8(run(dir, listing).stdout).unwrap());
    let root_differs = |listing: &str| {
        listing
            .lines()
            .filter(|line| !line.starts_with(". "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(root_differs(&mounted), root_differs(&lower));
}

#[test]
fn an_archive_of_the_mount_is_one_of_the_source() {
    let (source, mount) = mounted_run();
    let archives = tempfile::tempdir().unwrap();
    let contents = [("mounted", mount.path()), ("source", source.path())].map(|(name, dir)| {
        let archive = archives.path().join(name).with_extension("zip");
        let zipped = run(dir, &format!("zip -qry {} .", archive.display()));
        assert!(zipped.status.success());
        run(
            archives.path(),
            &format!("unzip -v {name}.zip | grep -v Archive: | sort"),
        )
        .stdout
    });
    assert!(!contents[0].is_empty());
    assert_eq!(
        String::from_utf8_lossy(&contents[0]),
        String::from_utf8_lossy(&contents[1])
    );
}

#[test]
fn programs_that_ask_a_lot_of_a_file_system() {
    let twins = Twins::new([]);
    for script in [
        "git init -q . && git config user.email a@b && git config user.name n && seq 1 1000 >f && mkdir d && cp f d && git add . \
         && git commit -qm one && git gc -q && echo >>f && git commit -qam two && git fsck 2>&1 && git clone -q . c && diff f c/f",
        "sqlite3 db 'pragma journal_mode=wal; create table t(x); insert into t values(1),(2); select sum(x) from t' && \
         sqlite3 db 'begin; insert into t values(3); rollback; pragma integrity_check; select count(*) from t'",
        "mkdir from && seq 1 99 >from/a && ln from/a from/b && ln -s a from/c && mkfifo from/p && cp -a from to && tar -cf t.tar from \
         && mkdir out && tar -xf t.tar -C out && diff -r out/from/a to/a && rsync -aH from/ synced && find synced to out -printf '%p %y %m %n %s %l\\n' | sort",
        "printf '#!/bin/sh\\necho ran\\n' >tool && chmod +x tool && ./tool && cp /bin/true . && ./true && echo >>true; sort -o f f && sed -i s/1/2/ f && head -3 f",
        "python3 -c \"
import fcntl, os, subprocess
f = open('locked', 'w')
for lock in (fcntl.flock, fcntl.lockf):
    lock(f, fcntl.LOCK_EX)
    print(subprocess.call(['python3', '-c', 'import fcntl; fcntl.' + lock.__name__ + '(open(\\\"locked\\\", \\\"w\\\"), fcntl.LOCK_EX | fcntl.LOCK_NB)'], stderr=subprocess.DEVNULL))
\"",
        "(ulimit -f 4; trap '' XFSZ; dd if=/dev/zero of=limited bs=1024 count=20 2>&1 | head -1; truncate -s 1M limited; stat -c %s limited) 2>&1",
    ] {
        let said = twins.script(script);
        assert!(said.ends_with("exit status: 0"), "{said}");
    }
}

/// Several at once make, move and remove the same few names; then mount and source agree.
#[test]
fn a_crowd_leaves_mount_and_source_equal() {
    let twins = Twins::new([]);
    let dir = twins.mounted();
    thread::scope(|scope| {
        for worker in 0..4_usize {
            scope.spawn(move || {
                for round in 0..400_usize {
                    let name = |i: usize| dir.join(format!("n{}", (worker + round * i) % 5));
                    // any of these may come too late, which is an answer as good as another
                    let _ = match (worker + round) % 7 {
                        0 | 1 => fs::write(name(1), format!("{worker} {round}")),
                        2 => fs::rename(name(1), name(3)),
                        3 => fs::remove_file(name(2)),
                        4 => fs::create_dir(name(1)),
                        5 => fs::hard_link(name(2), name(3)),
                        _ => fs::remove_dir(name(1)).and_then(|()| fs::read_dir(dir).map(drop)),
                    };
                }
            });
        }
    });
    let listing =
        "find . -mindepth 1 -printf '%p %y %m %n %s %i %T@\\n' -type f -exec md5sum {} + | sort";
    let [mounted, source] = [dir, &twins.source()].map(|dir| run(dir, listing).stdout);
    assert_eq!(
        String::from_utf8_lossy(&mounted),
        String::from_utf8_lossy(&source)
    );
}

/// Redis stopped in the middle of everything: it accepts connections and answers nothing.
#[test]
fn no_plain_operation_waits_for_redis() {
    let server = RedisServer::start();
    let source = tempfile::tempdir().unwrap();
    make_run(source.path(), &RunOptions::default()).unwrap();
    let mount = Mount::builder(source.path()).redis(&server.url()).start();
    server.pause();
    let script = "set -e; cd wepp/runs; ls -l >/dev/null; cat p1.sol >/dev/null; echo more >>p1.sol; cp -a . ../copy; mv ../copy/p1.sol ../moved
        ln ../moved ../linked; ln -s moved ../soft; mkdir -p ../x/y; rmdir ../x/y; truncate -s 100 p2.sol; chmod 600 p2.sol; touch -d @5 p2.sol
        setfattr -n user.x -v 1 p2.sol; getfattr -d p2.sol >/dev/null; dd if=/dev/zero of=new bs=4096 count=9 conv=fsync status=none; sync new
        sed -i s/e/E/ p3.sol; df . >/dev/null; find .. >/dev/null; rm -r ../copy; test -f ../linked; readlink ../soft";
    let worked = run(mount.path(), script);
    server.cont();
    assert!(
        worked.status.success(),
        "{}",
        String::from_utf8_lossy(&worked.stderr)
    );
}
