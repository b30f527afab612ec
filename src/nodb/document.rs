//! The documents of controllers: JSON in the dialect of Python's `json`.
//!
//! A document is judged and outlined in one pass and kept as bytes. The text that NoDb caches is
//! the same document with its two signature fields set to the file's (PROTOCOL.md 5): `patch`
//! makes it, `restore` undoes it exactly.

mod scan;
#[cfg(test)]
mod tests;
pub mod text;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use scan::MAX_DEPTH;
use scan::{Key, Object};

/// Why bytes are not a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset}")]
pub struct Invalid {
    pub offset: usize,
    pub reason: String,
}

/// What tells generations apart on disk (PROTOCOL.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// Nanoseconds since the epoch; wide enough for every time a file can have.
    pub mtime_ns: i128,
    /// Bytes.
    pub size: u64,
}

impl Signature {
    /// `st_mtime` in seconds, computed as CPython computes it, so that both round alike.
    pub fn st_mtime(&self) -> f64 {
        const SECOND: i128 = 1_000_000_000;
        let seconds = self.mtime_ns.div_euclid(SECOND) as f64;
        let nanoseconds = self.mtime_ns.rem_euclid(SECOND) as f64;
        seconds + 1e-9 * nanoseconds
    }

    /// `repr(st_mtime)` of Python. Both languages print the shortest digits that read back, and
    /// switch to exponents at the same sizes; only the exponent's form differs (`e-9`, `e-09`).
    fn mtime_repr(&self) -> String {
        let digits = format!("{:?}", self.st_mtime());
        let Some((mantissa, exponent)) = digits.split_once('e') else {
            return digits;
        };
        match exponent.strip_prefix('-') {
            Some(exponent) => format!("{mantissa}e-{exponent:0>2}"),
            None => format!("{mantissa}e+{exponent:0>2}"),
        }
    }
}

/// A valid document: its identity fields, and where its signature fields stand.
#[derive(Clone, Debug)]
pub struct Document {
    /// `_parent_wd` of the state object; `None` if absent, null, empty or broken. Likewise the others.
    pub parent_wd: Option<String>,
    pub run_group: Option<String>,
    pub group_name: Option<String>,
    /// What is wrong with identity fields that are there but unusable, in words.
    pub broken: Vec<String>,
    slots: Option<Slots>,
}

/// Where the signature goes in the document's bytes.
#[derive(Clone, Debug)]
struct Slots {
    mtime: Option<Range<usize>>,
    size: Option<Range<usize>>,
    /// Where missing ones are inserted: the end of the state object's members.
    end: usize,
    empty: bool,
}

/// A document with another signature, and the way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patched {
    /// What goes into the cache.
    pub text: Vec<u8>,
    /// What [`restore`] needs, in the order of the text.
    pub edits: Vec<Edit>,
}

/// One place where a patched text differs from the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Offset in the patched text, in bytes.
    pub at: usize,
    /// Length in the patched text, in bytes.
    pub len: usize,
    /// What stands there in the document.
    pub was: String,
}

impl Document {
    /// Judges `bytes` as `json.loads(bytes.decode("utf-8"))` would (PROTOCOL.md 1), except that
    /// integers may have any number of digits, whatever an interpreter's own limit is, and that
    /// the nesting limit is [`MAX_DEPTH`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(bytes).map_err(|error| Invalid {
            offset: error.valid_up_to(),
            reason: "not UTF-8".to_owned(),
        })?;
        let state = scan::state_object(text)?;
        let mut broken = Vec::new();
        let mut identity = |key| {
            let value = state.as_ref().and_then(|state| state.value(key))?;
            identity_field(&text[value]).unwrap_or_else(|why| {
                broken.push(format!("{} {why}", key.name()));
                None
            })
        };
        Ok(Self {
            parent_wd: identity(Key::ParentWd),
            run_group: identity(Key::RunGroup),
            group_name: identity(Key::GroupName),
            broken,
            slots: state.map(Slots::of),
        })
    }

    /// The cache entry: `bytes`, which must be what was parsed, with `_nodb_mtime` and
    /// `_nodb_size` of the state object set to `signature` (PROTOCOL.md 5). `None` if the document
    /// is no object: then there is nothing to set, and no entry that a NoDb process would accept.
    pub fn patch(&self, bytes: &[u8], signature: Signature) -> Option<Patched> {
        let slots = self.slots.as_ref()?;
        let fields = [
            (Key::Mtime, &slots.mtime, signature.mtime_repr()),
            (Key::Size, &slots.size, signature.size.to_string()),
        ];
        let mut changes = Vec::new();
        let mut missing = Vec::new();
        for (key, present, value) in fields {
            match present {
                Some(span) => changes.push((span.clone(), value)),
                None => missing.push(format!("\"{}\": {value}", key.name())),
            }
        }
        if !missing.is_empty() {
            let separator = if slots.empty { "" } else { ", " };
            let inserted = format!("{separator}{}", missing.join(", "));
            changes.push((slots.end..slots.end, inserted));
        }
        changes.sort_by_key(|(span, _)| span.start);

        let grown: usize = changes.iter().map(|(_, new)| new.len()).sum();
        let mut text = Vec::with_capacity(bytes.len() + grown);
        let mut edits = Vec::with_capacity(changes.len());
        let mut done = 0;
        for (span, new) in changes {
            text.extend_from_slice(bytes.get(done..span.start)?);
            done = span.end;
            edits.push(Edit {
                at: text.len(),
                len: new.len(),
                was: String::from_utf8(bytes.get(span)?.to_vec()).ok()?,
            });
            text.extend_from_slice(new.as_bytes());
        }
        text.extend_from_slice(bytes.get(done..)?);
        Some(Patched { text, edits })
    }
}

impl Slots {
    fn of(state: Object) -> Self {
        Self {
            mtime: state.value(Key::Mtime),
            size: state.value(Key::Size),
            end: state.end,
            empty: state.empty,
        }
    }
}

/// The string of an identity field, `None` for null, or why it cannot be used.
fn identity_field(value: &str) -> Result<Option<String>, &'static str> {
    match value {
        "null" => Ok(None),
        "\"\"" => Err("is empty"),
        _ if !value.starts_with('"') => Err("is not a string"),
        // NoDb processes cannot encode such a name for Redis either.
        _ => scan::unquote(value).map(Some).ok_or("is not Unicode"),
    }
}

/// Undoes [`Document::patch`]: the document's exact bytes. `None` if the edits do not fit the
/// text; whether the text is still the patched one only a digest can tell.
pub fn restore(text: &[u8], edits: &[Edit]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut done = 0;
    for edit in edits {
        bytes.extend_from_slice(text.get(done..edit.at)?);
        bytes.extend_from_slice(edit.was.as_bytes());
        done = edit.at.checked_add(edit.len)?;
    }
    bytes.extend_from_slice(text.get(done..)?);
    Some(bytes)
}
