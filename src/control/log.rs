//! `log`, `publish` and `log-level`: what is told of controllers, and what is told to them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::find::{Found, Named};
use super::{Answer, Context, Failure, Peer};
use crate::error::Errno;
use crate::nodb::Nodb;
use crate::store::{LockName, StoreError};
use crate::telemetry::level::Level;

/// How long a follower hears nothing before it is looked whether anybody still listens.
const TICK: Duration = Duration::from_millis(500);
/// So much is told of the end of a real log, in bytes.
const TAIL: u64 = 128 << 10;

/// One line of one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub runid: String,
    /// Within the run.
    pub controller: String,
    /// As `x.nodb.log` shows it, without its end.
    pub line: String,
}

/// How loud a run is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLevel {
    pub runid: String,
    /// What the store has, whatever it is.
    pub set: Option<String>,
    /// What that means; the default, if it is none.
    pub level: String,
}

/// Whose lines are told.
struct Wanted {
    names: HashMap<LockName, Named>,
    /// Runs of which all is told, also of controllers that come later.
    runs: HashSet<String>,
}

impl Wanted {
    fn find(context: &Context, nodb: &Nodb, path: &str) -> Result<Self, Failure> {
        let mut wanted = Self {
            names: HashMap::new(),
            runs: HashSet::new(),
        };
        let found = context.find(path)?;
        let is_run = matches!(found, Found::Run(_));
        context.all(
            found,
            |_, _| Ok(()),
            |named| {
                let name = nodb.name_from_disk(&named.controller)?;
                nodb.telemetry.touch(&name);
                nodb.tell_hits(&named.controller, &name);
                if is_run && !name.relpath.contains('/') {
                    wanted.runs.insert(name.runid.clone());
                }
                wanted.names.insert(name, named);
                Ok(())
            },
        )?;
        if wanted.names.is_empty() {
            return Err(Failure::new(
                format!("no controller lies in {}", shown(path)),
                "name a .nodb file, or the directory of a run",
            ));
        }
        Ok(wanted)
    }

    fn includes(&self, name: &LockName) -> bool {
        self.runs.contains(&name.runid) || self.names.contains_key(name)
    }
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

/// Tells the lines of all controllers that `path` means; with `follow`, also those that come, until
/// nobody listens.
pub fn log(
    context: &Context,
    peer: &mut Peer<'_>,
    path: &str,
    follow: bool,
) -> Result<(), Failure> {
    let fs = context.fs()?;
    let wanted = Wanted::find(context, fs.nodb(), path)?;
    if context.mountpoint.is_none() {
        // nothing has happened here yet; what others have written can be told
        for (name, named) in &wanted.names {
            if let Some(mut file) = fs.nodb().real_log(&named.controller)? {
                for line in last_lines(&mut file)? {
                    tell(peer, name, &line)?;
                }
            }
        }
    }
    let telemetry = fs.nodb().telemetry.clone();
    // whoever listens does not keep the mount alive
    drop(fs);
    let (mut next, mut patience) = (0, Duration::ZERO);
    loop {
        let journals = telemetry.journals();
        let (lines, after) = journals.follow(|name| wanted.includes(name), next, patience);
        for (name, line) in &lines {
            tell(peer, name, line.text.trim_end_matches('\n'))?;
        }
        (next, patience) = (after, TICK);
        if !follow {
            return Ok(());
        }
        if peer.is_gone() {
            return Err(Failure::ended());
        }
        context.fs()?;
    }
}

/// A peer that does not read, such as a pager, is waited for, but not at the mount's end.
fn tell(peer: &mut Peer<'_>, name: &LockName, line: &str) -> Result<(), Failure> {
    while !peer.channel.has_room(TICK) {
        if peer.is_gone() {
            return Err(Failure::ended());
        }
    }
    peer.tell(&Answer::Log(LogLine {
        runid: name.runid.clone(),
        controller: name.relpath.clone(),
        line: line.to_owned(),
    }))
}

/// The last lines of a real log.
fn last_lines(file: &mut File) -> io::Result<Vec<String>> {
    let start = file.seek(SeekFrom::End(0))?.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let lines = BufReader::new(file).split(b'\n');
    let lines = lines.map(|line| Ok(String::from_utf8_lossy(&line?).into_owned()));
    // where it begins within a line, that is not told
    lines.skip(usize::from(start > 0)).collect()
}

/// Publishes `text` on the channel of the controller that `path` means, and writes it into its log.
pub fn publish(
    context: &Context,
    peer: &mut Peer<'_>,
    path: &str,
    text: &str,
) -> Result<(), Failure> {
    let fs = context.fs()?;
    let named = context.find_one(path)?;
    context.check_writable()?;
    Ok(fs.nodb().publish(&named.controller, text, peer.caller)?)
}

/// Tells how loud the run is to be that `path` means, or sets it first: `default` is as if nobody had.
pub fn level(
    context: &Context,
    peer: &mut Peer<'_>,
    path: &str,
    level: Option<&str>,
) -> Result<(), Failure> {
    let fs = context.fs()?;
    let runid = run_of(context, fs.nodb(), path)?;
    let store = fs.nodb().store();
    if let Some(level) = level {
        let number = match level {
            "default" => None,
            level => Some(parse(level)?.number().to_string()),
        };
        store
            .set_level(&runid, number.as_deref())
            .map_err(unreached)?;
    }
    let set = store.level(&runid).map_err(unreached)?;
    let level = set.as_deref().map(Level::from_str);
    let level = level.and_then(Result::ok).unwrap_or_default();
    peer.tell(&Answer::Level(RunLevel {
        runid,
        set,
        level: level.name().to_owned(),
    }))
}

fn unreached(error: StoreError) -> Failure {
    let hint = "'nodbfs status' says how the store is";
    Failure::new(format!("the log level cannot be reached: {error}"), hint)
}

fn parse(level: &str) -> Result<Level, Failure> {
    level.parse().map_err(|unknown| Failure {
        errno: Some(Errno::INVAL.raw_os_error()),
        ..Failure::new(
            format!("'{level}' is {unknown}"),
            "'default' goes back to INFO",
        )
    })
}

/// The run that `path` means: of a controller, or of all controllers in a directory.
fn run_of(context: &Context, nodb: &Nodb, path: &str) -> Result<String, Failure> {
    let found = context.find(path)?;
    let mut runs = HashSet::new();
    context.all(
        found,
        |_, _| Ok(()),
        |named| {
            runs.insert(nodb.name_from_disk(&named.controller)?.runid);
            Ok(())
        },
    )?;
    let count = runs.len();
    match (runs.into_iter().next(), count) {
        (Some(run), 1) => Ok(run),
        (None, _) => Err(Failure::new(
            format!("no controller lies in {}", shown(path)),
            "name a .nodb file, or the directory of a run",
        )),
        _ => Err(Failure::new(
            format!("{} holds {count} runs", shown(path)),
            "name the directory of one",
        )),
    }
}
