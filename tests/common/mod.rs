//! What the black-box suites share.

// each suite is a program of its own and uses a part of this
#![allow(dead_code)]

pub mod command;
pub mod mount;
pub mod program;
pub mod python;
pub mod redis;
pub mod run;
pub mod sample;
pub mod shell;
pub mod twins;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// A file of this crate's sources.
pub fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Says so at its end, also when that is a failed assertion: whoever goes on until then must not go on for ever.
pub struct OnDrop<'a>(pub &'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Every file below `dir` whose name ends in `suffix`, without following symlinks to directories. What is there may
/// go while it is looked at, `dir` too.
pub fn files_below(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return found,
        entries => entries.expect("a readable directory"),
    };
    for entry in entries {
        let entry = entry.expect("a readable entry");
        if entry.file_type().expect("a file type").is_dir() {
            found.extend(files_below(&entry.path(), suffix));
        } else if entry.file_name().to_string_lossy().ends_with(suffix) {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
