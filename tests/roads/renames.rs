//! Names that move: with and without replacing, exchanged, from two mounts at once, and directories.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Barrier;
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::common::mount::Mount;
use crate::common::run::{BOTH, KNOWN_AS, Kind, Run, STRANGER, assert_equal, eventually, python};
use crate::{CHILD, SOILS, WEPP, assert_gone, python_says, text};

fn rename(run: &Run, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, run.at(from), CWD, run.at(to), flags)
}

fn nanos(run: &Run, name: &str) -> i64 {
    let stat = fs::metadata(run.on_disk(name)).unwrap();
    stat.mtime() * 1_000_000_000 + stat.mtime_nsec()
}

/// The source mounted once more, as on another host.
fn neighbour(run: &Run) -> Mount {
    Mount::builder(run.source())
        .redis(&run.redis().unix_url())
        .args(["--key-root", KNOWN_AS, "--lock-wait", "60s"])
        .start()
}

/// `RENAME_NOREPLACE`: a name that is taken stays as it is, one that is free is a commit.
#[test]
fn a_rename_that_must_not_replace_does_not() {
    for kind in BOTH {
        let run = Run::new(kind);
        let (wepp, soils) = (text(&run, WEPP), text(&run, SOILS));
        fs::write(run.at("plain"), "{\"a\": 1}").unwrap();
        for (from, to) in [("plain", WEPP), (SOILS, WEPP), (WEPP, "plain")] {
            let refused = rename(&run, from, to, RenameFlags::NOREPLACE);
            assert_eq!(refused, Err(Errno::EXIST), "{from} to {to}");
        }
        assert_eq!((text(&run, WEPP), text(&run, SOILS)), (wepp.clone(), soils));
        run.assert_consistent(WEPP);
        run.assert_consistent(SOILS);

        rename(&run, "plain", "new.nodb", RenameFlags::NOREPLACE).unwrap();
        run.assert_settled("new.nodb");
        rename(&run, WEPP, "newer.nodb", RenameFlags::NOREPLACE).unwrap();
        assert_eq!(text(&run, "newer.nodb"), wepp);
        run.assert_settled("newer.nodb");
        assert_gone(&run, WEPP);
        rename(&run, "newer.nodb", "plain", RenameFlags::NOREPLACE).unwrap();
        assert_eq!(text(&run, "plain"), wepp);
        assert_gone(&run, "newer.nodb");
    }
}

/// A controller renamed onto another one is its next generation, with the mode of the one before.
#[test]
fn a_controller_renamed_onto_another_is_its_next_generation() {
    for kind in BOTH {
        let run = Run::new(kind);
        let (wepp, before) = (text(&run, WEPP), nanos(&run, SOILS));
        fs::read(run.at(SOILS)).unwrap();
        let mode = fs::metadata(run.on_disk(SOILS)).unwrap().mode();
        let reader = fs::File::open(run.at(WEPP)).unwrap();
        fs::rename(run.at(WEPP), run.at(SOILS)).unwrap();
        assert_eq!(text(&run, SOILS), wepp);
        assert!(nanos(&run, SOILS) > before);
        assert_eq!(fs::metadata(run.on_disk(SOILS)).unwrap().mode(), mode);
        assert_eq!(std::io::read_to_string(reader).unwrap(), wepp);
        run.assert_settled(SOILS);
        assert_gone(&run, WEPP);
    }
}

/// Promise 5: whatever moves two controllers needs both locks, and without one of them moves neither.
#[test]
fn a_rename_of_two_controllers_takes_both_locks() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "100ms"]);
    let (wepp, soils) = (text(&run, WEPP), text(&run, SOILS));
    for locked in [WEPP, SOILS] {
        run.lock_away(locked, STRANGER);
        for flags in [RenameFlags::empty(), RenameFlags::EXCHANGE] {
            for (from, to) in [(WEPP, SOILS), (SOILS, WEPP)] {
                assert_eq!(rename(&run, from, to, flags), Err(Errno::BUSY));
            }
        }
        assert_eq!(run.lock(locked).as_deref(), Some(STRANGER));
        run.redis().cmd(&["DEL", &run.lock_key(locked)]);
        assert_eq!(
            (text(&run, WEPP), text(&run, SOILS)),
            (wepp.clone(), soils.clone())
        );
        run.assert_consistent(WEPP);
        run.assert_consistent(SOILS);
    }
}

/// Both locks are taken in one order, so two that want the same two never wait for each other.
#[test]
fn opposite_renames_from_two_mounts_do_not_wait_for_each_other() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "60s"]);
    let other = neighbour(&run);
    let mut both = [text(&run, WEPP), text(&run, SOILS)];
    both.sort();
    let paths = [
        (run.at(WEPP), run.at(SOILS)),
        (other.path().join(SOILS), other.path().join(WEPP)),
    ];
    let exchange = |(one, two): &_| renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE);
    thread::scope(|scope| {
        for pair in &paths {
            scope.spawn(|| {
                for _ in 0..15 {
                    // a base that moved meanwhile is told; waiting for each other would be EBUSY
                    assert!(matches!(exchange(pair), Ok(()) | Err(Errno::STALE)));
                }
            });
        }
    });
    let mut now = [text(&run, WEPP), text(&run, SOILS)];
    now.sort();
    assert_eq!(now, both);

    let rename = |(from, to): &_| renameat_with(CWD, from, CWD, to, RenameFlags::empty());
    for round in 0..5 {
        let together = Barrier::new(2);
        let said = thread::scope(|scope| {
            let both = paths.each_ref().map(|pair| {
                scope.spawn(|| {
                    together.wait();
                    rename(pair)
                })
            });
            both.map(|one| one.join().unwrap())
        });
        // the one that came second finds nothing to rename, or that its files have moved
        assert!(said.iter().any(Result::is_ok), "round {round}: {said:?}");
        let left: Vec<_> = [WEPP, SOILS]
            .into_iter()
            .filter(|name| run.on_disk(name).exists())
            .collect();
        assert_eq!(left.len(), 1, "round {round}: {said:?}");
        // what another mount did shows at the next open
        fs::read(run.at(left[0])).unwrap();
        run.assert_consistent(left[0]);
        fs::copy(run.at(left[0]), run.at("t")).unwrap();
        for name in [WEPP, SOILS] {
            fs::copy(run.at("t"), run.at(name)).unwrap();
        }
    }
}

/// Two mounts of one source, as on two hosts: their writers take turns, and each begins where the other ended.
#[test]
fn writers_on_two_mounts_take_turns() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "60s"]);
    let other = neighbour(&run);
    fs::write(run.at(WEPP), "{\"n\": 0}").unwrap();
    let add = r#"
for _ in range(20):
    with open(path, "r+") as file:
        n = json.load(file)["n"]
        file.seek(0)
        json.dump({"n": n + 1}, file)
        file.truncate()
    assert json.load(open(path))["n"] > n
print("done")
"#;
    thread::scope(|scope| {
        for mount in [&run.mount, &other] {
            let path = mount.path().join(WEPP);
            let disk = run.on_disk(WEPP);
            scope.spawn(move || assert_eq!(python(add, &[&path, &disk]), "done"));
        }
    });
    assert_eq!(text(&run, WEPP), "{\"n\": 40}");
    for mount in [&run.mount, &other] {
        fs::read(mount.path().join(WEPP)).unwrap();
        assert_equal(&mount.path().join(WEPP), &run.on_disk(WEPP));
    }
    run.assert_settled(WEPP);
}

/// An exchange is a commit for the name that a document arrives at: later than what was there, though
/// the file itself is older, and under the lock that the arriving document names.
#[test]
fn an_exchange_brings_what_is_later_under_the_documents_own_lock() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--lock-wait", "100ms"]);
        let before = nanos(&run, WEPP);
        // as long as the one before: told apart by the time alone
        let old = text(&run, WEPP).replace("\"_counter\": 0", "\"_counter\": 7");
        fs::write(run.at("t"), &old).unwrap();
        let long_ago = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::options()
            .write(true)
            .open(run.at("t"))
            .unwrap()
            .set_times(long_ago)
            .unwrap();
        rename(&run, "t", WEPP, RenameFlags::EXCHANGE).unwrap();
        assert_eq!(text(&run, WEPP), old);
        assert!(nanos(&run, WEPP) > before + 1_000, "{}", nanos(&run, WEPP));
        fs::read(run.at(WEPP)).unwrap();
        run.assert_settled(WEPP);
        if kind == Kind::Redis {
            let child =
                format!("{{\"_parent_wd\": \"/wc1/runs/ot/other\", \"wd\": \"{KNOWN_AS}\"}}");
            fs::write(run.at("t"), child).unwrap();
            let theirs = format!("nodb-lock:other:{WEPP}");
            run.redis().cmd(&["SET", &theirs, STRANGER]);
            assert_eq!(
                rename(&run, "t", WEPP, RenameFlags::EXCHANGE),
                Err(Errno::BUSY)
            );
            run.redis().cmd(&["DEL", &theirs]);
            rename(&run, "t", WEPP, RenameFlags::EXCHANGE).unwrap();
            assert_eq!(run.redis().text(&["GET", &theirs]), None);
        }
    }
}

/// Promise 7: the entries of a renamed directory's controllers go, and what is there now is read and
/// written under its new path, by a writer from before too.
#[test]
fn a_renamed_directory_leaves_no_entries_behind() {
    let run = Run::new(Kind::Redis);
    let (at, moved) = (
        format!("{CHILD}/{WEPP}"),
        format!("_pups/omni/scenarios/moved/{WEPP}"),
    );
    let beyond = format!("{CHILD}/landuse.nodb");
    fs::read(run.at(&at)).unwrap();
    // nobody has looked at this one through the mount
    run.redis().cmd_in(13, &["SET", &run.key(&beyond), "{}"]);
    let writer = fs::File::options()
        .write(true)
        .truncate(true)
        .open(run.at(&at))
        .unwrap();
    fs::rename(run.at(CHILD), run.at("_pups/omni/scenarios/moved")).unwrap();
    eventually("the entries under the old path go", || {
        run.entry(&at).is_none() && run.entry(&beyond).is_none()
    });
    std::io::Write::write_all(&mut &writer, b"{\"a\": 1}").unwrap();
    writer.sync_all().unwrap();
    drop(writer);
    assert_eq!(text(&run, &moved), "{\"a\": 1}");
    assert_equal(&run.at(&moved), &run.on_disk(&moved));
    run.assert_cached(&moved);

    fs::create_dir(run.at("d")).unwrap();
    let parent = "_pups/omni/scenarios/moved";
    rename(&run, "d", parent, RenameFlags::EXCHANGE).unwrap();
    eventually("the entries of an exchanged directory go", || {
        run.entry(&moved).is_none()
    });
    assert_eq!(
        fs::read_to_string(run.at(&format!("d/{WEPP}"))).unwrap(),
        "{\"a\": 1}"
    );
}

/// A directory takes a controller's name only under the controller's lock, whichever of the two is named first.
#[test]
fn an_exchange_with_a_directory_takes_the_lock_too() {
    let run = Run::with_args(Kind::Redis, &["--lock-wait", "100ms"]);
    let wepp = text(&run, WEPP);
    fs::create_dir(run.at("d")).unwrap();
    for (from, to) in [(WEPP, "d"), ("d", WEPP)] {
        fs::read(run.at(WEPP)).unwrap();
        run.lock_away(WEPP, STRANGER);
        assert_eq!(
            rename(&run, from, to, RenameFlags::EXCHANGE),
            Err(Errno::BUSY)
        );
        run.redis().cmd(&["DEL", &run.lock_key(WEPP)]);
        run.assert_consistent(WEPP);
        rename(&run, from, to, RenameFlags::EXCHANGE).unwrap();
        assert!(run.at(WEPP).is_dir());
        assert_eq!(fs::read_to_string(run.at("d")).unwrap(), wepp);
        assert_eq!((run.entry(WEPP), run.lock(WEPP)), (None, None));
        rename(&run, from, to, RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read_to_string(run.at(WEPP)).unwrap(), wepp);
        run.assert_consistent(WEPP);
    }
}

/// The kernel tells of a last close a moment later; here a child has a duplicate until it is told to end. Whoever has
/// closed what it had open is not held to that by what it renames.
#[test]
fn whoever_has_closed_an_old_generation_may_rename() {
    let code = r#"
fd = os.open(path, os.O_RDWR)
told, tell = os.pipe()
if os.fork() == 0:
    os.close(tell)
    os.read(told, 1)
    os._exit(0)
os.close(fd)
open(path, "w").write('{"a": 1}')
open(path + ".t", "w").write('{"a": 2}')
os.rename(path + ".t", path)
os.close(tell)
os.wait()
print(open(path).read())
"#;
    python_says(code, r#"{"a": 2}"#);
}
