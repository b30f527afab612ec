//! Unmounting: as root through the kernel, as an ordinary user through the set-user-id helper.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
};

use super::table::{self, Mounted};
use crate::hint::Hinted;

/// The names under which distributions ship libfuse's helper.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Our mount at `at` (symlinks resolved).
///
/// # Errors
/// Nothing is mounted there, or something else.
pub fn find(at: &Path) -> Result<Mounted> {
    match table::top(at).context("cannot read the mount table")? {
        Some(mounted) if mounted.is_ours() => Ok(mounted),
        Some(mounted) => {
            let what = format!(
                "{} is no nodbfs mount: {} ({}) is mounted there",
                at.display(),
                mounted.source,
                mounted.kind
            );
            Err(Hinted::failure(
                what,
                format!("to unmount it all the same: umount {}", at.display()),
            )
            .into())
        }
        None => {
            let what = format!("nothing is mounted at {}", at.display());
            Err(Hinted::failure(
                what,
                "'findmnt -t fuse.nodbfs' lists what nodbfs has mounted",
            )
            .into())
        }
    }
}

/// Unmounts what is mounted at `at`, unless it is in use.
pub fn unmount(at: &Path) -> Result<()> {
    if try_unmount(at, UnmountFlags::empty())? {
        return Ok(());
    }
    let what = format!("{} is in use{}", at.display(), users(at));
    Err(Hinted::failure(
        what,
        "end those programs, or leave the directory in those shells; or detach it now with --lazy",
    )
    .into())
}

/// Takes the mount out of the tree, in use or not; it ends with its last user.
pub fn detach(at: &Path) -> Result<()> {
    if !try_unmount(at, UnmountFlags::DETACH)? {
        bail!("cannot detach {}: it is in use", at.display());
    }
    Ok(())
}

/// What cuts the connection between the kernel and the daemon when something is written to it.
pub fn switch((_, minor): (u32, u32)) -> io::Result<OwnedFd> {
    let control = format!("{minor}/abort");
    let abort = OFlags::WRONLY | OFlags::CLOEXEC;
    let connections = Path::new("/sys/fs/fuse/connections").join(&control);
    let file = open(connections, abort, Mode::empty())
        // containers seldom mount the control files; root can look at them all the same
        .or_else(|_| openat(control_files()?, control, abort, Mode::empty()))?;
    Ok(file)
}

/// FUSE's control files, mounted nowhere.
fn control_files() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// `false`: it is in use.
fn try_unmount(at: &Path, flags: UnmountFlags) -> Result<bool> {
    match rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(Errno::PERM) => ask_helper(at, flags.contains(UnmountFlags::DETACH)),
        Err(cause) => Err(cause).with_context(|| format!("cannot unmount {}", at.display())),
    }
}

fn ask_helper(at: &Path, lazy: bool) -> Result<bool> {
    for helper in HELPERS {
        let output = Command::new(helper)
            .arg("-u")
            .args(lazy.then_some("-z"))
            .arg("--")
            .arg(at)
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            output => output.with_context(|| format!("cannot run {helper}"))?,
        };
        let said = String::from_utf8_lossy(&output.stderr);
        return match output.status.success() {
            true => Ok(true),
            false if said.contains("busy") => Ok(false),
            false => {
                let what = format!("cannot unmount {}: {}", at.display(), said.trim());
                Err(
                    Hinted::failure(what, "only root and the user who mounted it can unmount it")
                        .into(),
                )
            }
        };
    }
    Err(no_helper())
}

/// The words for a machine without the helper.
pub fn no_helper() -> anyhow::Error {
    Hinted::failure(
        "fusermount3 is missing, without which only root can mount",
        "install it (apt install fuse3), or run nodbfs as root",
    )
    .into()
}

/// Whether the helper is on the PATH.
pub fn has_helper() -> bool {
    let run = |helper| {
        Command::new(helper)
            .arg("-V")
            .stdin(Stdio::null())
            .output()
            .is_ok()
    };
    HELPERS.into_iter().any(run)
}

/// Who works below `at`, as far as this user may know: ` by bash (pid 12), …`.
fn users(at: &Path) -> String {
    let Ok(Some(mounted)) = table::top(at) else {
        return String::new();
    };
    let mut users = Vec::new();
    for process in entries(Path::new("/proc")) {
        let pid = process
            .file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok());
        let links = ["cwd", "root", "exe"].map(|name| process.join(name));
        let mut links = links.into_iter().chain(entries(&process.join("fd")));
        if let Some(pid) = pid.filter(|pid| *pid != std::process::id())
            && links.any(|link| leads_into(&link, at, mounted.dev))
        {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(format!("{} (pid {pid})", name.trim()));
        }
    }
    match users.is_empty() {
        true => String::new(),
        false => format!(" by {}", users.join(", ")),
    }
}

/// By path first, which asks no file system; then by device, as the path may mean what lies below
/// the mount.
fn leads_into(link: &Path, at: &Path, dev: (u32, u32)) -> bool {
    let ask_nobody = AtFlags::STATX_DONT_SYNC;
    fs::read_link(link).is_ok_and(|target| target.starts_with(at))
        && statx(CWD, link, ask_nobody, StatxFlags::empty())
            .is_ok_and(|stat| (stat.stx_dev_major, stat.stx_dev_minor) == dev)
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
