//! The daemon's log: how much, and where.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogTo};
use crate::hint::Hinted;

/// Starts logging. Lines carry UTC time stamps.
///
/// # Errors
/// A log file that was asked for cannot be opened.
pub fn init(log: &Log) -> Result<()> {
    let (writer, ansi) = match &log.to {
        LogTo::Stderr => (
            fmt::writer::BoxMakeWriter::new(io::stderr),
            io::stderr().is_terminal(),
        ),
        to => (
            fmt::writer::BoxMakeWriter::new(Mutex::new(open(to)?)),
            false,
        ),
    };
    let lines = fmt::layer()
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines.with_filter(levels(log.level).and(filter_fn(is_told))))
        .init();
    Ok(())
}

/// Opens the log file for appending, its directory made as needed; `/dev/null` if a log of the
/// daemon's own cannot be had.
pub fn open(to: &LogTo) -> Result<File> {
    let file = match to {
        LogTo::Stderr => null(),
        LogTo::OwnFile(path) => append(path).or_else(|_| null()),
        LogTo::File(path) => append(path),
    };
    file.with_context(|| {
        let path = if let LogTo::File(path) = to {
            path
        } else {
            Path::new("/dev/null")
        };
        Hinted::failure(
            format!("cannot open the log file {}", path.display()),
            "name another one with --log-file PATH",
        )
    })
}

/// Paths and reasons in a log are the owner's business only.
fn append(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn null() -> io::Result<File> {
    OpenOptions::new().append(true).open("/dev/null")
}

/// fuser tells every request at debug level, and each mount and unmount at info; its debug lines
/// are for `trace` only.
fn levels(level: LevelFilter) -> Targets {
    let fuser = match level {
        LevelFilter::TRACE => LevelFilter::DEBUG,
        level => level.min(LevelFilter::WARN),
    };
    Targets::new()
        .with_default(level)
        .with_target("fuser", fuser)
}

/// fuser answers the kernel's INTERRUPT of a request, as a signal to the program causes it, and takes
/// it for an error when the request itself has been answered before.
fn is_told(about: &Metadata<'_>) -> bool {
    about.target() != "fuser::reply" || *about.level() != Level::ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuser_is_quiet_below_trace() {
        assert!(!levels(LevelFilter::DEBUG).would_enable("fuser::session", &Level::INFO));
        assert!(levels(LevelFilter::DEBUG).would_enable("nodbfs::mount", &Level::DEBUG));
        assert!(levels(LevelFilter::DEBUG).would_enable("fuser::session", &Level::WARN));
        assert!(levels(LevelFilter::TRACE).would_enable("fuser::session", &Level::DEBUG));
        assert!(!levels(LevelFilter::ERROR).would_enable("fuser::session", &Level::WARN));
    }

    #[test]
    fn an_interrupt_that_comes_too_late_is_no_error() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let lines = fmt::layer().with_writer(Mutex::new(File::create(&path).unwrap()));
        let filter = levels(LevelFilter::DEBUG).and(filter_fn(is_told));
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "fuser::reply", "Failed to send FUSE reply");
            tracing::warn!(target: "fuser::reply", "Reply not sent");
            tracing::error!("ours");
        });
        let told = std::fs::read_to_string(path).unwrap();
        assert!(told.contains("ours") && told.contains("not sent") && !told.contains("Failed"));
    }

    #[test]
    fn only_a_file_that_was_asked_for_must_open() {
        let scratch = tempfile::tempdir().unwrap();
        let blocked = scratch.path().join("file");
        File::create(&blocked).unwrap();
        let path = blocked.join("x.log");
        assert!(open(&LogTo::OwnFile(path.clone())).is_ok());
        assert!(open(&LogTo::File(path)).is_err());
        let good = scratch.path().join("new/x.log");
        open(&LogTo::File(good.clone())).unwrap();
        assert!(good.exists());
    }
}
