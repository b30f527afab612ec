//! The documents of controllers: JSON in the dialect of Python's `json`.

/// Why bytes are not a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset}")]
pub struct Invalid {
    pub offset: usize,
    pub reason: String,
}
