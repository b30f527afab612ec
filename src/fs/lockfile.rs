//! The virtual files of locks, by name and by handle. A real file of such a name wins: then all is
//! as for any plain file.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;

use crate::error::{Errno, Error, Result};
use crate::fs::credentials::Caller;
use crate::fs::handle::Handle;
use crate::fs::inode::Place;
use crate::fs::{Entry, Fs, Open, Opened, entry};
use crate::nodb::lock::Asking;
use crate::nodb::lockfile::{LockFile, OpenLock};
use crate::node::{Node, locked_by};

impl Fs {
    /// The controller whose lock shows at `place`; `None`: this is no such name, or a real file's.
    pub(super) fn locked_at(&self, place: &Place) -> Result<Option<Place>> {
        let Some(controller) = locked_by(&place.name) else {
            return Ok(None);
        };
        match self.plain.stat(place) {
            Ok(_) => return Ok(None),
            Err(Error::Source(Errno::NOENT)) => {}
            Err(error) => return Err(error),
        }
        let controller = Place::new(&place.dir, controller);
        let kind = self.plain.stat(&controller).map(|attr| attr.file_type());
        let lockable = match kind {
            Ok(kind) => matches!(kind, FileType::RegularFile | FileType::Symlink),
            Err(_) => true,
        };
        Ok(lockable.then_some(controller))
    }

    /// EEXIST or EPERM: nothing but a lock can have this name.
    pub(super) fn is_no_lock(&self, place: &Place, caller: Caller) -> Result<()> {
        match self.locked_at(place)? {
            Some(controller) => Err(self.nodb.lock_name_refused(&controller, caller)),
            None => Ok(()),
        }
    }

    /// EPERM: the file of a lock stays under its name. ENOENT: nobody holds it.
    pub(super) fn stays(&self, place: &Place, caller: Caller) -> Result<()> {
        match self.locked_at(place)? {
            Some(controller) => {
                self.nodb.lock_file(&controller, caller)?;
                Err(Errno::PERM.into())
            }
            None => Ok(()),
        }
    }

    pub(super) fn lookup_lock(&self, controller: &Place, caller: Caller) -> Result<Entry> {
        let file = self.nodb.lock_file(controller, caller)?;
        Ok(self.lock_entry(file))
    }

    fn lock_entry(&self, file: Arc<LockFile>) -> Entry {
        let shown = entry(file.id, file.attr(), Duration::ZERO, Duration::ZERO);
        self.plain.inodes.raise(Node::Lock(file));
        shown
    }

    /// `O_CREAT`: takes the lock.
    pub(super) fn create_lock(
        &self,
        controller: &Place,
        exclusive: bool,
        asking: Asking,
    ) -> Result<(Entry, Open)> {
        let open = self.nodb.create_lock(controller, exclusive, asking)?;
        let file = open.file.clone();
        Ok((self.lock_entry(file), self.lock_opened(open)))
    }

    pub(super) fn lock_opened(&self, open: OpenLock) -> Open {
        Open {
            handle: self.handles.add(Handle::Lock(Arc::new(open)), true),
            opened: Opened::Direct,
        }
    }
}
