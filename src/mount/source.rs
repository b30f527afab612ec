//! The source directory, opened before anything is mounted over it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, major, minor, open, openat};
use rustix::io::Errno;
use tracing::warn;

use super::table;
use crate::hint::Hinted;

/// The source, by path for words and by descriptor for work.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// `O_PATH | O_DIRECTORY`; stays on the lower directory when the mount point is the source itself.
    dir: OwnedFd,
}

/// How long a daemon without a mount may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// The right of an embedded store to be the only one on its source, held until it is dropped.
#[derive(Debug)]
pub struct ClaimedSource {
    _locked: OwnedFd,
}

impl Source {
    /// Opens the directory `path` (absolute).
    ///
    /// # Errors
    /// There is none, it may not be entered, or it lies in a nodbfs mount: every commit would be
    /// made twice.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("cannot open the source {}", path.display());
        let dir = open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| {
            let hint = match errno {
                Errno::NOENT => "there is no such directory; check the path",
                Errno::NOTDIR => "it is not a directory; name a run directory or a tree of runs",
                Errno::ACCESS => "the user who runs nodbfs must be let into it",
                _ => "check that the file system it lies on is mounted and answers",
            };
            anyhow::Error::new(io::Error::from(errno)).context(Hinted::failure(what(), hint))
        })?;
        let stat = rustix::fs::fstat(&dir).with_context(what)?;
        let dev = (major(stat.st_dev), minor(stat.st_dev));
        let mounts = table::all().context("cannot read the mount table")?;
        if let Some(mount) = mounts
            .iter()
            .find(|mount| mount.is_ours() && mount.dev == dev)
        {
            let what = format!(
                "the source {} lies in the nodbfs mount at {}",
                path.display(),
                mount.at.display()
            );
            return Err(Hinted::failure(
                what,
                format!("mount what lies below it: {}", mount.source),
            )
            .into());
        }
        Ok(Self {
            path: path.to_owned(),
            dir,
        })
    }

    /// The path it was opened by, absolute. When the mount covers it, it leads to the mount.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second descriptor of the same directory, `O_PATH | O_DIRECTORY`.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.dir.try_clone()
    }

    /// Device and inode, which tell whether another path leads to it.
    pub(super) fn identity(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.dir).context("cannot look at the source")?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// For the embedded store, which sees only its own locks: refuses a second one on this source. A
    /// daemon whose mount is gone, as after umount(8), is given the time to end.
    ///
    /// # Errors
    /// Another daemon has claimed it, or the directory may not be read.
    pub fn claim(&self) -> Result<ClaimedSource> {
        let what = || {
            format!(
                "cannot claim {} for the embedded store",
                self.path.display()
            )
        };
        // flock needs more than an O_PATH descriptor
        let locked = openat(
            &self.dir,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(what)?;
        let started = Instant::now();
        let mut claimed = flock(&locked, FlockOperation::NonBlockingLockExclusive);
        while claimed == Err(Errno::WOULDBLOCK) && !self.is_mounted() && started.elapsed() < ENDING
        {
            sleep(Duration::from_millis(5));
            claimed = flock(&locked, FlockOperation::NonBlockingLockExclusive);
        }
        match claimed {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let what = format!(
                    "another nodbfs with an embedded store serves {}",
                    self.path.display()
                );
                let hint = "two embedded stores know nothing of each other's locks: unmount the other one \
                            ('findmnt -t fuse.nodbfs'), or give both the same --redis URL";
                return Err(Hinted::failure(what, hint).into());
            }
            // some network file systems lock no directories; then there is nobody to ask
            Err(cause) => warn!("{}: {cause}; a second one would go unnoticed", what()),
        }
        Ok(ClaimedSource { _locked: locked })
    }

    /// Whether the mount table has a mount of ours by the source's own name.
    fn is_mounted(&self) -> bool {
        let source = self.path.to_string_lossy();
        table::all().is_ok_and(|mounts| {
            mounts
                .iter()
                .any(|mount| mount.is_ours() && mount.source == source)
        })
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Refuses a mount point that cannot be one: missing, no directory, full, taken, or in the source.
pub(super) fn check_mountpoint(at: &Path, source: &Source, nonempty: bool) -> Result<()> {
    let shown = at.display();
    let metadata = fs::metadata(at).map_err(|cause| {
        let hint = match cause.kind() {
            io::ErrorKind::NotFound => format!("make it: mkdir -p {shown}"),
            _ => "the user who runs nodbfs must be let into it".to_owned(),
        };
        anyhow::Error::new(cause).context(Hinted::failure(
            format!("cannot use the mount point {shown}"),
            hint,
        ))
    })?;
    if !metadata.is_dir() {
        return Err(Hinted::failure(
            format!("the mount point {shown} is not a directory"),
            "name an empty directory",
        )
        .into());
    }
    let canonical = table::canonical(at)?;
    let identity = source.identity()?;
    let same = |directory: &Path| {
        let stat = rustix::fs::statat(CWD, directory, rustix::fs::AtFlags::empty());
        stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity)
    };
    if same(&canonical) {
        return Ok(());
    }
    if canonical.ancestors().skip(1).any(same) {
        let what = format!(
            "the mount point {shown} lies in the source, so the mount would contain itself"
        );
        return Err(Hinted::failure(what, "mount it elsewhere, or over the source itself").into());
    }
    let full = || fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some());
    if !nonempty && full() {
        let what =
            format!("the mount point {shown} is not empty, and what is in it would be hidden");
        return Err(Hinted::failure(what, "name an empty directory, or say -o nonempty").into());
    }
    Ok(())
}

/// Refuses a mount point where nodbfs is mounted already.
pub(super) fn check_not_mounted(at: &Path) -> Result<()> {
    let Ok(canonical) = table::canonical(at) else {
        return Ok(());
    };
    match table::top(&canonical).context("cannot read the mount table")? {
        Some(mounted) if mounted.is_ours() => {
            let what = format!(
                "nodbfs has already mounted {} at {}",
                mounted.source,
                at.display()
            );
            Err(Hinted::failure(
                what,
                format!("unmount it first: nodbfs umount {}", at.display()),
            )
            .into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_claimed_once_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let (first, second) = (
            Source::open(scratch.path()).unwrap(),
            Source::open(scratch.path()).unwrap(),
        );
        let claim = first.claim().unwrap();
        let refused = second.claim().unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("another nodbfs with an embedded store"),
            "{refused}"
        );
        drop(claim);
        second.claim().unwrap();
    }

    #[test]
    fn a_mount_point_is_empty_or_the_source_and_never_within_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (run, full, empty) = (
            scratch.path().join("run"),
            scratch.path().join("full"),
            scratch.path().join("empty"),
        );
        for directory in [&run, &full, &empty, &run.join("inner")] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(full.join("file"), "").unwrap();
        let source = Source::open(&run).unwrap();
        let check = |at: &Path, nonempty| check_mountpoint(at, &source, nonempty);
        check(&empty, false).unwrap();
        check(&run, false).unwrap();
        check(&full, true).unwrap();
        assert!(
            check(&full, false)
                .unwrap_err()
                .to_string()
                .contains("not empty")
        );
        assert!(
            check(&run.join("inner"), true)
                .unwrap_err()
                .to_string()
                .contains("lies in the source")
        );
        assert!(
            check(&full.join("file"), true)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
        assert!(
            check(&scratch.path().join("none"), true)
                .unwrap_err()
                .to_string()
                .contains("cannot use")
        );
    }

    #[test]
    fn a_source_that_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, hint) in [
            (scratch.path().join("none"), "no such directory"),
            (file, "not a directory"),
        ] {
            let error = Source::open(&path).unwrap_err();
            assert!(crate::hint::render(&error).contains(hint), "{error:#}");
        }
    }
}
