//! What the controllers' telemetry is told.

use crate::nodb::Nodb;
use crate::nodb::commit::lock_of;
use crate::nodb::controller::Controller;
use crate::nodb::identity::Identity;
use crate::store::LockName;
use crate::telemetry::event::Event;

impl Nodb {
    /// Something happened to a controller. Waits for nothing.
    pub fn note(&self, controller: &Controller, event: &Event<'_>) {
        if let Some(name) = self.name_at_hand(controller) {
            self.telemetry.note(&name, event);
        }
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
