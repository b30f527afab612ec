//! Work that is done while a request is under way, so that the time of one hides the other's: a
//! disk's `fsync` and a round trip to Redis need no common processor.

use std::fmt;

/// A piece of the caller's own work. It is done once whatever becomes of the request: while the
/// answer is awaited where the store can, and otherwise when this is dropped.
#[derive(Default)]
pub struct Meanwhile<'a>(Option<&'a mut dyn FnMut()>);

impl<'a> Meanwhile<'a> {
    /// `work`, to be done while a request is under way.
    pub fn of(work: &'a mut dyn FnMut()) -> Self {
        Self(Some(work))
    }

    /// Does the work unless it has been done.
    pub fn run(&mut self) {
        if let Some(work) = self.0.take() {
            work();
        }
    }
}

impl Drop for Meanwhile<'_> {
    fn drop(&mut self) {
        self.run();
    }
}

impl fmt::Debug for Meanwhile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meanwhile").field(&self.0.is_some()).finish()
    }
}
