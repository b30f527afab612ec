//! Refused documents, kept where an operator can recover them (promise 3). They lie outside the
//! source, which shows nothing that is not on its disk (promise 10).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::step::{self, Step};

/// How many refused documents are kept, the latest.
const COUNT: usize = 64;

/// How many bytes of them are kept.
const BYTES: u64 = 256 << 20;

/// The directory of refused documents.
#[derive(Debug)]
pub struct Rejected {
    dir: PathBuf,
    last: AtomicU64,
}

impl Rejected {
    /// Below `state_dir`; made when it is needed.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("rejected"),
            last: AtomicU64::new(0),
        }
    }

    /// Keeps `content`, which was meant for the file `name`, and says where.
    pub fn keep(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        step::at(Step::KeepRejected)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let path = self
            .dir
            .join(format!("{time}-{}-{number}-{name}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(content)?;
        file.sync_all()?;
        self.bound()?;
        Ok(path)
    }

    /// Removes the oldest beyond the bounds; the latest always stays.
    fn bound(&self) -> io::Result<()> {
        let mut kept: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        // the names begin with the time
        kept.sort();
        let mut bytes = 0;
        for (age, path) in kept.iter().rev().enumerate() {
            bytes += fs::metadata(path).map_or(0, |meta| meta.len());
            if age > 0 && (age >= COUNT || bytes > BYTES) {
                match fs::remove_file(path) {
                    // another refusal has just removed it
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let rejected = Rejected::new(dir.path());
        for number in 0..COUNT + 5 {
            rejected
                .keep("wepp.nodb", number.to_string().as_bytes())
                .unwrap();
        }
        let last = rejected.keep("wepp.nodb", b"{").unwrap();
        assert_eq!(fs::read(last).unwrap(), b"{");
        assert_eq!(
            fs::read_dir(dir.path().join("rejected")).unwrap().count(),
            COUNT
        );
    }
}
