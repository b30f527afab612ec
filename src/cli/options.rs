//! `-o`: options as fstab and mount(8) write them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::mount::Level;
use super::units;
use crate::hint::Hinted;

/// What `-o` said. Of contradictory options the last one counts, as with mount(8).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub redis: Option<String>,
    pub key_root: Option<PathBuf>,
    pub lock_wait: Option<Duration>,
    pub max_hold: Option<Duration>,
    pub lease_ttl: Option<Duration>,
    pub name_ttl: Option<Duration>,
    pub plain_ttl: Option<Duration>,
    pub max_payload: Option<u64>,
    pub cache_size: Option<u64>,
    pub state_dir: Option<PathBuf>,
    pub log_level: Option<Level>,
    pub log_file: Option<PathBuf>,
    pub fsname: Option<String>,
    pub publish_events: bool,
    pub read_only: bool,
    pub allow_other: bool,
    pub nonempty: bool,
    pub foreground: bool,
    pub flags: Flags,
}

/// The flags of any mount. All off is what FUSE mounts are by default, and times of access as the source keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub dev: bool,
    pub suid: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub nodiratime: bool,
    pub strictatime: bool,
    pub sync: bool,
    pub dirsync: bool,
}

/// Options that only mount(8), systemd or libfuse care about; fstab lines carry them, and some are
/// what nodbfs does anyhow.
const IGNORED: &[&str] = &[
    "_netdev",
    "_rnetdev",
    "auto",
    "default_permissions",
    "defaults",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noauto",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "nouser",
    "nousers",
    "owner",
    "silent",
    "user",
    "users",
];

const KNOWN: &str = "redis=URL, key_root=PATH, lock_wait=DURATION, max_hold=DURATION, lease_ttl=DURATION, name_ttl=DURATION, plain_ttl=DURATION, max_payload=SIZE, cache_size=SIZE, \
     state_dir=PATH, log_level=LEVEL, log_file=PATH, fsname=NAME, publish_events, ro, rw, allow_other, nonempty, foreground, \
     dev, nodev, suid, nosuid, exec, noexec, noatime, nodiratime, relatime, strictatime, sync, async, dirsync; \
     those of mount(8) such as auto, user, nofail, _netdev, x-* are accepted and ignored";

impl Options {
    /// Reads every `-o` of the command line, in order.
    ///
    /// # Errors
    /// An unknown option, one without its value, or a value that makes no sense; all are usage errors.
    pub fn parse(lists: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for option in lists
            .iter()
            .flat_map(|list| split(list))
            .filter(|option| !option.is_empty())
        {
            match option.split_once('=') {
                Some((name, value)) => options.set(name, value, &option)?,
                None => options.flag(&option)?,
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str, option: &str) -> Result<()> {
        if value.is_empty() && !ignored(option) {
            return Err(no_value(name).into());
        }
        let wrong =
            |cause| Hinted::usage(format!("-o {name}: {cause}"), "see 'nodbfs mount --help'");
        match name {
            "redis" => self.redis = Some(value.into()),
            "key_root" => self.key_root = Some(value.into()),
            "lock_wait" => self.lock_wait = Some(units::duration(value).map_err(wrong)?),
            "lease_ttl" => self.lease_ttl = Some(units::duration(value).map_err(wrong)?),
            "max_hold" => self.max_hold = Some(units::duration(value).map_err(wrong)?),
            "name_ttl" => self.name_ttl = Some(units::duration(value).map_err(wrong)?),
            "plain_ttl" => self.plain_ttl = Some(units::duration(value).map_err(wrong)?),
            "max_payload" => self.max_payload = Some(units::size(value).map_err(wrong)?),
            "cache_size" => self.cache_size = Some(units::size(value).map_err(wrong)?),
            "state_dir" => self.state_dir = Some(value.into()),
            "log_level" => {
                let level = Level::from_str(value, true);
                let wrong = |_| {
                    wrong(format!(
                        "'{value}' is none of off, error, warn, info, debug, trace"
                    ))
                };
                self.log_level = Some(level.map_err(wrong)?);
            }
            "log_file" => self.log_file = Some(value.into()),
            "fsname" => self.fsname = Some(value.into()),
            // fixed: `umount` knows our mounts by it
            "subtype" => {}
            _ if ignored(option) => {}
            _ => return Err(unknown(name).into()),
        }
        Ok(())
    }

    fn flag(&mut self, name: &str) -> Result<()> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "publish_events" => self.publish_events = true,
            "nonempty" => self.nonempty = true,
            "foreground" => self.foreground = true,
            "dev" | "nodev" => self.flags.dev = name == "dev",
            "suid" | "nosuid" => self.flags.suid = name == "suid",
            "exec" | "noexec" => self.flags.noexec = name == "noexec",
            "atime" | "noatime" | "relatime" | "norelatime" | "strictatime" | "nostrictatime" => {
                self.flags.noatime = name == "noatime";
                self.flags.strictatime = name == "strictatime";
            }
            "diratime" | "nodiratime" => self.flags.nodiratime = name == "nodiratime",
            "sync" | "async" => self.flags.sync = name == "sync",
            "dirsync" => self.flags.dirsync = true,
            "redis" | "key_root" | "lock_wait" | "max_hold" | "lease_ttl" | "name_ttl"
            | "plain_ttl" | "max_payload" | "cache_size" | "state_dir" | "log_level"
            | "log_file" | "fsname" => {
                return Err(no_value(name).into());
            }
            _ if ignored(name) => {}
            _ => return Err(unknown(name).into()),
        }
        Ok(())
    }
}

fn ignored(option: &str) -> bool {
    IGNORED.contains(&option)
        || ["x-", "X-", "comment="]
            .iter()
            .any(|prefix| option.starts_with(prefix))
}

fn unknown(name: &str) -> Hinted {
    Hinted::usage(
        format!("unknown mount option '{name}'"),
        format!("the options are {KNOWN}"),
    )
}

fn no_value(name: &str) -> Hinted {
    Hinted::usage(
        format!("mount option '{name}' needs a value"),
        format!("write -o {name}=VALUE"),
    )
}

/// Splits at commas; `\,` is a comma within a value, as libfuse has it.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let last = options.len() - 1;
        match c {
            '\\' if matches!(chars.peek(), Some(',' | '\\')) => options[last].extend(chars.next()),
            ',' => options.push(String::new()),
            c => options[last].push(c),
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lists: &[&str]) -> Result<Options> {
        Options::parse(
            &lists
                .iter()
                .map(|list| (*list).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn every_option_that_carries_a_value() {
        let options = parse(&[
            "redis=redis://h/0,key_root=/wc1/runs,lock_wait=7s",
            "max_payload=1k,cache_size=2k,state_dir=/s,log_level=DEBUG,log_file=/l,fsname=n",
        ]);
        let expected = Options {
            redis: Some("redis://h/0".into()),
            key_root: Some("/wc1/runs".into()),
            lock_wait: Some(Duration::from_secs(7)),
            max_payload: Some(1024),
            cache_size: Some(2048),
            state_dir: Some("/s".into()),
            log_level: Some(Level::Debug),
            log_file: Some("/l".into()),
            fsname: Some("n".into()),
            ..Options::default()
        };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn flags_and_what_mount_8_adds() {
        let options = parse(&[
            "ro,allow_other,nonempty,dev,suid,noexec,strictatime,nodiratime,_netdev,x-systemd.automount,user",
        ]);
        let options = options.unwrap();
        assert!(
            options.read_only && options.allow_other && options.nonempty && !options.foreground
        );
        let flags = Flags {
            dev: true,
            suid: true,
            noexec: true,
            nodiratime: true,
            strictatime: true,
            ..Flags::default()
        };
        assert_eq!(options.flags, flags);
    }

    #[test]
    fn the_last_of_two_contradictory_options_counts() {
        let options = parse(&[
            "ro,dev,noexec,noatime",
            "rw,nodev,exec,relatime,lock_wait=1s,lock_wait=2s",
        ])
        .unwrap();
        assert!(!options.read_only);
        assert_eq!(options.flags, Flags::default());
        assert_eq!(options.lock_wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_comma_within_a_value_is_escaped() {
        let options = parse(&[r"key_root=/a\,b,ro"]).unwrap();
        assert_eq!(options.key_root, Some("/a,b".into()));
        assert!(options.read_only);
    }

    #[test]
    fn what_is_not_known_or_not_whole_is_refused_by_name() {
        for (list, name) in [
            ("frobnicate", "unknown mount option 'frobnicate'"),
            ("lock-wait=5s", "unknown mount option 'lock-wait'"),
            ("lock_wait", "mount option 'lock_wait' needs a value"),
            ("key_root=", "mount option 'key_root' needs a value"),
            ("max_payload=lots", "-o max_payload: 'lots' is no size"),
            ("log_level=loud", "-o log_level: 'loud' is none of"),
        ] {
            let error = parse(&[list]).unwrap_err();
            assert!(error.to_string().starts_with(name), "{list}: {error}");
            assert_eq!(crate::hint::exit_code(&error), crate::hint::USAGE);
        }
    }
}
