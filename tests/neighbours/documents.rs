//! Loading and dumping (PROTOCOL.md 5 and 6).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Field, document, signature, state};
use crate::common::files_below;
use crate::common::python::Style;

#[test]
fn a_modern_dump_leaves_everything_as_the_protocol_says() {
    let field = Field::new();
    // both layouts: wepp is old, soils is modern in a mixed run
    for controller in ["wepp", "soils"] {
        let name = format!("{controller}.nodb");
        let path = field.file(&name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let (before, inode) = (signature(&path), fs::metadata(&path).unwrap().ino());
        let mut modern = field.spawn(Style::Modern, controller);
        assert_eq!(modern.ok(json!({"op": "load"}))["from"], "disk");
        modern.ok(json!({"op": "set", "key": "_note", "value": "caf\u{e9}"}));
        modern.ok(json!({"op": "lock"}));
        modern.ok(json!({"op": "dump_and_unlock"}));

        let bytes = fs::read(&path).unwrap();
        assert!(bytes.is_ascii() && bytes.ends_with(b"}"));
        assert_ne!(
            fs::metadata(&path).unwrap().ino(),
            inode,
            "replaced, not rewritten"
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        // the file carries the generation before, the entry the file's own
        let written = document(&path);
        assert_eq!(state(&written)["_note"], "café");
        assert_eq!(state(&written)["_nodb_size"], before.1);
        let now = signature(&path);
        let mut entry = field.entry(&name);
        assert_eq!(state(&entry)["_nodb_size"], now.1);
        assert!((state(&entry)["_nodb_mtime"].as_f64().unwrap() - now.0).abs() <= 1e-6);
        let entry_state = entry
            .get("py/state")
            .map_or("", |_| "/py~1state")
            .to_owned();
        for (field, value) in [
            ("_nodb_size", json!(before.1)),
            ("_nodb_mtime", state(&written)["_nodb_mtime"].clone()),
        ] {
            *entry
                .pointer_mut(&format!("{entry_state}/{field}"))
                .unwrap() = value;
        }
        assert_eq!(
            entry, written,
            "apart from the signature they are one document"
        );
        let expiry: i64 = field.ask(13, &["TTL", &field.entry_key(&name)]);
        assert!((259_000..=259_200).contains(&expiry), "{expiry}");
        assert_eq!(field.lock(&name), None);
        assert_eq!(field.mirror(&name).as_deref(), Some("false"));
        let modified: i64 = field.ask(0, &["HGET", "mercuric-subcontract", "last_modified"]);
        assert!(modified > 1_700_000_000);
        assert_eq!(
            fs::read_to_string(field.file("nodb.version")).unwrap(),
            "1000\n"
        );
        assert_eq!(files_below(field.wd.path(), ".tmp"), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_rewrite_of_the_same_size_raises_the_mtime_by_a_second() {
    let field = Field::new();
    let mut modern = field.spawn(Style::Modern, "wepp");
    modern.ok(json!({"op": "locked_update", "values": {"_counter": 1}}));
    let before = fs::metadata(field.file("wepp.nodb")).unwrap();
    // the second one has the same length again: the signature within it has, too
    modern.ok(json!({"op": "locked_update", "values": {"_counter": 2, "_nodb_mtime": 1.5}}));
    modern.ok(json!({"op": "locked_update", "values": {"_counter": 3, "_nodb_mtime": 1.5}}));
    let second = fs::metadata(field.file("wepp.nodb")).unwrap();
    modern.ok(json!({"op": "locked_update", "values": {"_counter": 4, "_nodb_mtime": 1.5}}));
    let third = fs::metadata(field.file("wepp.nodb")).unwrap();
    assert!(second.modified().unwrap() > before.modified().unwrap());
    assert_eq!(second.len(), third.len());
    let raised = third
        .modified()
        .unwrap()
        .duration_since(second.modified().unwrap())
        .unwrap();
    assert!(raised.as_secs_f64() >= 1.0, "{raised:?}");
}

#[test]
fn a_stale_base_is_refused_by_modern_code() {
    let field = Field::new();
    let (mut one, mut two) = (
        field.spawn(Style::Modern, "wepp"),
        field.spawn(Style::Modern, "wepp"),
    );
    one.ok(json!({"op": "load"}));
    two.ok(json!({"op": "locked_update", "values": {"_counter": 7}}));
    one.ok(json!({"op": "lock"}));
    one.ok(json!({"op": "set", "key": "_counter", "value": 1}));
    assert_eq!(one.refused(json!({"op": "dump"})), "NoDbStaleWriteError");
    one.ok(json!({"op": "unlock"}));
    assert_eq!(state(&document(&field.file("wepp.nodb")))["_counter"], 7);
    // the next look at the file finds the newer generation
    assert_eq!(one.ok(json!({"op": "load"}))["from"], "cache");
    assert_eq!(one.get("_counter"), 7);
    assert_eq!(one.ok(json!({"op": "load"}))["from"], "memory");
}

#[test]
fn modern_code_believes_only_the_signature_and_old_code_believes_anything() {
    let field = Field::new();
    let (mtime, size) = signature(&field.file("wepp.nodb"));
    let poison = |mtime: f64, size: u64| {
        let text = json!({"py/object": "X", "wd": "x", "_note": "poison", "_nodb_mtime": mtime, "_nodb_size": size});
        let _: () = field.ask(
            13,
            &["SET", &field.entry_key("wepp.nodb"), &text.to_string()],
        );
    };
    let load = |style: Style| {
        let mut neighbour = field.spawn(style, "wepp");
        let from = neighbour.ok(json!({"op": "load"}))["from"]
            .as_str()
            .unwrap()
            .to_owned();
        (from, neighbour.get("_note"))
    };
    for (mtime, size) in [
        (mtime, size + 1),
        (mtime - 30.0, size),
        (mtime + 1e-3, size),
    ] {
        poison(mtime, size);
        assert_eq!(load(Style::Old), ("cache".to_owned(), json!("poison")));
        assert_eq!(load(Style::Modern), ("disk".to_owned(), Value::Null));
        // which has put the entry right for everybody
        assert_eq!(load(Style::Old), ("cache".to_owned(), Value::Null));
    }
    poison(mtime, size);
    assert_eq!(load(Style::Modern), ("cache".to_owned(), json!("poison")));
    // what does not decode is dropped by both
    for style in [Style::Old, Style::Modern] {
        let _: () = field.ask(13, &["SET", &field.entry_key("wepp.nodb"), "{\"torn"]);
        assert_eq!(load(style).0, "disk");
    }
}

#[test]
fn an_old_dump_truncates_in_place() {
    let field = Field::new();
    let inode = fs::metadata(field.file("wepp.nodb")).unwrap().ino();
    let mut old = field.spawn(Style::Old, "wepp");
    old.ok(json!({"op": "locked_update", "values": {"_note": "old"}}));
    assert_eq!(fs::metadata(field.file("wepp.nodb")).unwrap().ino(), inode);
    assert_eq!(state(&document(&field.file("wepp.nodb")))["_note"], "old");
    assert_eq!(field.entry("wepp.nodb")["_note"], "old");
    assert_eq!(field.lock("wepp.nodb"), None);
    assert_eq!(field.spawn(Style::Modern, "wepp").get("_note"), "old");
    // a document of the oldest kind knows no signature, before and after
    for _ in 0..2 {
        let landuse = fs::read_to_string(field.file("landuse.nodb")).unwrap();
        assert!(!landuse.contains("_nodb_mtime"));
        let mut old = field.spawn(Style::Old, "landuse");
        old.ok(json!({"op": "locked_update", "values": {"_note": "oldest"}}));
        assert!(field.entry("landuse.nodb").get("_nodb_mtime").is_none());
    }
}

#[test]
fn a_new_controller_is_created_by_its_first_dump() {
    let field = Field::new();
    for (style, controller) in [(Style::Modern, "rangeland"), (Style::Old, "rhem")] {
        let mut neighbour = field.spawn(style, controller);
        neighbour
            .ok(json!({"op": "create", "document": {"py/object": "X", "py/state": {"wd": "x"}}}));
        neighbour.ok(json!({"op": "lock"}));
        neighbour.ok(json!({"op": "dump_and_unlock"}));
        let stat = fs::metadata(field.file(&format!("{controller}.nodb"))).unwrap();
        assert!(stat.len() > 0 && stat.permissions().mode() & 0o444 != 0);
    }
}
