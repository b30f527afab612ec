//! The life of a mount, on the real binary and the embedded store: readiness, ends of every kind,
//! crashes. Needs /dev/fuse and the right to mount.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::run::eventually;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

/// What would make the daemons use a Redis.
const REDIS: [&str; 4] = ["REDIS_URL", "RQ_REDIS_URL", "REDIS_HOST", "REDIS_PORT"];

/// A source with one file and a mount point. Leaves no mount and no daemon behind.
struct Place {
    scratch: TempDir,
    /// Daemons in the foreground, which end with the test.
    daemons: Vec<Child>,
}

impl Place {
    fn new() -> Self {
        let scratch = tempdir().unwrap();
        for name in ["run", "mnt"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        fs::write(scratch.path().join("run/file"), "content").unwrap();
        Self {
            scratch,
            daemons: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().canonicalize().unwrap().join(name)
    }

    fn mount_command(&self, source: &str, mountpoint: &str) -> Command {
        let mut command = nodbfs();
        command
            .arg("mount")
            .args([self.path(source), self.path(mountpoint)]);
        command
            .arg("--state-dir")
            .arg(self.path("state"))
            .env_remove("NOTIFY_SOCKET");
        for name in REDIS {
            command.env_remove(name);
        }
        command
    }

    /// Mounts in the background; what the command said.
    fn mount(&self, source: &str, mountpoint: &str) -> Output {
        self.mount_command(source, mountpoint).output().unwrap()
    }

    /// Mounts in the foreground and returns once it says that it is mounted: which daemon.
    fn serve(&mut self, source: &str, mountpoint: &str) -> usize {
        self.serve_by(self.mount_command(source, mountpoint))
    }

    /// The same in a network namespace of its own: a daemon without a mount keeps the names of its sockets, and the
    /// mount that gets its number may be another test's.
    fn serve_apart(&mut self, source: &str, mountpoint: &str) -> usize {
        let mount = self.mount_command(source, mountpoint);
        let mut apart = Command::new("unshare");
        apart.arg("--net").arg(mount.get_program());
        apart.args(mount.get_args()).env_remove("NOTIFY_SOCKET");
        for name in REDIS {
            apart.env_remove(name);
        }
        self.serve_by(apart)
    }

    fn serve_by(&mut self, mut command: Command) -> usize {
        let mut daemon = command
            .arg("--foreground")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        self.daemons.push(daemon);
        let mounted = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("is mounted at"));
        assert!(mounted.is_some(), "the daemon ended before it was mounted");
        // its pipe must not fill up
        thread::spawn(move || lines.for_each(drop));
        self.daemons.len() - 1
    }

    fn signal(&self, daemon: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.daemons[daemon]), signal).unwrap();
    }

    fn exit_code(&mut self, daemon: usize) -> Option<i32> {
        self.daemons[daemon].wait().unwrap().code()
    }

    fn umount(&self, mountpoint: &str, options: &[&str]) -> Output {
        nodbfs()
            .arg("umount")
            .arg(self.path(mountpoint))
            .args(options)
            .output()
            .unwrap()
    }

    /// A second source, with another file.
    fn make_other(&self) {
        fs::create_dir(self.path("other")).unwrap();
        fs::write(self.path("other/file"), "other").unwrap();
    }

    fn mount_tmpfs(&self, mountpoint: &str) {
        let tmpfs = Command::new("mount")
            .args(["-t", "tmpfs", "nodbfs-test"])
            .arg(self.path(mountpoint))
            .status();
        assert!(tmpfs.unwrap().success());
    }

    /// What umount(8) does, whoever has mounted.
    fn detach(&self, mountpoint: &str) {
        let detached = Command::new("umount")
            .args(["--lazy", "--internal-only"])
            .arg(self.path(mountpoint))
            .status();
        assert!(detached.unwrap().success());
    }

    /// What cuts the connection of the mount when something is written to it.
    fn switch(&self, mountpoint: &str) -> OwnedFd {
        let dev = fs::metadata(self.path(mountpoint)).unwrap().dev();
        nodbfs::mount::unmount::switch((rustix::fs::major(dev), rustix::fs::minor(dev))).unwrap()
    }

    #[track_caller]
    fn assert_serves(&self, mountpoint: &str, content: &str) {
        assert_eq!(self.mounts(mountpoint), 1);
        let file = self.path(mountpoint).join("file");
        assert_eq!(fs::read_to_string(file).unwrap(), content);
    }

    /// How many mounts lie at the mount point.
    fn mounts(&self, mountpoint: &str) -> usize {
        mounts_at(&self.path(mountpoint))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for name in ["mnt", "run"] {
            while mounts_at(&self.scratch.path().join(name)) > 0 {
                let _ = Command::new("umount")
                    .arg("-l")
                    .arg(self.scratch.path().join(name))
                    .status();
            }
        }
    }
}

fn nodbfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nodbfs"))
}

fn mounts_at(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4) == path.to_str())
        .count()
}

/// What is in a file, read by another process: a child of another test may have this one's descriptor
/// for a moment, and then the mount is in use.
fn content(path: &Path) -> Vec<u8> {
    Command::new("cat").arg(path).output().unwrap().stdout
}

#[track_caller]
fn assert_done(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""));
}

#[track_caller]
fn assert_refused(output: &Output, what: &str, hint: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let (error, advice) = said.split_once("\nHint: ").expect("a hint");
    assert!(
        error.starts_with("Error: ") && error.contains(what) && advice.contains(hint),
        "{said}"
    );
}

#[test]
fn in_the_background_it_returns_once_the_mount_answers_and_umount_once_the_daemon_is_gone() {
    let place = Place::new();
    assert_done(&place.mount("run", "mnt"));
    assert_eq!(content(&place.path("mnt/file")), b"content");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = table
        .lines()
        .find(|line| line.contains(place.path("mnt").to_str().unwrap()))
        .unwrap();
    let expected = format!(" - fuse.nodbfs {} ", place.path("run").display());
    assert!(mount.contains(&expected), "{mount}");
    assert_done(&place.umount("mnt", &[]));
    assert_eq!(place.mounts("mnt"), 0);
    let name = place
        .path("mnt")
        .to_str()
        .unwrap()
        .trim_start_matches('/')
        .replace('/', "-");
    let log = || fs::read_to_string(place.path(&format!("state/log/{name}.log"))).unwrap();
    eventually("the log says so", || log().trim_end().ends_with("ended"));
}

#[test]
fn the_mount_point_may_be_the_source_and_paths_may_be_relative() {
    let place = Place::new();
    let mut command = nodbfs();
    command
        .current_dir(place.path("run"))
        .args(["mount", ".", ".", "--state-dir", "../state"]);
    assert_done(&command.output().unwrap());
    assert_eq!(place.mounts("run"), 1);
    assert_eq!(content(&place.path("run/file")), b"content");
    assert!(place.path("state/log").is_dir());
    assert_done(&place.umount("run", &[]));
    assert_eq!(place.mounts("run"), 0);
    assert_eq!(fs::read(place.path("run/file")).unwrap(), b"content");
}

#[test]
fn an_error_in_the_background_reaches_the_terminal() {
    let place = Place::new();
    fs::write(place.path("mnt/in the way"), "").unwrap();
    assert_refused(&place.mount("run", "mnt"), "is not empty", "-o nonempty");
    assert_eq!(place.mounts("mnt"), 0);
    assert_done(
        &place
            .mount_command("run", "mnt")
            .args(["-o", "nonempty"])
            .output()
            .unwrap(),
    );
    assert_done(&place.umount("mnt", &[]));
}

#[test]
fn term_and_int_end_in_an_orderly_way() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut place = Place::new();
        let daemon = place.serve("run", "mnt");
        place.signal(daemon, signal);
        assert_eq!(place.exit_code(daemon), Some(0));
        assert_eq!(place.mounts("mnt"), 0);
    }
}

#[test]
fn a_mount_in_use_ends_too() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    let open = File::open(place.path("mnt/file")).unwrap();
    place.signal(daemon, Signal::TERM);
    assert_eq!(place.exit_code(daemon), Some(0));
    assert_eq!(place.mounts("mnt"), 0);
    assert!(open.metadata().is_err());
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    // without it the first signal would have nothing to wait for
    let _open = File::open(place.path("mnt/file")).unwrap();
    place.signal(daemon, Signal::TERM);
    while place.mounts("mnt") > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    place.signal(daemon, Signal::TERM);
    assert_eq!(place.exit_code(daemon), Some(1));
}

#[test]
fn a_hangup_says_nothing_to_a_daemon_in_the_background() {
    let place = Place::new();
    let address = place.path("notify");
    let socket = UnixDatagram::bind(&address).unwrap();
    assert_done(
        &place
            .mount_command("run", "mnt")
            .env("NOTIFY_SOCKET", &address)
            .output()
            .unwrap(),
    );
    let daemon = main_pid(&received(&socket));
    kill_process(daemon, Signal::HUP).unwrap();
    assert_eq!(content(&place.path("mnt/file")), b"content");
    assert_done(&place.umount("mnt", &[]));
    assert_eq!(place.mounts("mnt"), 0);
}

#[test]
fn systemd_is_told_of_readiness_and_of_the_end() {
    let mut place = Place::new();
    let address = place.path("notify");
    let socket = UnixDatagram::bind(&address).unwrap();
    let mut command = place.mount_command("run", "mnt");
    command
        .arg("--foreground")
        .env("NOTIFY_SOCKET", &address)
        .stderr(Stdio::null());
    place.daemons.push(command.spawn().unwrap());
    let ready = received(&socket);
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    assert_eq!(main_pid(&ready), Pid::from_child(&place.daemons[0]));
    // it says so only when it is true
    assert_eq!(fs::read(place.path("mnt/file")).unwrap(), b"content");
    place.signal(0, Signal::TERM);
    let stopping = received(&socket);
    assert!(
        stopping.lines().any(|line| line == "STOPPING=1"),
        "{stopping}"
    );
    assert_eq!(place.exit_code(0), Some(0));
}

fn received(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn main_pid(message: &str) -> Pid {
    let pid = message
        .lines()
        .find_map(|line| line.strip_prefix("MAINPID="))
        .unwrap();
    Pid::from_raw(pid.parse().unwrap()).unwrap()
}

#[test]
fn a_stale_mount_is_replaced() {
    // beside the source, and over it: then the source itself cannot be reached before the repair
    for mountpoint in ["mnt", "run"] {
        let mut place = Place::new();
        let daemon = place.serve("run", mountpoint);
        place.signal(daemon, Signal::KILL);
        place.exit_code(daemon);
        let stale = fs::read_dir(place.path(mountpoint)).unwrap_err();
        assert_eq!(stale.raw_os_error(), Some(libc::ENOTCONN));
        assert_done(&place.mount("run", mountpoint));
        assert_eq!(place.mounts(mountpoint), 1);
        assert_eq!(content(&place.path(mountpoint).join("file")), b"content");
        assert_done(&place.umount(mountpoint, &[]));
    }
}

#[test]
fn umount_takes_a_stale_mount_away() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    place.signal(daemon, Signal::KILL);
    place.exit_code(daemon);
    assert_done(&place.umount("mnt", &[]));
    assert_eq!(place.mounts("mnt"), 0);
}

#[test]
fn a_live_mount_is_left_alone() {
    let place = Place::new();
    assert_done(&place.mount("run", "mnt"));
    assert_refused(
        &place.mount("run", "mnt"),
        "nodbfs has already mounted",
        "nodbfs umount",
    );
    let forced = place
        .mount_command("run", "mnt")
        .args(["-o", "nonempty"])
        .output()
        .unwrap();
    assert_refused(&forced, "nodbfs has already mounted", "nodbfs umount");
    fs::create_dir(place.path("other")).unwrap();
    assert_refused(
        &place.mount("mnt", "other"),
        "lies in the nodbfs mount",
        "mount what lies below",
    );
    assert_eq!(place.mounts("mnt"), 1);
    assert_done(&place.umount("mnt", &[]));
}

#[test]
fn a_second_embedded_daemon_on_the_same_source_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("other")).unwrap();
    assert_done(&place.mount("run", "mnt"));
    assert_refused(
        &place.mount("run", "other"),
        "another nodbfs with an embedded store",
        "--redis",
    );
    assert_done(&place.umount("mnt", &[]));
    assert_done(&place.mount("run", "mnt"));
    assert_done(&place.umount("mnt", &[]));
}

/// umount(8) returns before the daemon has ended; whoever mounts again then need not know.
#[test]
fn a_daemon_without_a_mount_is_waited_for() {
    let mut place = Place::new();
    let daemon = place.serve_apart("run", "mnt");
    place.signal(daemon, Signal::STOP);
    place.detach("mnt");
    let mut again = place.mount_command("run", "mnt").spawn().unwrap();
    // the mount command asks for the source while the first daemon still has it
    thread::sleep(Duration::from_millis(300));
    place.signal(daemon, Signal::CONT);
    assert!(again.wait().unwrap().success());
    assert_eq!(place.exit_code(daemon), Some(0));
    assert_done(&place.umount("mnt", &[]));
}

#[test]
fn a_mount_in_use_is_unmounted_only_lazily() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    let open = File::open(place.path("mnt/file")).unwrap();
    let refused = place.umount("mnt", &[]);
    assert_refused(&refused, &format!("(pid {})", std::process::id()), "--lazy");
    assert_done(&place.umount("mnt", &["--lazy"]));
    assert_eq!(place.mounts("mnt"), 0);
    assert_eq!(open.metadata().unwrap().size(), 7);
    drop(open);
    assert_eq!(place.exit_code(daemon), Some(0));
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    rustix::io::write(place.switch("mnt"), b"1").unwrap();
    assert_eq!(place.exit_code(daemon), Some(0));
    assert_eq!(place.mounts("mnt"), 0);
}

#[test]
fn what_is_mounted_below_survives_the_end() {
    let mut place = Place::new();
    let bound = Command::new("mount")
        .arg("--bind")
        .args([place.path("run"), place.path("mnt")])
        .status()
        .unwrap();
    assert!(bound.success());
    let daemon = place.serve("mnt", "mnt");
    assert_eq!(place.mounts("mnt"), 2);
    place.signal(daemon, Signal::TERM);
    assert_eq!(place.exit_code(daemon), Some(0));
    assert_eq!(place.mounts("mnt"), 1);
}

#[test]
fn what_lies_below_a_detached_mount_survives_its_daemon() {
    let mut place = Place::new();
    place.mount_tmpfs("mnt");
    fs::write(place.path("mnt/file"), "kept").unwrap();
    let daemon = place.serve("mnt", "mnt");
    let _open = File::open(place.path("mnt/file")).unwrap();
    assert_done(&place.umount("mnt", &["--lazy"]));
    place.signal(daemon, Signal::TERM);
    assert_eq!(place.exit_code(daemon), Some(0));
    place.assert_serves("mnt", "kept");
}

#[test]
fn what_was_mounted_over_a_mount_survives_its_daemon() {
    let mut place = Place::new();
    let daemon = place.serve("run", "mnt");
    place.mount_tmpfs("mnt");
    fs::write(place.path("mnt/file"), "kept").unwrap();
    place.signal(daemon, Signal::TERM);
    assert_eq!(place.exit_code(daemon), Some(0));
    assert_eq!(fs::read(place.path("mnt/file")).unwrap(), b"kept");
}

#[test]
fn the_next_mount_survives_the_end_of_a_detached_one() {
    let mut place = Place::new();
    place.make_other();
    let before = place.serve("run", "mnt");
    let _open = File::open(place.path("mnt/file")).unwrap();
    assert_done(&place.umount("mnt", &["--lazy"]));
    place.serve("other", "mnt");
    place.signal(before, Signal::TERM);
    assert_eq!(place.exit_code(before), Some(0));
    place.assert_serves("mnt", "other");
}

/// The kernel gives device numbers and mount ids to the next as soon as they are free.
#[test]
fn the_next_mount_survives_a_daemon_that_ends_late() {
    for told_to_end in [false, true] {
        let mut place = Place::new();
        place.make_other();
        let before = place.serve_apart("run", "mnt");
        place.signal(before, Signal::STOP);
        place.detach("mnt");
        place.serve("other", "mnt");
        if told_to_end {
            place.signal(before, Signal::TERM);
        }
        place.signal(before, Signal::CONT);
        assert_eq!(place.exit_code(before), Some(0));
        place.assert_serves("mnt", "other");
    }
}

/// A daemon that takes long to end cuts off its users when its mount may be gone already.
#[test]
fn a_switch_opened_in_time_cuts_off_no_other_mount() {
    let mut place = Place::new();
    place.make_other();
    let before = place.serve("run", "mnt");
    let switch = place.switch("mnt");
    assert_done(&place.umount("mnt", &[]));
    assert_eq!(place.exit_code(before), Some(0));
    place.serve("other", "mnt");
    // there is nothing any more that it could cut
    let _ = rustix::io::write(switch, b"1");
    place.assert_serves("mnt", "other");
}

#[test]
fn of_two_that_mount_at_the_same_place_at_once_one_does() {
    for _ in 0..10 {
        let place = Place::new();
        place.make_other();
        let started = ["run", "other"].map(|source| {
            let mut command = place.mount_command(source, "mnt");
            command.args(["-o", "nonempty"]).stderr(Stdio::piped());
            (source, command.spawn().unwrap())
        });
        let ended = started.map(|(source, child)| (source, child.wait_with_output().unwrap()));
        let (winner, loser) = match &ended {
            [(source, first), (_, second)] if first.status.success() => (source, second),
            [(_, first), (source, _)] => (source, first),
        };
        assert_refused(loser, "nodbfs has already mounted", "nodbfs umount");
        let content = fs::read_to_string(place.path(winner).join("file")).unwrap();
        place.assert_serves("mnt", &content);
    }
}

#[test]
fn of_two_that_replace_a_stale_mount_at_once_one_does() {
    for _ in 0..10 {
        let mut place = Place::new();
        place.make_other();
        let daemon = place.serve("run", "mnt");
        place.signal(daemon, Signal::KILL);
        place.exit_code(daemon);
        let started = ["run", "other"].map(|source| {
            let mut command = place.mount_command(source, "mnt");
            command.args(["-o", "nonempty"]).stderr(Stdio::null());
            command.spawn().unwrap()
        });
        let done = started.map(|mut child| child.wait().unwrap().success());
        assert_ne!(done[0], done[1]);
        place.assert_serves("mnt", ["other", "content"][usize::from(done[0])]);
    }
}

#[test]
fn a_source_with_a_comma_in_its_name() {
    let place = Place::new();
    fs::create_dir(place.path("a,ro")).unwrap();
    assert_done(&place.mount("a,ro", "mnt"));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = table
        .lines()
        .find(|line| line.contains(place.path("mnt").to_str().unwrap()))
        .unwrap();
    assert!(mount.contains("/a_ro rw,"), "{mount}");
    assert_done(&place.umount("mnt", &[]));
}
