//! `nodbfs edit`.

use std::borrow::Cow;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::{Read, Write};
use std::mem::{self, ManuallyDrop};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use rustix::process::geteuid;
use signal_hook::consts::SIGINT;
use uuid::Uuid;

use super::target::{Embedded, Offline};
use crate::config::{self, made_absolute};
use crate::control::{Answer, Failure, Request};
use crate::hint::{FAILURE, Hinted};
use crate::nodb::document::text;
use crate::nodb::rejected::{Bounds, Kept, Refusal, Rejected};

/// What stands for the copy's path among a command's words.
const COPY: &str = "{}";
/// Between the first two tries; doubled after each.
const PAUSE: Duration = Duration::from_millis(500);

/// Change a controller under its lock: read, modify, commit
///
/// The lock is taken first and held until the commit, which is one as any other: validated, fenced,
/// durable, and known to the cache. With a lock that somebody else holds, and when the controller
/// changed all the same, it is tried again with a growing pause.
///
/// CMD is a filter, from stdin to stdout, or, if one of its words contains {}, a program that changes
/// the file whose path {} stands for, such as an editor. If it fails, nothing is committed, and its
/// exit status is passed on. Without CMD and --set: $VISUAL or $EDITOR. What could not be committed is
/// kept: see 'nodbfs rejected'.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// The controller, on a mount or not
    file: PathBuf,
    /// Set a field of the state, such as _start_year=1990 or a.b.0=null; dots lead into objects and
    /// arrays, '\.' is a dot in a name. VALUE is JSON, or else taken as a string. May repeat
    #[arg(long, value_name = "FIELD=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// How often to try, the first time included
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    #[command(flatten)]
    offline: Offline,
    /// What changes the document
    #[arg(last = true, value_name = "CMD", conflicts_with = "set")]
    command: Vec<OsString>,
}

fn assignment(typed: &str) -> Result<(String, String), String> {
    match typed.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.into(), text::value_of(value))),
        _ => Err("expected FIELD=VALUE".into()),
    }
}

/// What became of one try.
enum Tried {
    Committed,
    Unchanged,
    CommandFailed(Failed),
}

/// The command failed.
struct Failed {
    status: ExitStatus,
    /// Where there is what it has written.
    left: Option<PathBuf>,
}

/// Changes the controller; the exit code is the failed command's.
pub fn run(args: &EditArgs) -> Result<ExitCode> {
    // once the lock is held, a ^C is for the command: when that has ended the lock is given back
    let free = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(SIGINT, free.clone())
        .context("cannot catch signals")?;
    let (mut tried, mut pause) = (1, PAUSE);
    loop {
        match once(args, &free) {
            Ok(Tried::Committed) => return Ok(ExitCode::SUCCESS),
            Ok(Tried::Unchanged) => {
                eprintln!("Nothing changed");
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Tried::CommandFailed(failed)) => {
                let status = failed.status;
                eprintln!("Nothing was committed: the command failed ({status})");
                if let Some(left) = failed.left {
                    eprintln!("What it has written stays in {}", left.display());
                }
                return Ok(exit_code(status));
            }
            Err(error) if tried < args.tries && is_passing(&error) => {
                eprintln!("{error:#}; trying again in {pause:?}");
            }
            Err(error) => return Err(error),
        }
        free.store(true, SeqCst);
        thread::sleep(pause);
        pause *= 2;
        tried += 1;
    }
}

/// As shells say it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal);
    let code = code.and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(FAILURE))
}

/// Whether the next try may succeed: the lock was held, or the controller changed.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(
        errno_of(error),
        Some(libc::EBUSY | libc::EAGAIN | libc::ESTALE)
    )
}

fn errno_of(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<Failure>().and_then(|it| it.errno)
}

fn once(args: &EditArgs, free: &AtomicBool) -> Result<Tried> {
    let (mut client, path) = args.offline.reach(&args.file, Embedded::Fits)?;
    client.send(&Request::Edit { path }, &[])?;
    let Some((Answer::Locked, content)) = client.hear()? else {
        return Err(no_answer());
    };
    free.store(false, SeqCst);
    let changed = match change(args, &content)? {
        Ok(changed) => changed,
        Err(failed) => return Ok(Tried::CommandFailed(failed)),
    };
    if changed == content {
        return Ok(Tried::Unchanged);
    }
    let sent = client.send(&Request::Commit, &changed);
    match sent.and_then(|()| client.hear()) {
        Ok(None) => Ok(Tried::Committed),
        Ok(Some(_)) => Err(keeping(args, &changed, no_answer())),
        Err(error) => Err(keeping(args, &changed, error)),
    }
}

fn no_answer() -> anyhow::Error {
    anyhow!("the daemon's answer is none to the question")
}

/// The error of a commit, which also says where the document is that nobody took.
fn keeping(args: &EditArgs, changed: &[u8], error: anyhow::Error) -> anyhow::Error {
    let kept = keep(args, changed, &error).or_else(|cause| {
        eprintln!("Warning: the state directory cannot be used: {cause:#}");
        let dir = PrivateDir::new()?;
        let copy = dir.copy(&args.file, changed)?;
        dir.leave();
        Ok(format!("what it was to be is in {}", copy.display()))
    });
    let hint = kept.unwrap_or_else(|cause: anyhow::Error| format!("it is kept nowhere: {cause:#}"));
    error.context(Hinted::failure("the commit failed", hint))
}

/// Keeps the document among the refused ones, unless the daemon has put it there; says how it is shown.
fn keep(args: &EditArgs, changed: &[u8], error: &anyhow::Error) -> Result<String> {
    let state_dir = config::state_dir(args.offline.state_dir.clone())?;
    let rejected = Rejected::new(&state_dir, Bounds::default());
    let is_this = |kept: &Kept| fs::read(&kept.document).is_ok_and(|kept| kept == changed);
    let latest = rejected.list()?.into_iter().flatten().next();
    let kept = match latest.filter(is_this) {
        Some(kept) => kept,
        None => {
            let file = made_absolute(&args.file)?;
            let (dir, name) = (file.parent(), file.file_name().map(Path::new));
            let refusal = Refusal {
                reason: format!("{error:#}"),
                errno: errno_of(error),
                pid: Some(process::id()),
                uid: Some(geteuid().as_raw()),
            };
            let (dir, name) = (dir.unwrap_or(&file), name.unwrap_or(&file));
            rejected.keep(dir, name, None, refusal, changed)?
        }
    };
    let state_dir = state_dir.display();
    Ok(format!(
        "what it was to be is kept: nodbfs rejected show {} --state-dir {state_dir}",
        kept.id
    ))
}

/// What a document becomes, unless the command failed.
type Changed = Result<Vec<u8>, Failed>;

fn change(args: &EditArgs, content: &[u8]) -> Result<Changed> {
    if !args.set.is_empty() {
        let mut document = std::str::from_utf8(content)?.to_owned();
        for (field, value) in &args.set {
            document = text::set(&document, field, value)
                .with_context(|| format!("cannot set {field}"))?;
        }
        return Ok(Ok(document.into_bytes()));
    }
    let command = match args.command.is_empty() {
        true => editor(),
        false => args.command.clone(),
    };
    match command.iter().any(|word| text_of(word).contains(COPY)) {
        true => edit_copy(&args.file, &command, content),
        false => filter(&command, content),
    }
}

/// As git does it: the variable may hold arguments.
fn editor() -> Vec<OsString> {
    let mut set = ["VISUAL", "EDITOR"].into_iter().filter_map(env::var_os);
    let editor = set.find(|editor| !editor.is_empty());
    let mut script = editor.unwrap_or_else(|| "vi".into());
    script.push(" \"$1\"");
    vec!["sh".into(), "-c".into(), script, "sh".into(), COPY.into()]
}

/// A word of a command; bytes that are no UTF-8 come from nobody's keyboard.
fn text_of(word: &OsStr) -> Cow<'_, str> {
    word.to_string_lossy()
}

/// Runs a program on a copy that nobody else can read. If it does not end well, what it has written stays.
fn edit_copy(file: &Path, command: &[OsString], content: &[u8]) -> Result<Changed> {
    let dir = PrivateDir::new()?;
    let copy = dir.copy(file, content)?;
    let path = copy.to_string_lossy();
    let words = command
        .iter()
        .map(|word| text_of(word).replace(COPY, &path));
    let words: Vec<_> = words.collect();
    let mut program = Command::new(&words[0]);
    let status = program.args(&words[1..]).status();
    let status = status.with_context(|| cannot_run(&words[0]))?;
    let changed = fs::read(&copy);
    if status.success() {
        return match changed {
            Ok(changed) => Ok(Ok(changed)),
            Err(cause) => {
                let left = dir.leave();
                let hint = format!("what the command has written is in {}", left.display());
                let what = Hinted::failure("the copy cannot be read", hint);
                Err(anyhow::Error::new(cause).context(what))
            }
        };
    }
    // an editor that was killed may have left more than the copy
    let is_as_before = changed.is_ok_and(|changed| changed == content)
        && fs::read_dir(&dir.0).is_ok_and(|files| files.count() == 1);
    let left = (!is_as_before).then(|| dir.leave());
    Ok(Err(Failed { status, left }))
}

/// Runs a program that reads the document and writes what it is to be.
fn filter(command: &[OsString], content: &[u8]) -> Result<Changed> {
    let mut program = Command::new(&command[0]);
    program
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = program
        .spawn()
        .with_context(|| cannot_run(&text_of(&command[0])))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut changed = Vec::new();
    thread::scope(|scope| {
        // a filter need not read all of it, or anything
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(content)));
        stdout
            .map(|mut stdout| stdout.read_to_end(&mut changed))
            .transpose()
    })?;
    let status = child.wait()?;
    Ok(if status.success() {
        Ok(changed)
    } else {
        Err(Failed { status, left: None })
    })
}

fn cannot_run(program: &str) -> Hinted {
    Hinted::failure(
        format!("cannot run {program}"),
        "is it installed, and in PATH?",
    )
}

/// A directory of one's own, which goes with what is in it.
struct PrivateDir(PathBuf);

impl PrivateDir {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("nodbfs-edit-{}", Uuid::new_v4().simple()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Puts a copy of `file` there, which holds `content`.
    fn copy(&self, file: &Path, content: &[u8]) -> Result<PathBuf> {
        let copy = self.0.join(file.file_name().unwrap_or(OsStr::new("copy")));
        fs::write(&copy, content).with_context(|| format!("cannot write {}", copy.display()))?;
        Ok(copy)
    }

    /// It stays.
    fn leave(self) -> PathBuf {
        mem::take(&mut ManuallyDrop::new(self).0)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("Warning: {} stays: {error}", self.0.display());
        }
    }
}
