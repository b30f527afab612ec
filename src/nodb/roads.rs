//! The other roads of a write: everything that changes where a controller's name leads without
//! an open writer's close, each under the lock and, where content arrives, through the commit.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat};
use tracing::warn;

use crate::error::{Errno, Error, InStep, Result};
use crate::fs::attr::Attr;
use crate::fs::change::SetAttr;
use crate::fs::inode::{Place, reopen_path};
use crate::fs::plain;
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::commit::{Job, lock_of};
use crate::nodb::controller::Controller;
use crate::nodb::document::Document;
use crate::nodb::identity::Identity;
use crate::nodb::leftovers::temporary_name;
use crate::nodb::lock::{Asking, Leases};
use crate::nodb::publish::{Candidate, is_unsupported, sync_dir};
use crate::nodb::rejected::Refusal;
use crate::nodb::staging::Snapshot;
use crate::node::is_controller;
use crate::step::{self, Step};
use crate::store::Meanwhile;
use crate::telemetry::event::Event;

impl Nodb {
    /// Whose lock guards the controller as it is now. A file that is no document is known by its path.
    pub fn identity_now(&self, controller: &Controller) -> Result<Identity> {
        let loaded = self.load(controller)?;
        let identity = self.identify(loaded.payload.document(), &controller.place)?;
        self.identified(controller, &lock_of(&identity));
        Ok(identity)
    }

    /// Runs `change` under the locks of all `controllers` that exist.
    fn locked<T>(
        &self,
        controllers: &[&Arc<Controller>],
        asking: Asking,
        change: impl FnOnce(&mut Leases) -> Result<T>,
    ) -> Result<T> {
        let mut leases = self.lock(controllers, asking, Meanwhile::default())?;
        let _changing: Vec<_> = controllers.iter().map(|one| one.changing()).collect();
        let changed = change(&mut leases);
        self.unlock(controllers, leases, changed)
    }

    /// Takes the locks of all `controllers` that exist, in one order. `meanwhile` is done while the
    /// store is asked for the first.
    pub fn lock(
        &self,
        controllers: &[&Arc<Controller>],
        asking: Asking,
        mut meanwhile: Meanwhile<'_>,
    ) -> Result<Leases> {
        let mut names = Vec::new();
        for controller in controllers {
            self.writable(&controller.place)?;
            match self.identity_now(controller) {
                Ok(identity) => names.push((lock_of(&identity), *controller)),
                Err(Error::Source(Errno::NOENT) | Error::Superseded) => {}
                Err(error) => return Err(error),
            }
        }
        names.sort_by(|one, other| one.0.cmp(&other.0));
        let mut leases = Leases::default();
        for (name, controller) in names {
            let meanwhile = std::mem::take(&mut meanwhile);
            let covered =
                self.locker
                    .cover_while(&mut leases, controller, &name, asking, meanwhile);
            if let Err(error) = covered {
                return self.unlock(controllers, leases, Err(error));
            }
        }
        Ok(leases)
    }

    /// Releases the locks after a change that succeeded, or was refused.
    fn unlock<T>(
        &self,
        controllers: &[&Arc<Controller>],
        mut leases: Leases,
        changed: Result<T>,
    ) -> Result<T> {
        if let (Err(error), Some(controller)) = (&changed, controllers.last()) {
            self.refused(controller, error);
        }
        self.locker.release(&mut leases, changed.is_ok());
        if changed.is_ok() {
            step::passed(Step::Answer);
        }
        changed
    }

    /// `unlink` of a controller.
    pub fn unlink(&self, controller: &Arc<Controller>, asking: Asking) -> Result<()> {
        let place = &controller.place;
        if !self.plain.stat(place)?.is_file() {
            return self.plain.unlink(place);
        }
        self.locked(&[controller], asking, |leases| {
            let away = Place::new(&place.dir, OsStr::new(&temporary_name()));
            self.rename_fenced(leases, place, &away, RenameFlags::NOREPLACE)?;
            let reached = step::at(Step::RemoveUnlinked).map_err(Error::from);
            left_behind(&away, reached.and_then(|()| self.plain.unlink(&away)));
            self.vanished(controller)
        })
    }

    /// The name leads nowhere: neither does its entry.
    fn vanished(&self, controller: &Controller) -> Result<()> {
        controller.supersede();
        self.note(controller, &Event::Removed);
        self.void_entries(controller)
    }

    /// `renameat2` where at least one of the names is a controller's.
    pub fn rename(
        &self,
        from: &Place,
        to: &Place,
        flags: RenameFlags,
        asking: Asking,
    ) -> Result<()> {
        let source = self.plain.stat(from)?;
        let target = match self.plain.stat(to) {
            Ok(attr) => Some(attr),
            Err(Error::Source(Errno::NOENT)) => None,
            Err(error) => return Err(error),
        };
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::EXIST.into());
        }
        let one_file = target.is_some_and(|target| target.ident == source.ident);
        if flags.contains(RenameFlags::EXCHANGE) && !one_file {
            return self.exchange(from, to, asking);
        }
        if one_file || target.is_some_and(|target| target.is_dir()) {
            return self.plain.rename(from, to, flags);
        }
        if is_controller(&to.name) && source.is_file() {
            let replaces = !flags.contains(RenameFlags::NOREPLACE);
            return self.arrive(from, to, replaces, asking);
        }
        let concerned = self.concerned([from, to]);
        let concerned: Vec<_> = concerned.iter().collect();
        self.locked(&concerned, asking, |leases| {
            self.rename_fenced(leases, from, to, flags)?;
            self.departed(from, to);
            concerned
                .iter()
                .try_for_each(|controller| self.vanished(controller))
        })?;
        concerned
            .iter()
            .for_each(|controller| self.notify(&controller.place, true));
        self.notify(to, true);
        Ok(())
    }

    /// Renames exactly the files that are there while the leases are sure: as with a publication,
    /// a daemon that was stopped in between takes back what it should not have moved.
    fn rename_fenced(
        &self,
        leases: &Leases,
        from: &Place,
        to: &Place,
        flags: RenameFlags,
    ) -> Result<()> {
        let look = |place| self.plain.stat_now(place).ok().map(|attr| attr.stamp());
        let before = [look(from), look(to)];
        self.locker.check(leases)?;
        let asked = flags.contains(RenameFlags::EXCHANGE);
        let (how, back) = match before[1] {
            None => (RenameFlags::NOREPLACE, RenameFlags::NOREPLACE),
            // a plain file that is replaced must not be seen under a controller's name
            Some(_) if !asked && !is_controller(&to.name) => {
                (RenameFlags::empty(), RenameFlags::NOREPLACE)
            }
            Some(_) => (RenameFlags::EXCHANGE, RenameFlags::EXCHANGE),
        };
        step::at(Step::Move)?;
        match self.plain.rename(from, to, how) {
            Ok(()) => {}
            Err(Error::Source(errno)) if is_unsupported(errno) => {
                // NFS: what is asked for without these flags has been checked above
                return self.plain.rename(from, to, flags - RenameFlags::NOREPLACE);
            }
            Err(error) => return Err(error),
        }
        let looked = step::at(Step::MovedLook);
        let exchanged = how == RenameFlags::EXCHANGE;
        let expected = [before[0], before[1].filter(|_| exchanged)];
        let seen = [look(to), look(from)];
        // neighbours commit to controllers' names alone: what lies under another is still this rename's doing
        let done = match [to, from].map(|place| is_controller(&place.name)) {
            [true, true] => seen == expected,
            [false, _] => seen[0] == expected[0],
            [true, false] => seen[1] == expected[1],
        };
        if looked.is_err() || !done {
            step::at(Step::MoveBack)?;
            self.plain.rename(to, from, back)?;
            for controller in self.concerned([from, to]) {
                self.void_entries(&controller)?;
            }
            return Err(Error::StaleBase);
        }
        if exchanged && !asked {
            let reached = step::at(Step::RemoveReplaced).map_err(Error::from);
            left_behind(from, reached.and_then(|()| self.plain.unlink(from)));
        }
        Ok(())
    }

    /// The controllers among the names.
    fn concerned(&self, places: [&Place; 2]) -> Vec<Arc<Controller>> {
        let named = places
            .into_iter()
            .filter(|place| is_controller(&place.name));
        named.map(|place| self.controllers.at(place)).collect()
    }

    /// The kernel takes the old inode along to the new name, where it means nothing. Until the kernel
    /// has been told, `stat` of that name asks it for the attributes of the file.
    fn departed(&self, from: &Place, to: &Place) {
        if let Some(generation) = self
            .controllers
            .get(from)
            .and_then(|controller| controller.current())
        {
            if let Ok(attr) = self.plain.stat_now(to) {
                generation.refresh(attr);
            }
            generation.depart();
        }
    }

    /// A regular file takes a controller's name: `mv t x.nodb`, `sed -i`, `rsync`, a NoDb dump.
    fn arrive(&self, from: &Place, to: &Place, replaces: bool, asking: Asking) -> Result<()> {
        let controller = self.controllers.at(to);
        let inodes = &self.plain.inodes;
        let dirs = (inodes.fd(&from.dir)?, inodes.fd(&to.dir)?);
        let mut brought = Candidate::brought(dirs.0, dirs.1, &from.name)?;
        let content = self
            .read_all(brought.fd())
            .inspect_err(|error| self.refused(&controller, error))?;
        let content = Arc::new(content);
        let concerned = self.concerned([from, to]);
        let concerned: Vec<_> = concerned.iter().collect();
        let moving = inodes.known_at(from);
        let maker = caller::process_of(asking.caller.tid).unwrap_or(0);
        // the disk and the store are waited for at the same time; a failure shows in the commit
        let mut sync = || drop(brought.sync());
        let mut leases = self.lock(&concerned, asking, Meanwhile::of(&mut sync))?;
        let change = |leases: &mut Leases| {
            // under the lock: what the target is now is what is replaced
            let base = if replaces {
                self.plain.stat_now(to).ok()
            } else {
                None
            };
            if controller.is_outdated(maker, base.map(|base: Attr| base.stamp())) {
                return Err(Error::StaleBase);
            }
            let snapshot = Snapshot {
                base,
                content: content.clone(),
                set: SetAttr::default(),
            };
            let job = Job {
                controller: &controller,
                snapshot: &snapshot,
                mode: 0,
                asking,
            };
            let attr = self.commit(leases, &job, Some(brought))?;
            self.departed(from, to);
            self.notify(to, true);
            Ok(attr)
        };
        let changed = change(&mut leases);
        let committed = self.unlock(&concerned, leases, changed);
        if let Err(error @ (Error::NotADocument(_) | Error::TooLarge { .. } | Error::StaleBase)) =
            &committed
        {
            self.keep_rejected(
                &controller,
                &content,
                Refusal::of(error, maker, asking.caller),
            );
        }
        committed?;
        if is_controller(&from.name) {
            self.vanished(&self.controllers.at(from))?;
        }
        if let Some(inode) = moving {
            self.plain.inodes.moved(&inode, from, to.clone());
            self.plain.inodes.disown(&inode);
        }
        Ok(())
    }

    /// `RENAME_EXCHANGE`: what arrives at a controller's name is fit to be its next generation.
    fn exchange(&self, from: &Place, to: &Place, asking: Asking) -> Result<()> {
        let concerned = self.concerned([from, to]);
        let concerned: Vec<_> = concerned.iter().collect();
        let inodes = [
            self.plain.inodes.known_at(from),
            self.plain.inodes.known_at(to),
        ];
        self.locked(&concerned, asking, |leases| {
            let fit = [
                self.make_fit(leases, from, to, asking)?,
                self.make_fit(leases, to, from, asking)?,
            ];
            self.rename_fenced(leases, from, to, RenameFlags::EXCHANGE)?;
            let mut arrived = fit.iter().flatten();
            if let Err(error) = arrived.try_for_each(Candidate::sync_dirs) {
                let back = self.plain.rename(to, from, RenameFlags::EXCHANGE);
                // what was taken back may have been read, and the entries be the reader's
                for controller in &concerned {
                    controller.supersede();
                    self.void_entries(controller)?;
                }
                back?;
                return Err(error);
            }
            self.departed(from, to);
            self.departed(to, from);
            concerned
                .iter()
                .try_for_each(|controller| self.vanished(controller))
        })?;
        inodes
            .iter()
            .flatten()
            .for_each(|inode| self.plain.inodes.disown(inode));
        self.notify(from, true);
        self.notify(to, true);
        Ok(())
    }

    /// Makes the file `from` fit for the name `to`, if that is a controller's, as a commit would: a
    /// document, under the lock that it names itself, later than what it replaces, and on stable storage.
    fn make_fit(
        &self,
        leases: &mut Leases,
        from: &Place,
        to: &Place,
        asking: Asking,
    ) -> Result<Option<Candidate>> {
        let base = self.plain.stat_now(to)?;
        if !is_controller(&to.name) || !self.plain.stat(from)?.is_file() {
            return Ok(None);
        }
        let inodes = &self.plain.inodes;
        let (dir, target_dir) = (inodes.fd(&from.dir)?, inodes.fd(&to.dir)?);
        let mut candidate = Candidate::brought(dir, target_dir, &from.name)?;
        let document = Document::parse(&self.read_all(candidate.fd())?)?;
        let lock = lock_of(&self.identify(Some(&document), to)?);
        self.locker
            .cover(leases, &self.controllers.at(to), &lock, asking)?;
        candidate.finish(&SetAttr::default(), Some(&base), asking.caller)?;
        candidate.sync()?;
        Ok(Some(candidate))
    }

    /// `link`: the regular file behind `source`, which may be `O_PATH`, gets the controller's name
    /// as well.
    pub fn link(&self, source: &OwnedFd, to: &Place, asking: Asking) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, reopen_path(source), flags, Mode::empty())?;
        let content = Arc::new(self.read_all(&fd)?);
        let document = Document::parse(&content)?;
        let controller = self.controllers.at(to);
        self.writable(to)?;
        let identity = self.identify(Some(&document), to)?;
        let mut leases = Leases::default();
        self.locker
            .cover(&mut leases, &controller, &lock_of(&identity), asking)?;
        let linked = self.link_durably(&fd, to);
        if linked.is_ok() {
            let attr = Attr::of_fd(&fd)?;
            self.refresh(
                &controller,
                &attr,
                &content,
                &document,
                Meanwhile::default(),
            );
            self.install(&controller, &attr, &content, document);
        }
        self.locker.release(&mut leases, linked.is_ok());
        linked
    }

    fn link_durably(&self, fd: &OwnedFd, to: &Place) -> Result<()> {
        plain::sync(fd, false)?;
        step::at(Step::Link)?;
        self.link_lower(fd, to)?;
        sync_dir(&*self.plain.inodes.fd(&to.dir)?).in_step("fsync the directory")
    }

    /// One more name for an open lower file.
    pub fn link_lower(&self, fd: &OwnedFd, to: &Place) -> Result<()> {
        let dir = self.plain.inodes.fd(&to.dir)?;
        Ok(linkat(
            CWD,
            reopen_path(fd),
            &*dir,
            &to.name,
            AtFlags::SYMLINK_FOLLOW,
        )?)
    }

    /// `truncate` by name: a commit of the shortened or lengthened document.
    pub fn truncate(&self, controller: &Arc<Controller>, size: u64, asking: Asking) -> Result<()> {
        self.locked(&[controller], asking, |leases| {
            let loaded = self.load(controller)?;
            let max = self.settings.max_payload;
            if size > max {
                return Err(Error::TooLarge { size, max });
            }
            let mut content = loaded.bytes()?.to_vec();
            content.resize(size as usize, 0);
            let content = Arc::new(content);
            let snapshot = Snapshot {
                base: Some(loaded.attr),
                content,
                set: SetAttr::default(),
            };
            let job = Job {
                controller,
                snapshot: &snapshot,
                mode: loaded.attr.mode,
                asking,
            };
            self.commit(leases, &job, None)
        })?;
        // no open has made the kernel forget the name
        self.notify(&controller.place, false);
        Ok(())
    }

    /// `mknod` of a regular file under a controller's name would be an empty document.
    pub fn refuse_empty(&self, place: &Place) -> Error {
        let error = Document::parse(b"").map_or_else(Error::from, |_| Error::Source(Errno::INVAL));
        self.refused(&self.controllers.at(place), &error);
        error
    }

    /// EFBIG: beyond `--max-payload`.
    fn read_all(&self, fd: &OwnedFd) -> Result<Vec<u8>> {
        let (size, max) = (Attr::of_fd(fd)?.size, self.settings.max_payload);
        if size > max {
            return Err(Error::TooLarge { size, max });
        }
        plain::read(fd, 0, size as usize)
    }
}

/// What is done cannot be called undone because a file that nobody needs any more stays.
fn left_behind(place: &Place, removed: Result<()>) {
    if let Err(error) = removed {
        warn!(name = ?place.name, %error, "a replaced file left behind");
    }
}
