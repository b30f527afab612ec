//! The inodes the kernel knows, by number and by lower file, and a bounded set of descriptors to reach
//! them by.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat, readlinkat};

use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Ident};
use crate::fs::inode::{Inode, Place, reopen_path};
use crate::fs::local::{is_local, is_strictatime};
use crate::memory;
use crate::node::Node;

/// The kernel's number of the mount's root.
pub const ROOT: u64 = 1;

/// `f_type` of NFS.
const NFS: i64 = 0x6969;

/// Numbers of our own start here, above what file systems hand out.
const SYNTHETIC: u64 = 1 << 62;

/// So many forgotten inodes are worth the time that giving their memory back takes.
const MANY: usize = 10_000;

/// All inodes of a mount.
///
/// Lock order: `table` before an inode's state; `descriptors` is taken alone. None is held across a system call.
#[derive(Debug)]
pub struct Inodes {
    /// Whether the source lies on NFS: unlinked files that are in use stay in their directories, and
    /// names are answered from memory.
    pub nfs: bool,
    /// The device of the source, if that is a local file system where reads may be answered from memory.
    local: Option<u32>,
    root: Arc<Inode>,
    root_fd: Arc<OwnedFd>,
    table: Mutex<Table>,
    descriptors: Mutex<LruCache<u64, Arc<OwnedFd>>>,
}

#[derive(Debug)]
struct Table {
    nodes: HashMap<u64, Known>,
    plain: HashSet<ByIdent>,
    /// Numbers of lower files that generations go by.
    claimed: HashSet<u64>,
    next: u64,
    /// How many the kernel forgot since memory was given back.
    forgotten: usize,
}

/// A lower file, found by which one it is.
#[derive(Debug)]
struct ByIdent(Arc<Inode>);

impl Borrow<Ident> for ByIdent {
    fn borrow(&self) -> &Ident {
        &self.0.ident
    }
}

impl Hash for ByIdent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.ident.hash(state);
    }
}

impl PartialEq for ByIdent {
    fn eq(&self, other: &Self) -> bool {
        self.0.ident == other.0.ident
    }
}

impl Eq for ByIdent {}

#[derive(Debug)]
struct Known {
    node: Node,
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
}

impl Inodes {
    /// The inodes below `root_fd`, keeping at most `descriptors` of them open.
    pub fn new(root_fd: OwnedFd, descriptors: NonZeroUsize) -> Result<Self> {
        let attr = Attr::of_fd(&root_fd)?;
        let nfs = fstatfs(&root_fd)?.f_type == NFS;
        let local = is_local(&root_fd) && !is_strictatime(&root_fd);
        let local = local.then_some(attr.ident.dev);
        let root = Arc::new(Inode::new(ROOT, attr.ident));
        let known = Known {
            node: Node::Plain(root.clone()),
            lookups: 1,
        };
        Ok(Self {
            nfs,
            local,
            table: Mutex::new(Table {
                nodes: HashMap::from([(ROOT, known)]),
                plain: HashSet::from([ByIdent(root.clone())]),
                claimed: HashSet::new(),
                next: SYNTHETIC,
                forgotten: 0,
            }),
            root,
            root_fd: Arc::new(root_fd),
            descriptors: Mutex::new(LruCache::new(descriptors)),
        })
    }

    /// Whether the file lies where the source's root does, on a file system that is this host's alone and need not know of
    /// every read.
    pub fn is_local(&self, ident: &Ident) -> bool {
        self.local == Some(ident.dev)
    }

    /// The node the kernel calls `id`. ESTALE: it has been forgotten.
    pub fn get(&self, id: u64) -> Result<Node> {
        let table = self.table.lock();
        let known = table.nodes.get(&id).ok_or(Errno::STALE)?;
        Ok(known.node.clone())
    }

    /// The lower file the kernel calls `id`, for operations that only those have.
    pub fn plain(&self, id: u64) -> Result<Arc<Inode>> {
        match self.get(id)? {
            Node::Plain(inode) => Ok(inode),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// The inode of the lower file `attr` found at `place`, one more time known to the kernel.
    pub fn found(&self, place: Place, attr: &Attr) -> Arc<Inode> {
        let mut table = self.table.lock();
        let inode = match table.plain.get(&attr.ident) {
            Some(ByIdent(inode)) => inode.clone(),
            None => {
                let id = table.free_id(attr.ident, self.root.ident.dev);
                let inode = Arc::new(Inode::new(id, attr.ident));
                table.plain.insert(ByIdent(inode.clone()));
                inode
            }
        };
        if inode.id != ROOT {
            inode.add_place(place);
        }
        table.raise(Node::Plain(inode.clone()));
        inode
    }

    /// A number for a node that is not a lower file under its own: a generation, a staging.
    pub fn fresh_id(&self) -> u64 {
        self.table.lock().synthetic()
    }

    /// A number for the generation in the lower file `ident`: the file's own where that is free.
    pub fn claim_id(&self, ident: Ident) -> u64 {
        let mut table = self.table.lock();
        let id = table.free_id(ident, self.root.ident.dev);
        table.claimed.insert(id);
        id
    }

    /// `node` is one more time known to the kernel. To be called before the reply is sent.
    pub fn raise(&self, node: Node) {
        self.table.lock().raise(node);
    }

    /// The kernel forgot `count` of its references to `id`.
    pub fn forget(&self, id: u64, count: u64) {
        let mut table = self.table.lock();
        let Some(known) = table.nodes.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 || id == ROOT {
            return;
        }
        let gone = table.nodes.remove(&id);
        table.forgotten += 1;
        table.claimed.remove(&id);
        if let Some(Known {
            node: Node::Plain(inode),
            ..
        }) = &gone
        {
            table.disown(inode);
        }
        drop(table);
        self.descriptors.lock().pop(&id);
    }

    /// Gives memory back after the kernel has forgotten many, as it does when it needs memory itself.
    pub fn shrink(&self) {
        let mut table = self.table.lock();
        if table.forgotten < MANY {
            return;
        }
        table.forgotten = 0;
        let room = 2 * table.nodes.len();
        table.nodes.shrink_to(room);
        table.plain.shrink_to(room);
        table.claimed.shrink_to_fit();
        drop(table);
        memory::give_back();
    }

    /// The inode that lies at `place` now, if the kernel knows it. Asked before a name is moved or
    /// removed, so that the inode can be told afterwards.
    pub fn known_at(&self, place: &Place) -> Option<Arc<Inode>> {
        let dir = self.fd(&place.dir).ok()?;
        let attr = Attr::of_name(&*dir, &place.name).ok()?;
        {
            let table = self.table.lock();
            table.plain.get(&attr.ident).map(|known| known.0.clone())
        }
    }

    /// `inode` left the name `from` for `to`.
    pub fn moved(&self, inode: &Inode, from: &Place, to: Place) {
        inode.drop_place(&from.dir, &from.name);
        inode.add_place(to);
    }

    /// A descriptor to know `inode` by when its last name is gone. On NFS none for files: an unlinked
    /// file that somebody has a descriptor of would stay in its directory under a name of its own.
    pub fn last_fd(&self, inode: &Inode) -> Option<Arc<OwnedFd>> {
        if self.nfs && !inode.is_dir() {
            self.descriptors.lock().pop(&inode.id);
            return None;
        }
        self.fd(inode).ok()
    }

    /// `inode` lost the name `from`; `fd` is a descriptor of it from before, where there was one.
    /// It keeps the file, and its number from being used anew, for as long as the kernel knows it:
    /// where nobody uses the file, that forgets it at once.
    pub fn removed(&self, inode: &Inode, from: &Place, fd: Option<Arc<OwnedFd>>) {
        if inode.drop_place(&from.dir, &from.name) {
            self.descriptors.lock().pop(&inode.id);
            inode.unnamed(fd);
        }
    }

    /// What the source says of `inode` under the name it was found by last, or by its descriptor
    /// where it has no name any more. ESTALE: the name leads elsewhere, the kernel is to look again.
    pub fn still_there(&self, inode: &Inode) -> Result<Attr> {
        let Some(place) = inode.place() else {
            return Ok(Attr::of_fd(&*self.fd(inode)?)?);
        };
        match Attr::of_name(&*self.fd(&place.dir)?, &place.name) {
            Ok(attr) if attr.ident == inode.ident => Ok(attr),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {
                // by a descriptor the file can still be asked for, as `/proc/self/fd` does
                self.removed(inode, &place, self.fd(inode).ok());
                Err(Errno::STALE.into())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a file to read it, by the name it was found by last. `None`: it has none any more. ESTALE: the name leads
    /// elsewhere, the kernel is to look again.
    pub fn open_by_name(&self, inode: &Inode, flags: OFlags) -> Result<Option<(Attr, OwnedFd)>> {
        let Some(place) = inode.place() else {
            return Ok(None);
        };
        // what has come to that name may be a pipe
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match openat(&*self.fd(&place.dir)?, &place.name, flags, Mode::empty()) {
            Ok(fd) => {
                let attr = Attr::of_fd(&fd)?;
                if attr.ident == inode.ident {
                    return Ok(Some((attr, fd)));
                }
            }
            // a symlink or a socket has come there, or nothing
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV) => {}
            Err(errno) => return Err(errno.into()),
        }
        // by a descriptor the file can still be asked for, as `/proc/self/fd` does
        self.removed(inode, &place, self.fd(inode).ok());
        Err(Errno::STALE.into())
    }

    /// The lower file at this inode became a controller's generation: lookups give that from now
    /// on, and this inode lives only for those who have it open.
    pub fn disown(&self, inode: &Arc<Inode>) {
        self.table.lock().disown(inode);
    }

    /// A descriptor of the lower file: `O_PATH`, or an open handle's own. Never one of a file
    /// that merely took over the name. ESTALE: it is not where it was, look again.
    pub fn fd(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.at_hand(inode) {
            return Ok(fd);
        }
        for place in inode.places() {
            let dir = self.dir_fd(&place.dir)?;
            if let Some(fd) = self.open_path(&dir, &place.name, inode)? {
                return Ok(fd);
            }
        }
        Err(Errno::STALE.into())
    }

    fn at_hand(&self, inode: &Inode) -> Option<Arc<OwnedFd>> {
        if inode.id == ROOT {
            return Some(self.root_fd.clone());
        }
        if let Some(fd) = self.descriptors.lock().get(&inode.id) {
            return Some(fd.clone());
        }
        inode.descriptor()
    }

    /// A directory's descriptor: up to the first one at hand and down again. Trees are deeper than
    /// a thread's stack, so without recursion.
    fn dir_fd(&self, dir: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        let mut way: Vec<(Arc<Inode>, OsString)> = Vec::new();
        let mut above = dir.clone();
        let mut fd = loop {
            if let Some(fd) = self.at_hand(&above) {
                break fd;
            }
            let place = above.place().ok_or(Errno::STALE)?;
            // places learnt at different times may go round in a circle
            if way.len() > self.table.lock().nodes.len() {
                return Err(Errno::STALE.into());
            }
            way.push((above, place.name));
            above = place.dir;
        };
        while let Some((inode, name)) = way.pop() {
            fd = self.open_path(&fd, &name, &inode)?.ok_or(Errno::STALE)?;
        }
        Ok(fd)
    }

    /// Opens `name` in `dir` if it is `inode`, and keeps the descriptor for the next time.
    fn open_path(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        inode: &Inode,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = openat(dir, name, flags, Mode::empty()) else {
            return Ok(None);
        };
        if Attr::of_fd(&fd)?.ident != inode.ident {
            return Ok(None);
        }
        let fd = Arc::new(fd);
        self.descriptors.lock().put(inode.id, fd.clone());
        Ok(Some(fd))
    }

    /// How many nodes the kernel knows.
    pub fn known(&self) -> usize {
        self.table.lock().nodes.len()
    }

    /// The path of a directory relative to the root, as it is now, wherever it was moved.
    pub fn relative_path(&self, dir: &Inode) -> Result<PathBuf> {
        if dir.id == ROOT {
            return Ok(PathBuf::new());
        }
        let root = path_of(&*self.root_fd)?;
        let path = path_of(&*self.fd(dir)?)?;
        match path.strip_prefix(&root) {
            Ok(relative) => Ok(relative.to_owned()),
            Err(_) => Err(Error::Source(Errno::STALE)),
        }
    }
}

impl Table {
    fn raise(&mut self, node: Node) {
        let known = self
            .nodes
            .entry(node.id())
            .or_insert(Known { node, lookups: 0 });
        known.lookups += 1;
    }

    fn disown(&mut self, inode: &Arc<Inode>) {
        if self
            .plain
            .get(&inode.ident)
            .is_some_and(|known| known.0.id == inode.id)
        {
            self.plain.remove(&inode.ident);
        }
    }

    /// The lower file's own number where that is free, so that `st_ino` costs no extra request.
    fn free_id(&mut self, ident: Ident, root_dev: u32) -> u64 {
        let own = ident.dev == root_dev && ident.ino > ROOT && ident.ino < SYNTHETIC;
        if own && !self.nodes.contains_key(&ident.ino) && !self.claimed.contains(&ident.ino) {
            ident.ino
        } else {
            self.synthetic()
        }
    }

    fn synthetic(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

fn path_of(fd: &impl AsFd) -> Result<PathBuf> {
    let path = readlinkat(CWD, reopen_path(fd), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_may_be_deeper_than_a_stack() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mut attr = Attr::of_fd(&root).unwrap();
        let inodes = Inodes::new(root, NonZeroUsize::MIN).unwrap();
        let mut lowest = inodes.root.clone();
        for _ in 0..50_000 {
            attr.ident.ino += 1;
            lowest = inodes.found(Place::new(&lowest, OsStr::new("deeper")), &attr);
        }
        // none of these is there, which must be found out
        let error = inodes.fd(&lowest).unwrap_err();
        assert_eq!(error.errno(), Errno::STALE);
        drop((lowest, inodes));
    }

    #[test]
    fn places_that_go_in_circles_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mut attr = Attr::of_fd(&root).unwrap();
        let inodes = Inodes::new(root, NonZeroUsize::MIN).unwrap();
        let mut known = |dir: &Arc<Inode>, ino: u64| {
            attr.ident.ino = ino;
            inodes.found(Place::new(dir, OsStr::new("name")), &attr)
        };
        let upper = known(&inodes.root, 1001);
        let lower = known(&upper, 1002);
        known(&lower, 1001);
        assert_eq!(inodes.fd(&lower).unwrap_err().errno(), Errno::STALE);
    }
}
