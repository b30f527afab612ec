//! `nodbfs log`, `nodbfs publish` and `nodbfs log-level`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::output::{self, printable};
use super::target::{Embedded, Offline};
use crate::control::log::{LogLine, RunLevel};
use crate::control::{Answer, Request};
use crate::hint::Hinted;
use crate::telemetry::level::{LEVELS, Level};
use crate::telemetry::line::parts;

/// Show what happened to a controller, or to all of a run
///
/// On a mount: locks, commits, refusals, the cache, and what was published on the status channels since
/// the run was first touched, as in x.nodb.log. Elsewhere: the real logs, x.log, and with -f what is
/// published from now on.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Controllers, or directories with all the controllers in and below them
    #[arg(value_name = "FILE|RUN")]
    path: PathBuf,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// For programs: one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: Offline,
}

/// Publish a message on a controller's status channel
///
/// As a line appended to x.nodb.log: browsers show it, and it is written into the real log, x.log.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The controller
    file: PathBuf,
    /// One line of text, or several
    text: String,
    #[command(flatten)]
    offline: Offline,
}

/// Show or set how loud a run is
///
/// The level is the one that NoDb processes follow too; what is quieter is not written.
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// The directory of the run, or one of its controllers
    run: PathBuf,
    /// DEBUG, INFO, WARNING, ERROR, CRITICAL, or 10 to 50, or default
    level: Option<String>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: Offline,
}

/// A line as programs read it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    runid: &'a str,
    controller: &'a str,
    /// Local time.
    time: Option<&'a str>,
    level: Option<Level>,
    message: &'a str,
}

/// Prints the lines as they come.
pub fn log(args: &LogArgs) -> Result<()> {
    let embedded = match args.follow {
        true => Embedded::HasNoCache,
        // a real log needs no store
        false => Embedded::Fits,
    };
    let (mut client, path) = args.offline.reach(&args.path, embedded)?;
    let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let request = Request::Log {
        path,
        follow: args.follow,
    };
    let mut printed = Ok(());
    let asked = client.ask(&request, |answer| {
        printed = match &answer {
            Answer::Log(line) if args.json => print_json(line),
            Answer::Log(line) => print(line, coloured),
            _ => Ok(()),
        };
        // ends the conversation; why is told below
        ensure!(printed.is_ok(), "nobody reads");
        Ok(())
    });
    match printed {
        Ok(()) => asked,
        printed => output::finish(printed),
    }
}

fn print_json(line: &LogLine) -> Result<()> {
    let parts = parts(&line.line);
    let row = Row {
        runid: &line.runid,
        controller: &line.controller,
        time: parts.as_ref().map(|parts| parts.time),
        level: parts.as_ref().map(|parts| parts.level),
        message: parts.map_or(&line.line, |parts| parts.message),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &row)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn print(line: &LogLine, coloured: bool) -> Result<()> {
    let level = parts(&line.line).map(|parts| parts.level);
    let text = printable(&line.line);
    let mut out = io::stdout().lock();
    match level.filter(|_| coloured).map(colour) {
        Some(colour) if !colour.is_empty() => writeln!(out, "\x1b[{colour}m{text}\x1b[0m")?,
        _ => writeln!(out, "{text}")?,
    }
    Ok(out.flush()?)
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::Debug => "2",
        Level::Info => "",
        Level::Warning => "33",
        Level::Error => "31",
        Level::Critical => "1;31",
    }
}

/// Publishes the text.
pub fn publish(args: &PublishArgs) -> Result<()> {
    let (mut client, path) = args.offline.reach(&args.file, Embedded::HasNoCache)?;
    let text = args.text.clone();
    client.ask(&Request::Publish { path, text }, |_| Ok(()))
}

/// Prints the level, after it was set if one was given.
pub fn level(args: &LogLevelArgs) -> Result<()> {
    if let Some(level) = args.level.as_deref().filter(|level| *level != "default") {
        level.parse::<Level>().map_err(|_| unknown(level))?;
    }
    let (mut client, path) = args.offline.reach(&args.run, Embedded::HasNoCache)?;
    let level = args.level.clone();
    let mut levels = Vec::new();
    client.ask(&Request::Level { path, level }, |answer| {
        if let Answer::Level(level) = answer {
            levels.push(level);
        }
        Ok(())
    })?;
    output::finish(levels.iter().try_for_each(|level| match args.json {
        true => output::print_json(level),
        false => print_level(level),
    }))
}

fn unknown(level: &str) -> Hinted {
    let names = LEVELS.map(|level| format!("{level} or {}", level.number()));
    Hinted::usage(
        format!("'{level}' is no log level"),
        format!("the levels are {}, and default", names.join(", ")),
    )
}

fn print_level(level: &RunLevel) -> Result<()> {
    let why = match &level.set {
        None => " (default)".to_owned(),
        Some(set) if set.parse::<Level>().is_err() => {
            format!(" (default: '{}' is no level)", printable(set))
        }
        Some(_) => String::new(),
    };
    Ok(writeln!(
        io::stdout(),
        "{}  {}{why}",
        printable(&level.runid),
        level.level
    )?)
}
