//! The life of a mount, on the real binary and the embedded store: readiness, ends of every kind,
//! crashes. Needs /dev/fuse and the right to mount.

mod common;
#[path = "common/place.rs"]
mod place;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::run::eventually;
use place::{Place, assert_done, assert_refused, content, nodbfs};
use rustix::process::{Pid, Signal, kill_process};

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
