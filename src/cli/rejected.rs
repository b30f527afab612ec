//! `nodbfs rejected`.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::output::{self, Table, printable};
use crate::config;
use crate::hint::Hinted;
use crate::nodb::rejected::{Bounds, Kept, Rejected};

/// List, show or remove documents that were refused
///
/// A document that could not be committed is kept, with what is known of it, in the state directory
/// of its mount; the latest 64, and 256 MiB, of all the mounts that share the directory.
#[derive(Debug, Args)]
pub struct RejectedArgs {
    #[command(subcommand)]
    command: Command,
    /// The state directory of the mount [default: /var/lib/nodbfs for root, else
    /// $XDG_STATE_HOME/nodbfs or ~/.local/state/nodbfs]
    #[arg(long, value_name = "PATH", global = true)]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them, the latest first
    List {
        /// For programs: one JSON array with all that is known
        #[arg(long)]
        json: bool,
    },
    /// Write one to stdout, byte for byte as it was refused
    Show {
        /// As `list` says it, or as much of its beginning as is unique
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Remove some, or all
    Remove {
        /// As `list` says them, or as much of their beginnings as is unique
        #[arg(value_name = "ID", required_unless_present = "all", value_parser = NonEmptyStringValueParser::new())]
        ids: Vec<String>,
        /// Remove all of them
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
}

/// Does what was asked; an error says what stands in the way.
pub fn run(args: RejectedArgs) -> Result<()> {
    let rejected = Rejected::new(&config::state_dir(args.state_dir)?, Bounds::default());
    let kept = read(&rejected)?;
    let done = match args.command {
        Command::List { json: true } => output::print_json(&kept),
        Command::List { json: false } => print_table(&rejected, &kept),
        Command::Show { id } => show(find(&rejected, &kept, &id)?),
        Command::Remove { ids, all } => {
            let chosen = match all {
                true => kept.iter().collect(),
                // all are found before the first one goes
                false => ids
                    .iter()
                    .map(|id| find(&rejected, &kept, id))
                    .collect::<Result<Vec<_>>>()?,
            };
            chosen.into_iter().try_for_each(|kept| {
                let what = || format!("cannot remove {}", kept.id);
                kept.remove().with_context(what)
            })
        }
    };
    output::finish(done)
}

/// What is kept, the latest first. What cannot be read is said and left out.
fn read(rejected: &Rejected) -> Result<Vec<Kept>> {
    let list = rejected.list().with_context(|| {
        Hinted::failure(
            format!("cannot read {}", rejected.dir().display()),
            "only the user who mounted may; or name another directory with --state-dir",
        )
    })?;
    let readable = list.into_iter().filter_map(|kept| {
        kept.inspect_err(|error| eprintln!("Warning: cannot read {error}"))
            .ok()
    });
    Ok(readable.collect())
}

fn find<'a>(rejected: &Rejected, kept: &'a [Kept], id: &str) -> Result<&'a Kept> {
    let mut found = kept.iter().filter(|kept| kept.id.starts_with(id));
    match (found.next(), found.count()) {
        (Some(kept), 0) => Ok(kept),
        (Some(_), others) => Err(Hinted::usage(
            format!("'{id}' is the beginning of {} ids", others + 1),
            "write more of it",
        )
        .into()),
        (None, _) => Err(Hinted::failure(
            format!(
                "no rejected document '{id}' is kept in {}",
                rejected.dir().display()
            ),
            "'nodbfs rejected list' shows what is; a mount with a --state-dir of its own keeps its own there",
        )
        .into()),
    }
}

/// For people: a line for each.
fn print_table(rejected: &Rejected, kept: &[Kept]) -> Result<()> {
    if kept.is_empty() {
        eprintln!("Nothing is kept in {}", rejected.dir().display());
        return Ok(());
    }
    let rows = kept.iter().map(row).collect();
    let titles = ["ID", "WHEN", "SIZE", "CONTROLLER", "REASON"];
    Table {
        titles,
        right: &[2],
    }
    .print(rows)
}

fn row(kept: &Kept) -> [String; 5] {
    let facts = &kept.facts;
    [
        kept.id.clone(),
        facts.time.clone(),
        facts.size.to_string(),
        printable(&format!("{}/{}", facts.source, facts.path)),
        printable(&facts.refusal.reason),
    ]
}

fn show(kept: &Kept) -> Result<()> {
    let reading = || format!("cannot read {}", kept.document.display());
    let mut document = File::open(&kept.document).with_context(reading)?;
    io::copy(&mut document, &mut io::stdout().lock())?;
    Ok(())
}
