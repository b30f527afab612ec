//! `nodbfs lock` and `nodbfs unlock`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;

use super::edit::exit_code;
use super::locks::purpose;
use super::output::printable;
use super::target::{Embedded, Offline};
use super::units;
use crate::config::{Log, LogTo};
use crate::control::{Answer, Request};
use crate::hint::{FAILURE, Hinted};
use crate::telemetry::output;

/// Run a command under the lock of a controller
///
/// The lock is waited for as the mount's --lock-wait says, renewed while the command runs, and given back
/// at its end. The command and whatever it starts work under it; nobody else does. The exit status is
/// the command's; if the lock was lost while it ran and it did not fail, 1.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// The controller, on a mount or not; it need not exist yet
    file: PathBuf,
    /// Let go after this time at the latest, though the command goes on
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    ttl: Option<Duration>,
    /// What it is for, shown to whoever looks who holds it [default: the command]
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    offline: Offline,
    #[arg(last = true, value_name = "CMD", required = true)]
    command: Vec<OsString>,
}

/// Give back a lock that the mount took for this session, or take away anybody's
///
/// Without --force as 'rm x.nodb.lock': the lock is given back if this mount took it for the caller's
/// session; root may give back any that this mount took.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// The controller, on a mount or not
    file: PathBuf,
    /// Take the lock away whoever holds it: exactly the one that is held now, none that is taken
    /// meanwhile. Its holder cannot commit any more, if it looks: old NoDb processes do not
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", requires = "force", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: Option<String>,
    #[command(flatten)]
    offline: Offline,
}

/// Runs the command; the exit code is its own.
pub fn run(args: &LockArgs) -> Result<ExitCode> {
    // until the lock is held, every signal ends this process, and the wait with it
    let idle = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGQUIT] {
        signal_hook::flag::register_conditional_default(signal, idle.clone())
            .context("cannot catch signals")?;
    }
    let (mut client, path) = args.offline.reach(&args.file, Embedded::Fits)?;
    let words: Vec<_> = args
        .command
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let request = Request::Lock {
        path,
        ttl: args.ttl.map(|ttl| ttl.as_secs_f64()),
        label: Some(args.label.clone().unwrap_or_else(|| words.join(" "))),
    };
    client.send(&request, &[])?;
    let Some((Answer::Locked, _)) = client.hear()? else {
        bail!("the daemon's answer is none to the question");
    };
    // from now on those of the terminal are the command's, which gets them itself
    idle.store(false, SeqCst);
    let status = run_passing_signals(&args.command)?;
    client.send(&Request::Release, &[])?;
    let released = client.hear();
    if !matches!(released, Ok(Some((Answer::Released(true), _)))) {
        let why = released.err().map(|error| format!(": {error:#}"));
        eprintln!(
            "The lock of {} was lost while the command ran{}",
            args.file.display(),
            why.unwrap_or_default()
        );
        if status.success() {
            return Ok(ExitCode::from(FAILURE));
        }
    }
    Ok(exit_code(status))
}

/// Runs a command to its end. What would end this process is for the command.
fn run_passing_signals(command: &[OsString]) -> Result<ExitStatus> {
    let mut signals = Signals::new([SIGTERM, SIGHUP]).context("cannot catch signals")?;
    let mut child: Child = Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .with_context(|| {
            Hinted::failure(
                format!("cannot run {}", command[0].display()),
                "is it installed, and in PATH?",
            )
        })?;
    let pid = Pid::from_child(&child);
    let handle = signals.handle();
    let pass = move || {
        for signal in signals.forever() {
            let signal = match signal {
                SIGHUP => Signal::HUP,
                _ => Signal::TERM,
            };
            // it may have ended just now, and is not waited for before this thread has
            let _ = kill_process(pid, signal);
        }
    };
    let passing = thread::spawn(pass);
    // it stays a zombie, and keeps its number, until nobody passes on signals any more
    let ended = rustix::process::waitid(
        rustix::process::WaitId::Pid(pid),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    );
    handle.close();
    let _ = passing.join();
    ended.context("cannot wait for the command")?;
    Ok(child.wait()?)
}

/// Gives back or takes away, and says whose lock it was.
pub fn unlock(args: &UnlockArgs) -> Result<()> {
    // without a daemon, this process has the log in which a forced release stands
    output::init(&Log {
        level: LevelFilter::WARN,
        to: LogTo::Stderr,
    })?;
    let (mut client, path) = args.offline.reach(&args.file, Embedded::HasNoCache)?;
    let force = args.reason.clone();
    client.ask(&Request::Unlock { path, force }, |answer| {
        if let Answer::Lock(row) = answer {
            let owner = row.owner.as_deref().unwrap_or("an unnamed holder");
            let holder = match purpose(&row) {
                purpose if purpose.is_empty() => owner.to_owned(),
                purpose => format!("{owner} ({purpose})"),
            };
            println!(
                "Released: {} was held by {}",
                printable(&row.relpath),
                printable(&holder)
            );
        }
        Ok(())
    })
}
