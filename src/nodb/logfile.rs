//! `x.nodb.log`, a virtual file with what happened to `x.nodb`, and the same under the name `x.log`
//! where there is none on disk. It grows at its end; what is appended to it is published
//! ([`append`](crate::nodb::append)).

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Errno, Result};
use crate::fs::attr::Attr;
use crate::fs::change::SetAttr;
use crate::fs::credentials::Caller;
use crate::nodb::Nodb;
use crate::nodb::append::Pending;
use crate::nodb::controller::Controller;
use crate::node::LogName;
use crate::telemetry::journal::{Reading, View};

/// So much may be forgotten of a file before its name leads to a new one, in bytes: it is to be read
/// without rows of dots.
const FORGOTTEN: u64 = 128 << 10;
/// The same for a file that somebody has open, to whom a new one would look like a rotated log.
const FORGOTTEN_OPEN: u64 = 16 << 20;

/// The log of a controller under one of its names, as an inode of the kernel's.
#[derive(Debug)]
pub struct LogFile {
    /// The number by which the kernel knows it.
    pub id: u64,
    pub controller: Arc<Controller>,
    /// Under which name.
    pub named: LogName,
    view: View,
    /// The controller's, for who may read it may read this, and who may write it may append.
    owner: Mutex<Attr>,
    open: AtomicUsize,
}

/// The log files of one controller that the kernel knows.
#[derive(Debug, Default)]
pub struct LogFiles([Weak<LogFile>; 2]);

impl LogFile {
    pub fn attr(&self) -> Attr {
        let owner = *self.owner.lock();
        let (size, changed) = (self.view.size(), self.view.journal.changed());
        let changed = changed.unwrap_or(owner.mtime);
        Attr {
            ident: crate::fs::attr::Ident {
                ino: self.id,
                ..owner.ident
            },
            size,
            blocks: size.div_ceil(512),
            mode: libc::S_IFREG | owner.mode & 0o666,
            nlink: 1,
            atime: changed,
            mtime: changed,
            ctime: changed,
            ..owner
        }
    }

    /// Whether it still shows what its name is to lead to.
    fn is_good(&self, view: &View) -> bool {
        let limit = match self.open.load(Relaxed) {
            0 => FORGOTTEN,
            _ => FORGOTTEN_OPEN,
        };
        Arc::ptr_eq(&self.view.journal, &view.journal) && self.view.forgotten() < limit
    }
}

/// An open file description of a log.
#[derive(Debug)]
pub struct OpenLog {
    pub file: Arc<LogFile>,
    pub caller: Caller,
    /// Whether it may be appended to.
    pub writes: bool,
    reading: Reading,
    pub pending: Mutex<Pending>,
}

impl OpenLog {
    pub fn new(file: Arc<LogFile>, writes: bool, caller: Caller) -> Self {
        file.open.fetch_add(1, Relaxed);
        Self {
            file,
            caller,
            writes,
            reading: Reading::default(),
            pending: Mutex::default(),
        }
    }

    /// At most `size` bytes from `offset` on.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        self.reading.read(&self.file.view, offset, size)
    }

    /// In bytes, now.
    pub fn size(&self) -> u64 {
        self.file.view.size()
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        self.file.open.fetch_sub(1, Relaxed);
    }
}

impl Nodb {
    /// The log of a controller that lies on disk with these attributes. Its run is followed from now on.
    pub fn log_file(
        &self,
        controller: &Arc<Controller>,
        named: LogName,
        attr: Attr,
    ) -> Result<Arc<LogFile>> {
        // looking a name up never waits for the store
        let name = self.name_from_disk(controller)?;
        let journal = self.telemetry.touch(&name);
        self.tell_hits(controller, &name);
        let view = View::new(journal);
        let mut files = controller.log_files();
        let known = &mut files.0[named as usize];
        if let Some(file) = known.upgrade().filter(|file| file.is_good(&view)) {
            *file.owner.lock() = attr;
            return Ok(file);
        }
        let file = Arc::new(LogFile {
            id: self.plain.inodes.fresh_id(),
            controller: controller.clone(),
            named,
            view,
            owner: Mutex::new(attr),
            open: AtomicUsize::new(0),
        });
        *known = Arc::downgrade(&file);
        Ok(file)
    }

    /// Changes attributes of a log: its size and times stay what they are, and mode and owner are the
    /// controller's.
    pub fn set_log(&self, file: &LogFile, set: &SetAttr) -> Result<Attr> {
        match (file.named, set.mode.or(set.uid).or(set.gid)) {
            (LogName::Virtual, None) => Ok(file.attr()),
            (LogName::Virtual, Some(_)) => Err(Errno::PERM.into()),
            // there is no such file on disk
            (LogName::Real, _) => Err(Errno::NOENT.into()),
        }
    }
}
