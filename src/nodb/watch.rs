//! Changes behind the mount's back, on local file systems: the kernel may remember where a
//! controller's name leads as long as its directory is watched, and is told when that changes.
//!
//! This makes things fast, never right: every open looks at the source all the same.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{
    CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch,
};
use tracing::{debug, info, warn};

use crate::error::Errno;
use crate::fs::attr::Ident;
use crate::fs::inode::{Inode, Inodes, Place, reopen_path};
use crate::fs::local::is_local;
use crate::nodb::Kernel;
use crate::nodb::controller::Controllers;
use crate::node::is_controller;

/// How many directories are watched at a time; the others are looked at each time.
const DIRECTORIES: usize = 8192;

/// The watched directories.
///
/// Lock order: `watched` is taken alone; watches are added and removed under it, which wait for
/// nothing.
#[derive(Debug)]
pub struct Watch {
    /// `None`: the kernel gives no more, and nothing is trusted.
    inotify: Option<Arc<OwnedFd>>,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    by_dir: HashMap<Ident, i32>,
    dirs: HashMap<i32, Weak<Inode>>,
    /// Nobody listens any more.
    ended: bool,
}

impl Watch {
    /// Starts the thread that passes changes on to `kernel`.
    pub fn start(controllers: Arc<Controllers>, kernel: Arc<dyn Kernel>) -> Self {
        let watched: Arc<Mutex<Watched>> = Arc::default();
        let inotify = init(CreateFlags::CLOEXEC).map(Arc::new);
        let started = inotify.map_err(std::io::Error::from).and_then(|inotify| {
            let (events, watched) = (inotify.clone(), watched.clone());
            let listen = move || listen(&events, &watched, &controllers, &*kernel);
            thread::Builder::new()
                .name("nodbfs-watch".to_owned())
                .spawn(listen)?;
            Ok(inotify)
        });
        let inotify = started
            .inspect_err(|error| info!(%error, "no inotify: controllers are looked up each time"))
            .ok();
        Self { inotify, watched }
    }

    /// Whether `dir` is watched: a look at the source from now on is kept true.
    pub fn covers(&self, dir: &Inode) -> bool {
        let watched = self.watched.lock();
        let number = watched.by_dir.get(&dir.ident);
        // the kernel may have forgotten the directory and found it again, as another inode
        number
            .and_then(|number| watched.dirs.get(number))
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), dir))
    }

    /// Watches `dir` if that can be relied on. To be called before the look that is to be trusted.
    pub fn cover(&self, inodes: &Inodes, dir: &Arc<Inode>) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        if self.covers(dir) {
            return true;
        }
        let Ok(fd) = inodes.fd(dir) else { return false };
        if !is_local(&*fd) {
            return false;
        }
        let mut watched = self.watched.lock();
        if watched.ended || watched.dirs.len() >= DIRECTORIES {
            return false;
        }
        let changes = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        match add_watch(&**inotify, reopen_path(&*fd), changes) {
            Ok(number) => {
                watched.by_dir.insert(dir.ident, number);
                watched.dirs.insert(number, Arc::downgrade(dir));
                true
            }
            Err(errno) => {
                debug!(%errno, "directory not watched");
                false
            }
        }
    }

    /// Stops watching directories that the kernel has forgotten.
    pub fn sweep(&self) {
        let Some(inotify) = &self.inotify else { return };
        let mut watched = self.watched.lock();
        let gone = watched
            .dirs
            .iter()
            .filter(|(_, dir)| dir.strong_count() == 0);
        for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
            watched.forget(number);
            // it may have gone with its directory
            let _ = remove_watch(&**inotify, number);
        }
    }
}

impl Watched {
    fn forget(&mut self, number: i32) {
        self.dirs.remove(&number);
        self.by_dir.retain(|_, watch| *watch != number);
    }
}

/// Passes changes on until the process ends.
fn listen(
    inotify: &OwnedFd,
    watched: &Mutex<Watched>,
    controllers: &Controllers,
    kernel: &dyn Kernel,
) {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut events = Reader::new(inotify, &mut buffer);
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(errno) => {
                warn!(%errno, "changes behind the mount are no longer seen");
                *watched.lock() = Watched {
                    ended: true,
                    ..Watched::default()
                };
                distrust(controllers, kernel);
                return;
            }
        };
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            debug!("too many changes at once: everything is looked up again");
            distrust(controllers, kernel);
            continue;
        }
        if event.events().contains(ReadFlags::IGNORED) {
            watched.lock().forget(event.wd());
            continue;
        }
        let Some(name) = event
            .file_name()
            .map(|name| OsStr::from_bytes(name.to_bytes()))
        else {
            continue;
        };
        let dir = watched.lock().dirs.get(&event.wd()).and_then(Weak::upgrade);
        let Some(dir) = dir.filter(|_| is_controller(name)) else {
            continue;
        };
        let controller = controllers.get(&Place::new(&dir, name));
        // while a writer is at work the kernel remembers nothing
        if !controller.is_some_and(|controller| controller.is_being_written()) {
            kernel.entry_changed(dir.id, name, false);
        }
    }
}

/// What the kernel remembers may be wrong: every controller's name is looked up again.
fn distrust(controllers: &Controllers, kernel: &dyn Kernel) {
    for place in controllers.places() {
        kernel.entry_changed(place.dir.id, &place.name, false);
    }
}
