//! `nodbfs umount`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::mount::{presence, repair, table, unmount};

/// Unmount MOUNTPOINT and wait until its daemon has finished
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where a run or a tree of runs is mounted
    pub mountpoint: PathBuf,
    /// Detach it now even if it is in use, and do not wait; the daemon ends with the last user
    #[arg(long)]
    pub lazy: bool,
}

/// Unmounts; an error says what stands in the way.
pub fn run(args: &UmountArgs) -> Result<()> {
    let at = table::canonical(&args.mountpoint)?;
    let mounted = unmount::find(&at)?;
    // the daemon is gone, so nothing is lost and nobody is there to wait for
    if repair::is_stale(&at) || args.lazy {
        return unmount::detach(&at);
    }
    let watch = presence::Watch::start(mounted.dev);
    unmount::unmount(&at)?;
    watch.wait()
}
