//! Connections: made when first needed, dropped on any doubt, made again for ever (PROTOCOL.md 10:
//! workers that started while Redis loaded stayed without a cache for life).

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Client, Connection, ConnectionLike, ErrorKind, RedisError, RedisResult, Value};

use super::settings::{Limits, Settings};
use crate::counters;
use crate::store::{Meanwhile, StoreError, StoreErrorKind};

/// How many idle connections a database keeps; as many more as are needed come and go.
const KEPT: usize = 8;

/// One Redis server: how to reach it, and whether it is worth trying.
pub struct Server {
    settings: Settings,
    breaker: Mutex<Breaker>,
}

impl Server {
    /// Connects to nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            breaker: Mutex::default(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes a connection within the limit, in a thread of its own: names are resolved and TLS is
    /// spoken without one.
    fn connect(&self, database: u8) -> Result<Connection, Failure> {
        let limit = self.settings.limits.connect;
        let settings = self.settings.clone();
        let (done, connected) = sync_channel(1);
        let connect = move || drop(done.send(connect(&settings, database)));
        let thread = thread::Builder::new().name("nodbfs-connect".to_owned());
        if let Err(error) = thread.spawn(connect) {
            return Err(self.failure(error.into()));
        }
        match connected.recv_timeout(limit) {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if !error.is_timeout() => Err(Failure {
                broken: false,
                ..self.failure(error)
            }),
            Ok(Err(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Failure {
                    kind: StoreErrorKind::Unreachable,
                    ..Failure::timed_out("no connection", limit)
                })
            }
        }
    }

    fn failure(&self, error: RedisError) -> Failure {
        let failure = Failure::from(error);
        Failure {
            cause: self.settings.redact(failure.cause),
            ..failure
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, authenticates and selects `database`. SELECT is asked even for 0, so that a connection
/// counts only once the server has answered on it.
pub(super) fn connect(settings: &Settings, database: u8) -> RedisResult<Connection> {
    let client = Client::open(settings.connection_info()?)?;
    let limits = &settings.limits;
    let mut connection = client.get_connection_with_timeout(limits.connect)?;
    connection.set_read_timeout(Some(limits.connect))?;
    let mut handshake = redis::pipe();
    if let Some(credentials) = settings.credentials() {
        handshake.cmd("AUTH").arg(credentials);
    }
    handshake.cmd("SELECT").arg(database);
    handshake.exec(&mut connection)?;
    connection.set_read_timeout(Some(limits.reply))?;
    connection.set_write_timeout(Some(limits.reply))?;
    Ok(connection)
}

/// One database of a server, with connections of its own.
///
/// Lock order: `idle` is taken alone, and held during no request.
pub struct Database {
    server: Arc<Server>,
    number: u8,
    /// Connections that nobody is using.
    idle: Mutex<Vec<Connection>>,
}

impl Database {
    pub fn new(server: Arc<Server>, number: u8) -> Self {
        Self {
            server,
            number,
            idle: Mutex::default(),
        }
    }

    /// Makes one request and waits for its answer within the limits. A connection that broke, as
    /// one does that was idle while the server restarted, is replaced and the request made once
    /// more, so it must bear repetition.
    pub fn call<T>(
        &self,
        during: &'static str,
        request: impl Fn(&mut dyn ConnectionLike) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        self.call_while(during, Meanwhile::default(), request)
    }

    /// As [`Database::call`]; the caller's own work is done while the answer is awaited.
    pub fn call_while<T>(
        &self,
        during: &'static str,
        mut meanwhile: Meanwhile<'_>,
        request: impl Fn(&mut dyn ConnectionLike) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        let since = Instant::now();
        let answer = match self.attempt(&request, &mut meanwhile) {
            Err(failure) if failure.broken => self.attempt(&request, &mut meanwhile),
            answer => answer,
        };
        counters::called(during, since.elapsed());
        answer.map_err(|failure| StoreError {
            kind: failure.kind,
            during,
            cause: failure.cause,
        })
    }

    fn attempt<T>(
        &self,
        request: &impl Fn(&mut dyn ConnectionLike) -> RedisResult<T>,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<T, Failure> {
        let mut connection = self.connection()?;
        let answer = request(&mut Overlapped {
            connection: &mut connection,
            meanwhile,
        });
        let answer = answer.map_err(|error| match error.is_timeout() {
            true => Failure::timed_out("no answer", self.limits().reply),
            false => self.server.failure(error),
        });
        match &answer {
            // where one broke the others did too
            Err(failure) if failure.discard => self.idle().clear(),
            _ => self.keep(connection),
        }
        answer
    }

    fn connection(&self) -> Result<Connection, Failure> {
        if let Some(connection) = self.idle().pop() {
            return Ok(connection);
        }
        self.server.breaker().check(Instant::now())?;
        let connected = self.server.connect(self.number);
        let mut breaker = self.server.breaker();
        match &connected {
            Ok(_) => breaker.reset(),
            Err(failure) => breaker.trip(Instant::now(), self.limits(), failure),
        }
        connected
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < KEPT {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> &Limits {
        &self.server.settings.limits
    }
}

impl Server {
    /// For how long no connection will be tried, after one that failed.
    pub fn resting(&self) -> Option<Duration> {
        let breaker = self.breaker();
        let until = breaker.open.as_ref()?.until;
        until.checked_duration_since(Instant::now())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} DB {}", self.server.settings, self.number)
    }
}

/// A connection on which the caller's own work is done between a request and its answer.
struct Overlapped<'a, 'b> {
    connection: &'a mut Connection,
    meanwhile: &'a mut Meanwhile<'b>,
}

impl Overlapped<'_, '_> {
    /// Sends what is packed, does the work, and waits for as many answers.
    fn exchange(&mut self, packed: &[u8], answers: usize) -> RedisResult<Vec<Value>> {
        self.connection.send_packed_command(packed)?;
        self.meanwhile.run();
        (0..answers)
            .map(|_| self.connection.recv_response())
            .collect()
    }
}

impl ConnectionLike for Overlapped<'_, '_> {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        let answers = self.exchange(packed, 1)?;
        Ok(answers.into_iter().next().unwrap_or(Value::Nil))
    }

    fn req_packed_commands(
        &mut self,
        packed: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut answers = self.exchange(packed, offset + count)?;
        let asked_for = answers.split_off(offset);
        // a command that was not queued says why; the transaction only says that it was dropped
        for queued in answers {
            queued.extract_error()?;
        }
        Ok(asked_for)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.connection.check_connection()
    }

    fn is_open(&self) -> bool {
        self.connection.is_open()
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
