//! Directories that were renamed: the cache entries of the controllers below are filed under their
//! old paths and must go. A directory's rename is a plain operation and waits for none of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::debug;

use crate::fs::inode::{Inode, reopen_path};
use crate::fs::inodes::Inodes;
use crate::node::is_controller;

/// Renamed directories that nobody has looked through yet.
#[derive(Debug, Default)]
pub struct Moved {
    waiting: Mutex<Vec<(Arc<Inode>, PathBuf)>>,
}

impl Moved {
    /// `dir` was known to NoDb processes as `old`.
    pub fn note(&self, dir: Arc<Inode>, old: PathBuf) {
        self.waiting.lock().push((dir, old));
    }

    /// The cache keys that have become void since the last time.
    pub fn void_keys(&self, inodes: &Inodes) -> Vec<String> {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let mut keys = Vec::new();
        for (dir, old) in waiting {
            match inodes.fd(&dir) {
                Ok(fd) => collect(Path::new(&reopen_path(&*fd)), &old, &mut keys),
                Err(error) => debug!(%error, old = %old.display(), "a renamed directory is gone"),
            }
        }
        keys
    }
}

/// The keys of the controllers below `dir`, as if it were at `old`.
fn collect(dir: &Path, old: &Path, keys: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), &old.join(&name), keys),
            // a child run's symlink to its parent's controller has an entry of its own
            Ok(_) if is_controller(&name) => {
                keys.push(old.join(&name).to_string_lossy().into_owned());
            }
            _ => {}
        }
    }
}
