//! What every writer of a controller has been told, and what a document may therefore say.
//!
//! A document carries one number per writer, `_mark_<writer>`, and in `_by` whose commit it is. A writer counts
//! its number up with every attempt, and reads the document before each; so a lost update shows at once
//! as a number that is smaller than one that was acknowledged before the read began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;

/// Far more attempts of one writer than there can be during a read.
const REMEMBERED: usize = 1000;

/// Who works on a controller, which decides what can be demanded of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Programs at both mounts, each of which reads and writes under one lock.
    Tools,
    /// One program after the other, now at this mount and now at that one, on the roads without a lock between
    /// reading and writing: `sed -i`, `cp`, `mv`.
    Relay,
    /// Programs, and modern NoDb processes on the mount and beside it.
    Modern,
    /// Programs, and old NoDb processes on the mount and beside it.
    Old,
    /// Nobody: a stranger holds the lock.
    Stranger,
}

/// What kind of writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    Program,
    Modern,
    Old,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    Acknowledged,
    Refused,
    /// The writer does not know: it, or the daemon, or the neighbour's Redis went away in between.
    Unknown,
}

/// One controller and its writers.
pub struct Book {
    pub company: Company,
    pub runid: String,
    /// File name, such as `wepp.nodb`.
    pub name: String,
    /// Below the source and below every mount.
    pub path: PathBuf,
    /// The key of its entry in DB 13.
    pub key: String,
    /// Since when an old neighbour beside the mounts has been at it.
    pub old_busy: Mutex<Option<Instant>>,
    accounts: Mutex<Vec<Account>>,
}

struct Account {
    name: String,
    hand: Hand,
    tried: u64,
    acknowledged: u64,
    /// Those later than `acknowledged` that must not be seen.
    refused: BTreeSet<u64>,
    /// Those that were refused, or whose end nobody knows.
    failed: BTreeSet<u64>,
    /// Those whose cache entry nobody answers for.
    loose: BTreeSet<u64>,
    /// Whether the latest attempt is over.
    idle: bool,
    /// What the old neighbours had had acknowledged when an attempt began.
    old_then: BTreeMap<u64, BTreeMap<String, u64>>,
}

/// The numbers of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    pub numbers: BTreeMap<String, u64>,
    /// Whose commit it is, and which.
    pub by: Option<(String, u64)>,
}

/// What had been acknowledged at some time.
pub type Floor = BTreeMap<String, u64>;

/// A document that contradicts what a writer was told.
#[derive(Debug)]
pub struct Fault {
    pub writer: String,
    pub words: String,
    /// An old neighbour, which looks at nothing before it writes, had the chance to do it.
    pub by_old: bool,
}

impl Book {
    pub fn new(company: Company, runid: &str, name: &str, path: PathBuf, key: String) -> Self {
        Self {
            company,
            runid: runid.to_owned(),
            name: name.to_owned(),
            path,
            key,
            old_busy: Mutex::default(),
            accounts: Mutex::default(),
        }
    }

    pub fn lock_key(&self) -> String {
        format!("nodb-lock:{}:{}", self.runid, self.name)
    }

    /// Before anybody writes.
    pub fn enroll(&self, writer: &str, hand: Hand) {
        self.accounts.lock().push(Account {
            name: writer.to_owned(),
            hand,
            tried: 0,
            acknowledged: 0,
            refused: BTreeSet::new(),
            failed: BTreeSet::new(),
            loose: BTreeSet::new(),
            idle: true,
            old_then: BTreeMap::new(),
        });
    }

    pub fn writers(&self) -> Vec<String> {
        let accounts = self.accounts.lock();
        accounts
            .iter()
            .map(|account| account.name.clone())
            .collect()
    }

    /// What each writer has had acknowledged.
    pub fn floor(&self) -> Floor {
        let accounts = self.accounts.lock();
        let floor = accounts.iter();
        floor
            .map(|account| (account.name.clone(), account.acknowledged))
            .collect()
    }

    /// Who tried how often, and up to which number it was acknowledged.
    pub fn summary(&self) -> String {
        let accounts = self.accounts.lock();
        let words = accounts.iter().map(|account| {
            let Account {
                name,
                tried,
                acknowledged,
                ..
            } = account;
            format!("{name} {acknowledged} of {tried}")
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The number of the next attempt.
    pub fn begin(&self, writer: &str) -> u64 {
        let mut accounts = self.accounts.lock();
        let old = accounts
            .iter()
            .filter(|account| account.hand == Hand::Old)
            .map(|account| (account.name.clone(), account.acknowledged))
            .collect();
        let account = find(&mut accounts, writer);
        account.tried += 1;
        account.idle = false;
        account.old_then.insert(account.tried, old);
        if account.old_then.len() > REMEMBERED {
            account.old_then.pop_first();
        }
        account.tried
    }

    /// `loose`: nobody answers for the cache entry, whatever the outcome.
    pub fn end(&self, writer: &str, number: u64, outcome: Outcome, loose: bool) {
        self.with(writer, |account| {
            account.idle = true;
            if loose {
                account.loose.insert(number);
            }
            match outcome {
                Outcome::Acknowledged => {
                    account.acknowledged = number;
                    account.refused.clear();
                }
                Outcome::Refused => {
                    account.refused.insert(number);
                    account.failed.insert(number);
                }
                Outcome::Unknown => drop(account.failed.insert(number)),
            }
        });
    }

    /// What is wrong with a document that was read after `floor` was taken.
    pub fn judge(&self, floor: &Floor, marks: &Marks) -> Vec<Fault> {
        let accounts = self.accounts.lock();
        let mut faults = Vec::new();
        for account in accounts.iter() {
            let least = floor.get(&account.name).copied().unwrap_or(0);
            let seen = marks.numbers.get(&account.name).copied().unwrap_or(0);
            let words = if seen < least {
                format!("{least} was acknowledged before the read, {seen} was read")
            } else if seen > account.tried {
                format!("{seen} was read, and only {} tried", account.tried)
            } else if account.refused.contains(&seen) {
                format!("{seen} was read, and had been refused")
            } else {
                continue;
            };
            let old_then = account.old_then.get(&least);
            let advanced = |(name, then): (&String, &u64)| marks.numbers.get(name) > Some(then);
            faults.push(Fault {
                words: format!(
                    "{}: {words}; the document is by {:?}",
                    account.name, marks.by
                ),
                by_old: seen < least && old_then.is_some_and(|old| old.iter().any(advanced)),
                writer: account.name.clone(),
            });
        }
        faults
    }

    /// What is lost is reported once, and the account goes on from what is left. Whether that was news: others
    /// may have seen it at the same time.
    pub fn write_off(&self, writer: &str, marks: &Marks) -> bool {
        let left = marks.numbers.get(writer).copied().unwrap_or(0);
        self.with(writer, |account| {
            let lost = account.acknowledged > left;
            account.acknowledged = account.acknowledged.min(left);
            account.refused.remove(&left) || lost || left > account.tried
        })
    }

    /// `None`: the attempt is not over yet. Else whether it was one that its writer was told has succeeded.
    pub fn was_acknowledged(&self, (writer, number): &(String, u64)) -> Option<bool> {
        self.with(writer, |account| {
            let over = account.idle || account.tried > *number;
            over.then(|| !account.failed.contains(number))
        })
    }

    /// Whether nobody answers for the entry of the generation that is by this attempt.
    pub fn is_loose(&self, (writer, number): &(String, u64)) -> bool {
        self.with(writer, |account| account.loose.contains(number))
    }

    fn with<T>(&self, writer: &str, change: impl FnOnce(&mut Account) -> T) -> T {
        change(find(&mut self.accounts.lock(), writer))
    }
}

fn find<'a>(accounts: &'a mut [Account], writer: &str) -> &'a mut Account {
    let account = accounts.iter_mut().find(|account| account.name == writer);
    account.expect("every writer is enrolled")
}

impl Marks {
    /// `None`: not a whole document.
    pub fn of(text: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(text).ok()?;
        let state = state_of(&document).as_object()?;
        let numbers = state.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("_mark_")?.to_owned(), value.as_u64()?))
        });
        let by = state.get("_by").and_then(Value::as_str);
        Some(Self {
            numbers: numbers.collect(),
            by: by.and_then(|by| {
                let (writer, number) = by.split_once(':')?;
                Some((writer.to_owned(), number.parse().ok()?))
            }),
        })
    }
}

/// Where the state lies (PROTOCOL.md 1).
pub fn state_of(document: &Value) -> &Value {
    document.get("py/state").unwrap_or(document)
}

/// The same, to be changed.
pub fn state_of_mut(document: &mut Value) -> &mut Value {
    if document.get("py/state").is_some() {
        &mut document["py/state"]
    } else {
        document
    }
}
