//! Connections: made when first needed, dropped on any doubt, made again for ever (PROTOCOL.md 10:
//! workers that started while Redis loaded stayed without a cache for life).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::runtime::{Handle, Runtime};
use tokio::sync;
use tokio::time::timeout;

use super::settings::{Limits, Settings};
use crate::store::{StoreError, StoreErrorKind};

/// One Redis server: how to reach it, what drives its connections, and whether it is worth trying.
pub struct Server {
    settings: Settings,
    /// Taken only on drop.
    runtime: Option<Runtime>,
    breaker: Mutex<Breaker>,
}

impl Server {
    /// Starts the runtime; connects to nothing.
    pub fn new(settings: Settings) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // host names are resolved on these
            .max_blocking_threads(4)
            .thread_name("nodbfs-redis")
            .enable_all()
            .build()?;
        Ok(Self {
            settings,
            runtime: Some(runtime),
            breaker: Mutex::default(),
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes a connection, authenticates and selects `database`. SELECT is asked even for 0, so
    /// that a connection counts only once the server has answered on it.
    async fn connect(&self, database: u8) -> RedisResult<MultiplexedConnection> {
        let client = Client::open(self.settings.connection_info()?)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut handshake = redis::pipe();
        if let Some(credentials) = self.settings.credentials() {
            handshake.cmd("AUTH").arg(credentials);
        }
        handshake.cmd("SELECT").arg(database);
        handshake.exec_async(&mut connection).await?;
        Ok(connection)
    }

    fn failure(&self, error: RedisError) -> Failure {
        let failure = Failure::from(error);
        Failure {
            cause: self.settings.redact(failure.cause),
            ..failure
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // the plain drop would wait for a name resolution, and panic on another runtime's thread
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One database of a server with a connection of its own, shared by all callers.
pub struct Database {
    server: Arc<Server>,
    number: u8,
    /// An async lock, held while connecting: whoever needs the connection waits for it anyway, and
    /// waits no longer than the connect limit. Never held during a request.
    slot: sync::Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Counts the connections, so that nobody drops another one than the one that failed him.
    serial: u64,
}

impl Database {
    pub fn new(server: Arc<Server>, number: u8) -> Self {
        Self {
            server,
            number,
            slot: sync::Mutex::default(),
        }
    }

    /// Makes one request and waits for its answer within the limits. A connection that broke, as
    /// one does that was idle while the server restarted, is replaced and the request made once
    /// more, so it must bear repetition. Not to be called from within an async task.
    pub fn call<T>(
        &self,
        during: &'static str,
        request: impl AsyncFn(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        let error = |failure: Failure| StoreError {
            kind: failure.kind,
            during,
            cause: failure.cause,
        };
        self.handle().block_on(async {
            match self.attempt(&request).await {
                Err(failure) if failure.broken => self.attempt(&request).await.map_err(error),
                other => other.map_err(error),
            }
        })
    }

    fn handle(&self) -> &Handle {
        self.server
            .runtime
            .as_ref()
            .expect("the runtime lives as long as the server")
            .handle()
    }

    async fn attempt<T>(
        &self,
        request: &impl AsyncFn(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        let (serial, connection) = self.connection().await?;
        let failure = match timeout(self.limits().reply, request(connection)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => self.server.failure(error),
            Err(_) => Failure::timed_out("no answer", self.limits().reply),
        };
        if failure.discard {
            let mut slot = self.slot.lock().await;
            if slot.serial == serial {
                slot.connection = None;
            }
        }
        Err(failure)
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), Failure> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.serial, connection.clone()));
        }
        self.server.breaker().check(Instant::now())?;
        let limits = self.limits();
        let failure = match timeout(limits.connect, self.server.connect(self.number)).await {
            Ok(Ok(connection)) => {
                self.server.breaker().reset();
                slot.serial += 1;
                slot.connection = Some(connection.clone());
                return Ok((slot.serial, connection));
            }
            Ok(Err(error)) => Failure {
                broken: false,
                ..self.server.failure(error)
            },
            Err(_) => Failure {
                kind: StoreErrorKind::Unreachable,
                ..Failure::timed_out("no connection", limits.connect)
            },
        };
        self.server.breaker().trip(Instant::now(), limits, &failure);
        Err(failure)
    }

    fn limits(&self) -> &Limits {
        &self.server.settings.limits
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} DB {}", self.server.settings, self.number)
    }
}

/// A failed request, before it is known what was being asked.
#[derive(Clone, Debug)]
struct Failure {
    kind: StoreErrorKind,
    cause: String,
    /// The connection is of no use any more.
    discard: bool,
    /// The connection broke under the request.
    broken: bool,
}

impl Failure {
    fn timed_out(what: &str, limit: Duration) -> Self {
        Self {
            kind: StoreErrorKind::TimedOut,
            cause: format!("{what} within {limit:?}"),
            discard: true,
            broken: false,
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        if let Some(errors) = error.clone().into_server_errors()
            && let Some((_, said)) = errors.first()
        {
            let kind = match said.code() {
                "NOAUTH" | "WRONGPASS" | "NOPERM" => StoreErrorKind::Denied,
                // a server without any password, or one from before ACLs
                _ if said
                    .details()
                    .is_some_and(|words| words.contains("AUTH <password>")) =>
                {
                    StoreErrorKind::Denied
                }
                _ => StoreErrorKind::Refused,
            };
            let cause = match said.details() {
                Some(words) => format!("{} {words}", said.code()),
                None => said.code().to_owned(),
            };
            // after a failover the name may lead to the new primary
            let discard = said.code() == "READONLY";
            return Self {
                kind,
                cause,
                discard,
                broken: false,
            };
        }
        let kind = match error.kind() {
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => StoreErrorKind::Answer,
            ErrorKind::Server(_) => StoreErrorKind::Refused,
            _ => StoreErrorKind::Unreachable,
        };
        let broken = error.is_connection_dropped();
        Self {
            kind,
            cause: error.to_string(),
            discard: true,
            broken,
        }
    }
}

/// After a failed connect, calls fail at once for a while with the same cause, so that a dead
/// server does not cost every operation the whole limit.
#[derive(Default)]
struct Breaker {
    open: Option<Open>,
}

struct Open {
    until: Instant,
    pause: Duration,
    failure: Failure,
}

impl Breaker {
    fn check(&self, now: Instant) -> Result<(), Failure> {
        match &self.open {
            Some(open) if now < open.until => Err(open.failure.clone()),
            _ => Ok(()),
        }
    }

    fn trip(&mut self, now: Instant, limits: &Limits, failure: &Failure) {
        let pause = match &self.open {
            Some(open) => (open.pause * 2).min(limits.longest_pause),
            None => limits.first_pause,
        };
        self.open = Some(Open {
            until: now + pause,
            pause,
            failure: failure.clone(),
        });
    }

    fn reset(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_longer_and_longer_and_closes_on_success() {
        let limits = Limits::default();
        let failure = Failure::timed_out("no connection", limits.connect);
        let mut breaker = Breaker::default();
        let start = Instant::now();
        assert!(breaker.check(start).is_ok());
        for pause in [250, 500, 1000, 2000, 2000].map(Duration::from_millis) {
            breaker.trip(start, &limits, &failure);
            let refused = breaker
                .check(start + pause - Duration::from_millis(1))
                .unwrap_err();
            assert_eq!(refused.cause, failure.cause);
            assert!(breaker.check(start + pause).is_ok());
        }
        breaker.reset();
        assert!(breaker.check(start).is_ok());
        breaker.trip(start, &limits, &failure);
        assert!(breaker.check(start + limits.first_pause).is_ok());
    }
}
