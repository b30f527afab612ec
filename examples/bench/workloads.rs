//! What programs do to a run's files, each as one row of the table.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;

use crate::CONTROLLER;
use crate::rounds::timed;
use crate::tree::Shape;

const BLOCK: usize = 128 << 10;
const PAGE: usize = 4 << 10;

/// What comes before each measurement.
pub enum Before {
    Nothing,
    /// Kernel and daemons forget what they know of the tree.
    Forget,
    /// The same, unmeasured, so that what is remembered for a second is.
    Warm,
}

/// A row.
pub struct Workload {
    pub name: &'static str,
    /// Best figure seen of any peer or bare FUSE file system on a machine of this kind.
    pub best_seen: Option<f64>,
    pub before: Before,
    /// Seconds and not milliseconds: fewer rounds will do.
    pub long: bool,
    /// It reads nothing but small files.
    pub in_memory: bool,
    /// Does it once on the tree at the path, and says how long it took.
    pub run: fn(&Path, &Shape) -> Result<Duration>,
}

const fn row(
    name: &'static str,
    best_seen: f64,
    run: fn(&Path, &Shape) -> Result<Duration>,
) -> Workload {
    Workload {
        name,
        best_seen: Some(best_seen),
        before: Before::Nothing,
        long: false,
        in_memory: true,
        run,
    }
}

impl Workload {
    const fn cold(self) -> Self {
        Self {
            before: Before::Forget,
            ..self
        }
    }

    const fn hot(self) -> Self {
        Self {
            before: Before::Warm,
            ..self
        }
    }

    const fn long(self) -> Self {
        Self { long: true, ..self }
    }

    const fn on_disk(self) -> Self {
        Self {
            in_memory: false,
            ..self
        }
    }
}

/// All rows.
pub const ALL: [Workload; 22] = [
    row("20 kB: open, fstat, read, close", 7.5, |root, _| {
        open_often(&root.join("small.txt"), 1, 1000)
    }),
    row("the same in 4 threads", 11.0, |root, _| {
        open_often(&root.join("small.txt"), 4, 500)
    }),
    row("20 kB controller: the same", 7.5, |root, _| {
        open_often(&root.join(CONTROLLER), 1, 1000)
    }),
    row("20 kB controller, 4 threads", 11.0, |root, _| {
        open_often(&root.join(CONTROLLER), 4, 500)
    }),
    row("1 MB: open, fstat, read, close", 1.8, |root, _| {
        open_often(&root.join("middle.bin"), 1, 100)
    }),
    row("the same in 4 threads", 3.1, |root, _| {
        open_often(&root.join("middle.bin"), 4, 50)
    }),
    row("16 MB: open, fstat, read, close", 0.9, |root, _| {
        open_often(&root.join("large.bin"), 1, 8)
    }),
    row("stat of 1,000 paths", 1.1, stat_names).hot(),
    row("stat of a missing name", 1.1, stat_missing).hot(),
    row("ls -l of 5,000 files, cold", 3.7, list).cold(),
    row("ls -l of 5,000 files, hot", 0.75, list).hot(),
    row("walk of 20,000 files, cold", 2.4, walk).cold(),
    row("walk of 20,000 files, hot", 0.9, walk).hot(),
    row("1 GB: read by 128 kB", 1.0, read_on).long().on_disk(),
    row("1 GB: read by mmap", 1.0, read_mapped).long().on_disk(),
    row("1 GB: read 4 kB at random", 1.0, read_at_random)
        .long()
        .on_disk(),
    row("512 MB: written by 128 kB", 1.1, write_on)
        .long()
        .on_disk(),
    row(
        "5,000 small files: create, write, close, unlink",
        3.9,
        churn,
    )
    .on_disk(),
    row("500 times: write, fsync, rename over", 1.0, replace).on_disk(),
    row("tar of 20,000 files", 4.0, tar).long(),
    row("zip -r of 20,000 files", 1.3, zip).long(),
    Workload {
        best_seen: None,
        ..row("python3: read every file of 20,000", 0.0, read_all).long()
    },
];

/// As a reader does it who knows nothing of the size.
fn open_often(path: &Path, threads: usize, times: u32) -> Result<Duration> {
    let start = Barrier::new(threads);
    let work = || -> Result<Duration> {
        let mut buffer = vec![0; 256 << 10];
        start.wait();
        timed(times, || {
            let mut file = File::open(path)?;
            let (size, mut read) = (file.metadata()?.len(), 0);
            while read < size {
                match file.read(&mut buffer)? {
                    0 => break,
                    some => read += some as u64,
                }
            }
            ensure!(read == size, "{read} of {size} bytes read");
            Ok(())
        })
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut longest = Duration::ZERO;
        for one in all {
            longest = longest.max(one.join().expect("a reader does not panic")?);
        }
        Ok(longest)
    })
}

fn stat_names(root: &Path, shape: &Shape) -> Result<Duration> {
    let paths: Vec<_> = (0..shape.names)
        .map(|i| root.join(format!("names/n{i}")))
        .collect();
    timed(10, || {
        for path in &paths {
            fs::symlink_metadata(path)?;
        }
        Ok(())
    })
}

fn stat_missing(root: &Path, _: &Shape) -> Result<Duration> {
    let path = root.join("names/missing");
    timed(5000, || match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => Err(anyhow::anyhow!("a missing name is there: {other:?}")),
    })
}

/// A program from its start to its end, its output read by nobody.
fn program(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Duration> {
    let start = Instant::now();
    let status = Command::new(name)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("no {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(start.elapsed())
}

/// What `ls -l` must ask for.
fn list(root: &Path, shape: &Shape) -> Result<Duration> {
    let dir = root.join("listed");
    timed(1, || {
        let mut size = 0;
        for entry in fs::read_dir(&dir)? {
            size += entry?.metadata()?.len();
        }
        ensure!(size == shape.listed as u64 * 5, "{size} bytes listed");
        Ok(())
    })
}

/// The size of each is asked for.
fn walk(root: &Path, _: &Shape) -> Result<Duration> {
    let tree = root.join("walked");
    program("find", [tree.as_os_str(), "-size".as_ref(), "+1G".as_ref()])
}

fn read_on(root: &Path, shape: &Shape) -> Result<Duration> {
    let (path, mut buffer) = (root.join("raster.bin"), vec![0; BLOCK]);
    timed(1, || {
        let (mut file, mut read) = (File::open(&path)?, 0);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                some => read += some,
            }
        }
        ensure!(read == shape.raster, "{read} bytes read");
        Ok(())
    })
}

fn read_mapped(root: &Path, shape: &Shape) -> Result<Duration> {
    let (path, size) = (root.join("raster.bin"), shape.raster);
    timed(1, || {
        let file = File::open(&path)?;
        // SAFETY: a file of this program's own, which nobody truncates
        let bytes = unsafe { Mmap::map(&file)? };
        ensure!(bytes.len() == size, "{} bytes mapped", bytes.len());
        let sum: u64 = bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
        std::hint::black_box(sum);
        Ok(())
    })
}

fn read_at_random(root: &Path, shape: &Shape) -> Result<Duration> {
    let (path, mut page) = (root.join("raster.bin"), [0; PAGE]);
    let pages = (shape.raster / PAGE) as u64;
    timed(1, || {
        let file = File::open(&path)?;
        let mut at = 1_u64;
        for _ in 0..pages / 4 {
            // a full-period generator: every page has its turn
            at = (at.wrapping_mul(6_364_136_223_846_793_005)).wrapping_add(1_442_695_040_888_963);
            file.read_exact_at(&mut page, (at >> 20) % pages * PAGE as u64)?;
        }
        Ok(())
    })
}

fn write_on(root: &Path, shape: &Shape) -> Result<Duration> {
    let (path, block) = (root.join("scratch/written"), vec![7; BLOCK]);
    let time = timed(1, || {
        let mut file = File::create(&path)?;
        for _ in 0..shape.written / BLOCK {
            file.write_all(&block)?;
        }
        Ok(())
    });
    // what waits for the disk now would wait in the next measurement
    fs::remove_file(&path)?;
    time
}

fn churn(root: &Path, shape: &Shape) -> Result<Duration> {
    let path = |i| root.join(format!("scratch/f{i}"));
    timed(1, || {
        for i in 0..shape.created {
            File::create_new(path(i))?.write_all(b"97.5\n")?;
        }
        for i in 0..shape.created {
            fs::remove_file(path(i))?;
        }
        Ok(())
    })
}

fn replace(root: &Path, shape: &Shape) -> Result<Duration> {
    let (path, fresh) = (root.join("scratch/kept"), root.join("scratch/kept.new"));
    timed(1, || {
        for _ in 0..shape.renamed {
            let mut file = File::create(&fresh)?;
            file.write_all(b"97.5\n")?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
        }
        Ok(fs::remove_file(&path)?)
    })
}

fn tar(root: &Path, _: &Shape) -> Result<Duration> {
    // to /dev/null it would read nothing
    let tree = root.to_string_lossy().into_owned();
    program("sh", ["-c", "tar -C \"$0\" -cf - walked | cat", &tree])
}

fn zip(root: &Path, _: &Shape) -> Result<Duration> {
    let tree = root.to_string_lossy().into_owned();
    program("sh", ["-c", "cd \"$0\" && zip -qr - walked | cat", &tree])
}

fn read_all(root: &Path, _: &Shape) -> Result<Duration> {
    let code = "import os, sys\n\
                for dir, _, names in os.walk(sys.argv[1]):\n \
                 for name in names:\n  \
                  with open(os.path.join(dir, name)) as file: file.read()";
    let tree = root.join("walked");
    program("python3", ["-c".as_ref(), code.as_ref(), tree.as_os_str()])
}
