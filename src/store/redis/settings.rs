//! Where Redis is and how to get in, gathered from the command line and the environment
//! (PROTOCOL.md 2). Passwords are in here and never come out in words.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

const NO_PASSWORD_IN_PATH: &str = "for a unix socket write unix:///path?user=…&pass=…";

/// How long a call may take before it fails: both together, and twice that for a connection that
/// broke or an acquire that must find out what became of its first request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To connect, TLS and the handshake included.
    pub connect: Duration,
    /// From a request to its whole answer.
    pub reply: Duration,
    /// After a failed connect no further one is tried for this long at first, doubled with every
    /// failure …
    pub first_pause: Duration,
    /// … up to this.
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            reply: Duration::from_secs(2),
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(2),
        }
    }
}

/// What is wrong with the settings. Never quotes a URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{origin} is no Redis URL: {why}; expected redis://, rediss:// or unix://")]
    Url { origin: &'static str, why: String },
    #[error("REDIS_PORT is no port number")]
    Port,
    #[error("cannot read REDIS_PASSWORD_FILE {path}: {cause}")]
    PasswordFile { path: String, cause: std::io::Error },
}

/// An address, a user and a password.
#[derive(Clone)]
pub struct Settings {
    address: ConnectionAddr,
    username: Option<String>,
    password: Option<String>,
    pub limits: Limits,
}

impl Settings {
    /// The first that is there of: the URL of the command line, `REDIS_URL`, `RQ_REDIS_URL`,
    /// `REDIS_HOST` with `REDIS_PORT` (PROTOCOL.md 2). `None`: no Redis is configured. A password
    /// that the URL lacks comes from `REDIS_PASSWORD`, else from the file `REDIS_PASSWORD_FILE`.
    /// Empty variables count as unset, as a compose file leaves them.
    pub fn resolve(
        url: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, SettingsError> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let from_variable =
            |name: &'static str| variable(name).map(|url| Self::from_url(name, &url));
        let settings = url
            .map(|url| Self::from_url("--redis", url))
            .or_else(|| from_variable("REDIS_URL"))
            .or_else(|| from_variable("RQ_REDIS_URL"))
            .transpose()?;
        let mut settings = match (settings, variable("REDIS_HOST")) {
            (Some(settings), _) => settings,
            (None, Some(host)) => {
                let port = match variable("REDIS_PORT") {
                    Some(port) => port.trim().parse().map_err(|_| SettingsError::Port)?,
                    None => 6379,
                };
                Self::at(ConnectionAddr::Tcp(host, port))
            }
            (None, None) => return Ok(None),
        };
        if settings.password.is_none() {
            settings.password = match (variable("REDIS_PASSWORD"), variable("REDIS_PASSWORD_FILE"))
            {
                (Some(password), _) => Some(password),
                (None, Some(path)) => Some(read_password(path)?),
                (None, None) => None,
            };
        }
        Ok(Some(settings))
    }

    /// `redis://`, `rediss://`, `unix://` and their kin; `origin` names the source in errors. The
    /// database number is dropped: each use has its own.
    pub fn from_url(origin: &'static str, url: &str) -> Result<Self, SettingsError> {
        let wrong = |why: &str| SettingsError::Url {
            origin,
            why: why.to_owned(),
        };
        let url = redis::parse_redis_url(url.trim()).ok_or_else(|| {
            if url.contains("unix://") {
                wrong(NO_PASSWORD_IN_PATH)
            } else {
                wrong("it does not parse")
            }
        })?;
        // what redis-py calls them
        let query = |name: &str| {
            url.query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let (username, password) = (query("username"), query("password"));
        let info = url
            .into_connection_info()
            .map_err(|error| match error.detail() {
                Some(detail) => wrong(detail),
                None => wrong("host, port, path or database number are missing or wrong"),
            })?;
        let known = info.redis_settings();
        Ok(Self {
            username: known.username().map(str::to_owned).or(username),
            password: known.password().map(str::to_owned).or(password),
            ..Self::at(info.addr().clone())
        })
    }

    fn at(address: ConnectionAddr) -> Self {
        Self {
            address,
            username: None,
            password: None,
            limits: Limits::default(),
        }
    }

    /// The connection without its credentials: nodbfs authenticates itself, since the library
    /// replaces the server's words by its own.
    pub(super) fn connection_info(&self) -> redis::RedisResult<ConnectionInfo> {
        let info = self.address.clone().into_connection_info()?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        // a request that is given up goes with its connection; it must not arrive when the network is
        // back, over what others have done meanwhile
        let tcp = tcp.set_linger_time(Duration::ZERO);
        let redis = RedisConnectionInfo::default().set_skip_set_lib_name();
        Ok(info.set_tcp_settings(tcp).set_redis_settings(redis))
    }

    /// The arguments of AUTH, if there is a password.
    pub(super) fn credentials(&self) -> Option<Vec<&str>> {
        let password = self.password.as_deref()?;
        Some(
            self.username
                .as_deref()
                .into_iter()
                .chain([password])
                .collect(),
        )
    }

    /// `words` without the password, should a server ever quote it.
    pub(super) fn redact(&self, words: String) -> String {
        match self.password.as_deref() {
            Some(password) if !password.is_empty() => words.replace(password, "***"),
            _ => words,
        }
    }
}

fn read_password(path: String) -> Result<String, SettingsError> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(cause) => Err(SettingsError::PasswordFile { path, cause }),
    }
}

/// The address alone. No user name either: some write the password in its place.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            ConnectionAddr::Unix(path) => write!(f, "unix://{}", path.display()),
            address @ ConnectionAddr::TcpTls { .. } => write!(f, "rediss://{address}"),
            address => write!(f, "redis://{address}"),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.to_string())
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("limits", &self.limits)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: Option<&str>, environment: &[(&str, &str)]) -> Option<Settings> {
        let lookup = |name: &str| {
            environment
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        };
        Settings::resolve(url, &lookup).unwrap()
    }

    fn shown(url: Option<&str>, environment: &[(&str, &str)]) -> (String, Option<String>) {
        let settings = resolve(url, environment).unwrap();
        (settings.to_string(), settings.password)
    }

    #[test]
    fn the_first_source_wins_and_the_password_is_filled_in() {
        let all = [
            ("REDIS_URL", "redis://b:1/9"),
            ("RQ_REDIS_URL", "redis://c:1"),
            ("REDIS_HOST", "d"),
            ("REDIS_PORT", "2"),
            ("REDIS_PASSWORD", "geheim"),
        ];
        let geheim = Some("geheim".to_owned());
        assert_eq!(
            shown(Some("rediss://u:p%40w@a/3"), &all),
            ("rediss://a:6379".into(), Some("p@w".into()))
        );
        assert_eq!(shown(None, &all), ("redis://b:1".into(), geheim.clone()));
        assert_eq!(
            shown(None, &all[1..]),
            ("redis://c:1".into(), geheim.clone())
        );
        assert_eq!(shown(None, &all[2..]), ("redis://d:2".into(), geheim));
        assert_eq!(shown(None, &all[2..3]), ("redis://d:6379".into(), None));
        assert!(
            resolve(None, &all[3..]).is_none(),
            "a port and a password are no address"
        );
        assert!(resolve(None, &[("REDIS_URL", ""), ("REDIS_HOST", "")]).is_none());
    }

    #[test]
    fn the_password_file_is_read_without_its_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " with space \r\n").unwrap();
        let path = file.path().to_str().unwrap();
        let (_, password) = shown(Some("redis://a"), &[("REDIS_PASSWORD_FILE", path)]);
        assert_eq!(password.as_deref(), Some(" with space "));

        let missing =
            |name: &str| (name == "REDIS_PASSWORD_FILE").then(|| "/nonexistent".to_owned());
        let error = Settings::resolve(Some("redis://a"), &missing)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent") && error.contains("No such file"),
            "{error}"
        );
    }

    #[test]
    fn unix_sockets_have_their_credentials_in_the_query() {
        for url in [
            "unix:///run/r.sock?db=3&pass=p",
            "redis+unix:///run/r.sock?password=p&username=u",
        ] {
            assert_eq!(
                shown(Some(url), &[]),
                ("unix:///run/r.sock".into(), Some("p".into()))
            );
        }
    }

    #[test]
    fn nothing_shows_a_password() {
        let settings = resolve(Some("redis://geheim:geheim@a:1/0?x=geheim"), &[]).unwrap();
        let words = settings.redact("ERR unknown command 'AUTH', with args: 'geheim'".into());
        for text in [settings.to_string(), format!("{settings:?}"), words] {
            assert!(!text.contains("geheim"), "{text}");
        }
        for bad in [
            "http://:geheim@a",
            "redis://:geheim@a:port",
            "redis://:geheim@a/x",
            "redis:///geheim",
            "unix://:geheim@/run/r.sock",
            "unix://geheim/run/r.sock",
            "rediss://a#geheim",
            "geheim",
            "",
        ] {
            let error = Settings::from_url("--redis", bad).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(
                !text.contains("geheim") && text.contains("--redis"),
                "{bad}: {text}"
            );
        }
        let port = |name: &str| match name {
            "REDIS_HOST" => Some("a".to_owned()),
            "REDIS_PORT" => Some("x".to_owned()),
            _ => None,
        };
        assert!(matches!(
            Settings::resolve(None, &port),
            Err(SettingsError::Port)
        ));
    }
}
