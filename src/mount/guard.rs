//! A process beside the daemon that cuts the mount's connection should the daemon be killed.
//!
//! The kernel does that by itself once the dead daemon's descriptors are closed, but a killed daemon
//! can keep them open for ever: its thread that tells the kernel of a changed name waits, deaf to
//! signals, for a directory that the kernel holds for a request that nobody will answer any more.
//! All users of the mount would hang with it. Cut off, they get ENOTCONN, as after any crash.

use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::own::Own;

/// The daemon's side: its guard, which goes when this is dropped.
#[derive(Debug)]
pub struct Guard(Child);

impl Guard {
    /// Guards the mount until the calling thread ends, so this is for the main thread.
    ///
    /// # Errors
    /// There is no way to cut it off, or no process could be started.
    pub fn start(own: &Own) -> Result<Self> {
        let switch = own.switch()?.try_clone_to_owned()?;
        let guard = Command::new("/proc/self/exe")
            .args(["guard", &std::process::id().to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(switch)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(guard))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // it has nothing to say, and may be gone already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guard's side: waits for the end of its parent, the thread that started it in the process
/// `daemon`, and then throws the switch, its standard output.
pub fn run(daemon: u32) -> Result<()> {
    // what ends the daemon may come to all of its group; the guard outlives it
    let mut signals =
        Signals::new([SIGUSR1, SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    set_parent_process_death_signal(Some(Signal::USR1)).context("cannot watch the daemon")?;
    if lives(daemon) {
        signals.forever().find(|signal| *signal == SIGUSR1);
    }
    io::stdout().write_all(b"1")?;
    Ok(io::stdout().flush()?)
}

/// Whether the parent is still the main thread of the process `daemon`. A daemon killed before it could be
/// watched is a parent too, for as long as one of its threads cannot end.
fn lives(daemon: u32) -> bool {
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    let stat = fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    parent == Some(daemon) && !matches!(state, None | Some('Z' | 'X'))
}
