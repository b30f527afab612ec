//! What `close` says of a file: network file systems report a failed write then, and only then.

use std::os::fd::{AsFd, IntoRawFd};

use crate::error::{Errno, Result};

/// Closes a duplicate of `fd`, as the caller closes its descriptor, and passes on what that says.
pub fn flush(fd: &impl AsFd) -> Result<()> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
    // SAFETY: the descriptor was just made and is given up here; nobody else knows its number.
    let closed = unsafe { libc::close(duplicate.into_raw_fd()) };
    if closed == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error())
            .unwrap_or(Errno::IO)
            .into())
    }
}
