//! What a command works on: a file or a run, on a mount or straight on a source and a store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::mount::MountArgs;
use super::units;
use crate::build::names_redis;
use crate::config::{Config, made_absolute};
use crate::control::client::{Client, Located};
use crate::hint::Hinted;

/// How to work where no mount is. On a mount its daemon does what is asked, with its own settings.
#[derive(Debug, Args)]
pub struct Offline {
    /// Work in this process, straight on the files and on this Redis, as on a mount that was made
    /// with it [default without a mount: what REDIS_URL and its kin say]
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// Without a mount: the directory that would be mounted [default: the run, or the file's directory]
    #[arg(long, value_name = "PATH")]
    pub source: Option<PathBuf>,
    /// Without a mount: the path of the source as NoDb processes know it [default: the source's]
    #[arg(long, value_name = "PATH")]
    pub key_root: Option<PathBuf>,
    /// Where rejected documents are kept, on a mount those that its daemon did not get [default: as for 'nodbfs mount']
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Without a mount: how long to wait for a held lock [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub lock_wait: Option<Duration>,
}

/// Whether a command makes sense without a mount and without a Redis, with an embedded store of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedded {
    /// The store is only needed for locks, and nobody else has any.
    Fits,
    /// What is asked about is the cache.
    HasNoCache,
}

impl Offline {
    /// Whoever answers for `path`, and the path below its source: the daemon of the mount it lies on,
    /// or of one over its directory, or else this process.
    ///
    /// # Errors
    /// The daemon cannot be asked; or, without one, source or store cannot be used.
    pub fn reach(&self, path: &Path, embedded: Embedded) -> Result<(Client, String)> {
        if self.redis.is_none() && self.source.is_none() {
            let located = Located::find(path)?;
            if let (Some(mounted), Some(below)) = (&located.mounted, located.below()) {
                return Ok((Client::of(mounted)?, text(below)?));
            }
            if let Some((client, below)) = located.served()? {
                return Ok((client, text(&below)?));
            }
        }
        let path = made_absolute(path)?;
        let source = match &self.source {
            Some(source) => made_absolute(source)?,
            None if path.is_dir() => path.clone(),
            None => path.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        let below = path.strip_prefix(&source).map_err(|_| {
            let what = format!("{} does not lie below {}", path.display(), source.display());
            Hinted::usage(what, "name a --source that contains it")
        })?;
        let config = Config::resolve(MountArgs {
            source: source.clone(),
            mountpoint: source.clone(),
            redis: self.redis.clone(),
            key_root: self.key_root.clone(),
            lock_wait: self.lock_wait,
            state_dir: self.state_dir.clone(),
            ..MountArgs::default()
        })?;
        if embedded == Embedded::HasNoCache && !names_redis(&config) {
            return Err(Hinted::usage(
                format!(
                    "{} lies on no mount, and there is no Redis to ask",
                    path.display()
                ),
                "give --redis URL, or set REDIS_URL",
            )
            .into());
        }
        Ok((Client::here(&config)?, text(below)?))
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    let what = || format!("{} is not UTF-8", path.display());
    let hint = "NoDb processes have no key for such a path";
    Ok(text.ok_or_else(|| Hinted::usage(what(), hint))?)
}
