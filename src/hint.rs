//! Errors for the person at the terminal: what is wrong, and what to do about it.

use std::fmt::{self, Display};

use crate::control::Failure;

/// Exit code of a command that failed.
pub const FAILURE: u8 = 1;
/// Exit code of a command line that makes no sense; clap uses the same.
pub const USAGE: u8 = 2;

/// What is wrong, with a hint. Attach it to a cause with [`anyhow::Context::context`], or use it
/// as the error itself.
#[derive(Debug)]
pub struct Hinted {
    what: String,
    hint: String,
    code: u8,
}

impl Hinted {
    /// The command failed.
    pub fn failure(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: hint.into(),
            code: FAILURE,
        }
    }

    /// The command line makes no sense.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: hint.into(),
            code: USAGE,
        }
    }
}

impl Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Hinted {}

/// The error as it is printed: `Error: <what>: <cause>`, then `Hint: …` if there is one.
pub fn render(error: &anyhow::Error) -> String {
    let mut text = format!("Error: {error:#}\n");
    let hinted = error.downcast_ref().map(|hinted: &Hinted| &hinted.hint);
    let told = || error.downcast_ref::<Failure>()?.hint.as_ref();
    if let Some(hint) = hinted.or_else(told) {
        text += &format!("Hint: {hint}\n");
    }
    text
}

/// The exit code that goes with the error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<Hinted>()
        .map_or(FAILURE, |hinted| hinted.code)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn the_cause_follows_the_words_and_the_hint_has_its_own_line() {
        let error = Err::<(), _>(anyhow!("No such file or directory"))
            .context(Hinted::usage("cannot open /x", "create it"))
            .unwrap_err();
        assert_eq!(
            render(&error),
            "Error: cannot open /x: No such file or directory\nHint: create it\n"
        );
        assert_eq!(exit_code(&error), USAGE);
    }

    #[test]
    fn a_plain_error_has_no_hint() {
        let error = anyhow!("broken");
        assert_eq!(render(&error), "Error: broken\n");
        assert_eq!(exit_code(&error), FAILURE);
    }
}
