//! `nodbfs status`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::output::{self, Table, printable};
use crate::control::client::{Client, Located};
use crate::control::status::Status;
use crate::control::{Answer, Request};
use crate::hint::Hinted;
use crate::mount::table::{self, Mounted};

/// Show the mounts on this host and how they are
///
/// Asks the daemons beside their mounts, so it answers when a mount is stuck.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only the mount on which this lies
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
    let rows: Vec<_> = mounts(args)?.iter().map(row).collect();
    output::finish(match args.json {
        true => output::print_json(&rows),
        false => print(&rows),
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
        Err(error) => (None, Some(format!("{error:#}"))),
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

fn print(rows: &[Row]) -> Result<()> {
    let rows = rows.iter().map(|row| {
        [
            printable(&row.mountpoint),
            printable(&row.source),
            row.status
                .as_ref()
                .map_or_else(String::new, |status| status.store.name.clone()),
            printable(row.error.as_deref().unwrap_or("serving")),
        ]
    });
    let titles = ["MOUNTPOINT", "SOURCE", "STORE", "STATE"];
    Table { titles, right: &[] }.print(rows.collect())
}
