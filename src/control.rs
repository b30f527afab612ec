//! What can be asked of a mount beside the mount: a daemon answers on a socket of its own, on
//! threads of its own, so also when the mount is stuck. The same questions are answered without a
//! mount by the asking process itself, over a source and a store ([`client`]).
//!
//! A conversation is a line of JSON each way, with bytes behind it where it says so ([`wire`]). Every
//! request is answered by any number of answers and then by [`Answer::Done`] or [`Answer::Failed`].
//! What is asked is done by one function, [`handle`], wherever it runs.

pub mod cache;
pub mod client;
pub mod edit;
pub mod find;
pub mod locks;
pub mod log;
pub mod server;
pub mod status;
pub mod wire;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Errno, Error};
use crate::fs::Fs;
use crate::fs::credentials::Caller;
use crate::mount::table;
use server::Talks;
use status::Status;
use wire::Channel;

/// What is asked. Paths are relative to the source.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Which directory is served.
    Source,
    Cache {
        action: cache::Action,
        path: String,
    },
    /// Locks a controller; [`Answer::Locked`] comes with its document.
    Edit {
        path: String,
    },
    /// What happened to controllers; with `follow`, also what will.
    Log {
        path: String,
        follow: bool,
    },
    Publish {
        path: String,
        text: String,
    },
    /// How loud a run is to be; without `level` only said.
    Level {
        path: String,
        level: Option<String>,
    },
    /// Comes with the document that the locked controller is to hold.
    Commit,
    /// The locks that are held: of a controller, of a run, or all.
    Locks {
        path: String,
    },
    /// Locks a controller until [`Request::Release`], or the peer's end.
    Lock {
        path: String,
        /// Seconds after which it is let go at the latest.
        ttl: Option<f64>,
        label: Option<String>,
    },
    Release,
    /// Gives a lock back that this mount took or, for a reason, takes it away from anybody.
    Unlock {
        path: String,
        force: Option<String>,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Source(String),
    Cache(Box<cache::Row>),
    Locked,
    Log(log::LogLine),
    Level(log::RunLevel),
    Lock(Box<locks::Row>),
    /// Whether it was still held.
    Released(bool),
    /// The end of the answers.
    Done,
    /// The end of the answers: it could not be done.
    Failed(Failure),
}

/// Why it could not be done.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub what: String,
    /// What a program would have been told by the mount.
    pub errno: Option<i32>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            errno: None,
            hint: Some(hint.into()),
        }
    }

    fn ended() -> Self {
        Self::new("the mount has ended", "mount it again")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            what: error.to_string(),
            errno: Some(error.errno().raw_os_error()),
            hint: None,
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Error::Source(errno).into()
    }
}

/// The connection broke: there is nobody left to tell, but the log is.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self {
            what: format!("the conversation broke: {error}"),
            errno: error.raw_os_error(),
            hint: None,
        }
    }
}

/// What is known where questions are answered.
#[derive(Debug)]
pub struct Context {
    /// Not kept alive: a mount that has ended has nothing to say.
    fs: Weak<Fs>,
    /// What is mounted, or worked on without a mount.
    pub source: PathBuf,
    /// `None`: no mount.
    pub mountpoint: Option<PathBuf>,
    /// The same as the mount table has it.
    at: Option<PathBuf>,
    /// Mounted so.
    read_only: bool,
    pub started: Instant,
    talks: Talks,
}

impl Context {
    /// Of `fs`, since now; at `mountpoint` nothing is mounted yet.
    pub fn new(
        fs: &Arc<Fs>,
        source: PathBuf,
        mountpoint: Option<PathBuf>,
        read_only: bool,
    ) -> Self {
        Self {
            fs: Arc::downgrade(fs),
            source,
            at: mountpoint
                .as_deref()
                .and_then(|at| table::canonical(at).ok()),
            mountpoint,
            read_only,
            started: Instant::now(),
            talks: Talks::default(),
        }
    }

    /// Takes no more questions, and waits, not for ever, until what was asked is done and answered.
    pub fn end(&self) {
        self.talks.end();
    }

    /// Whether it was mounted so, or has been remounted so since, of which only the kernel knows.
    pub fn is_read_only(&self) -> bool {
        let mounted = || table::top(self.at.as_deref()?).ok()?;
        self.read_only || mounted().is_some_and(|mounted| mounted.is_ours() && mounted.read_only)
    }

    /// # Errors
    /// EROFS: see [`Context::is_read_only`].
    pub fn check_writable(&self) -> Result<(), Failure> {
        match self.is_read_only() {
            true => Err(Error::ReadOnlyMount.into()),
            false => Ok(()),
        }
    }

    /// The file system, for as long as an answer takes.
    pub fn fs(&self) -> Result<Arc<Fs>, Failure> {
        self.fs.upgrade().ok_or_else(Failure::ended)
    }
}

/// Somebody who asks.
#[derive(Debug)]
pub struct Peer<'a> {
    pub channel: &'a mut Channel,
    /// Who it is, as the kernel says.
    pub caller: Caller,
}

impl Peer<'_> {
    /// One answer of several.
    pub fn tell(&mut self, answer: &Answer) -> Result<(), Failure> {
        self.tell_with(answer, &[])
    }

    /// One answer, with bytes behind it.
    pub fn tell_with(&mut self, answer: &Answer, body: &[u8]) -> Result<(), Failure> {
        Ok(self.channel.send(answer, body)?)
    }

    /// What is asked next, in the middle of an answer.
    ///
    /// # Errors
    /// Nothing is: the mount ends, or the peer has hung up, and will not be told.
    pub fn hear(&mut self) -> Result<(Request, Vec<u8>), Failure> {
        self.channel.receive()?.ok_or_else(Failure::ended)
    }

    /// Whether nobody listens any more, or the mount ends. Does not wait.
    pub fn is_gone(&self) -> bool {
        self.channel.is_over()
    }
}

/// Does what `request` asks; the last answer is the caller's to send.
pub fn handle(context: &Context, peer: &mut Peer<'_>, request: Request) -> Result<(), Failure> {
    match request {
        Request::Status => peer.tell(&Answer::Status(Box::new(status::of(context)?))),
        Request::Source => peer.tell(&Answer::Source(
            context.source.to_string_lossy().into_owned(),
        )),
        Request::Cache { action, path } => cache::act(context, peer, action, &path),
        Request::Log { path, follow } => log::log(context, peer, &path, follow),
        Request::Publish { path, text } => log::publish(context, peer, &path, &text),
        Request::Level { path, level } => log::level(context, peer, &path, level.as_deref()),
        Request::Edit { path } => edit::edit(context, peer, &path),
        Request::Locks { path } => locks::list(context, peer, &path),
        Request::Lock { path, ttl, label } => locks::lock(context, peer, &path, ttl, label),
        Request::Unlock { path, force } => locks::unlock(context, peer, &path, force),
        Request::Commit | Request::Release => {
            Err(Failure::new("nothing is locked", "ask for an edit first"))
        }
    }
}
