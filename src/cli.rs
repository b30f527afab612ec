//! The command line: what was typed. What it means is [`crate::config`]'s business.

pub mod cache;
pub mod edit;
pub mod lock;
pub mod locks;
pub mod log;
pub mod mount;
pub mod options;
pub mod output;
pub mod rejected;
pub mod status;
pub mod target;
pub mod umount;
pub mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::hint;
use crate::mount::{Built, Source, guard};

/// Mounts NoDb run directories: every .nodb read is exact and whole, every write a locked,
/// durable, atomic commit.
#[derive(Debug, Parser)]
#[command(
    name = "nodbfs",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 the command line makes no sense."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::MountArgs>),
    Umount(umount::UmountArgs),
    Rejected(rejected::RejectedArgs),
    Status(status::StatusArgs),
    Cache(cache::CacheArgs),
    Log(log::LogArgs),
    Publish(log::PublishArgs),
    LogLevel(log::LogLevelArgs),
    Edit(edit::EditArgs),
    Locks(locks::LocksArgs),
    Lock(lock::LockArgs),
    Unlock(lock::UnlockArgs),
    /// What the daemon starts beside itself.
    #[command(hide = true)]
    Guard {
        /// The daemon's process id.
        daemon: u32,
    },
}

/// Runs the command that was typed and says how it went. `build` makes the file system that
/// `mount` serves.
pub fn run<F, B>(build: B) -> ExitCode
where
    F: fuser::Filesystem,
    B: FnOnce(&Config, Source) -> anyhow::Result<Built<F>>,
{
    let result = match Cli::parse().command {
        Command::Mount(args) => mount::run(*args, build),
        Command::Umount(args) => umount::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Rejected(args) => rejected::run(args).map(|()| ExitCode::SUCCESS),
        Command::Cache(args) => cache::run(&args),
        Command::Log(args) => log::log(&args).map(|()| ExitCode::SUCCESS),
        Command::Publish(args) => log::publish(&args).map(|()| ExitCode::SUCCESS),
        Command::LogLevel(args) => log::level(&args).map(|()| ExitCode::SUCCESS),
        Command::Edit(args) => edit::run(&args),
        Command::Locks(args) => locks::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Lock(args) => lock::run(&args),
        Command::Unlock(args) => lock::unlock(&args).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => status::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Guard { daemon } => guard::run(daemon).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprint!("{}", hint::render(&error));
        ExitCode::from(hint::exit_code(&error))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_finds_the_definition_consistent() {
        Cli::command().debug_assert();
    }
}
