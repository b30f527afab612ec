//! A commit, step by step (DESIGN.md): a writer's content becomes the current generation, under
//! the lock, durable and whole, or nothing happens at all.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::error::{Errno, Error, Result};
use crate::fs::attr::Attr;
use crate::fs::change::SetAttr;
use crate::fs::inode::Place;
use crate::fs::plain;
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::controller::Controller;
use crate::nodb::document::Document;
use crate::nodb::generation::Payload;
use crate::nodb::identity::Identity;
use crate::nodb::lock::{Asking, Leases};
use crate::nodb::publish::{Candidate, Published, TAKE_BACK};
use crate::nodb::rejected::Refusal;
use crate::nodb::seal::{Seal, digest};
use crate::nodb::staging::{Snapshot, Writer};
use crate::step::{self, Step};
use crate::store::{LockName, Meanwhile, StoreError, StoreErrorKind};
use crate::telemetry::event::Event;

/// How often a base is looked at that somebody changes again and again.
const CHANGES: u32 = 3;

/// What is to become the current generation of which controller.
#[derive(Debug)]
pub struct Job<'a> {
    pub controller: &'a Arc<Controller>,
    pub snapshot: &'a Snapshot,
    /// The permission bits of a controller that is new.
    pub mode: u32,
    pub asking: Asking,
}

impl Nodb {
    /// Commits what `writer` has written since the last time, if anything.
    ///
    /// Errors: the table of DESIGN.md. After an error the old generation stands, and the content
    /// stays with the writer, who may write on and try again.
    pub fn sync(&self, writer: &Writer, asking: Asking) -> Result<()> {
        self.sync_under(&mut writer.staging.committing(), writer, asking)
    }

    fn sync_under(&self, leases: &mut Leases, writer: &Writer, asking: Asking) -> Result<()> {
        let staging = &writer.staging;
        let Some(snapshot) = staging.draft().to_commit() else {
            return Ok(());
        };
        let mode = staging.attr().mode;
        let job = Job {
            controller: &staging.controller,
            snapshot: &snapshot,
            mode,
            asking,
        };
        match self.commit(leases, &job, None) {
            Ok(attr) => {
                staging.draft().settle(&snapshot, attr);
                step::passed(Step::Answer);
                Ok(())
            }
            Err(error) => {
                staging.draft().refused = Some(Refusal::of(&error, staging.tgid, asking.caller));
                self.refused(&staging.controller, &error);
                Err(error)
            }
        }
    }

    /// One of the writer's descriptors is closed: commits, and gives the lock back if that was the
    /// end of it. An untouched draft keeps its lock: `echo … > x.nodb` closes a descriptor before
    /// it writes the first byte.
    pub fn flush(&self, writer: &Writer, asking: Asking) -> Result<()> {
        let closer = caller::process_of(asking.caller.tid).unwrap_or(0);
        writer.staging.left_by(closer);
        let mut leases = writer.staging.committing();
        self.sync_under(&mut leases, writer, asking)?;
        self.settle_attributes(writer, asking)?;
        if writer.staging.draft().committed {
            self.locker.release(&mut leases, false);
        }
        Ok(())
    }

    /// Makes `job` the current generation, releases the leases, and only then returns: `brought` by a
    /// rename, or else in a temporary file made of the content. The steps are DESIGN.md's; the store is
    /// asked and told while the disk is at work. Each failure leaves the old generation in place.
    pub fn commit(
        &self,
        leases: &mut Leases,
        job: &Job<'_>,
        brought: Option<Candidate>,
    ) -> Result<Attr> {
        let mut steps = Steps::start();
        step::at(Step::Validate)?;
        let document = self.validate(&job.snapshot.content)?;
        step::at(Step::Identify)?;
        self.writable(&job.controller.place)?;
        let identity = self.identify(Some(&document), &job.controller.place)?;
        let name = lock_of(&identity);
        self.identified(job.controller, &name);
        steps.took("validate");
        self.locker
            .cover(leases, job.controller, &name, job.asking)?;
        steps.took("lock");
        self.check_base(job)?;
        let mut candidate = self.prepare(job, brought)?;
        steps.took("write");
        candidate.sync()?;
        steps.took("fsync");
        self.keep_up(job, &mut candidate)?;
        self.locker.check(leases)?;
        let _changing = job.controller.changing();
        let published = candidate.publish(&job.controller.place, job.snapshot.base.as_ref());
        if published.is_err() {
            // what was taken back may have been read, and the entry be the reader's
            self.void_entries(job.controller)?;
        }
        let published = published?;
        let (attr, published) = self.verify(job, published)?;
        steps.took("publish");
        let mut synced = Ok(());
        let mut sync_dirs = || synced = published.sync_dirs();
        self.refresh(
            job.controller,
            &attr,
            &job.snapshot.content,
            &document,
            Meanwhile::of(&mut sync_dirs),
        );
        // who is told of success finds the new generation after any crash
        if let Err(error) = synced {
            published.undo();
            job.controller.supersede();
            self.void_entries(job.controller)?;
            return Err(error);
        }
        self.install(job.controller, &attr, &job.snapshot.content, document);
        steps.took("refresh");
        let who = leases.who().clone();
        let mut published = Some(published);
        let mut conclude = || {
            step::passed(Step::Settle);
            if let Some(replaced) = published.take().and_then(Published::settle) {
                self.reaper.take(replaced);
            }
            let committed = Event::Committed {
                who: &who,
                generation: &digest(&job.snapshot.content).to_string(),
                size: job.snapshot.content.len(),
                steps: &steps.0,
            };
            self.note(job.controller, &committed);
        };
        self.locker
            .release_while(leases, true, Meanwhile::of(&mut conclude));
        Ok(attr)
    }

    /// Step 2: is it a document, and not too large?
    fn validate(&self, content: &[u8]) -> Result<Document> {
        let (size, max) = (content.len() as u64, self.settings.max_payload);
        if size > max {
            return Err(Error::TooLarge { size, max });
        }
        Ok(Document::parse(content)?)
    }

    /// Step 2: the run's marker.
    pub fn writable(&self, place: &Place) -> Result<()> {
        let marker = Place::new(&place.dir, OsStr::new("READONLY"));
        match self.plain.stat_now(&marker) {
            Ok(_) => Err(Error::ReadOnlyRun),
            Err(Error::Source(Errno::NOENT)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Step 2: who the document says it is (PROTOCOL.md 3).
    pub fn identify(&self, document: Option<&Document>, place: &Place) -> Result<Identity> {
        let dir = self
            .settings
            .key_root
            .join(self.plain.inodes.relative_path(&place.dir)?);
        let identity = Identity::of(document, &dir, &place.name.to_string_lossy());
        if let Some(note) = &identity.note {
            warn!(
                runid = identity.runid,
                controller = identity.relpath,
                note,
                "identity by the path"
            );
        }
        Ok(identity)
    }

    /// Step 4: the base is still what the name leads to.
    fn check_base(&self, job: &Job<'_>) -> Result<()> {
        step::at(Step::CheckBase)?;
        let now = match self.plain.stat_now(&job.controller.place) {
            Ok(attr) => Some(attr.stamp()),
            Err(Error::Source(Errno::NOENT)) => None,
            Err(error) => return Err(error),
        };
        if now == job.snapshot.base.map(|base| base.stamp()) {
            Ok(())
        } else {
            Err(Error::StaleBase)
        }
    }

    /// Steps 1 and 5: a file beside the controller that has everything the new generation will.
    fn prepare(&self, job: &Job<'_>, brought: Option<Candidate>) -> Result<Candidate> {
        let place = &job.controller.place;
        let mut candidate = match brought {
            Some(brought) => brought,
            None => {
                let dir = self.plain.inodes.fd(&place.dir)?;
                let (content, caller) = (&job.snapshot.content, job.asking.caller);
                let replaces = job.snapshot.base.is_some();
                Candidate::write(dir, content, job.mode, caller, replaces)?
            }
        };
        // a symlink that a file replaces has nothing to hand down
        if job.snapshot.base.is_some_and(|base| base.is_file()) {
            candidate.take_after(&self.open_lower(place)?)?;
        }
        candidate.finish(
            &job.snapshot.set,
            job.snapshot.base.as_ref(),
            job.asking.caller,
        )?;
        Ok(candidate)
    }

    /// Mode, owner and attributes of the base that were changed while the new generation was synced are its own, too.
    fn keep_up(&self, job: &Job<'_>, candidate: &mut Candidate) -> Result<()> {
        let place = &job.controller.place;
        for _ in 0..CHANGES {
            match self.plain.stat_now(place) {
                Ok(base) if !candidate.is_after(&base) => {
                    candidate.take_after(&self.open_lower(place)?)?;
                    candidate.sync()?;
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Step 7: the published file reads back as it was written; else the old one comes back.
    fn verify(&self, job: &Job<'_>, published: Published) -> Result<(Attr, Published)> {
        let reached = step::at(Step::ReadBack).map_err(Error::from);
        match reached.and_then(|()| self.read_back(job, &published)) {
            Ok(attr) => Ok((attr, published)),
            Err(error) => {
                published.undo();
                self.void_entries(job.controller)?;
                Err(error)
            }
        }
    }

    fn read_back(&self, job: &Job<'_>, published: &Published) -> Result<Attr> {
        let give_up = Instant::now() + TAKE_BACK;
        loop {
            let fd = match self.open_lower(&job.controller.place) {
                // somebody came right behind; ours was there all the same
                Err(Error::Source(Errno::NOENT)) => return Ok(published.attr()),
                opened => opened?,
            };
            let attr = Attr::of_fd(&fd)?;
            if attr.stamp() == published.attr().stamp() {
                let bytes = plain::read(&fd, 0, attr.size as usize + 1)?;
                return match digest(&bytes) == digest(&job.snapshot.content) {
                    true => Ok(attr),
                    false => Err(Error::RoundTrip),
                };
            }
            // as does who writes into it in place
            if attr.ident == published.attr().ident || published.is_replaced()? {
                return Ok(published.attr());
            }
            // another daemon has published over it in vain, and brings it back
            if Instant::now() > give_up {
                return Err(Error::StaleBase);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Step 8: entry and seal of the new generation for every participant; what cannot be told now
    /// is written down and told later.
    pub fn refresh(
        &self,
        controller: &Controller,
        attr: &Attr,
        content: &[u8],
        document: &Document,
        meanwhile: Meanwhile<'_>,
    ) {
        let place = &controller.place;
        let Ok(key) = self.cache_key(place) else {
            return;
        };
        let mut stale = self.aliases(place);
        let put = match document.patch(content, attr.signature()) {
            Some(patched) => {
                let seal = Seal::new(content, &patched, attr.signature()).to_bytes();
                let reached = step::at(Step::Put).map_err(StoreError::from);
                reached.and_then(|()| self.store.put_while(&key, &patched.text, &seal, meanwhile))
            }
            None => {
                stale.push(key.clone());
                Ok(())
            }
        };
        // old readers trust any entry, so none may stay that is not the file's
        let is_still = || step::at(Step::StillCurrent).is_ok() && self.is_still(controller, attr);
        if put.is_ok() && !is_still() {
            stale.push(key.clone());
        }
        match put {
            Ok(()) => {
                let size = content.len();
                self.note(controller, &Event::Refreshed { size });
                self.forget_entries(stale);
            }
            Err(error) => {
                self.note(controller, &Event::Owed { error: &error });
                stale.push(key);
                match error.kind {
                    // a server without memory, for one, takes nothing and still deletes
                    StoreErrorKind::Refused | StoreErrorKind::Denied => {
                        self.forget_entries(stale);
                    }
                    _ => self.debts.owe(stale),
                }
            }
        }
    }

    /// Whatever the cache knows of the controller, under any of its paths, goes.
    pub fn void_entries(&self, controller: &Controller) -> Result<()> {
        let mut keys = self.aliases(&controller.place);
        keys.push(self.cache_key(&controller.place)?);
        let entries = keys.len();
        let untold = self.forget_entries(keys);
        let event = match &untold {
            None => Event::Evicted { entries },
            Some(error) => Event::Owed { error },
        };
        self.note(controller, &event);
        Ok(())
    }

    /// Deletes cache entries, now or as soon as the store is back: then with the reason. Deleting is always
    /// right.
    pub fn forget_entries(&self, keys: Vec<String>) -> Option<StoreError> {
        if keys.is_empty() {
            return None;
        }
        let reached = step::at(Step::Forget).map_err(StoreError::from);
        let error = reached.and_then(|()| self.store.delete(&keys)).err()?;
        warn!(?keys, %error, "the cache could not be told; noted, to be told later");
        self.debts.owe(keys);
        Some(error)
    }

    /// The name leads to the new generation from now on.
    pub fn install(
        &self,
        controller: &Controller,
        attr: &Attr,
        content: &Arc<Vec<u8>>,
        document: Document,
    ) {
        let payload = Payload::of_document(content.clone(), document);
        self.payloads.put(attr, &Arc::new(payload));
        controller.set_last_error(None);
        controller.supersede();
    }

    /// Attributes that a writer gave its descriptor without writing go to the file as it is.
    fn settle_attributes(&self, writer: &Writer, asking: Asking) -> Result<()> {
        let staging = &writer.staging;
        let (set, base) = {
            let mut draft = staging.draft();
            (std::mem::take(&mut draft.set), draft.base)
        };
        let Some(base) = base.filter(|_| set != SetAttr::default()) else {
            return Ok(());
        };
        if self.is_still(&staging.controller, &base) {
            let attr = self.set_attributes(&staging.controller, &set, asking)?;
            // the writer's own doing makes no stale base
            if attr.ident == base.ident {
                staging.draft().base = Some(attr);
            }
        }
        Ok(())
    }

    /// Remembers a refusal for `user.nodbfs.last_error` and the log.
    pub fn refused(&self, controller: &Controller, error: &Error) {
        self.note(controller, &Event::Refused { error });
        controller.set_last_error(Some(error.to_string()));
    }

    /// A writer is gone. What it could not commit is kept where it can be recovered (promise 3).
    pub fn abandon(&self, writer: &Writer) {
        let mut leases = writer.staging.committing();
        self.keep_left(writer, "closed without a commit");
        self.locker.release(&mut leases, false);
    }

    /// Keeps what a writer has not committed, whether or not a commit of it is under way.
    pub fn keep_left(&self, writer: &Writer, why: &str) {
        let staging = &writer.staging;
        let (content, refused, emptied) = {
            let draft = staging.draft();
            let left = draft.to_commit().map(|snapshot| snapshot.content);
            (
                left,
                draft.refused.clone(),
                draft.emptied && draft.base.is_some(),
            )
        };
        if let Some(content) = content {
            let refused = refused.unwrap_or_else(|| Refusal::never_tried(why, staging.tgid));
            self.keep_rejected(&staging.controller, &content, refused);
        } else if emptied {
            let name = staging.controller.place.name.to_string_lossy();
            info!(controller = %name, "emptied and never written: the generation stays as it was");
        }
    }

    /// Keeps refused content and says where, in the log and in `user.nodbfs.last_error`.
    pub fn keep_rejected(&self, controller: &Controller, content: &[u8], refusal: Refusal) {
        let place = &controller.place;
        let name = place.name.to_string_lossy();
        let reason = refusal.reason.clone();
        // a directory that is gone leaves the name
        let dir = self.plain.inodes.relative_path(&place.dir);
        let path = dir.unwrap_or_default().join(&place.name);
        let (source, key) = (&self.settings.source, self.cache_key(place).ok());
        match self.rejected.keep(source, &path, key, refusal, content) {
            Ok(kept) => {
                let path = kept.document.display();
                let state_dir = self.settings.state_dir.display();
                let show = format!("nodbfs rejected show {} --state-dir {state_dir}", kept.id);
                let kept = Event::Kept {
                    reason: &reason,
                    path: &path.to_string(),
                    show: &show,
                };
                self.note(controller, &kept);
                controller.set_last_error(Some(format!("{reason}; kept as {path}")));
            }
            Err(error) => {
                warn!(controller = %name, reason, %error, "refused content could not be kept")
            }
        }
    }

    /// Tells the kernel that the name leads elsewhere. A rename's own caller holds the directory's
    /// lock until it is answered, and the kernel's telling would wait for that.
    pub fn notify(&self, place: &Place, renaming: bool) {
        self.kernel
            .entry_changed(place.dir.id, &place.name, !renaming);
    }
}

/// How long each step of a commit took.
struct Steps(Vec<(&'static str, Duration)>, Instant);

impl Steps {
    fn start() -> Self {
        Self(Vec::with_capacity(6), Instant::now())
    }

    /// `step` was done since the one before.
    fn took(&mut self, step: &'static str) {
        let now = Instant::now();
        self.0.push((step, now - self.1));
        self.1 = now;
    }
}

/// The lock that guards a document of this identity.
pub fn lock_of(identity: &Identity) -> LockName {
    LockName {
        runid: identity.runid.clone(),
        relpath: identity.relpath.clone(),
    }
}
