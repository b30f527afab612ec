//! Replies: an operation's answer as the kernel takes it.

use std::io;
use std::time::Duration;

use fuser::{
    BackingId, Errno as FuseErrno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
};

use rustix::fd::OwnedFd;

use super::convert;
use super::passthrough::{Passthrough, Way};
use crate::error::{Error, Result};
use crate::fs::attr::Attr;
use crate::fs::plain::XattrReply;
use crate::fs::{Entry, Open, Opened};

/// A generation number is never needed: no node number is used twice for different things.
pub const GENERATION: Generation = Generation(0);

/// The errno the program sees.
pub fn errno(error: &Error) -> FuseErrno {
    FuseErrno::from_i32(error.errno().raw_os_error())
}

/// Replies to an operation that answers with an entry.
pub fn entry(reply: ReplyEntry, answer: Result<Entry>) {
    match answer {
        Ok(entry) => {
            let attr = convert::attr(entry.id, &entry.attr);
            reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &attr, GENERATION);
        }
        Err(error) => reply.error(errno(&error)),
    }
}

/// Replies to a lookup of a name that is not there, which the kernel may believe for `ttl`.
pub fn missing(reply: ReplyEntry, ttl: Duration) {
    if ttl.is_zero() {
        return reply.error(FuseErrno::ENOENT);
    }
    reply.entry_with_ttls(&Duration::ZERO, &ttl, &convert::nothing(), GENERATION);
}

/// Replies to an operation that answers with nothing.
pub fn empty(reply: ReplyEmpty, answer: Result<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

pub fn write(reply: ReplyWrite, answer: Result<usize>) {
    match answer {
        Ok(written) => reply.written(written as u32),
        Err(error) => reply.error(errno(&error)),
    }
}

pub fn xattr(reply: ReplyXattr, answer: Result<XattrReply>) {
    match answer {
        Ok(XattrReply::Size(size)) => reply.size(size as u32),
        Ok(XattrReply::Data(data)) => reply.data(&data),
        Err(error) => reply.error(errno(&error)),
    }
}

pub fn open(reply: ReplyOpen, passthrough: &Passthrough, id: u64, answer: Result<Open>) {
    let open = match answer {
        Ok(open) => open,
        Err(error) => return reply.error(errno(&error)),
    };
    let handle = FileHandle(open.handle);
    let way = way_of(passthrough, id, &open, |fd| reply.open_backing(fd));
    let flags = flags_of(&open.opened, way.as_ref());
    match way {
        Some(Way::Lower(backing)) => reply.opened_passthrough(handle, flags, &backing),
        _ => reply.opened(handle, flags),
    }
}

/// Which way the reads and writes of a plain file go.
fn way_of(
    passthrough: &Passthrough,
    id: u64,
    open: &Open,
    backing: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
) -> Option<Way> {
    match &open.opened {
        Opened::Plain { fd, treat, .. } => {
            Some(passthrough.attach(id, open.handle, treat, || backing(fd)))
        }
        _ => None,
    }
}

/// How the kernel is to treat what was opened (measured: every request saved counts).
fn flags_of(opened: &Opened, way: Option<&Way>) -> FopenFlags {
    match opened {
        Opened::Plain { flush, .. } => {
            let pages = match way {
                Some(Way::Pages { keep: true }) => FopenFlags::FOPEN_KEEP_CACHE,
                Some(Way::Asking) => FopenFlags::FOPEN_DIRECT_IO,
                _ => FopenFlags::empty(),
            };
            let flush = if *flush {
                FopenFlags::empty()
            } else {
                FopenFlags::FOPEN_NOFLUSH
            };
            pages | flush
        }
        Opened::Generation => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        Opened::Direct => FopenFlags::FOPEN_DIRECT_IO,
        Opened::Directory { keep: true } => {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        }
        Opened::Directory { keep: false } => FopenFlags::FOPEN_CACHE_DIR,
    }
}

pub fn attr(reply: ReplyAttr, answer: Result<(Attr, Duration)>) {
    match answer {
        Ok((attr, ttl)) => reply.attr(&ttl, &convert::attr(attr.ident.ino, &attr)),
        Err(error) => reply.error(errno(&error)),
    }
}

pub fn create(reply: ReplyCreate, passthrough: &Passthrough, answer: Result<(Entry, Open)>) {
    let (entry, open) = match answer {
        Ok(made) => made,
        Err(error) => return reply.error(errno(&error)),
    };
    let attr = convert::attr(entry.id, &entry.attr);
    let (ttl, handle) = (entry.entry_ttl.min(entry.attr_ttl), FileHandle(open.handle));
    let way = way_of(passthrough, entry.id, &open, |fd| reply.open_backing(fd));
    let flags = flags_of(&open.opened, way.as_ref());
    match way {
        Some(Way::Lower(backing)) => {
            reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, &backing)
        }
        _ => reply.created(&ttl, &attr, GENERATION, handle, flags),
    }
}
