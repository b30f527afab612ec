//! Plain files: whatever pair of the mount, another mount and the source two processes lock through, they
//! meet each other as two on the source do.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::mount::Mount;
use crate::common::redis::RedisServer;
use crate::common::run::eventually;
use crate::locker::Locker;

/// A source and two mounts of it.
struct Scene {
    one: Mount,
    two: Mount,
    // both need it to their end
    _redis: RedisServer,
    source: TempDir,
}

impl Scene {
    fn new() -> Self {
        let (redis, source) = (RedisServer::start(), tempfile::tempdir().unwrap());
        let mount = || {
            let builder = Mount::builder(source.path());
            builder.redis(&redis.unix_url()).start()
        };
        Self {
            one: mount(),
            two: mount(),
            _redis: redis,
            source,
        }
    }

    /// What two processes see that come by each pair of ways is what two see on the source. `told`: the
    /// file has been locked before, so that the kernel tells of each `close`.
    #[track_caller]
    fn same(&self, what: &str, told: bool, steps: impl Fn(&mut Locker, &mut Locker) -> Vec<Value>) {
        let (source, one, two) = (self.source.path(), self.one.path(), self.two.path());
        let mut lockers = [Locker::new(), Locker::new()];
        let mut with = |ways| self.with(&mut lockers, what, told, ways, &steps);
        let native = with([source, source]);
        for ways in [[one, one], [one, source], [source, one], [one, two]] {
            assert_eq!(with(ways), native, "{what}: {ways:?}");
        }
    }

    #[track_caller]
    fn with(
        &self,
        [one, two]: &mut [Locker; 2],
        what: &str,
        told: bool,
        ways: [&Path; 2],
        steps: impl Fn(&mut Locker, &mut Locker) -> Vec<Value>,
    ) -> Vec<Value> {
        fs::write(self.source.path().join(what), [b'x'; 100]).unwrap();
        let [a, b] = ways.map(|way| way.join(what));
        if told {
            for (locker, path) in [(&mut *one, &a), (&mut *two, &b)] {
                locker.open("f", path);
                locker.ok("lock(f, 'read')");
                locker.ok("close(f)");
            }
        }
        one.open("f", &a);
        two.open("f", &b);
        let seen = steps(one, two);
        for locker in [one, two] {
            locker.ok("os.closerange(3, 10)");
        }
        fs::remove_file(self.source.path().join(what)).unwrap();
        seen
    }

    fn file(&self, name: &str) -> (PathBuf, PathBuf) {
        fs::write(self.source.path().join(name), [b'x'; 100]).unwrap();
        (self.one.path().join(name), self.source.path().join(name))
    }
}

/// Until the step gives nothing, as when the lock it asks for is free.
fn until_ok(locker: &mut Locker, step: &str) {
    eventually(step, || locker.call(step) == Value::Null);
}

#[test]
fn ranges_exclude_split_and_change_as_on_the_source() {
    let scene = Scene::new();
    scene.same("ranges", false, |one, two| {
        one.ok("lock(f, 'write', 10, 10)");
        let seen = vec![
            two.call("lock(f, 'write', 0, 0)"),
            two.call("lock(f, 'write', 0, 10)"),
            two.call("lock(f, 'read', 20, 0)"),
            two.call("lock(f, 'read', 19, 1)"),
            two.call("test(f, 'read', 0, 0)[:3]"),
            one.call("test(f, 'write', 10, 10)"),
            one.call("lock(f, 'write', 0, 15)"),
            // what is unlocked in the middle splits, what is weaker lets others in
            one.call("unlock(f, 14, 2)"),
            two.call("lock(f, 'write', 14, 2)"),
            two.call("test(f, 'write', 16, 0)[:3]"),
            two.call("unlock(f, 0, 0)"),
            one.call("lock(f, 'read', 10, 4)"),
            two.call("lock(f, 'read', 10, 4)"),
            one.call("lock(f, 'write', 10, 4)"),
            two.call("unlock(f, 10, 4)"),
            one.call("lock(f, 'write', 10, 4)"),
        ];
        one.ok("close(f)");
        until_ok(two, "lock(f, 'write')");
        seen
    });
}

#[test]
fn flocks_exclude_and_change_and_know_nothing_of_ranges() {
    let scene = Scene::new();
    scene.same("flocks", false, |one, two| {
        one.ok("flock(f, LOCK_SH)");
        let seen = vec![
            two.call("flock(f, LOCK_SH | LOCK_NB)"),
            two.call("flock(f, LOCK_EX | LOCK_NB)"),
            two.call("lock(f, 'write')"),
            one.call("flock(f, LOCK_EX | LOCK_NB)"),
            two.call("flock(f, LOCK_EX | LOCK_NB)"),
            one.call("flock(f, LOCK_UN)"),
            two.call("flock(f, LOCK_EX | LOCK_NB)"),
            one.call("flock(f, LOCK_SH | LOCK_NB)"),
            two.call("flock(f, LOCK_UN)"),
            one.call("lock(f, 'read')"),
        ];
        seen
    });
}

#[test]
fn locks_of_descriptions_and_of_processes_exclude_each_other() {
    let scene = Scene::new();
    scene.same("descriptions", true, |one, two| {
        one.ok("lock(f, 'write', 0, 10, ofd=True)");
        vec![
            two.call("lock(f, 'write', 0, 1)"),
            two.call("lock(f, 'write', 0, 1, ofd=True)"),
            two.call("test(f, 'write', 0, 1, ofd=True)"),
            // not even a process and its own description are one
            one.call("lock(f, 'write', 9, 1)"),
            one.call("close(dup(f))"),
            two.call("lock(f, 'read', 0, 10)"),
            one.call("unlock(f, ofd=True)"),
            two.call("lock(f, 'read', 0, 10)"),
            one.call("lock(f, 'write', 0, 1, ofd=True)"),
        ]
    });
}

#[test]
fn who_is_in_the_way_is_named() {
    let scene = Scene::new();
    let (mounted, source) = scene.file("named");
    let (mut one, mut two) = (Locker::new(), Locker::new());
    for (a, b) in [(&mounted, &mounted), (&source, &mounted)] {
        one.open("f", a);
        two.open("f", b);
        one.ok("lock(f, 'read', 5, 5)");
        assert_eq!(
            two.call("test(f, 'write')"),
            json!(["read", 5, 5, one.pid()])
        );
        // a shared one is in nobody's way who wants no more
        assert_eq!(two.call("test(f, 'read')"), json!(["none"]));
        one.ok("close(f)");
        two.ok("close(f)");
    }
}

#[test]
fn a_process_loses_its_ranges_with_any_descriptor_of_the_file() {
    let scene = Scene::new();
    scene.same("closed", true, |one, two| {
        one.ok("lock(f)");
        let mut seen = vec![two.call("lock(f)")];
        one.ok("close(dup(f))");
        seen.push(two.call("lock(f)"));
        two.ok("unlock(f)");
        one.ok("flock(f, LOCK_EX)");
        one.ok("close(dup(f))");
        seen.push(two.call("flock(f, LOCK_EX | LOCK_NB)"));
        seen
    });
}

/// The first lock of a file comes through a description whose `close` the kernel does not tell.
#[test]
fn the_first_ranges_of_a_file_go_with_the_file_or_with_the_process() {
    let scene = Scene::new();
    let (mounted, source) = scene.file("first");
    let mut below = Locker::new();
    below.open("f", &source);
    let mut one = Locker::new();
    one.open("f", &mounted);
    one.ok("lock(f)");
    one.ok("close(dup(f))");
    assert_eq!(below.call("lock(f)"), "EAGAIN");
    one.ok("close(f)");
    until_ok(&mut below, "lock(f)");
    below.ok("unlock(f)");

    let (mounted, source) = scene.file("inherited");
    below.ok("close(f)");
    below.open("f", &source);
    one.open("f", &mounted);
    // its own ranges, through the description that it has in common with its parent
    let child = one.call("child(lambda: lock(f))");
    assert_eq!(below.call("lock(f)"), "EAGAIN");
    one.ok(&format!("end({child})"));
    until_ok(&mut below, "lock(f)");
    below.ok("unlock(f)");

    // a description's own outlives the process that asked
    let (mounted, source) = scene.file("handed-on");
    below.ok("close(f)");
    below.open("f", &source);
    one.open("f", &mounted);
    let child = one.call("child(lambda: lock(f, ofd=True))");
    assert_eq!(below.call("lock(f)"), "EAGAIN");
    one.ok(&format!("end({child})"));
    // had it gone with the process, this would have been noticed before the next file's
    let (other, _) = scene.file("watched");
    one.open("g", &other);
    let child = one.call("child(lambda: lock(g))");
    one.ok(&format!("end({child})"));
    let mut second = Locker::new();
    second.open("g", &other);
    until_ok(&mut second, "lock(g)");
    assert_eq!(below.call("lock(f)"), "EAGAIN");
    one.ok("close(f)");
    until_ok(&mut below, "lock(f)");
}

#[test]
fn a_flock_is_inherited_and_ends_with_the_last_descriptor() {
    let scene = Scene::new();
    scene.same("heirs", false, |one, two| {
        one.ok("flock(f, LOCK_EX)");
        let heir = one.call("child(lambda: None)");
        one.ok("close(f)");
        let seen = vec![two.call("flock(f, LOCK_SH | LOCK_NB)")];
        one.ok(&format!("end({heir})"));
        until_ok(two, "flock(f, LOCK_SH | LOCK_NB)");
        seen
    });
}

#[test]
fn whoever_waits_gets_it_when_it_is_given_back() {
    let scene = Scene::new();
    for (take, wait, give_back) in [
        ("lock(f)", "lock(f, wait=True)", "unlock(f)"),
        (
            "lock(f, ofd=True)",
            "lock(f, wait=True, ofd=True)",
            "unlock(f, ofd=True)",
        ),
        (
            "flock(f, LOCK_EX)",
            "flock(f, LOCK_EX)",
            "flock(f, LOCK_UN)",
        ),
    ] {
        scene.same("waited-for", false, |one, two| {
            one.ok(take);
            two.send(wait);
            two.await_waiting();
            // before it gives it back
            one.ok("os.pwrite(f, b'done', 0) and None");
            one.ok(give_back);
            vec![two.answer(), two.call("os.pread(f, 4, 0).decode()")]
        });
    }
}

#[test]
fn whoever_gets_a_lock_sees_what_was_done_under_it() {
    let scene = Scene::new();
    for (take, give_back) in [
        ("lock(f)", "unlock(f)"),
        ("flock(f, LOCK_EX)", "flock(f, LOCK_UN)"),
    ] {
        scene.same("grown", false, |one, two| {
            one.ok(take);
            let before = two.call("os.fstat(f).st_size");
            one.ok("os.pwrite(f, b'y' * 100, 100) and None");
            one.ok(give_back);
            two.ok(take);
            let after = two.call("[os.fstat(f).st_size, os.pread(f, 1, 199).decode()]");
            vec![before, after]
        });
    }
}

#[test]
fn whoever_is_killed_holds_and_wants_nothing_any_more() {
    let scene = Scene::new();
    for (take, wait) in [
        ("lock(f)", "lock(f, wait=True)"),
        ("flock(f, LOCK_EX)", "flock(f, LOCK_EX)"),
    ] {
        let (mounted, source) = scene.file("orphaned");
        let (mut one, mut two, mut below) = (Locker::new(), Locker::new(), Locker::new());
        one.open("f", &mounted);
        one.ok(take);
        two.open("f", &mounted);
        two.send(wait);
        two.await_waiting();
        // returns: a wait does not outlive its process
        two.kill();
        below.open("f", &source);
        below.send(wait);
        below.await_waiting();
        one.kill();
        assert_eq!(below.answer(), Value::Null);
    }
}

#[test]
fn a_signal_ends_the_wait() {
    let scene = Scene::new();
    scene.same("interrupted", false, |one, two| {
        one.ok("lock(f)");
        one.ok("flock(f, LOCK_EX)");
        vec![
            two.call("alarmed(lambda: lock(f, wait=True))"),
            two.call("alarmed(lambda: flock(f, LOCK_EX))"),
        ]
    });
}

#[test]
fn a_lock_that_ended_with_its_file_is_nobodys_in_the_next_moment() {
    let scene = Scene::new();
    let (mounted, _) = scene.file("at-once");
    let mut one = Locker::new();
    let rounds = format!("refused_after_close({mounted:?}, 300)");
    let mut refused = || one.call(&rounds).as_u64().unwrap();
    // some 10 are, where nobody waits for the kernel to say that the file is gone; on a busy machine
    // it may say so late
    assert!((0..3).any(|_| refused() <= 2));
}
