//! The seal beside a cache entry: proof of which file bytes the entry stands for, and how to get
//! them back (DESIGN.md, "Entry and seal"). Whoever else rewrites the entry breaks nothing: the
//! digest decides.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::document::{Edit, Patched, Signature, restore};

/// Another version's seal is as good as none.
const VERSION: u32 = 1;

/// xxh3-128 of a generation's exact bytes: tells accidents apart, not attackers, who could write
/// the files as well.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(u128);

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(xxh3_128(bytes))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = std::num::ParseIntError;

    fn try_from(hex: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&hex, 16).map(Self)
    }
}

/// What is stored at `nodbfs:seal:<key>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    version: u32,
    /// The file's, when the entry was made.
    pub signature: Signature,
    /// Of the file's exact bytes.
    pub digest: Digest,
    edits: Vec<Edit>,
}

impl Seal {
    /// Seals the entry `patched`, made of the file `bytes` whose signature is `signature`.
    pub fn new(bytes: &[u8], patched: &Patched, signature: Signature) -> Self {
        Self {
            version: VERSION,
            signature,
            digest: digest(bytes),
            edits: patched.edits.clone(),
        }
    }

    /// As stored: JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings always serialize")
    }

    /// `None` for garbage and for other versions.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let seal: Self = serde_json::from_slice(bytes).ok()?;
        (seal.version == VERSION).then_some(seal)
    }

    /// The exact bytes of the file that now has `signature`, out of the cache entry; `None` unless
    /// this seal was made for that signature and the digest proves the bytes.
    pub fn open(&self, entry: &[u8], signature: Signature) -> Option<Vec<u8>> {
        if self.signature != signature {
            return None;
        }
        restore(entry, &self.edits).filter(|bytes| digest(bytes) == self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::Document;
    use super::*;

    const BYTES: &[u8] = br#"{"py/object": "wepp", "py/state": {"a": 1, "_nodb_size": 3}}"#;
    const SIGNATURE: Signature = Signature {
        mtime_ns: 1_700_000_000_123_456_789,
        size: BYTES.len() as u64,
    };

    fn sealed() -> (Vec<u8>, Seal) {
        let document = Document::parse(BYTES).unwrap();
        let patched = document.patch(BYTES, SIGNATURE).unwrap();
        let seal = Seal::new(BYTES, &patched, SIGNATURE);
        (patched.text, seal)
    }

    #[test]
    fn a_stored_seal_opens_its_entry() {
        let (entry, seal) = sealed();
        let stored = Seal::from_bytes(&seal.to_bytes()).unwrap();
        assert_eq!(stored, seal);
        assert_eq!(stored.open(&entry, SIGNATURE).unwrap(), BYTES);
        assert_eq!(stored.digest, digest(BYTES));
    }

    #[test]
    fn times_before_the_epoch_and_far_ahead_are_stored_exactly() {
        for mtime_ns in [-1, i128::from(i64::MAX) * 1_000_000_000 + 1] {
            let (_, mut seal) = sealed();
            seal.signature.mtime_ns = mtime_ns;
            assert_eq!(Seal::from_bytes(&seal.to_bytes()), Some(seal));
        }
    }

    #[test]
    fn another_signature_does_not_open() {
        let (entry, seal) = sealed();
        let mut later = SIGNATURE;
        later.mtime_ns += 1;
        assert_eq!(seal.open(&entry, later), None);
        let mut larger = SIGNATURE;
        larger.size += 1;
        assert_eq!(seal.open(&entry, larger), None);
    }

    #[test]
    fn an_entry_that_somebody_rewrote_does_not_open() {
        let (entry, seal) = sealed();
        for at in 0..entry.len() {
            let mut changed = entry.clone();
            changed[at] ^= 1;
            // A change inside what the edits replace cannot show: those bytes are not the file's.
            let opened = seal.open(&changed, SIGNATURE);
            assert!(opened.is_none() || opened.unwrap() == BYTES, "byte {at}");
            assert_eq!(seal.open(&entry[..at], SIGNATURE), None);
        }
        assert_eq!(seal.open(b"", SIGNATURE), None);
    }

    #[test]
    fn garbage_is_no_seal() {
        let (_, seal) = sealed();
        let json = String::from_utf8(seal.to_bytes()).unwrap();
        let hex = seal.digest.to_string();
        assert_eq!(hex.len(), 32);
        for garbage in [
            String::new(),
            "null".to_owned(),
            json[1..].to_owned(),
            json.replace("\"version\":1", "\"version\":2"),
            json.replace(&hex, "not hex"),
            json.replace("\"at\":", "\"at\":-"),
        ] {
            assert_eq!(Seal::from_bytes(garbage.as_bytes()), None, "{garbage}");
        }
    }

    #[test]
    fn edits_out_of_range_do_not_open() {
        let (entry, seal) = sealed();
        for (at, len) in [(usize::MAX, 1), (1, usize::MAX), (entry.len(), 1)] {
            let mut broken = seal.clone();
            broken.edits[0].at = at;
            broken.edits[0].len = len;
            assert_eq!(broken.open(&entry, SIGNATURE), None);
        }
    }
}
