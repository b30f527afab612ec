//! What the command line means: every setting resolved, with its default and the reason for it.
//! Nothing here touches the mount point; [`crate::mount`] does, in the daemon.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::level_filters::LevelFilter;

use crate::cli::mount::{Level, MountArgs};
use crate::cli::options::{Flags, Options};
use crate::hint::Hinted;

/// NoDb processes hold a lock for well under a second per dump and retry five times, 1 s apart
/// (PROTOCOL.md 4); a writer here waits as long as they do.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
/// A crash blocks a run for a minute, not for the six hours of a NoDb process's lock; renewed every
/// 20 s, two renewals may fail before it is lost.
pub const LEASE_TTL: Duration = Duration::from_secs(60);
/// Longer than any save takes, and far below the six hours of a NoDb process's lock: a program that
/// opens a controller for writing and hangs must not stop a run for good.
pub const MAX_HOLD: Duration = Duration::from_secs(600);
/// What others change beside the mount shows within a second; NFS gives itself 3 to 60 (PROTOCOL.md 9).
pub const PLAIN_TTL: Duration = Duration::from_secs(1);
/// Hundreds of times the largest document seen (0.7 MB, PROTOCOL.md 1), and still far from filling
/// a worker's memory.
pub const MAX_PAYLOAD: u64 = 256 << 20;
/// All controllers of a few hundred active runs (20 of 50 kB each).
pub const CACHE_SIZE: u64 = 256 << 20;

/// The settings of one mount.
#[derive(Clone, Debug)]
pub struct Config {
    /// Absolute, symlinks unresolved.
    pub source: PathBuf,
    /// Absolute, symlinks unresolved.
    pub mountpoint: PathBuf,
    /// The source's path as NoDb processes know it: absolute, no `.` or `..`, no trailing slash.
    pub key_root: String,
    /// `--redis` as typed; the environment is the store's to read.
    pub redis: Option<String>,
    /// Stay in the foreground.
    pub foreground: bool,
    /// How long a writer waits for a held lock; zero: not at all.
    pub lock_wait: Duration,
    /// How long a writer that does not close may hold a lock.
    pub max_hold: Duration,
    /// How long a lock lasts that is not renewed.
    pub lease_ttl: Duration,
    /// How long the kernel may believe where a controller's name leads; `None`: as the store allows.
    pub name_ttl: Option<Duration>,
    /// How long the kernel may believe names, missing ones too, and attributes of plain files.
    pub plain_ttl: Duration,
    /// Largest document, in bytes.
    pub max_payload: u64,
    /// Bound of the in-memory payload cache, in bytes; zero: none.
    pub cache_size: u64,
    /// Whether nodbfs's own events are published on the status channels.
    pub publish_events: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Mount over a directory that has entries.
    pub nonempty: bool,
    /// Where rejected documents, debts and the daemon's log lie. Need not exist yet.
    pub state_dir: PathBuf,
    /// What `df` and `mount` show as the source.
    pub fsname: String,
    /// The kernel's flags.
    pub flags: Flags,
    /// How much is logged, and where.
    pub log: Log,
}

/// How much is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: LevelFilter,
    pub to: LogTo,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    Stderr,
    /// A file that was asked for: it must open.
    File(PathBuf),
    /// The file a daemon logs to by itself: if it cannot be had, there is no log.
    OwnFile(PathBuf),
}

impl Log {
    /// The log file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.to {
            LogTo::Stderr => None,
            LogTo::File(path) | LogTo::OwnFile(path) => Some(path),
        }
    }
}

impl Config {
    /// Resolves what was typed. A long option wins over its `-o` form, being the one that was
    /// typed by hand.
    ///
    /// # Errors
    /// Usage errors: a setting that makes no sense.
    pub fn resolve(args: MountArgs) -> Result<Self> {
        let options = Options::parse(&args.options)?;
        let source = made_absolute(&args.source)?;
        let mountpoint = made_absolute(&args.mountpoint)?;
        let key_root = key_root(args.key_root.or(options.key_root), &source)?;
        let state_dir = state_dir(args.state_dir.or(options.state_dir))?;
        let foreground = args.foreground || options.foreground;
        let log_to = match args.log_file.or(options.log_file) {
            Some(path) => LogTo::File(made_absolute(&path)?),
            None if foreground => LogTo::Stderr,
            None => LogTo::OwnFile(own_log_file(&state_dir, &mountpoint)),
        };
        let max_payload = args
            .max_payload
            .or(options.max_payload)
            .unwrap_or(MAX_PAYLOAD);
        if max_payload == 0 {
            return Err(Hinted::usage(
                "--max-payload 0 would refuse every document",
                "leave it out, or raise it",
            )
            .into());
        }
        Ok(Self {
            key_root,
            redis: args.redis.or(options.redis),
            foreground,
            lease_ttl: args.lease_ttl.or(options.lease_ttl).unwrap_or(LEASE_TTL),
            max_hold: args.max_hold.or(options.max_hold).unwrap_or(MAX_HOLD),
            name_ttl: args.name_ttl.or(options.name_ttl),
            plain_ttl: args.plain_ttl.or(options.plain_ttl).unwrap_or(PLAIN_TTL),
            lock_wait: args.lock_wait.or(options.lock_wait).unwrap_or(LOCK_WAIT),
            max_payload,
            cache_size: args.cache_size.or(options.cache_size).unwrap_or(CACHE_SIZE),
            publish_events: args.publish_events || options.publish_events,
            read_only: args.read_only || options.read_only,
            allow_other: args.allow_other || options.allow_other,
            nonempty: options.nonempty,
            fsname: options
                .fsname
                .unwrap_or_else(|| source.to_string_lossy().into_owned()),
            flags: options.flags,
            log: Log {
                level: args
                    .log_level
                    .or(options.log_level)
                    .unwrap_or(Level::Info)
                    .into(),
                to: log_to,
            },
            source,
            mountpoint,
            state_dir,
        })
    }
}

/// As [`std::path::absolute`], which leaves symlinks alone, but seen from the shell's working
/// directory: `$PWD` keeps the symlinks through which the user came, `getcwd` does not.
pub fn made_absolute(path: &Path) -> Result<PathBuf> {
    let pwd = env::var_os("PWD")
        .map(PathBuf::from)
        .filter(|pwd| pwd.is_absolute() && same_directory(pwd));
    let path = match pwd {
        Some(pwd) if !path.as_os_str().is_empty() => pwd.join(path),
        _ => path.to_owned(),
    };
    let path = absolute(&path).with_context(|| {
        Hinted::usage(
            format!("'{}' is no path", path.display()),
            "name the directory, or change into it and say '.'",
        )
    })?;
    // drops a trailing slash
    Ok(path.components().collect())
}

fn same_directory(pwd: &Path) -> bool {
    match (fs::metadata(pwd), fs::metadata(".")) {
        (Ok(pwd), Ok(here)) => (pwd.dev(), pwd.ino()) == (here.dev(), here.ino()),
        _ => false,
    }
}

/// The default is folded as Python's `os.path.abspath` does it, because that is what NoDb
/// processes build their paths with; one that was given must be right as it stands.
fn key_root(given: Option<PathBuf>, source: &Path) -> Result<String> {
    let wrong = |what: String| {
        Hinted::usage(
            what,
            "give the path by which NoDb processes open the source, such as /wc1/runs",
        )
    };
    let path = match given {
        Some(path) => {
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                return Err(wrong(format!(
                    "--key-root '{}' is not absolute, or contains '..'",
                    path.display()
                ))
                .into());
            }
            path.components().collect()
        }
        None => fold(source),
    };
    let text = path.into_os_string().into_string();
    text.map_err(|path| {
        wrong(format!(
            "the key root {path:?} is not UTF-8, so it cannot be part of a cache key"
        ))
        .into()
    })
}

/// Removes `..` by name.
fn fold(path: &Path) -> PathBuf {
    let mut folded = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                folded.pop();
            }
            part => folded.push(part),
        }
    }
    folded
}

/// The state directory that was `given`, or the one of all the user's mounts.
///
/// # Errors
/// A usage error: none was given, and there is no place for one.
pub fn state_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return made_absolute(&path);
    }
    let root = rustix::process::geteuid().is_root();
    let from = |name| env::var_os(name).as_deref().map(PathBuf::from);
    state_dir_for(root, from("XDG_STATE_HOME"), from("HOME"))
}

/// The file hierarchy standard's place for root, the XDG base directory specification's for others.
fn state_dir_for(root: bool, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    if root {
        return Ok("/var/lib/nodbfs".into());
    }
    // the specification says that a relative one is to be ignored
    let base = xdg
        .filter(|xdg| xdg.is_absolute())
        .or(home.map(|home| home.join(".local/state")));
    let base = base.filter(|base| base.is_absolute());
    base.map(|base| base.join("nodbfs")).ok_or_else(|| {
        Hinted::usage(
            "there is no place for rejected documents: HOME is not set",
            "give one with --state-dir PATH",
        )
        .into()
    })
}

/// One log per mount point, named after it as systemd names mount units: `mnt-run.log`.
fn own_log_file(state_dir: &Path, mountpoint: &Path) -> PathBuf {
    let parts: Vec<_> = mountpoint
        .components()
        .skip(1)
        .map(Component::as_os_str)
        .collect();
    let mut name = parts.join(OsStr::new("-"));
    name.push(".log");
    state_dir.join("log").join(name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        args: MountArgs,
    }

    fn resolve(line: &[&str]) -> Result<Config> {
        Config::resolve(Typed::parse_from(["mount"].iter().chain(line)).args)
    }

    #[test]
    fn defaults() {
        let config = resolve(&["/runs/", "/mnt/my run", "--state-dir", "/s"]).unwrap();
        assert_eq!(config.source, Path::new("/runs"));
        assert_eq!(config.source.as_os_str(), "/runs");
        assert_eq!(config.key_root, "/runs");
        assert_eq!(config.fsname, "/runs");
        assert_eq!(config.redis, None);
        assert_eq!(config.lock_wait, Duration::from_secs(5));
        assert_eq!(
            (config.max_payload, config.cache_size),
            (256 << 20, 256 << 20)
        );
        assert!(!config.read_only && !config.allow_other && !config.foreground && !config.nonempty);
        assert_eq!(
            config.log.to,
            LogTo::OwnFile("/s/log/mnt-my run.log".into())
        );
    }

    #[test]
    fn a_long_option_wins_over_its_o_form() {
        let config = resolve(&[
            "/a",
            "/b",
            "-o",
            "lock_wait=1s,max_payload=1k,ro,foreground",
            "--lock-wait",
            "2s",
        ]);
        let config = config.unwrap();
        assert_eq!(
            (config.lock_wait, config.max_payload),
            (Duration::from_secs(2), 1024)
        );
        assert!(config.read_only && config.foreground);
        assert_eq!(config.log.to, LogTo::Stderr);
    }

    #[test]
    fn the_key_root_is_absolute_and_has_no_dots() {
        let given = |key_root| resolve(&["/a", "/b", "--key-root", key_root]);
        assert_eq!(given("/wc1//runs/./x/").unwrap().key_root, "/wc1/runs/x");
        assert!(given("wc1/runs").is_err());
        assert!(given("/wc1/../runs").is_err());
        assert_eq!(resolve(&["/a/x/../b", "/m"]).unwrap().key_root, "/a/b");
    }

    #[test]
    fn a_relative_source_is_seen_from_the_working_directory() {
        let config = resolve(&["some/run", "."]).unwrap();
        assert!(config.source.is_absolute() && config.source.ends_with("some/run"));
        assert!(config.mountpoint.is_absolute() && same_directory(&config.mountpoint));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(resolve(&["/a", "/b", "--max-payload", "0"]).is_err());
        assert!(resolve(&["/a", "/b", "-o", "bogus"]).is_err());
    }

    #[test]
    fn the_state_directory_follows_the_standards() {
        let of = |root, xdg: Option<&str>, home: Option<&str>| {
            state_dir_for(root, xdg.map(PathBuf::from), home.map(PathBuf::from)).ok()
        };
        assert_eq!(
            of(true, Some("/x"), Some("/h")),
            Some("/var/lib/nodbfs".into())
        );
        assert_eq!(of(false, Some("/x"), Some("/h")), Some("/x/nodbfs".into()));
        assert_eq!(
            of(false, Some("relative"), Some("/h")),
            Some("/h/.local/state/nodbfs".into())
        );
        assert_eq!(of(false, None, None), None);
    }
}
