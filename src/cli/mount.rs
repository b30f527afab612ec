//! `nodbfs mount`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;

use super::units;
use crate::config::Config;
use crate::mount::{Built, Source, background};
use crate::telemetry::output;

/// Mount SOURCE at MOUNTPOINT
///
/// SOURCE is one run directory or a whole tree of runs. MOUNTPOINT may be SOURCE itself: programs
/// then work through nodbfs without knowing it.
#[derive(Debug, Default, Args)]
pub struct MountArgs {
    /// The directory to mount
    pub source: PathBuf,
    /// Where to mount it: an empty directory, or SOURCE itself
    pub mountpoint: PathBuf,
    /// redis://, rediss:// or unix:// URL of the NoDb processes' Redis; keep its password out of
    /// sight with REDIS_PASSWORD_FILE [default: what REDIS_URL and its kin say, else the
    /// embedded store]
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// The path of SOURCE as NoDb processes know it; cache keys are built from it [default: SOURCE
    /// made absolute, symlinks unresolved]
    #[arg(long, value_name = "PATH")]
    pub key_root: Option<PathBuf>,
    /// Stay in the foreground and log to stderr; else return once the mount answers
    #[arg(long)]
    pub foreground: bool,
    /// How long a writer waits for a held lock [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub lock_wait: Option<Duration>,

    /// How long a lock lasts that is not renewed; a crash blocks a run for this long [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub lease_ttl: Option<Duration>,
    /// How long a writer that does not close may hold a lock; then its commit fails [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub max_hold: Option<Duration>,
    /// How long the kernel may go on believing which file a controller's name leads to, and what stat says of
    /// it, after a change beside the mount; opens are never late. Not for mounts on which NoDb processes
    /// work: they overwrite what stat did not show them [default: 0s, with the embedded store 1s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub name_ttl: Option<Duration>,
    /// How long the kernel may believe names and attributes of plain files, and that a name is not there: a
    /// change made beside the mount shows so much later. 0s to ask the source every time [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub plain_ttl: Option<Duration>,
    /// Largest document that is accepted [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub max_payload: Option<u64>,
    /// Memory for documents kept at hand [default: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = units::size)]
    pub cache_size: Option<u64>,
    /// Publish commits, refusals and lock events on the controllers' status channels, where browsers show
    /// them; the virtual logs have them in any case
    #[arg(long)]
    pub publish_events: bool,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Let other users in, each with their own permissions
    #[arg(long)]
    pub allow_other: bool,
    /// How much to log [default: info]
    #[arg(long, value_name = "LEVEL", env = "NODBFS_LOG", hide_env_values = true)]
    pub log_level: Option<Level>,
    /// Where to log [default: stderr in the foreground, else a file in STATE_DIR/log]
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,
    /// Where rejected documents are kept [default: /var/lib/nodbfs for root, else
    /// $XDG_STATE_HOME/nodbfs or ~/.local/state/nodbfs]
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Options as in fstab, separated by commas: the ones above (lock_wait=5s), ro, nonempty,
    /// noatime and so on; may repeat
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::OFF,
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

/// Mounts in the foreground, or starts a daemon that does and waits for its word.
pub fn run<F, B>(args: MountArgs, build: B) -> anyhow::Result<ExitCode>
where
    F: fuser::Filesystem,
    B: FnOnce(&Config, Source) -> anyhow::Result<Built<F>>,
{
    let config = Config::resolve(args)?;
    if config.foreground {
        output::init(&config.log)?;
        crate::mount::run(&config, build, None)?;
        Ok(ExitCode::SUCCESS)
    } else if background::is_daemon() {
        Ok(background::serve(&config, build))
    } else {
        background::launch(&config)
    }
}
