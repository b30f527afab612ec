//! How control messages travel: a line of JSON, and as many bytes behind it as it says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Of the protocol: both ends are the same program, but perhaps not of the same release.
const VERSION: u32 = 1;

/// The longest line, in bytes.
const MAX_LINE: u64 = 16 << 20;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    version: u32,
    /// How many bytes follow.
    #[serde(default)]
    bytes: u64,
    say: T,
}

/// What is looked at before anything else.
#[derive(Debug, Deserialize)]
struct Versioned {
    version: u32,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// How many bytes may follow a line that is received.
    max_bytes: u64,
}

impl Channel {
    /// # Errors
    /// No descriptor is left.
    pub fn new(stream: UnixStream, max_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            stream,
            max_bytes,
        })
    }

    /// Sends a message with `body` behind it.
    pub fn send<T: Serialize>(&mut self, say: &T, body: &[u8]) -> io::Result<()> {
        let line = Line {
            version: VERSION,
            bytes: body.len() as u64,
            say,
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.stream.write_all(&text)?;
        self.stream.write_all(body)
    }

    /// The next message and its bytes; `None`: the other end has hung up.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<u8>)>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(MAX_LINE);
        limited.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            return Err(invalid("a message without an end"));
        }
        let Versioned { version } = serde_json::from_slice(&line)?;
        if version != VERSION {
            return Err(invalid(format!(
                "the other end speaks version {version} of the protocol, this one {VERSION}"
            )));
        }
        let Line { bytes, say, .. } = serde_json::from_slice(&line)?;
        if bytes > self.max_bytes {
            return Err(invalid(format!(
                "{bytes} bytes are too many: {} are taken",
                self.max_bytes
            )));
        }
        let mut body = Vec::new();
        (&mut self.reader).take(bytes).read_to_end(&mut body)?;
        if (body.len() as u64) < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((say, body)))
    }

    /// Whether the other end has hung up. Does not wait.
    pub fn is_over(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.reader.buffer().is_empty()
            && recv(&self.stream, &mut [0; 1], flags).is_ok_and(|(read, _)| read == 0)
    }

    /// Whether a line can be sent at once; waits for that no longer than `patience`.
    pub fn has_room(&self, patience: Duration) -> bool {
        let patience = Timespec::try_from(patience).unwrap_or_default();
        let mut room = [PollFd::new(&self.stream, PollFlags::OUT)];
        // an error is a signal, and the next look tells
        poll(&mut room, Some(&patience)).is_ok_and(|ready| ready > 0)
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        let channel = |stream| Channel::new(stream, 8).unwrap();
        (channel(one), channel(other))
    }

    #[test]
    fn messages_arrive_with_their_bytes_and_the_end_shows() {
        let (mut one, mut other) = pair();
        one.send(&"with", b"\n\0\xff").unwrap();
        one.send(&"without", b"").unwrap();
        assert!(!other.is_over());
        let with: (String, Vec<u8>) = other.receive().unwrap().unwrap();
        assert_eq!(with, ("with".into(), b"\n\0\xff".to_vec()));
        let without: (String, Vec<u8>) = other.receive().unwrap().unwrap();
        assert_eq!(without, ("without".into(), Vec::new()));
        drop(one);
        assert!(other.is_over());
        assert!(other.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (sent, why) in [
            ("{\"version\":1,\"say\":\"x\"}", "without an end"),
            ("{\"version\":2,\"tell\":\"x\"}\n", "version 2"),
            ("{\"version\":1,\"bytes\":9,\"say\":\"x\"}\n", "too many"),
            ("garbage\n", "expected value"),
            (
                "{\"version\":1,\"bytes\":2,\"say\":\"x\"}\n.",
                "unexpected end",
            ),
        ] {
            let (mut one, mut other) = pair();
            one.stream.write_all(sent.as_bytes()).unwrap();
            drop(one);
            let error = other.receive::<String>().unwrap_err().to_string();
            assert!(error.contains(why), "{sent}: {error}");
        }
    }
}
