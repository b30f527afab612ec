//! What everybody works on: one tree of runs, two hosts that have it mounted, one Redis.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::{Mutex, RwLock};
use redis::{FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, RedisResult};
use serde_json::{Value, json};

use crate::host::Host;
use crate::ledger::{Book, Company, Floor, Hand, Marks, state_of_mut};
use crate::program::run_of;
use crate::redis_server::RedisServer;
use crate::report::Report;
use crate::sample::{Rng, RunOptions, make_tree};

/// The tree as NoDb processes know it.
pub const KEY_ROOT: &str = "/wc1/runs";
/// Shorter than the pauses that daemons are made to take.
const OPTIONS: [&str; 6] = [
    "--lease-ttl",
    "400ms",
    "--lock-wait",
    "2s",
    "--key-root",
    KEY_ROOT,
];
/// The lock of a NoDb process that is not here.
pub const STRANGER: &str = r#"{"token":"0123456789abcdef0123456789abcdef","owner":"elsewhere:17","acquired_at":1760000000,"expires_at":4000000000,"ttl":21600}"#;
/// Another host's commit under way, and a NoDb process's: neither is ours to clear.
pub const OTHERS: [&str; 2] = [".nodbfs-another-host-17-3.tmp", ".wepp.nodb.x7f3.tmp"];
/// The writer of the checks.
pub const CLERK: &str = "clerk";
/// How long a daemon may be stopped, and what it is to take back may stand.
const MOMENT: Duration = Duration::from_secs(4);

pub struct Ground {
    pub report: Report,
    // daemons before what they serve: fields are dropped in order
    pub hosts: [Host; 2],
    pub redis: Mutex<RedisServer>,
    url: String,
    pub source: PathBuf,
    pub books: Vec<Book>,
    /// Held for reading by everybody at work.
    pub gate: RwLock<()>,
    /// Held for reading by NoDb processes at work: who loses its lock while it works and cannot know
    /// overwrites what others commit, so locks vanish when no such process has one.
    pub truce: RwLock<()>,
    /// Odd while Redis is harmed; another one after that.
    pub redis_epoch: AtomicU64,
    /// Odd while the stranger's lock may be gone.
    pub wipes: AtomicU64,
    /// How many writers are to be killed in the middle of their work.
    pub condemned: AtomicU64,
    /// Locks of neighbours that died or could not give them back: key and owner.
    pub leaked: Mutex<Vec<(String, String)>>,
    /// What the worker on plain files has done, per host.
    pub plain_done: [AtomicU64; 2],
}

impl Ground {
    pub fn new(dir: &Path, seed: u64, ended: Arc<AtomicBool>) -> Result<Self> {
        let source = dir.join("source");
        let options = RunOptions {
            known_as: Some(KEY_ROOT.into()),
            seed,
            ..RunOptions::small()
        };
        let runids = make_tree(&source, 2, &options)?;
        let book = |company, run: usize, name: &str| {
            let runid = &runids[run];
            let path = Path::new(&runid[..2]).join(runid).join(name);
            let key = format!("{KEY_ROOT}/{}", path.display());
            Book::new(company, runid, name, path, key)
        };
        let books = vec![
            book(Company::Tools, 0, "wepp.nodb"),
            book(Company::Modern, 0, "watershed.nodb"),
            book(Company::Stranger, 0, "unitizer.nodb"),
            book(Company::Relay, 1, "ron.nodb"),
            book(Company::Old, 1, "climate.nodb"),
        ];
        for book in &books {
            book.enroll(CLERK, Hand::Program);
            for other in OTHERS {
                fs::write(run_of(&source.join(&book.path)).join(other), "{")?;
            }
        }
        let redis = RedisServer::durable();
        let address = redis.url();
        let options = [&OPTIONS[..], &["--redis", &address]].concat();
        let hosts = [
            Host::new("A", &source, dir, &options)?,
            Host::new("B", &source, dir, &options)?,
        ];
        let ground = Self {
            report: Report::new(ended),
            hosts,
            url: redis.unix_url(),
            redis: Mutex::new(redis),
            source,
            books,
            gate: RwLock::default(),
            truce: RwLock::default(),
            redis_epoch: AtomicU64::new(0),
            wipes: AtomicU64::new(0),
            condemned: AtomicU64::new(0),
            leaked: Mutex::default(),
            plain_done: Default::default(),
        };
        ground.lock_away()?;
        Ok(ground)
    }

    pub fn book(&self, company: Company) -> &Book {
        let book = self.books.iter().find(|book| book.company == company);
        book.expect("one of each")
    }

    /// Every writer's number, before anybody starts.
    pub fn number_documents(&self) -> Result<()> {
        for book in &self.books {
            let path = self.source.join(&book.path);
            let mut document: Value = serde_json::from_slice(&fs::read(&path)?)?;
            let state = state_of_mut(&mut document);
            state["_by"] = json!(format!("{CLERK}:0"));
            for writer in book.writers() {
                state[format!("_mark_{writer}")] = json!(0);
            }
            fs::write(&path, document.to_string())?;
        }
        Ok(())
    }

    /// One Redis command, within a limit.
    pub fn ask<T: FromRedisValue>(&self, database: i64, words: &[&str]) -> RedisResult<T> {
        let info = RedisConnectionInfo::default().set_db(database);
        let address = self.url.as_str().into_connection_info()?;
        let client = redis::Client::open(address.set_redis_settings(info))?;
        let limit = Duration::from_secs(5);
        let mut connection = client.get_connection_with_timeout(limit)?;
        connection.set_read_timeout(Some(limit))?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }

    /// What NoDb processes are told of Redis.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The stranger has its lock, which has no end.
    pub fn lock_away(&self) -> Result<()> {
        let book = self.book(Company::Stranger);
        let flag = format!("locked:{}", book.name);
        self.ask::<()>(0, &["SET", &book.lock_key(), STRANGER])?;
        Ok(self.ask::<()>(0, &["HSET", &book.runid, &flag, "true"])?)
    }

    /// Whether nobody has harmed Redis since the epoch was `before`.
    pub fn is_redis_unharmed_since(&self, before: u64) -> bool {
        before.is_multiple_of(2) && self.redis_epoch.load(SeqCst) == before
    }

    /// Whether the one who asks is to be killed in the middle of its work.
    pub fn is_condemned(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.condemned.fetch_update(SeqCst, SeqCst, less).is_ok()
    }

    /// What NoDb's own tools do about the lock of a process that is gone.
    pub fn release_leaked(&self) {
        self.leaked.lock().retain(|(key, owner)| {
            let held: RedisResult<Option<String>> = self.ask(0, &["GET", key]);
            match held {
                Ok(Some(value)) if value.contains(&format!("{owner:?}")) => {
                    self.ask::<()>(0, &["DEL", key]).is_err()
                }
                Ok(_) => false,
                Err(_) => true,
            }
        });
    }

    /// Does `step` again and again until it is over, with pauses, while the gate is open.
    pub fn work(&self, actor: &str, pause: i64, mut rng: Rng, mut step: impl FnMut(&mut Rng)) {
        while !self.report.is_over() {
            {
                let _at_work = self.gate.read();
                let _doing = self.report.doing(actor, "is at one thing");
                step(&mut rng);
            }
            sleep(Duration::from_millis(rng.int(pause / 4, pause) as u64));
        }
    }

    /// Looks at what was read of a controller after `floor` was taken; `again` reads it once more.
    pub fn observe(
        &self,
        actor: &str,
        book: &Book,
        floor: &Floor,
        text: &[u8],
        again: &dyn Fn() -> io::Result<Vec<u8>>,
    ) {
        let Some(marks) = Marks::of(text) else {
            // a reader waits a second for an old neighbour in the middle of its dump, and no longer
            let long = |since: Instant| since.elapsed() > Duration::from_millis(900);
            if book.old_busy.lock().is_some_and(long) {
                self.report
                    .account("half a document of an old neighbour that took more than a second");
            } else {
                let text = String::from_utf8_lossy(text);
                let words = format!("not a whole document ({} bytes): {text:.80}", text.len());
                self.report
                    .violation(actor, format!("{}: {words}", book.name));
            }
            return;
        };
        for fault in book.judge(floor, &marks) {
            if fault.by_old {
                self.report.account(
                    "lost by an old neighbour's own hand, which looks at nothing before it writes",
                );
                book.write_off(&fault.writer, &marks);
                continue;
            }
            let (words, news) = match self.left_of(book, floor, &fault.writer, again) {
                Some(left) => (fault.words, book.write_off(&fault.writer, &left)),
                // a stopped daemon's publication, taken back: it shows by a number that nobody was told is there
                None if self.was_never_acknowledged(book, &marks) => {
                    self.report
                        .account("a stopped daemon's publication, seen before it was taken back");
                    continue;
                }
                None => (fault.words + ", for a moment", true),
            };
            if news {
                self.report
                    .violation(actor, format!("{}: {words}", book.name));
            }
        }
    }

    /// What a fault comes to when it lasts; `None`: it was there for a moment.
    fn left_of(
        &self,
        book: &Book,
        floor: &Floor,
        writer: &str,
        again: &dyn Fn() -> io::Result<Vec<u8>>,
    ) -> Option<Marks> {
        let start = Instant::now();
        loop {
            let marks = again().ok().as_deref().and_then(Marks::of);
            if let Some(marks) = marks {
                let faults = book.judge(floor, &marks);
                if !faults.iter().any(|fault| fault.writer == writer) {
                    return None;
                }
                if start.elapsed() > MOMENT {
                    return Some(marks);
                }
            } else if start.elapsed() > MOMENT {
                return None;
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Whether the commit that a document is by came to nothing.
    fn was_never_acknowledged(&self, book: &Book, marks: &Marks) -> bool {
        let Some(by) = &marks.by else { return false };
        let start = Instant::now();
        loop {
            match book.was_acknowledged(by) {
                Some(acknowledged) => return !acknowledged,
                None if start.elapsed() > MOMENT => return false,
                None => sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The lock keys that are there.
    pub fn locks(&self) -> Result<Vec<String>> {
        self.ask(0, &["KEYS", "nodb-lock:*"])
            .context("Redis does not answer")
    }
}
