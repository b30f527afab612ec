//! `nodbfs cache`, and the attributes that do the same: what they say and do on a mount and without
//! one, and that a refresh never brings an older generation back.

mod common;
#[path = "common/site.rs"]
mod site;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, SystemTime};

use common::OnDrop;
use common::command::{Ended, nodbfs};
use common::run::{BOTH, Kind, RUNID, Run};
use serde_json::Value;
use site::{Site, document, save};

const NAME: &str = "wepp.nodb";

fn cache(action: &str, path: &Path, more: &[&str]) -> Ended {
    let mut words = vec!["cache", action, "--json", path.to_str().unwrap()];
    words.extend(more);
    nodbfs(&words)
}

/// What is said of one file, whose path ends like this.
fn row(ended: &Ended, name: &str) -> Value {
    let rows = ended.json();
    let mut rows = rows.as_array().unwrap().iter();
    let row = rows.find(|row| row["path"].as_str().unwrap().ends_with(name));
    row.unwrap_or_else(|| panic!("nothing of {name}: {ended:?}"))
        .clone()
}

fn entry(ended: &Ended) -> Value {
    row(ended, NAME)["look"]["entry"].clone()
}

#[test]
fn entries_are_shown_refreshed_and_evicted_on_a_mount_and_without_one() {
    let site = Site::new(&[]);
    let (url, root) = (site.redis.url(), site.on_disk(""));
    let offline = ["--redis", &url, "--key-root", root.to_str().unwrap()];
    let ways = [
        (site.at(NAME), &[][..]),
        (site.on_disk(NAME), &[]),
        (site.on_disk(NAME), &offline),
    ];
    for (path, more) in ways {
        let act = |action| cache(action, &path, more);
        assert_eq!(entry(&act("evict")), "none");
        assert_eq!(site.entry(NAME), None);
        assert_eq!(entry(&act("show")), "none");
        let refreshed = act("refresh");
        assert_eq!(entry(&refreshed), "current");
        assert!(site.entry(NAME).unwrap().contains("_nodb_mtime"));
        let look = row(&act("show"), NAME)["look"].take();
        assert_eq!(look["seal"], "valid");
        assert_eq!(
            (&look["runid"], &look["relpath"], &look["channel"]),
            (&"run".into(), &NAME.into(), &"run:wepp".into())
        );
        assert_eq!(look["key"], site.key(NAME));
        assert_eq!(look["signature"]["size"], site.text(NAME).len());
        // what the mount then reads is what is there
        assert_eq!(fs::read_to_string(site.at(NAME)).unwrap(), site.text(NAME));
    }
    let shown = nodbfs(&["cache", "show", site.mount.path().to_str().unwrap()]).ok();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(
        shown.contains("current") && shown.contains("valid"),
        "{shown}"
    );
}

#[test]
fn without_a_mount_and_a_redis_there_is_no_cache() {
    let run = tempfile::tempdir().unwrap();
    fs::write(run.path().join(NAME), "{}").unwrap();
    fs::write(run.path().join("plain"), "{}").unwrap();
    let refused = cache("show", &run.path().join(NAME), &[]).failed(2);
    assert!(refused.contains("--redis URL"), "{refused}");
    let site = Site::new(&[]);
    for (path, why) in [
        ("none.nodb", "No such file"),
        ("none/x.nodb", "No such file"),
    ] {
        let said = cache("show", &site.at(path), &[]);
        assert!(
            format!("{said:?}").contains(why) && said.code == Some(1),
            "{said:?}"
        );
    }
    fs::write(site.on_disk("plain"), "").unwrap();
    let refused = cache("show", &site.at("plain"), &[]).failed(1);
    assert!(refused.contains("no controller"), "{refused}");
}

/// A file that changed behind everybody's back with the same size and time is not noticed, until refreshed.
#[test]
fn a_refresh_brings_what_is_on_disk_whatever_memory_says() {
    for by_attribute in [false, true] {
        let site = Site::new(&[]);
        let at = site.at(NAME);
        assert_eq!(save(&at, &document("wepp", 1)), Ok(()));
        assert_eq!(fs::read_to_string(&at).unwrap(), document("wepp", 1));
        let mtime = fs::metadata(&at).unwrap().modified().unwrap();
        fs::write(site.on_disk(NAME), document("wepp", 2)).unwrap();
        File::options()
            .write(true)
            .open(site.on_disk(NAME))
            .unwrap()
            .set_modified(mtime)
            .unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), document("wepp", 1));
        match by_attribute {
            true => set(&at, "user.nodbfs.refresh").unwrap(),
            false => assert_eq!(entry(&cache("refresh", &at, &[])), "current"),
        }
        assert_eq!(fs::read_to_string(&at).unwrap(), document("wepp", 2));
        assert!(site.entry(NAME).unwrap().contains("\"_n\": 2"));
    }
}

fn set(path: &Path, name: &str) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path, name, b"1", rustix::fs::XattrFlags::empty())
}

/// Whatever refreshes run meanwhile, here and without the mount: once a save has returned, no entry is older.
#[test]
fn a_refresh_never_puts_an_older_generation_over_a_newer_commit() {
    let site = Site::new(&[]);
    let url = site.redis.url();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(SeqCst) {
                let _ = set(&site.at(NAME), "user.nodbfs.refresh");
            }
        });
        scope.spawn(|| {
            while !ended.load(SeqCst) {
                cache("refresh", &site.on_disk(NAME), &["--redis", &url]);
            }
        });
        // also when a save fails
        let _end = OnDrop(&ended);
        let stale = (1..60).find(|n| {
            assert_eq!(save(&site.at(NAME), &document("wepp", *n)), Ok(()));
            let found = site.entry(NAME);
            found.is_some_and(|entry| !entry.contains(&format!("\"_n\": {n},")))
        });
        assert_eq!(stale, None, "{:?}", site.entry(NAME));
    });
    let verified = cache("verify", &site.at(NAME), &[]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn verify_finds_what_is_wrong() {
    let site = Site::new(&[]);
    let run = site.mount.path();
    assert_eq!(
        cache("verify", run, &[]).json().as_array().unwrap().len(),
        3
    );
    assert_eq!(cache("verify", run, &[]).code, Some(0));
    assert_eq!(save(&site.at(NAME), &document("wepp", 1)), Ok(()));
    let right = site.entry(NAME).unwrap();

    let put = |text: &str| drop(site.redis.cmd_in(13, &["SET", &site.key(NAME), text]));
    let problem = |words: &str| {
        for path in [run, &site.at(NAME)] {
            let verified = cache("verify", path, &[]);
            assert_eq!(verified.code, Some(1), "{verified:?}");
            let problems = row(&verified, NAME)["problems"].to_string();
            assert!(problems.contains(words), "{problems}");
        }
    };
    put(&document("wepp", 2));
    problem("another document than the file");
    put(&document("wepp", 1));
    problem("another signature than the file");
    put("{");
    problem("entry is no JSON document");
    // the same to every reader, and without a seal of ours
    put(&right.replace(": ", ":"));
    assert_eq!(cache("verify", run, &[]).code, Some(0));

    site.redis.cmd(&["HSET", "run", "locked:wepp.nodb", "true"]);
    problem("says it is locked");
    // looking repairs nothing
    assert_eq!(
        site.redis
            .text(&["HGET", "run", "locked:wepp.nodb"])
            .as_deref(),
        Some("true")
    );
    site.redis.cmd(&["HDEL", "run", "locked:wepp.nodb"]);

    fs::write(site.on_disk("soils.nodb"), "{\"half\": ").unwrap();
    let verified = cache("verify", run, &[]);
    assert_eq!(verified.code, Some(1));
    assert!(
        row(&verified, "soils.nodb")["problems"]
            .to_string()
            .contains("no JSON document")
    );
    fs::write(site.on_disk("soils.nodb"), "{}").unwrap();
    cache("refresh", &site.at("soils.nodb"), &[]);

    for (name, old) in [
        (".wepp.nodb.k3_x.tmp", true),
        (".soils.nodb.k3_x.tmp", false),
        // of a daemon of this host that is gone; its own would be cleared on sight by a listing
        (".nodbfs-elsewhere-1-1-1.tmp", true),
    ] {
        let file = File::create(site.on_disk(name)).unwrap();
        let age = if old { 2 * 24 * 3600 } else { 60 };
        file.set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    }
    let verified = cache("verify", run, &[]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(
        row(&verified, ".wepp.nodb.k3_x.tmp")["problems"]
            .to_string()
            .contains("a NoDb process left")
    );
    assert!(
        !verified.out.contains(".soils"),
        "it may be in use: {verified:?}"
    );
    let table = nodbfs(&["cache", "verify", run.to_str().unwrap()]).out;
    assert!(table.contains("FILE") && table.contains("ok"), "{table}");
}

#[test]
fn child_runs_are_walked_and_their_symlinks_followed() {
    let site = Site::new(&[]);
    let child = site.on_disk("_pups/omni/scenarios/low");
    fs::create_dir_all(&child).unwrap();
    fs::write(
        child.join("own.nodb"),
        format!(
            "{{\"_parent_wd\": {:?}}}",
            site.on_disk("").to_str().unwrap()
        ),
    )
    .unwrap();
    std::os::unix::fs::symlink("../../../../wepp.nodb", child.join("wepp.nodb")).unwrap();
    std::os::unix::fs::symlink(site.on_disk("soils.nodb"), child.join("soils.nodb")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", child.join("out.nodb")).unwrap();
    let shown = cache("show", site.mount.path(), &[]);
    assert_eq!(shown.json().as_array().unwrap().len(), 4, "{shown:?}");
    let own = row(&shown, "own.nodb")["look"].take();
    assert_eq!(own["relpath"], "_pups/omni/scenarios/low/own.nodb");
    let low = site.at("_pups/omni/scenarios/low");
    for name in ["wepp.nodb", "soils.nodb"] {
        let shown = cache("show", &low.join(name), &[]);
        assert_eq!(row(&shown, name)["path"], name, "the parent's: {shown:?}");
    }
    let refused = cache("show", &low.join("out.nodb"), &[]).failed(1);
    assert!(refused.contains("leads outside"), "{refused}");
}

#[test]
fn attributes_tell_who_a_controller_is() {
    for kind in BOTH {
        let run = Run::new(kind);
        let known = |name: &str| run.attribute(NAME, name);
        assert_eq!(known("source"), None, "nobody has read it");
        fs::read(run.at(NAME)).unwrap();
        assert_eq!(known("source").as_deref(), Some("disk"));
        fs::read(run.at(NAME)).unwrap();
        assert_eq!(known("source").as_deref(), Some("memory"));
        assert_eq!(known("runid").as_deref(), Some(RUNID));
        assert_eq!(known("relpath").as_deref(), Some(NAME));
        assert_eq!(known("channel"), Some(format!("{RUNID}:wepp")));
        assert_eq!(known("cache_key"), Some(run.key(NAME)));
        assert_eq!(known("lock").as_deref(), Some(""));
        assert_eq!(known("last_error"), None);
        let before = known("generation").unwrap();
        assert_eq!(before.len(), 32);
        let writer = File::options().append(true).open(run.at(NAME)).unwrap();
        let holder: Value = serde_json::from_str(&known("lock").unwrap()).unwrap();
        assert!(
            holder["owner"]
                .as_str()
                .unwrap()
                .ends_with(&format!(":{}", run.mount.pid()))
        );
        drop(writer);
        run.await_unlocked(NAME);
        assert_eq!(known("generation").unwrap(), before);
        run.python(NAME, "open(path, 'w').write('{}')");
        assert_ne!(known("generation").unwrap(), before);
        for (name, errno) in [("runid", libc::EPERM), ("nothing", libc::EPERM)] {
            let set = set(&run.at(NAME), &format!("user.nodbfs.{name}")).unwrap_err();
            assert_eq!(set.raw_os_error(), errno);
        }
        assert_eq!(
            run.attribute("nodb.version", "runid"),
            None,
            "it is no controller"
        );
    }
}

#[test]
fn a_read_from_the_cache_is_told_and_evict_ends_that() {
    let mut run = Run::new(Kind::Redis);
    fs::read(run.at(NAME)).unwrap();
    run.remount();
    fs::read(run.at(NAME)).unwrap();
    assert_eq!(run.attribute(NAME, "source").as_deref(), Some("cache"));
    set(&run.at(NAME), "user.nodbfs.evict").unwrap();
    assert_eq!(run.entry(NAME), None);
    fs::read(run.at(NAME)).unwrap();
    assert_eq!(run.attribute(NAME, "source").as_deref(), Some("disk"));
    rustix::fs::removexattr(run.at(NAME), "user.nodbfs.evict").unwrap();
    assert_eq!(run.entry(NAME), None);
    run.redis_mut().kill();
    assert_eq!(
        set(&run.at(NAME), "user.nodbfs.refresh")
            .unwrap_err()
            .raw_os_error(),
        libc::ENOLCK
    );
    assert_eq!(
        set(&run.at(NAME), "user.nodbfs.evict")
            .unwrap_err()
            .raw_os_error(),
        libc::ENOLCK
    );
    assert!(
        run.attribute(NAME, "last_error")
            .unwrap()
            .contains("cannot be reached")
    );
}

/// `cp -a`, `tar --xattrs` and `rsync -X` see the real ones only (promise 10).
#[test]
fn copies_carry_the_real_attributes_and_no_others() {
    let run = Run::new(Kind::Embedded);
    fs::read(run.at(NAME)).unwrap();
    rustix::fs::setxattr(
        run.on_disk(NAME),
        "user.note",
        b"mine",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let copies = tempfile::tempdir().unwrap();
    let script = format!(
        "mkdir $OUT/tar; cp -a {NAME} $OUT/cp; rsync -aX {NAME} $OUT/rsync
         tar --xattrs --xattrs-include='*' -cf - {NAME} | tar --xattrs --xattrs-include='*' -xf - -C $OUT/tar"
    );
    let copied = run.shell(&script, &[("OUT", copies.path())]);
    assert!(copied.status.success(), "{copied:?}");
    for copy in ["cp", "rsync", &format!("tar/{NAME}")] {
        let listed = Command::new("python3")
            .args(["-c", "import os, sys; print(os.listxattr(sys.argv[1]))"])
            .arg(copies.path().join(copy))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&listed.stdout).trim(),
            "['user.note']",
            "{copy}"
        );
    }
}

/// Overrides are for whoever may write the file.
#[test]
fn who_may_not_write_may_not_refresh() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let run = Run::with_args(Kind::Embedded, &["--allow-other"]);
    // the scratch directories are root's own
    for dir in [run.mount.path().parent().unwrap(), run.source()] {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let ask = "import errno, os, sys\n\
        for name in ('refresh', 'evict'):\n\
        \x20   try: os.setxattr(sys.argv[1], 'user.nodbfs.' + name, b'1'); print('done')\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])\n\
        print(os.getxattr(sys.argv[1], 'user.nodbfs.runid').decode())";
    let ask_as = |uid: &str| {
        let mut command = Command::new("setpriv");
        // that of others, not of root
        command.env("PATH", "/usr/bin:/bin");
        command.args([
            "--reuid",
            uid,
            "--regid",
            uid,
            "--clear-groups",
            "python3",
            "-c",
            ask,
        ]);
        let said = command.arg(run.at(NAME)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stderr), "");
        String::from_utf8(said.stdout).unwrap()
    };
    fs::set_permissions(
        run.on_disk(NAME),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    assert_eq!(ask_as("65534"), format!("EACCES\nEACCES\n{RUNID}\n"));
    assert_eq!(ask_as("0"), format!("done\ndone\n{RUNID}\n"));
}
