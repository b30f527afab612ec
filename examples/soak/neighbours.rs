//! NoDb processes on a mount and beside it, which write as their code always did, and one kind that only reads.

use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::python::{Neighbour, Place, Style};
use crate::ground::{Ground, KEY_ROOT};
use crate::host::Host;
use crate::ledger::{Book, Floor, Outcome};
use crate::program::{is_gone, run_of};
use crate::sample::Rng;

/// Where a NoDb process is, and at what.
pub struct Seat<'a> {
    pub ground: &'a Ground,
    pub book: &'a Book,
    pub style: Style,
    /// `None`: beside the mounts.
    pub host: Option<&'a Host>,
    pub writer: String,
}

/// A process and how it signs its locks.
struct Seated {
    neighbour: Neighbour,
    owner: String,
}

impl Seat<'_> {
    fn sit(&self) -> Option<Seated> {
        let below = self.host.map_or(&self.ground.source, |host| &host.mount);
        let wd = below.join(run_of(&self.book.path));
        let key_wd = Path::new(KEY_ROOT).join(run_of(&self.book.path));
        let controller = self.book.name.trim_end_matches(".nodb");
        let url = self.ground.url();
        let mut neighbour =
            Neighbour::spawn(self.style, &wd, &key_wd, controller, url, Place::Host);
        // it has to read the document for that, which a mount that is down does not let it
        let info = neighbour.call(json!({"op": "info"}));
        let owner = info["owner"].as_str()?.to_owned();
        Some(Seated { neighbour, owner })
    }

    /// Adds its numbers, each under its own lock.
    pub fn write(&self, rng: Rng) {
        let mut seated = None;
        self.ground.work(&self.writer, 120, rng, |rng| {
            let _truce = self.ground.truce.read();
            self.ground.release_leaked();
            if seated.is_none() {
                seated = self.sit();
            }
            if seated.is_some() {
                self.attempt(&mut seated, rng);
            }
        });
    }

    fn attempt(&self, seated: &mut Option<Seated>, rng: &mut Rng) {
        let Some(Seated { neighbour, owner }) = seated else {
            return;
        };
        let (ground, book, writer) = (self.ground, self.book, &self.writer);
        let epochs = self.epochs();
        let leak = (book.lock_key(), owner.clone());
        let locked = neighbour.call(json!({"op": "lock"}));
        let said = locked["message"].as_str().unwrap_or_default();
        match locked["error"].as_str() {
            None => {}
            Some("NoDbAlreadyLockedError") if !said.contains(&format!("{owner:?}")) => {
                return ground.report.refusal(0);
            }
            Some(_) => {
                ground.leaked.lock().push(leak);
                return self.complain(&locked, epochs);
            }
        }
        let floor = book.floor();
        let loaded = neighbour.call(json!({"op": "load"}));
        if loaded["ok"] != true {
            *seated = None;
            ground.leaked.lock().push(leak);
            return self.complain(&loaded, epochs);
        }
        // an old one may have got what another old one left in the cache
        if self.style == Style::Modern {
            self.observe(neighbour, &loaded["from"], &floor);
        }
        let number = book.begin(writer);
        let old_beside = self.style == Style::Old && self.host.is_none();
        if old_beside {
            *book.old_busy.lock() = Some(Instant::now());
        }
        for (key, value) in [
            (format!("_mark_{writer}"), json!(number)),
            ("_by".to_owned(), json!(format!("{writer}:{number}"))),
        ] {
            neighbour.ok(json!({"op": "set", "key": key, "value": value}));
        }
        neighbour.send(&json!({"op": "dump_and_unlock"}));
        // killed beside the mounts, an old one would leave half a document to everybody
        if !old_beside && ground.is_condemned() {
            sleep(Duration::from_millis(rng.int(0, 30) as u64));
            *seated = None;
            ground.leaked.lock().push(leak);
            ground.report.crash();
            return book.end(writer, number, Outcome::Unknown, true);
        }
        let dumped = neighbour.answer();
        if old_beside {
            *book.old_busy.lock() = None;
        }
        if dumped["ok"] == true {
            ground.report.commit();
            // NoDb processes say nothing when the cache does not take their entry
            let loose = self.host.is_none() && !self.unharmed_since(epochs).1;
            book.end(writer, number, Outcome::Acknowledged, loose);
        } else {
            // what was assigned and not dumped must not be seen again
            *seated = None;
            ground.leaked.lock().push(leak);
            book.end(writer, number, Outcome::Unknown, true);
            self.complain(&dumped, epochs);
        }
    }

    /// What a neighbour may stumble over, and what it may not.
    fn complain(&self, answer: &Value, epochs: (u64, u64)) {
        let report = &self.ground.report;
        let (mount, redis) = self.unharmed_since(epochs);
        let errno = answer["errno"].as_i64().unwrap_or(0) as i32;
        match (answer["error"].as_str().unwrap_or_default(), errno) {
            (_, libc::EBUSY | libc::ESTALE | libc::ENOLCK) if self.host.is_some() => {
                report.refusal(errno);
            }
            ("NoDbStaleWriteError" | "NoDbLockLostError" | "NoDbAlreadyLockedError", _) => {
                report.refusal(0);
            }
            (_, errno) if is_gone(errno) && !mount => {}
            _ if !redis => {}
            _ => report.violation(&self.writer, format!("{}: {answer}", self.book.name)),
        }
    }

    /// Reads as a process that has just started would.
    pub fn watch(&self, rng: Rng) {
        let mut seated = None;
        self.ground.work(&self.writer, 200, rng, |_| {
            if seated.is_none() {
                seated = self.sit();
            }
            let Some(Seated { neighbour, .. }) = &mut seated else {
                return;
            };
            let (epochs, floor) = (self.epochs(), self.book.floor());
            let loaded = neighbour.call(json!({"op": "reload"}));
            if loaded["ok"] != true {
                return self.complain(&loaded, epochs);
            }
            self.observe(neighbour, &loaded["from"], &floor);
        });
    }

    /// What the process has in memory now, and where it has it from.
    fn observe(&self, neighbour: &mut Neighbour, from: &Value, floor: &Floor) {
        let read = neighbour.call(json!({"op": "text"}));
        let text = read["value"].as_str().unwrap_or_default();
        let again = || std::fs::read(self.ground.source.join(&self.book.path));
        let actor = format!("{} (from {from})", self.writer);
        self.ground
            .observe(&actor, self.book, floor, text.as_bytes(), &again);
    }

    fn epochs(&self) -> (u64, u64) {
        let mount = self.host.map_or(0, Host::epoch);
        (mount, self.ground.redis_epoch.load(SeqCst))
    }

    /// Whether mount and Redis have been let alone since.
    fn unharmed_since(&self, (mount, redis): (u64, u64)) -> (bool, bool) {
        let mount = self.host.is_none_or(|host| host.is_unharmed_since(mount));
        (mount, self.ground.is_redis_unharmed_since(redis))
    }
}
