//! How the controllers of a mount are, from memory: neither source nor store is asked, which may hang.

use serde::{Deserialize, Serialize};

use crate::fs::walk::remembered_path;
use crate::nodb::Nodb;

/// How the controllers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// What the cache could not be told yet.
    pub debts: usize,
    /// Files open for writing.
    pub writers: Vec<Writing>,
    /// Locks that nodbfs holds for writers and for sessions.
    pub locks: Vec<Locked>,
    /// Nodes the kernel knows.
    pub inodes: usize,
    /// Controllers that are known.
    pub controllers: usize,
    pub payloads: Payloads,
}

/// A controller that is open for writing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Writing {
    /// Below the source.
    pub path: String,
    /// 0: it cannot be seen.
    pub pid: u32,
}

/// A lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Locked {
    pub lock: String,
    /// For whom it is held; 0: it cannot be seen.
    pub pid: u32,
    /// Seconds.
    pub age: u64,
}

/// Documents in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payloads {
    pub count: usize,
    pub bytes: usize,
    pub limit: usize,
}

impl Nodb {
    pub fn facts(&self) -> Facts {
        let known = self.controllers.known();
        let writers = known.iter().flat_map(|controller| {
            let place = &controller.place;
            let path = remembered_path(&place.dir);
            let path = path.join(&place.name).to_string_lossy().into_owned();
            let pids = controller.writers().into_iter();
            pids.map(move |pid| Writing {
                path: path.clone(),
                pid,
            })
        });
        let locks = known.iter().flat_map(|controller| controller.held());
        let locks = locks.map(|(name, pid, age)| Locked {
            lock: name.key(),
            pid,
            age: age.as_secs(),
        });
        let sessions = self.locker.sessions.all().into_iter().map(|lock| Locked {
            lock: lock.name().key(),
            pid: lock.process,
            age: lock.since.elapsed().as_secs(),
        });
        let (count, bytes) = self.payloads.usage();
        Facts {
            debts: self.debts.count(),
            writers: writers.collect(),
            locks: locks.chain(sessions).collect(),
            inodes: self.plain.inodes.known(),
            controllers: known.len(),
            payloads: Payloads {
                count,
                bytes,
                limit: self.settings.cache_size,
            },
        }
    }
}
