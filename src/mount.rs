//! The life of a mount: repair what a crash left, check, build, mount, say so, serve, and end in
//! an orderly way whoever asks for it.

pub mod atime;
pub mod background;
pub mod guard;
pub mod presence;
pub mod repair;
mod session;
mod signals;
mod source;
pub mod table;
pub mod unmount;

use std::io;
use std::os::unix::net::UnixListener;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, fstatvfs};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use sd_notify::NotifyState;
use tracing::{debug, error, info, warn};

pub use session::THREADS;
pub use source::{ClaimedSource, Source};

use crate::config::Config;
use crate::control::{self, server::Server};

/// How long programs that have files open on the mount may go on when the daemon is told to end.
/// Enough for a save that is under way, and well below systemd's 90 s for stopping a service.
const GRACE: Duration = Duration::from_secs(5);
/// How long the rest of the session may take after a worker panicked, when it may never end.
const AFTER_PANIC: Duration = Duration::from_secs(10);
/// fuser's names for the threads that serve requests.
const WORKERS: &str = "fuser-";

/// A file system, ready to be mounted.
pub struct Built<F> {
    /// What is mounted. Its `destroy` drains: it returns when nothing is left to be done.
    pub filesystem: F,
    /// Called once with the way to notify the kernel, before any request is served.
    pub connected: Box<dyn FnOnce(fuser::Notifier)>,
    /// Called instead of `destroy` when the session cannot be ended: saves what can be saved.
    pub give_up: Box<dyn FnOnce() + Send>,
    /// What is answered beside the mount.
    pub control: Arc<control::Context>,
}

/// What happens to a mount.
#[derive(Debug)]
enum Event {
    /// The mounted file system answers, as this device number; or it does not.
    Probed(Result<(u32, u32)>),
    Signal(i32),
    /// A thread that serves requests panicked, with these words.
    Panicked(String),
    /// All requests are served, and the file system is drained.
    Ended(io::Result<()>),
}

/// Mounts as `config` says, what `build` makes of the source, and serves until the mount's end. In
/// the background, `pipe` leads to the command that waits for the mount to answer.
///
/// # Errors
/// It could not be mounted, or it did not end as it should.
pub fn run<F, B>(config: &Config, build: B, pipe: Option<background::Pipe>) -> Result<()>
where
    F: fuser::Filesystem,
    B: FnOnce(&Config, Source) -> Result<Built<F>>,
{
    #[cfg(feature = "failpoints")]
    let _failpoints = crate::step::arm();
    let (events, happened) = mpsc::channel();
    let armed = signals::catch(events.clone(), pipe.is_some())?;
    watch_panics(events.clone());
    raise_file_limit();

    session::check_device()?;
    repair::clear(&config.mountpoint)?;
    repair::clear(&config.source)?;
    source::check_not_mounted(&config.mountpoint)?;
    let source = Source::open(&config.source)?;
    source::check_mountpoint(&config.mountpoint, &source, config.nonempty)?;
    let below = fstatvfs(&source)
        .context("cannot look at the source")?
        .f_flag;
    let Built {
        filesystem,
        connected,
        give_up,
        control,
    } = build(config, source)?;
    if pipe.is_some() {
        // a daemon keeps no file system busy. After the build, which may read files that the
        // environment names by relative paths
        rustix::process::chdir("/").context("cannot change to /")?;
    }
    // the kernel has applied the caller's already
    umask(Mode::empty());

    armed.set();
    let session = session::mount(config, below, filesystem)?;
    connected(session.notifier());
    let at = table::canonical(&config.mountpoint)?;
    let _guard = guard::Guard::start(&at);
    let server = answer(&at, control)
        .inspect_err(|cause| warn!("nothing is answered beside the mount: {cause:#}"))
        .ok();
    let serving = session::serve(session)?;
    spawn("session", &events, move || Event::Ended(serving.join()))?;
    let asked = at.clone();
    spawn("probe", &events, move || {
        Event::Probed(session::probe(&asked))
    })?;

    let result = Life {
        config,
        at,
        happened,
        pipe,
        give_up,
        dev: None,
        presence: None,
        _server: server,
    }
    .live();
    info!("ended");
    result
}

/// Answers beside the mount from before its first request on.
fn answer(at: &Path, context: Arc<control::Context>) -> Result<Server> {
    let mounted = table::top(at)?.context("it is not in the mount table")?;
    Ok(Server::start(mounted.dev, context)?)
}

/// Runs `work` on a thread of its own; its outcome is an event.
fn spawn(
    name: &str,
    events: &Sender<Event>,
    work: impl FnOnce() -> Event + Send + 'static,
) -> Result<()> {
    let events = events.clone();
    // the receiver is gone only when the process ends
    let work = move || drop(events.send(work()));
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .context("cannot start a thread")?;
    Ok(())
}

/// A mount that exists, and what is known of it.
struct Life<'a> {
    config: &'a Config,
    /// The mount point, symlinks resolved.
    at: PathBuf,
    happened: Receiver<Event>,
    pipe: Option<background::Pipe>,
    give_up: Box<dyn FnOnce() + Send>,
    /// Known once it answers.
    dev: Option<(u32, u32)>,
    presence: Option<UnixListener>,
    /// Hangs up when the mount has ended.
    _server: Option<Server>,
}

impl Life<'_> {
    fn live(mut self) -> Result<()> {
        loop {
            match self.happened.recv()? {
                Event::Probed(Ok(dev)) => {
                    if let Err(cause) = self.answers(dev) {
                        self.end(GRACE)?;
                        return Err(cause);
                    }
                }
                Event::Probed(Err(cause)) => {
                    self.end(GRACE)?;
                    return Err(cause);
                }
                Event::Signal(signal) => {
                    info!("signal {signal}: ending");
                    return self.end(GRACE);
                }
                Event::Panicked(words) => {
                    if let Err(cause) = self.end(AFTER_PANIC) {
                        debug!("{cause:#}");
                    }
                    return Err(anyhow!("a thread that serves requests panicked: {words}"));
                }
                Event::Ended(result) => {
                    info!("{} was unmounted", self.at.display());
                    return self.ended(result);
                }
            }
        }
    }

    /// The mount answers: tells everybody who waits for it.
    fn answers(&mut self, dev: (u32, u32)) -> Result<()> {
        self.dev = Some(dev);
        self.presence = presence::announce(dev);
        info!(
            "{} is mounted at {}",
            self.config.source.display(),
            self.at.display()
        );
        let status = format!(
            "Serving {} at {}",
            self.config.source.display(),
            self.at.display()
        );
        notify(&[
            NotifyState::MainPid(std::process::id()),
            NotifyState::Status(&status),
            NotifyState::Ready,
        ]);
        self.pipe.take().map_or(Ok(()), background::Pipe::ready)
    }

    /// Takes no more work, lets what is under way finish for at most `grace`, then cuts it off.
    fn end(self, grace: Duration) -> Result<()> {
        notify(&[
            NotifyState::Stopping,
            NotifyState::Status("Waiting for open files"),
        ]);
        if let Err(busy) = unmount::unmount(&self.at) {
            debug!("{busy:#}; detaching it");
            if let Err(cause) = unmount::detach(&self.at) {
                warn!("{cause:#}");
            }
        }
        if let Some(result) = self.wait(grace) {
            return self.ended(result);
        }
        warn!(
            "{} is still in use: cutting off its users",
            self.at.display()
        );
        if let Err(cause) = self.dev.map_or(Ok(()), unmount::abort) {
            warn!("cannot cut them off ({cause}): they end with the process");
            return self.give_up(grace);
        }
        match self.wait(grace) {
            Some(result) => self.ended(result),
            None => {
                warn!("requests are still under way: they end with the process");
                self.give_up(grace)
            }
        }
    }

    /// The session goes on until the process ends. What hangs there may keep even this from being done.
    fn give_up(self, limit: Duration) -> Result<()> {
        let (done, waiting) = mpsc::channel();
        let give_up = move || {
            (self.give_up)();
            // nobody may wait any more
            let _ = done.send(());
        };
        thread::Builder::new()
            .name("give-up".into())
            .spawn(give_up)
            .context("cannot start a thread")?;
        if waiting.recv_timeout(limit).is_err() {
            warn!("locks and unsaved content may be left behind");
        }
        Ok(())
    }

    /// The session's result, if it ends within `limit`.
    fn wait(&self, limit: Duration) -> Option<io::Result<()>> {
        let until = std::time::Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match self.happened.recv_timeout(left) {
                Ok(Event::Ended(result)) => return Some(result),
                Ok(event) => debug!("while ending: {event:?}"),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// The session is over. An aborted connection leaves a dead mount behind: takes it away.
    fn ended(&self, result: io::Result<()>) -> Result<()> {
        let ours = |dev| {
            table::top(&self.at)
                .ok()
                .flatten()
                .is_some_and(|mounted| mounted.is_ours() && mounted.dev == dev)
        };
        if self.dev.is_some_and(ours) {
            unmount::detach(&self.at)?;
        }
        result.context("the connection to the kernel broke")
    }
}

/// systemd's readiness protocol; silent without a NOTIFY_SOCKET.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(state) {
        warn!("cannot notify the service manager: {cause}");
    }
}

/// Panics go to the log. One on a thread that serves requests means fewer threads and a caller with
/// EIO; the mount ends before it has none left.
fn watch_panics(events: Sender<Event>) {
    panic::set_hook(Box::new(move |panicked| {
        let words = panicked.to_string().replace('\n', " ");
        error!("{words}");
        if thread::current()
            .name()
            .is_some_and(|name| name.starts_with(WORKERS))
        {
            let _ = events.send(Event::Panicked(words));
        }
    }));
}

/// A descriptor per open file and known directory is needed: the soft limit of 1024 is for programs that use select(2).
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        warn!(
            "the limit of open files stays at {:?}: {cause}",
            limit.current
        );
    }
}
