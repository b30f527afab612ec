//! Operations on names. Where a controller's name is concerned they go through its locks and
//! commits, and may wait for those.

use std::ffi::OsStr;

use rustix::fs::RenameFlags;

use crate::error::{Errno, Error, Result};
use crate::fs::credentials::Caller;
use crate::fs::inode::Place;
use crate::fs::{Entry, Fs};
use crate::nodb::lock::Asking;
use crate::node::{Node, is_controller, is_dump_of, locked_by};

impl Fs {
    /// Looks a name up if that needs no waiting; `None`: ask [`Fs::lookup`]. A lock's name may wait, a
    /// controller's only for a thread on its second try, and a log's if nobody knows yet whose it is.
    pub fn lookup_at_once(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
    ) -> Option<Result<Entry>> {
        if !is_controller(name) {
            return match locked_by(name) {
                Some(_) => None,
                None => self.look_up(parent, name, caller, false).transpose(),
            };
        }
        let waits = self.place(parent, name).is_ok_and(|place| {
            let known = self.nodb.controllers.get(&place);
            known.is_some_and(|known| known.is_returning(caller.tid))
        });
        (!waits).then(|| self.lookup(parent, name, caller))
    }

    /// What a name leads to: for a writer on its way, its own staging.
    pub fn lookup(&self, parent: u64, name: &OsStr, caller: Caller) -> Result<Entry> {
        let found = self.look_up(parent, name, caller, true)?;
        Ok(found.ok_or(Errno::AGAIN)?)
    }

    /// `None`: it cannot be said without waiting, and the caller is not `patient`.
    fn look_up(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        patient: bool,
    ) -> Result<Option<Entry>> {
        let place = self.place(parent, name)?;
        if is_controller(name) {
            match self.lookup_controller(&place, caller) {
                // no regular file: a directory or a symlink of that name
                Err(Error::Superseded) => {}
                found => return found.map(Some),
            }
        }
        if let Some(controller) = self.locked_at(&place)? {
            return self.lookup_lock(&controller, caller).map(Some);
        }
        match self.plain.lookup(&place) {
            Ok((inode, attr)) => Ok(Some(self.plain_entry(name, &inode, attr))),
            Err(Error::Source(Errno::NOENT)) => self.lookup_log(&place, caller, patient),
            Err(error) => Err(error),
        }
    }

    fn lookup_controller(&self, place: &Place, caller: Caller) -> Result<Entry> {
        let known = self.nodb.controllers.get(place);
        if let Some(staging) = known
            .as_ref()
            .and_then(|known| known.staging_for(caller.tid))
        {
            return Ok(self.staging_entry(staging));
        }
        let controller = match known {
            Some(known) => known,
            None => {
                // names that are not there are asked for often and leave nothing behind
                self.plain.stat(place)?;
                self.nodb.controllers.at(place)
            }
        };
        let name_ttl = self.nodb.name_ttl(&controller);
        let generation = if controller.is_returning(caller.tid) {
            self.nodb.look_again(&controller, caller.tid)?
        } else {
            self.nodb.look(&controller)?
        };
        Ok(self.generation_entry(generation, name_ttl))
    }

    /// Makes a file of any type but a directory or a symlink.
    pub fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u64,
        caller: Caller,
    ) -> Result<Entry> {
        let place = self.place(parent, name)?;
        let regular = matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG);
        if regular && is_controller(name) {
            return Err(self.nodb.refuse_empty(&place));
        }
        self.is_no_lock(&place, caller)?;
        let (inode, attr) = self.plain.mknod(&place, mode, umask, rdev, caller)?;
        Ok(self.plain_entry(name, &inode, attr))
    }

    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: u64, name: &OsStr, caller: Caller) -> Result<()> {
        let place = self.place(parent, name)?;
        if is_controller(name) {
            let asking = Asking::by(caller);
            return self.nodb.unlink(&self.nodb.controllers.at(&place), asking);
        }
        if let Some(controller) = self.locked_at(&place)? {
            return self.nodb.remove_lock(&controller, caller);
        }
        self.plain.unlink(&place)
    }

    /// `renameat2`.
    pub fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
        caller: Caller,
    ) -> Result<()> {
        let dump = from.0 == to.0 && is_dump_of(from.1, to.1);
        let (from, to) = (self.place(from.0, from.1)?, self.place(to.0, to.1)?);
        self.stays(&from, caller)?;
        self.is_no_lock(&to, caller)?;
        if is_controller(&from.name) || is_controller(&to.name) {
            let asking = Asking {
                dump,
                ..Asking::by(caller)
            };
            return self.nodb.rename(&from, &to, flags, asking);
        }
        let known = [&from, &to].map(|place| self.plain.inodes.known_at(place));
        let moved: Vec<_> = [&from, &to]
            .into_iter()
            .zip(&known)
            .filter_map(|(place, inode)| self.nodb.before_move(place, inode.as_ref()?))
            .collect();
        self.plain.rename_known(&from, &to, flags, known)?;
        moved.into_iter().for_each(|dir| self.nodb.after_move(dir));
        Ok(())
    }

    /// `link`: the node `id` gets one more name.
    pub fn link(&self, id: u64, parent: u64, name: &OsStr, caller: Caller) -> Result<Entry> {
        let place = self.place(parent, name)?;
        self.is_no_lock(&place, caller)?;
        let asking = Asking::by(caller);
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) if is_controller(name) && self.plain.getattr(&inode)?.is_file() => {
                let lower = self.plain.inodes.fd(&inode)?;
                self.nodb.link(&lower, &place, asking)?;
            }
            Node::Plain(inode) => {
                self.plain.link(&inode, &place)?;
                // counted by the lookup below
                self.forget(inode.id, 1);
            }
            Node::Generation(generation) if !generation.has_departed() => {
                let linked = &generation.controller.place;
                let lower = self.nodb.open_lower(linked)?;
                if is_controller(name) {
                    self.nodb.link(&lower, &place, asking)?;
                } else {
                    self.nodb.link_lower(&lower, &place)?;
                }
                // one link more, of which the kernel learns at its next look
                self.nodb.notify(linked, true);
            }
            Node::Generation(_) | Node::Staging(_) => return Err(Error::Superseded),
            Node::Lock(_) | Node::Log(_) => return Err(Errno::PERM.into()),
        }
        self.lookup(parent, name, caller)
    }
}
