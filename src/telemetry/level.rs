//! How loud an event is, and how loud a run is to be: Python's levels, by number or by name, as DB 15
//! has them (PROTOCOL.md 2).

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Python's levels, and their names for programs. `CRITICAL` is for runs that are to be quiet: nothing that nodbfs tells is so loud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    Debug = 10,
    #[default]
    Info = 20,
    Warning = 30,
    Error = 40,
    Critical = 50,
}

/// The levels, the quietest last.
pub const LEVELS: [Level; 5] = [
    Level::Debug,
    Level::Info,
    Level::Warning,
    Level::Error,
    Level::Critical,
];

impl Level {
    /// As Python's `logging` numbers it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// As Python's `logging` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// It is none of Python's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no log level: 10, 20, 30, 40, 50, or DEBUG, INFO, WARNING, ERROR, CRITICAL")]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    /// A number or a name, in any case, Python's other names among them.
    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        let text = text.trim();
        let named = match text.to_ascii_uppercase().as_str() {
            "WARN" => Some(Self::Warning),
            "FATAL" => Some(Self::Critical),
            name => LEVELS.into_iter().find(|level| level.name() == name),
        };
        let number = text.parse().ok();
        let numbered = || {
            LEVELS
                .into_iter()
                .find(|level| Some(level.number()) == number)
        };
        named.or_else(numbered).ok_or(UnknownLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_known_by_number_and_by_name() {
        for level in LEVELS {
            assert_eq!(level.name().parse(), Ok(level));
            assert_eq!(level.number().to_string().parse(), Ok(level));
        }
        assert_eq!(" warn\n".parse(), Ok(Level::Warning));
        assert_eq!("fatal".parse(), Ok(Level::Critical));
        for unknown in ["", "0", "15", "LOUD", "-10", "20.0"] {
            assert_eq!(unknown.parse::<Level>(), Err(UnknownLevel), "{unknown}");
        }
    }
}
