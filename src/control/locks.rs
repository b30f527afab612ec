//! `locks`, `lock` and `unlock`: who holds the locks of controllers, and how they are held and given
//! back by hand.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::find::{Found, Named};
use super::{Answer, Context, Failure, Peer, Request};
use crate::error::{Errno, Error};
use crate::fs::Fs;
use crate::fs::attr::unix_nanos;
use crate::fs::walk::Entered;
use crate::nodb::lock::Asking;
use crate::nodb::seen::{Known, Seen};
use crate::nodb::session_lock::Said;
use crate::node::is_controller;

/// A lock that is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub runid: String,
    pub relpath: String,
    /// `<hostname>:<pid>` of the holder, as it sees itself.
    pub owner: Option<String>,
    /// Seconds since it was taken, if that is stored.
    pub age: Option<u64>,
    /// Seconds after which it ends unless it is renewed; none if it does not end by itself.
    pub seconds_left: Option<u64>,
    #[serde(flatten)]
    pub known: Known,
}

impl From<&Seen> for Row {
    fn from(seen: &Seen) -> Self {
        let age = seen.holder.acquired_at().map(|since| {
            let age = unix_nanos(SystemTime::now()) - since;
            u64::try_from(age / 1_000_000_000).unwrap_or(0)
        });
        Self {
            runid: seen.name.runid.clone(),
            relpath: seen.name.relpath.clone(),
            owner: seen.holder.owner.clone(),
            age,
            seconds_left: seen.holder.left.map(|left| left.as_secs()),
            known: seen.known(),
        }
    }
}

/// Answers with a row for each lock that is held: of the controller or of the run that `path` means,
/// or of all if it is the source's root and that is no run.
pub fn list(context: &Context, peer: &mut Peer<'_>, path: &str) -> Result<(), Failure> {
    let fs = context.fs()?;
    let wanted: Box<dyn Fn(&Seen) -> bool> = match context.find(path)? {
        Found::Controller(named) => {
            let name = fs.nodb().lock_name(&named.controller.place)?;
            Box::new(move |seen| seen.name == name)
        }
        Found::Run(dir) => match runs_in(&fs, &dir)? {
            runs if !runs.is_empty() => Box::new(move |seen| runs.contains(&seen.name.runid)),
            _ if dir.path()?.as_os_str().is_empty() => Box::new(|_| true),
            _ => {
                return Err(Failure::new(
                    format!("{path} is no run: no .nodb file lies in it"),
                    "name a run, or the mount point of a tree of runs for all locks",
                ));
            }
        },
    };
    for seen in fs
        .nodb()
        .see_all_locks()?
        .iter()
        .filter(|seen| wanted(seen))
    {
        peer.tell(&Answer::Lock(Box::new(seen.into())))?;
    }
    Ok(())
}

/// The runs to which the controllers in a directory belong: one, but for odd documents.
fn runs_in(fs: &Fs, dir: &Entered) -> Result<BTreeSet<String>, Failure> {
    let mut runs = BTreeSet::new();
    for name in dir.list()?.iter().filter(|name| is_controller(name)) {
        match fs.nodb().lock_name(&dir.place(name)) {
            Ok(lock) => drop(runs.insert(lock.runid)),
            // gone since the directory was listed, or a directory itself
            Err(Error::Source(Errno::NOENT)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(runs)
}

/// Locks the controller for the peer and all it starts, until it says [`Request::Release`] or hangs up.
pub fn lock(
    context: &Context,
    peer: &mut Peer<'_>,
    path: &str,
    ttl: Option<f64>,
    label: Option<String>,
) -> Result<(), Failure> {
    let named = writable(context, path)?;
    let fs = context.fs()?;
    let ttl = ttl.and_then(|ttl| Duration::try_from_secs_f64(ttl).ok());
    let said = Said::new(label, ttl);
    let asking = Asking::by(peer.caller);
    let place = &named.controller.place;
    let lock = fs.nodb().lock_for_command(place, said, asking)?;
    let told = peer.tell(&Answer::Locked);
    let heard = told.and_then(|()| peer.hear());
    let released = fs.nodb().unlock_for_command(&lock);
    match heard? {
        (Request::Release, _) => peer.tell(&Answer::Released(released?)),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Gives back a lock that this mount took for the peer, or for anybody if that is root; with a reason
/// it takes away whatever lock there is. Answers with what it was.
pub fn unlock(
    context: &Context,
    peer: &mut Peer<'_>,
    path: &str,
    force: Option<String>,
) -> Result<(), Failure> {
    let named = writable(context, path)?;
    let (fs, place) = (context.fs()?, &named.controller.place);
    let nobody = |error| match error {
        Error::Source(Errno::NOENT) => Failure::new(
            format!("nobody holds the lock of {path}"),
            "'nodbfs locks' shows the locks that are held",
        ),
        error @ Error::NotOwnLock { .. } => Failure {
            hint: Some(
                "ask who holds it, or say --force --reason TEXT to take it away all the same"
                    .to_owned(),
            ),
            ..error.into()
        },
        error => error.into(),
    };
    let seen = match force {
        Some(reason) => fs.nodb().force_lock(place, &reason, peer.caller),
        None => fs
            .nodb()
            .see_lock(place, peer.caller)
            .and_then(|seen| fs.nodb().remove_lock(place, peer.caller).map(|()| seen)),
    };
    let seen = seen.map_err(nobody)?;
    peer.tell(&Answer::Lock(Box::new((&seen).into())))
}

fn writable(context: &Context, path: &str) -> Result<Named, Failure> {
    context.check_writable()?;
    context.find_one(path)
}
