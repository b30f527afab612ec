//! `flock(2)` and `fcntl(2)` locks: of plain files as on the source, on the mount, beside it and on another
//! mount of it (promise 8); of controllers the distributed lock (promise 5).

#[path = "../common/mod.rs"]
mod common;
mod controllers;
mod locker;
mod plain;
mod sqlite;
