//! The kinds of nodes the kernel can hold a number of, and which names are controllers'.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::fs::inode::Inode;
use crate::nodb::generation::Generation;
use crate::nodb::lockfile::LockFile;
use crate::nodb::logfile::LogFile;
use crate::nodb::staging::Staging;

/// What a number of the kernel's stands for.
#[derive(Clone, Debug)]
pub enum Node {
    /// A lower file of any type that is no controller: what the source says goes.
    Plain(Arc<Inode>),
    /// One committed payload of a controller. Its content never changes.
    Generation(Arc<Generation>),
    /// The private content of an open writer.
    Staging(Arc<Staging>),
    /// The virtual file that shows a controller's lock.
    Lock(Arc<LockFile>),
    /// The virtual file that shows a controller's log.
    Log(Arc<LogFile>),
}

impl Node {
    /// The number by which the kernel knows it.
    pub fn id(&self) -> u64 {
        match self {
            Self::Plain(inode) => inode.id,
            Self::Generation(generation) => generation.id,
            Self::Staging(staging) => staging.id,
            Self::Lock(file) => file.id,
            Self::Log(file) => file.id,
        }
    }
}

/// The ending of a controller's file name.
const CONTROLLER: &[u8] = b".nodb";

/// What the temporary files of a commit begin with; they show in no listing.
pub const TEMPORARY: &str = ".nodbfs-";

/// Whether a regular file of this name is a controller: `<controller>.nodb`, not hidden. The
/// temporary files of NoDb processes and editors are plain files.
pub fn is_controller(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.len() > CONTROLLER.len() && name.ends_with(CONTROLLER) && !name.starts_with(b".")
}

/// The ending of the name of the virtual file that shows a controller's lock.
const LOCK: &[u8] = b".lock";

/// The name of the controller whose lock this name shows: `x.nodb` for `x.nodb.lock`.
pub fn locked_by(name: &OsStr) -> Option<&OsStr> {
    let controller = OsStr::from_bytes(name.as_bytes().strip_suffix(LOCK)?);
    is_controller(controller).then_some(controller)
}

/// Whether what is done to this name may wait for the store.
pub fn touches_the_store(name: &OsStr) -> bool {
    is_controller(name) || locked_by(name).is_some()
}

/// Under which name a controller's log is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogName {
    /// `x.nodb.log`.
    Virtual,
    /// `x.log`, which NoDb processes write.
    Real,
}

/// The controller whose log may show under this name.
pub fn log_of(name: &OsStr) -> Option<(OsString, LogName)> {
    let stem = OsStr::from_bytes(name.as_bytes().strip_suffix(b".log")?);
    if is_controller(stem) {
        return Some((stem.to_owned(), LogName::Virtual));
    }
    let mut controller = stem.to_owned();
    controller.push(".nodb");
    is_controller(&controller).then_some((controller, LogName::Real))
}

/// Whether the name belongs to a commit of nodbfs and is nobody else's to see.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Whether the name is a controller's, or may be one that only the mount knows: of its lock, its log, a
/// commit under way.
pub fn goes_with_controllers(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let mut parts = name.windows(CONTROLLER.len());
    name.ends_with(b".log") || parts.any(|part| part == CONTROLLER)
}

/// Whether `name` is the temporary file of a NoDb process that is dumping `target`:
/// `.<file>.<random>.tmp` (PROTOCOL.md 1).
pub fn is_dump_of(name: &OsStr, target: &OsStr) -> bool {
    let Some(rest) = name.as_bytes().strip_prefix(b".") else {
        return false;
    };
    let Some(rest) = rest.strip_prefix(target.as_bytes()) else {
        return false;
    };
    rest.len() > b"..tmp".len() && rest.starts_with(b".") && rest.ends_with(b".tmp")
}

/// Whether `name` may be the temporary file of a NoDb process that is dumping a controller.
pub fn is_dump(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let mut ends = name.windows(CONTROLLER.len() + 1);
    name.starts_with(b".") && name.ends_with(b".tmp") && ends.any(|part| part == b".nodb.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_named_by_their_ending() {
        for name in ["wepp.nodb", "a.b.nodb"] {
            assert!(is_controller(OsStr::new(name)), "{name}");
        }
        for name in [
            ".nodb",
            ".wepp.nodb",
            "wepp.nodb.lock",
            "nodb.version",
            ".wepp.nodb.x.tmp",
            "wepp.nodb~",
        ] {
            assert!(!is_controller(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_goes_with_controllers_is_told_by_its_name() {
        for name in ["wepp.nodb", "wepp.nodb.lock", "wepp.log", ".nodbfs-1-2"] {
            assert!(goes_with_controllers(OsStr::new(name)), "{name}");
        }
        for name in ["p1.sol", "READONLY", "log", "nodb", ""] {
            assert!(!goes_with_controllers(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn locks_are_named_after_controllers() {
        let locked = |name: &'static str| locked_by(OsStr::new(name)).and_then(OsStr::to_str);
        assert_eq!(locked("wepp.nodb.lock"), Some("wepp.nodb"));
        for name in [
            ".nodb.lock",
            ".wepp.nodb.lock",
            "wepp.lock",
            "wepp.nodb",
            "wepp.nodb.lock2",
        ] {
            assert_eq!(locked(name), None, "{name}");
        }
    }

    #[test]
    fn dumps_are_told_by_the_name_they_replace() {
        let target = OsStr::new("wepp.nodb");
        assert!(is_dump_of(OsStr::new(".wepp.nodb.k3_x.tmp"), target));
        assert!(!is_dump_of(OsStr::new(".wepp.nodb..tmp"), target));
        assert!(!is_dump_of(OsStr::new(".climate.nodb.k3_x.tmp"), target));
        assert!(!is_dump_of(OsStr::new("wepp.nodb.tmp"), target));
        for (name, dump) in [
            (".wepp.nodb.k3_x.tmp", true),
            (".wepp.nodb", false),
            ("a.tmp", false),
        ] {
            assert_eq!(is_dump(OsStr::new(name)), dump, "{name}");
        }
    }
}
