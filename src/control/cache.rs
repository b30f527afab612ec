//! `cache`: what the cache has of controllers, and what operators have done with it.

use std::ffi::OsString;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::find::{Found, Named};
use super::{Answer, Context, Failure, Peer};
use crate::fs::Fs;
use crate::fs::walk::Entered;
use crate::nodb::Nodb;
use crate::nodb::cached::{Entry, Look};
use crate::node::is_dump_of;

/// What is wrong is looked at again after so long, and told if it has stayed: a commit is a moment in
/// which the file is newer than its entry, and a release one in which the flag is older than the lock.
const SETTLE: Duration = Duration::from_millis(200);
const LOOKS: u32 = 10;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Show,
    /// Read from disk, rewrite entry and seal.
    Refresh,
    /// Remove entry and seal.
    Evict,
    Verify,
}

/// What is said of one controller, or of a file that should not be there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Below the source.
    pub path: String,
    /// After what was done.
    pub look: Option<Look>,
    /// What is wrong, in words; nothing if all is well.
    pub problems: Vec<String>,
}

/// Does `action` with every controller that `path` means, and answers with a row for each.
pub fn act(
    context: &Context,
    peer: &mut Peer<'_>,
    action: Action,
    path: &str,
) -> Result<(), Failure> {
    let fs = context.fs()?;
    let found = context.find(path)?;
    let mut rows = Vec::new();
    if let (Action::Verify, Found::Controller(named)) = (action, &found) {
        rows.extend(orphans_of(&fs, named)?);
    }
    let told = std::cell::RefCell::new(peer);
    let tell = |row: Row| told.borrow_mut().tell(&Answer::Cache(Box::new(row)));
    rows.into_iter().try_for_each(tell)?;
    let enter = |dir: &Arc<Entered>, names: &[OsString]| match action {
        Action::Verify => orphans(&fs, dir, names).into_iter().try_for_each(tell),
        _ => Ok(()),
    };
    context.all(found, enter, |named| tell(one(fs.nodb(), &named, action)))
}

fn one(nodb: &Nodb, named: &Named, action: Action) -> Row {
    let controller = &named.controller;
    let done = match action {
        Action::Show | Action::Verify => Ok(()),
        Action::Refresh => nodb.reload(controller),
        Action::Evict => nodb.evict(controller),
    };
    let mut problems: Vec<_> = done.err().iter().map(ToString::to_string).collect();
    let look = match action {
        Action::Verify => {
            let (look, found) = settled(nodb, named);
            problems.extend(found);
            look
        }
        _ => match nodb.look_at_cache(controller) {
            Ok(look) => Some(look),
            Err(error) if problems.is_empty() => {
                problems.push(error.to_string());
                None
            }
            Err(_) => None,
        },
    };
    Row {
        path: named.path(),
        look,
        problems,
    }
}

/// What is wrong with a controller and stays so.
fn settled(nodb: &Nodb, named: &Named) -> (Option<Look>, Vec<String>) {
    let mut last = verify(nodb, named);
    for _ in 0..LOOKS {
        if last.1.is_empty() {
            break;
        }
        thread::sleep(SETTLE);
        let again = verify(nodb, named);
        let stayed = again.1 == last.1;
        last = again;
        if stayed {
            break;
        }
    }
    last
}

fn verify(nodb: &Nodb, named: &Named) -> (Option<Look>, Vec<String>) {
    let look = match nodb.look_at_cache(&named.controller) {
        Ok(look) => look,
        Err(error) => return (None, vec![error.to_string()]),
    };
    let mut problems = Vec::new();
    if let Some(invalid) = &look.invalid {
        problems.push(format!("the file is no JSON document: {invalid}"));
    }
    let entry = match look.entry {
        Entry::None | Entry::Current => None,
        Entry::OtherSignature => Some("the entry carries another signature than the file"),
        Entry::OtherDocument => Some("the entry is another document than the file"),
        Entry::NotADocument => Some("the entry is no JSON document"),
    };
    problems.extend(entry.map(str::to_owned));
    match nodb.has_stale_flag(&look) {
        Ok(false) => {}
        Ok(true) => {
            problems.push("the run says it is locked, and nobody holds the lock".to_owned())
        }
        Err(error) => problems.push(error.to_string()),
    }
    (Some(look), problems)
}

/// Rows for the temporary files among `names` that nobody will come back for.
fn orphans(fs: &Arc<Fs>, dir: &Arc<Entered>, names: &[OsString]) -> Vec<Row> {
    let orphans = names.iter().filter_map(|name| {
        let why = fs.nodb().orphaned(&dir.place(name))?;
        let path = dir.path().unwrap_or_default().join(name);
        Some(Row {
            path: path.to_string_lossy().into_owned(),
            look: None,
            problems: vec![why],
        })
    });
    orphans.collect()
}

/// As [`orphans`], among the dumps of one controller.
fn orphans_of(fs: &Arc<Fs>, named: &Named) -> Result<Vec<Row>, Failure> {
    let mut names = named.dir.list()?;
    names.retain(|name| is_dump_of(name, &named.controller.place.name));
    Ok(orphans(fs, &named.dir, &names))
}
