//! What is known of a controller beside its bytes: the lower file's attributes, which can be
//! changed without another generation, and nodbfs's own.

use std::ffi::OsStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat};
use tracing::info;

use crate::error::{Errno, Result};
use crate::fs::attr::Attr;
use crate::fs::change::{SetAttr, change};
use crate::fs::inode::Place;
use crate::nodb::Nodb;
use crate::nodb::controller::Controller;
use crate::nodb::generation::{Generation, Payload};
use crate::nodb::lock::Asking;
use crate::nodb::seal::digest;
use crate::step::{self, Step};
use crate::store::Meanwhile;

impl Nodb {
    /// `chmod`, `chown`, `utimens` of a controller: the bytes stay, and where the signature
    /// changes, entry and seal follow it (PROTOCOL.md 5).
    pub fn set_attributes(
        &self,
        controller: &Controller,
        set: &SetAttr,
        asking: Asking,
    ) -> Result<Attr> {
        let fd = self.lower(&controller.place)?;
        let before = Attr::of_fd(&fd)?;
        step::at(Step::Change)?;
        let _changing = controller.changing();
        change(&fd, None, &SetAttr { size: None, ..*set }, asking.caller)?;
        let attr = Attr::of_fd(&fd)?;
        if let Some(current) = controller
            .current()
            .filter(|current| current.stamp() == before.stamp())
        {
            current.refresh(attr);
        }
        if attr.stamp() != before.stamp() {
            step::passed(Step::Follow);
            self.follow(controller, &before, &attr)?;
            step::passed(Step::Answer);
        }
        Ok(attr)
    }

    /// The same bytes under another signature.
    fn follow(&self, controller: &Controller, before: &Attr, attr: &Attr) -> Result<()> {
        let payload = self.payloads.get(before);
        let known = payload.as_ref().and_then(|payload| match &**payload {
            Payload::Bytes(bytes, _) => Some((payload, bytes, payload.document()?)),
            Payload::File(_) => None,
        });
        match known {
            Some((payload, bytes, document)) => {
                self.payloads.put(attr, payload);
                self.refresh(controller, attr, bytes, document, Meanwhile::default());
                Ok(())
            }
            None => self.void_entries(controller),
        }
    }

    /// A generation's attributes, with what `chmod`, `link` and the like made of them meanwhile.
    pub fn attr_now(&self, generation: &Generation) -> Attr {
        if self.is_current(generation)
            && let Ok(now) = self.plain.stat(&generation.controller.place)
            && now.stamp() == generation.stamp()
        {
            generation.refresh(now);
        }
        generation.attr()
    }

    /// Whether the name still leads to the generation that `attr` describes.
    pub fn is_still(&self, controller: &Controller, attr: &Attr) -> bool {
        self.plain
            .stat_now(&controller.place)
            .is_ok_and(|now| now.stamp() == attr.stamp())
    }

    /// An `O_PATH` descriptor of the controller's file.
    pub fn lower(&self, place: &Place) -> Result<OwnedFd> {
        let dir = self.plain.inodes.fd(&place.dir)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*dir, &place.name, flags, Mode::empty())?)
    }

    /// One of the `user.nodbfs.*` attributes: by name only, never listed.
    pub fn attribute(&self, controller: &Controller, name: &OsStr) -> Result<Vec<u8>> {
        let name = name
            .to_str()
            .and_then(|name| name.strip_prefix("user.nodbfs."))
            .ok_or(Errno::NODATA)?;
        let value = match name {
            "runid" => self.identity_now(controller)?.runid,
            "relpath" => self.identity_now(controller)?.relpath,
            "channel" => self.identity_now(controller)?.channel,
            "cache_key" => self.cache_key(&controller.place)?,
            "generation" => digest(self.load(controller)?.bytes()?).to_string(),
            "source" => {
                let last = controller.last_read_from().ok_or(Errno::NODATA)?;
                last.name().to_owned()
            }
            "lock" => self.holder_value(controller)?.unwrap_or_default(),
            "last_error" => controller.last_error().ok_or(Errno::NODATA)?,
            _ => return Err(Errno::NODATA.into()),
        };
        Ok(value.into_bytes())
    }

    /// What setting, or removing, one of the `user.nodbfs.*` attributes does: `refresh` and `evict` are
    /// there to be done, the others only tell. Whoever may write the file may do it.
    pub fn act(&self, controller: &Controller, name: &OsStr) -> Result<()> {
        let done = match name.to_str() {
            Some("user.nodbfs.refresh") => self.reload(controller),
            Some("user.nodbfs.evict") => self.evict(controller),
            _ => return Err(Errno::PERM.into()),
        };
        let name = name.to_string_lossy();
        let of = controller.place.name.to_string_lossy();
        match &done {
            Ok(()) => info!(controller = %of, "{name}"),
            Err(error) => self.refused(controller, error),
        }
        done
    }
}
