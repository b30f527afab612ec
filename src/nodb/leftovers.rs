//! Temporary files of a nodbfs that crashed in the middle of a commit: recognised by their names,
//! cleared on sight. Those of a living daemon, and those of others, are never touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::node::TEMPORARY;

/// How long a temporary file of another host's daemon must have been left alone to be a leftover,
/// in nanoseconds: no commit takes a day.
const ABANDONED: i128 = 24 * 3600 * 1_000_000_000;

/// The numbers of this daemon's temporary files start at the time of its start in nanoseconds since
/// the epoch: in a container the next daemon often has the same pid.
static START: LazyLock<u64> = LazyLock::new(|| {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
});

/// A name for a temporary file that nobody else uses.
pub fn temporary_name() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = *START + MADE.fetch_add(1, Ordering::Relaxed);
    format!("{TEMPORARY}{}-{}-{number}.tmp", host(), std::process::id())
}

/// Whether `name`, last changed or renamed `age` nanoseconds ago, was left by a daemon that is gone.
pub fn is_leftover(name: &OsStr, age: i128) -> bool {
    let Some((host_of_it, pid, number)) = origin(name) else {
        return false;
    };
    if host_of_it != host() {
        return age > ABANDONED;
    }
    if pid == std::process::id() {
        number < *START
    } else {
        !Path::new("/proc").join(pid.to_string()).exists()
    }
}

/// Host, process and number that a temporary file is named after.
fn origin(name: &OsStr) -> Option<(&str, u32, u64)> {
    let name = std::str::from_utf8(name.as_bytes()).ok()?;
    let name = name.strip_prefix(TEMPORARY)?.strip_suffix(".tmp")?;
    let (rest, number) = name.rsplit_once('-')?;
    let (host, pid) = rest.rsplit_once('-')?;
    Some((host, pid.parse().ok()?, number.parse().ok()?))
}

/// The host's name, of which no path is made but a part of a file name, and the pid namespace: only
/// in there do pids say who is gone.
fn host() -> &'static str {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let name: String = name
            .chars()
            .map(|c| if c == '/' { '_' } else { c })
            .take(64)
            .collect();
        let pids = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
        format!("{name}-{pids}")
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
    fn an_earlier_daemon_of_the_same_pid_is_dead() {
        assert!(is_leftover(
            OsStr::new(&named(host(), std::process::id())),
            0
        ));
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
