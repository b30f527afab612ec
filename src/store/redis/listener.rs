//! News of released locks, for those who wait for one. Redis tells a connection that tracks keys by
//! prefix of every change of them: by nodbfs, by NoDb processes, by expiry and by FLUSHALL, whatever
//! `notify-keyspace-events` says. There is one such connection, and only while somebody waits.
//! Without it, because it broke or the server knows or allows no such thing, waiters ask from time
//! to time; nothing ever waits for it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use redis::{Connection, PushKind, RedisError, RedisResult, Value};
use tracing::{debug, info};

use super::connection::{Server, connect};
use super::{FENCE, LOCKS};
use crate::store::waiting::{Waiters, Watch};

/// What the keys of locks begin with.
const LOCK: &str = "nodb-lock:";
/// How long the connection outlives the last waiter: the next one is often not far.
const LINGER: Duration = Duration::from_secs(1);
/// How often the listener looks up to see whether anybody still waits.
const TICK: Duration = Duration::from_millis(500);

/// Listens while somebody waits.
pub struct Listener(Arc<Shared>);

struct Shared {
    server: Arc<Server>,
    waiters: Waiters,
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
            running: Mutex::default(),
            complained: AtomicBool::default(),
        }))
    }

    /// Somebody waits for a change of one of `keys`. Returns at once: until the listener has its
    /// connection the waiter is not told, and knows it.
    pub fn watch(&self, keys: Vec<String>) -> Watch<'_> {
        // before the look at `running`: the thread ends only if nobody is there
        let watch = self.0.waiters.watch(keys);
        let mut running = self.0.running();
        if !*running {
            let shared = Arc::downgrade(&self.0);
            let thread = thread::Builder::new().name("nodbfs-releases".to_owned());
            match thread.spawn(move || listen(&shared)) {
                Ok(_) => *running = true,
                Err(error) => debug!(%error, "no thread to listen for released locks"),
            }
        }
        watch
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
        if let Err(error) = followed {
            let pause = here.complain(error);
            drop(here);
            thread::sleep(pause);
        }
    }
}

/// Passes on the news until nobody waits any more.
fn follow(shared: &Weak<Shared>, mut connection: Connection) -> RedisResult<()> {
    loop {
        let news = connection.recv_response();
        let Some(shared) = shared.upgrade() else {
            return Ok(());
        };
        match news {
            Ok(news) => shared.pass_on(news),
            Err(error) if error.is_timeout() => {}
            Err(error) => return Err(error),
        }
        if shared.waiters.idle() > Some(LINGER) {
            return Ok(());
        }
    }
}

impl Shared {
    /// Whether the thread is to go on; if not, the next waiter starts another.
    fn is_wanted(&self) -> bool {
        let mut running = self.running();
        *running = self.waiters.idle() <= Some(LINGER);
        *running
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

    /// A connection that is told of every change of a lock or a fence.
    fn connect(&self) -> RedisResult<Connection> {
        let mut connection = connect(self.server.settings(), LOCKS)?;
        // pushed news need the third version of the protocol
        redis::cmd("HELLO").arg(3).exec(&mut connection)?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in [LOCK, FENCE] {
            track.arg("PREFIX").arg(prefix);
        }
        track.exec(&mut connection)?;
        connection.set_read_timeout(Some(TICK))?;
        self.complained.store(false, Relaxed);
        self.waiters.set_told(true);
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
            Ok(keys) if !keys.is_empty() => keys.iter().for_each(|key| self.waiters.tell(key)),
            _ => self.waiters.tell_all(),
        }
    }

    fn running(&self) -> MutexGuard<'_, bool> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
