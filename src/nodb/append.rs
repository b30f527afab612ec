//! Appending to a controller's virtual log: each line is published on the status channel, as the bare
//! text that it is, and written once, as a NoDb process would, into the real log.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Errno, Error, InStep, Result};
use crate::fs::attr::Attr;
use crate::fs::credentials::Caller;
use crate::nodb::Nodb;
use crate::nodb::caller;
use crate::nodb::commit::lock_of;
use crate::nodb::controller::Controller;
use crate::nodb::logfile::OpenLog;
use crate::store::LockName;
use crate::telemetry::level::Level;
use crate::telemetry::line::line;

/// The longest line that is published, in bytes: browsers show it.
pub const MOST: usize = 64 << 10;

/// How long a message waits for the run's channels to be followed, so that it shows where it was made.
const PATIENCE: Duration = Duration::from_secs(1);

/// What has been appended and not been published yet.
#[derive(Debug, Default)]
pub struct Pending {
    /// The beginning of a line.
    bytes: Vec<u8>,
    /// That line was refused, and what is left of it is not another.
    spoilt: bool,
    /// The process that wrote it last.
    process: u32,
}

impl Nodb {
    /// Appends `data`: every line that ends in it is told, the rest waits for its end. How much was taken:
    /// what comes before a line that could not be told has been, and is not to be written again.
    ///
    /// Errors: EMSGSIZE, EINVAL (nothing of `data` was told); ECOMM (the store is away); whatever the source
    /// says of the real log.
    pub fn append(&self, log: &OpenLog, data: &[u8], caller: Caller) -> Result<usize> {
        if !log.writes {
            return Err(Errno::BADF.into());
        }
        let mut pending = std::mem::take(&mut *log.pending.lock());
        pending.process = caller::process_of(caller.tid).unwrap_or(0);
        let appended = self.append_to(&mut pending, &log.file.controller, data, log.caller);
        *log.pending.lock() = pending;
        appended.inspect_err(|error| self.refused(&log.file.controller, error))
    }

    fn append_to(
        &self,
        pending: &mut Pending,
        controller: &Controller,
        data: &[u8],
        caller: Caller,
    ) -> Result<usize> {
        if pending.spoilt {
            pending.spoilt = !data.contains(&b'\n');
            return Err(too_long(pending.bytes.len() + data.len()));
        }
        let complete = data
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let (lines, rest) = data.split_at(complete);
        let left = rest.len()
            + if lines.is_empty() {
                pending.bytes.len()
            } else {
                0
            };
        if left > MOST {
            *pending = Pending {
                spoilt: true,
                process: pending.process,
                bytes: Vec::new(),
            };
            return Err(too_long(left));
        }
        // all are judged before the first is told
        let texts = texts_of(&pending.bytes, lines)?;
        if !texts.is_empty() {
            let teller = self.teller(controller, caller)?;
            let mut told = 0;
            for (text, end) in &texts {
                match teller.tell(text) {
                    Ok(()) => told = *end,
                    Err(error) if told == 0 => return Err(error),
                    Err(_) => {
                        pending.bytes.clear();
                        return Ok(told);
                    }
                }
            }
        }
        if !lines.is_empty() {
            pending.bytes.clear();
        }
        pending.bytes.extend(rest);
        Ok(data.len())
    }

    /// One of the descriptors is closed. A line without an end ends here, if it is its writer who closes.
    pub fn flush_log(&self, log: &OpenLog, caller: Caller) -> Result<()> {
        let writer = {
            let pending = log.pending.lock();
            (!pending.bytes.is_empty()).then_some(pending.process)
        };
        match writer {
            Some(writer) if writer == caller::process_of(caller.tid).unwrap_or(0) => {
                let ended = self.append(log, b"\n", caller).map(drop);
                // the writer knows; whether it is to be tried again is for the writer to say
                ended.inspect_err(|_| log.pending.lock().bytes.clear())
            }
            _ => Ok(()),
        }
    }

    /// The last descriptor is gone: a line without an end ends here, whoever has written it.
    pub fn release_log(&self, log: &OpenLog) {
        let left = !log.pending.lock().bytes.is_empty();
        if left {
            // the reason of a failure is in the log, and nobody is left to be told
            let _ = self.append(log, b"\n", log.caller);
        }
    }

    /// Publishes one line on the channel of a controller and writes it into its real log.
    ///
    /// Errors: as for [`Nodb::append`].
    pub fn publish(&self, controller: &Controller, text: &str, caller: Caller) -> Result<()> {
        let told = texts_of(b"", format!("{text}\n").as_bytes()).and_then(|texts| {
            let teller = self.teller(controller, caller)?;
            texts.iter().try_for_each(|(text, _)| teller.tell(text))
        });
        told.inspect_err(|error| self.refused(controller, error))
    }

    fn teller(&self, controller: &Controller, caller: Caller) -> Result<Teller<'_>> {
        let name = lock_of(&self.identity_now(controller)?);
        let shown = self.telemetry.runs().await_following(&name.runid, PATIENCE);
        let log = self.open_real_log(controller, caller)?;
        Ok(Teller {
            nodb: self,
            name,
            shown,
            log,
        })
    }

    /// The real log of a controller, to be read, if there is one.
    pub fn real_log(&self, controller: &Controller) -> Result<Option<File>> {
        let place = &controller.place;
        let dir = self.plain.inodes.fd(&place.dir)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&*dir, real_log(&place.name), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The real log of a controller, made if need be, as its caller's.
    fn open_real_log(&self, controller: &Controller, caller: Caller) -> Result<File> {
        let place = &controller.place;
        let dir = self.plain.inodes.fd(&place.dir)?;
        let mode = Mode::from_raw_mode(self.plain.stat(place)?.mode & 0o666);
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let opened = {
            let _as_caller = caller.assume();
            openat(&*dir, real_log(&place.name), flags, mode)
        };
        let fd = opened.in_step("open the real log")?;
        if !Attr::of_fd(&fd)?.is_file() {
            return Err(Errno::INVAL).in_step("open the real log");
        }
        Ok(fd.into())
    }
}

/// Tells lines of one controller.
struct Teller<'a> {
    nodb: &'a Nodb,
    name: LockName,
    /// Whether what is published arrives in the journal by itself.
    shown: bool,
    log: File,
}

impl Teller<'_> {
    fn tell(&self, text: &str) -> Result<()> {
        let Self { nodb, name, .. } = self;
        let published = nodb.store.publish(&name.channel(), text);
        published.map_err(Error::Unpublished)?;
        if !self.shown {
            nodb.telemetry.note_message(name, text);
        }
        let written = (&self.log).write_all(line(name, Level::Info, text).as_bytes());
        let written = written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        written.in_step("write the real log")
    }
}

/// The texts of the lines in `begun` and `lines` together, and how much of `lines` each takes with it.
/// Empty ones say nothing.
fn texts_of(begun: &[u8], lines: &[u8]) -> Result<Vec<(String, usize)>> {
    let mut texts = Vec::new();
    let mut end = 0;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let mut bytes = if end == 0 { begun.to_vec() } else { Vec::new() };
        end += line.len();
        bytes.extend(line.strip_suffix(b"\n").unwrap_or(line));
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if bytes.len() > MOST {
            return Err(too_long(bytes.len()));
        }
        let text = String::from_utf8(bytes).map_err(|_| Error::NotText)?;
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::NotText);
        }
        if !text.is_empty() {
            texts.push((text, end));
        }
    }
    Ok(texts)
}

fn too_long(size: usize) -> Error {
    Error::LineTooLong { size, max: MOST }
}

/// `x.log` for `x.nodb`.
fn real_log(controller: &std::ffi::OsStr) -> OsString {
    let mut name = controller.to_owned().into_vec();
    name.truncate(name.len() - ".nodb".len());
    name.extend(b".log");
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{LogName, log_of};

    #[test]
    fn the_real_log_of_a_controller_is_the_one_that_stands_for_it() {
        let real = real_log("wepp.nodb".as_ref());
        assert_eq!(real, "wepp.log");
        let (controller, named) = log_of(&real).unwrap();
        assert_eq!((controller, named), ("wepp.nodb".into(), LogName::Real));
    }

    #[test]
    fn lines_are_judged_together_and_taken_one_by_one() {
        let texts = texts_of(b"be", b"gun\r\n\nt\xc3\xa4xt\tx\n").unwrap();
        assert_eq!(
            texts,
            [("begun".to_owned(), 5), ("t\u{e4}xt\tx".to_owned(), 14)]
        );
        for bad in [&b"ok\nb\0d\n"[..], b"ok\n\xff\n", b"\x1b[31m\n"] {
            assert!(matches!(texts_of(b"", bad), Err(Error::NotText)));
        }
        let long = vec![b'x'; MOST + 1];
        assert!(matches!(
            texts_of(b"", &long),
            Err(Error::LineTooLong { .. })
        ));
        assert_eq!(texts_of(b"", &long[1..]).unwrap().len(), 1);
    }
}
