//! What the controllers' telemetry is told.

use crate::error::{Errno, Result};
use crate::nodb::Nodb;
use crate::nodb::commit::lock_of;
use crate::nodb::controller::Controller;
use crate::nodb::generation::Payload;
use crate::nodb::identity::Identity;
use crate::store::LockName;
use crate::telemetry::event::Event;

impl Nodb {
    /// Something happened to a controller. Waits for nothing.
    pub fn note(&self, controller: &Controller, event: &Event<'_>) {
        if let Some(name) = self.name_at_hand(controller) {
            self.tell_hits(controller, &name);
            self.telemetry.note(&name, event);
        }
    }

    /// The `open`s from memory are only counted when they happen.
    pub fn tell_hits(&self, controller: &Controller, name: &LockName) {
        let times = controller.take_hits();
        if times > 0 {
            self.telemetry.note(name, &Event::Hits { times });
        }
    }

    /// The controller's document says who it is: its run is followed from now on.
    pub fn identified(&self, controller: &Controller, name: &LockName) {
        if controller.name().as_ref() != Some(name) {
            controller.set_name(name.clone());
        }
        self.telemetry.touch(name);
    }

    /// As [`Nodb::identified`], if nobody has asked yet.
    pub fn identify_once(&self, controller: &Controller, payload: &Payload) {
        if controller.name().is_none()
            && let Ok(identity) = self.identify(payload.document(), &controller.place)
        {
            self.identified(controller, &lock_of(&identity));
        }
    }

    /// The name of the controller's lock as its document says, without asking the store.
    pub fn name_from_disk(&self, controller: &Controller) -> Result<LockName> {
        if controller.name().is_none() {
            let loaded = self.load_from(&controller.place, false)?;
            self.identify_once(controller, &loaded.payload);
        }
        Ok(self.name_at_hand(controller).ok_or(Errno::STALE)?)
    }

    /// The name of the controller's lock as its document said last, or else as its path says.
    pub fn name_at_hand(&self, controller: &Controller) -> Option<LockName> {
        let by_path = || {
            let place = &controller.place;
            let dir = self.plain.inodes.relative_path(&place.dir).ok()?;
            let dir = self.settings.key_root.join(dir);
            let identity = Identity::of(None, &dir, &place.name.to_string_lossy());
            Some(lock_of(&identity))
        };
        controller.name().or_else(by_path)
    }
}
