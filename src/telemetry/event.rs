//! What can happen to a controller, how loud that is, and how it reads: a few words for people, then
//! `key=value` fields for programs.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use crate::error::{Errno, Error};
use crate::nodb::caller;
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
            command: caller::command_of(pid).unwrap_or_default(),
        }
    }

    fn write(&self, line: &mut Line<'_>) {
        line.field("host", caller::own_hostname());
        if self.pid != 0 {
            line.field("pid", self.pid);
        }
        if !self.command.is_empty() {
            line.field("command", &self.command);
        }
    }
}

/// Where the bytes of an `open` came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The payload cache's entry, proved by its seal.
    Entry,
    Disk,
}

/// What happened to a controller.
pub enum Event<'a> {
    /// A held lock is waited for.
    LockWaits {
        who: &'a Who,
        holder: &'a str,
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
    },
    /// The controller's name leads nowhere any more.
    Removed,
    /// `open`s were answered from memory since the last event.
    Hits {
        times: u64,
    },
    /// An `open` had to load the document.
    Loaded {
        from: Source,
        size: usize,
    },
    /// The cache's entry did not hold what is on disk.
    Missed,
    /// Something could not be had from where it should come, and came from elsewhere.
    Fallback {
        to: &'static str,
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
    /// What kind of event it is: one word, for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LockWaits { .. } => "lock_waits",
            Self::LockTaken { .. } => "lock_taken",
            Self::LockRefused { .. } => "lock_refused",
            Self::LockAdopted { .. } => "lock_adopted",
            Self::LockVouched => "lock_vouched",
            Self::LockRenewed { .. } => "lock_renewed",
            Self::LockLost { .. } => "lock_lost",
            Self::LockReleased { .. } => "lock_released",
            Self::LockForced { .. } => "lock_forced",
            Self::Committed { .. } => "committed",
            Self::Refused { .. } => "refused",
            Self::Kept { .. } => "kept",
            Self::Removed => "removed",
            Self::Hits { .. } => "hits",
            Self::Loaded { .. } => "loaded",
            Self::Missed => "missed",
            Self::Fallback { .. } => "fallback",
            Self::Refreshed { .. } => "refreshed",
            Self::Evicted { .. } => "evicted",
            Self::Owed { .. } => "owed",
            Self::Changed { .. } => "changed",
            Self::Message { .. } => "message",
            Self::Trigger { .. } => "trigger",
            Self::Following { .. } => "following",
            Self::LevelSet { .. } => "level_set",
            Self::LevelUnknown { .. } => "level_unknown",
            Self::ByHand { .. } => "by_hand",
        }
    }

    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::LockRefused { .. }
            | Self::LockLost { .. }
            | Self::LockForced { .. }
            | Self::Kept { .. }
            | Self::Fallback { .. }
            | Self::Owed { .. }
            | Self::LevelUnknown { .. } => Level::Warning,
            Self::Refused { error } if error.errno() == Errno::IO => Level::Error,
            Self::Refused { .. } => Level::Warning,
            Self::LockVouched | Self::Evicted { .. } => Level::Debug,
            _ => Level::Info,
        }
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

/// A line in the making.
struct Line<'a>(&'a mut String);

impl Line<'_> {
    /// ` key=value`; quoted where a reader could not tell its end.
    fn field(&mut self, key: &str, value: impl Display) {
        let at = self.0.len() + key.len() + 2;
        // writing to a string does not fail
        let _ = write!(self.0, " {key}={value}");
        let value = &self.0[at..];
        if value.is_empty() || value.contains([' ', '"', '=']) || value.contains(char::is_control) {
            let value = self.0.split_off(at);
            let _ = write!(self.0, "{value:?}");
        }
    }

    /// ` text=…` to the end of the line, as it is but for what would end or garble the line.
    fn text(&mut self, text: &str) {
        self.0.push_str(" text=");
        for c in text.chars() {
            match c {
                '\t' => self.0.push(c),
                c if c.is_control() => self.0.extend(c.escape_default()),
                c => self.0.push(c),
            }
        }
    }
}

impl Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

impl Event<'_> {
    fn write(&self, text: &mut String) {
        text.push_str(self.words());
        let line = &mut Line(text);
        match self {
            Self::LockWaits { who, holder } | Self::LockAdopted { who, holder } => {
                line.field("holder", holder);
                who.write(line);
            }
            Self::LockTaken { who, ttl, waited } => {
                if let Some(waited) = waited {
                    line.field("waited", Short(*waited));
                }
                line.field("ttl", Short(*ttl));
                who.write(line);
            }
            Self::LockRefused { who, error } => {
                refusal(line, error);
                who.write(line);
            }
            Self::LockRenewed { ttl } => line.field("ttl", Short(*ttl)),
            Self::LockLost { reason } => line.field("reason", reason),
            Self::LockReleased { who, why } => {
                if !why.is_empty() {
                    line.field("reason", why);
                }
                who.write(line);
            }
            Self::LockForced {
                who,
                holder,
                reason,
            } => {
                line.field("holder", holder);
                line.field("reason", reason);
                who.write(line);
            }
            Self::Committed {
                who,
                generation,
                size,
                steps,
            } => {
                line.field("generation", generation);
                line.field("size", size);
                for (step, took) in *steps {
                    line.field(step, Short(*took));
                }
                who.write(line);
            }
            Self::Refused { error } => refusal(line, error),
            Self::Kept { reason, path } => {
                line.field("reason", reason);
                line.field("kept", path);
            }
            Self::Hits { times } => line.field("times", times),
            Self::Loaded { from, size } => {
                let from = match from {
                    Source::Entry => "entry",
                    Source::Disk => "disk",
                };
                line.field("from", from);
                line.field("size", size);
            }
            Self::Fallback { to, error } => {
                line.field("to", to);
                line.field("reason", error);
            }
            Self::Refreshed { size } => line.field("size", size),
            Self::Evicted { entries } => line.field("entries", entries),
            Self::Owed { error } => line.field("reason", error),
            Self::Changed { size } => line.field("size", size),
            Self::Message { channel, text } => {
                line.field("channel", channel);
                line.text(text);
            }
            Self::Trigger {
                channel,
                trigger,
                text,
            } => {
                line.field("event", trigger.event);
                line.field("controller", trigger.controller);
                line.field("job", trigger.job);
                line.field("channel", channel);
                line.text(text);
            }
            Self::Following { channel, .. } => line.field("channel", channel),
            Self::LevelSet { level } => line.field("level", level),
            Self::LevelUnknown { value } => line.field("value", value),
            Self::ByHand { who, what } => {
                line.field("what", what);
                who.write(line);
            }
            Self::LockVouched | Self::Removed | Self::Missed => {}
        }
    }

    fn words(&self) -> &'static str {
        match self {
            Self::LockWaits { .. } => "lock waiting",
            Self::LockTaken { .. } => "lock taken",
            Self::LockRefused { .. } => "lock refused",
            Self::LockAdopted { .. } => "lock adopted",
            Self::LockVouched => "lock taken for granted: the tail of a dump",
            Self::LockRenewed { .. } => "lock renewed",
            Self::LockLost { .. } => "lock lost",
            Self::LockReleased { .. } => "lock released",
            Self::LockForced { .. } => "lock released by force",
            Self::Committed { .. } => "committed",
            Self::Refused { .. } => "refused",
            Self::Kept { .. } => "refused content kept",
            Self::Removed => "removed",
            Self::Hits { .. } => "cache hit: opened from memory",
            Self::Loaded { from, .. } => match from {
                Source::Entry => "cache hit: loaded",
                Source::Disk => "loaded",
            },
            Self::Missed => "cache miss",
            Self::Fallback { .. } => "fallback",
            Self::Refreshed { .. } => "cache refreshed",
            Self::Evicted { .. } => "cache entries removed",
            Self::Owed { .. } => "cache debt: to be told later",
            Self::Changed { .. } => "changed elsewhere",
            Self::Message { .. } => "message",
            Self::Trigger { .. } => "trigger",
            Self::Following { on: true, .. } => "following the status channel",
            Self::Following { on: false, .. } => "status channel lost",
            Self::LevelSet { .. } => "log level",
            Self::LevelUnknown { .. } => "log level ignored: it is none",
            Self::ByHand { .. } => "by hand",
        }
    }
}

fn refusal(line: &mut Line<'_>, error: &Error) {
    // rustix names an errno only in its Debug form
    line.field("errno", format_args!("{:?}", error.errno()));
    line.field("reason", error);
}

/// A duration as people read it: three digits are enough.
struct Short(Duration);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            s if s >= 10.0 => write!(f, "{s:.0}s"),
            s if s >= 1.0 => write!(f, "{s:.1}s"),
            s if s >= 0.01 => write!(f, "{:.0}ms", s * 1e3),
            s => write!(f, "{:.2}ms", s * 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_a_program_could_not_tell_their_end() {
        let event = Event::LockLost {
            reason: "it \"expired\"\n= lost",
        };
        assert_eq!(
            event.to_string(),
            r#"lock lost reason="it \"expired\"\n= lost""#
        );
        assert_eq!(
            Event::LockRenewed {
                ttl: Duration::from_secs(60)
            }
            .to_string(),
            "lock renewed ttl=60s"
        );
    }

    #[test]
    fn messages_stand_as_they_are_at_the_end_of_a_line() {
        let message = |text| {
            let channel = "run:wepp";
            Event::Message { channel, text }.to_string()
        };
        assert_eq!(
            message(r#"done: "a"=1"#),
            r#"message channel=run:wepp text=done: "a"=1"#
        );
        assert_eq!(
            message("a\nb\u{1b}[0m"),
            r"message channel=run:wepp text=a\nb\u{1b}[0m"
        );
    }

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
