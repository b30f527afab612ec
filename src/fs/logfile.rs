//! The virtual logs, by name and by handle. A real file of such a name wins: then all is as for any
//! plain file.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Errno, Error, Result};
use crate::fs::credentials::Caller;
use crate::fs::handle::Handle;
use crate::fs::inode::Place;
use crate::fs::open::writes;
use crate::fs::{Entry, Fs, Open, Opened, entry};
use crate::nodb::logfile::{LogFile, OpenLog};
use crate::node::{LogName, Node, log_of};

impl Fs {
    /// The log that shows at `place`, where the source has no file. ENOENT: there is none of this name.
    /// `None`: its controller must be read to say whose it is, and the caller is not `patient`.
    pub(super) fn lookup_log(
        &self,
        place: &Place,
        caller: Caller,
        patient: bool,
    ) -> Result<Option<Entry>> {
        let (controller, named) = log_of(&place.name).ok_or(Errno::NOENT)?;
        let controller = Place::new(&place.dir, &controller);
        let attr = self.plain.stat(&controller)?;
        if !attr.is_file() {
            return Err(Errno::NOENT.into());
        }
        let controller = self.nodb.controllers.at(&controller);
        if named == LogName::Real && controller.is_logger(caller.tid) {
            return Err(Errno::NOENT.into());
        }
        if controller.name().is_none() && !patient {
            return Ok(None);
        }
        let file = self.nodb.log_file(&controller, named, attr)?;
        let shown = entry(file.id, file.attr(), Duration::ZERO, Duration::ZERO);
        self.plain.inodes.raise(Node::Log(file));
        Ok(Some(shown))
    }

    /// Opens a log; `O_TRUNC` changes nothing. ESTALE: the caller is to write the real one, and the kernel to
    /// look for that.
    pub(super) fn open_log(&self, file: Arc<LogFile>, flags: i32, caller: Caller) -> Result<Open> {
        let writes = writes(flags);
        if writes && file.named == LogName::Real {
            file.controller.expect_logger(caller.tid);
            return Err(Error::Superseded);
        }
        let log = OpenLog::new(file, writes, caller);
        Ok(Open {
            handle: self.handles.add(Handle::Log(Arc::new(log)), true),
            opened: Opened::Direct,
        })
    }

    /// Appends to an open log, wherever it was to be written.
    pub fn append(&self, handle: u64, data: &[u8], caller: Caller) -> Result<usize> {
        match self.handles.get(handle)? {
            Handle::Log(log) => self.nodb.append(&log, data, caller),
            _ => Err(Errno::BADF.into()),
        }
    }
}
