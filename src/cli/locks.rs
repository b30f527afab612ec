//! `nodbfs locks`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::output::{self, Table, printable};
use super::target::{Embedded, Offline};
use crate::control::locks::Row;
use crate::control::{Answer, Request};

/// List the locks that are held, by whomever
///
/// Of a run, of one controller or, for the mount point of a tree of runs, all of them.
#[derive(Debug, Args)]
pub struct LocksArgs {
    /// A run, a .nodb file, or the mount point of a tree of runs
    #[arg(value_name = "RUN", default_value = ".")]
    path: PathBuf,
    /// For programs: one JSON array with all that is known
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: Offline,
}

/// Prints who holds which lock.
pub fn run(args: &LocksArgs) -> Result<()> {
    let (mut client, path) = args.offline.reach(&args.path, Embedded::HasNoCache)?;
    let mut rows = Vec::new();
    client.ask(&Request::Locks { path }, |answer| {
        if let Answer::Lock(row) = answer {
            rows.push(*row);
        }
        Ok(())
    })?;
    output::finish(match args.json {
        true => output::print_json(&rows),
        false => print(&rows),
    })
}

fn print(rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        eprintln!("No lock is held");
        return Ok(());
    }
    let titles = ["RUN", "CONTROLLER", "HOLDER", "AGE", "LEFT", "FOR"];
    let right = &[3, 4];
    Table { titles, right }.print(rows.iter().map(cells).collect())
}

fn cells(row: &Row) -> [String; 6] {
    let time = |seconds: Option<u64>| match seconds {
        Some(seconds) => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        None => "-".to_owned(),
    };
    [
        printable(&row.runid),
        printable(&row.relpath),
        printable(row.owner.as_deref().unwrap_or("-")),
        time(row.age),
        time(row.seconds_left),
        printable(&purpose(row)),
    ]
}

/// What this host's mount knows of a lock that it took itself.
pub fn purpose(row: &Row) -> String {
    let known = &row.known;
    let program = known.command.as_deref().zip(known.pid);
    let program = program.map(|(command, pid)| format!("{command}[{pid}]"));
    let words = [&program, &known.through, &known.label];
    let words: Vec<_> = words.into_iter().flatten().cloned().collect();
    words.join(", ")
}
