//! A controller's cache entry in the hands of an operator: looked at, verified, rewritten, removed.
//! Reads and commits keep it right by themselves; this is for when somebody wants to know, or to
//! have it so at once.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, unix_nanos};
use crate::fs::inode::Place;
use crate::nodb::Nodb;
use crate::nodb::commit::lock_of;
use crate::nodb::controller::Controller;
use crate::nodb::document::{Document, Signature, text};
use crate::nodb::generation::Payload;
use crate::nodb::leftovers::is_leftover;
use crate::nodb::seal::{Digest, Seal, digest};
use crate::node::{is_dump, is_hidden};
use crate::store::Cached;

/// How often a controller that changes under the look is looked at again, and how long after.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// How long a NoDb process's temporary file must have been left alone to be an orphan, in nanoseconds:
/// no dump takes an hour.
const ABANDONED: i128 = 3600 * 1_000_000_000;

/// What the cache has under a controller's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    None,
    /// The document on disk, with its signature: every reader is served from it.
    Current,
    /// The document on disk with another signature: old readers take it, modern ones do not.
    OtherSignature,
    /// Another document: an old reader would be given it.
    OtherDocument,
    /// No document at all.
    NotADocument,
}

/// What nodbfs's own record beside the entry is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealState {
    None,
    /// It proves the entry.
    Valid,
    /// Another generation's, or the entry was rewritten by a NoDb process: the disk is read once.
    Void,
}

/// A controller's file and what the cache knows of it, at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    pub runid: String,
    pub relpath: String,
    pub channel: String,
    pub key: String,
    /// Of the file.
    pub signature: Signature,
    pub digest: Digest,
    /// Why the file is no document.
    pub invalid: Option<String>,
    /// Whether the bytes are in the daemon's memory.
    pub in_memory: bool,
    pub entry: Entry,
    pub seal: SealState,
}

impl Nodb {
    /// What the cache has of the controller. Changes nothing.
    ///
    /// # Errors
    /// No such file; ENOLCK: the store cannot be asked; EFBIG: beyond `--max-payload`; EAGAIN: the
    /// file is being written all the time.
    pub fn look_at_cache(&self, controller: &Controller) -> Result<Look> {
        let place = &controller.place;
        for _ in 0..LOOKS {
            let key = self.cache_key(place)?;
            let cached = self.store.get(&key)?;
            if let Some((attr, payload)) = self.read_disk(place)?
                && self.is_still(controller, &attr)
            {
                return self.judge(controller, key, &attr, &payload, &cached);
            }
            thread::sleep(PAUSE);
        }
        Err(Errno::AGAIN.into())
    }

    fn judge(
        &self,
        controller: &Controller,
        key: String,
        attr: &Attr,
        payload: &Payload,
        cached: &Cached,
    ) -> Result<Look> {
        let (size, max) = (attr.size, self.settings.max_payload);
        let Payload::Bytes(bytes, _) = payload else {
            return Err(Error::TooLarge { size, max });
        };
        let document = Document::parse(bytes);
        let entry = match (&cached.entry, &document) {
            (None, _) => Entry::None,
            (Some(entry), Ok(document)) => compare(entry, document, bytes, attr.signature()),
            (Some(_), Err(_)) => Entry::OtherDocument,
        };
        let seal = match &cached.seal {
            None => SealState::None,
            Some(_) if self.unseal(cached, attr).as_ref() == Some(bytes) => SealState::Valid,
            Some(_) => SealState::Void,
        };
        let identity = self.identify(document.as_ref().ok(), &controller.place)?;
        Ok(Look {
            runid: identity.runid,
            relpath: identity.relpath,
            channel: identity.channel,
            key,
            signature: attr.signature(),
            digest: digest(bytes),
            invalid: document.err().map(|invalid| invalid.to_string()),
            in_memory: self.payloads.get(attr).is_some(),
            entry,
            seal,
        })
    }

    /// Whether the run's mirror flag says that the controller is locked, though nobody holds the lock.
    pub fn has_stale_flag(&self, look: &Look) -> Result<bool> {
        let lock = crate::store::LockName {
            runid: look.runid.clone(),
            relpath: look.relpath.clone(),
        };
        Ok(self.store.is_flag_stale(&lock)?)
    }

    /// Reads the controller from disk, whatever is in memory, and rewrites entry and seal. A commit
    /// that comes between wins.
    ///
    /// # Errors
    /// No such file; EBADMSG: what is on disk is no document, and the entry stays as it was; ENOLCK:
    /// the store cannot be told; EFBIG; EAGAIN: somebody else writes all the time.
    pub fn reload(&self, controller: &Controller) -> Result<()> {
        let place = &controller.place;
        let (key, max) = (self.cache_key(place)?, self.settings.max_payload);
        for _ in 0..LOOKS {
            let seen = self.store.get(&key)?.entry;
            let Some((attr, payload)) = self.read_disk(place)? else {
                thread::sleep(PAUSE);
                continue;
            };
            let Payload::Bytes(bytes, _) = &payload else {
                let size = attr.size;
                return Err(Error::TooLarge { size, max });
            };
            let document = Document::parse(bytes)?;
            let put = match document.patch(bytes, attr.signature()) {
                Some(patched) => {
                    let seal = Seal::new(bytes, &patched, attr.signature()).to_bytes();
                    let seen = seen.as_deref();
                    self.store
                        .put_if_unchanged(&key, seen, &patched.text, &seal)?
                }
                // nothing that a NoDb process would accept can be made of it
                None => self
                    .store
                    .delete(std::slice::from_ref(&key))
                    .map(|()| true)?,
            };
            // an entry that is not ours is the commit's own that came between
            if !put {
                continue;
            }
            if !self.is_still(controller, &attr) {
                self.store.delete(std::slice::from_ref(&key))?;
            } else {
                self.forget_entries(self.aliases(place));
                let payload = Payload::of_document(bytes.clone(), document);
                self.payloads.put(&attr, &Arc::new(payload));
                controller.supersede();
                self.notify(place, false);
                return Ok(());
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Removes what the cache has of the controller, under all its keys, and what memory has.
    ///
    /// # Errors
    /// ENOLCK: the store cannot be told now; it will be as soon as it is back.
    pub fn evict(&self, controller: &Controller) -> Result<()> {
        let place = &controller.place;
        if let Ok(attr) = self.plain.stat(place) {
            self.payloads.remove(&attr);
        }
        let mut keys = self.aliases(place);
        keys.push(self.cache_key(place)?);
        if let Err(error) = self.store.delete(&keys) {
            self.debts.owe(keys);
            return Err(error.into());
        }
        Ok(())
    }

    /// Why the file at `place` is a temporary one that nobody will come back for; `None`: it is none.
    pub fn orphaned(&self, place: &Place) -> Option<String> {
        let whose = match () {
            () if is_hidden(&place.name) => "a nodbfs",
            () if is_dump(&place.name) => "a NoDb process",
            () => return None,
        };
        let attr = self.plain.stat(place).ok().filter(Attr::is_file)?;
        let now = unix_nanos(SystemTime::now());
        let left = match is_hidden(&place.name) {
            true => is_leftover(&place.name, now - attr.ctime),
            false => now - attr.mtime > ABANDONED,
        };
        left.then(|| format!("a temporary file that {whose} left behind"))
    }

    /// Who holds the controller's lock, as stored; `None`: nobody.
    pub fn holder_value(&self, controller: &Controller) -> Result<Option<String>> {
        let lock = lock_of(&self.identity_now(controller)?);
        Ok(self.locker.holder(&lock)?.map(|holder| holder.value))
    }
}

/// What an entry is to the document `bytes` on disk, whose signature is `signature`.
fn compare(entry: &[u8], document: &Document, bytes: &[u8], signature: Signature) -> Entry {
    let Some(expected) = document.patch(bytes, signature) else {
        return Entry::OtherDocument;
    };
    if text::same(entry, &expected.text) {
        return Entry::Current;
    }
    let Ok(other) = Document::parse(entry) else {
        return Entry::NotADocument;
    };
    match other.patch(entry, signature) {
        Some(patched) if text::same(&patched.text, &expected.text) => Entry::OtherSignature,
        _ => Entry::OtherDocument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = br#"{"py/object": "wepp", "n": 1, "_nodb_size": 3}"#;
    const SIGNATURE: Signature = Signature {
        mtime_ns: 1_700_000_000_123_456_789,
        size: BYTES.len() as u64,
    };

    #[test]
    fn an_entry_is_judged_by_its_document_and_its_signature() {
        let document = Document::parse(BYTES).unwrap();
        let judged = |entry: &[u8]| compare(entry, &document, BYTES, SIGNATURE);
        let current = document.patch(BYTES, SIGNATURE).unwrap().text;
        assert_eq!(judged(&current), Entry::Current);
        let dense: Vec<u8> = current
            .iter()
            .copied()
            .filter(|byte| *byte != b' ')
            .collect();
        assert_eq!(judged(&dense), Entry::Current);
        assert_eq!(judged(BYTES), Entry::OtherSignature);
        let other = String::from_utf8(current).unwrap().replace(": 1,", ": 2,");
        assert_eq!(judged(other.as_bytes()), Entry::OtherDocument);
        assert_eq!(judged(b"[1]"), Entry::OtherDocument);
        assert_eq!(judged(b"{"), Entry::NotADocument);
    }
}
