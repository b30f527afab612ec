//! What a daemon costs that has only been mounted: memory and the time until the mount answers, for
//! one run and for a tree of thousands.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::against::forget_everything;
use crate::daemon::Daemon;
use crate::rounds::{Ratio, Rounds, Subject};
use crate::sample::{RunOptions, make_run, make_tree};

/// Longer than the daemon waits between two looks at what it may give back.
const FORGOTTEN: Duration = Duration::from_secs(5);

pub fn run(rounds: &Rounds, work: &Path, runs: usize) -> Result<()> {
    let (one, tree) = (work.join("one"), work.join("tree"));
    make_run(&one, &RunOptions::default())?;
    make_tree(&tree, runs, &RunOptions::small())?;
    // the tree's way to the disk is not to be measured
    rustix::fs::sync();
    let mount = |source| Daemon::nodbfs::<&str>(source, work.join("mnt-idle"), &[]);
    let mounting = |source| {
        move || {
            let start = Instant::now();
            let mounted = mount(source)?;
            let time = start.elapsed();
            drop(mounted);
            Ok(time)
        }
    };
    rounds.compare(
        &format!("mounting a tree of {runs} runs"),
        vec![
            Subject::new("one run", mounting(&one)),
            Subject::new("tree", mounting(&tree)),
        ],
        &[Ratio::new(1, 0).goal(1.0)],
    )?;
    let resident = |source| mount(source)?.resident();
    println!(
        "resident after mounting (goal: under 30 MB): one run {}, tree {}",
        resident(&one)?,
        resident(&tree)?
    );
    let walked = mount(&tree)?;
    let files = count(walked.path())?;
    let full = walked.resident()?;
    forget_everything()?;
    // the daemon gives memory back a few seconds after the kernel has forgotten
    sleep(FORGOTTEN);
    println!(
        "after a walk of its {files} files {full}, and when the kernel has forgotten them {}\n",
        walked.resident()?
    );
    Ok(())
}

/// How many names there are below `dir`, each asked for its attributes.
fn count(dir: &Path) -> Result<usize> {
    let mut names = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        names += 1;
        if entry.metadata()?.is_dir() {
            names += count(&entry.path())?;
        }
    }
    Ok(names)
}
