//! Creating files as the caller, so that the source gives them the caller's owner, group and
//! quota. Everything else is checked by the kernel (`default_permissions`) before it asks.

use std::fs;

use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::set_thread_groups;

/// Who asks, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The thread's id as the daemon sees it; 0: it lives in a pid namespace the daemon cannot see.
    pub tid: u32,
}

impl Caller {
    /// Takes on the caller's identity for this thread until the guard goes.
    pub fn assume(&self) -> Assumed {
        let own = (geteuid().as_raw(), getegid().as_raw());
        // only root can be somebody else; an ordinary user's mount serves nobody but that user
        if own.0 != 0 || own == (self.uid, self.gid) {
            return Assumed { before: None };
        }
        let groups = getgroups().unwrap_or_default();
        let before = Some(Before {
            uid: own.0,
            gid: own.1,
            groups,
        });
        // a group that cannot be taken on is one that gives no right
        let _ = set_thread_groups(&self.groups());
        set_fs_ids(self.uid, self.gid);
        Assumed { before }
    }

    /// Whether the caller is in the group `gid`.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().iter().any(|group| group.as_raw() == gid)
    }

    /// The caller's supplementary groups; none if it is gone or out of sight.
    fn groups(&self) -> Vec<Gid> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.tid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        let groups = line.unwrap_or_default().split_whitespace();
        groups
            .filter_map(|group| group.parse().ok().map(Gid::from_raw))
            .collect()
    }
}

#[derive(Debug)]
struct Before {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
}

/// The caller's identity, taken on; the daemon's own comes back on drop.
#[derive(Debug)]
pub struct Assumed {
    before: Option<Before>,
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            set_fs_ids(before.uid, before.gid);
            let _ = set_thread_groups(&before.groups);
        }
    }
}

/// Sets this thread's file system ids: the kernel gives new files to them.
fn set_fs_ids(uid: u32, gid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // SAFETY: both calls take plain numbers, touch no memory, and change this thread alone.
    unsafe {
        libc::setfsgid(gid.as_raw());
        libc::setfsuid(uid.as_raw());
    }
}
