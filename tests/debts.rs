//! Debts: what the cache could not be told of a commit is told later, by this daemon or the next, and
//! never at the cost of something newer (promises 7 and 9).

mod common;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;

use nodbfs::nodb::lock::NEWS;
use rustix::process::Signal;
use site::{Site, call, document, eventually, save, within};
use tracer::{Tracer, is_root};

const NAME: &str = "wepp.nodb";

/// A site whose cache has an entry of what is on disk.
fn warm() -> Site {
    let site = Site::new(&[]);
    save(&site.at(NAME), &document(NAME, 1)).unwrap();
    assert_eq!(number(&site), Some(1));
    site
}

/// The generation that the cache tells of; old NoDb processes believe it.
fn number(site: &Site) -> Option<u64> {
    let entry: serde_json::Value = serde_json::from_str(&site.entry(NAME)?).unwrap();
    Some(entry["_n"].as_u64().unwrap())
}

/// An open writer, which has the lock.
fn writer(site: &Site) -> File {
    let path = site.at(NAME);
    let open = move || File::options().write(true).truncate(true).open(path);
    within("an open", open).unwrap()
}

/// Its commit, which succeeds: the lock was surely ours, and the disk is the truth.
fn commit(site: &Site, writer: File, n: u64) {
    let text = document(NAME, n);
    let saved = call("a commit", move || site::write(writer, &text));
    assert_eq!(saved, Ok(()));
    assert_eq!(site.text(NAME), document(NAME, n));
}

/// From now on the locks work and the cache does not.
fn deny_cache(site: &Site) {
    site.redis.cmd(&[
        "ACL", "SETUSER", "boss", "on", "nopass", "~*", "&*", "+@all",
    ]);
    site.redis.cmd(&[
        "ACL",
        "SETUSER",
        "default",
        "resetkeys",
        "~nodb-lock:*",
        "~run",
        "~nodb:run-replacement:*",
    ]);
}

/// As somebody else, whom Redis denies nothing.
fn as_boss(site: &Site, database: i64, words: &[&str]) -> Option<String> {
    let mut connection = site.redis.connect(database).unwrap();
    redis::cmd("AUTH")
        .arg(&["boss", "x"])
        .exec(&mut connection)
        .unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query(&mut connection).unwrap()
}

fn allow_cache(site: &Site) {
    as_boss(site, 0, &["ACL", "SETUSER", "default", "allkeys"]);
}

/// Nothing is owed any more, and the cache says nothing of old.
fn paid(site: &Site, n: u64) {
    eventually("the debt is paid", || site.debts().is_empty());
    assert!(
        number(site).is_none_or(|told| told == n),
        "{:?}",
        number(site)
    );
    assert_eq!(site.lock(NAME), None);
    let path = site.at(NAME);
    let read = within("a read", move || fs::read_to_string(path).unwrap());
    assert_eq!(read, document(NAME, n));
    // and from then on as ever
    save(&site.at(NAME), &document(NAME, n + 1)).unwrap();
    assert_eq!(number(site), Some(n + 1));
}

#[test]
fn a_debt_is_paid_as_soon_as_the_cache_is_back() {
    let site = warm();
    let writer = writer(&site);
    deny_cache(&site);
    commit(&site, writer, 2);
    assert_eq!(site.debts().len(), 1, "{}", site.mount.log());
    let entry = as_boss(&site, 13, &["GET", &site.key(NAME)]);
    assert!(entry.is_some_and(|entry| entry.contains("\"_n\": 1")));
    allow_cache(&site);
    paid(&site, 2);
}

#[test]
fn a_debt_survives_the_daemon() {
    let mut site = warm();
    let writer = writer(&site);
    deny_cache(&site);
    commit(&site, writer, 2);
    site.mount.crash();
    assert_eq!(site.debts().len(), 1);
    allow_cache(&site);
    assert_eq!(number(&site), Some(1), "nobody has told the cache yet");
    site.remount();
    paid(&site, 2);
}

#[test]
fn a_debt_does_not_harm_what_is_newer() {
    let mut site = warm();
    let writer = writer(&site);
    deny_cache(&site);
    commit(&site, writer, 2);
    site.mount.crash();
    allow_cache(&site);
    // a NoDb process commits, and tells the cache of it
    let newer = document(NAME, 3);
    fs::write(site.on_disk("t"), &newer).unwrap();
    fs::rename(site.on_disk("t"), site.on_disk(NAME)).unwrap();
    site.redis.cmd_in(13, &["SET", &site.key(NAME), &newer]);
    site.remount();
    paid(&site, 3);
}

/// The refresh is denied and the removal is not: the old entry is gone before the writer is answered.
#[test]
fn what_can_only_be_deleted_is_deleted_at_once() {
    let site = warm();
    let writer = writer(&site);
    deny_cache(&site);
    as_boss(
        &site,
        0,
        &["ACL", "SETUSER", "default", "(+del +select ~*)"],
    );
    commit(&site, writer, 2);
    assert_eq!(as_boss(&site, 13, &["GET", &site.key(NAME)]), None);
    assert!(site.debts().is_empty());
    allow_cache(&site);
    paid(&site, 2);
}

/// Redis fails right after the publication, which a delayed system call of the daemon gives the time
/// for. `fail` makes it fail, `heal` ends that.
fn fails_after_the_publication(
    crash: bool,
    fail: impl FnOnce(&mut Site),
    heal: impl FnOnce(&mut Site),
) {
    if !is_root() {
        return;
    }
    let mut site = warm();
    let file = writer(&site);
    // a server that comes back has the old entry and the lock that is held; saved now, for a disk takes its time
    site.redis.cmd(&["SAVE"]);
    let tracer = Tracer::inject(&site.mount, "renameat2:delay_exit=3000000:when=1");
    let (new, text) = (document(NAME, 2), document(NAME, 2));
    let committing = thread::spawn(move || site::write(file, &text));
    eventually("it is published", || site.text(NAME) == new);
    fail(&mut site);
    within("a commit", move || committing.join().unwrap()).unwrap();
    drop(tracer);
    assert_eq!(site.debts().len(), 1, "{}", site.mount.log());
    if crash {
        site.mount.crash();
    }
    heal(&mut site);
    if crash {
        assert_eq!(site.debts().len(), 1);
        // the lock that nobody can release any more would end with its lease
        site.redis.cmd(&["DEL", &site::lock_key(NAME)]);
        site.remount();
    }
    eventually("the lock is released", || site.lock(NAME).is_none());
    paid(&site, 2);
}

#[test]
fn redis_frozen_between_publication_and_refresh() {
    for crash in [false, true] {
        fails_after_the_publication(crash, |site| site.redis.pause(), |site| site.redis.cont());
    }
}

#[test]
fn redis_gone_between_publication_and_refresh_and_back_with_what_it_had() {
    fails_after_the_publication(false, |site| site.redis.kill(), |site| site.redis.restart());
}

/// Before the publication, it fails closed, and the writer may try again.
#[test]
fn redis_away_between_lock_and_commit() {
    let mut site = warm();
    let writer = writer(&site);
    let again = writer.try_clone().unwrap();
    site.redis.cmd(&["SAVE"]);
    site.redis.kill();
    // until then what Redis said of the lock counts
    thread::sleep(2 * NEWS);
    let text = document(NAME, 2);
    let said = call("a commit", move || site::write(writer, &text));
    assert_eq!(said, Err(libc::ENOLCK));
    assert_eq!(site.text(NAME), document(NAME, 1));
    assert!(site.debts().is_empty());
    site.redis.restart();
    eventually("the writer gets it done", || {
        let again = again.try_clone().unwrap();
        call("another try", move || again.sync_all()).is_ok()
    });
    assert_eq!(site.text(NAME), document(NAME, 2));
    drop(again);
    eventually("the lock is released", || site.lock(NAME).is_none());
    paid(&site, 2);
}

/// The other changes that the cache must be told of.
#[test]
fn what_removals_and_attributes_owe_is_paid_too() {
    let site = warm();
    let set_times = |path: PathBuf| {
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::options().read(true).open(path)?.set_times(times)
    };
    type Change<'a> = &'a dyn Fn(PathBuf) -> std::io::Result<()>;
    let unlink = |path: PathBuf| fs::remove_file(path);
    let changes: [(&str, Change); 2] = [("utimens", &set_times), ("unlink", &unlink)];
    for (name, change) in changes {
        deny_cache(&site);
        change(site.at(NAME)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!site.debts().is_empty(), "{name}");
        allow_cache(&site);
        eventually("the debt is paid", || site.debts().is_empty());
        // a reader may have brought it back meanwhile, but not what is no longer there
        assert!(number(&site).is_none_or(|_| name == "utimens"), "{name}");
    }
    assert!(!site.on_disk(NAME).exists());
}

/// A daemon that is asked to end while Redis is away leaves its debts to the next.
#[test]
fn an_orderly_end_leaves_the_debts_to_the_next() {
    let mut site = warm();
    let writer = writer(&site);
    deny_cache(&site);
    commit(&site, writer, 2);
    site.mount.signal(Signal::TERM);
    assert!(site.mount.wait().expect("it ends").success());
    assert_eq!(site.debts().len(), 1);
    allow_cache(&site);
    site.remount();
    paid(&site, 2);
}
