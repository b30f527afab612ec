//! `noatime`, `nodiratime` and `strictatime`: which reads leave their time behind is decided where
//! the lower file is read. So the daemon reads it through a mount of its own, with these options.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cli::options::Flags;

/// `dir` through a private mount of it that keeps times of access as `flags` say, or as it is if they
/// say nothing of them. What is mounted within it later does not show in there.
///
/// # Errors
/// Only root may mount.
pub fn view(dir: OwnedFd, flags: &Flags, read_only: bool) -> io::Result<OwnedFd> {
    let (mut set, mut clear) = (0, 0);
    if flags.noatime || flags.strictatime {
        clear = libc::MOUNT_ATTR__ATIME;
        set = if flags.noatime || read_only {
            libc::MOUNT_ATTR_NOATIME
        } else {
            libc::MOUNT_ATTR_STRICTATIME
        };
    }
    if flags.nodiratime {
        set |= libc::MOUNT_ATTR_NODIRATIME;
    }
    if set | clear == 0 {
        return Ok(dir);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let view = open_tree(&dir, c"", flags)?;
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the kernel reads the attributes, of the size it is told, and an empty path; the
    // descriptor is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            view.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if done == 0 {
        Ok(view)
    } else {
        Err(io::Error::last_os_error())
    }
}
