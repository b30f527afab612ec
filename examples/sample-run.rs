//! Makes a sample run, a batch or a whole tree of runs, of any size.
//!
//! `cargo run --example sample-run -- --hillslopes 500 /tmp/run`

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

#[path = "../tests/common/sample/mod.rs"]
#[allow(dead_code)] // shared with the tests, which use more of it
mod sample;

use sample::{Layout, RunOptions, make_batch, make_run, make_tree};

/// Makes a sample run as WEPPcloud lays it out. The same options make the same bytes.
#[derive(Parser)]
#[command(name = "sample-run")]
struct Args {
    /// Hillslopes of each run: five input and four output files each [default: 20; with --runs: 0]
    #[arg(long, value_name = "N")]
    hillslopes: Option<usize>,
    /// Size of dem/dem.tif in bytes, 0 for none [default: 1 MiB; with --runs: 0]
    #[arg(long, value_name = "BYTES")]
    raster: Option<u64>,
    /// How the controllers' state lies in their documents
    #[arg(long, value_enum, default_value = "mixed")]
    layout: Layout,
    /// Child runs under _pups/omni/scenarios; may be repeated [default: uniform_low; with --runs: none]
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Make watershed.nodb about 700 kB
    #[arg(long)]
    large: bool,
    /// Set the READONLY marker
    #[arg(long)]
    readonly: bool,
    /// The path by which NoDb processes know DIR
    #[arg(long, value_name = "PATH")]
    known_as: Option<PathBuf>,
    /// Make a tree of N small runs, <two characters>/<runid>/
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Make the batch DIR/batch/NAME of --runs runs [default: 3]
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Another seed makes another run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where; made if it is not there
    dir: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let several = args.runs.is_some() || args.batch.is_some();
    let base = if several {
        RunOptions::small()
    } else {
        RunOptions::default()
    };
    let options = RunOptions {
        hillslopes: args.hillslopes.unwrap_or(base.hillslopes),
        raster_bytes: args.raster.unwrap_or(base.raster_bytes),
        children: if args.scenarios.is_empty() {
            base.children
        } else {
            args.scenarios
        },
        layout: args.layout,
        large: args.large,
        readonly: args.readonly,
        known_as: args.known_as,
        seed: args.seed,
        ..base
    };
    match (args.batch, args.runs) {
        (Some(name), runs) => make_batch(&args.dir, &name, runs.unwrap_or(3), &options).map(drop),
        (None, Some(runs)) => make_tree(&args.dir, runs, &options).map(drop),
        (None, None) => make_run(&args.dir, &options),
    }
    .with_context(|| format!("cannot make the run in {}", args.dir.display()))
}
