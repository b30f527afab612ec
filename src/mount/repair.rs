//! Mounts whose daemon died: "Transport endpoint is not connected".

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::statfs;
use rustix::io::Errno;
use tracing::warn;

use super::{session, table, unmount};
use crate::hint::Hinted;

/// Whether `path` leads to a FUSE mount whose daemon is gone.
pub fn is_stale(path: &Path) -> bool {
    // the kernel may still remember attributes of a gone mount, but this it always asks for
    matches!(statfs(path), Err(Errno::NOTCONN))
}

/// Takes stale mounts of ours away from `at` until something that lives comes to light.
///
/// # Errors
/// The stale mount is somebody else's, or may not be unmounted.
pub fn clear(at: &Path) -> Result<()> {
    while is_stale(at) {
        let _turn = session::turn();
        // somebody else may have replaced it
        if !is_stale(at) {
            break;
        }
        let at = table::canonical(at)?;
        match table::top(&at).context("cannot read the mount table")? {
            Some(mounted) if mounted.is_ours() => {
                warn!(
                    "{} is a stale mount of {}, whose daemon died: replacing it",
                    at.display(),
                    mounted.source
                );
                unmount::detach(&at)?;
            }
            _ => {
                let what = format!(
                    "{} belongs to a mount that no longer answers, and is not nodbfs's",
                    at.display()
                );
                return Err(Hinted::failure(
                    what,
                    format!("unmount it: umount -l {}", at.display()),
                )
                .into());
            }
        }
    }
    Ok(())
}
