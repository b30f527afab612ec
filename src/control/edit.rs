//! `edit`: a read-modify-write under the lock. The asking end changes the document; this end locks,
//! hands it out, and commits what comes back.

use super::{Answer, Context, Failure, Peer, Request};
use crate::error::Errno;
use crate::nodb::lock::Asking;

/// Locks the controller, sends its document, and commits the one that comes back as
/// [`Request::Commit`]; a peer that hangs up wants none, and one that the mount's end overtakes is told.
pub fn edit(context: &Context, peer: &mut Peer<'_>, path: &str) -> Result<(), Failure> {
    let fs = context.fs()?;
    context.check_writable()?;
    let named = context.find_one(path)?;
    let transaction = fs
        .nodb()
        .begin(&named.controller, Asking::by(peer.caller))?;
    let content = transaction.content()?.clone();
    peer.tell_with(&Answer::Locked, &content)?;
    match peer.hear()? {
        (Request::Commit, body) => {
            // no open file has kept it from being remounted meanwhile
            context.check_writable()?;
            Ok(transaction.commit(body)?)
        }
        _ => Err(Errno::INVAL.into()),
    }
}
