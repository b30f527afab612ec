//! A network between nodbfs and Redis that loses packets, cuts connections and delivers late (promises 5, 6, 7 and 9). The
//! second mount, as on another host, reaches Redis all the time. As root: each test has a network of its own.

mod common;
#[path = "common/network.rs"]
mod network;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use common::mount::Mount;
use network::Network;
use site::{Site, document, eventually, listing, lock_key, save, within};
use tracer::is_root;

const NAME: &str = "wepp.nodb";
/// What begins a refresh of the cache, and what answers it.
const REFRESH: &str = "tcp dport PORT @ih,64,40 0x4d554c5449";
const REFRESHED: &str = "tcp sport PORT @ih,0,64 0x2b4f4b0d0a2b5155";

/// A request to run one of nodbfs's scripts.
fn script(site: &Site, name: &str) -> String {
    let text =
        fs::read_to_string(common::in_crate(&format!("src/store/redis/{name}.lua"))).unwrap();
    let sha = site
        .redis
        .text(&["SCRIPT", "LOAD", &text])
        .expect("its hash");
    let start: String = sha
        .bytes()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("tcp dport PORT @ih,176,64 0x{start}")
}

/// The source mounted once more, where Redis is not reached through this network.
fn neighbour(site: &Site, args: &[&str]) -> Mount {
    Mount::builder(site.on_disk(""))
        .redis(&site.redis.unix_url())
        .args(args)
        .start()
}

fn open(path: &Path) -> File {
    File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .unwrap()
}

fn sync(writer: &File) -> Result<(), i32> {
    let writer = writer.try_clone().unwrap();
    site::call("a sync", move || writer.sync_all())
}

/// The document that the entry is of, if there is one.
fn entry_of(site: &Site, name: &str) -> Option<u64> {
    number(&site.entry(name)?)
}

/// Which document this is.
fn number(text: &str) -> Option<u64> {
    let document: serde_json::Value = serde_json::from_str(text).unwrap();
    document["_n"].as_u64()
}

/// Packets are lost from some moment of a save on: those to Redis, those from it, and both. The save is refused or done, in
/// time, and readers, plain files and the way back are as ever.
fn lose(to: &str, from: &str, opened: bool) {
    let (network, redis) = Network::with_redis();
    let site = Site::on(redis, &["--lease-ttl", "3s", "--lock-wait", "5s"]);
    for (n, lost) in (1..).zip([&[to][..], &[from], &[to, from]]) {
        let (old, new) = (site.text(NAME), document(NAME, n));
        fs::read(site.at(NAME)).unwrap();
        let writer = opened.then(|| open(&site.at(NAME)));
        lost.iter()
            .for_each(|packets| network.rule(&format!("{packets} drop")));
        let said = match writer {
            Some(mut writer) => {
                writer.write_all(new.as_bytes()).unwrap();
                let said = sync(&writer);
                within("a close", move || drop(writer));
                said
            }
            None => save(&site.at(NAME), &new),
        };
        assert!(
            matches!(said, Ok(()) | Err(libc::ENOLCK)),
            "{lost:?}: {said:?}"
        );
        let now = if said.is_ok() { new } else { old };
        println!("{lost:?}: {said:?}");
        assert_eq!(site.text(NAME), now, "{lost:?}");
        let at = site.at("");
        let read = within("reads and plain files", move || {
            fs::write(at.join("plain"), "x").unwrap();
            fs::remove_file(at.join("plain")).unwrap();
            fs::read_to_string(at.join(NAME)).unwrap()
        });
        assert_eq!(read, now, "{lost:?}");
        network.heal();
        eventually("debts are paid", || site.debts().is_empty());
        network.drained();
        assert!(
            [None, number(&now)].contains(&entry_of(&site, NAME)),
            "{lost:?}"
        );
        eventually("saves go on", || save(&site.at(NAME), &now).is_ok());
        assert_eq!(entry_of(&site, NAME), number(&now), "{lost:?}");
        assert_eq!(site.lock(NAME), None, "{lost:?}");
        eventually("no leftover", || {
            !listing(&site.on_disk(""))
                .iter()
                .any(|name| name.starts_with(".nodbfs"))
        });
    }
}

#[test]
fn packets_lost_before_a_save() {
    if is_root() {
        lose("tcp dport PORT", "tcp sport PORT", false);
    }
}

#[test]
fn packets_lost_between_lock_and_commit() {
    if is_root() {
        lose("tcp dport PORT", "tcp sport PORT", true);
    }
}

#[test]
fn packets_lost_at_the_refresh() {
    if is_root() {
        lose(REFRESH, REFRESHED, false);
    }
}

/// A refresh that was given up does not arrive when the network is back, over what another host committed meanwhile.
#[test]
fn a_refresh_given_up_never_arrives_late() {
    if !is_root() {
        return;
    }
    let (network, redis) = Network::with_redis();
    let site = Site::on(redis, &[]);
    let other = neighbour(&site, &[]);
    network.rule(&format!("{REFRESH} counter drop"));
    assert_eq!(save(&site.at(NAME), &document(NAME, 1)), Ok(()));
    eventually("the debt is paid", || site.debts().is_empty());
    assert_eq!(save(&other.path().join(NAME), &document(NAME, 2)), Ok(()));
    assert_eq!(entry_of(&site, NAME), Some(2));
    network.heal();
    network.drained();
    assert_eq!(entry_of(&site, NAME), Some(2));
    assert_eq!(site.text(NAME), document(NAME, 2));
    assert_eq!(save(&site.at(NAME), &document(NAME, 3)), Ok(()));
    assert_eq!(entry_of(&site, NAME), Some(3));
}

/// An acquire that was given up takes no lock when the network is back, and a release none away.
#[test]
fn requests_for_locks_given_up_do_not_arrive_late() {
    if !is_root() {
        return;
    }
    let (network, redis) = Network::with_redis();
    let site = Site::on(redis, &["--lease-ttl", "2s"]);
    let other = neighbour(&site, &[]);
    network.rule(&format!("{} drop", script(&site, "acquire")));
    assert_eq!(save(&site.at(NAME), &document(NAME, 1)), Err(libc::ENOLCK));
    network.heal();
    network.drained();
    assert_eq!(site.lock(NAME), None);

    network.rule(&format!("{} drop", script(&site, "release")));
    assert_eq!(save(&site.at(NAME), &document(NAME, 2)), Ok(()));
    // the lease ends by itself, and the next one takes the lock
    let mut writer = within("the other's open", {
        let path = other.path().join(NAME);
        move || {
            eventually("the other gets the lock", || {
                File::options().write(true).open(&path).is_ok()
            });
            open(&path)
        }
    });
    let theirs = site.lock(NAME).expect("the other's lock");
    let token =
        |lock: &str| serde_json::from_str::<serde_json::Value>(lock).unwrap()["token"].clone();
    network.heal();
    network.drained();
    let now = site.lock(NAME).expect("still the other's lock");
    assert_eq!(token(&now), token(&theirs));
    writer.write_all(document(NAME, 3).as_bytes()).unwrap();
    assert_eq!(sync(&writer), Ok(()));
    assert_eq!(site.text(NAME), document(NAME, 3));
}

/// A partition longer than the lease: another host takes the lock and commits; the writer on this side is refused, during
/// the partition and after it.
#[test]
fn a_partition_longer_than_the_lease_loses_nothing() {
    if !is_root() {
        return;
    }
    let (network, redis) = Network::with_redis();
    let site = Site::on(redis, &["--lease-ttl", "1s"]);
    let other = neighbour(&site, &[]);
    let mut writer = open(&site.at(NAME));
    network.rule("tcp dport PORT drop");
    network.rule("tcp sport PORT drop");
    writer.write_all(document(NAME, 1).as_bytes()).unwrap();
    eventually("the other gets the lock", || {
        save(&other.path().join(NAME), &document(NAME, 2)).is_ok()
    });
    let said = sync(&writer).expect_err("the lease is over");
    assert!([libc::ENOLCK, libc::ESTALE].contains(&said), "{said}");
    assert_eq!(site.text(NAME), document(NAME, 2));
    network.heal();
    eventually("it is told that the base changed", || {
        sync(&writer) == Err(libc::ESTALE)
    });
    within("a close", move || drop(writer));
    eventually("what was refused is kept", || !site.rejected().is_empty());
    assert_eq!(site.text(NAME), document(NAME, 2));
    assert_eq!(
        fs::read_to_string(site.at(NAME)).unwrap(),
        document(NAME, 2)
    );
    assert_eq!(entry_of(&site, NAME), Some(2));
    eventually("saves go on", || {
        save(&site.at(NAME), &document(NAME, 3)).is_ok()
    });
    assert_eq!(site.lock(NAME), None);
}

/// Adds `mark` to the list, as any program would.
fn add(path: &Path, mark: &str) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut marks: Vec<String> = serde_json::from_str(&text).expect("a whole document");
    marks.push(mark.to_owned());
    let text = serde_json::to_string(&marks).expect("strings are JSON");
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// Programs at two mounts go on while one side's connections are lost, cut and healed again and again.
#[test]
fn no_acknowledged_mark_is_lost_to_a_bad_network() {
    if !is_root() {
        return;
    }
    let (network, redis) = Network::with_redis();
    let args = ["--lease-ttl", "500ms", "--lock-wait", "5s"];
    let site = Site::on(redis, &args);
    let other = neighbour(&site, &args);
    fs::write(site.on_disk("marks.nodb"), "[]").unwrap();
    let breaks = AtomicUsize::new(0);
    let faults = [
        "tcp dport PORT drop",
        "tcp sport PORT drop",
        "tcp dport PORT reject with tcp reset",
        "tcp sport PORT reject with tcp reset",
    ];
    let kept = thread::scope(|scope| {
        let writers = [site.at("marks.nodb"), other.path().join("marks.nodb")].map(|path| {
            let breaks = &breaks;
            scope.spawn(move || {
                let mut kept = BTreeSet::new();
                // so many that nobody gets there who saves at all
                for n in 0..10_000 {
                    let mark = format!("{}-{n}", path.display());
                    match add(&path, &mark).map_err(|error| error.raw_os_error()) {
                        Ok(()) => drop(kept.insert(mark)),
                        Err(Some(libc::EBUSY | libc::ESTALE | libc::ENOLCK)) => {
                            thread::sleep(Duration::from_millis(10));
                        }
                        Err(errno) => panic!("errno {errno:?}"),
                    }
                    // whoever was cut off for the whole time saves when the network is back
                    if breaks.load(Relaxed) == 2 * faults.len() && !kept.is_empty() {
                        break;
                    }
                }
                kept
            })
        });
        for fault in faults.iter().cycle().take(2 * faults.len()) {
            network.rule(fault);
            // around the lease
            thread::sleep(Duration::from_millis(600));
            network.heal();
            thread::sleep(Duration::from_millis(400));
            breaks.fetch_add(1, Relaxed);
        }
        writers.map(|writer| writer.join().unwrap())
    });
    let text = fs::read_to_string(site.on_disk("marks.nodb")).unwrap();
    let marks: BTreeSet<String> = serde_json::from_str(&text).unwrap();
    for kept in &kept {
        assert!(!kept.is_empty());
        assert_eq!(
            kept.difference(&marks).collect::<Vec<_>>(),
            Vec::<&String>::new()
        );
    }
    network.drained();
    for path in [site.at("marks.nodb"), other.path().join("marks.nodb")] {
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
    assert!(listing(&site.at("")).contains(&"marks.nodb".to_owned()));
    eventually("no lock is left", || {
        site.redis.text(&["GET", &lock_key("marks.nodb")]).is_none()
    });
}
