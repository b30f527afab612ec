//! Reading a controller that is hot, and asking for its attributes.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::rounds::{Ratio, Rounds, Subject, timed};
use crate::{Bench, CONTROLLER, SIZE};

pub fn run(rounds: &Rounds, bench: &Bench) -> Result<()> {
    let remembering = bench.again(&["--name-ttl", "1s"])?;
    let paths = [
        ("bare", bench.bare.path()),
        ("embedded", bench.embedded.path()),
        ("redis", bench.redis.path()),
        ("native", &bench.source),
        ("bare twin", bench.twin.path()),
        ("redis, --name-ttl 1s", remembering.path()),
    ];
    let paths = paths.map(|(name, dir)| (name, dir.join(CONTROLLER)));
    let subjects = |times: u32, op: fn(&Path) -> Result<()>| {
        let subject = move |(name, path): &(&'static str, std::path::PathBuf)| {
            let path = path.clone();
            Subject::new(name, move || timed(times, || op(&path)))
        };
        paths.iter().map(subject).collect::<Vec<_>>()
    };
    let (bare, embedded, redis, native, twin, remembering) = (0, 1, 2, 3, 4, 5);
    rounds.compare(
        "a hot controller of 20 kB: open, read, close",
        subjects(2000, read),
        &[
            Ratio::new(embedded, bare).goal(1.3),
            Ratio::new(redis, bare).goal(1.3),
            Ratio::new(remembering, bare).goal(1.3),
            Ratio::new(twin, bare),
            Ratio::new(bare, native),
            Ratio::new(embedded, native),
        ],
    )?;
    rounds.compare(
        "a hot controller: stat",
        subjects(2000, |path| Ok(fs::symlink_metadata(path).map(drop)?)),
        &[
            Ratio::new(embedded, native),
            Ratio::new(redis, native),
            Ratio::new(bare, native),
        ],
    )
}

/// Opens, reads to the end and closes.
fn read(path: &Path) -> Result<()> {
    let mut buffer = [0; 32 << 10];
    let mut file = File::open(path)?;
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            some => size += some,
        }
    }
    ensure!(size == SIZE, "{size} bytes in {}", path.display());
    Ok(())
}
