//! How `umount` learns that the daemon has let go. The daemon holds an abstract socket, named
//! after the mount's device number, for as long as it lives; a connection to it ends with the
//! daemon, however it ends. Nothing is left on disk, and nothing is ever said over it.

use std::io::{ErrorKind, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Result, bail};
use tracing::debug;

/// A drain is bounded by the store's time limits; whoever takes longer hangs in the source.
const PATIENCE: Duration = Duration::from_secs(60);

fn address((major, minor): (u32, u32)) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("nodbfs-mount-{major}:{minor}"))
}

/// The daemon's end, to be kept for life. `None`: the name is taken, so `umount` will not know
/// when this daemon has finished; nothing else depends on it.
pub fn announce(dev: (u32, u32)) -> Option<UnixListener> {
    let listener = address(dev).and_then(|address| UnixListener::bind_addr(&address));
    listener
        .inspect_err(|cause| debug!("umount cannot wait for this daemon: {cause}"))
        .ok()
}

/// The other end.
pub struct Watch(Option<UnixStream>);

impl Watch {
    /// To be called while it is still mounted: afterwards the number may be another mount's.
    pub fn start(dev: (u32, u32)) -> Self {
        Self(
            address(dev)
                .and_then(|address| UnixStream::connect_addr(&address))
                .ok(),
        )
    }

    /// Waits for the daemon's end. A daemon that could not be found is not waited for: it runs in
    /// another network namespace, or is gone already.
    pub fn wait(self) -> Result<()> {
        let Some(mut stream) = self.0 else {
            return Ok(());
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        match stream.read(&mut [0]) {
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!(
                    "it is unmounted, but after {} s its daemon has still not finished",
                    PATIENCE.as_secs()
                )
            }
            // the end of the stream, or a reset, as nobody had accepted the connection
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_with_the_listener() {
        // no device has this number
        let dev = (u32::MAX, std::process::id());
        let listener = announce(dev).unwrap();
        assert!(announce(dev).is_none());
        let watch = Watch::start(dev);
        assert!(watch.0.is_some());
        drop(listener);
        watch.wait().unwrap();
        assert!(Watch::start(dev).0.is_none());
    }
}
