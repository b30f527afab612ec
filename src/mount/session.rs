//! The kernel's side of a mount: /dev/fuse, the options, and whether it answers.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fuser::{MountOption, Session, SessionACL};
use rustix::fs::{FlockOperation, StatVfsMountFlags, flock};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::own::Own;
use super::{repair, source, table, unmount};
use crate::config::Config;
use crate::hint::Hinted;

/// Measured: two or more on descriptors of their own serve parallel clients best, and beyond that
/// the kernel's contention is the limit. Four let plain files go on while two threads are stuck.
pub const THREADS: usize = 4;
const DEVICE: &str = "/dev/fuse";
/// How long others may take to mount. It takes them milliseconds, unless their mount points hang.
const TURN: Duration = Duration::from_secs(5);

/// Refuses early, and in words, what would fail late: no device, no permission, no helper.
pub fn check_device() -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map_err(|cause| {
        let hint = match cause.kind() {
            io::ErrorKind::PermissionDenied => "run nodbfs as root, or let all users open it: chmod 666 /dev/fuse",
            _ => "load the kernel module: modprobe fuse; a container needs --device /dev/fuse --cap-add SYS_ADMIN",
        };
        anyhow::Error::new(cause).context(Hinted::failure(format!("cannot open {DEVICE}"), hint))
    })?;
    if !rustix::process::geteuid().is_root() && !unmount::has_helper() {
        return Err(unmount::no_helper());
    }
    Ok(())
}

/// Mounts and shakes hands with the kernel; nothing is answered before the session is served. Says what tells the
/// mount from others, unless it is gone already.
///
/// # Errors
/// It could not be mounted; somebody else was quicker.
pub fn mount<F: fuser::Filesystem>(
    config: &Config,
    below: StatVfsMountFlags,
    filesystem: F,
) -> Result<(Session<F>, Result<Own>)> {
    let at = table::canonical(&config.mountpoint)?;
    let turn = turn();
    source::check_not_mounted(&at)?;
    let session = Session::new(filesystem, &at, &options(config, below));
    let mounted = session.map(|session| {
        let own = Own::find(&at, session.as_fd());
        (session, own)
    });
    drop(turn);
    mounted.map_err(|cause| {
        // a failed handshake may leave the mount behind
        if let Err(left) = repair::clear(&at) {
            warn!("{left:#}");
        }
        explain(cause, &config.mountpoint)
    })
}

/// The turn to mount, and to take a dead mount away: nobody else does either meanwhile, so of two at the same place
/// the second one sees the first. All of a host take turns, for a lock of the mount point itself could be a script's
/// around the command. `None`: whoever has it keeps it, as anybody can.
pub fn turn() -> Option<File> {
    let started = Instant::now();
    let taken = File::open(DEVICE).and_then(|device| {
        loop {
            match flock(&device, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if started.elapsed() < TURN => {
                    sleep(Duration::from_millis(1));
                }
                locked => return locked.map(|()| device).map_err(io::Error::from),
            }
        }
    });
    taken
        .inspect_err(|cause| debug!("no turn to mount: {cause}"))
        .ok()
}

/// The threads that serve a session.
pub struct Serving(JoinHandle<io::Result<()>>);

/// Starts serving, and takes unmounting out of fuser's hands: when a session has ended, fuser 0.18
/// takes the gone connection for a live one (`is_mounted` reads POLLERR the wrong way round) and
/// unmounts whatever is at the mount point then, be it the source's own file system below.
pub fn serve<F: fuser::Filesystem>(session: Session<F>) -> Result<Serving> {
    let mut background = session.spawn().context("cannot start a thread")?;
    let nothing = thread::Builder::new()
        .spawn(|| Ok(()))
        .context("cannot start a thread")?;
    let threads = mem::replace(&mut background.guard, nothing);
    // its drop is what unmounts; what leaks is a descriptor that the process keeps to its end anyway
    mem::forget(background);
    Ok(Serving(threads))
}

impl Serving {
    /// Waits until all requests are served and the file system is drained.
    pub fn join(self) -> io::Result<()> {
        let session = self.0.join();
        match session.unwrap_or_else(|_| Err(io::Error::other("the session panicked"))) {
            // a thread was about to be given a request when the connection ended
            Err(cause) if cause.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            session => session,
        }
    }
}

/// What the source's own mount forbids, as its flags `below` say, this one does not allow.
fn options(config: &Config, below: StatVfsMountFlags) -> fuser::Config {
    let flags = config.flags;
    let forbids = |flag| below.contains(flag);
    let optional = [
        (config.read_only, MountOption::RO),
        (
            flags.dev && !forbids(StatVfsMountFlags::NODEV),
            MountOption::Dev,
        ),
        (
            flags.suid && !forbids(StatVfsMountFlags::NOSUID),
            MountOption::Suid,
        ),
        (
            flags.noexec || forbids(StatVfsMountFlags::NOEXEC),
            MountOption::NoExec,
        ),
        (flags.noatime, MountOption::NoAtime),
        (flags.sync, MountOption::Sync),
        (flags.dirsync, MountOption::DirSync),
    ];
    let mut options = fuser::Config::default();
    options.mount_options = vec![
        // fuser joins the options with commas for fusermount3 and escapes nothing, so a comma
        // would smuggle in options of its own
        MountOption::FSName(config.fsname.replace([',', '\\'], "_")),
        // fuser's own `Subtype` does not reach the kernel when root mounts
        MountOption::CUSTOM("subtype=nodbfs".into()),
        MountOption::DefaultPermissions,
    ];
    options.mount_options.extend(
        optional
            .into_iter()
            .filter_map(|(on, option)| on.then_some(option)),
    );
    options.acl = if config.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    options.n_threads = Some(THREADS);
    options.clone_fd = true;
    options
}

/// fuser hands on what fusermount3 printed, or the errno of mount(2) in words.
fn explain(cause: io::Error, at: &Path) -> anyhow::Error {
    let said = cause.to_string();
    let hint = if said.contains("user_allow_other") {
        "let users say --allow-other: put the line 'user_allow_other' into /etc/fuse.conf"
    } else if said.contains("write access to mountpoint")
        || said.contains("not owner of mountpoint")
    {
        "an ordinary user mounts only on a directory of their own: make one, or run nodbfs as root"
    } else if said.contains("EPERM") || said.contains("ermission") || said.contains("permitted") {
        "mounting is not permitted here; a container needs --cap-add SYS_ADMIN --device /dev/fuse"
    } else {
        "see the kernel's log (dmesg), or run with --foreground --log-level trace"
    };
    let what = Hinted::failure(format!("cannot mount at {}", at.display()), hint);
    anyhow::Error::msg(said.trim().trim_end_matches('\0').to_owned()).context(what)
}

/// Asks the mounted file system something that only the daemon can answer.
pub fn probe(own: &Own) -> Result<()> {
    let at = own.at();
    let what = || format!("the mount at {} does not answer", at.display());
    fs::metadata(at).with_context(what)?;
    rustix::fs::statfs(at)
        .map_err(io::Error::from)
        .with_context(what)?;
    if !own.is_on_top() {
        bail!("something else is mounted at {} by now", at.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::render;

    #[test]
    fn words_of_fusermount_and_the_kernel_get_their_hint() {
        for (said, hint) in [
            (
                "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
                "put the line",
            ),
            (
                "fusermount3: user has no write access to mountpoint /x\n",
                "a directory of their own",
            ),
            (
                "fusermount3: mount failed: Operation not permitted\n",
                "--cap-add SYS_ADMIN",
            ),
        ] {
            let text = render(&explain(io::Error::other(said), Path::new("/mnt")));
            assert!(text.contains(said.trim()) && text.contains(hint), "{text}");
        }
    }
}
