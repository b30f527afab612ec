//! `status`: how a mount is.

use serde::{Deserialize, Serialize};

use super::{Context, Failure};

/// How a mount is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub source: String,
    pub mountpoint: Option<String>,
    /// Seconds.
    pub uptime: u64,
    pub store: StoreStatus,
}

/// How the store is.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `embedded`, or the URL without its password.
    pub name: String,
}

/// How things are now. Asks nothing that can be stuck.
pub fn of(context: &Context) -> Result<Status, Failure> {
    let fs = context.fs()?;
    let store = StoreStatus {
        name: fs.nodb().store().describe(),
    };
    let shown = |path: &std::path::Path| path.to_string_lossy().into_owned();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        source: shown(&context.source),
        mountpoint: context.mountpoint.as_deref().map(shown),
        uptime: context.started.elapsed().unwrap_or_default().as_secs(),
        store,
    })
}
