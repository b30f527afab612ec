//! What the cache could not be told: keys whose entries must go. Written to disk before the writer
//! is answered, so that neither a crash nor a long outage leaves an old document behind (promise 9).
//! To delete is right at any later time, whatever was committed since.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info};
use uuid::Uuid;

use crate::counters::{self, Counted};
use crate::nodb::seal::digest;
use crate::step::{self, Step};
use crate::store::Store;

/// The debts to one store.
#[derive(Debug)]
pub struct Debts {
    dir: PathBuf,
    store: Arc<dyn Store>,
    /// Keys that could not even be written down.
    unwritten: Mutex<Vec<String>>,
}

/// One debt, as it lies on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Debt {
    keys: Vec<String>,
}

impl Debts {
    /// Debts to `store` lie below `state_dir`, apart from those to other stores.
    pub fn new(state_dir: &Path, store: Arc<dyn Store>) -> Self {
        let dir = state_dir
            .join("debts")
            .join(digest(store.describe().as_bytes()).to_string());
        Self {
            dir,
            store,
            unwritten: Mutex::default(),
        }
    }

    /// The entries of `keys` must go as soon as the store is back.
    pub fn owe(&self, keys: Vec<String>) {
        counters::count(Counted::DebtMade);
        if let Err(error) = self.write(&keys) {
            error!(?keys, %error, "a debt to the cache could not be written down; kept in memory");
            self.unwritten.lock().extend(keys);
            // nothing else remembers it, and the store may be back already
            self.pay_unwritten();
        }
    }

    /// How many debts there are.
    pub fn count(&self) -> usize {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let written = entries.filter(|entry| entry.path().extension() == Some("json".as_ref()));
        written.count() + self.unwritten.lock().len()
    }

    fn pay_unwritten(&self) {
        let unwritten = std::mem::take(&mut *self.unwritten.lock());
        if !unwritten.is_empty() && self.store.delete(&unwritten).is_err() {
            self.unwritten.lock().extend(unwritten);
        }
    }

    fn write(&self, keys: &[String]) -> io::Result<()> {
        step::at(Step::Owe)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        // a later daemon may have the same pid, and must not write over what this one owes
        let path = self.dir.join(format!("{}.json", Uuid::new_v4().simple()));
        let draft = path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec(&Debt {
            keys: keys.to_vec(),
        })?)?;
        file.sync_all()?;
        step::at(Step::OweRename)?;
        fs::rename(&draft, &path)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Pays what can be paid; also what an earlier daemon left.
    pub fn pay(&self) {
        self.pay_unwritten();
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match self.pay_one(&path) {
                Ok(keys) => {
                    counters::count(Counted::DebtPaid);
                    info!(?keys, "the cache was told at last");
                }
                Err(error) => {
                    debug!(%error, "the cache still cannot be told");
                    return;
                }
            }
        }
    }

    fn pay_one(&self, path: &Path) -> io::Result<Vec<String>> {
        let keys = match serde_json::from_slice::<Debt>(&fs::read(path)?) {
            Ok(debt) => debt.keys,
            Err(error) => {
                error!(path = %path.display(), %error, "not a debt; removed");
                Vec::new()
            }
        };
        if !keys.is_empty() {
            step::at(Step::Pay)?;
            self.store.delete(&keys).map_err(io::Error::other)?;
        }
        step::at(Step::StrikeOut)?;
        fs::remove_file(path)?;
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cache;
    use crate::store::embedded::Embedded;

    #[test]
    fn the_next_daemon_with_the_same_pid_pays_for_both() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::new(1 << 20));
        let keys = ["/run/a.nodb".to_owned(), "/run/b.nodb".to_owned()];
        for key in &keys {
            store.put(key, b"{}", b"seal").unwrap();
        }
        let one = Debts::new(dir.path(), store.clone());
        one.owe(vec![keys[0].clone()]);
        let next = Debts::new(dir.path(), store.clone());
        next.owe(vec![keys[1].clone()]);
        next.pay();
        for key in &keys {
            assert_eq!(store.get(key).unwrap().entry, None, "{key}");
        }
    }
}
