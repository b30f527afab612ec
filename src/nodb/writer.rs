//! Opening a controller for writing: how a writer comes to its staging, and to the lock.

use std::sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::commit::lock_of;
use crate::nodb::controller::Controller;
use crate::nodb::lock::{Asking, Leases};
use crate::nodb::read::Loaded;
use crate::nodb::staging::{Staging, newborn};
use crate::step::{self, Step};
use crate::store::{LockName, Meanwhile};

impl Nodb {
    /// Prepares a staging for a writer and sends the kernel back to look the name up again, where it
    /// will find it: the answer is always an error, ESTALE if all is well. The lock is asked for while
    /// the kernel is on its way.
    pub fn open_writer(
        &self,
        controller: &Arc<Controller>,
        flags: i32,
        asking: Asking,
        answer: impl FnOnce(Error),
    ) {
        let (staging, lock) = match self.stage(controller, flags, asking) {
            Ok(staged) => staged,
            // gone meanwhile: the kernel looks again, and creates it if the writer wants that
            Err(Error::Source(Errno::NOENT)) => {
                controller.expect_reader(asking.caller.tid);
                return answer(Error::Superseded);
            }
            Err(error) => {
                self.refused(controller, &error);
                return answer(error);
            }
        };
        // whoever comes back to the staging before the lock's answer waits for it here
        let mut leases = staging.committing();
        controller.expect_writer(asking.caller.tid, staging.clone());
        answer(Error::Superseded);
        let covered =
            self.locker
                .try_cover(&mut leases, controller, &lock, asking, Meanwhile::default());
        staging.draft().unlocked = covered.err();
    }

    fn stage(
        &self,
        controller: &Arc<Controller>,
        flags: i32,
        asking: Asking,
    ) -> Result<(Arc<Staging>, LockName)> {
        self.writable(&controller.place)?;
        let loaded = self.load(controller)?;
        let identity = self.identify(loaded.payload.document(), &controller.place)?;
        self.identified(controller, &lock_of(&identity));
        let staging = Staging::new(
            self.plain.inodes.fresh_id(),
            controller.clone(),
            caller::process_of(asking.caller.tid).unwrap_or(0),
            Some(loaded.attr),
            loaded.attr,
            content_for(flags, &loaded)?,
        );
        Ok((controller.staged(staging), lock_of(&identity)))
    }

    /// The kernel has found the staging: the writer may begin once it has the lock.
    ///
    /// Errors: those of [`Locker::cover`](crate::nodb::lock::Locker::cover); ESTALE: the controller is
    /// gone.
    pub fn enter(&self, staging: &Arc<Staging>, flags: i32, asking: Asking) -> Result<()> {
        staging.opened();
        staging.controller.arrived(staging);
        let mut leases = staging.committing();
        let entered = self.enter_locked(staging, &mut leases, flags, asking);
        if let Err(error) = &entered {
            self.refused(&staging.controller, error);
            if staging.closed() {
                self.locker.release(&mut leases, false);
            }
        }
        entered
    }

    fn enter_locked(
        &self,
        staging: &Staging,
        leases: &mut Leases,
        flags: i32,
        asking: Asking,
    ) -> Result<()> {
        let controller = &staging.controller;
        if let Some(error) = staging.draft().unlocked.take() {
            return Err(error);
        }
        if leases.is_empty() {
            let lock = lock_of(&self.identity_now(controller)?);
            self.locker.cover(leases, controller, &lock, asking)?;
        }
        step::at(Step::Load)?;
        let loaded = match self.load(controller) {
            Err(Error::Source(Errno::NOENT)) => return Err(Error::Superseded),
            loaded => loaded?,
        };
        // whoever had the lock before may have committed
        let mut draft = staging.draft();
        if draft.base.map(|base| base.stamp()) != Some(loaded.attr.stamp()) {
            draft.rebase(loaded.attr, content_for(flags, &loaded)?);
        }
        Ok(())
    }

    /// A controller that does not exist: a staging that becomes one at its first commit. The lock
    /// is taken then, for the kernel holds the directory until this is answered.
    pub fn create(
        &self,
        controller: &Arc<Controller>,
        mode: u32,
        flags: i32,
        asking: Asking,
    ) -> Result<Arc<Staging>> {
        match self.plain.stat(&controller.place) {
            Ok(_) if flags & libc::O_EXCL != 0 => return Err(Errno::EXIST.into()),
            Ok(_) => {
                let mut answered = Error::Superseded;
                self.open_writer(controller, flags, asking, |answer| answered = answer);
                return Err(answered);
            }
            Err(Error::Source(Errno::NOENT)) => {}
            Err(error) => return Err(error),
        }
        self.writable(&controller.place)
            .inspect_err(|error| self.refused(controller, error))?;
        let caller = asking.caller;
        let tgid = caller::process_of(caller.tid).unwrap_or(0);
        let id = self.plain.inodes.fresh_id();
        let attr = newborn(id, mode, caller.uid, caller.gid);
        let content = Arc::default();
        let staging = Staging::new(id, controller.clone(), tgid, None, attr, content);
        Ok(controller.staged(staging))
    }
}

/// What a writer with these flags starts from.
fn content_for(flags: i32, loaded: &Loaded) -> Result<Arc<Vec<u8>>> {
    if flags & libc::O_TRUNC != 0 {
        Ok(Arc::default())
    } else {
        loaded.bytes().cloned()
    }
}
