//! The neighbours prove themselves: NoDb processes among themselves, with a real redis-server and no
//! nodbfs in sight. What the other suites demand of nodbfs is only as good as these are.

#[path = "../common/mod.rs"]
mod common;
mod documents;
mod locks;
mod names;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::python::{Neighbour, Place, Style};
use common::redis::RedisServer;
use common::sample::{Layout, RunOptions, make_run};
use serde_json::Value;
use tempfile::TempDir;

/// A run, a redis-server and the run's name in the field.
struct Field {
    redis: RedisServer,
    wd: TempDir,
    known_as: PathBuf,
}

impl Field {
    fn new() -> Self {
        let wd = tempfile::tempdir().unwrap();
        let known_as = PathBuf::from("/wc1/runs/me/mercuric-subcontract");
        let options = RunOptions {
            hillslopes: 0,
            raster_bytes: 0,
            layout: Layout::Mixed,
            known_as: Some(known_as.clone()),
            ..RunOptions::default()
        };
        make_run(wd.path(), &options).unwrap();
        Self {
            redis: RedisServer::start(),
            wd,
            known_as,
        }
    }

    fn spawn(&self, style: Style, controller: &str) -> Neighbour {
        self.spawn_in(style, controller, Place::Host)
    }

    fn spawn_in(&self, style: Style, controller: &str, place: Place) -> Neighbour {
        Neighbour::spawn(
            style,
            self.wd.path(),
            &self.known_as,
            controller,
            &self.redis.unix_url(),
            place,
        )
    }

    /// One Redis command in database `db`.
    fn ask<T: ::redis::FromRedisValue>(&self, db: i64, words: &[&str]) -> T {
        ::redis::from_redis_value(self.redis.cmd_in(db, words)).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.wd.path().join(name)
    }

    fn entry_key(&self, name: &str) -> String {
        format!("{}/{name}", self.known_as.display())
    }

    /// The payload cache's entry.
    fn entry(&self, name: &str) -> Value {
        let text: String = self.ask(13, &["GET", &self.entry_key(name)]);
        serde_json::from_str(&text).unwrap()
    }

    fn mirror(&self, name: &str) -> Option<String> {
        self.ask(
            0,
            &["HGET", "mercuric-subcontract", &format!("locked:{name}")],
        )
    }

    fn lock(&self, name: &str) -> Option<String> {
        self.ask(
            0,
            &["GET", &format!("nodb-lock:mercuric-subcontract:{name}")],
        )
    }
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn state(document: &Value) -> &Value {
    document.get("py/state").unwrap_or(document)
}

/// `st_mtime` as Python has it, and the size.
fn signature(path: &Path) -> (f64, u64) {
    let stat = fs::metadata(path).unwrap();
    (
        stat.mtime() as f64 + 1e-9 * stat.mtime_nsec() as f64,
        stat.len(),
    )
}
