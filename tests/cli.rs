//! The command line as one types it: help, defaults, errors with their hints and exit codes.
//! Nothing is mounted here.

mod common {
    pub mod redis;
}

use std::fs;

use assert_cmd::Command;
use common::redis::RedisServer;
use tempfile::{TempDir, tempdir};

fn nodbfs(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("nodbfs").unwrap();
    let output = command
        .env_remove("NODBFS_LOG")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A source with one file, an empty mount point and a place for logs.
struct Place {
    scratch: TempDir,
}

impl Place {
    fn new() -> Self {
        let scratch = tempdir().unwrap();
        for name in ["run", "mnt"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        fs::write(scratch.path().join("run/file"), "").unwrap();
        Self { scratch }
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).to_str().unwrap().to_owned()
    }

    /// The error of a `mount` that must fail, in the foreground and in the background alike.
    fn refused(&self, source: &str, mountpoint: &str, options: &[&str]) -> (i32, String) {
        let (source, mountpoint, state) =
            (self.path(source), self.path(mountpoint), self.path("state"));
        let mut args = vec![
            "mount",
            &source,
            &mountpoint,
            "--state-dir",
            &state,
            "--log-level",
            "off",
        ];
        args.extend(options);
        let (code, stdout, stderr) = nodbfs(&args);
        assert_eq!(stdout, "");
        args.push("--foreground");
        assert_eq!(nodbfs(&args), (code, String::new(), stderr.clone()));
        (code, stderr)
    }
}

#[test]
fn help_names_everything() {
    let (code, help, _) = nodbfs(&["mount", "--help"]);
    assert_eq!(code, 0);
    for name in [
        "<SOURCE>",
        "<MOUNTPOINT>",
        "--redis <URL>",
        "--key-root <PATH>",
        "--foreground",
        "--lock-wait <DURATION>",
        "--max-payload <SIZE>",
        "--cache-size <BYTES>",
        "--read-only",
        "--allow-other",
        "--log-level <LEVEL>",
        "--log-file <PATH>",
        "--state-dir <PATH>",
        "-o <OPTIONS>",
        "[default: 5s]",
        "[default: 256MiB]",
    ] {
        assert!(help.contains(name), "{name} is not in\n{help}");
    }
    let (code, help, _) = nodbfs(&["--help"]);
    assert_eq!(code, 0);
    for name in ["mount", "umount", "rejected", "--version", "Exit codes"] {
        assert!(help.contains(name), "{name} is not in\n{help}");
    }
    assert!(nodbfs(&["umount", "--help"]).1.contains("--lazy"));
    let (code, help, _) = nodbfs(&["rejected", "--help"]);
    assert_eq!(code, 0);
    for name in [
        "list",
        "show",
        "remove",
        "--state-dir <PATH>",
        "/var/lib/nodbfs",
    ] {
        assert!(help.contains(name), "{name} is not in\n{help}");
    }
}

#[test]
fn version() {
    assert_eq!(
        nodbfs(&["--version"]),
        (
            0,
            format!("nodbfs {}\n", env!("CARGO_PKG_VERSION")),
            String::new()
        )
    );
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for args in [
        &["mount"][..],
        &["frobnicate"],
        &["mount", "/a", "/b", "--bogus"],
        &["mount", "/a", "/b", "--lock-wait", "soon"],
        &["mount", "/a", "/b", "--max-payload", "lots"],
        &["mount", "/a", "/b", "--max-payload", "0"],
        &["mount", "/a", "/b", "--log-level", "loud"],
        &["mount", "/a", "/b", "--key-root", "relative"],
        &["mount", "/a", "/b", "-o", "ro,bogus"],
        &["mount", "/a", "/b", "-o", "lock_wait"],
        &["umount"],
    ] {
        let (code, stdout, stderr) = nodbfs(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(
            stderr.to_lowercase().starts_with("error: "),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn an_unknown_mount_option_is_answered_with_the_list() {
    let (code, _, stderr) = nodbfs(&["mount", "/a", "/b", "-o", "ro,lock-wait=5s"]);
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with(
            "Error: unknown mount option 'lock-wait'\nHint: the options are redis=URL"
        ),
        "{stderr}"
    );
}

#[test]
fn a_source_that_is_none() {
    let place = Place::new();
    let (code, stderr) = place.refused("none", "mnt", &[]);
    assert_eq!(code, 1);
    let expected = format!(
        "Error: cannot open the source {}: No such file or directory",
        place.path("none")
    );
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert!(
        stderr.contains("\nHint: there is no such directory"),
        "{stderr}"
    );
    let (code, stderr) = place.refused("run/file", "mnt", &[]);
    assert_eq!(code, 1);
    assert!(stderr.contains("\nHint: it is not a directory"), "{stderr}");
}

#[test]
fn a_mount_point_that_is_none() {
    let place = Place::new();
    fs::create_dir_all(place.path("full/of/things")).unwrap();
    fs::create_dir(place.path("run/inner")).unwrap();
    for (mountpoint, what, hint) in [
        ("none", "cannot use the mount point", "mkdir -p"),
        ("run/file", "is not a directory", "name an empty directory"),
        ("full", "is not empty", "-o nonempty"),
        ("run/inner", "lies in the source", "over the source itself"),
    ] {
        let (code, stderr) = place.refused("run", mountpoint, &[]);
        assert_eq!(code, 1, "{stderr}");
        let (error, advice) = stderr.split_once("\nHint: ").unwrap();
        assert!(error.contains(what) && advice.contains(hint), "{stderr}");
    }
}

#[test]
fn a_log_file_that_cannot_be_written() {
    let place = Place::new();
    let (code, stderr) =
        place.refused("run", "mnt", &["--log-file", &place.path("run/file/x.log")]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("cannot open the log file") && stderr.contains("Hint: "),
        "{stderr}"
    );
}

#[test]
fn umount_of_what_is_not_ours() {
    let place = Place::new();
    for (mountpoint, what) in [
        (place.path("mnt"), "nothing is mounted at"),
        (place.path("none"), "cannot find the mount point"),
        ("/proc".to_owned(), "/proc is no nodbfs mount"),
    ] {
        let (code, _, stderr) = nodbfs(&["umount", &mountpoint]);
        assert_eq!(code, 1);
        assert!(
            stderr.contains(what) && stderr.contains("\nHint: "),
            "{stderr}"
        );
    }
}

/// What the mount helper makes of mount(8)'s arguments: one line per argument of what it calls.
fn helped(args: &[&str]) -> (Option<i32>, String) {
    let bin = tempdir().unwrap();
    let fake = bin.path().join("fake");
    fs::write(&fake, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    for program in ["nodbfs", "mount"] {
        // a copy by another process: a child of another test may have this one's descriptor for a
        // moment, and what is open for writing cannot be run
        Command::new("install")
            .args(["-m", "755"])
            .args([&fake, &bin.path().join(program)])
            .assert()
            .success();
    }
    let path = format!(
        "{}:{}",
        bin.path().display(),
        std::env::var("PATH").unwrap()
    );
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/mount.nodbfs");
    let output = Command::new("sh")
        .arg(helper)
        .args(args)
        .env("PATH", path)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn the_mount_helper_speaks_mount_8() {
    let root = rustix::process::geteuid().is_root();
    let own = if root { "dev,suid," } else { "" };
    let (code, args) = helped(&[
        "/my runs",
        "/mnt",
        "-sn",
        "-o",
        "rw,allow_other",
        "-t",
        "fuse.nodbfs",
    ]);
    assert_eq!(
        (code, args.as_str()),
        (
            Some(0),
            format!("mount\n-o\n{own}rw,allow_other\n--\n/my runs\n/mnt\n").as_str()
        )
    );
    let bare = if root { "-o\ndev,suid\n" } else { "" };
    assert_eq!(
        helped(&["/runs", "/mnt"]),
        (Some(0), format!("mount\n{bare}--\n/runs\n/mnt\n"))
    );
    assert_eq!(helped(&["/runs", "/mnt", "-f"]), (Some(0), String::new()));
    assert_eq!(
        helped(&[
            "/runs",
            "/mnt",
            "-o",
            "ro,allow_other,remount,redis=x,noexec"
        ]),
        (
            Some(0),
            "--internal-only\n-o\nremount,ro,noexec\n/mnt\n".into()
        )
    );
    assert_eq!(helped(&["/runs"]).0, Some(2));
    assert_eq!(
        helped(&["/runs", "/mnt", "-N", "/proc/1/ns/mnt"]).0,
        Some(2)
    );
}

#[test]
fn a_redis_that_cannot_be_used_is_named_with_its_cure() {
    let place = Place::new();
    let server = RedisServer::with_password("s3cret");
    let gone = {
        let stopped = RedisServer::start();
        stopped.url()
    };
    for (url, words, cure) in [
        (
            gone.as_str(),
            "cannot use Redis at",
            "is redis-server running there",
        ),
        (&server.bare_url(), "NOAUTH", "check the password"),
        (
            &server.bare_url().replace("//", "//:wr0ng@"),
            "WRONGPASS",
            "check the password",
        ),
        (
            "http://example",
            "the Redis settings make no sense",
            "redis://host:6379",
        ),
    ] {
        let (code, stderr) = place.refused("run", "mnt", &["--redis", url]);
        assert_ne!(code, 0);
        assert!(stderr.contains(words), "{url}: {stderr}");
        assert!(stderr.contains(cure), "{url}: {stderr}");
        assert!(
            !stderr.contains("s3cret") && !stderr.contains("wr0ng"),
            "{stderr}"
        );
    }
}
