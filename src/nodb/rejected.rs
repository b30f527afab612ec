//! Refused documents, kept where an operator can recover them (promise 3). They lie outside the
//! source, which shows nothing that is not on its disk (promise 10).
//!
//! Each is a directory of its own, named by time and id, which holds the `document` as it was
//! written and the `facts` about it. It appears whole, and goes whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::Error;
use crate::fs::credentials::Caller;
use crate::step::{self, Step};

const DOCUMENT: &str = "document";
const FACTS: &str = "facts";

/// A directory that was begun so long ago is a crashed daemon's.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// How much is kept, the latest.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub count: usize,
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            count: 64,
            bytes: 256 << 20,
        }
    }
}

/// Why a document was refused, and whose it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
    /// What the writer was told; nothing if there was nobody to tell.
    pub errno: Option<i32>,
    /// As the daemon sees it, if it can.
    pub pid: Option<u32>,
    pub uid: Option<u32>,
}

impl Refusal {
    /// What the process `pid` wrote for `caller` was refused with `error`.
    pub fn of(error: &Error, pid: u32, caller: Caller) -> Self {
        Self {
            errno: Some(error.errno().raw_os_error()),
            uid: Some(caller.uid),
            ..Self::never_tried(&error.to_string(), pid)
        }
    }

    /// What the process `pid`, which is 0 if it cannot be seen, wrote was never to be committed; in words, why.
    pub fn never_tried(reason: &str, pid: u32) -> Self {
        Self {
            reason: reason.to_owned(),
            errno: None,
            pid: Some(pid).filter(|&pid| pid != 0),
            uid: None,
        }
    }
}

/// What is known of a refused document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub time: String,
    /// The mounted directory.
    pub source: String,
    /// The controller it was meant for, below the source.
    pub path: String,
    /// The controller as NoDb processes know it, unless its directory was gone.
    pub key: Option<String>,
    #[serde(flatten)]
    pub refusal: Refusal,
    pub size: u64,
    pub sha256: String,
}

/// A refused document that is kept.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub id: String,
    /// The file with its bytes.
    pub document: PathBuf,
    #[serde(flatten)]
    pub facts: Facts,
}

/// The directory of refused documents.
#[derive(Debug)]
pub struct Rejected {
    dir: PathBuf,
    bounds: Bounds,
}

impl Rejected {
    /// Below `state_dir`; made when it is needed.
    pub fn new(state_dir: &Path, bounds: Bounds) -> Self {
        let dir = state_dir.join("rejected");
        Self { dir, bounds }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps `content`, which was meant for the controller `path` below `source`.
    pub fn keep(
        &self,
        source: &Path,
        path: &Path,
        key: Option<String>,
        refusal: Refusal,
        content: &[u8],
    ) -> io::Result<Kept> {
        step::at(Step::KeepRejected)?;
        let facts = Facts {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            source: source.to_string_lossy().into_owned(),
            path: path.to_string_lossy().into_owned(),
            key,
            refusal,
            size: content.len() as u64,
            sha256: hex(&Sha256::digest(content)),
        };
        let id = Uuid::new_v4().simple().to_string()[..8].to_owned();
        let name = format!("{}-{id}", facts.time);
        let draft = self.dir.join(format!(".{name}"));
        let whole = self.dir.join(name);
        let done = self
            .write(&draft, content, &facts)
            .and_then(|()| fs::rename(&draft, &whole));
        if let Err(error) = done {
            // half of it is of no use, and the disk may be full
            let _ = fs::remove_dir_all(&draft);
            return Err(error);
        }
        File::open(&self.dir)?.sync_all()?;
        self.bound()?;
        let document = whole.join(DOCUMENT);
        Ok(Kept {
            id,
            document,
            facts,
        })
    }

    fn write(&self, draft: &Path, content: &[u8], facts: &Facts) -> io::Result<()> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700).create(draft)?;
        let facts = serde_json::to_vec(facts)?;
        for (name, bytes) in [(DOCUMENT, content), (FACTS, &facts)] {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(draft.join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        File::open(draft)?.sync_all()
    }

    /// All that are kept, the latest first. One that cannot be read is an error of its own.
    pub fn list(&self) -> io::Result<Vec<io::Result<Kept>>> {
        let mut kept = Vec::new();
        for name in self.names()?.into_iter().filter(|name| !is_draft(name)) {
            match Kept::read(&self.dir.join(&name), &name) {
                // it has just gone
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                read => kept.push(read),
            }
        }
        Ok(kept)
    }

    /// The names of what is there, the latest first: they begin with the time.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_by(|one, other| other.cmp(one));
        Ok(names)
    }

    /// Removes the oldest beyond the bounds, and what crashed daemons began; the latest always stays.
    fn bound(&self) -> io::Result<()> {
        let (drafts, whole): (Vec<_>, Vec<_>) =
            self.names()?.into_iter().partition(|name| is_draft(name));
        let mut bytes = 0;
        for (age, name) in whole.iter().enumerate() {
            let dir = self.dir.join(name);
            bytes += fs::metadata(dir.join(DOCUMENT)).map_or(0, |meta| meta.len());
            if age > 0 && (age >= self.bounds.count || bytes > self.bounds.bytes) {
                remove(&dir)?;
            }
        }
        for name in drafts {
            let dir = self.dir.join(name);
            let begun = fs::metadata(&dir).and_then(|meta| meta.modified());
            let age = begun.ok().and_then(|begun| begun.elapsed().ok());
            if age > Some(ABANDONED) {
                remove(&dir)?;
            }
        }
        Ok(())
    }
}

impl Kept {
    fn read(dir: &Path, name: &str) -> io::Result<Self> {
        let of = |error: io::Error| {
            let path = dir.join(FACTS);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let facts = fs::read(dir.join(FACTS)).map_err(of)?;
        Ok(Self {
            id: name.rsplit('-').next().unwrap_or_default().to_owned(),
            document: dir.join(DOCUMENT),
            facts: serde_json::from_slice(&facts).map_err(|error| of(error.into()))?,
        })
    }

    /// Removes the document and its facts.
    pub fn remove(&self) -> io::Result<()> {
        self.document.parent().map_or(Ok(()), remove)
    }
}

/// Removes the directory of a refused document, which somebody else may be doing too.
fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn is_draft(name: &str) -> bool {
    name.starts_with('.')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(rejected: &Rejected, content: &[u8]) -> Kept {
        let refusal = Refusal {
            reason: "not a JSON document".into(),
            errno: Some(74),
            pid: Some(17),
            uid: Some(0),
        };
        let (source, path) = (Path::new("/runs"), Path::new("a/wepp.nodb"));
        rejected.keep(source, path, None, refusal, content).unwrap()
    }

    fn contents(rejected: &Rejected) -> Vec<Vec<u8>> {
        let kept = rejected.list().unwrap().into_iter();
        kept.map(|kept| fs::read(kept.unwrap().document).unwrap())
            .collect()
    }

    fn bounded(count: usize, bytes: u64) -> (tempfile::TempDir, Rejected) {
        let dir = tempfile::tempdir().unwrap();
        let rejected = Rejected::new(dir.path(), Bounds { count, bytes });
        (dir, rejected)
    }

    #[test]
    fn what_was_kept_is_listed_with_its_facts() {
        let (_dir, rejected) = bounded(10, 100);
        assert!(rejected.list().unwrap().is_empty());
        let kept = keep(&rejected, b"{\0\xff");
        let listed = rejected.list().unwrap().remove(0).unwrap();
        assert_eq!(
            (&listed.id, &listed.document, &listed.facts),
            (&kept.id, &kept.document, &kept.facts)
        );
        assert_eq!(fs::read(&listed.document).unwrap(), b"{\0\xff");
        // printf '{\0\377' | sha256sum
        assert_eq!(
            listed.facts.sha256,
            "77f05841e03ff0b041d62615c48961fa14c90cf2b0492dd6a206339bddad1cfd"
        );
        assert_eq!(listed.facts.size, 3);
        listed.remove().unwrap();
        listed.remove().unwrap();
        assert!(rejected.list().unwrap().is_empty());
    }

    #[test]
    fn the_latest_are_kept_within_a_number() {
        let (dir, rejected) = bounded(3, 100);
        for number in 0..5 {
            keep(&rejected, number.to_string().as_bytes());
            // the order is that of the names, which know milliseconds
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(contents(&rejected), [b"4", b"3", b"2"]);
        assert_eq!(
            fs::read_dir(dir.path().join("rejected")).unwrap().count(),
            3
        );
    }

    #[test]
    fn the_latest_are_kept_within_a_size_and_the_very_last_whatever_its_size() {
        let (_dir, rejected) = bounded(10, 5);
        for content in ["1", "22", "33"] {
            keep(&rejected, content.as_bytes());
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(contents(&rejected), [&b"33"[..], b"22", b"1"]);
        keep(&rejected, b"4444");
        assert_eq!(contents(&rejected), [b"4444"]);
        std::thread::sleep(Duration::from_millis(2));
        keep(&rejected, b"666666");
        assert_eq!(contents(&rejected), [b"666666"]);
    }

    #[test]
    fn what_a_crashed_daemon_began_is_not_shown_and_goes() {
        let (dir, rejected) = bounded(10, 100);
        let drafts = [("old", ABANDONED * 2), ("new", Duration::ZERO)].map(|(name, age)| {
            let draft = dir.path().join(format!("rejected/.{name}"));
            fs::create_dir_all(&draft).unwrap();
            fs::write(draft.join(DOCUMENT), "half").unwrap();
            let begun = SystemTime::now() - age;
            File::open(&draft).unwrap().set_modified(begun).unwrap();
            draft
        });
        assert!(rejected.list().unwrap().is_empty());
        keep(&rejected, b"{");
        assert_eq!(contents(&rejected), [b"{"]);
        assert_eq!(drafts.map(|draft| draft.exists()), [false, true]);
    }
}
