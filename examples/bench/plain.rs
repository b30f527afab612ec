//! Plain files and directories, against the same on the source.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Bench;
use crate::rounds::{Ratio, Rounds, Subject, timed};

const MANY: usize = 5000;
const SMALL: usize = 1000;
const LARGE: usize = 16 << 20;
const WRITTEN: usize = 64 << 20;
const BLOCK: usize = 128 << 10;

pub fn run(rounds: &Rounds, bench: &Bench) -> Result<()> {
    let (source, mounted) = (&*bench.source, bench.embedded.path());
    for run in [source, &bench.shared] {
        fs::create_dir(run.join("many"))?;
        for i in 0..MANY {
            fs::write(run.join(format!("many/f{i:05}.txt")), "one\n")?;
        }
    }
    fs::write(source.join("large.bin"), vec![7; LARGE])?;
    fs::create_dir(source.join("scratch"))?;
    fs::create_dir(bench.native.join("scratch"))?;

    let compare = |title: &str, op: fn(&Path) -> Result<Duration>, native: &Path| {
        let subjects = vec![
            Subject::new("native", || op(native)),
            Subject::new("embedded", || op(mounted)),
        ];
        rounds.compare(title, subjects, &[Ratio::new(1, 0)])
    };
    let cold = vec![
        Subject::new("native", || list(&bench.shared)),
        Subject::new("redis", || list(bench.again(&[])?.path())),
    ];
    let title = "ls -l of 5,000 files, right after mounting";
    rounds.compare(title, cold, &[Ratio::new(1, 0)])?;
    compare("ls -l of 5,000 files, again", list, source)?;
    compare("16 MB: open, read, close", read_large, source)?;
    compare(
        "64 MB: create, write by 128 kB, close",
        write_large,
        &bench.native,
    )?;
    compare(
        "1,000 small files: create, write, close, unlink",
        churn,
        &bench.native,
    )?;
    compare(
        "a run of 500 hillslopes: read every file, as zip does",
        walk,
        source,
    )
}

/// What `ls -l` asks for.
fn list(run: &Path) -> Result<Duration> {
    let dir = run.join("many");
    timed(1, || {
        let mut size = 0;
        for entry in fs::read_dir(&dir)? {
            size += entry?.metadata()?.size() as usize;
        }
        ensure!(size == MANY * 4, "{size} bytes listed");
        Ok(())
    })
}

fn read_large(run: &Path) -> Result<Duration> {
    let (path, mut buffer) = (run.join("large.bin"), vec![0; BLOCK]);
    timed(1, || {
        let size = read_file(&path, &mut buffer)?;
        ensure!(size == LARGE, "{size} bytes read");
        Ok(())
    })
}

fn write_large(dir: &Path) -> Result<Duration> {
    let (path, block) = (dir.join("scratch/large.bin"), vec![7; BLOCK]);
    let time = timed(1, || {
        let mut file = File::create(&path)?;
        for _ in 0..WRITTEN / BLOCK {
            file.write_all(&block)?;
        }
        Ok(())
    });
    // what waits for the disk now would wait in the next measurement
    fs::remove_file(&path)?;
    time
}

fn churn(dir: &Path) -> Result<Duration> {
    let path = |i| dir.join(format!("scratch/f{i}"));
    timed(1, || {
        for i in 0..SMALL {
            File::create_new(path(i))?.write_all(b"one\n")?;
        }
        for i in 0..SMALL {
            fs::remove_file(path(i))?;
        }
        Ok(())
    })
}

/// Opens, reads and closes every file of the run but those of the other measurements.
fn walk(run: &Path) -> Result<Duration> {
    let mut buffer = vec![0; BLOCK];
    timed(1, || {
        let mut dirs = vec![run.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let (path, kind): (PathBuf, _) = (entry.path(), entry.file_type()?);
                if kind.is_dir() && entry.file_name() != "many" {
                    dirs.push(path);
                } else if kind.is_file() && entry.file_name() != "large.bin" {
                    read_file(&path, &mut buffer)?;
                }
            }
        }
        Ok(())
    })
}

fn read_file(path: &Path, buffer: &mut [u8]) -> Result<usize> {
    let (mut file, mut size) = (File::open(path)?, 0);
    loop {
        match file.read(buffer)? {
            0 => return Ok(size),
            some => size += some,
        }
    }
}
