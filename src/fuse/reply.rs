//! Replies: an operation's answer as the kernel takes it.

use std::time::Duration;

use fuser::{
    Errno as FuseErrno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
};

use super::convert;
use super::passthrough::Passthrough;
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
    let backing = match &open.opened {
        Opened::Plain { fd, set_id, .. } => {
            passthrough.attach(id, open.handle, !set_id, || reply.open_backing(fd))
        }
        _ => None,
    };
    if backing.is_some() && matches!(open.opened, Opened::Plain { maps: true, .. }) {
        passthrough.forget_times(id);
    }
    match backing {
        Some(backing) => reply.opened_passthrough(handle, flags_of(&open.opened), &backing),
        None => reply.opened(handle, flags_of(&open.opened)),
    }
}

/// How the kernel is to treat what was opened (measured: every request saved counts).
fn flags_of(opened: &Opened) -> FopenFlags {
    match opened {
        Opened::Plain { flush: false, .. } => FopenFlags::FOPEN_NOFLUSH,
        Opened::Plain { flush: true, .. } => FopenFlags::empty(),
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
    let backing = match &open.opened {
        Opened::Plain { fd, set_id, .. } => {
            passthrough.attach(entry.id, open.handle, !set_id, || reply.open_backing(fd))
        }
        _ => None,
    };
    let flags = flags_of(&open.opened);
    match backing {
        Some(backing) => {
            reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, &backing)
        }
        None => reply.created(&ttl, &attr, GENERATION, handle, flags),
    }
}
