//! `nodbfs status`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use super::output::{self, Table, printable};
use crate::control::client::{Client, Located};
use crate::control::status::Status;
use crate::control::{Answer, Request};
use crate::counters::Line;
use crate::hint::Hinted;
use crate::mount::table::{self, Mounted};

/// Show the mounts on this host and how they are
///
/// Asks the daemons beside their mounts, so it answers when a mount is stuck.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The mount on which this lies, with all that there is to say of it: what it takes and holds, what
    /// happened, and how often each operation came and how long it took
    pub path: Option<PathBuf>,
    /// For programs: one JSON array with all that is known
    #[arg(long)]
    json: bool,
}

/// One mount.
#[derive(Debug, Serialize)]
struct Row {
    mountpoint: String,
    source: String,
    /// What its daemon says.
    status: Option<Status>,
    /// Why its daemon says nothing.
    error: Option<String>,
}

/// Prints what the daemons say.
pub fn run(args: &StatusArgs) -> Result<()> {
    let mounts = mounts(args)?;
    // at the same time, for one that is stuck takes long
    let rows: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = mounts.iter().map(|one| scope.spawn(|| row(one))).collect();
        let answered = asked.into_iter().filter_map(|one| one.join().ok());
        answered.collect()
    });
    output::finish(match (args.json, &rows[..]) {
        (true, _) => output::print_json(&rows),
        (false, [row]) if args.path.is_some() => print_all(row),
        (false, rows) => print(rows),
    })
}

fn mounts(args: &StatusArgs) -> Result<Vec<Mounted>> {
    let Some(path) = &args.path else {
        let mut all = table::all().context("cannot read the mount table")?;
        all.retain(Mounted::is_ours);
        return Ok(all);
    };
    let mounted = Located::find(path)?.mounted.ok_or_else(|| {
        Hinted::failure(
            format!("{} lies on no mount of nodbfs", path.display()),
            "'nodbfs status' without a path shows all mounts",
        )
    })?;
    Ok(vec![mounted])
}

fn row(mounted: &Mounted) -> Row {
    let (status, error) = match ask(mounted) {
        Ok(status) => (status, None),
        Err(error) => (None, Some(format!("no answer: {}", error.root_cause()))),
    };
    Row {
        mountpoint: mounted.at.to_string_lossy().into_owned(),
        source: mounted.source.clone(),
        status,
        error,
    }
}

fn ask(mounted: &Mounted) -> Result<Option<Status>> {
    let mut status = None;
    Client::briefly(mounted)?.ask(&Request::Status, |answer| {
        if let Answer::Status(answer) = answer {
            status = Some(*answer);
        }
        Ok(())
    })?;
    Ok(status)
}

/// A line for each mount.
fn print(rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        eprintln!("nodbfs is mounted nowhere");
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        let [mountpoint, source] = [&row.mountpoint, &row.source].map(|path| printable(path));
        let Some(status) = &row.status else {
            let error = printable(row.error.as_deref().unwrap_or_default());
            let none = String::new;
            return [
                mountpoint,
                source,
                none(),
                none(),
                none(),
                none(),
                none(),
                error,
            ];
        };
        let facts = &status.controllers;
        let rate: f64 = status.operations.iter().map(|line| line.rate).sum();
        [
            mountpoint,
            source,
            format!("{rate:.0}"),
            facts.writers.len().to_string(),
            facts.locks.len().to_string(),
            facts.debts.to_string(),
            status.store.name.clone(),
            state(status),
        ]
    });
    let titles = [
        "MOUNTPOINT",
        "SOURCE",
        "OPS/S",
        "WRITERS",
        "LOCKS",
        "DEBTS",
        "STORE",
        "STATE",
    ];
    let right = &[2, 3, 4, 5];
    Table { titles, right }.print(cells.collect())
}

fn state(status: &Status) -> String {
    match (&status.store.error, status.store.resting) {
        (None, _) => "serving".to_owned(),
        (Some(error), None) => printable(&format!("store away: {error}")),
        (Some(error), Some(left)) => {
            printable(&format!("store away, not tried for {left} ms: {error}"))
        }
    }
}

/// All that there is to say of one mount.
fn print_all(row: &Row) -> Result<()> {
    let Some(status) = &row.status else {
        bail!("{}", row.error.as_deref().unwrap_or_default());
    };
    let (facts, process) = (&status.controllers, &status.process);
    let mut lines = vec![
        ("mount point", row.mountpoint.clone()),
        ("source", status.source.clone()),
        ("state", state(status)),
        ("store", status.store.name.clone()),
        (
            "daemon",
            format!("nodbfs {}, process {}", status.version, status.pid),
        ),
        (
            "up",
            humantime::format_duration(Duration::from_secs(status.uptime)).to_string(),
        ),
        (
            "takes",
            format!(
                "{} MB of memory, {} threads, {} of {} descriptors",
                process.memory >> 20,
                process.threads,
                process.descriptors,
                process
                    .descriptor_limit
                    .map_or("any number".into(), |limit| limit.to_string()),
            ),
        ),
        (
            "knows",
            format!("{} inodes, {} controllers", facts.inodes, facts.controllers),
        ),
        (
            "keeps",
            format!(
                "{} documents, {} of {} kB",
                facts.payloads.count,
                facts.payloads.bytes >> 10,
                facts.payloads.limit >> 10
            ),
        ),
        ("owes", format!("{} messages to the cache", facts.debts)),
    ];
    let writers = facts.writers.iter();
    lines.extend(writers.map(|one| ("writer", format!("{} by process {}", one.path, one.pid))));
    let locks = facts.locks.iter();
    lines.extend(locks.map(|one| {
        (
            "lock",
            format!("{} for process {}, {} s", one.lock, one.pid, one.age),
        )
    }));
    let events = status.events.iter().filter(|(_, count)| **count > 0);
    lines.extend(events.map(|(event, count)| (event.as_str(), count.to_string())));
    let mut out = io::stdout().lock();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, words) in lines {
        writeln!(out, "{name:width$}  {}", printable(&words))?;
    }
    for (title, lines) in [
        ("OPERATION", &status.operations),
        ("STORE CALL", &status.store_calls),
    ] {
        if !lines.is_empty() {
            writeln!(out)?;
            print_times(title, lines)?;
        }
    }
    Ok(())
}

fn print_times(title: &'static str, lines: &[Line]) -> Result<()> {
    let cells = lines.iter().map(|line| {
        [
            line.name.clone(),
            line.count.to_string(),
            format!("{:.1}", line.rate),
            format!("{:.0}", line.p50),
            format!("{:.0}", line.p99),
            format!("{:.0}", line.mean),
        ]
    });
    let titles = [title, "COUNT", "PER S", "P50 us", "P99 us", "MEAN us"];
    let right = &[1, 2, 3, 4, 5];
    Table { titles, right }.print(cells.collect())
}
