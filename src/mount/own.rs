//! The daemon's own mount, told from whatever else lies at its mount point by now: another daemon's mount, the file
//! system below, a stranger's. Device numbers, mount points and mount ids are given to the next as soon as they are
//! free, so an end that goes by one of these hits the next. In doubt nothing is touched.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tracing::{debug, warn};

use super::{repair, table, unmount};

/// `STATX_MNT_ID_UNIQUE`: an id that no other mount ever gets. Linux 6.8.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A mount, as it shows from outside. None of this asks a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    dev: (u32, u32),
    /// The unique one, the one of the mount table from Linux 5.8 on, or none: then the device number decides.
    id: Option<u64>,
}

impl Seen {
    /// The mount that one sees at `at`.
    fn at(at: &Path) -> io::Result<Self> {
        let ask_nobody = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = statx(CWD, at, ask_nobody, UNIQUE | StatxFlags::MNT_ID)?;
        let has_id = stat.stx_mask & (UNIQUE | StatxFlags::MNT_ID).bits() != 0;
        Ok(Self {
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            id: has_id.then_some(stat.stx_mnt_id),
        })
    }
}

/// What tells the mount of this daemon from others, learnt when it was made.
#[derive(Debug)]
pub struct Own {
    /// Its mount point, symlinks resolved.
    at: PathBuf,
    dev: (u32, u32),
    /// `None`: something was mounted over it at once.
    seen: Option<Seen>,
    /// The daemon's end of the connection.
    connection: OwnedFd,
    /// Cuts the connection. Opened at once, so that it can never be another mount's that got the same number; `None`:
    /// an ordinary user in a container, perhaps, who may cut off nobody.
    switch: Option<OwnedFd>,
}

impl Own {
    /// The mount at `at` that has just been made for `connection`, by who has the turn to mount.
    ///
    /// # Errors
    /// It is gone already.
    pub fn find(at: &Path, connection: BorrowedFd<'_>) -> Result<Self> {
        let minor = minor(connection);
        let is_own = |mounted: &table::Mounted| {
            // nobody else could mount meanwhile, so the upmost of ours is it where the kernel does not say
            mounted.at == at
                && mounted.is_ours()
                && minor.is_none_or(|minor| mounted.dev == (0, minor))
        };
        let mounts = table::all().context("cannot read the mount table")?;
        let own = mounts.iter().rfind(|mounted| is_own(mounted));
        let dev = own.context("it is not in the mount table")?.dev;
        let own = Self {
            at: at.to_owned(),
            dev,
            seen: Seen::at(at).ok().filter(|seen| seen.dev == dev),
            connection: connection
                .try_clone_to_owned()
                .context("cannot open it again")?,
            switch: unmount::switch(dev)
                .inspect_err(|cause| debug!("no way to cut it off: {cause}"))
                .ok(),
        };
        // only now is it sure that all this was not of the next one to have the number
        own.lives().then_some(own).context("it is unmounted")
    }

    /// Its mount point, symlinks resolved.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Its device number. Another mount may get it as soon as this one is gone.
    pub fn dev(&self) -> (u32, u32) {
        self.dev
    }

    /// Cuts its connection: every request, waiting and to come, fails. Nothing happens to a mount that is gone.
    pub fn cut(&self) -> Result<()> {
        rustix::io::write(self.switch()?, b"1")?;
        Ok(())
    }

    /// What cuts its connection when something is written to it.
    pub fn switch(&self) -> Result<BorrowedFd<'_>> {
        let switch = self.switch.as_ref().context("no way to cut it off")?;
        Ok(switch.as_fd())
    }

    /// Whether it is what one sees at its mount point.
    pub fn is_on_top(&self) -> bool {
        self.seen.is_some() && Seen::at(&self.at).ok() == self.seen
    }

    /// Whether its last user is gone, or cut off, within `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let mut asked = [PollFd::new(&self.connection, PollFlags::empty())];
        let limit = Timespec::try_from(limit).ok();
        poll(&mut asked, limit.as_ref()) != Ok(0)
    }

    /// Whether the kernel has the connection still; as long as it has, nobody else gets the device number.
    pub fn lives(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Takes it out of the tree, in use or not. It ends with its last user.
    pub fn detach(&self) {
        // in this order: what lives now was no other one before
        if !(self.is_on_top() && self.lives()) {
            debug!("the mount is no longer at {}", self.at.display());
        } else if let Err(cause) = unmount::detach(&self.at) {
            warn!("{cause:#}");
        }
    }

    /// Takes it away if it is dead: a connection that was cut leaves the mount behind.
    pub fn clear(&self) -> Result<()> {
        if self.is_on_top() && repair::is_stale(&self.at) {
            unmount::detach(&self.at)?;
        }
        Ok(())
    }
}

/// The minor device number of the mount that `connection` leads to, where the kernel says so.
fn minor(connection: BorrowedFd<'_>) -> Option<u32> {
    let info = format!("/proc/self/fdinfo/{}", connection.as_raw_fd());
    let info = fs::read_to_string(info).ok()?;
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())
}
