//! A lower file that the kernel knows: its names, and what is known of it while somebody uses it. A run has
//! tens of thousands, so each is kept small.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};

use crate::fs::attr::Ident;
use crate::fs::pages::{Kept, Told};

/// A name in a directory: a dentry.
#[derive(Clone, Debug)]
pub struct Place {
    pub dir: Arc<Inode>,
    pub name: OsString,
}

impl Place {
    pub fn new(dir: &Arc<Inode>, name: &OsStr) -> Self {
        Self {
            dir: dir.clone(),
            name: name.to_owned(),
        }
    }

    fn is(&self, dir: &Inode, name: &OsStr) -> bool {
        self.dir.id == dir.id && self.name == name
    }
}

/// So many names of one file are remembered. Each of them leads to it, and so does a descriptor when they are gone.
const MOST_PLACES: usize = 16;

/// One lower file, of any kind but a controller's.
#[derive(Debug)]
pub struct Inode {
    /// The number by which the kernel knows it.
    pub id: u64,
    pub ident: Ident,
    /// What the kernel was told of its content.
    pub told: Told,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    places: Places,
    in_use: Option<Box<InUse>>,
}

/// The names an inode was found under, the latest first. Most have one.
#[derive(Debug, Default)]
enum Places {
    #[default]
    None,
    One(Arc<Inode>, Box<OsStr>),
    Several(Vec<Place>),
}

/// What is known of an inode only while, or after, somebody used it.
#[derive(Debug, Default)]
pub struct InUse {
    /// The descriptors of open handles: they reach the file when its last name is gone.
    open: Vec<Descriptor>,
    /// A descriptor from the time of the last name: whoever has the file open, or stands in the
    /// directory, may go on asking for it until the kernel forgets it.
    nameless: Option<Arc<OwnedFd>>,
    /// The listing that the kernel keeps of a directory. None: that may have changed since.
    listed: Option<Listed>,
    /// The pages that the kernel has.
    pub kept: Kept,
    /// Somebody has locked ranges of it: such a lock ends with a `close`, so from then on each is told.
    locked_in_ranges: bool,
}

/// The kernel's listing of a directory.
#[derive(Debug)]
struct Listed {
    /// The directory's, when the listing began.
    mtime: i128,
    since: Instant,
    /// Somebody has read it to its end.
    whole: bool,
}

/// An open handle's, and whether it allows a writable shared mapping.
#[derive(Debug)]
struct Descriptor {
    fd: Weak<OwnedFd>,
    maps: bool,
}

impl Places {
    fn all(&self) -> Vec<Place> {
        match self {
            Self::None => Vec::new(),
            Self::One(dir, name) => vec![Place::new(dir, name)],
            Self::Several(places) => places.clone(),
        }
    }

    fn first(&self) -> Option<(&Arc<Inode>, &OsStr)> {
        match self {
            Self::None => None,
            Self::One(dir, name) => Some((dir, name)),
            Self::Several(places) => places.first().map(|place| (&place.dir, &*place.name)),
        }
    }

    fn of(mut places: Vec<Place>) -> Self {
        match places.len() {
            0 | 1 => match places.pop() {
                None => Self::None,
                Some(Place { dir, name }) => Self::One(dir, name.into()),
            },
            _ => Self::Several(places),
        }
    }

    fn put_first(&mut self, place: Place) {
        if self.first().is_some_and(|(dir, name)| place.is(dir, name)) {
            return;
        }
        let mut all = self.all();
        all.retain(|known| !known.is(&place.dir, &place.name));
        all.insert(0, place);
        all.truncate(MOST_PLACES);
        *self = Self::of(all);
    }

    fn remove(&mut self, dir: &Inode, name: &OsStr) {
        let mut all = self.all();
        all.retain(|place| !place.is(dir, name));
        *self = Self::of(all);
    }
}

impl Inode {
    /// A lower file that nobody uses yet.
    pub fn new(id: u64, ident: Ident) -> Self {
        Self {
            id,
            ident,
            told: Told::default(),
            state: Mutex::default(),
        }
    }

    /// The names it was found under, the latest first.
    pub fn places(&self) -> Vec<Place> {
        self.state.lock().places.all()
    }

    /// The name it was found under last.
    pub fn place(&self) -> Option<Place> {
        let state = self.state.lock();
        state
            .places
            .first()
            .map(|(dir, name)| Place::new(dir, name))
    }

    /// Whether the name it was found under last is one of these; `None`: it has no name any more.
    pub fn is_named(&self, like: impl FnOnce(&OsStr) -> bool) -> Option<bool> {
        let state = self.state.lock();
        state.places.first().map(|(_, name)| like(name))
    }

    pub fn is_dir(&self) -> bool {
        self.ident.format == libc::S_IFDIR
    }

    /// What is known of it in use.
    pub fn in_use(&self) -> MappedMutexGuard<'_, InUse> {
        MutexGuard::map(self.state.lock(), |state| {
            &mut **state.in_use.get_or_insert_default()
        })
    }

    fn is_in_use<T: Default>(&self, look: impl FnOnce(&InUse) -> T) -> T {
        let state = self.state.lock();
        state.in_use.as_deref().map(look).unwrap_or_default()
    }

    /// Remembers a descriptor that stays open as long as some handle does, opened with these flags.
    pub fn opened(&self, fd: &Arc<OwnedFd>, flags: i32) {
        let mut in_use = self.in_use();
        in_use.open.retain(|known| known.fd.strong_count() > 0);
        in_use.open.push(Descriptor {
            fd: Arc::downgrade(fd),
            maps: maps(flags),
        });
    }

    /// A descriptor that somebody else keeps open.
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.is_in_use(|in_use| {
            let open = || in_use.open.iter().find_map(|open| open.fd.upgrade());
            in_use.nameless.clone().or_else(open)
        })
    }

    /// Whether the kernel is to ask for its attributes every time: somebody may be changing it through a shared mapping,
    /// or writes through pages that are not the lower file's.
    pub fn changes_unheard(&self) -> bool {
        self.is_in_use(|in_use| {
            let mut open = in_use.open.iter();
            in_use.kept.are_written() || open.any(|known| known.maps && known.fd.strong_count() > 0)
        })
    }

    /// The directory, last changed at `mtime`, is about to be listed; `true`: the kernel is to keep the listing that it
    /// has. `None`: it changed just now, and a listing of it is soon out of date.
    ///
    /// The attributes that came with a listing hold for `ttl`, if they do at all. After that a new one costs less than
    /// asking for each. But a part of a listing, once dropped, the kernel never completes.
    pub fn is_listed(&self, mtime: Option<i128>, ttl: Duration) -> bool {
        let listed = &mut self.in_use().listed;
        let keep = listed.as_ref().is_some_and(|listed| {
            let holds = ttl.is_zero() || listed.since.elapsed() < ttl;
            Some(listed.mtime) == mtime && (holds || !listed.whole)
        });
        if !keep {
            *listed = mtime.map(|mtime| Listed {
                mtime,
                since: Instant::now(),
                whole: false,
            });
        }
        keep
    }

    /// A directory was read to its end.
    pub fn was_listed(&self) {
        if let Some(listed) = &mut self.in_use().listed {
            listed.whole = true;
        }
    }

    /// Whether somebody has locked ranges of it since the kernel came to know it.
    pub fn is_locked_in_ranges(&self) -> bool {
        self.is_in_use(|in_use| in_use.locked_in_ranges)
    }

    /// Somebody is about to lock a range of it.
    pub fn locked_in_ranges(&self) {
        self.in_use().locked_in_ranges = true;
    }

    /// It was found under the name `place`.
    pub fn add_place(&self, place: Place) {
        self.state.lock().places.put_first(place);
    }

    /// It left the name. `true`: that was its last one.
    pub fn drop_place(&self, dir: &Inode, name: &OsStr) -> bool {
        let mut state = self.state.lock();
        state.places.remove(dir, name);
        state.places.first().is_none()
    }

    /// Its last name is gone; `fd` is a descriptor from before.
    pub fn unnamed(&self, fd: Option<Arc<OwnedFd>>) {
        self.in_use().nameless = fd;
    }
}

impl Drop for Inode {
    /// Directories hold on to the ones above, in trees deeper than a thread's stack.
    fn drop(&mut self) {
        let mut held = std::mem::take(&mut self.state.get_mut().places).all();
        while let Some(place) = held.pop() {
            if let Some(mut dir) = Arc::into_inner(place.dir) {
                held.append(&mut std::mem::take(&mut dir.state.get_mut().places).all());
            }
        }
    }
}

/// Whether a file that is opened with these flags can be mapped shared and writable.
pub fn maps(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

/// The path by which a descriptor can be opened anew with other flags.
pub fn reopen_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A million of them, with their names and the tables, are to stay below 200 MB or so.
    #[test]
    fn an_inode_that_nobody_uses_is_small() {
        assert!(size_of::<Inode>() <= 88, "{}", size_of::<Inode>());
    }

    #[test]
    fn the_latest_of_several_names_comes_first() {
        let ident = Ident {
            dev: 1,
            ino: 2,
            btime: 3,
            format: libc::S_IFREG,
        };
        let dir = Arc::new(Inode::new(1, ident));
        let inode = Inode::new(2, ident);
        let name = |inode: &Inode| inode.place().map(|place| place.name);
        assert_eq!(name(&inode), None);
        for one in ["a", "b", "c", "a"] {
            inode.add_place(Place::new(&dir, OsStr::new(one)));
            assert_eq!(name(&inode), Some(one.into()));
        }
        assert_eq!(inode.places().len(), 3);
        assert!(!inode.drop_place(&dir, OsStr::new("a")));
        assert_eq!(name(&inode), Some("c".into()));
        assert!(!inode.drop_place(&dir, OsStr::new("b")));
        assert!(inode.drop_place(&dir, OsStr::new("c")));
        assert_eq!(name(&inode), None);
        for one in 0..100 {
            inode.add_place(Place::new(&dir, OsStr::new(&one.to_string())));
        }
        assert_eq!(name(&inode), Some("99".into()));
        assert_eq!(inode.places().len(), MOST_PLACES);
    }
}
