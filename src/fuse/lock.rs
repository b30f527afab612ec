//! Between the kernel's locks and the operations'.

use std::mem::size_of;
use std::ptr;

use fuser::{FileHandle, LockOwner, ReplyLock, Request};

use super::reply;
use crate::error::{Errno, Result};
use crate::fs::locks::{InTheWay, Sort, Strength, Wanted};

/// `struct fuse_in_header` and the `struct fuse_lk_in` that follows it.
#[repr(C)]
struct Asked {
    _length_and_opcode: u64,
    unique: u64,
    _rest_of_header: [u64; 3],
    handle: u64,
    owner: u64,
    _range: [u64; 2],
    _kind_and_pid: u64,
    flags: u32,
    _padding: u32,
}

/// `FUSE_LK_FLOCK`
const FLOCK: u32 = 1;

/// Which of the two sorts of locks is asked for. fuser 0.18 decodes the same for both and leaves out the flag
/// that tells them apart; it is where the kernel has put it, behind the header. ENOLCK: it is not.
pub fn sort(request: &Request, handle: FileHandle, owner: LockOwner) -> Result<Sort> {
    let header = ptr::from_ref(request);
    // SAFETY: a request is the header itself at the beginning of what was read (`repr(transparent)`), and a
    // header begins with the length of what follows with it.
    let length = unsafe { header.cast::<u32>().read() };
    if (length as usize) < size_of::<Asked>() {
        return Err(Errno::NOLCK.into());
    }
    // the pointer that the request was read through was exposed to the kernel
    let asked = ptr::with_exposed_provenance::<Asked>(header.expose_provenance());
    // SAFETY: so many bytes were read there, aligned for the header's numbers of 64 bits; nobody writes to them
    // before the request is dispatched, and any bits make such a structure.
    let asked = unsafe { &*asked };
    if (asked.unique, asked.handle, asked.owner) != (request.unique().0, handle.0, owner.0) {
        return Err(Errno::NOLCK.into());
    }
    Ok(match asked.flags & FLOCK {
        0 => Sort::Range,
        _ => Sort::Flock,
    })
}

/// What the kernel asks for.
pub fn wanted(
    request: &Request,
    sort: Sort,
    owner: LockOwner,
    (first, last): (u64, u64),
    kind: i32,
    pid: u32,
) -> Result<Wanted> {
    let strength = match kind {
        libc::F_RDLCK => Some(Strength::Shared),
        libc::F_WRLCK => Some(Strength::Exclusive),
        libc::F_UNLCK => None,
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(Wanted {
        sort,
        owner: owner.0,
        first,
        last,
        strength,
        pid,
        caller: super::caller(request),
    })
}

/// Replies to the question what is in the way of a lock.
pub fn in_the_way(reply: ReplyLock, answer: Result<Option<InTheWay>>) {
    match answer {
        Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
        Ok(Some(lock)) => {
            let kind = match lock.strength {
                Strength::Shared => libc::F_RDLCK,
                Strength::Exclusive => libc::F_WRLCK,
            };
            reply.locked(lock.first, lock.last, kind, lock.pid);
        }
        Err(error) => reply.error(reply::errno(&error)),
    }
}
