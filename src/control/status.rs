//! `status`: how a mount is. The source is not asked, which may hang; the store is, within its own
//! time limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::{Context, Failure};
use crate::counters::{self, Line};
use crate::nodb::facts::Facts;

/// How a mount is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub source: String,
    pub mountpoint: Option<String>,
    pub read_only: bool,
    /// Seconds.
    pub uptime: u64,
    pub store: StoreStatus,
    pub controllers: Facts,
    pub process: Process,
    /// How often what happened to controllers.
    pub events: BTreeMap<String, u64>,
    /// What the kernel asked for.
    pub operations: Vec<Line>,
    /// What the store was asked.
    pub store_calls: Vec<Line>,
}

/// How the store is.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `embedded`, or the URL without its password.
    pub name: String,
    /// Why it cannot be used now.
    pub error: Option<String>,
    /// After a failed connection: for how many milliseconds no other is tried.
    pub resting: Option<u64>,
}

/// What the daemon takes of the machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    /// Resident, in bytes.
    pub memory: u64,
    pub threads: u64,
    pub descriptors: usize,
    pub descriptor_limit: Option<u64>,
}

/// How things are now.
pub fn of(context: &Context) -> Result<Status, Failure> {
    let fs = context.fs()?;
    let store = fs.nodb().store();
    let error = store.ping().err().map(|error| error.to_string());
    let resting = store.resting().map(|left| left.as_millis() as u64);
    let uptime = context.started.elapsed();
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        source: shown(&context.source),
        mountpoint: context.mountpoint.as_deref().map(shown),
        read_only: context.is_read_only(),
        uptime: uptime.as_secs(),
        store: StoreStatus {
            name: store.describe(),
            error,
            resting,
        },
        controllers: fs.nodb().facts(),
        process: process(),
        events: counters::events(),
        operations: counters::operations(),
        store_calls: counters::calls(uptime),
    })
}

fn process() -> Process {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Process {
        memory: field("VmRSS:").unwrap_or(0) * 1024,
        threads: field("Threads:").unwrap_or(0),
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        descriptor_limit: getrlimit(Resource::Nofile).current,
    }
}
