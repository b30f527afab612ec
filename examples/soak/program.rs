//! A program that knows nothing but files, as a process of its own: this program again, with `--program`. It is told
//! what to do line by line, so that it can be killed in the middle of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ledger::state_of_mut;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Road {
    // read and written under one lock
    /// In place, then `fsync`.
    Sync,
    /// In place; `close` is the commit.
    Close,
    /// A draft and a rename, with the controller open.
    Rename,
    /// In place, and only half of it.
    Torn,
    // nothing is held between reading and writing
    /// `open` with `O_TRUNC`, as a shell does.
    Truncate,
    /// A draft and a rename.
    Draft,
    /// `sed -i`.
    Sed,
    /// `cp` of a draft.
    Copy,
}

impl Road {
    pub const HELD: [Self; 4] = [Self::Sync, Self::Close, Self::Rename, Self::Torn];
    pub const FREE: [Self; 4] = [Self::Truncate, Self::Draft, Self::Sed, Self::Copy];
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub path: PathBuf,
    pub road: Road,
    pub writer: String,
    pub number: u64,
    /// How long to wait in the middle of writing.
    pub pause: Duration,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What was read.
    pub read: Option<String>,
    /// 0: the mount said that it is on stable storage.
    pub errno: i32,
    /// Which call failed.
    pub at: String,
}

/// Does what it is told until nobody tells it more.
pub fn run() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let task: Task = serde_json::from_str(&line?)?;
        println!("{}", serde_json::to_string(&perform(&task))?);
    }
    Ok(())
}

/// One attempt, as any program would make it.
pub fn perform(task: &Task) -> Done {
    let mut done = Done::default();
    let result = match task.road {
        Road::Sync | Road::Close | Road::Rename | Road::Torn => held(task, &mut done),
        Road::Truncate | Road::Draft | Road::Sed | Road::Copy => free(task, &mut done),
    };
    match result {
        Ok(()) => done.at.clear(),
        Err(error) => done.errno = error.raw_os_error().unwrap_or(libc::EIO),
    }
    done
}

fn held(task: &Task, done: &mut Done) -> io::Result<()> {
    let mut file = step(done, "open", || {
        OpenOptions::new().read(true).write(true).open(&task.path)
    })?;
    let mut text = String::new();
    step(done, "read", || file.read_to_string(&mut text))?;
    let next = marked(&text, task);
    done.read = Some(text);
    let next = step(done, "parse", || next)?;
    match task.road {
        Road::Rename => {
            let draft = draft(task);
            step(done, "draft", || fs::write(&draft, next))?;
            sleep(task.pause);
            return step(done, "rename", || fs::rename(&draft, &task.path));
        }
        Road::Torn => step(done, "write", || {
            overwrite(&mut file, &next[..next.len() / 2], task.pause)
        })?,
        _ => step(done, "write", || overwrite(&mut file, &next, task.pause))?,
    }
    if task.road == Road::Sync {
        // after a refused fsync the close is another try, and says what came of it
        match step(done, "fsync", || file.sync_all()) {
            Err(error) if is_gone(error.raw_os_error().unwrap_or(0)) => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
    step(done, "close", || close(file))
}

fn free(task: &Task, done: &mut Done) -> io::Result<()> {
    let text = step(done, "read", || fs::read_to_string(&task.path))?;
    let next = marked(&text, task);
    done.read = Some(text);
    let next = step(done, "parse", || next)?;
    let draft = draft(task);
    if matches!(task.road, Road::Draft | Road::Copy) {
        step(done, "draft", || fs::write(&draft, &next))?;
    }
    match task.road {
        Road::Draft => step(done, "rename", || fs::rename(&draft, &task.path)),
        Road::Copy => step(done, "cp", || {
            shell(Command::new("cp").args([&draft, &task.path]))
        }),
        Road::Sed => step(done, "sed", || {
            let (writer, number) = (&task.writer, task.number);
            let script = format!(
                "s/\"_mark_{writer}\": *[0-9]+/\"_mark_{writer}\": {number}/; s/\"_by\": *\"[^\"]*\"/\"_by\": \"{writer}:{number}\"/"
            );
            shell(
                Command::new("sed")
                    .args(["-i", "-E", &script])
                    .arg(&task.path),
            )
        }),
        _ => {
            let mut file = step(done, "open", || {
                OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .open(&task.path)
            })?;
            step(done, "write", || overwrite(&mut file, &next, task.pause))?;
            step(done, "close", || close(file))
        }
    }
}

fn step<T>(done: &mut Done, name: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    name.clone_into(&mut done.at);
    call()
}

/// The document with this attempt's number.
fn marked(text: &str, task: &Task) -> io::Result<String> {
    let wrong = |_| io::Error::from_raw_os_error(libc::EILSEQ);
    let mut document: Value = serde_json::from_str(text).map_err(wrong)?;
    let state = state_of_mut(&mut document);
    state[format!("_mark_{}", task.writer)] = json!(task.number);
    state["_by"] = json!(format!("{}:{}", task.writer, task.number));
    Ok(document.to_string())
}

fn overwrite(file: &mut File, text: &str, pause: Duration) -> io::Result<()> {
    let (one, two) = text.as_bytes().split_at(text.len() / 3);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(one)?;
    sleep(pause);
    file.write_all(two)?;
    file.set_len(text.len() as u64)
}

/// Passes on what `close` says, which a drop does not.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is given up here, and nobody else has it.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn draft(task: &Task) -> PathBuf {
    task.path.with_file_name(format!("draft-{}", task.writer))
}

/// Runs a program and turns its complaint back into the errno it was.
fn shell(command: &mut Command) -> io::Result<()> {
    let output = command.env("LC_ALL", "C").output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let known = [
        libc::EBUSY,
        libc::ESTALE,
        libc::ENOLCK,
        libc::EBADMSG,
        libc::ENOTCONN,
        libc::ECONNABORTED,
        libc::ENOENT,
        libc::EIO,
    ];
    let errno = known.into_iter().find(|&errno| {
        let words = io::Error::from_raw_os_error(errno).to_string();
        said.contains(words.split(" (os").next().unwrap_or(&words))
    });
    errno.map_or_else(
        || Err(io::Error::other(said.into_owned())),
        |errno| Err(io::Error::from_raw_os_error(errno)),
    )
}

/// What a program hears when its mount dies, or is not there yet.
pub fn is_gone(errno: i32) -> bool {
    const GONE: [i32; 5] = [
        libc::ENOTCONN,
        libc::ECONNABORTED,
        libc::ENOENT,
        libc::EIO,
        libc::ENODEV,
    ];
    GONE.contains(&errno)
}

/// Where the run of a controller is.
pub fn run_of(path: &Path) -> &Path {
    path.parent().expect("a controller lies in a run")
}
