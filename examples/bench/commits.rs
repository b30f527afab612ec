//! A commit of a controller, against the system calls it must make and three round trips to Redis.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use redis::Commands;

use crate::rounds::{Ratio, Rounds, Subject, timed};
use crate::{Bench, CONTROLLER, SIZE};

/// Commits per round.
const TIMES: u32 = 4;

type Write20k = fn(&Path, &[u8]) -> Result<()>;

pub fn run(rounds: &Rounds, bench: &Bench) -> Result<()> {
    // the disk's mood changes quickly: more and shorter rounds
    let rounds = rounds.more(5);
    let mut connection = bench.server.connect(0)?;
    let mut trips = || -> Result<()> {
        connection.ping::<()>()?;
        connection.set::<_, _, ()>("bench", &bench.document)?;
        connection.get::<_, Option<String>>("bench:small")?;
        Ok(())
    };
    let ways: [(&str, Write20k); 2] = [
        (
            "a commit of 20 kB: open with O_TRUNC, write, close",
            overwrite,
        ),
        (
            "a commit of 20 kB: write another file, rename it onto the controller",
            replace,
        ),
    ];
    for (title, way) in ways {
        let measure = |through: &Path, source: &Path| commits(bench, through, source, way);
        let calls = || commits(bench, &bench.native, &bench.native, durably);
        let (bare_calls, mut calls) = (calls(), calls());
        let trips = std::cell::RefCell::new(&mut trips);
        let three_trips = || timed(TIMES, || (trips.borrow_mut())());
        let subjects = vec![
            Subject::new("calls", bare_calls),
            Subject::new("embedded", measure(bench.embedded.path(), &bench.source)),
            Subject::new("calls + 3 trips", move || Ok(calls()? + three_trips()?)),
            Subject::new("redis", measure(bench.redis.path(), &bench.shared)),
            Subject::new("3 trips", three_trips),
        ];
        let (bare_calls, embedded, calls, redis, trips) = (0, 1, 2, 3, 4);
        rounds.compare(
            title,
            subjects,
            &[
                Ratio::new(embedded, calls).goal(2.0),
                Ratio::new(redis, calls).goal(2.0),
                Ratio::new(embedded, bare_calls),
                Ratio::new(trips, bare_calls),
            ],
        )?;
    }
    Ok(())
}

/// Writes the controller in `through` some times, in one `way`, always another content, and looks in
/// `source` for the last: `File` swallows what `close` reports, and a refused commit would be cheap.
fn commits(
    bench: &Bench,
    through: &Path,
    source: &Path,
    way: Write20k,
) -> impl FnMut() -> Result<Duration> + use<> {
    let (path, lower) = (through.join(CONTROLLER), source.join(CONTROLLER));
    let mut other = bench.document.clone();
    other[SIZE - 1] = b'\n';
    let contents = [bench.document.clone(), other];
    let mut turn = 0;
    move || {
        let time = timed(TIMES, || {
            turn ^= 1;
            way(&path, &contents[turn])
        })?;
        ensure!(
            fs::read(&lower)? == contents[turn],
            "{} was not committed",
            path.display()
        );
        Ok(time)
    }
}

/// As a shell's redirection does it.
fn overwrite(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    Ok(file.write_all(content)?)
}

/// As `sed -i` and editors do it.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    File::create(&temporary)?.write_all(content)?;
    Ok(fs::rename(&temporary, path)?)
}

/// What a commit cannot do without.
fn durably(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create_new(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    Ok(File::open(dir)?.sync_all()?)
}
