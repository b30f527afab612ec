//! nodbfs mounts NoDb run directories.

pub mod cli;
pub mod config;
pub mod error;
pub mod hint;
pub mod mount;
pub mod nodb;
pub mod store;
pub mod telemetry;
