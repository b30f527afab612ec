//! The background mode. The command starts itself again as a daemon, whose stdout is a pipe back
//! to the command; `ready` on it means that the mount answers, anything else is the error.
//! Starting again, rather than forking, needs no `unsafe` and no care about threads.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use tracing::error;

use super::{Built, Source};
use crate::config::{Config, Log};
use crate::hint::{self, Hinted};
use crate::telemetry::output;

/// Set by the command for the daemon that it starts.
const DAEMON: &str = "NODBFS_DAEMON";
const READY: &str = "ready\n";
/// How much of the log is shown of a daemon that died without a word.
const LOG_LINES: usize = 5;

/// Whether this process was started by [`launch`].
pub fn is_daemon() -> bool {
    env::var_os(DAEMON).is_some()
}

/// The command's side: starts the daemon and waits for its word. Its error is printed as it stands.
pub fn launch(config: &Config) -> Result<ExitCode> {
    let program = env::current_exe()
        .context("cannot find the program itself, to start it in the background")?;
    let mut daemon = Command::new(&program)
        .args(env::args_os().skip(1))
        .env(DAEMON, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut word = String::new();
    if let Some(mut pipe) = daemon.stdout.take() {
        pipe.read_to_string(&mut word)
            .context("cannot hear from the daemon")?;
    }
    if word == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = daemon.wait().context("cannot wait for the daemon")?;
    if word.is_empty() {
        let what = format!(
            "the daemon ended without a word ({status}){}",
            last_lines(&config.log)
        );
        return Err(Hinted::failure(
            what,
            "run it with --foreground --log-level debug to see more",
        )
        .into());
    }
    eprint!("{word}");
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(
        code.filter(|code| *code != 0).unwrap_or(hint::FAILURE),
    ))
}

/// The daemon's side: mounts, serves, and returns the exit code.
pub fn serve<F, B>(config: &Config, build: B) -> ExitCode
where
    F: fuser::Filesystem,
    B: FnOnce(&Config, Source) -> Result<Built<F>>,
{
    // the terminal's signals are for the command; a session leader of one's own has no terminal.
    // Refused only if this is one already
    let _ = rustix::process::setsid();
    let result = output::init(&config.log).and_then(|()| {
        let pipe = Pipe {
            log: config.log.clone(),
        };
        super::run(config, build, Some(pipe))
    });
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    error!("{error:#}");
    // once the word was given, this is the log file or /dev/null
    let _ = io::stdout().write_all(hint::render(&error).as_bytes());
    ExitCode::from(hint::exit_code(&error))
}

/// The pipe to the waiting command.
#[derive(Debug)]
pub struct Pipe {
    log: Log,
}

impl Pipe {
    /// Tells the command that the mount answers, and lets go of everything that belongs to it.
    ///
    /// # Errors
    /// The command is gone: whoever wanted the mount has given up.
    pub fn ready(self) -> Result<()> {
        let mut stdout = io::stdout();
        stdout
            .write_all(READY.as_bytes())
            .and_then(|()| stdout.flush())
            .context("nobody waits for this mount any more")?;
        let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        // what libraries and the runtime still say to stderr belongs into the log
        rustix::stdio::dup2_stderr(output::open(&self.log.to)?)?;
        Ok(())
    }
}

fn last_lines(log: &Log) -> String {
    let text = log
        .file()
        .and_then(|path| fs::read_to_string(path).ok())
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    last.iter().map(|line| format!("\n  {line}")).collect()
}
