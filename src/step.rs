//! The steps of everything that changes a controller, by name: where a test can make a commit fail, stop
//! or die. In a build without the feature `failpoints` none of it is there.
//!
//! A step is named after the effect that is about to happen, so that one point lies between any two effects.
//! An error is that effect's failure.

use rustix::io::Errno;

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident = $name:literal,)+) => {
        /// A point just before an effect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// Every one there is.
            pub const ALL: &[Self] = &[$(Self::$step),+];

            /// By this name it is told what is to happen there.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)+
                }
            }
        }
    };
}

steps! {
    /// The lock is asked for.
    Acquire = "acquire",
    /// The lock is ours; the writer is not told yet.
    Acquired = "acquired",
    /// An opening writer, under the lock, is given the current generation.
    Load = "load",
    /// The content is looked at: is it a document?
    Validate = "validate",
    /// The document is asked which run it belongs to, and the run whether it is `READONLY`.
    Identify = "identify",
    /// The base is compared with what the name leads to.
    CheckBase = "check-base",
    /// The temporary file is made.
    CreateTemporary = "create-temporary",
    /// The rest of the content is written to the temporary file, which has its first half.
    WriteRest = "write-rest",
    /// Mode, owner and extended attributes are taken over from the base.
    TakeAfter = "take-after",
    /// The new generation's mtime is made later than its base's.
    SetTime = "set-time",
    /// The new generation is synced.
    Sync = "sync",
    /// The store is asked whether the leases are still ours.
    Confirm = "confirm",
    /// The new generation takes its base's name.
    Exchange = "exchange",
    /// What came out of the exchange is looked at.
    Look = "look",
    /// A stale publication is taken back.
    TakeBack = "take-back",
    /// The new generation takes a name that was free.
    LinkIn = "link-in",
    /// The directory is synced.
    SyncDir = "sync-dir",
    /// The published file is read back.
    ReadBack = "read-back",
    /// A publication that did not read back is undone.
    Undo = "undo",
    /// The old generation is on its way to be removed, and the new one to be told.
    Settle = "settle",
    /// Entry and seal of the new generation are put into the cache.
    Put = "put",
    /// Whether the entry is still the file's.
    StillCurrent = "still-current",
    /// Entries are deleted from the cache.
    Forget = "forget",
    /// What the cache could not be told is written to disk.
    Owe = "owe",
    /// The debt is written, under a temporary name.
    OweRename = "owe-rename",
    /// A debt is paid: its entries are deleted.
    Pay = "pay",
    /// A debt was paid and is struck out.
    StrikeOut = "strike-out",
    /// The lock is released, by its token.
    Release = "release",
    /// All is done, and the caller is told.
    Answer = "answer",
    /// A controller's file is renamed to where it goes.
    Move = "move",
    /// What was renamed is looked at.
    MovedLook = "moved-look",
    /// What should not have been renamed is renamed back.
    MoveBack = "move-back",
    /// The file that a renamed one took the name of is removed.
    RemoveReplaced = "remove-replaced",
    /// The file of an unlinked controller is removed.
    RemoveUnlinked = "remove-unlinked",
    /// A file gets a controller's name as well.
    Link = "link",
    /// The attributes of a controller's file change.
    Change = "change",
    /// Entry and seal follow the changed attributes.
    Follow = "follow",
    /// A temporary file of this daemon is removed.
    RemoveTemporary = "remove-temporary",
    /// A temporary file of a dead daemon is removed.
    ClearLeftover = "clear-leftover",
    /// Refused content is kept.
    KeepRejected = "keep-rejected",
}

/// How far the end of the mount comes while the step that has begun it waits.
#[cfg(feature = "failpoints")]
const HEAD_START: std::time::Duration = std::time::Duration::from_millis(20);

/// What is to happen at each step is read from `FAILPOINTS`, until this is dropped.
#[cfg(feature = "failpoints")]
pub fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// `step` is reached. EIO: a test wants its effect to fail.
#[cfg(feature = "failpoints")]
pub fn at(step: Step) -> Result<(), Errno> {
    fail::fail_point!(step.name(), |what| injected(step, what.as_deref()));
    Ok(())
}

#[cfg(feature = "failpoints")]
fn injected(step: Step, what: Option<&str>) -> Result<(), Errno> {
    tracing::info!(step = step.name(), "reached");
    let signal = match what {
        Some("error") => return Err(Errno::IO),
        Some("kill") => libc::SIGKILL,
        Some("stop") => libc::SIGSTOP,
        Some("end") => libc::SIGTERM,
        _ => return Ok(()),
    };
    // SAFETY: no memory is touched. To this thread, so that it goes no further; the first two end or stop
    // the whole process.
    unsafe { libc::raise(signal) };
    if signal == libc::SIGTERM {
        std::thread::sleep(HEAD_START);
    }
    Ok(())
}

/// `step` is reached.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn at(_: Step) -> Result<(), Errno> {
    Ok(())
}

/// `step` is reached, where nothing can fail.
#[inline(always)]
pub fn passed(step: Step) {
    // an error has nowhere to go
    let _ = at(step);
}

/// The part of `rest` to be written at once: all of it, but for a test half a document first.
#[inline(always)]
pub fn part(rest: &[u8], written: usize) -> &[u8] {
    if cfg!(feature = "failpoints") && written == 0 {
        &rest[..rest.len().div_ceil(2)]
    } else {
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own_that_failpoints_can_spell() {
        let names: BTreeSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        for name in names {
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{name}"
            );
        }
    }
}
