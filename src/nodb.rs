//! Controllers: the documents, who they are, and how they are read and committed.

pub mod document;
pub mod identity;
pub mod seal;
