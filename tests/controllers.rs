//! Reading controllers through a real mount (promises 1, 2 and 7), on both stores.

mod common;

use std::fs::{self, File, FileTimes, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use common::run::{BOTH, KNOWN_AS, Kind, RUNID, Run, assert_equal, eventually, listing, options};
use common::sample::{FULL, Layout, RunOptions, make_batch, make_run};
use common::{files_below, in_crate};
use tempfile::TempDir;

/// Every controller is what it is on disk: at the first read, from memory, and after a remount
/// out of the cache.
fn assert_all_equal(kind: Kind, source: TempDir, known_as: &str) {
    let mut run = Run::of(kind, source, known_as, &[]);
    let names = controllers(run.source());
    assert!(!names.is_empty());
    for (i, name) in names.iter().enumerate() {
        // what must come through untouched
        let modes = [0o644, 0o600, 0o664, 0o444];
        let path = run.on_disk(name);
        fs::set_permissions(&path, Permissions::from_mode(modes[i % 4])).unwrap();
        set_mtime(&path, Duration::new(1_700_000_000, 123_456_789 + i as u32));
    }
    for _cold_then_memory in 0..2 {
        for name in &names {
            assert_equal(&run.at(name), &run.on_disk(name));
        }
    }
    run.remount();
    for name in &names {
        assert_equal(&run.at(name), &run.on_disk(name));
    }
    if kind == Kind::Redis {
        let log = run.mount.log();
        assert!(log.contains("read from the cache entry"), "{log}");
        assert!(!log.contains("read from disk"), "{log}");
    }
    let diff = Command::new("diff")
        .arg("-r")
        .args([run.mount.path(), run.source()])
        .output();
    let diff = diff.unwrap();
    assert!(diff.status.success(), "{diff:?}");
}

/// The paths of all controllers below `dir`, child runs' symlinks too.
fn controllers(dir: &Path) -> Vec<String> {
    files_below(dir, ".nodb")
        .iter()
        .map(|path| path.strip_prefix(dir).unwrap().display().to_string())
        .collect()
}

fn set_mtime(path: &Path, since_epoch: Duration) {
    let times = FileTimes::new().set_modified(UNIX_EPOCH + since_epoch);
    // a read-only file's times can be set by its owner, and a symlink's target's
    File::open(path).unwrap().set_times(times).unwrap();
}

/// Promise 1, on a real run's state files.
#[test]
fn a_real_run_is_exact() {
    let fixture = in_crate("../shared/fixtures/tahoma-run");
    if !fixture.is_dir() {
        eprintln!("{} is not here: generated runs only", fixture.display());
        return;
    }
    for kind in BOTH {
        let source = tempfile::tempdir().unwrap();
        for path in files_below(&fixture, ".nodb") {
            let copy = source.path().join(path.file_name().unwrap());
            fs::write(copy, fs::read(&path).unwrap()).unwrap();
        }
        assert_all_equal(kind, source, KNOWN_AS);
    }
}

/// Promise 1, in every layout, with child runs and a document of 700 kB.
#[test]
fn generated_runs_are_exact() {
    for kind in BOTH {
        for layout in [Layout::Old, Layout::Modern, Layout::Mixed] {
            let source = tempfile::tempdir().unwrap();
            let options = RunOptions {
                large: layout == Layout::Mixed,
                ..options(layout)
            };
            make_run(source.path(), &options).unwrap();
            assert_all_equal(kind, source, KNOWN_AS);
        }
    }
}

/// Promise 1, for a tree with a batch in it.
#[test]
fn a_batch_is_exact() {
    for kind in BOTH {
        let source = tempfile::tempdir().unwrap();
        let options = RunOptions {
            known_as: Some("/wc1".into()),
            ..RunOptions::small()
        };
        make_batch(source.path(), "spring", 3, &options).unwrap();
        assert_all_equal(kind, source, "/wc1");
    }
}

/// Promise 7: whatever lies in the cache, what is read is what is on disk, and afterwards the entry
/// is true again.
#[test]
fn what_others_leave_in_the_cache_does_no_harm() {
    let mut run = Run::new(Kind::Redis);
    for name in FULL {
        fs::read(run.at(&format!("{name}.nodb"))).unwrap();
    }
    run.remount_after(|run| {
        let entry = |name: &str| run.entry(name).unwrap();
        let set = |key: String, value: &str| {
            run.redis().cmd_in(13, &["SET", &key, value]);
        };
        let delete = |key: String| {
            run.redis().cmd_in(13, &["DEL", &key]);
        };
        // the entry: garbage, nothing, gone
        set(run.key("ron.nodb"), "{ garbage");
        set(run.key("climate.nodb"), "");
        delete(run.key("watershed.nodb"));
        // another controller's; one that differs in a digit; one that differs in nothing NoDb would see
        set(run.key("landuse.nodb"), &entry("soils.nodb"));
        let poisoned = entry("wepp.nodb").replace("\"_counter\": 0", "\"_counter\": 9");
        assert_ne!(poisoned, entry("wepp.nodb"));
        set(run.key("wepp.nodb"), &poisoned);
        set(run.key("topaz.nodb"), &format!("{} ", entry("topaz.nodb")));
        // the seal: garbage, of another version, of another controller, gone as a NoDb process leaves it
        set(run.seal_key("soils.nodb"), "garbage");
        set(run.seal_key("disturbed.nodb"), "{\"version\":99}");
        let others = run
            .redis()
            .text_in(13, &["GET", &run.seal_key("omni.nodb")]);
        set(run.seal_key("redisprep.nodb"), &others.unwrap());
        delete(run.seal_key("ash.nodb"));
        // both are of the generation before
        let old = fs::read_to_string(run.on_disk("unitizer.nodb")).unwrap();
        fs::write(run.on_disk("unitizer.nodb"), old.replace("degf", "degc")).unwrap();
    });
    for name in FULL {
        let name = format!("{name}.nodb");
        assert_equal(&run.at(&name), &run.on_disk(&name));
        run.assert_cached(&name);
    }
    // the untouched ones, and no other
    let log = run.mount.log();
    assert_eq!(log.matches("read from the cache entry").count(), 2, "{log}");
}

/// Promise 9: a key that holds no text at all costs a read nothing.
#[test]
fn a_key_of_another_type_does_no_harm() {
    let run = Run::new(Kind::Redis);
    let key = run.key("wepp.nodb");
    run.redis().cmd_in(13, &["RPUSH", &key, "a", "list"]);
    assert_equal(&run.at("wepp.nodb"), &run.on_disk("wepp.nodb"));
}

/// Promise 7: what is changed beside the mount shows at the next open, whatever way it was changed,
/// and in `stat`.
#[test]
fn a_change_beside_the_mount_shows_at_the_next_open() {
    for kind in BOTH {
        let run = Run::new(kind);
        let (path, disk) = (run.at("wepp.nodb"), run.on_disk("wepp.nodb"));
        let text = fs::read_to_string(&disk).unwrap();
        let with =
            |counter: u32| text.replace("\"_counter\": 0", &format!("\"_counter\": {counter}"));
        assert_equal(&path, &disk);
        // replaced, as by a modern process, without a change of size
        fs::write(run.on_disk(".wepp.nodb.x.tmp"), with(1)).unwrap();
        fs::rename(run.on_disk(".wepp.nodb.x.tmp"), &disk).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), with(1));
        // truncated in place, as by an old one
        fs::write(&disk, with(22)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), with(22));
        // the same size, told apart by the time only
        let mtime = fs::metadata(&disk).unwrap().modified().unwrap();
        fs::write(&disk, with(33)).unwrap();
        let later = FileTimes::new().set_modified(mtime + Duration::from_micros(2));
        File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_times(later)
            .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), with(33));
        // gone and back
        fs::remove_file(&disk).unwrap();
        assert_eq!(fs::read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(&disk, with(4)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), with(4));
        // attributes that make no other generation
        fs::hard_link(&disk, run.on_disk("wepp.bak")).unwrap();
        fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
        eventually("mode and links show", || {
            let stat = fs::metadata(&path).unwrap();
            (stat.mode() & 0o777, stat.nlink()) == (0o600, 2)
        });
        assert_equal(&path, &disk);
    }
}

/// Promise 1: a file that NoDb could not read either is served as it is, and never cached.
#[test]
fn a_file_that_is_no_document_is_shown_as_it_is() {
    for kind in BOTH {
        let run = Run::with_args(kind, &["--max-payload", "64k"]);
        let large = format!("{{\"a\": \"{}\"}}", "x".repeat(100_000));
        for (name, content) in [
            ("broken.nodb", "{\"py/object\": \"wepp"),
            ("empty.nodb", ""),
            ("large.nodb", &large),
            ("list.nodb", "[1, 2]"),
        ] {
            let disk = run.on_disk(name);
            fs::write(&disk, content).unwrap();
            set_mtime(&disk, Duration::from_secs(1_700_000_000));
            assert_equal(&run.at(name), &disk);
            if kind == Kind::Redis {
                assert_eq!(run.entry(name), None, "{name}");
            }
        }
    }
}

/// Promise 1: every way of reading gives the same bytes.
#[test]
fn mapped_and_partial_reads_agree() {
    for kind in BOTH {
        let source = tempfile::tempdir().unwrap();
        let options = RunOptions {
            large: true,
            ..options(Layout::Modern)
        };
        make_run(source.path(), &options).unwrap();
        let run = Run::of(kind, source, KNOWN_AS, &[]);
        let reads = r#"
import mmap
want = open(disk, "rb").read()
with open(path, "rb") as file:
    assert os.pread(file.fileno(), 1000, 300_001) == want[300_001:301_001]
    assert os.pread(file.fileno(), 1000, len(want) - 10) == want[-10:]
    assert os.pread(file.fileno(), 1000, len(want) + 5) == b""
    assert mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:] == want
    assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(want)
with os.fdopen(os.open(path, os.O_RDONLY | os.O_DIRECT), "rb", 0) as file:
    assert file.readall() == want
print("equal")
"#;
        assert_eq!(run.python("watershed.nodb", reads), "equal");
    }
}

/// PROTOCOL.md 1: a child run's symlink leads to the parent's controller, also for its cache entry.
#[test]
fn a_childs_symlink_is_the_parents_controller() {
    let run = Run::new(Kind::Redis);
    let link = "_pups/omni/scenarios/uniform_low/climate.nodb";
    assert_equal(&run.at(link), &run.on_disk(link));
    assert_eq!(
        fs::read_link(run.at(link)).unwrap(),
        fs::read_link(run.on_disk(link)).unwrap()
    );
    run.assert_cached("climate.nodb");
    assert_eq!(
        run.attribute(link, "relpath").as_deref(),
        Some("climate.nodb")
    );
    assert_eq!(run.attribute(link, "runid").as_deref(), Some(RUNID));
}

/// ENOENT, on a tree, for runs and controllers that are not there.
#[test]
fn what_does_not_exist_does_not_exist() {
    for kind in BOTH {
        let run = Run::new(kind);
        for name in ["no-such-run/wepp.nodb", "no-such.nodb"] {
            for mode in ["r", "r+"] {
                assert_eq!(
                    run.python(name, &format!("open(path, {mode:?})")),
                    "ENOENT",
                    "{name}"
                );
            }
        }
        assert_eq!(
            run.python("no-such-run/wepp.nodb", "open(path, 'w')"),
            "ENOENT"
        );
        assert_eq!(run.python("wepp.nodb", "os.stat(path + '/x')"), "ENOTDIR");
        assert_eq!(listing(run.mount.path()), listing(run.source()));
    }
}
