//! What others do through Redis, until it shows on the mount.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use redis::{Commands, Connection};

use crate::rounds::{Ratio, Rounds, Subject};
use crate::{Bench, CONTROLLER};

/// What is to be seen of others is seen within this.
const PROMISED: Duration = Duration::from_millis(50);
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(rounds: &Rounds, bench: &Bench) -> Result<()> {
    let controller = bench.redis.path().join(CONTROLLER);
    let attribute = |name: &str| -> Result<String> {
        let mut value = [0; 4096];
        let size = rustix::fs::getxattr(&controller, format!("user.nodbfs.{name}"), &mut value)?;
        Ok(String::from_utf8_lossy(&value[..size]).into_owned())
    };
    let channel = attribute("channel")?;
    let lock = format!(
        "nodb-lock:{}:{}",
        attribute("runid")?,
        attribute("relpath")?
    );
    let virtual_file = |ending: &str| controller.with_file_name(format!("{CONTROLLER}.{ending}"));
    let (log, lock_file) = (virtual_file("log"), virtual_file("lock"));
    let mut log = File::open(log)?;
    let mut connection = bench.server.connect(0)?;
    let mut publisher = bench.server.connect(0)?;
    let mut sent = 0;
    let message = move || {
        sent += 1;
        let text = format!("message {sent}.");
        log.seek(SeekFrom::End(0))?;
        let mut told = String::new();
        let start = Instant::now();
        publisher.publish::<_, _, ()>(&channel, &text)?;
        until(start, || {
            log.read_to_string(&mut told)?;
            Ok(told.contains(&text))
        })
    };
    let shows = |connection: &mut Connection, held: bool| {
        let start = Instant::now();
        match held {
            true => connection.set::<_, _, ()>(&lock, r#"{"token":"t","owner":"elsewhere:1"}"#)?,
            false => connection.del::<_, ()>(&lock)?,
        }
        until(start, || Ok(lock_file.exists() == held))
    };
    let locking = || Ok(shows(&mut connection, true)?.max(shows(&mut connection, false)?));
    rounds.compare(
        "made elsewhere, until it shows: a message in x.nodb.log; a lock as x.nodb.lock, and its release",
        vec![
            Subject::new("50 ms", || Ok(PROMISED)),
            Subject::new("message", message),
            Subject::new("lock", locking),
        ],
        &[Ratio::new(1, 0).goal(1.0), Ratio::new(2, 0).goal(1.0)],
    )
}

/// How long after `start` it was so.
fn until(start: Instant, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    while !condition()? {
        ensure!(start.elapsed() < PATIENCE, "it never shows");
    }
    Ok(start.elapsed())
}
