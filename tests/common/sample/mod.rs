//! The run generator: makes runs of any size, as WEPPcloud lays them out (PROTOCOL.md 1). The same
//! options make the same bytes, always. Used by the tests and by `examples/sample-run.rs`.

mod controllers;
mod json;
mod rng;
mod wepp;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub use controllers::{CHILD, FULL, SMALL, document, top_id};
pub use rng::Rng;

/// How the state lies in a controller's document (PROTOCOL.md 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Beside `"py/object"`.
    Old,
    /// Inside `"py/state"`.
    Modern,
    /// Both kinds side by side, and one document that is both at once.
    Mixed,
}

/// What a run holds.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Each adds five input and four output files.
    pub hillslopes: usize,
    /// About the size of `dem/dem.tif`, in bytes; 0 for none.
    pub raster_bytes: u64,
    pub layout: Layout,
    /// Names of child runs under `_pups/omni/scenarios`.
    pub children: Vec<String>,
    /// Makes `watershed.nodb` about 700 kB.
    pub large: bool,
    /// Sets the `READONLY` marker.
    pub readonly: bool,
    /// The run's directory as NoDb processes name it; the directory itself if there is none.
    pub known_as: Option<PathBuf>,
    /// `_run_group` and `_group_name`.
    pub group: Option<(String, String)>,
    /// `_parent_wd` of a child run.
    pub parent: Option<String>,
    /// Which controllers.
    pub controllers: Vec<&'static str>,
    pub seed: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            hillslopes: 20,
            raster_bytes: 1 << 20,
            layout: Layout::Mixed,
            children: vec!["uniform_low".to_owned()],
            large: false,
            readonly: false,
            known_as: None,
            group: None,
            parent: None,
            controllers: FULL.to_vec(),
            seed: 1,
        }
    }
}

impl RunOptions {
    /// One small run among thousands: a handful of controllers and little else.
    pub fn small() -> Self {
        Self {
            hillslopes: 0,
            raster_bytes: 0,
            children: Vec::new(),
            controllers: SMALL.to_vec(),
            ..Self::default()
        }
    }
}

/// Makes one run in `dir`, which may exist; files of the same names are overwritten.
pub fn make_run(dir: &Path, options: &RunOptions) -> io::Result<()> {
    let known_as = match &options.known_as {
        Some(path) => path.clone(),
        None => std::path::absolute(dir)?,
    };
    let known_as = known_as.to_string_lossy().into_owned();
    let mut rng = Rng::new(options.seed);
    fs::create_dir_all(dir)?;
    for controller in &options.controllers {
        let text = document(controller, &known_as, options, &mut rng);
        fs::write(dir.join(format!("{controller}.nodb")), text)?;
    }
    fs::write(dir.join("nodb.version"), "1000\n")?;
    fs::write(dir.join("redisprep.dump"), redisprep())?;
    if options.readonly {
        fs::write(dir.join("READONLY"), "")?;
    }
    logs(dir, &known_as, options)?;
    if options.raster_bytes > 0 {
        fs::create_dir_all(dir.join("dem"))?;
        wepp::raster(&dir.join("dem/dem.tif"), options.raster_bytes, &mut rng)?;
    }
    if options.hillslopes > 0 {
        hillslopes(dir, options, &mut rng)?;
    }
    for (i, name) in options.children.iter().enumerate() {
        child(dir, &known_as, name, i as u64 + 1, options)?;
    }
    Ok(())
}

/// Makes `count` runs below `root`, each in `<first two characters of runid>/<runid>/`, and returns
/// their runids.
pub fn make_tree(root: &Path, count: usize, options: &RunOptions) -> io::Result<Vec<String>> {
    let runids: Vec<String> = (0..count).map(|i| runid(options.seed, i)).collect();
    for (i, runid) in runids.iter().enumerate() {
        let place = Path::new(&runid[..2]).join(runid);
        let options = RunOptions {
            known_as: options.known_as.as_ref().map(|root| root.join(&place)),
            seed: options.seed.wrapping_add(i as u64),
            ..options.clone()
        };
        make_run(&root.join(place), &options)?;
    }
    Ok(runids)
}

/// Makes the batch `root/batch/<name>` with its `_base` and `count` runs, and returns their names.
pub fn make_batch(
    root: &Path,
    name: &str,
    count: usize,
    options: &RunOptions,
) -> io::Result<Vec<String>> {
    let place = Path::new("batch").join(name);
    let known_root = match &options.known_as {
        Some(root) => root.clone(),
        None => std::path::absolute(root)?,
    };
    let at = |below: &Path, group: Option<&str>, seed: u64| RunOptions {
        known_as: Some(known_root.join(&place).join(below)),
        group: group.map(|group| (group.to_owned(), name.to_owned())),
        seed: options.seed.wrapping_add(seed),
        ..options.clone()
    };
    let base = Path::new("_base");
    make_run(&root.join(&place).join(base), &at(base, None, 0))?;
    let runner = at(Path::new(""), None, 0);
    let known_as = known_root.join(&place).to_string_lossy().into_owned();
    let text = document(
        "batch_runner",
        &known_as,
        &runner,
        &mut Rng::new(options.seed),
    );
    fs::write(root.join(&place).join("batch_runner.nodb"), text)?;
    let runs: Vec<String> = (1..=count).map(|i| format!("run-{i:03}")).collect();
    for (i, run) in runs.iter().enumerate() {
        let below = Path::new("runs").join(run);
        make_run(
            &root.join(&place).join(&below),
            &at(&below, Some("batch"), i as u64 + 1),
        )?;
    }
    Ok(runs)
}

/// A child run: its own controllers, the parent's `climate` and `watershed` by symlink.
fn child(
    parent: &Path,
    known_as: &str,
    name: &str,
    seed: u64,
    options: &RunOptions,
) -> io::Result<()> {
    let below = format!("_pups/omni/scenarios/{name}");
    let dir = parent.join(&below);
    let child = RunOptions {
        hillslopes: options.hillslopes.min(5),
        raster_bytes: 0,
        children: Vec::new(),
        readonly: false,
        known_as: Some(Path::new(known_as).join(&below)),
        parent: Some(known_as.to_owned()),
        controllers: CHILD.to_vec(),
        seed: options.seed.wrapping_add(seed << 32),
        ..options.clone()
    };
    make_run(&dir, &child)?;
    for shared in ["climate.nodb", "watershed.nodb", "climate"] {
        // relative, so that they resolve in the source and in every mount of it
        match symlink(Path::new("../../../..").join(shared), dir.join(shared)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}

fn hillslopes(dir: &Path, options: &RunOptions, rng: &mut Rng) -> io::Result<()> {
    let (runs, output) = (dir.join("wepp/runs"), dir.join("wepp/output"));
    fs::create_dir_all(&runs)?;
    fs::create_dir_all(&output)?;
    for i in 1..=options.hillslopes {
        for (extension, text) in wepp::inputs(i, rng) {
            fs::write(runs.join(format!("p{i}.{extension}")), text)?;
        }
        for (name, text) in wepp::outputs(i, rng) {
            fs::write(output.join(name), text)?;
        }
    }
    Ok(())
}

/// The logs that NoDb processes leave behind (PROTOCOL.md 1), and a directory for children to link to.
fn logs(dir: &Path, known_as: &str, options: &RunOptions) -> io::Result<()> {
    let runid = known_as.rsplit('/').next().unwrap_or(known_as);
    let line = |second: usize, controller: &str, message: &str| {
        format!(
            "2026-05-04 10:{:02}:{:02} [INFO] wepppy.run.{runid}.{controller}: {message}\n",
            second / 60,
            second % 60
        )
    };
    let climate = [
        "Build Climates",
        "running vanilla",
        "building climate_artifacts",
        "Climate build complete",
    ];
    let climate = climate
        .iter()
        .enumerate()
        .map(|(i, message)| line(i, "climate", message));
    fs::write(dir.join("climate.log"), climate.collect::<String>())?;
    if options.controllers.len() > SMALL.len() {
        let wepp = (1..=options.hillslopes).map(|i| {
            line(
                60 + i,
                "wepp",
                &format!("running hillslope p{i} ({})", top_id(i)),
            )
        });
        fs::write(dir.join("wepp.log"), wepp.collect::<String>())?;
        fs::write(dir.join("exceptions.log"), "")?;
        fs::create_dir_all(dir.join("climate"))?;
        fs::write(
            dir.join("climate/nv263205.par"),
            " TAHOE CITY CA            048758 0\n",
        )?;
    }
    Ok(())
}

/// The run's Redis hash without its `locked:*` fields.
fn redisprep() -> String {
    json::map([
        ("timestamps:build_climate", "1760861928".into()),
        ("timestamps:run_wepp", "1760862091".into()),
        ("attrs:has_sbs", "false".into()),
        ("last_modified", "1760862091".into()),
    ])
    .encode()
}

/// Two words, as WEPPcloud names its runs; the number keeps them apart.
fn runid(seed: u64, i: usize) -> String {
    const FIRST: [&str; 12] = [
        "mercuric",
        "ventilated",
        "austere",
        "brackish",
        "cerulean",
        "dulcet",
        "errant",
        "fluvial",
        "gelid",
        "hoary",
        "inky",
        "jovial",
    ];
    const SECOND: [&str; 8] = [
        "subcontract",
        "gag",
        "ridge",
        "thicket",
        "outlet",
        "flume",
        "scarp",
        "talus",
    ];
    let mut rng = Rng::new(seed ^ (i as u64) << 20);
    format!("{}-{}-{i}", rng.pick(&FIRST), rng.pick(&SECOND))
}
