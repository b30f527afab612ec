//! A read-modify-write under the lock, for those who do not come through the kernel.

use std::sync::Arc;

use crate::error::Result;
use crate::fs::change::SetAttr;
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::commit::Job;
use crate::nodb::controller::Controller;
use crate::nodb::lock::{Asking, Leases};
use crate::nodb::read::Loaded;
use crate::nodb::rejected::Refusal;
use crate::nodb::staging::Snapshot;
use crate::store::Meanwhile;

/// A controller that is locked, and what it was when it was. The lock is kept alive until this is
/// committed or dropped, for at most `--max-hold`.
#[derive(Debug)]
pub struct Transaction<'a> {
    nodb: &'a Nodb,
    controller: &'a Arc<Controller>,
    asking: Asking,
    leases: Leases,
    base: Loaded,
}

impl Nodb {
    /// Locks the controller and reads it.
    ///
    /// # Errors
    /// EBUSY: somebody else holds the lock, and the wait is over; ENOLCK; EROFS: the run is marked
    /// `READONLY`; whatever reading it gives.
    pub fn begin<'a>(
        &'a self,
        controller: &'a Arc<Controller>,
        asking: Asking,
    ) -> Result<Transaction<'a>> {
        // whether it exists is known before anybody's lock is waited for
        self.load(controller)?;
        let mut leases = self
            .lock(&[controller], asking, Meanwhile::default())
            .inspect_err(|error| self.refused(controller, error))?;
        match self.load(controller) {
            Ok(base) => Ok(Transaction {
                nodb: self,
                controller,
                asking,
                leases,
                base,
            }),
            Err(error) => {
                self.locker.release(&mut leases, false);
                Err(error)
            }
        }
    }
}

impl Transaction<'_> {
    /// What the controller held when it was locked.
    pub fn content(&self) -> Result<&Arc<Vec<u8>>> {
        self.base.bytes()
    }

    /// Makes `content` the current generation and gives the lock back. Refused content is kept.
    ///
    /// # Errors
    /// Those of every commit (DESIGN.md).
    pub fn commit(mut self, content: Vec<u8>) -> Result<()> {
        let content = Arc::new(content);
        let snapshot = Snapshot {
            base: Some(self.base.attr),
            content: content.clone(),
            set: SetAttr::default(),
        };
        let job = Job {
            controller: self.controller,
            snapshot: &snapshot,
            mode: self.base.attr.mode,
            asking: self.asking,
        };
        let committed = self.nodb.commit(&mut self.leases, &job, None);
        if let Err(error) = &committed {
            self.nodb.refused(self.controller, error);
            let maker = caller::process_of(self.asking.caller.tid).unwrap_or(0);
            let refusal = Refusal::of(error, maker, self.asking.caller);
            self.nodb.keep_rejected(self.controller, &content, refusal);
        }
        committed?;
        // no open has made the kernel forget the name
        self.nodb.notify(&self.controller.place, false);
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.nodb.locker.release(&mut self.leases, false);
    }
}
