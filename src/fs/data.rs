//! What is in open files: reading, writing, and finding one's way.

use crate::error::{Errno, Result};
use crate::fs::change::kill_privileges;
use crate::fs::credentials::Caller;
use crate::fs::handle::Handle;
use crate::fs::{Fs, plain};

impl Fs {
    /// Reads of an open file at most `size` bytes.
    pub fn read(&self, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self.handles.get(handle)? {
            Handle::File(fd) => plain::read(&fd, offset, size),
            Handle::Reader(payload) => payload.read(offset, size),
            Handle::Writer(writer) => Ok(writer.read(offset, size)),
            Handle::Lock(lock) => Ok(lock.read(offset, size)),
            Handle::Log(log) => Ok(log.read(offset, size)),
            Handle::Dir(_) => Err(Errno::ISDIR.into()),
        }
    }

    /// Writes to an open file. `unprivileged`: by this caller, who leaves no set-uid bits behind. `None`:
    /// it is a log, to which [`Fs::append`] writes, and that may wait.
    pub fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        unprivileged: Option<Caller>,
    ) -> Option<Result<usize>> {
        let written = match self.handles.get(handle) {
            Ok(Handle::Log(_)) => return None,
            Ok(Handle::File(fd)) => plain::write(&fd, offset, data).and_then(|written| {
                if let Some(caller) = unprivileged {
                    kill_privileges(&*fd, caller)?;
                }
                Ok(written)
            }),
            Ok(Handle::Writer(writer)) => {
                let at = (!writer.append).then_some(offset);
                let max = self.nodb.max_payload();
                let written = writer.staging.draft().write(at, data, max);
                let refused = |error: &_| self.nodb.refused(&writer.staging.controller, error);
                written.inspect_err(refused).map(|()| data.len())
            }
            Ok(Handle::Lock(lock)) => {
                let written = self.nodb.write_lock(&lock, offset, data);
                written.map(|()| data.len())
            }
            Ok(Handle::Reader(_) | Handle::Dir(_)) => Err(Errno::BADF.into()),
            Err(error) => Err(error),
        };
        Some(written)
    }

    /// `fallocate`.
    pub fn fallocate(
        &self,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
        caller: Caller,
    ) -> Result<()> {
        match self.handles.get(handle)? {
            Handle::File(fd) => plain::allocate(&fd, mode, offset, length, caller),
            Handle::Writer(writer) => {
                let mut draft = writer.staging.draft();
                let end = offset.saturating_add(length);
                match mode & !libc::FALLOC_FL_KEEP_SIZE {
                    0 => {}
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                        draft.zero(offset, length)
                    }
                    _ => return Err(Errno::OPNOTSUPP.into()),
                }
                if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > draft.content.len() as u64 {
                    draft.resize(end, self.nodb.max_payload())?;
                }
                Ok(())
            }
            Handle::Lock(_) | Handle::Log(_) => Err(Errno::OPNOTSUPP.into()),
            Handle::Reader(_) | Handle::Dir(_) => Err(Errno::BADF.into()),
        }
    }

    /// `lseek` with `SEEK_DATA` or `SEEK_HOLE`: neither a controller nor a lock has holes.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> Result<u64> {
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let id_size = match self.handles.get(handle)? {
            Handle::File(fd) => return plain::seek_to(&fd, offset, whence),
            Handle::Reader(payload) => payload.size()?,
            Handle::Writer(writer) => writer.staging.draft().content.len() as u64,
            Handle::Lock(lock) => lock.size(),
            Handle::Log(log) => log.size(),
            Handle::Dir(_) => return Err(Errno::ISDIR.into()),
        };
        match whence {
            _ if offset >= id_size => Err(Errno::NXIO.into()),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(id_size),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// `copy_file_range` between plain files. EXDEV otherwise: the kernel then copies by itself.
    pub fn copy_file_range(
        &self,
        from: (u64, u64),
        to: (u64, u64),
        length: usize,
        caller: Caller,
    ) -> Result<usize> {
        match (self.handles.get(from.0)?, self.handles.get(to.0)?) {
            (Handle::File(source), Handle::File(target)) => {
                plain::copy(&source, from.1, &target, to.1, length, caller)
            }
            _ => Err(Errno::XDEV.into()),
        }
    }
}
