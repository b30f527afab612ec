//! A soak: two mounts of one tree, as on two hosts, with programs, NoDb processes old and modern, readers and workers
//! on plain files at each of them and beside them, while everything is killed, stopped or emptied in turn.
//!
//! `scripts/soak`, or `cargo build && cargo run --example soak -- 2`
//!
//! It ends with one line, `N commits, N refusals, N crashes, 0 violations`. A *violation* is told as it happens. What is
//! looked for: an acknowledged update that is gone, a refused one that is there, a document that is not whole or
//! goes back behind what was acknowledged before the read began, an error that the daemon's death does not explain, a
//! plain file that notices anything; and at rest, after each round: a lock that outlives its lease, a mirror flag without its
//! lock, a cache entry that is not the file's, a debt that is not paid, a leftover, a stranger's lock or file that is gone.
//!
//! # Who is judged by what
//!
//! nodbfs fences its publications; NoDb processes do not, and are judged apart, each kind on a controller of its own:
//!
//! - *Tools* and the *relay* are nodbfs's own business, and are judged by everything. Their locks are taken away by force.
//! - *Modern* neighbours look at lock and signature before they rename, and then rename whatever has happened since. One
//!   that loses its lock in between overwrites what others commit. That is its own doing (PROTOCOL.md 6), so locks vanish
//!   (`FLUSHALL`, a Redis that comes back empty) only while no NoDb process has one; the controller is then judged by everything.
//! - *Old* neighbours look at nothing: an update that a daemon published in the last moment of a lease is overwritten by the one who
//!   got the lock, and so is what an old entry hid from them. An acknowledged update that is lost is excused if, and only if,
//!   an old neighbour has written since its writer began. Beside the mounts they truncate in place, where a reader
//!   waits a second for the rest, so half a document is excused if the neighbour has been at it for that long.
//!
//! # What is known
//!
//! Counted by name, and told at the end; a death is one of the daemon, of a killed neighbour, or of Redis under a neighbour:
//!
//! - *The entry is an older generation's, after a death between publication and refresh*: `docs/FAILURES.md`, "Killed between
//!   publication and refresh". Only for a generation whose writer was not told that it is there, or is a NoDb process
//!   beside the mounts, which says nothing when Redis does not take its entry.
//! - *A stopped daemon's publication, seen before it was taken back*: `docs/FAILURES.md`, "The lock". Only for a generation whose
//!   writer was never told that it is there.

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};

mod cast;
mod chaos;
/// What the tests share.
#[path = "."]
mod common {
    #[path = "../../tests/common/python.rs"]
    #[allow(dead_code)] // shared with the tests, which use more of it
    pub mod python;

    /// A file of this crate's sources.
    pub fn in_crate(path: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }
}
mod ground;
mod host;
mod ledger;
mod neighbours;
mod program;
mod readers;
#[path = "../../tests/common/redis.rs"]
mod redis_server;
mod report;
#[path = "../../tests/common/sample/mod.rs"]
#[allow(dead_code)] // shared with the tests, which use more of it
mod sample;
mod settle;
mod writers;

use cast::{Actor, Cast};
use ground::Ground;
use sample::Rng;

/// Works on two mounts of one tree while everything is killed in turn, and tells what should not have been.
#[derive(Parser)]
#[command(name = "soak")]
struct Args {
    /// For how long
    #[arg(default_value_t = 2.0)]
    minutes: f64,
    /// The same order of blows once more [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Where to work [default: the target directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Be one of the programs
    #[arg(long, hide = true)]
    program: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.program {
        program::run().map(|()| true).map_err(Into::into)
    } else {
        soak(&args)
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn soak(args: &Args) -> Result<bool> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, ended.clone())?;
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(since.as_nanos() as u64 % 100_000);
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("no target directory")?;
    let work = tempfile::Builder::new()
        .prefix("soak-")
        .tempdir_in(args.dir.as_deref().unwrap_or(target))
        .context("no directory to work in")?;
    println!("{} minutes, --seed {seed}", args.minutes);
    let ground = Ground::new(work.path(), seed, ended)?;
    let whole = Duration::from_secs_f64(args.minutes * 60.0);
    let result = run(&ground, whole, seed);
    for book in &ground.books {
        println!("{} ({:?}): {}", book.name, book.company, book.summary());
    }
    print!("{}", ground.report.details());
    println!("{}", ground.report);
    let well = result.is_ok() && ground.report.violations() == 0;
    drop(ground);
    if !well {
        let kept = work.keep();
        eprintln!("tree and logs are kept: {}", kept.display());
    }
    result.map(|()| well)
}

fn run(ground: &Ground, whole: Duration, seed: u64) -> Result<()> {
    let cast = Cast::new(ground, seed);
    ground.number_documents()?;
    thread::scope(|scope| {
        let mut actors = Vec::new();
        for Actor { name, act } in cast.actors {
            // a failure of the soak itself must not go unnoticed
            let act = move || catch_unwind(AssertUnwindSafe(act)).is_ok();
            actors.push((name, scope.spawn(act)));
        }
        scope.spawn(move || tick(ground, whole));
        let mut order = Rng::new(seed);
        let mut result = Ok(());
        while result.is_ok() && !ground.report.is_over() {
            result = catch_unwind(AssertUnwindSafe(|| {
                chaos::round(ground, &mut order)?;
                settle::settle(ground)
            }))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the soak itself failed")));
        }
        ground.report.ended.store(true, Relaxed);
        for (name, actor) in actors {
            if !actor.join().unwrap_or(false) {
                ground.report.violation(&name, "failed by itself");
            }
        }
        result.and_then(|()| settle::settle(ground))
    })
}

/// Ends it in time, and says how it goes on a terminal.
fn tick(ground: &Ground, whole: Duration) {
    let start = Instant::now();
    let mut told = Instant::now();
    while !ground.report.is_over() {
        thread::sleep(Duration::from_millis(100));
        if start.elapsed() >= whole {
            ground.report.ended.store(true, Relaxed);
        }
        if told.elapsed() >= Duration::from_secs(10) && std::io::stdout().is_terminal() {
            told = Instant::now();
            println!("{} {}", ground.report.now(), ground.report);
        }
    }
}
