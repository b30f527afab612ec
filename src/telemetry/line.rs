//! A line as NoDb processes write it into their logs (PROTOCOL.md 1): local time, level, the logger's
//! name, the message.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::store::LockName;
use crate::telemetry::level::Level;

/// The line of a message about a controller, its end included.
pub fn line(of: &LockName, level: Level, message: &str) -> String {
    let (time, runid, controller) = (now(), &of.runid, of.controller());
    format!("{time} [{level}] wepppy.run.{runid}.{controller}: {message}\n")
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    pub time: &'a str,
    pub level: Level,
    pub message: &'a str,
}

/// The parts of a line without its end; `None`: it is not one of NoDb's, but perhaps of a traceback.
pub fn parts(line: &str) -> Option<Parts<'_>> {
    let (time, rest) = line.split_once(" [")?;
    let (level, rest) = rest.split_once("] wepppy.run.")?;
    let (_, message) = rest.split_once(": ")?;
    let level = level.parse().ok()?;
    Some(Parts {
        time,
        level,
        message,
    })
}

/// `YYYY-MM-DD HH:MM:SS`, local time.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs() as libc::time_t);
    // SAFETY: all zeros are a valid `tm`, which is plain numbers and a pointer that is not used.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of this function's own.
    unsafe { libc::localtime_r(&seconds, &mut tm) };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_a_nodb_logger_writes() {
        let of = LockName {
            runid: "batch;;spring;;run-001".into(),
            relpath: "_pups/omni/scenarios/x/wepp.nodb".into(),
        };
        let line = line(&of, Level::Warning, "hello");
        let (time, rest) = line.split_at("2026-01-01 00:00:00".len());
        assert!(
            time.chars()
                .zip("dddd-dd-dd dd:dd:dd".chars())
                .all(|(c, form)| if form == 'd' {
                    c.is_ascii_digit()
                } else {
                    c == form
                }),
            "{time}"
        );
        assert_eq!(
            rest,
            " [WARNING] wepppy.run.batch;;spring;;run-001.wepp: hello\n"
        );
        let parts = parts(line.trim_end()).unwrap();
        assert_eq!(
            (parts.time, parts.level, parts.message),
            (time, Level::Warning, "hello")
        );
        assert_eq!(super::parts("Traceback (most recent call last):"), None);
    }
}
