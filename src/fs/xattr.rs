//! Extended attributes: the lower file's, and `user.nodbfs.*` of controllers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{XattrFlags, removexattr, setxattr};

use crate::error::{Errno, Error, Result};
use crate::fs::Fs;
use crate::fs::credentials::Caller;
use crate::fs::inode::reopen_path;
use crate::fs::plain::{XattrReply, list_xattrs, read_xattr};
use crate::nodb::controller::Controller;
use crate::node::Node;

/// What the names of nodbfs's own attributes begin with.
const OWN: &[u8] = b"user.nodbfs.";

impl Fs {
    /// Whether reading or changing this attribute may wait: only controllers' own do.
    pub fn xattr_may_wait(&self, id: u64, name: &OsStr) -> bool {
        is_own(name)
            && !matches!(
                self.plain.inodes.get(id),
                Ok(Node::Plain(_) | Node::Lock(_) | Node::Log(_))
            )
    }

    /// One attribute; for `size` 0, how large it is.
    pub fn getxattr(&self, id: u64, name: &OsStr, size: usize) -> Result<XattrReply> {
        let controller = match self.plain.inodes.get(id)? {
            Node::Plain(inode) => return self.plain.getxattr(&inode, name, size),
            // the kernel asks before a writer's first byte; a document has no capabilities
            Node::Staging(_) if name == "security.capability" => return Err(Errno::NODATA.into()),
            Node::Staging(staging) if staging.is_newborn() => return Err(Errno::NODATA.into()),
            Node::Lock(_) | Node::Log(_) => return Err(Errno::NODATA.into()),
            node => controller_of(node)?,
        };
        if !is_own(name) {
            return read_xattr(&self.lower(&controller)?, name, size);
        }
        let value = self.nodb.attribute(&controller, name)?;
        match size {
            0 => Ok(XattrReply::Size(value.len())),
            size if size < value.len() => Err(Errno::RANGE.into()),
            _ => Ok(XattrReply::Data(value)),
        }
    }

    /// The names of the lower file's attributes.
    pub fn listxattr(&self, id: u64, size: usize) -> Result<XattrReply> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => self.plain.listxattr(&inode, size),
            Node::Staging(staging) if staging.is_newborn() => Ok(XattrReply::none(size)),
            Node::Lock(_) | Node::Log(_) => Ok(XattrReply::none(size)),
            node => list_xattrs(&self.lower(&*controller_of(node)?)?, size),
        }
    }

    pub fn setxattr(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => self.plain.setxattr(&inode, name, value, flags, caller),
            Node::Lock(_) | Node::Log(_) => Err(Errno::OPNOTSUPP.into()),
            node if is_own(name) => self.nodb.act(&*controller_of(node)?, name),
            // there is no file yet that could keep it
            Node::Staging(staging) if staging.is_newborn() => Err(Errno::OPNOTSUPP.into()),
            node => {
                let fd = self.lower(&*controller_of(node)?)?;
                Ok(setxattr(
                    reopen_path(&fd),
                    name,
                    value,
                    XattrFlags::from_bits_retain(flags),
                )?)
            }
        }
    }

    pub fn removexattr(&self, id: u64, name: &OsStr) -> Result<()> {
        match self.plain.inodes.get(id)? {
            Node::Plain(inode) => self.plain.removexattr(&inode, name),
            Node::Lock(_) | Node::Log(_) => Err(Errno::NODATA.into()),
            // there is nothing of this name that could be removed, but the entry
            node if name == "user.nodbfs.evict" => self.nodb.act(&*controller_of(node)?, name),
            _ if is_own(name) => Err(Errno::PERM.into()),
            Node::Staging(staging) if staging.is_newborn() => Err(Errno::NODATA.into()),
            node => Ok(removexattr(
                reopen_path(&self.lower(&*controller_of(node)?)?),
                name,
            )?),
        }
    }

    /// The controller's file as it is now.
    fn lower(&self, controller: &Controller) -> Result<OwnedFd> {
        self.nodb.lower(&controller.place)
    }
}

fn controller_of(node: Node) -> Result<Arc<Controller>> {
    match node {
        Node::Generation(generation) if !generation.has_departed() => {
            Ok(generation.controller.clone())
        }
        Node::Staging(staging) => Ok(staging.controller.clone()),
        Node::Generation(_) | Node::Plain(_) | Node::Lock(_) | Node::Log(_) => {
            Err(Error::Superseded)
        }
    }
}

fn is_own(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OWN)
}
