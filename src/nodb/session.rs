//! Sessions, as `setsid(2)` makes them: what a lock lives by that a process left behind. A session
//! lives while any process of it does; its number belongs to nobody else for as long.

use std::fs;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How far up a caller's ancestors are looked for: deeper trees than people build.
const GENERATIONS: usize = 1024;

/// The number the kernel gives for a session whose leader lives outside the daemon's pid namespace.
const OUTSIDE: u32 = 0;

/// One session, told from any later one that gets its number.
#[derive(Debug)]
pub struct Session {
    /// Its number, as the daemon sees it; see [`Bounds::Outermost`] for one that has none.
    pub sid: u32,
    bounds: Bounds,
    /// The process whose number it has; none if that had ended before.
    leader: Option<Living>,
}

/// What belongs to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// All that bear its number.
    Number,
    /// The leader lives outside the daemon's pid namespace, as when a container is entered from its host. All such
    /// sessions have the number 0, so one is told by its outermost process in sight, ends with that and has its number.
    /// What outlives its parent belongs to whoever adopts it: nothing says where it came from.
    Outermost,
}

impl Session {
    /// The session of the thread `tid`. `None`: it is gone, or the daemon does not see it, for it lives outside
    /// its pid namespace.
    pub fn of(tid: u32) -> Option<Self> {
        let (sid, bounds) = Self::name(tid)?;
        let session = Self {
            sid,
            bounds,
            leader: Living::open(sid),
        };
        // not another one's that got the number between the two looks
        (Self::name(tid)? == (sid, bounds) && session.lives()).then_some(session)
    }

    fn name(tid: u32) -> Option<(u32, Bounds)> {
        match Process::read(tid)?.session {
            OUTSIDE => Some((outermost(tid)?, Bounds::Outermost)),
            sid => Some((sid, Bounds::Number)),
        }
    }

    /// Whether the thread `tid` belongs to the session, or descends from a process that does: the
    /// children of a session may have made sessions of their own.
    pub fn includes(&self, tid: u32) -> bool {
        let is_of_it = match self.bounds {
            Bounds::Number => lineage(tid).any(|process| process.session == self.sid),
            Bounds::Outermost => outermost(tid) == Some(self.sid),
        };
        is_of_it && self.lives()
    }

    /// Whether any process of the session is left.
    pub fn lives(&self) -> bool {
        if self.leader.as_ref().is_some_and(Living::lives) {
            return true;
        }
        if self.bounds == Bounds::Outermost {
            return false;
        }
        // the leader has ended, and its number is given away again only when the session is over, too
        if Process::read(self.sid).is_some_and(|bearer| !bearer.is_dead) {
            return false;
        }
        let Ok(all) = fs::read_dir("/proc") else {
            return false;
        };
        let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut processes = numbers.filter_map(Process::read);
        processes.any(|process| process.session == self.sid && !process.is_dead)
    }

    /// Becomes readable when the leader ends; `None`: it has ended.
    pub fn leader(&self) -> Option<BorrowedFd<'_>> {
        let leader = self.leader.as_ref().filter(|leader| leader.lives())?;
        Some(leader.fd.as_fd())
    }
}

/// A process, told from any later one that gets its number.
#[derive(Debug)]
pub struct Living {
    pid: u32,
    fd: OwnedFd,
}

impl Living {
    /// The process `pid`, if it has not ended.
    pub fn open(pid: u32) -> Option<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let fd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        let process = Self { pid, fd };
        process.lives().then_some(process)
    }

    /// Whether it has not ended; one that nobody has waited for has.
    pub fn lives(&self) -> bool {
        let mut ended = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
    }

    /// Whether the thread `tid` is one of this process or descends from it.
    pub fn begot(&self, tid: u32) -> bool {
        lineage(tid).any(|process| process.pid == self.pid) && self.lives()
    }
}

/// The process of a thread and those it descends from, but for the first: everything descends from that.
fn lineage(tid: u32) -> impl Iterator<Item = Process> {
    let above = |process: &Process| {
        let has_maker = process.parent > 1;
        has_maker.then(|| Process::read(process.parent)).flatten()
    };
    std::iter::successors(Process::read(tid), above).take(GENERATIONS)
}

/// The first of the processes from which the thread `tid` has a session whose leader is out of sight.
fn outermost(tid: u32) -> Option<u32> {
    let is_outside = |process: &Process| process.session == OUTSIDE;
    let outside = lineage(tid).skip_while(|process| !is_outside(process));
    let outermost = outside.take_while(is_outside).last()?;
    // a session is inherited from the parent
    let first = Process::read(outermost.parent).filter(|parent| is_outside(parent));
    Some(first.unwrap_or(outermost).pid)
}

/// What `/proc/<tid>/status` says of a thread. Not `stat`, which waits for a process in the middle of `execve`,
/// and that may be closing a file of this mount.
struct Process {
    pid: u32,
    is_dead: bool,
    parent: u32,
    session: u32,
}

impl Process {
    fn read(tid: u32) -> Option<Self> {
        if tid == 0 {
            return None;
        }
        Self::parse(&fs::read_to_string(format!("/proc/{tid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line?.split_whitespace().next()
        };
        Some(Self {
            pid: field("Tgid:")?.parse().ok()?,
            is_dead: matches!(field("State:")?, "Z" | "X"),
            parent: field("PPid:")?.parse().ok()?,
            // as the daemon's own namespace has it
            session: field("NSsid:")?.parse().ok()?,
        })
    }
}

/// The name of a process's program, as far as it can be known.
pub fn command_of(process: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn own() -> u32 {
        std::process::id()
    }

    /// `setsid sh` that says the number of a child of its own, and ends when its input does.
    fn session_of_two() -> (Child, u32) {
        let mut shell = Command::new("setsid")
            .args([
                "sh",
                "-c",
                "exec 3<&0; cat <&3 >/dev/null & echo $!; read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        while shell.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            said.push(byte[0]);
        }
        (shell, String::from_utf8(said).unwrap().parse().unwrap())
    }

    #[test]
    fn the_test_is_in_its_own_session_and_nobody_is_in_none() {
        let session = Session::of(own()).unwrap();
        assert!(session.includes(own()) && session.lives());
        assert!(Session::of(0).is_none() && !session.includes(0));
        assert!(Session::of(u32::MAX).is_none());
    }

    #[test]
    fn what_is_said_of_a_process() {
        let status =
            "Name:\tPPid:\\nPPid: 1\nState:\tS (sleeping)\nTgid:\t9\nPPid:\t4\nNSsid:\t23\t7\n";
        let process = Process::parse(status).unwrap();
        assert_eq!((process.pid, process.parent, process.session), (9, 4, 23));
        assert!(!process.is_dead && Process::parse("State:\tZ (zombie)\n").is_none());
    }

    #[test]
    fn a_session_outlives_its_leader_and_no_longer_than_its_last_process() {
        let (mut shell, child) = session_of_two();
        let session = Session::of(child).unwrap();
        assert_eq!(session.sid, shell.id());
        assert!(session.leader().is_some() && session.includes(child));
        // its maker's session includes it, and not the other way round
        assert!(Session::of(own()).unwrap().includes(child));
        assert!(!session.includes(own()));
        shell.kill().unwrap();
        // not waited for: a leader that nobody has reaped is as dead
        while session.leader().is_some() {
            std::thread::yield_now();
        }
        assert!(session.lives() && session.includes(child));
        // what is said of a session whose leader is gone already
        let late = Session::of(child).unwrap();
        assert!(late.leader().is_none() && late.lives());
        let pid = Pid::from_raw(child as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let start = std::time::Instant::now();
        while session.lives() || late.lives() {
            assert!(start.elapsed().as_secs() < 60, "it never ends");
        }
        shell.wait().unwrap();
    }

    #[test]
    fn a_process_begot_itself_and_its_children() {
        let this = Living::open(own()).unwrap();
        let (mut shell, child) = session_of_two();
        assert!(this.begot(own()) && this.begot(child));
        let maker = Living::open(shell.id()).unwrap();
        assert!(maker.begot(child) && !maker.begot(own()));
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(!maker.begot(child) && Living::open(0).is_none());
    }

    #[test]
    fn a_session_that_got_the_number_of_an_old_one_is_another() {
        let (mut shell, child) = session_of_two();
        let mut session = Session::of(child).unwrap();
        let mut dead = Command::new("true").spawn().unwrap();
        let fd = pidfd_open(Pid::from_child(&dead), PidfdFlags::empty()).unwrap();
        dead.wait().unwrap();
        // as if the number had been that of one whose leader has ended
        session.leader = Some(Living {
            pid: session.sid,
            fd,
        });
        assert!(!session.lives() && !session.includes(child));
        // the child ends with the shell's standard input
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}
