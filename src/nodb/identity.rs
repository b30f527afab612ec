//! Who a controller is: the names of its lock and its status channel (PROTOCOL.md 3). The
//! document decides; the path answers where the document does not say.

use std::path::{Component, Path, PathBuf};

use super::document::Document;

/// The directory in a run below which its child runs lie.
const PUPS: &str = "_pups";

/// A controller's names (PROTOCOL.md 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub runid: String,
    /// The controller's path within its run.
    pub relpath: String,
    /// The status channel.
    pub channel: String,
    /// What was wrong with the document's identity and what was done instead, in words.
    pub note: Option<String>,
}

impl Identity {
    /// Of the controller `file_name` in `dir`, which is absolute and named as NoDb processes name
    /// it. Without a document (a new file) the path decides alone.
    pub fn of(document: Option<&Document>, dir: &Path, file_name: &str) -> Self {
        let dir = normalized(dir);
        let mut notes = Vec::new();
        let mut parent = None;
        let mut prefix = String::new();
        if let Some(document) = document {
            for broken in &document.broken {
                notes.push(format!("{broken}: taken as not set"));
            }
            parent = document.parent_wd.as_deref().and_then(|parent_wd| {
                parent_run(parent_wd)
                    .map_err(|why| {
                        notes.push(format!("_parent_wd {parent_wd:?} {why}: the path decides"))
                    })
                    .ok()
            });
            match (&document.run_group, &document.group_name) {
                (Some(group), Some(name)) => prefix = format!("{group};;{name};;"),
                (Some(group), None) => notes.push(format!(
                    "_run_group {group:?} comes without a _group_name: no group in the runid"
                )),
                (None, _) => {}
            }
        }

        let run = match &parent {
            Some((_, run)) => run.clone(),
            None => run_by_path(&dir),
        };
        let sub = parent.and_then(|(parent_wd, _)| {
            let sub = dir.strip_prefix(&parent_wd);
            if sub.is_err() {
                notes.push(format!(
                    "the directory {dir:?} does not lie below _parent_wd {parent_wd:?}: relpath is the file name alone"
                ));
            }
            // In the parent itself nothing lies between it and the file.
            sub.ok().filter(|sub| *sub != Path::new("")).map(lossy)
        });

        let runid = prefix + &run;
        let in_omni = sub
            .as_ref()
            .is_some_and(|sub| sub.starts_with("_pups/omni/"));
        let channel = match in_omni {
            true => "omni",
            false => file_name.strip_suffix(".nodb").unwrap_or(file_name),
        };
        Self {
            channel: format!("{runid}:{channel}"),
            runid,
            relpath: match sub {
                Some(sub) => format!("{sub}/{file_name}"),
                None => file_name.to_owned(),
            },
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }
}

/// The run directory that `_parent_wd` names, and the run's name; or why it names none.
fn parent_run(parent_wd: &str) -> Result<(PathBuf, String), &'static str> {
    let path = Path::new(parent_wd);
    if !path.is_absolute() {
        // A NoDb process would complete it with its working directory, which nobody else knows.
        return Err("is relative");
    }
    let path = normalized(path);
    let run = path.file_name().map(lossy).ok_or("names no run")?;
    Ok((path, run))
}

/// The path segment before `_pups` if there is one, else the last.
fn run_by_path(dir: &Path) -> String {
    let segments: Vec<_> = dir.iter().skip(1).collect();
    let above_pups = segments
        .windows(2)
        .find(|pair| pair[1] == PUPS)
        .map(|pair| pair[0]);
    above_pups
        .or(segments.last().copied())
        .map(lossy)
        .unwrap_or_default()
}

/// As `os.path.abspath` does it: by the text alone, no symlink is resolved.
fn normalized(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// Names of locks and channels are text; a name that is not keeps its other characters.
fn lossy(name: impl AsRef<std::ffi::OsStr>) -> String {
    name.as_ref().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
