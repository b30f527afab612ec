//! What can happen to a controller, and how loud that is.

mod text;

use std::fmt::Display;
use std::time::Duration;

use crate::counters::Counted;
use crate::error::{Errno, Error};
use crate::nodb::caller;
use crate::nodb::controller::Origin;
use crate::nodb::session::command_of;
use crate::telemetry::level::Level;

/// Who asked for something, as far as the daemon can see. Its arguments may hold secrets, so only its
/// command's name is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The process; 0 if it cannot be seen.
    pub pid: u32,
    pub command: String,
}

impl Who {
    /// The process `pid`, as [`caller::process_of`] gives it.
    pub fn of(pid: u32) -> Self {
        Self {
            pid,
            command: command_of(pid).unwrap_or_default(),
        }
    }

    /// The process of the thread `tid`.
    pub fn of_thread(tid: u32) -> Self {
        Self::of(caller::process_of(tid).unwrap_or(0))
    }
}

/// What happened to a controller.
pub enum Event<'a> {
    /// A held lock is waited for.
    LockWaits {
        who: &'a Who,
    },
    /// The lock was taken, after a wait or without.
    LockTaken {
        who: &'a Who,
        ttl: Duration,
        waited: Option<Duration>,
    },
    /// The lock was not to be had.
    LockRefused {
        who: &'a Who,
        error: &'a Error,
    },
    /// The writer holds the lock itself: neither taken nor released.
    LockAdopted {
        who: &'a Who,
        holder: &'a str,
    },
    /// The tail of a dump by a process that cannot be seen: let through.
    LockVouched,
    /// The lease was prolonged.
    LockRenewed {
        ttl: Duration,
    },
    /// The lease is not ours any more.
    LockLost {
        reason: &'a str,
    },
    /// The lock was given back. `why` says more where it was not its writer's close.
    LockReleased {
        who: &'a Who,
        why: &'a str,
    },
    /// Somebody else's lock was taken away by an operator.
    LockForced {
        who: &'a Who,
        uid: u32,
        holder: &'a str,
        reason: &'a str,
    },
    /// A new generation.
    Committed {
        who: &'a Who,
        /// The beginning of its digest.
        generation: &'a str,
        size: usize,
        /// How long each step took.
        steps: &'a [(&'static str, Duration)],
    },
    /// A change was refused.
    Refused {
        error: &'a Error,
    },
    /// What was refused lies here.
    Kept {
        reason: &'a str,
        path: &'a str,
        /// The command that shows it.
        show: &'a str,
    },
    /// The controller's name leads nowhere any more.
    Removed,
    /// `open`s were answered from memory since the last event.
    Hits {
        times: u64,
    },
    /// An `open` had to load the document.
    Loaded {
        from: Origin,
        size: u64,
    },
    /// The cache's entry did not hold what is on disk.
    Missed,
    /// The cache could not be asked, and the disk was read.
    CacheAway {
        error: &'a dyn Display,
    },
    /// The lock could not be given back, and will expire.
    Unreleased {
        error: &'a dyn Display,
    },
    /// The cache's entry was put.
    Refreshed {
        size: usize,
    },
    /// The cache's entries were removed.
    Evicted {
        entries: usize,
    },
    /// The cache could not be told; it will be.
    Owed {
        error: &'a dyn Display,
    },
    /// The file was changed by a NoDb process or on another host.
    Changed {
        size: u64,
    },
    /// A message on the controller's status channel.
    Message {
        channel: &'a str,
        text: &'a str,
    },
    /// A message that says that a job has reached something (PROTOCOL.md 7).
    Trigger {
        channel: &'a str,
        trigger: Trigger<'a>,
        text: &'a str,
    },
    /// Messages arrive from now on, or no longer.
    Following {
        channel: &'a str,
        on: bool,
    },
    /// The run's level was changed, or what was set is none.
    LevelSet {
        level: Level,
    },
    LevelUnknown {
        value: &'a str,
    },
    /// An operator did something by hand: in words.
    ByHand {
        who: &'a Who,
        what: &'a str,
    },
}

/// `rq:<job> TRIGGER   <controller> <EVENT>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger<'a> {
    pub job: &'a str,
    pub controller: &'a str,
    pub event: &'a str,
}

impl<'a> Trigger<'a> {
    /// What the text of a message says, if it is a trigger.
    pub fn of(text: &'a str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let job = words.next()?.strip_prefix("rq:")?;
        let trigger = words.next()? == "TRIGGER";
        let (controller, event) = (words.next()?, words.next()?);
        (trigger && words.next().is_none()).then_some(Self {
            job,
            controller,
            event,
        })
    }
}

impl Event<'_> {
    /// As what it is counted; what is counted elsewhere, or not at all, is none.
    pub fn counted(&self) -> Option<Counted> {
        Some(match self {
            Self::LockWaits { .. } => Counted::LockWaits,
            Self::LockTaken { .. } => Counted::LockTaken,
            Self::LockRefused { .. } => Counted::LockRefused,
            Self::LockAdopted { .. } | Self::LockVouched => Counted::LockAdopted,
            Self::LockRenewed { .. } => Counted::LockRenewed,
            Self::LockLost { .. } => Counted::LockLost,
            Self::LockReleased { .. } => Counted::LockReleased,
            Self::LockForced { .. } => Counted::LockForced,
            Self::Committed { .. } => Counted::Committed,
            Self::Refused { .. } => Counted::Refused,
            Self::Kept { .. } => Counted::Kept,
            Self::Removed => Counted::Removed,
            Self::Missed => Counted::CacheMiss,
            Self::CacheAway { .. } => Counted::CacheAway,
            Self::Refreshed { .. } => Counted::CacheRefreshed,
            Self::Evicted { .. } => Counted::CacheEvicted,
            Self::Changed { .. } => Counted::ChangedElsewhere,
            Self::Message { .. } => Counted::Message,
            Self::Trigger { .. } => Counted::Trigger,
            Self::Hits { .. }
            | Self::Loaded { .. }
            | Self::Unreleased { .. }
            | Self::Owed { .. }
            | Self::Following { .. }
            | Self::LevelSet { .. }
            | Self::LevelUnknown { .. }
            | Self::ByHand { .. } => return None,
        })
    }

    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::LockRefused { .. }
            | Self::LockLost { .. }
            | Self::LockForced { .. }
            | Self::Kept { .. }
            | Self::CacheAway { .. }
            | Self::Unreleased { .. }
            | Self::Owed { .. }
            | Self::LevelUnknown { .. } => Level::Warning,
            Self::Refused { error } if error.errno() == Errno::IO => Level::Error,
            Self::Refused { .. } => Level::Warning,
            Self::LockReleased { why, .. } if !why.is_empty() => Level::Warning,
            Self::LockVouched | Self::Evicted { .. } => Level::Debug,
            _ => Level::Info,
        }
    }

    /// Whether it is shown however quiet the run is to be: it is not nodbfs that says it.
    pub fn is_always_shown(&self) -> bool {
        matches!(
            self,
            Self::Message { .. } | Self::Trigger { .. } | Self::LevelSet { .. }
        )
    }

    /// Whether the daemon's log has it at its debug level only.
    pub fn is_everyday(&self) -> bool {
        self.level() == Level::Info && !matches!(self, Self::Committed { .. } | Self::Removed)
    }

    /// Whether it is news for those who watch the run, when `--publish-events` says that they are told.
    pub fn is_published(&self) -> bool {
        matches!(
            self,
            Self::LockTaken { .. }
                | Self::LockRefused { .. }
                | Self::LockLost { .. }
                | Self::LockReleased { .. }
                | Self::LockForced { .. }
                | Self::Committed { .. }
                | Self::Refused { .. }
                | Self::Removed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_told_from_other_messages() {
        let trigger = Trigger::of("rq:5f-1 TRIGGER   climate CLIMATE_BUILD_COMPLETE").unwrap();
        assert_eq!(
            (trigger.job, trigger.controller, trigger.event),
            ("5f-1", "climate", "CLIMATE_BUILD_COMPLETE")
        );
        for other in [
            "rq:5f STARTED f(x)",
            "TRIGGER climate X",
            "rq:5f TRIGGER climate",
            "rq:5f TRIGGER climate X Y",
            "",
        ] {
            assert_eq!(Trigger::of(other), None, "{other}");
        }
    }
}
