//! What a daemon costs that has only been mounted: memory and the time until the mount answers, for
//! one run and for a tree of thousands.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::rounds::{Ratio, Rounds, Subject};
use crate::sample::{RunOptions, make_run, make_tree};

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
        "resident after mounting (goal: under 30 MB): one run {}, tree {}\n",
        resident(&one)?,
        resident(&tree)?
    );
    Ok(())
}
