//! Who is calling, as the caller sees itself: `<hostname>:<pid>` in its own UTS and pid
//! namespaces, the way NoDb processes sign their locks (PROTOCOL.md 4).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a caller's host name is waited for; then the caller is as good as out of sight.
const PATIENCE: Duration = Duration::from_millis(500);

/// The process of the thread `tid`, as the daemon sees it. `None`: gone, or out of sight.
pub fn process_of(tid: u32) -> Option<u32> {
    // most callers are their process's first thread, and only such a one has a pidfd
    let leader = i32::try_from(tid).ok().and_then(Pid::from_raw)?;
    if pidfd_open(leader, PidfdFlags::empty()).is_ok() {
        return Some(tid);
    }
    status_field(tid, "Tgid:")?.parse().ok()
}

/// `<hostname>:<pid>` of the process of the thread `tid` as that sees itself. `None`: it is gone,
/// lives in a namespace the daemon cannot see, or the daemon may not ask.
pub fn owner_of(tid: u32) -> Option<String> {
    let pid = status_field(tid, "NStgid:")?;
    // the last number is the innermost namespace's
    let pid = pid.split_whitespace().next_back()?;
    Some(format!("{}:{pid}", hostname_of(tid)?))
}

/// Whether the thread `tid` has a signal that will end its wait: the kernel keeps it asleep until
/// the request is answered.
pub fn is_interrupted(tid: u32) -> bool {
    let mask = |field| {
        status_field(tid, field)
            .and_then(|mask| u64::from_str_radix(&mask, 16).ok())
            .unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    pending != 0 && pending & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

/// `<hostname>:<pid>` of the daemon itself.
pub fn own_owner() -> String {
    format!("{}:{}", own_hostname(), std::process::id())
}

/// The process that signs as `owner`, if that is one of this host's as the daemon sees it.
pub fn pid_here(owner: &str) -> Option<u32> {
    let (host, pid) = owner.rsplit_once(':')?;
    (host == own_hostname()).then(|| pid.parse().ok())?
}

/// The daemon's own host, as it was named when first asked for.
pub fn own_hostname() -> &'static str {
    static OWN: LazyLock<String> = LazyLock::new(hostname);
    &OWN
}

fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn status_field(tid: u32, field: &str) -> Option<String> {
    if tid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .map(|value| value.trim().to_owned())
}

/// In a thread of its own, which may enter the caller's namespace and need not come back. The kernel does
/// not say it of a process in the middle of `execve`, and closing descriptors, which waits for the daemon,
/// is a part of that.
fn hostname_of(tid: u32) -> Option<String> {
    let (said, answer) = sync_channel(1);
    let ask = move || drop(said.send(visit(tid)));
    let thread = thread::Builder::new().name("nodbfs-caller".to_owned());
    thread.spawn(ask).ok()?;
    answer.recv_timeout(PATIENCE).ok()?
}

fn visit(tid: u32) -> Option<String> {
    let theirs = format!("/proc/{tid}/ns/uts");
    if fs::metadata("/proc/self/ns/uts").ok()?.ino() != fs::metadata(&theirs).ok()?.ino() {
        let namespace = fs::File::open(theirs).ok()?;
        let kind = LinkNameSpaceType::HostNameAndNISDomainName;
        move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), Some(kind)).ok()?;
    }
    Some(hostname())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_knows_itself() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert_eq!(process_of(tid), Some(std::process::id()));
        // on a busy machine the thread that is asked comes too late
        let owner = (0..100).find_map(|_| owner_of(tid));
        assert_eq!(owner, Some(own_owner()));
    }

    #[test]
    fn nobody_is_unknown() {
        assert_eq!(owner_of(0), None);
        assert_eq!(owner_of(u32::MAX), None);
    }
}
