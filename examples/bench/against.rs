//! nodbfs against the source itself, against other FUSE file systems that show a directory elsewhere, where they
//! are installed, and against one that does nothing but answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::redis_server::RedisServer;
use crate::report::{Measured, Report};
use crate::rounds::Rounds;
use crate::tree::{Shape, make};
use crate::workloads::{ALL, Before, Workload};
use crate::{Args, document};

/// Others of our kind: how each is started, before mount point and source, and what makes its source writable.
const PEERS: [(&str, &[&str], &str); 3] = [
    ("bindfs", &["-f"], ""),
    ("mergerfs", &["-f", "-o", "cache.files=auto-full"], ""),
    ("unionfs", &["-f"], "=RW"),
];

/// Longer than any of them remembers names and attributes by itself.
const REMEMBERED: Duration = Duration::from_millis(1100);

/// What a FUSE file system costs that has nothing to do.
const BARE: &str = "bare FUSE";

/// Somebody who shows the tree.
struct Candidate {
    name: String,
    root: PathBuf,
    /// Small files that never change are all it has.
    in_memory: bool,
    _daemon: Option<Daemon>,
}

/// Measures every workload on every candidate, in turn.
pub fn run(rounds: &Rounds, work: &Path, shape: &Shape, args: &Args) -> Result<Report> {
    let tree = work.join("measured");
    make(&tree, shape, &document()?)?;
    rustix::fs::sync();
    let server = RedisServer::start();
    let candidates = candidates(work, &tree, &server.unix_url(), &args.mount_option)?;
    let mut report = Report::of(candidates.iter().map(|one| one.name.clone()).collect())?;
    let wanted = |row: &&Workload| {
        let mut texts = args.workload.iter();
        args.workload.is_empty() || texts.any(|text| row.name.contains(text.as_str()))
    };
    for workload in ALL.iter().filter(wanted) {
        let rounds = if workload.long {
            rounds.fewer(3)
        } else {
            rounds.clone()
        };
        let measure = |candidate: &Candidate| -> Result<Duration> {
            let run = || {
                (workload.run)(&candidate.root, shape)
                    .with_context(|| format!("{} with {}", workload.name, candidate.name))
            };
            match workload.before {
                Before::Forget => forget_everything()?,
                Before::Warm => {
                    // what was remembered by chance ends in the middle of it otherwise
                    thread::sleep(REMEMBERED);
                    run()?;
                }
                Before::Nothing => {}
            }
            run()
        };
        let able = |one: &Candidate| workload.in_memory || !one.in_memory;
        let times = rounds.times(candidates.len(), |at| {
            let candidate = &candidates[at];
            able(candidate).then(|| measure(candidate)).transpose()
        })?;
        report.add(Measured::new(workload, &times));
    }
    Ok(report)
}

fn candidates(work: &Path, tree: &Path, redis: &str, options: &[String]) -> Result<Vec<Candidate>> {
    let mut all = vec![Candidate {
        name: "native".to_owned(),
        root: tree.to_owned(),
        in_memory: false,
        _daemon: None,
    }];
    let mut add = |name: &str, daemon: Daemon| {
        all.push(Candidate {
            name: name.to_owned(),
            root: daemon.path().to_owned(),
            in_memory: name == BARE,
            _daemon: Some(daemon),
        });
    };
    let with_redis = [options, &["--redis".to_owned(), redis.to_owned()]].concat();
    add(
        "nodbfs",
        Daemon::nodbfs(tree, work.join("mnt-alone"), options)?,
    );
    add(
        "nodbfs, Redis",
        Daemon::nodbfs(tree, work.join("mnt-with-redis"), &with_redis)?,
    );
    for (name, args, writable) in PEERS {
        // whichever are installed
        if Command::new(name).arg("--help").output().is_ok() {
            let mountpoint = work.join(format!("mnt-{name}"));
            let mut source = tree.as_os_str().to_owned();
            source.push(writable);
            add(name, Daemon::peer(name, args, &source, mountpoint)?);
        }
    }
    add(BARE, Daemon::bare(tree, work.join("mnt-bare"))?);
    Ok(all)
}

/// The kernel drops what it knows of files, and with that the daemons what they know.
pub fn forget_everything() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "2").context("only root may drop the kernel's caches")
}
