//! nodbfs mounts NoDb run directories. The way of a request:
//!
//! [`fuse`] decodes it, [`fs`] asks which kind of [`node`] it is about; plain files and
//! directories are the source's ([`fs::plain`]), controllers are [`nodb`]'s, which reads and
//! commits them with the help of a [`store`]. [`cli`] says what was typed, [`config`] what it
//! means, [`mount`] is the life of a mount, [`control`] what it answers beside the mount.

pub mod build;
pub mod cli;
pub mod config;
pub mod control;
pub mod counters;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod hint;
pub mod memory;
pub mod mount;
pub mod nodb;
pub mod node;
pub mod step;
pub mod store;
pub mod telemetry;
