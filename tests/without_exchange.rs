//! A source that cannot exchange two names, as NFS cannot (here bindfs): every road of a write is a commit there too, and
//! what came between is noticed (promises 3, 4, 6, 7 and 10). As root: a file system of the test's own is mounted.

#[path = "common/bindfs.rs"]
mod bindfs;
mod common;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread;

use bindfs::Bindfs;
use common::mount::Mount;
use common::redis::RedisServer;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use site::{document, eventually, listing, save};
use tracer::is_root;

const NAME: &str = "wepp.nodb";

/// Bindfs with a run in it, a Redis, and two mounts of it as on two hosts.
struct Field {
    mounts: [Mount; 2],
    redis: RedisServer,
    source: Bindfs,
}

impl Field {
    fn new() -> Self {
        let (source, redis) = (Bindfs::new(), RedisServer::start());
        fs::write(source.beneath(NAME), document(NAME, 0)).unwrap();
        let mount = || {
            Mount::builder(source.path())
                .redis(&redis.url())
                .args(["--key-root", "/wc1/run", "--lock-wait", "60s"])
                .start()
        };
        Self {
            mounts: [mount(), mount()],
            redis,
            source,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mounts[0].path().join(name)
    }

    /// `text` is what is on disk and everybody reads, the entry is of it or there is none, nobody has the lock, and
    /// nothing is left of the commit.
    #[track_caller]
    fn assert_settled(&self, name: &str, text: Option<&str>) {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        for path in [
            self.source.beneath(name),
            self.at(name),
            self.mounts[1].path().join(name),
        ] {
            assert_eq!(read(path).as_deref(), text);
        }
        let entry = self
            .redis
            .text_in(13, &["GET", &format!("/wc1/run/{name}")]);
        let of = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        assert_eq!(
            entry.map(|entry| of(&entry)["_n"].clone()),
            text.map(|text| of(text)["_n"].clone())
        );
        // nobody waits for the last close of a refused writer
        let lock = format!("nodb-lock:run:{name}");
        eventually("nobody has the lock", || {
            self.redis.text(&["GET", &lock]).is_none()
        });
        eventually("no leftover", || {
            !listing(&self.source.beneath(""))
                .iter()
                .any(|name| name.starts_with(".nodbfs"))
        });
    }
}

#[test]
fn every_road_is_a_commit_without_an_exchange_too() {
    if !is_root() {
        return;
    }
    let field = Field::new();
    let (at, new) = (field.at(NAME), field.at("new.nodb"));
    let text = |n| document(NAME, n);
    assert_eq!(save(&at, &text(1)), Ok(()));
    field.assert_settled(NAME, Some(&text(1)));
    fs::write(field.at("draft"), text(2)).unwrap();
    fs::rename(field.at("draft"), &at).unwrap();
    field.assert_settled(NAME, Some(&text(2)));
    assert_eq!(listing(&field.at("")), [NAME]);
    site::write(File::create(&new).unwrap(), &text(3)).unwrap();
    field.assert_settled("new.nodb", Some(&text(3)));
    fs::rename(&new, &at).unwrap();
    field.assert_settled(NAME, Some(&text(3)));
    field.assert_settled("new.nodb", None);
    fs::rename(&at, field.at("plain")).unwrap();
    field.assert_settled(NAME, None);
    fs::hard_link(field.at("plain"), &at).unwrap();
    field.assert_settled(NAME, Some(&text(3)));
    assert_eq!(save(&at, &text(4)), Ok(()));
    assert_eq!(fs::read_to_string(field.at("plain")).unwrap(), text(3));
    let exchange = renameat_with(CWD, field.at("plain"), CWD, &at, RenameFlags::EXCHANGE);
    assert_eq!(exchange, Err(Errno::INVAL));
    field.assert_settled(NAME, Some(&text(4)));
    assert_eq!(save(&at, "{"), Err(libc::EBADMSG));
    field.assert_settled(NAME, Some(&text(4)));
    fs::remove_file(&at).unwrap();
    field.assert_settled(NAME, None);
}

#[test]
fn a_stale_base_is_noticed_without_an_exchange_too() {
    if !is_root() {
        return;
    }
    let field = Field::new();
    let text = |n| document(NAME, n);
    let open = || {
        File::options()
            .write(true)
            .truncate(true)
            .open(field.at(NAME))
            .unwrap()
    };
    let writer = open();
    // without any lock, as a fork of a run
    fs::write(field.source.path().join("t"), text(1)).unwrap();
    fs::rename(
        field.source.path().join("t"),
        field.source.path().join(NAME),
    )
    .unwrap();
    let said = site::call("a save", move || site::write(writer, &text(2)));
    assert_eq!(said, Err(libc::ESTALE));
    assert_eq!(save(&field.at(NAME), &text(3)), Ok(()));
    field.assert_settled(NAME, Some(&text(3)));
}

/// Adds one, as any program would.
fn add(path: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let n = serde_json::from_str::<serde_json::Value>(&text)?["_n"]
        .as_u64()
        .expect("a number");
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(document(NAME, n + 1).as_bytes())?;
    file.sync_all()
}

#[test]
fn no_update_is_lost_between_two_mounts_without_an_exchange() {
    if !is_root() {
        return;
    }
    let field = Field::new();
    thread::scope(|scope| {
        for mount in &field.mounts {
            scope.spawn(|| (0..20).for_each(|_| add(&mount.path().join(NAME)).unwrap()));
        }
    });
    field.assert_settled(NAME, Some(&document(NAME, 40)));
}
