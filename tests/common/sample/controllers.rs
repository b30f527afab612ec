//! The controllers of a run, in both layouts that are in the field (PROTOCOL.md 1).

use super::json::{Json, list, map, tuple};
use super::rng::Rng;
use super::{Layout, RunOptions};

/// The controllers of a whole run, in the order in which a run gets them.
pub const FULL: [&str; 13] = [
    "ron",
    "climate",
    "watershed",
    "landuse",
    "soils",
    "wepp",
    "topaz",
    "disturbed",
    "ash",
    "unitizer",
    "redisprep",
    "observed",
    "omni",
];

/// The controllers that a child run has of its own; the others are symlinks to the parent's.
pub const CHILD: [&str; 5] = ["ron", "landuse", "soils", "wepp", "disturbed"];

/// The controllers of one small run among thousands.
pub const SMALL: [&str; 5] = ["ron", "climate", "watershed", "wepp", "unitizer"];

/// The Python class that the document names.
fn class(controller: &str) -> &'static str {
    match controller {
        "ron" => "wepppy.nodb.core.ron.Ron",
        "climate" => "wepppy.nodb.core.climate.Climate",
        "watershed" => "wepppy.nodb.core.watershed.Watershed",
        "landuse" => "wepppy.nodb.core.landuse.Landuse",
        "soils" => "wepppy.nodb.core.soils.Soils",
        "wepp" => "wepppy.nodb.core.wepp.Wepp",
        "topaz" => "wepppy.nodb.core.topaz.Topaz",
        "disturbed" => "wepppy.nodb.mods.disturbed.disturbed.Disturbed",
        "ash" => "wepppy.nodb.mods.ash_transport.ash.Ash",
        "unitizer" => "wepppy.nodb.unitizer.Unitizer",
        "redisprep" => "wepppy.nodb.redis_prep.RedisPrep",
        "observed" => "wepppy.nodb.mods.observed.observed.Observed",
        "omni" => "wepppy.nodb.mods.omni.omni.Omni",
        "batch_runner" => "wepppy.nodb.batch_runner.BatchRunner",
        _ => "wepppy.nodb.base.NoDbBase",
    }
}

/// One controller's document, as NoDb would have left it on disk. `known_as` is the run's
/// directory as NoDb processes name it.
pub fn document(controller: &str, known_as: &str, options: &RunOptions, rng: &mut Rng) -> String {
    let mut state = vec![
        ("wd".to_owned(), known_as.into()),
        ("_config".to_owned(), "disturbed9002.cfg".into()),
        ("_mods".to_owned(), list(["disturbed", "ash", "omni"])),
    ];
    if let Some((group, name)) = &options.group {
        state.push(("_run_group".to_owned(), group.as_str().into()));
        state.push(("_group_name".to_owned(), name.as_str().into()));
    }
    if let Some(parent) = &options.parent {
        state.push(("_parent_wd".to_owned(), parent.as_str().into()));
    }
    if let Json::Map(members) = own_state(controller, options, rng) {
        state.extend(members);
    }
    if options.large && controller == "watershed" {
        state.push(("_flowpath_summary".to_owned(), table(LARGE_ROWS, rng)));
    }

    // The signature on disk is the previous generation's: some document, some time ago.
    let mtime = rng.int(1_745_000_000, 1_760_000_000) as f64 + rng.int(0, 1_000_000) as f64 / 1e6;
    let signature = [
        ("_nodb_mtime".to_owned(), mtime.into()),
        ("_nodb_size".to_owned(), rng.int(1_000, 50_000).into()),
    ];
    let object = ("py/object".to_owned(), class(controller).into());
    let document = match options.layout.of(controller) {
        Layout::Old => {
            // the oldest documents know no signature at all
            let signature = signature
                .into_iter()
                .filter(|_| position(controller) % 4 == 1);
            Json::Map([object].into_iter().chain(state).chain(signature).collect())
        }
        Layout::Mixed => {
            // where both are there, py/state wins
            let stale = (
                "results".to_owned(),
                "left over from an older layout".into(),
            );
            state.extend(signature);
            Json::Map(vec![
                object,
                stale,
                ("py/state".to_owned(), Json::Map(state)),
            ])
        }
        Layout::Modern => {
            state.extend(signature);
            Json::Map(vec![object, ("py/state".to_owned(), Json::Map(state))])
        }
    };
    document.encode()
}

impl Layout {
    /// The layout of one controller's document. In a mixed run both kinds lie side by side, and
    /// one document (`observed`) is of both kinds at once, here `Mixed`.
    fn of(self, controller: &str) -> Self {
        match (self, controller) {
            (Self::Mixed, "observed") => Self::Mixed,
            (Self::Mixed, _) if position(controller) % 2 == 1 => Self::Old,
            (Self::Mixed, _) => Self::Modern,
            (layout, _) => layout,
        }
    }
}

/// Where a controller stands in a run, so that neighbours in the list differ.
fn position(controller: &str) -> usize {
    FULL.iter()
        .position(|name| *name == controller)
        .unwrap_or(FULL.len())
}

/// Some 700 kB, the largest controller seen in the field.
const LARGE_ROWS: usize = 4_800;

/// The fields that only this controller has.
fn own_state(controller: &str, options: &RunOptions, rng: &mut Rng) -> Json {
    // a run of realistic size holds documents of up to 50 kB, one among thousands holds small ones
    let rows = match options.hillslopes {
        0 => 12,
        hillslopes => hillslopes.clamp(120, 300),
    };
    match controller {
        "ron" => ron(options, rng),
        "climate" => climate(rng),
        "watershed" => map([
            (
                "_delineation_backend",
                enumeration("wepppy.nodb.core.watershed.DelineationBackend", 1),
            ),
            ("_csa", 5.into()),
            ("_mcl", 60.into()),
            ("_sub_n", (options.hillslopes as i64).into()),
            ("_wsarea", rng.real(1e5, 9e6).into()),
            (
                "_centroid",
                tuple([rng.real(-121.0, -119.0), rng.real(38.0, 40.0)]),
            ),
            ("_outlet_top_id", Json::Null),
            ("_slopes", table(rows, rng)),
        ]),
        "landuse" => map([
            (
                "_mode",
                enumeration("wepppy.nodb.core.landuse.LanduseMode", 0),
            ),
            (
                "domlc_d",
                map((0..rows).map(|i| (top_id(i), rng.pick(&["42", "52", "71", "43"]).into()))),
            ),
            (
                "managements",
                map([("42", management()), ("52", management())]),
            ),
        ]),
        "soils" => map([
            ("_mode", enumeration("wepppy.nodb.core.soils.SoilsMode", 0)),
            ("_ksflag", true.into()),
            ("_initial_sat", 0.75.into()),
            (
                "ssurgo_domsoil_d",
                map((0..rows).map(|i| (top_id(i), rng.int(400_000, 3_200_000).to_string().into()))),
            ),
            (
                "soils",
                map((0..rows / 4).map(|i| (format!("{}", 485_000 + i), soil(rng)))),
            ),
        ]),
        "wepp" => map([
            (
                "phosphorus_opts",
                opts(
                    "PhosphorusOpts",
                    [("surf_runoff", 0.004), ("lateral_flow", 0.005)],
                ),
            ),
            (
                "snow_opts",
                opts(
                    "SnowOpts",
                    [("rst", 0.0), ("newsnw", 100.0), ("ssd", 250.0)],
                ),
            ),
            (
                "baseflow_opts",
                opts("BaseflowOpts", [("gwstorage", 200.0), ("bfcoeff", 0.04)]),
            ),
            ("_channel_erodibility", 1e-06.into()),
            ("_channel_critical_shear", 19.0.into()),
            ("_kslast", Json::Null),
            ("_wepp_bin", "wepp_260803".into()),
            ("_run_pmet", true.into()),
            ("_multi_ofe", false.into()),
            ("_counter", 0.into()),
        ]),
        "topaz" => map([
            ("csa", 5.into()),
            ("mcl", 60.into()),
            ("num_cols", 179.into()),
            ("num_rows", 167.into()),
            ("cellsize", 30.0.into()),
            (
                "_utmproj4",
                "+proj=utm +zone=10 +datum=WGS84 +units=m +no_defs".into(),
            ),
            (
                "_utmextent",
                tuple([746_128.0, 4_319_283.0, 751_498.0, 4_324_293.0]),
            ),
        ]),
        "disturbed" => map([
            ("_disturbed_fn", Json::Null),
            ("_breaks", list([0, 75, 109, 187])),
            (
                "_counts",
                map([("No Burn", 1_021.into()), ("High Severity Burn", 37.into())]),
            ),
            ("_h0_max_om", Json::Null),
            ("_sol_ver", 7778.0.into()),
        ]),
        "ash" => map([
            (
                "fire_date",
                map([
                    (
                        "py/object",
                        "wepppy.all_your_base.dateutils.YearlessDate".into(),
                    ),
                    ("month", 8.into()),
                    ("day", 4.into()),
                ]),
            ),
            ("_reservoir_capacity_m3", 1_000_000.into()),
            (
                "_ash_load_d",
                map((0..rows).map(|i| (top_id(i), rng.real(0.0, 12.0).into()))),
            ),
        ]),
        "unitizer" => map([(
            "_preferences",
            map([
                ("temperature", "degf".into()),
                ("distance", "mi".into()),
                ("area", "acre".into()),
                ("volume", "ft^3".into()),
                ("xs-surface-density", "lb/acre,3".into()),
            ]),
        )]),
        "redisprep" => map([
            ("_sbs_required", false.into()),
            (
                "_timestamps",
                map([
                    ("build_climate", 1_760_861_928.into()),
                    ("run_wepp", 1_760_862_091.into()),
                ]),
            ),
        ]),
        "observed" => observed(),
        "omni" => map([
            (
                "_scenarios",
                list(options.children.iter().map(|name| {
                    map([
                        ("type", name.as_str().into()),
                        ("wd", format!("_pups/omni/scenarios/{name}").into()),
                    ])
                })),
            ),
            ("_contrasts", Json::Null),
        ]),
        _ => map([("_created", 1_760_861_900.into())]),
    }
}

fn ron(options: &RunOptions, rng: &mut Rng) -> Json {
    let (x, y) = (rng.real(-121.0, -119.0), rng.real(38.0, 40.0));
    map([
        ("_configname", "Disturbed".into()),
        ("_name", "Café Creek — \u{6771}\u{4eac} \u{1f525}".into()),
        ("_scenario", "".into()),
        ("_cellsize", 30.0.into()),
        ("_dem_db", "ned1/2016".into()),
        ("_readonly", options.readonly.into()),
        (
            "_map",
            map([
                ("py/object", "wepppy.nodb.core.ron.Map".into()),
                ("extent", list([x - 0.03, y - 0.02, x + 0.03, y + 0.02])),
                ("center", list([x, y])),
                ("zoom", 14.into()),
                ("_num_cols", 179.into()),
                ("_num_rows", 167.into()),
            ]),
        ),
        ("_locales", tuple(["us"])),
    ])
}

fn climate(rng: &mut Rng) -> Json {
    let mut monthly = |low, high| list((0..12).map(|_| rng.real(low, high)).collect::<Vec<_>>());
    map([
        ("_input_years", 100.into()),
        ("_climatestation", "nv263205".into()),
        (
            "_climate_mode",
            enumeration("wepppy.nodb.core.climate.ClimateMode", 0),
        ),
        ("_ss_storm_date", "4 15 01".into()),
        (
            "monthlies",
            map([
                ("nwds", monthly(1.0, 8.0)),
                ("ppts", monthly(0.1, 3.0)),
                ("tmaxs", monthly(40.0, 80.0)),
                ("tmins", monthly(10.0, 50.0)),
            ]),
        ),
        ("cli_fn", "wepp.cli".into()),
        ("par_fn", "nv263205.par".into()),
        ("_cligen_seed", Json::Null),
        (
            "_station_notes",
            (0..40)
                .map(|i| format!("month {i}: partly \"estimated\"\t\n"))
                .collect::<String>()
                .into(),
        ),
    ])
}

/// Everything that is legal in Python's dialect and breaks lesser parsers.
fn observed() -> Json {
    map([(
        "results",
        map([
            ("nse", f64::NAN.into()),
            ("kge", f64::INFINITY.into()),
            ("pbias", f64::NEG_INFINITY.into()),
            ("residual", Json::Raw("-0.0")),
            ("large", 1.5e300.into()),
            ("seed", Json::Raw("340282366920938463463374607431768211456")),
            ("station", Json::Raw(r#""half a pair: \ud83d""#)),
            ("", "the key is empty, this is a DEL: \u{7f}".into()),
        ]),
    )])
}

fn enumeration(class: &str, value: i64) -> Json {
    map([(
        "py/reduce",
        Json::List(vec![map([("py/type", class.into())]), tuple([value])]),
    )])
}

fn opts<const N: usize>(class: &str, values: [(&str, f64); N]) -> Json {
    let object = ("py/object", format!("wepppy.nodb.core.wepp.{class}").into());
    map([object]
        .into_iter()
        .chain(values.map(|(k, v)| (k, v.into()))))
}

fn management() -> Json {
    map([
        (
            "py/object",
            "wepppy.wepp.management.managements.ManagementSummary".into(),
        ),
        ("key", 42.into()),
        ("man_fn", "GeoWEPP/Forest.man".into()),
        ("desc", "Evergreen Forest".into()),
        ("color", tuple([28, 99, 48, 255])),
        ("area", Json::Null),
        ("cancov_override", Json::Null),
    ])
}

fn soil(rng: &mut Rng) -> Json {
    map([
        ("py/object", "wepppy.soils.ssurgo.SoilSummary".into()),
        ("mukey", rng.int(400_000, 3_200_000).to_string().into()),
        (
            "desc",
            rng.pick(&[
                "Tahoma-Jorge complex",
                "Meeks gravelly loamy coarse sand",
                "Ellispeak-Rock outcrop",
            ])
            .into(),
        ),
        ("area", rng.real(1e3, 1e6).into()),
        ("pct_coverage", rng.real(0.0, 100.0).into()),
    ])
}

/// Rows as a watershed keeps them, one per hillslope.
fn table(rows: usize, rng: &mut Rng) -> Json {
    map((0..rows).map(|i| {
        let row = map([
            ("length", rng.real(30.0, 400.0).into()),
            ("width", rng.real(20.0, 300.0).into()),
            ("aspect", rng.real(0.0, 360.0).into()),
            ("slope", rng.real(0.0, 1.0).into()),
            ("area", rng.int(900, 90_000).into()),
        ]);
        (top_id(i), row)
    }))
}

/// TOPAZ numbers hillslopes by their channel: they end in 1, 2 or 3.
pub fn top_id(i: usize) -> String {
    format!("{}{}", i / 3 + 2, i % 3 + 1)
}
