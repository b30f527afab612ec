//! The life of a mount: repair what a crash left, check, build, mount, say so, serve, and end in
//! an orderly way whoever asks for it.

pub mod atime;
pub mod background;
pub mod guard;
mod own;
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
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, fstatvfs};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use sd_notify::NotifyState;
use tracing::{debug, error, info, warn};

pub use session::THREADS;
pub use source::{ClaimedSource, Source};

use crate::config::Config;
use crate::control::{self, server::Server};
use own::Own;

/// How long programs that have files open on the mount may go on when the daemon is told to end.
/// Enough for a save that is under way, and well below systemd's 90 s for stopping a service.
const GRACE: Duration = Duration::from_secs(5);
/// How long what is under way may take once nobody waits for its answer: for a save on a slow disk, which `destroy`
/// gives 10 s, and for what is done after it.
const DRAIN: Duration = Duration::from_secs(15);
/// How long it may take to save what can be saved of a session that does not end, its source may hang. All three are
/// 40 s.
const SAVE: Duration = Duration::from_secs(20);
/// fuser's names for the threads that serve requests.
const WORKERS: &str = "fuser-";

/// A file system, ready to be mounted.
pub struct Built<F> {
    /// What is mounted. Its `destroy` drains: it returns when nothing is left to be done.
    pub filesystem: F,
    /// Called once with the way to notify the kernel, before any request is served.
    pub connected: Box<dyn FnOnce(fuser::Notifier)>,
    /// Called before anybody is cut off: nobody waits for a lock any more, so none is given to a waiter.
    pub end_waits: Box<dyn Fn() + Send>,
    /// Called when the session does not end as it should, with or without `destroy`: saves what can be saved, and
    /// returns when that is done.
    pub give_up: Box<dyn FnOnce() + Send>,
    /// What is answered beside the mount.
    pub control: Arc<control::Context>,
}

/// What happens to a mount.
#[derive(Debug)]
enum Event {
    /// The mounted file system answers, or it does not.
    Probed(Result<()>),
    Signal(i32),
    /// A thread that serves requests panicked, with these words.
    Panicked(String),
    /// All requests are served, and the file system is drained; after an error perhaps neither.
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
        end_waits,
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
    let (session, own) = session::mount(config, below, filesystem)?;
    connected(session.notifier());
    let own = own
        .map(Arc::new)
        .inspect_err(|cause| warn!("the mount is lost: {cause:#}"))
        .ok();
    let _guard = own.as_deref().and_then(|own| {
        let guard = guard::Guard::start(own);
        guard
            .inspect_err(|cause| debug!("no guard: {cause:#}"))
            .ok()
    });
    // beside the mount, from before its first request on
    let server = own.as_deref().and_then(|own| {
        let server = Server::start(own.dev(), control);
        server
            .inspect_err(|cause| warn!("nothing is answered beside the mount: {cause}"))
            .ok()
    });
    let serving = session::serve(session)?;
    spawn("session", &events, move || Event::Ended(serving.join()))?;
    let asked = own.clone().context("the mount was gone at once");
    spawn("probe", &events, move || {
        Event::Probed(asked.and_then(|own| session::probe(&own)))
    })?;

    let result = Life {
        config,
        own,
        happened,
        pipe,
        end_waits,
        give_up,
        session: None,
        presence: None,
        _server: server,
    }
    .live();
    info!("ended");
    result
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
    /// What is its own. `None`: nothing any more.
    own: Option<Arc<Own>>,
    happened: Receiver<Event>,
    pipe: Option<background::Pipe>,
    end_waits: Box<dyn Fn() + Send>,
    give_up: Box<dyn FnOnce() + Send>,
    /// How the session ended, once it has.
    session: Option<io::Result<()>>,
    presence: Option<UnixListener>,
    /// Hangs up when the mount has ended.
    _server: Option<Server>,
}

impl Life<'_> {
    fn live(mut self) -> Result<()> {
        let reason = self.serve();
        let ended = self.end();
        if let (Err(_), Err(cause)) = (&reason, &ended) {
            // only one of them is handed on
            error!("{cause:#}");
        }
        reason.and(ended)
    }

    /// Returns when there is a reason to end.
    ///
    /// # Errors
    /// The reason is one to complain of.
    fn serve(&mut self) -> Result<()> {
        loop {
            match self.happened.recv()? {
                Event::Probed(answers) => answers.and_then(|()| self.answers())?,
                Event::Signal(signal) => {
                    info!("signal {signal}: ending");
                    return Ok(());
                }
                Event::Panicked(words) => {
                    bail!("a thread that serves requests panicked: {words}")
                }
                Event::Ended(session) => {
                    if session.is_ok() {
                        info!("{} was unmounted", self.config.mountpoint.display());
                    }
                    self.session = Some(session);
                    return Ok(());
                }
            }
        }
    }

    /// The mount answers: tells everybody who waits for it.
    fn answers(&mut self) -> Result<()> {
        self.presence = self
            .own
            .as_deref()
            .and_then(|own| presence::announce(own.dev()));
        let (source, at) = (&self.config.source, &self.config.mountpoint);
        info!("{} is mounted at {}", source.display(), at.display());
        let status = format!("Serving {} at {}", source.display(), at.display());
        notify(&[
            NotifyState::MainPid(std::process::id()),
            NotifyState::Status(&status),
            NotifyState::Ready,
        ]);
        self.pipe.take().map_or(Ok(()), background::Pipe::ready)
    }

    /// Takes no more work, lets what is under way finish for a while, then cuts it off and saves what is left.
    fn end(mut self) -> Result<()> {
        if !self.drains(Duration::ZERO) {
            notify(&[
                NotifyState::Stopping,
                NotifyState::Status("Waiting for open files"),
            ]);
            if let Some(own) = &self.own {
                own.detach();
            }
        }
        let saved = if self.drains(GRACE) || self.drains_without_users() {
            Ok(())
        } else {
            save(self.give_up)
        };
        let cleared = self.own.map_or(Ok(()), |own| own.clear());
        let session = self.session.unwrap_or(Ok(()));
        let session = session.context("the connection to the kernel broke");
        saved.and(cleared).and(session)
    }

    /// Whether the session ends as it should within `limit`. After an error it does not: `destroy` was perhaps not
    /// called, and some threads may go on serving those who use the mount. They have the same time.
    fn drains(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        while self.session.is_none() {
            match self.happened.recv_timeout(left()) {
                Ok(Event::Ended(session)) => self.session = Some(session),
                Ok(event) => debug!("while ending: {event:?}"),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        if let (Some(Err(_)), Some(own)) = (&self.session, &self.own) {
            own.ends_within(left());
        }
        matches!(self.session, Some(Ok(())))
    }

    /// Cuts off whoever uses the mount, and says whether the session ends then as it should.
    fn drains_without_users(&mut self) -> bool {
        if self.own.as_deref().is_none_or(Own::lives) {
            let at = self.config.mountpoint.display();
            warn!("{at} is still in use: cutting off its users");
        }
        (self.end_waits)();
        let own = self.own.as_deref().context("it is gone");
        if let Err(cause) = own.and_then(Own::cut) {
            warn!("cannot cut them off ({cause:#}): they end with the process");
            return false;
        }
        let drains = self.drains(DRAIN);
        if self.session.is_none() {
            warn!("requests are still under way: they end with the process");
        }
        drains
    }
}

/// Saves what can be saved of a session that does not end as it should. What hangs there may keep even this from being
/// done.
fn save(give_up: Box<dyn FnOnce() + Send>) -> Result<()> {
    let (done, waiting) = mpsc::channel();
    let give_up = move || {
        give_up();
        // nobody may wait any more
        let _ = done.send(());
    };
    thread::Builder::new()
        .name("give-up".into())
        .spawn(give_up)
        .context("cannot start a thread")?;
    let saved = waiting.recv_timeout(SAVE);
    saved.map_err(|_| {
        anyhow!("locks and unsaved content may be left behind: saving them was not done in time")
    })
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
