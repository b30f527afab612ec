//! What nodbfs costs: every figure is a ratio of things measured side by side, in turn, in the same
//! run, so that it holds on a machine whose speed drifts.
//!
//! `scripts/bench`, or `cargo build --release && cargo run --release --example bench`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGINT, SIGTERM};

mod against;
mod bare;
mod commits;
mod daemon;
mod idle;
mod news;
mod reads;
#[path = "../../tests/common/redis.rs"]
mod redis_server;
mod report;
mod rounds;
#[path = "../../tests/common/sample/mod.rs"]
#[allow(dead_code)] // shared with the tests, which use more of it
mod sample;
mod tree;
mod workloads;

use daemon::Daemon;
use redis_server::RedisServer;
use rounds::Rounds;
use sample::{Rng, RunOptions, make_run};
use tree::Shape;

/// Measures nodbfs against a bare FUSE file system, against the bare system calls and against the
/// source itself, in turn, and prints ratios.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// How often each of the things compared is measured
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Only the groups named: read, commit, news, idle, against
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<String>,
    /// Only the workloads of the group against whose names contain TEXT
    #[arg(long, value_name = "TEXT")]
    workload: Vec<String>,
    /// An eighth of the large workloads
    #[arg(long)]
    quick: bool,
    /// Write the group against as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the group against as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Runs of the large tree of the group idle
    #[arg(long, default_value_t = 10_000)]
    runs: usize,
    /// Keep the client, the daemons and redis-server on one core
    #[arg(long)]
    pin: bool,
    /// Where to work; not a tmpfs, for commits are about durability [default: the target directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// More options of `nodbfs mount`, such as --mount-option=--log-level=trace
    #[arg(long, value_name = "OPTION")]
    mount_option: Vec<String>,
    /// Serve this directory through the bare FUSE file system, at this mount point
    #[arg(long, hide = true, num_args = 2)]
    serve_bare: Option<Vec<PathBuf>>,
}

/// The size of the controller that is read and committed, in bytes.
const SIZE: usize = 20 << 10;

/// Its name.
const CONTROLLER: &str = "watershed.nodb";

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some([source, mountpoint]) = args.serve_bare.as_deref() {
        return bare::serve(source, mountpoint);
    }
    if args.pin {
        let mut one = CpuSet::new();
        one.set(0);
        // whatever is started later inherits it
        sched_setaffinity(None, &one).context("cannot stay on one core")?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let target = daemon::target_dir()?;
    let work = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(args.dir.as_ref().unwrap_or(&target))
        .context("no directory to work in")?;
    println!(
        "{} rounds, {}; in {}",
        args.rounds,
        if args.pin {
            "all on one core"
        } else {
            "no core pinned"
        },
        file_system(work.path())?
    );
    println!(
        "ratio: the median of the rounds (and what half of them lie in); the times are an aside\n"
    );
    let rounds = Rounds::new(args.rounds, interrupted);
    let wanted = |group: &str| args.only.is_empty() || args.only.iter().any(|only| only == group);
    if ["read", "commit", "news"].into_iter().any(wanted) {
        let bench = Bench::new(work.path(), &args.mount_option)?;
        if wanted("read") {
            reads::run(&rounds, &bench)?;
        }
        if wanted("commit") {
            commits::run(&rounds, &bench)?;
        }
        if wanted("news") {
            news::run(&rounds, &bench)?;
        }
        println!(
            "resident after all that: embedded {}, redis {}\n",
            bench.embedded.resident()?,
            bench.redis.resident()?
        );
    }
    if wanted("idle") {
        idle::run(&rounds, work.path(), args.runs)?;
    }
    if wanted("against") {
        let shape = if args.quick {
            Shape::QUICK
        } else {
            Shape::WHOLE
        };
        let report = against::run(&rounds, work.path(), &shape, &args)?;
        if let Some(path) = &args.json {
            report.write_json(path)?;
        }
        if let Some(path) = &args.plot {
            report.draw(path)?;
        }
    }
    Ok(())
}

/// The mounts that are measured, and what lies below them.
pub struct Bench {
    // daemons before what they serve: fields are dropped in order
    pub embedded: Daemon,
    pub redis: Daemon,
    pub bare: Daemon,
    /// Another one: its ratio to the first shows what the machine's noise alone makes of equals.
    pub twin: Daemon,
    pub server: RedisServer,
    /// The source of the embedded mount.
    pub source: PathBuf,
    /// The source of the mount with Redis.
    pub shared: PathBuf,
    /// A directory on the same file system, for bare system calls.
    pub native: PathBuf,
    /// The content of the controller.
    pub document: Vec<u8>,
    with_redis: Vec<String>,
}

impl Bench {
    fn new(work: &Path, options: &[String]) -> Result<Self> {
        let run = RunOptions {
            hillslopes: 500,
            ..RunOptions::default()
        };
        let dirs = ["embedded", "redis", "native"].map(|name| work.join(name));
        let [source, shared, native] = dirs;
        make_run(&source, &run)?;
        make_run(&shared, &RunOptions::small())?;
        fs::create_dir(&native)?;
        let document = document()?;
        for dir in [&source, &shared, &native] {
            fs::write(dir.join(CONTROLLER), &document)?;
        }
        let server = RedisServer::start();
        let bare = Daemon::bare(&native, work.join("mnt-bare"))?;
        let twin = Daemon::bare(&native, work.join("mnt-twin"))?;
        let embedded = Daemon::nodbfs(&source, work.join("mnt-embedded"), options)?;
        let with_redis = [options, &["--redis".to_owned(), server.unix_url()]].concat();
        let redis = Daemon::nodbfs(&shared, work.join("mnt-redis"), &with_redis)?;
        Ok(Self {
            embedded,
            redis,
            bare,
            twin,
            server,
            source,
            shared,
            native,
            document,
            with_redis,
        })
    }

    /// One more mount of the source with Redis, which, unlike the embedded one, may have several.
    pub fn again(&self, options: &[&str]) -> Result<Daemon> {
        let options = options.iter().map(|&option| option.to_owned());
        Daemon::nodbfs(
            &self.shared,
            self.shared.with_file_name("mnt-again"),
            &options.chain(self.with_redis.clone()).collect::<Vec<_>>(),
        )
    }
}

/// A controller's content of [`SIZE`] bytes.
fn document() -> Result<Vec<u8>> {
    let of_20 = RunOptions::default();
    let known_as = "/geodata/weppcloud_runs/be/bench-run";
    let document = sample::document("watershed", known_as, &of_20, &mut Rng::new(1));
    let mut document = document.into_bytes();
    ensure!(document.len() <= SIZE, "{CONTROLLER} has outgrown SIZE");
    // white space behind a document belongs to it
    document.resize(SIZE, b' ');
    Ok(document)
}

/// Device and type of the file system that `dir` is on.
fn file_system(dir: &Path) -> Result<String> {
    let mut findmnt = Command::new("findmnt");
    findmnt
        .args(["-no", "FSTYPE,SOURCE,OPTIONS", "--target"])
        .arg(dir);
    let found = findmnt.output().context("no findmnt")?.stdout;
    let found = String::from_utf8_lossy(&found);
    Ok(found.split_whitespace().collect::<Vec<_>>().join(" "))
}
