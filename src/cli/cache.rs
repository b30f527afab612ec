//! `nodbfs cache`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::output::{self, Table, printable};
use super::target::{Embedded, Offline};
use crate::control::cache::{Action, Row};
use crate::control::{Answer, Request};
use crate::hint::FAILURE;
use crate::nodb::cached::{Entry, SealState};

/// Look at cache entries, rewrite or remove them, or verify a run
///
/// On a mount its daemon is asked, beside the mount; elsewhere this process works on the files and
/// on the Redis that --redis or the environment names. The exit status is 1 if anything is wrong.
#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the cache has
    Show(What),
    /// Read from disk and rewrite the entry; a commit that comes between wins
    Refresh(What),
    /// Remove the entry; the next reader brings it back
    Evict(What),
    /// Check that entries are the files, that the files are JSON, that flags have their locks, and
    /// that no temporary files were left
    Verify(What),
}

#[derive(Debug, Args)]
struct What {
    /// Controllers, or directories with all the controllers in and below them
    #[arg(required = true, value_name = "FILE|RUN")]
    paths: Vec<PathBuf>,
    /// For programs: one JSON array with all that is known
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: Offline,
}

/// Does what was asked, and says what is wrong.
pub fn run(args: &CacheArgs) -> Result<ExitCode> {
    let (action, what) = match &args.command {
        Command::Show(what) => (Action::Show, what),
        Command::Refresh(what) => (Action::Refresh, what),
        Command::Evict(what) => (Action::Evict, what),
        Command::Verify(what) => (Action::Verify, what),
    };
    let mut rows = Vec::new();
    for path in &what.paths {
        let (mut client, path) = what.offline.reach(path, Embedded::HasNoCache)?;
        client.ask(&Request::Cache { action, path }, |answer| {
            if let Answer::Cache(row) = answer {
                rows.push(*row);
            }
            Ok(())
        })?;
    }
    output::finish(match (what.json, action) {
        (true, _) => output::print_json(&rows),
        (false, Action::Verify) => print_verdicts(&rows),
        (false, _) => print(&rows),
    })?;
    let well = rows.iter().all(|row| row.problems.is_empty());
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

fn print(rows: &[Row]) -> Result<()> {
    let cells = rows.iter().map(|row| {
        let path = printable(&row.path);
        let problems = printable(&row.problems.join("; "));
        let Some(look) = &row.look else {
            let none = String::new();
            return [
                path,
                none.clone(),
                none.clone(),
                none.clone(),
                none,
                problems,
            ];
        };
        let since = u64::try_from(look.signature.mtime_ns).unwrap_or(0);
        let mtime = UNIX_EPOCH + Duration::from_nanos(since);
        let notes = [
            look.invalid.clone(),
            Some(problems).filter(|it| !it.is_empty()),
        ];
        let notes: Vec<_> = notes.into_iter().flatten().collect();
        [
            path,
            look.signature.size.to_string(),
            humantime::format_rfc3339_seconds(mtime).to_string(),
            entry(look.entry).to_owned(),
            seal(look.seal).to_owned(),
            match notes.is_empty() {
                true => look.digest.to_string(),
                false => notes.join("; "),
            },
        ]
    });
    let titles = [
        "CONTROLLER",
        "SIZE",
        "MODIFIED",
        "ENTRY",
        "SEAL",
        "GENERATION",
    ];
    Table {
        titles,
        right: &[1],
    }
    .print(cells.collect())
}

fn print_verdicts(rows: &[Row]) -> Result<()> {
    let cells = rows.iter().map(|row| {
        let verdict = match row.problems.is_empty() {
            true => "ok".to_owned(),
            false => printable(&row.problems.join("; ")),
        };
        [printable(&row.path), verdict]
    });
    let titles = ["FILE", "VERDICT"];
    Table { titles, right: &[] }.print(cells.collect())
}

fn entry(entry: Entry) -> &'static str {
    match entry {
        Entry::None => "none",
        Entry::Current => "current",
        Entry::OtherSignature => "other signature",
        Entry::OtherDocument => "other document",
        Entry::NotADocument => "no document",
    }
}

fn seal(seal: SealState) -> &'static str {
    match seal {
        SealState::None => "none",
        SealState::Valid => "valid",
        SealState::Void => "void",
    }
}
