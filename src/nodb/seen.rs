//! Who holds a lock, as far as it can be known: what is stored, and what this mount knows besides of
//! those that it has taken.

use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Errno, Error, Result};
use crate::fs::attr::Attr;
use crate::fs::credentials::Caller;
use crate::fs::inode::Place;
use crate::fs::plain;
use crate::nodb::Nodb;
use crate::nodb::commit::lock_of;
use crate::nodb::document::Document;
use crate::nodb::session::command_of;
use crate::nodb::session_lock::{SessionLock, Through};
use crate::store::lease::Held;
use crate::store::{Holder, LockName, payload};

/// A lock that is held.
#[derive(Debug)]
pub struct Seen {
    pub name: LockName,
    pub holder: Holder,
    pub own: Option<Own>,
}

/// A lock that this mount has taken.
#[derive(Debug)]
pub enum Own {
    Session(Arc<SessionLock>),
    /// For the writers of a process.
    Writer(u32, Arc<Held>),
}

/// What is known of a lock beside what is stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Known {
    /// Whether this mount has taken it, and for whom.
    pub own: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// When it is let go at the latest, as its maker has said, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<u64>,
}

impl Own {
    fn known(&self) -> Known {
        match self {
            Self::Session(lock) => {
                let through = match lock.through {
                    Through::File => "lock file",
                    Through::Flock => "flock",
                    Through::Command => "command",
                };
                let said = lock.said();
                Known {
                    own: true,
                    pid: Some(lock.process),
                    command: lock.command.clone(),
                    uid: Some(lock.uid),
                    session: Some(lock.session.sid),
                    through: Some(through.to_owned()),
                    label: said.label,
                    ends_at: said.ends_at,
                }
            }
            Self::Writer(process, _) => Known {
                own: true,
                pid: Some(*process),
                command: command_of(*process),
                through: Some("open file".to_owned()),
                ..Known::default()
            },
        }
    }
}

impl Seen {
    pub fn known(&self) -> Known {
        self.own.as_ref().map(Own::known).unwrap_or_default()
    }

    /// One line of JSON: what is stored, and what else is known. Its length is the same as long as the
    /// same one holds the lock and says the same of it.
    pub fn content(&self) -> Vec<u8> {
        let stored = self.holder.value.trim();
        let fields = stored
            .strip_prefix('{')
            .and_then(|stored| stored.strip_suffix('}'));
        let is_object = serde_json::from_str::<serde_json::Map<_, _>>(stored).is_ok();
        let mut line = match fields.filter(|_| is_object) {
            // no string of JSON has a line break
            Some(fields) => format!("{{{}", fields.trim().replace(['\n', '\r'], " ")),
            // a bare token (PROTOCOL.md 4)
            None => format!(r#"{{"token":{}"#, json!(self.holder.value)),
        };
        let left = match self.holder.left {
            Some(left) => left.as_secs().to_string(),
            None => "null".to_owned(),
        };
        if line.len() > 1 {
            line.push(',');
        }
        let known = serde_json::to_string(&self.known());
        let known = known.expect("strings and numbers have a JSON form");
        line += &format!("\"seconds_left\":{left:>6},{}\n", &known[1..]);
        line.into_bytes()
    }
}

impl Nodb {
    /// The lock that `x.nodb` at `place` has or, if it does not exist yet, would have. ENOENT: what is
    /// there is no file, and has none. The store is not asked.
    pub fn lock_name(&self, place: &Place) -> Result<LockName> {
        let identity = match self.plain.stat(place) {
            Ok(attr) if attr.file_type() == FileType::Symlink => {
                // as child runs have them: the parent's document says whose lock it is
                let document = self.read_through(place);
                self.identify(document.as_ref(), place)?
            }
            Ok(attr) if attr.is_file() => {
                let loaded = self.load_from(place, false)?;
                self.identify(loaded.payload.document(), place)?
            }
            Ok(_) => return Err(Errno::NOENT.into()),
            Err(Error::Source(Errno::NOENT)) => self.identify(None, place)?,
            Err(error) => return Err(error),
        };
        Ok(lock_of(&identity))
    }

    /// The document that a symlink leads to, if it does.
    fn read_through(&self, place: &Place) -> Option<Document> {
        let dir = self.plain.inodes.fd(&place.dir).ok()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd: OwnedFd = openat(&*dir, &place.name, flags, Mode::empty()).ok()?;
        let attr = Attr::of_fd(&fd).ok()?;
        let fits = attr.is_file() && attr.size <= self.settings.max_payload;
        let read = || plain::read(&fd, 0, usize::try_from(attr.size).ok()?).ok();
        Document::parse(&fits.then(read)??).ok()
    }

    /// Who holds the lock of `x.nodb` at `place`, for `caller` to see. ENOENT: nobody.
    pub fn see_lock(&self, place: &Place, caller: Caller) -> Result<Seen> {
        let name = self.lock_name(place)?;
        // before the store is asked: what is taken meanwhile is not lost because it was not there
        let session = self.locker.sessions.get(&name);
        let holder = self.store.seen_holder(&name)?;
        let is_its = |lock: &Arc<SessionLock>| holder.as_ref().is_some_and(|now| lock.is(now));
        if let Some(lost) = session.as_ref().filter(|lock| !is_its(lock))
            && lost.serves(caller.tid)
        {
            // it sees now what has become of its lock, and may go on without
            self.locker.sessions.remove(lost);
        }
        Ok(self.with_own(name, holder.ok_or(Errno::NOENT)?))
    }

    /// All locks of controllers that anybody holds.
    pub fn see_all_locks(&self) -> Result<Vec<Seen>> {
        let held = self.store.held()?.into_iter();
        Ok(held
            .map(|(name, holder)| self.with_own(name, holder))
            .collect())
    }

    /// What this mount knows of the lock besides.
    pub fn with_own(&self, name: LockName, holder: Holder) -> Seen {
        let session = self.locker.sessions.get(&name);
        let session = session.filter(|lock| lock.is(&holder)).map(Own::Session);
        let own = session.or_else(|| {
            let (process, held) = self.controllers.leased_to(&name)?;
            let ours = payload::same(&holder.value, &held.value()?);
            ours.then_some(Own::Writer(process, held))
        });
        Seen { name, holder, own }
    }
}
