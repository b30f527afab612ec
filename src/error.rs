//! One error type for every operation: what a program sees (errno), how loud the log is about it
//! (level) and the whole cause (the `source` chain).

pub use rustix::io::Errno;
use tracing::Level;

use crate::nodb::document::Invalid;
use crate::store::StoreError;

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source said so; passed on unchanged (promise 8).
    #[error("{0}")]
    Source(#[from] Errno),
    /// The source failed inside one step of a commit or a load, which is named.
    #[error("{step}: {cause}")]
    Step { step: &'static str, cause: Errno },
    /// Somebody else holds the distributed lock, and the wait is over.
    #[error("the lock {key} is held by {holder}")]
    Locked { key: String, holder: String },
    /// As [`Error::Locked`], for a writer that asked not to wait (`O_NONBLOCK`).
    #[error("the lock {key} is held by {holder}, and the writer does not wait")]
    WouldBlock { key: String, holder: String },
    /// A signal ended the wait for a lock; says why it had to wait.
    #[error("the wait was interrupted: {0}")]
    Interrupted(Box<Self>),
    /// A lock is to live by its maker's session, and whose that is cannot be known.
    #[error(
        "the caller cannot be seen from here, so a lock of its could not be let go when it ends"
    )]
    OutOfSight,
    /// A lock is to be released or changed by somebody who did not take it.
    #[error("the lock {key} is {holder}'s, and not the caller's to release or to change")]
    NotOwnLock { key: String, holder: String },
    /// Something else than a lock was to be put where a controller's lock shows.
    #[error("{0} is the name of a lock: only opening it with O_CREAT makes it")]
    LockName(String),
    /// The run is being replaced: no new lock may be taken (PROTOCOL.md 2).
    #[error("run {runid} is being replaced")]
    Replaced { runid: String },
    /// The bytes are no document in the dialect of Python's `json`.
    #[error("not a JSON document: {0}")]
    NotADocument(#[from] Invalid),
    /// A `READONLY` marker lies beside the controller (PROTOCOL.md 1).
    #[error("the run is marked READONLY")]
    ReadOnlyRun,
    /// The mount was made with `--read-only`.
    #[error("the mount is read-only")]
    ReadOnlyMount,
    /// The file is no longer the generation that the writer opened (promise 6).
    #[error("the controller changed since the writer opened it")]
    StaleBase,
    /// The lock expired or was taken away before the publication.
    #[error("the lock was lost before the commit: {0}")]
    LeaseLost(String),
    /// The name must be looked up again; the kernel does so by itself.
    #[error("superseded: the name now leads to another generation")]
    Superseded,
    /// The lock service cannot be reached.
    #[error("the lock service cannot be reached: {0}")]
    Store(#[from] StoreError),
    /// The status channel cannot be reached.
    #[error("the message was not published: {0}")]
    Unpublished(StoreError),
    /// What was appended to a virtual log has a line beyond this, in bytes.
    #[error("a line of {size} bytes is more than a message may have ({max})")]
    LineTooLong { size: usize, max: usize },
    /// What was appended to a virtual log is no text.
    #[error("a message is UTF-8 text without control characters")]
    NotText,
    /// Beyond `--max-payload`, in bytes.
    #[error("{size} bytes are more than --max-payload allows ({max})")]
    TooLarge { size: u64, max: u64 },
    /// The published file did not read back as it was written.
    #[error("the published file does not read back as it was written")]
    RoundTrip,
}

impl Error {
    /// The table of errnos (DESIGN.md, "Errors a program sees").
    pub fn errno(&self) -> Errno {
        match self {
            Self::Source(errno) | Self::Step { cause: errno, .. } => *errno,
            Self::Locked { .. } | Self::Replaced { .. } => Errno::BUSY,
            Self::WouldBlock { .. } => Errno::AGAIN,
            Self::Interrupted(_) => Errno::INTR,
            Self::OutOfSight | Self::NotOwnLock { .. } | Self::LockName(_) => Errno::PERM,
            Self::NotADocument(_) => Errno::BADMSG,
            Self::ReadOnlyRun | Self::ReadOnlyMount => Errno::ROFS,
            Self::StaleBase | Self::LeaseLost(_) | Self::Superseded => Errno::STALE,
            Self::Store(_) => Errno::NOLCK,
            Self::Unpublished(_) => Errno::COMM,
            Self::LineTooLong { .. } => Errno::MSGSIZE,
            Self::NotText => Errno::INVAL,
            Self::TooLarge { .. } => Errno::FBIG,
            Self::RoundTrip => Errno::IO,
        }
    }

    /// How loud the log is: the source's own answers are everyday, a refusal is worth a line, a
    /// failing round trip needs a person.
    pub fn level(&self) -> Level {
        match self {
            Self::Source(_) | Self::Superseded | Self::Interrupted(_) => Level::DEBUG,
            Self::RoundTrip => Level::ERROR,
            _ => Level::WARN,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Source(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Names the step of a commit or a load in which the source failed.
pub trait InStep<T> {
    /// Turns the source's errno into [`Error::Step`].
    fn in_step(self, step: &'static str) -> Result<T>;
}

impl<T> InStep<T> for std::result::Result<T, Errno> {
    fn in_step(self, step: &'static str) -> Result<T> {
        self.map_err(|cause| Error::Step { step, cause })
    }
}
