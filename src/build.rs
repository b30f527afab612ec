//! A mount's parts put together: the source, the store, the controllers, the adapter.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::fstatfs;
use rustix::process::{Resource, getrlimit};
use tracing::{info, warn};

use crate::config::Config;
use crate::control::Context;
use crate::counters;
use crate::fs::Fs;
use crate::fs::inodes::Inodes;
use crate::fs::plain::Plain;
use crate::fuse::{Adapter, Notices};
use crate::hint::Hinted;
use crate::mount::{Built, ClaimedSource, Source, atime};
use crate::nodb::{Kernel, Nodb, Settings};
use crate::store::embedded::Embedded;
use crate::store::redis::{self, Redis};
use crate::store::{Store, StoreErrorKind};

/// How often the daemon looks after what nobody waits for.
const TIDY: Duration = Duration::from_secs(2);

/// `f_type` of overlayfs, on which the kernel stacks passthrough one level deeper.
const OVERLAYFS: i64 = 0x794c_7630;

/// The file system that `config` describes, over `source`.
///
/// # Errors
/// The store cannot be reached or refuses, or the source is claimed by another daemon.
pub fn build(config: &Config, source: Source) -> Result<Built<Adapter>> {
    let root = source.try_clone().context("cannot open the source again")?;
    let stacked = fstatfs(&root).is_ok_and(|fs| fs.f_type == OVERLAYFS);
    let notices = Arc::new(Notices::default());
    let Offline { fs, claimed } = controllers(config, source, notices.clone())?;
    let (from, at) = (config.source.clone(), config.mountpoint.clone());
    let (waited_for, given_up) = (Arc::downgrade(&fs), Arc::downgrade(&fs));
    let control = Arc::new(Context::new(&fs, from, Some(at), config.read_only));
    let beside = control.clone();
    let filesystem = Adapter::new(fs, config.allow_other, stacked, claimed, beside)
        .context("cannot start threads")?;
    Ok(Built {
        filesystem,
        connected: Box::new(move |kernel| notices.connect(kernel)),
        end_waits: Box::new(move || {
            if let Some(fs) = waited_for.upgrade() {
                fs.end_waits();
            }
        }),
        give_up: Box::new(move || {
            if let Some(fs) = given_up.upgrade() {
                fs.end();
            }
        }),
        control,
    })
}

/// A source's files without a mount.
pub struct Offline {
    pub fs: Arc<Fs>,
    claimed: Option<ClaimedSource>,
}

impl Offline {
    /// Pays what can be paid, and waits until what was replaced is removed.
    pub fn end(self) {
        self.fs.nodb().tidy();
        let mut fs = self.fs;
        // its drop waits for the removal; the thread that tidies may be at it
        while let Err(shared) = Arc::try_unwrap(fs) {
            fs = shared;
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The files of `source` for this process alone, with the store that `config` describes.
///
/// # Errors
/// As with [`build`].
pub fn offline(config: &Config, source: Source) -> Result<Offline> {
    controllers(config, source, Arc::new(NoKernel))
}

/// Without a mount, no kernel remembers a name.
#[derive(Debug)]
struct NoKernel;

impl Kernel for NoKernel {
    fn entry_changed(&self, _dir: u64, _name: &OsStr, _wait: bool) {}
    fn attributes_changed(&self, _id: u64) {}
}

fn controllers(config: &Config, source: Source, kernel: Arc<dyn Kernel>) -> Result<Offline> {
    let store = store(config)?;
    let claimed = match store {
        Chosen::Embedded(_) => Some(source.claim()?),
        Chosen::Redis(_) => None,
    };
    let root = source.try_clone().context("cannot open the source again")?;
    let root = match atime::view(root, &config.flags, config.read_only) {
        Ok(root) => root,
        Err(cause) => {
            warn!(
                "times of access are kept as on the source, for only root may say otherwise: {cause}"
            );
            source.try_clone().context("cannot open the source again")?
        }
    };
    let inodes = Inodes::new(root, descriptors()).context("cannot look at the source")?;
    let plain = Arc::new(Plain {
        inodes,
        locks: Arc::default(),
    });
    let settings = Settings {
        key_root: PathBuf::from(&config.key_root),
        source: config.source.clone(),
        lock_wait: config.lock_wait,
        max_hold: config.max_hold,
        lease_ttl: config.lease_ttl,
        max_payload: config.max_payload,
        cache_size: usize::try_from(config.cache_size).unwrap_or(usize::MAX),
        state_dir: config.state_dir.clone(),
        name_ttl: config.name_ttl.unwrap_or(match store {
            Chosen::Embedded(_) => config.plain_ttl,
            Chosen::Redis(_) => Duration::ZERO,
        }),
        publish_events: config.publish_events,
    };
    let nodb = Nodb::new(plain.clone(), store.into_store(), kernel, settings)
        .context("cannot start a thread")?;
    let fs = Arc::new(Fs::new(plain, nodb, config.plain_ttl));
    let tidied = Arc::downgrade(&fs);
    thread::Builder::new()
        .name("nodbfs-tidy".to_owned())
        .spawn(move || {
            while let Some(fs) = tidied.upgrade() {
                fs.nodb().tidy();
                counters::sample();
                drop(fs);
                thread::sleep(TIDY);
            }
        })
        .context("cannot start a thread")?;
    Ok(Offline { fs, claimed })
}

/// The store that the command line and the environment ask for.
enum Chosen {
    Embedded(Embedded),
    Redis(Redis),
}

impl Chosen {
    fn into_store(self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => Arc::new(store),
            Self::Redis(store) => Arc::new(store),
        }
    }
}

/// Whether the command line or the environment names a Redis; none that makes no sense is taken for one.
pub fn names_redis(config: &Config) -> bool {
    redis_settings(config).is_ok_and(|settings| settings.is_some())
}

fn redis_settings(config: &Config) -> Result<Option<redis::Settings>, redis::SettingsError> {
    redis::Settings::resolve(config.redis.as_deref(), &|name| std::env::var(name).ok())
}

fn store(config: &Config) -> Result<Chosen> {
    let settings = redis_settings(config).map_err(|error| {
        anyhow::Error::new(error).context(Hinted::usage(
            "the Redis settings make no sense",
            "for example --redis redis://host:6379, or unset REDIS_URL and REDIS_HOST for the embedded store",
        ))
    })?;
    let Some(settings) = settings else {
        info!(
            "embedded store: locks and cache are this daemon's own; NoDb processes with a Redis do not see them"
        );
        // the payloads themselves are in the payload cache; entries and seals are for NoDb's use
        let share = usize::try_from(config.cache_size / 4).unwrap_or(usize::MAX);
        return Ok(Chosen::Embedded(Embedded::new(share)));
    };
    let store = Redis::new(settings);
    if let Err(error) = store.ping() {
        let hint = match error.kind {
            StoreErrorKind::Denied => {
                "check the password: in the URL, REDIS_PASSWORD or REDIS_PASSWORD_FILE"
            }
            StoreErrorKind::Refused => "wait until the server is ready, then mount again",
            _ => {
                "is redis-server running there, and may this host reach it? Without --redis the embedded store is used"
            }
        };
        let what = format!("cannot use Redis at {}", store.describe());
        return Err(anyhow::Error::new(error).context(Hinted::failure(what, hint)));
    }
    info!(store = store.describe(), "connected");
    Ok(Chosen::Redis(store))
}

/// How many descriptors may be kept for inodes: half of what the process may have, the rest is for
/// open files.
fn descriptors() -> NonZeroUsize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < 1024 {
        warn!(limit, "few descriptors allowed: raise RLIMIT_NOFILE");
    }
    let half = usize::try_from(limit / 2)
        .unwrap_or(usize::MAX)
        .clamp(16, 65536);
    NonZeroUsize::new(half).unwrap_or(NonZeroUsize::MIN)
}
