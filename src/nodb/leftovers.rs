//! Temporary files of a nodbfs that crashed in the middle of a commit: recognised by their names,
//! cleared on sight. Those of a living daemon, and those of others, are never touched.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::node::TEMPORARY;

/// How long a temporary file of another host's daemon must have been left alone to be a leftover,
/// in nanoseconds: no commit takes a day.
const ABANDONED: i128 = 24 * 3600 * 1_000_000_000;

/// This daemon among all that share the source: `<host>-<pid>`.
static OWN: LazyLock<String> = LazyLock::new(|| format!("{}-{}", host(), std::process::id()));

/// A name for a temporary file that nobody else uses.
pub fn temporary_name() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!(
        "{TEMPORARY}{}-{}.tmp",
        *OWN,
        LAST.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whether `name`, last written `age` nanoseconds ago, was left by a daemon that is gone.
pub fn is_leftover(name: &OsStr, age: i128) -> bool {
    let Some((host_of_it, pid)) = origin(name) else {
        return false;
    };
    if host_of_it != host() {
        return age > ABANDONED;
    }
    pid != std::process::id() && !Path::new("/proc").join(pid.to_string()).exists()
}

/// Host and process that a temporary file is named after.
fn origin(name: &OsStr) -> Option<(&str, u32)> {
    let name = std::str::from_utf8(name.as_bytes()).ok()?;
    let name = name.strip_prefix(TEMPORARY)?.strip_suffix(".tmp")?;
    let (rest, number) = name.rsplit_once('-')?;
    let (host, pid) = rest.rsplit_once('-')?;
    number.parse::<u64>().ok()?;
    Some((host, pid.parse().ok()?))
}

/// The host's name, of which no path is made but a part of a file name.
fn host() -> &'static str {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        name.chars()
            .map(|c| if c == '/' { '_' } else { c })
            .take(64)
            .collect()
    });
    &HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, pid: u32) -> String {
        format!("{TEMPORARY}{host}-{pid}-7.tmp")
    }

    #[test]
    fn a_living_daemons_files_are_no_leftovers() {
        assert!(!is_leftover(OsStr::new(&temporary_name()), i128::MAX));
        assert!(!is_leftover(OsStr::new(&named(host(), 1)), i128::MAX));
    }

    #[test]
    fn a_dead_daemons_files_are() {
        assert!(is_leftover(OsStr::new(&named(host(), u32::MAX)), 0));
    }

    #[test]
    fn another_hosts_files_are_left_for_a_day() {
        let name = named("some-other-host", u32::MAX);
        assert!(!is_leftover(OsStr::new(&name), ABANDONED));
        assert!(is_leftover(OsStr::new(&name), ABANDONED + 1));
    }

    #[test]
    fn other_names_are_nobodys_leftovers() {
        for name in [
            ".wepp.nodb.x.tmp",
            ".nodbfs-",
            ".nodbfs-x.tmp",
            ".nodbfs-h-1-x.tmp",
            "sedXyz",
        ] {
            assert!(!is_leftover(OsStr::new(name), i128::MAX), "{name}");
        }
    }
}
