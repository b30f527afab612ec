//! Redis in every bad state, and a mount that is told nothing of it: plain files and readers notice
//! nothing, saves of controllers fail closed, and all heals without a remount (promises 5, 7 and 9).

#[path = "common/bad_servers.rs"]
mod bad_servers;
mod common;
#[path = "common/site.rs"]
mod site;

use std::cell::RefCell;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bad_servers::{Deaf, Loading};
use common::OnDrop;
use common::program::Program;
use common::redis::RedisServer;
use nodbfs::nodb::lock::NEWS;
use serde_json::json;
use site::{PATIENCE, STRANGER, Site, call, document, eventually, listing, lock_key, save, within};

/// Locks that a request took whose answer was lost end soon.
const ARGS: [&str; 4] = ["--lease-ttl", "5s", "--lock-wait", "0s"];

/// `bad` puts Redis into a bad state, `good` ends it.
fn outage(redis: RedisServer, bad: impl FnOnce(&mut Site), good: impl FnOnce(&mut Site)) {
    let mut site = Site::on(redis, &ARGS);
    // what is in memory, in the cache and on disk
    fs::read(site.at("wepp.nodb")).unwrap();
    save(&site.at("wepp.nodb"), &document("wepp.nodb", 1)).unwrap();
    bad(&mut site);
    plain_files_notice_nothing(&site);
    readers_notice_nothing(&site);
    saves_fail_closed(&site);
    good(&mut site);
    everything_works(&site);
}

/// Promise 8.
fn plain_files_notice_nothing(site: &Site) {
    let dir = site.at("plain");
    within("work with plain files", move || {
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("one"), "text").unwrap();
        fs::rename(dir.join("one"), dir.join("two")).unwrap();
        fs::hard_link(dir.join("two"), dir.join("three")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("three")).unwrap(), "text");
        assert_eq!(listing(&dir), ["three", "two"]);
        fs::remove_dir_all(&dir).unwrap();
    });
}

/// Promises 1, 2 and 9: from memory and from disk, also what changed a moment ago.
fn readers_notice_nothing(site: &Site) {
    fs::write(site.on_disk("soils.nodb"), document("soils.nodb", 77)).unwrap();
    for name in ["wepp.nodb", "soils.nodb", "held.nodb"] {
        let path = site.at(name);
        let read = within("a read", move || fs::read_to_string(path).unwrap());
        assert_eq!(read, site.text(name), "{name}");
    }
}

/// Promises 3, 5 and 9: ENOLCK by every road, and nothing has changed.
fn saves_fail_closed(site: &Site) {
    let refused = Err(libc::ENOLCK);
    let before: Vec<_> = ["wepp.nodb", "soils.nodb", "held.nodb"]
        .map(|name| site.text(name))
        .into();
    let new = document("wepp.nodb", 99);
    assert_eq!(save(&site.at("wepp.nodb"), &new), refused, "in place");
    let (draft, path) = (site.at("draft"), site.at("wepp.nodb"));
    fs::write(&draft, &new).unwrap();
    assert_eq!(call("a rename", move || fs::rename(draft, path)), refused);
    let path = site.at("wepp.nodb");
    assert_eq!(call("an unlink", move || fs::remove_file(path)), refused);
    let (path, text) = (site.at("newborn.nodb"), new.clone());
    let create = move || site::write(File::create_new(path)?, &text);
    assert_eq!(call("a creation", create), refused);

    let after: Vec<_> = ["wepp.nodb", "soils.nodb", "held.nodb"]
        .map(|name| site.text(name))
        .into();
    assert_eq!(before, after);
    assert_eq!(fs::read_to_string(site.on_disk("draft")).unwrap(), new);
    fs::remove_file(site.at("draft")).unwrap();
    assert!(!site.on_disk("newborn.nodb").exists());
    site.assert_clean();
    // what was refused to the creator lies where it can be recovered
    eventually("the refused document is kept", || {
        let kept = site.rejected();
        kept.iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|kept| kept == new))
    });
}

/// Promise 9: the same mount, as if nothing had been.
fn everything_works(site: &Site) {
    let newest = document("wepp.nodb", 100);
    // in the meantime a request without an answer may have taken a lock; nothing of it stays
    for (name, text) in [("wepp.nodb", &newest), ("soils.nodb", &newest)] {
        site::save_despite(&site.at(name), text, &[libc::ENOLCK, libc::EBUSY]);
        assert_eq!(&site.text(name), text);
    }
    let (path, text) = (site.at("newborn.nodb"), newest.clone());
    let create = move || site::write(File::create_new(path)?, &text);
    eventually("creations work again", || {
        // those refused are not there to be refused again
        call("a creation", create.clone()).is_ok()
    });
    let (from, to) = (site.at("newborn.nodb"), site.at("wepp.nodb"));
    assert_eq!(call("a rename", move || fs::rename(from, to)), Ok(()));
    let path = site.at("soils.nodb");
    assert_eq!(call("an unlink", move || fs::remove_file(path)), Ok(()));
    assert_eq!(site.text("wepp.nodb"), newest);
    // the replaced generation goes right behind the writer's back
    eventually("nothing else is left", || {
        listing(&site.on_disk("")) == ["held.nodb", "wepp.nodb"]
    });
    eventually("no lock of ours is left", || {
        ["wepp.nodb", "soils.nodb", "newborn.nodb"]
            .iter()
            .all(|name| site.lock(name).is_none())
    });
    eventually("no debt is left", || site.debts().is_empty());
    assert_cached(site, "wepp.nodb");
    assert_eq!(site.entry("soils.nodb"), None);
    site.assert_clean();
}

/// The entry tells of the generation on disk, or there is none (promise 7).
#[track_caller]
fn assert_cached(site: &Site, name: &str) {
    let Some(entry) = site.entry(name) else {
        return;
    };
    let number = |text: &str| {
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        document["_n"].as_u64().unwrap()
    };
    assert_eq!(number(&entry), number(&site.text(name)), "{entry}");
}

/// Others' locks are as they were, and still keep everybody out.
fn strangers_lock_stands(site: &Site) {
    assert_eq!(site.lock("held.nodb").as_deref(), Some(STRANGER));
    let new = document("held.nodb", 5);
    eventually("saves are refused with the reason", || {
        match save(&site.at("held.nodb"), &new) {
            Err(libc::EBUSY) => true,
            Err(libc::ENOLCK) => false,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(site.text("held.nodb"), document("held.nodb", 0));
}

/// A connection with all rights, whatever becomes of everybody else's.
fn admin(redis: &RedisServer) -> redis::Connection {
    redis.cmd(&["ACL", "SETUSER", "boss", "on", ">boss", "~*", "&*", "+@all"]);
    let mut connection = redis.connect(0).unwrap();
    ask(&mut connection, "AUTH boss boss");
    connection
}

fn ask(connection: &mut redis::Connection, words: &str) {
    let words: Vec<_> = words.split(' ').collect();
    redis::cmd(words[0])
        .arg(&words[1..])
        .exec(connection)
        .unwrap();
}

/// By `ask`, with an end that is asked for too.
fn commanded(redis: RedisServer, bad: &'static [&str], good: &'static [&str]) {
    // one for both, for it is the only one that it does not cut itself
    let connection = RefCell::new(admin(&redis));
    let tell = |all: &[&str]| {
        all.iter()
            .for_each(|words| ask(&mut connection.borrow_mut(), words))
    };
    outage(
        redis,
        |_| tell(bad),
        |site| {
            tell(good);
            strangers_lock_stands(site);
        },
    );
}

/// Makes everybody's next request need a new connection.
const CUT: &str = "CLIENT KILL TYPE normal SKIPME yes";

#[test]
fn redis_killed_and_restarted_empty() {
    outage(
        RedisServer::start(),
        |site| site.redis.kill(),
        |site| site.redis.restart(),
    );
}

#[test]
fn redis_frozen() {
    outage(
        RedisServer::start(),
        |site| site.redis.pause(),
        |site| {
            site.redis.cont();
            strangers_lock_stands(site);
        },
    );
}

#[test]
fn redis_unreachable_as_if_packets_were_dropped() {
    let deaf = RefCell::new(None);
    outage(
        RedisServer::start(),
        |site| {
            site.redis.kill();
            *deaf.borrow_mut() = Some(Deaf::in_place_of(&site.redis));
        },
        |site| {
            deaf.borrow_mut().take();
            site.redis.restart();
        },
    );
}

#[test]
fn redis_answers_reads_and_leaves_writes_waiting() {
    commanded(
        RedisServer::start(),
        &["CLIENT PAUSE 600000 WRITE"],
        &["CLIENT UNPAUSE"],
    );
}

#[test]
fn redis_a_replica() {
    commanded(
        RedisServer::start(),
        // its primary is away for ever
        &["REPLICAOF 127.0.0.1 1"],
        &["REPLICAOF NO ONE"],
    );
}

#[test]
fn redis_out_of_memory() {
    commanded(
        RedisServer::start(),
        &["CONFIG SET maxmemory 1"],
        &["CONFIG SET maxmemory 0"],
    );
}

#[test]
fn redis_wants_a_password_that_nobody_gave() {
    commanded(
        RedisServer::start(),
        &["CONFIG SET requirepass secret", CUT],
        &["ACL SETUSER default nopass"],
    );
}

#[test]
fn redis_has_another_password() {
    commanded(
        RedisServer::with_password("first"),
        &["CONFIG SET requirepass second", CUT],
        &["CONFIG SET requirepass first"],
    );
}

#[test]
fn redis_permits_nothing() {
    commanded(
        RedisServer::start(),
        &["ACL SETUSER default -@all +ping +select"],
        &["ACL SETUSER default +@all"],
    );
}

#[test]
fn redis_permits_no_lock_keys() {
    commanded(
        RedisServer::start(),
        &["ACL SETUSER default resetkeys ~/*"],
        &["ACL SETUSER default allkeys"],
    );
}

#[test]
fn redis_takes_no_more_clients() {
    commanded(
        RedisServer::start(),
        &["CONFIG SET maxclients 1", CUT],
        &["CONFIG SET maxclients 1000"],
    );
}

#[test]
fn redis_still_loading() {
    let redis = RedisServer::start();
    let loading = RefCell::new(None);
    outage(
        redis,
        |site| {
            let filler = "x".repeat(10_000);
            for n in 0..200 {
                site.redis.cmd(&["SET", &format!("filler:{n}"), &filler]);
            }
            site.redis.cmd(&["CONFIG", "SET", "rdbcompression", "no"]);
            site.redis.cmd(&["SAVE"]);
            site.redis.kill();
            *loading.borrow_mut() = Some(Loading::in_place_of(&site.redis));
            eventually("the server says that it loads", || {
                let said = site
                    .redis
                    .connect(0)
                    .and_then(|mut connection| redis::cmd("GET").arg("x").exec(&mut connection));
                said.is_err_and(|error| error.to_string().contains("loading"))
            });
        },
        |site| {
            site.redis.cmd(&["CONFIG", "SET", "key-load-delay", "0"]);
            eventually("it has loaded", || {
                let said = site
                    .redis
                    .connect(0)
                    .and_then(|mut connection| redis::cmd("GET").arg("x").exec(&mut connection));
                said.is_ok()
            });
            strangers_lock_stands(site);
        },
    );
}

/// One save after the other while Redis is tormented: each is done or refused, and which of the two
/// its writer was told.
fn under_torment(rounds: usize, torment: impl Fn(&mut redis::Connection) + Send + Sync) {
    let site = Site::new(&ARGS);
    let (done, torments) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let connection = &mut admin(&site.redis);
            while !done.load(SeqCst) {
                torment(connection);
                torments.fetch_add(1, SeqCst);
                // let some through
                thread::sleep(Duration::from_millis(700));
            }
        });
        // also when a save fails the test
        let _end = OnDrop(&done);
        let (mut n, mut acknowledged) = (0, 0);
        let start = Instant::now();
        while torments.load(SeqCst) < rounds || acknowledged < 3 {
            n += 1;
            assert!(start.elapsed() < PATIENCE, "{acknowledged} acknowledged");
            let (old, new) = (site.text("wepp.nodb"), document("wepp.nodb", n));
            let said = save(&site.at("wepp.nodb"), &new);
            match said {
                Ok(()) => {
                    acknowledged += 1;
                    assert_eq!(site.text("wepp.nodb"), new);
                }
                // EBUSY: taken by a request whose answer never came, and not given back yet
                Err(libc::ENOLCK | libc::EBUSY | libc::ESTALE) => {
                    assert_eq!(site.text("wepp.nodb"), old);
                }
                Err(errno) => panic!("errno {errno}"),
            }
        }
    });
    site.redis.cmd(&["SET", "x", "x"]);
    everything_works(&site);
    strangers_lock_stands(&site);
}

#[test]
fn redis_cuts_connections_in_the_middle_of_requests() {
    under_torment(12, |connection| {
        for _ in 0..50 {
            ask(connection, CUT);
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn redis_slow_around_the_limits() {
    under_torment(3, |connection| {
        // some below the time that a request is given, some above
        for pause in [300, 1500, 2500] {
            ask(connection, &format!("CLIENT PAUSE {pause} ALL"));
            thread::sleep(Duration::from_millis(pause));
        }
        // for as long as the daemon may leave it alone
        thread::sleep(Duration::from_secs(2));
    });
}

/// `FLUSHALL` takes the writer's lock away, and somebody else takes it before the writer commits.
#[test]
fn redis_flushed_while_a_lease_is_held() {
    for taken in [false, true] {
        let site = Site::new(&ARGS);
        let old = site.text("wepp.nodb");
        // a process of its own: a duplicate in a program that another test starts is an open writer of this one, and
        // what this one brings by a rename must not be taken for an outdated writer's
        let mut writer = Program::spawn(&site.at(""));
        let open = json!({"op": "open", "slot": 1, "name": "wepp.nodb", "flags": libc::O_WRONLY});
        assert_eq!(writer.call(open), Ok(None));
        assert!(site.lock("wepp.nodb").is_some());
        site.redis.cmd(&["FLUSHALL"]);
        if taken {
            site.redis.cmd(&["SET", &lock_key("wepp.nodb"), STRANGER]);
        }
        // the daemon does not believe what Redis said before
        thread::sleep(2 * NEWS);
        let new = document("wepp.nodb", 1);
        assert_eq!(
            writer.call(json!({"op": "write", "slot": 1, "text": new})),
            Ok(None)
        );
        for op in ["fsync", "close"] {
            let said = writer.call(json!({"op": op, "slot": 1}));
            assert_eq!(said, Err("ESTALE".to_owned()), "{op}");
        }
        assert_eq!(site.text("wepp.nodb"), old);
        if taken {
            // another one's lock, which no renewal and no release of ours may touch
            thread::sleep(Duration::from_millis(500));
            assert_eq!(site.lock("wepp.nodb").as_deref(), Some(STRANGER));
            site.redis.cmd(&["DEL", &lock_key("wepp.nodb")]);
        }
        site.lock_away();
        everything_works(&site);
        strangers_lock_stands(&site);
    }
}

/// A writer that notices before it commits: the renewal finds the lock gone.
#[test]
fn a_lease_that_was_taken_away_and_noticed_is_estale() {
    let site = Site::new(&ARGS);
    let old = site.text("wepp.nodb");
    let path = site.at("wepp.nodb");
    let writer = within("an open", move || File::options().write(true).open(path)).unwrap();
    site.redis.cmd(&["SET", &lock_key("wepp.nodb"), STRANGER]);
    eventually("the renewal notices", || {
        site.mount.log().contains("lock lost")
    });
    let said = call("a commit", move || {
        writer.set_len(0)?;
        site::write(writer, "{}")
    });
    assert_eq!(said, Err(libc::ESTALE));
    assert_eq!(site.text("wepp.nodb"), old);
    assert_eq!(site.lock("wepp.nodb").as_deref(), Some(STRANGER));
    eventually("what was refused is kept", || {
        site.rejected()
            .iter()
            .any(|path| fs::read_to_string(path).is_ok_and(|kept| kept == "{}"))
    });
}
