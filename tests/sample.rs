//! The run generator: what it makes is what the field has (PROTOCOL.md 1).

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::files_below;
use common::sample::{CHILD, FULL, Layout, RunOptions, SMALL, make_batch, make_run, make_tree};

/// Python reads every document and would write it again byte for byte; prints how many there are.
const CHECK: &str = r#"
import json, sys
for name in sys.argv[1:]:
    data = open(name, "rb").read()
    assert json.dumps(json.loads(data)).encode() == data, name
    print(name)
"#;

fn python(args: &[&str]) -> String {
    let output = Command::new("python3")
        .arg("-c")
        .args(args)
        .output()
        .expect("python3 is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn check_documents(dir: &Path, expected: usize) {
    let files = files_below(dir, ".nodb");
    let names: Vec<&str> = files
        .iter()
        .map(|path| path.to_str().expect("UTF-8"))
        .collect();
    let checked = python(&[&[CHECK], names.as_slice()].concat());
    assert_eq!(checked.lines().count(), expected);
}

#[test]
fn every_document_is_what_python_writes() {
    for layout in [Layout::Old, Layout::Modern, Layout::Mixed] {
        let dir = tempfile::tempdir().unwrap();
        let options = RunOptions {
            layout,
            large: true,
            ..RunOptions::default()
        };
        make_run(dir.path(), &options).unwrap();
        // the child's own, and its two symlinks
        check_documents(dir.path(), FULL.len() + CHILD.len() + 2);
        let watershed = fs::metadata(dir.path().join("watershed.nodb"))
            .unwrap()
            .len();
        assert!((600_000..900_000).contains(&watershed), "{watershed} bytes");
    }
}

#[test]
fn layouts_differ_in_where_the_state_lies() {
    let count = |layout| {
        let dir = tempfile::tempdir().unwrap();
        make_run(
            dir.path(),
            &RunOptions {
                layout,
                ..RunOptions::default()
            },
        )
        .unwrap();
        let files = files_below(dir.path(), ".nodb");
        files
            .iter()
            .filter(|path| fs::read_to_string(path).unwrap().contains("\"py/state\""))
            .count()
    };
    let all = FULL.len() + CHILD.len() + 2;
    assert_eq!(count(Layout::Old), 0);
    assert_eq!(count(Layout::Modern), all);
    assert!((1..all).contains(&count(Layout::Mixed)));
}

#[test]
fn a_childs_symlinks_lead_to_the_parents_files() {
    let dir = tempfile::tempdir().unwrap();
    make_run(dir.path(), &RunOptions::default()).unwrap();
    let child = dir.path().join("_pups/omni/scenarios/uniform_low");
    for name in ["climate.nodb", "watershed.nodb", "climate"] {
        assert!(child.join(name).is_symlink(), "{name}");
        let parents = dir.path().join(name).canonicalize().unwrap();
        assert_eq!(child.join(name).canonicalize().unwrap(), parents);
    }
    let wepp = fs::read_to_string(child.join("wepp.nodb")).unwrap();
    assert!(wepp.contains(&format!("\"_parent_wd\": \"{}\"", dir.path().display())));
}

#[test]
fn the_same_options_make_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = RunOptions {
        known_as: Some("/wc1/runs/sa/sample".into()),
        ..RunOptions::default()
    };
    make_run(one.path(), &options).unwrap();
    make_run(two.path(), &options).unwrap();
    let differ = Command::new("diff")
        .arg("-r")
        .arg(one.path())
        .arg(two.path())
        .output()
        .unwrap();
    assert!(
        differ.status.success(),
        "{}",
        String::from_utf8_lossy(&differ.stdout)
    );
}

#[test]
fn a_run_holds_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let options = RunOptions {
        hillslopes: 3,
        readonly: true,
        ..RunOptions::default()
    };
    make_run(dir.path(), &options).unwrap();
    let names = |below: &str| files_below(&dir.path().join(below), "").len();
    assert_eq!(names("wepp/runs"), 3 * 5);
    assert_eq!(names("wepp/output"), 3 * 4);
    assert!(dir.path().join("READONLY").exists());
    assert!(
        !dir.path()
            .join("_pups/omni/scenarios/uniform_low/READONLY")
            .exists()
    );
    let dem = fs::read(dir.path().join("dem/dem.tif")).unwrap();
    assert!(dem.len().abs_diff(1 << 20) < 8 << 10, "{} bytes", dem.len());
    // the strip that the header names ends where the file ends
    let entry = |tag: u16| {
        let at = (0..13)
            .map(|i| 10 + i * 12)
            .find(|&at| dem[at..at + 2] == tag.to_le_bytes())
            .unwrap();
        u32::from_le_bytes(dem[at + 8..at + 12].try_into().unwrap()) as usize
    };
    assert_eq!(&dem[..4], b"II*\0");
    assert_eq!(entry(273) + entry(279), dem.len());
    assert_eq!(entry(256) * entry(257) * 4, entry(279));
}

#[test]
fn a_tree_and_a_batch_are_laid_out_as_in_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let runids = make_tree(&dir.path().join("runs"), 50, &RunOptions::small()).unwrap();
    for runid in &runids {
        assert!(
            dir.path()
                .join("runs")
                .join(&runid[..2])
                .join(runid)
                .join("wepp.nodb")
                .exists()
        );
    }
    check_documents(&dir.path().join("runs"), 50 * SMALL.len());

    let runs = make_batch(dir.path(), "spring", 2, &RunOptions::small()).unwrap();
    assert_eq!(runs, ["run-001", "run-002"]);
    let batch = dir.path().join("batch/spring");
    check_documents(&batch, 1 + 3 * SMALL.len());
    let wepp = fs::read_to_string(batch.join("runs/run-001/wepp.nodb")).unwrap();
    assert!(wepp.contains(r#""_run_group": "batch", "_group_name": "spring""#));
    assert!(
        !fs::read_to_string(batch.join("batch_runner.nodb"))
            .unwrap()
            .contains("_run_group")
    );
}
