//! News of changed keys, for those who wait for a lock and those who look at one again and again.
//! Redis tells a connection that tracks keys by prefix of every change of them: by nodbfs, by NoDb
//! processes, by expiry and by FLUSHALL, in every database and whatever `notify-keyspace-events` says.
//! There is one such connection, and only while somebody waits or has looked lately. Without it,
//! because it broke or the server knows or allows no such thing, waiters ask from time to time, and
//! who looks asks each time; nothing ever waits for it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, ErrorKind, PushKind, RedisError, RedisResult, Value};
use tracing::{debug, info};

use super::connection::{Server, connect};
use super::{FENCE, LOCKS};
use crate::store::remembered::{Answer, Remembered};
use crate::store::waiting::{Waiters, Watch};
use crate::store::{LOCK, LockName, StoreError};

/// What the keys of runs' log levels begin with.
const LOG_LEVEL: &str = "loglevel:";
/// How long the connection outlives the last waiter: the next one is often not far.
const LINGER: Duration = Duration::from_secs(1);
/// How long it outlives the last look.
const INTEREST: Duration = Duration::from_secs(300);
/// How often the listener looks up to see whether anybody still waits, and whether the server is
/// still there.
const TICK: Duration = Duration::from_millis(500);
/// For so long the server's word that it has told all counts: some heartbeats may be late.
const DOUBT: Duration = Duration::from_secs(2);

/// Listens while somebody waits, or looks.
pub struct Listener(Arc<Shared>);

struct Shared {
    server: Arc<Server>,
    waiters: Waiters,
    seen: Remembered,
    /// Whether the thread runs.
    running: Mutex<bool>,
    /// Whether the log says already that there is no news.
    complained: AtomicBool,
}

impl Listener {
    /// Connects to nothing.
    pub fn new(server: Arc<Server>) -> Self {
        Self(Arc::new(Shared {
            server,
            waiters: Waiters::new(false),
            seen: Remembered::default(),
            running: Mutex::default(),
            complained: AtomicBool::default(),
        }))
    }

    /// Somebody waits for a change of one of `keys`. Returns at once: until the listener has its
    /// connection the waiter is not told, and knows it.
    pub fn watch(&self, keys: Vec<String>) -> Watch<'_> {
        let watch = self.0.waiters.watch(keys);
        self.listen();
        watch
    }

    /// What is stored under `key`, which begins with one of the prefixes that are followed: from
    /// memory, or else as `ask` says. The first one who looks makes the listener listen.
    pub fn remembered(
        &self,
        key: &str,
        ask: impl FnOnce() -> Result<Answer, StoreError>,
    ) -> Result<Answer, StoreError> {
        let answer = self.0.seen.get(key, DOUBT, ask);
        self.listen();
        answer
    }

    /// This process has changed a lock, or may have: it must not hear of it later than its caller.
    pub fn changed(&self, name: &LockName) {
        if self.0.seen.is_in_use() {
            self.0.seen.forget(&name.key());
        }
    }

    /// Sees to it that the thread runs, now that there is somebody to listen for: it ends only when
    /// nobody is there.
    fn listen(&self) {
        let mut running = self.0.running();
        if !*running {
            let shared = Arc::downgrade(&self.0);
            let thread = thread::Builder::new().name("nodbfs-releases".to_owned());
            match thread.spawn(move || listen(&shared)) {
                Ok(_) => *running = true,
                Err(error) => debug!(%error, "no thread to listen for released locks"),
            }
        }
    }
}

/// The thread: connects, again and again, and passes on the news, until nobody waits or the store
/// is gone.
fn listen(shared: &Weak<Shared>) {
    while let Some(here) = shared.upgrade().filter(|shared| shared.is_wanted()) {
        let followed = here.connect().and_then(|connection| {
            drop(here);
            follow(shared, connection)
        });
        let Some(here) = shared.upgrade() else {
            return;
        };
        here.waiters.set_told(false);
        here.seen.untold();
        if let Err(error) = followed {
            let pause = here.complain(error);
            drop(here);
            thread::sleep(pause);
        }
    }
}

/// Passes on the news until nobody is there any more.
fn follow(shared: &Weak<Shared>, mut connection: Connection) -> RedisResult<()> {
    let ping = redis::cmd("PING").get_packed_command();
    let (mut asked, mut answered) = (Instant::now(), true);
    // the client takes a time limit for an answer that is late, and will skip one for each
    let mut skipped = 0;
    loop {
        let news = connection.recv_response();
        let Some(shared) = shared.upgrade() else {
            return Ok(());
        };
        match news {
            // all that was told before it was asked has been read
            Ok(Value::SimpleString(_)) => {
                answered = true;
                shared.seen.told(asked);
            }
            Ok(news) => shared.pass_on(news),
            Err(error) if error.is_timeout() => skipped += 1,
            Err(error) => return Err(error),
        }
        if !shared.is_awaited() {
            return Ok(());
        }
        // a waiter looks for itself now and then; memory is worth no more than the connection
        if shared.seen.is_in_use() {
            let mut pings = std::mem::take(&mut skipped);
            if answered && asked.elapsed() >= TICK {
                (asked, answered) = (Instant::now(), false);
                pings += 1;
            } else if !answered && asked.elapsed() > shared.server.settings().limits.reply {
                return Err((ErrorKind::Io, "the server does not answer").into());
            }
            if pings > 0 {
                connection.send_packed_command(&ping.repeat(pings))?;
            }
        }
    }
}

impl Shared {
    /// Whether the thread is to go on; if not, the next waiter starts another.
    fn is_wanted(&self) -> bool {
        let mut running = self.running();
        *running = self.is_awaited();
        *running
    }

    fn is_awaited(&self) -> bool {
        self.waiters.idle() <= Some(LINGER) || self.seen.is_wanted(INTEREST)
    }

    /// Says once why there is no news; how long to wait before the next try.
    fn complain(&self, error: RedisError) -> Duration {
        let settings = self.server.settings();
        let error = settings.redact(error.to_string());
        if self.complained.swap(true, Relaxed) {
            debug!(%error, "still not told of released locks");
        } else {
            info!(%error, "not told of released locks: waiters look for themselves");
        }
        settings.limits.longest_pause
    }

    /// A connection that is told of every change of a lock, a fence or a log level.
    fn connect(&self) -> RedisResult<Connection> {
        let mut connection = connect(self.server.settings(), LOCKS)?;
        // pushed news need the third version of the protocol
        redis::cmd("HELLO").arg(3).exec(&mut connection)?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in [LOCK, FENCE, LOG_LEVEL] {
            track.arg("PREFIX").arg(prefix);
        }
        track.exec(&mut connection)?;
        connection.set_read_timeout(Some(TICK))?;
        self.complained.store(false, Relaxed);
        self.waiters.set_told(true);
        self.seen.told(Instant::now());
        Ok(connection)
    }

    /// The keys that changed, or none if all did: FLUSHALL.
    fn pass_on(&self, news: Value) {
        let Value::Push {
            kind: PushKind::Invalidate,
            data,
        } = news
        else {
            return;
        };
        match redis::from_redis_value::<Vec<String>>(data.into_iter().next().unwrap_or(Value::Nil))
        {
            Ok(keys) if !keys.is_empty() => keys.iter().for_each(|key| {
                self.waiters.tell(key);
                self.seen.forget(key);
            }),
            _ => {
                self.waiters.tell_all();
                self.seen.forget_all();
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, bool> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
