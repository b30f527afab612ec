//! The status channels and the log levels of the runs that are followed. There is one connection for
//! them, made when the first run is followed and made again for ever; it subscribes to a pattern for
//! each run and tracks the levels' keys. Nothing ever waits for it. Whoever follows one more run
//! publishes a message to the connection's own channel, for only its thread may write to it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use redis::{Connection, Msg, PushInfo, PushKind, RedisError, RedisResult, Value};
use tracing::{debug, info};
use uuid::Uuid;

use super::LEVELS;
use super::connection::{Database, Server, connect};
use crate::store::{News, StoreError};

/// What the keys of log levels begin with.
const LEVEL: &str = "loglevel:";
/// After so long without a word the connection is tried; after twice that it is given up.
const TICK: Duration = Duration::from_secs(10);
/// How long a connection is waited for that is refused for good reasons, such as missing rights.
const LATER: Duration = Duration::from_secs(30);

/// Subscribes as long as somebody follows a run.
pub struct Subscriber(Arc<Shared>);

struct Shared {
    server: Arc<Server>,
    levels: Database,
    /// The connection's own channel.
    own: String,
    state: Mutex<State>,
    /// Whether a message to `own` is on its way.
    nudging: AtomicBool,
    /// Whether the log says already that there is no news.
    complained: AtomicBool,
}

#[derive(Default)]
struct State {
    news: Option<Weak<dyn News>>,
    followed: HashSet<String>,
    /// Whether the thread runs.
    running: bool,
}

impl Subscriber {
    /// Connects to nothing.
    pub fn new(server: Arc<Server>) -> Self {
        Self(Arc::new(Shared {
            levels: Database::new(server.clone(), LEVELS),
            server,
            own: format!("nodbfs:{}", Uuid::new_v4().simple()),
            state: Mutex::default(),
            nudging: AtomicBool::default(),
            complained: AtomicBool::default(),
        }))
    }

    pub fn listen(&self, news: Weak<dyn News>) {
        self.0.state().news = Some(news);
    }

    pub fn follow(&self, runid: &str) {
        let mut state = self.0.state();
        if state.news.is_none() || !state.followed.insert(runid.to_owned()) {
            return;
        }
        if state.running {
            drop(state);
            return nudge(&self.0);
        }
        let shared = Arc::downgrade(&self.0);
        let thread = thread::Builder::new().name("nodbfs-status".to_owned());
        match thread.spawn(move || subscribe(&shared)) {
            Ok(_) => state.running = true,
            Err(error) => debug!(%error, "no thread to follow status channels"),
        }
    }

    pub fn unfollow(&self, runid: &str) {
        if self.0.state().followed.remove(runid) {
            nudge(&self.0);
        }
    }

    pub fn level(&self, runid: &str) -> Result<Option<String>, StoreError> {
        self.0.level(runid)
    }

    pub fn set_level(&self, runid: &str, level: Option<&str>) -> Result<(), StoreError> {
        self.0.levels.call("set log level", |redis| {
            let mut change = match level {
                Some(_) => redis::cmd("SET"),
                None => redis::cmd("DEL"),
            };
            change.arg(key(runid)).arg(level).exec(redis)
        })
    }
}

fn key(runid: &str) -> String {
    format!("{LEVEL}{runid}")
}

/// Makes the thread look at what is followed, from a thread that may wait.
fn nudge(shared: &Arc<Shared>) {
    if shared.nudging.swap(true, Relaxed) {
        return;
    }
    let own = shared.clone();
    let thread = thread::Builder::new().name("nodbfs-follow".to_owned());
    let tell = move || {
        own.nudging.store(false, Relaxed);
        own.publish_to_itself();
    };
    if let Err(error) = thread.spawn(tell) {
        shared.nudging.store(false, Relaxed);
        debug!(%error, "no thread to follow a run");
    }
}

/// The thread: connects, again and again, and passes on the news until the store is gone.
fn subscribe(shared: &Weak<Shared>) {
    while let Some(here) = shared.upgrade() {
        let connected = here.connect();
        drop(here);
        let mut subscribed = HashSet::new();
        let ended = connected.and_then(|connection| listen(shared, connection, &mut subscribed));
        let Some(here) = shared.upgrade() else {
            return;
        };
        subscribed
            .iter()
            .for_each(|runid| here.tell(|news| news.following(runid, false)));
        if let Err(error) = ended {
            let pause = here.complain(error);
            drop(here);
            thread::sleep(pause);
        }
    }
}

/// Passes on the news until the connection breaks, or the store is gone.
fn listen(
    shared: &Weak<Shared>,
    (mut connection, tracked): (Connection, bool),
    subscribed: &mut HashSet<String>,
) -> RedisResult<()> {
    let mut silent = false;
    loop {
        match shared.upgrade() {
            Some(here) => here.subscribe_anew(&mut connection, subscribed)?,
            None => return Ok(()),
        }
        let news = connection.recv_response();
        let Some(here) = shared.upgrade() else {
            return Ok(());
        };
        match news {
            Ok(news) => {
                silent = false;
                here.pass_on(news, subscribed)?;
            }
            Err(error) if error.is_timeout() && !silent => {
                silent = true;
                here.publish_to_itself();
                if !tracked {
                    here.read_levels(subscribed);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: impl FnOnce(&dyn News)) {
        let news = self.state().news.as_ref().and_then(Weak::upgrade);
        if let Some(news) = news {
            what(&*news);
        }
    }

    fn publish_to_itself(&self) {
        let published = self.levels.call("publish status", |redis| {
            redis::cmd("PUBLISH").arg(&self.own).arg("").exec(redis)
        });
        if let Err(error) = published {
            debug!(%error, "the connection for status channels is not woken");
        }
    }

    /// A connection, and whether it is told of every change of a log level.
    fn connect(&self) -> RedisResult<(Connection, bool)> {
        let mut connection = connect(self.server.settings(), LEVELS)?;
        // pushed news need the third version of the protocol
        redis::cmd("HELLO").arg(3).exec(&mut connection)?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        let tracked = track.arg("PREFIX").arg(LEVEL).exec(&mut connection);
        if let Err(error) = &tracked {
            debug!(%error, "not told of log levels: they are read when it is quiet");
        }
        connection.set_read_timeout(Some(TICK))?;
        let own = redis::cmd("SUBSCRIBE").arg(&self.own).get_packed_command();
        connection.send_packed_command(&own)?;
        Ok((connection, tracked.is_ok()))
    }

    /// Makes the subscriptions those that are wanted.
    fn subscribe_anew(
        &self,
        connection: &mut Connection,
        subscribed: &mut HashSet<String>,
    ) -> RedisResult<()> {
        let followed = self.state().followed.clone();
        for (command, runids) in [
            ("PUNSUBSCRIBE", subscribed.difference(&followed)),
            ("PSUBSCRIBE", followed.difference(subscribed)),
        ] {
            let mut change = redis::cmd(command);
            let before = change.args_iter().count();
            for runid in runids {
                change.arg(pattern(runid));
            }
            if change.args_iter().count() > before {
                connection.send_packed_command(&change.get_packed_command())?;
            }
        }
        *subscribed = followed;
        Ok(())
    }

    fn pass_on(&self, news: Value, subscribed: &HashSet<String>) -> RedisResult<()> {
        let (kind, data) = match news {
            Value::Push { kind, data } => (kind, data),
            // the user may not subscribe
            other => return other.extract_error().map(drop),
        };
        match kind {
            PushKind::PMessage => {
                if let Some(message) = Msg::from_push_info(PushInfo { kind, data }) {
                    let text = String::from_utf8_lossy(message.get_payload_bytes());
                    self.tell(|news| news.message(message.get_channel_name(), &text));
                }
            }
            PushKind::PSubscribe => {
                self.complained.store(false, Relaxed);
                let subscribed = subscribed.iter();
                let pattern_of: Option<String> = data
                    .into_iter()
                    .next()
                    .and_then(|pattern| redis::from_redis_value(pattern).ok());
                for runid in subscribed.filter(|runid| Some(pattern(runid)) == pattern_of) {
                    self.read_level(runid);
                    self.tell(|news| news.following(runid, true));
                }
            }
            PushKind::Invalidate => self.invalidate(data, subscribed),
            _ => {}
        }
        Ok(())
    }

    /// Reads the levels whose keys changed, or all: FLUSHALL.
    fn invalidate(&self, data: Vec<Value>, subscribed: &HashSet<String>) {
        let keys = data.into_iter().next().unwrap_or(Value::Nil);
        match redis::from_redis_value::<Vec<String>>(keys) {
            Ok(keys) if !keys.is_empty() => {
                let runids = keys.iter().filter_map(|key| key.strip_prefix(LEVEL));
                runids
                    .filter(|runid| subscribed.contains(*runid))
                    .for_each(|runid| self.read_level(runid));
            }
            _ => self.read_levels(subscribed),
        }
    }

    fn read_levels(&self, runids: &HashSet<String>) {
        runids.iter().for_each(|runid| self.read_level(runid));
    }

    fn read_level(&self, runid: &str) {
        match self.level(runid) {
            Ok(level) => self.tell(|news| news.level(runid, level.as_deref())),
            Err(error) => debug!(runid, %error, "log level not read"),
        }
    }

    fn level(&self, runid: &str) -> Result<Option<String>, StoreError> {
        let level: Option<Vec<u8>> = self.levels.call("read log level", |redis| {
            redis::cmd("GET").arg(key(runid)).query(redis)
        })?;
        Ok(level.map(|level| String::from_utf8_lossy(&level).into_owned()))
    }

    /// Says once why there is no news; how long to wait before the next try.
    fn complain(&self, error: RedisError) -> Duration {
        let settings = self.server.settings();
        let refused = error.clone().into_server_errors().is_some();
        let error = settings.redact(error.to_string());
        if self.complained.swap(true, Relaxed) {
            debug!(%error, "still not told of status messages");
        } else {
            info!(%error, "not told of status messages: the virtual logs lack them for now");
        }
        match refused {
            true => LATER,
            false => settings.limits.longest_pause,
        }
    }
}

/// The pattern of all channels of a run. Names of runs may hold what means something in a pattern.
fn pattern(runid: &str) -> String {
    let mut pattern = String::with_capacity(runid.len() + 2);
    for c in runid.chars() {
        if "*?[]\\".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + ":*"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_its_run_and_no_other() {
        assert_eq!(pattern("batch;;s;;run-1"), "batch;;s;;run-1:*");
        assert_eq!(pattern(r"a*?[b]\"), r"a\*\?\[b\]\\:*");
    }
}
