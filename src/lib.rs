//! nodbfs mounts NoDb run directories.

pub mod error;
pub mod nodb;
pub mod store;
