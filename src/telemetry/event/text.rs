//! How an event reads: a few words for people, then `key=value` fields for programs.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use super::{Event, Who};
use crate::error::{Errno, Error};
use crate::nodb::caller;
use crate::nodb::controller::Origin;

impl Who {
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
            Self::LockWaits { who } => who.write(line),
            Self::LockAdopted { who, holder } => {
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
            Self::Kept { reason, path, show } => {
                line.field("reason", reason);
                line.field("kept", path);
                line.field("show", show);
            }
            Self::Hits { times } => line.field("times", times),
            Self::Loaded { from, size } => {
                line.field("from", from.name());
                line.field("size", size);
            }
            Self::CacheAway { error } | Self::Unreleased { error } | Self::Owed { error } => {
                line.field("reason", error);
            }
            Self::Refreshed { size } => line.field("size", size),
            Self::Evicted { entries } => line.field("entries", entries),
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
            Self::Loaded {
                from: Origin::Disk, ..
            } => "read from disk",
            Self::Loaded { .. } => "cache hit: read from the cache entry",
            Self::Missed => "cache miss",
            Self::CacheAway { .. } => "cache fallback: read from disk",
            Self::Unreleased { .. } => "lock fallback: not released, it will expire",
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
    match name_of(error.errno()) {
        Some(name) => line.field("errno", name),
        None => line.field("errno", error.errno().raw_os_error()),
    }
    line.field("reason", error);
}

/// The names of what operations on controllers are answered with.
fn name_of(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::ACCESS => "EACCES",
        Errno::AGAIN => "EAGAIN",
        Errno::BADMSG => "EBADMSG",
        Errno::BUSY => "EBUSY",
        Errno::COMM => "ECOMM",
        Errno::DQUOT => "EDQUOT",
        Errno::EXIST => "EEXIST",
        Errno::FBIG => "EFBIG",
        Errno::INTR => "EINTR",
        Errno::INVAL => "EINVAL",
        Errno::IO => "EIO",
        Errno::MSGSIZE => "EMSGSIZE",
        Errno::NOENT => "ENOENT",
        Errno::NOLCK => "ENOLCK",
        Errno::NOSPC => "ENOSPC",
        Errno::PERM => "EPERM",
        Errno::ROFS => "EROFS",
        Errno::STALE => "ESTALE",
        _ => return None,
    })
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
}
