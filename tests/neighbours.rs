//! The neighbours prove themselves: NoDb processes among themselves, with a real redis-server and no
//! nodbfs in sight. What the other suites demand of nodbfs is only as good as these are.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::python::{Neighbour, Place, Style};
use common::redis::RedisServer;
use common::sample::{Layout, RunOptions, make_run};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A run, a redis-server and the run's name in the field.
struct Field {
    redis: RedisServer,
    wd: TempDir,
    known_as: PathBuf,
}

impl Field {
    fn new() -> Self {
        let wd = tempfile::tempdir().unwrap();
        let known_as = PathBuf::from("/wc1/runs/me/mercuric-subcontract");
        let options = RunOptions {
            hillslopes: 0,
            raster_bytes: 0,
            layout: Layout::Mixed,
            known_as: Some(known_as.clone()),
            ..RunOptions::default()
        };
        make_run(wd.path(), &options).unwrap();
        Self {
            redis: RedisServer::start(),
            wd,
            known_as,
        }
    }

    fn spawn(&self, style: Style, controller: &str) -> Neighbour {
        self.spawn_in(style, controller, Place::Host)
    }

    fn spawn_in(&self, style: Style, controller: &str, place: Place) -> Neighbour {
        Neighbour::spawn(
            style,
            self.wd.path(),
            &self.known_as,
            controller,
            &self.redis.unix_url(),
            place,
        )
    }

    /// One Redis command in database `db`.
    fn ask<T: ::redis::FromRedisValue>(&self, db: i64, words: &[&str]) -> T {
        ::redis::from_redis_value(self.redis.cmd_in(db, words)).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.wd.path().join(name)
    }

    fn entry_key(&self, name: &str) -> String {
        format!("{}/{name}", self.known_as.display())
    }

    /// The payload cache's entry.
    fn entry(&self, name: &str) -> Value {
        let text: String = self.ask(13, &["GET", &self.entry_key(name)]);
        serde_json::from_str(&text).unwrap()
    }

    fn mirror(&self, name: &str) -> Option<String> {
        self.ask(
            0,
            &["HGET", "mercuric-subcontract", &format!("locked:{name}")],
        )
    }

    fn lock(&self, name: &str) -> Option<String> {
        self.ask(
            0,
            &["GET", &format!("nodb-lock:mercuric-subcontract:{name}")],
        )
    }
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn state(document: &Value) -> &Value {
    document.get("py/state").unwrap_or(document)
}

/// `st_mtime` as Python has it, and the size.
fn signature(path: &Path) -> (f64, u64) {
    let stat = fs::metadata(path).unwrap();
    (
        stat.mtime() as f64 + 1e-9 * stat.mtime_nsec() as f64,
        stat.len(),
    )
}

#[test]
fn a_lock_is_what_the_protocol_says() {
    let field = Field::new();
    let mut one = field.spawn(Style::Modern, "wepp");
    let mut two = field.spawn(Style::Old, "wepp");
    one.ok(json!({"op": "lock"}));
    let value = field.lock("wepp.nodb").unwrap();
    let payload: Value = serde_json::from_str(&value).unwrap();
    let keys: Vec<&str> = payload
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, ["acquired_at", "expires_at", "owner", "token", "ttl"]);
    assert!(
        value.starts_with(r#"{"token":""#),
        "compact, in the protocol's order: {value}"
    );
    assert_eq!(payload["owner"], one.ok(json!({"op": "info"}))["owner"]);
    assert_eq!(field.mirror("wepp.nodb").as_deref(), Some("true"));
    let ttl: i64 = field.ask(0, &["TTL", "nodb-lock:mercuric-subcontract:wepp.nodb"]);
    assert!((21_000..=21_600).contains(&ttl), "{ttl}");

    assert_eq!(two.refused(json!({"op": "lock"})), "NoDbAlreadyLockedError");
    one.ok(json!({"op": "unlock"}));
    assert_eq!(field.lock("wepp.nodb"), None);
    assert_eq!(field.mirror("wepp.nodb").as_deref(), Some("false"));
    two.ok(json!({"op": "lock"}));
}

#[test]
fn a_lock_of_somebody_elses_survives_a_release() {
    let field = Field::new();
    let mut one = field.spawn(Style::Modern, "wepp");
    one.ok(json!({"op": "lock"}));
    let _: () = field.ask(
        0,
        &[
            "SET",
            "nodb-lock:mercuric-subcontract:wepp.nodb",
            "a bare token",
        ],
    );
    assert_eq!(one.refused(json!({"op": "dump"})), "NoDbLockLostError");
    one.ok(json!({"op": "unlock"}));
    assert_eq!(field.lock("wepp.nodb").as_deref(), Some("a bare token"));
    one.ok(json!({"op": "unlock", "force": true}));
    assert_eq!(field.lock("wepp.nodb"), None);
}

#[test]
fn a_flag_without_its_lock_is_repaired() {
    let field = Field::new();
    let _: () = field.ask(
        0,
        &["HSET", "mercuric-subcontract", "locked:wepp.nodb", "true"],
    );
    let mut one = field.spawn(Style::Modern, "wepp");
    assert_eq!(one.ok(json!({"op": "is_locked"}))["value"], false);
    assert_eq!(field.mirror("wepp.nodb").as_deref(), Some("false"));
}

#[test]
fn a_run_being_replaced_takes_no_lock_from_modern_code() {
    let field = Field::new();
    let mut modern = field.spawn(Style::Modern, "wepp");
    let fence = modern.ok(json!({"op": "info"}))["fence_key"]
        .as_str()
        .unwrap()
        .to_owned();
    // printf 'run\0mercuric-subcontract' | sha256sum
    assert_eq!(
        fence,
        "nodb:run-replacement:f1ce333b4aa72b16d852d3075d99844c4c9163c778fef89583bbf4a7b9bfc00d"
    );
    let _: () = field.ask(0, &["SET", &fence, "1"]);
    assert_eq!(
        modern.refused(json!({"op": "lock"})),
        "NoDbRunReplacedError"
    );
    assert_eq!(field.lock("wepp.nodb"), None);
    field.spawn(Style::Old, "wepp").ok(json!({"op": "lock"}));
}

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
        assert_eq!(
            common::files_below(field.wd.path(), ".tmp"),
            Vec::<PathBuf>::new()
        );
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

#[test]
fn no_update_is_lost_among_processes_and_containers() {
    let field = Field::new();
    let mut counters: Vec<Neighbour> = [
        (Style::Modern, Place::Host, true),
        (Style::Modern, Place::Container, false),
        (Style::Modern, Place::Container, true),
    ]
    .into_iter()
    .map(|(style, place, careless)| {
        let mut neighbour = field.spawn_in(style, "wepp", place);
        neighbour
            .send(&json!({"op": "increment", "times": 40, "retry": true, "careless": careless}));
        neighbour
    })
    .collect();
    for counter in &mut counters {
        let answer = counter.answer();
        assert_eq!(answer["ok"], true, "{answer}");
    }
    assert_eq!(state(&document(&field.file("wepp.nodb")))["_counter"], 120);
    assert_eq!(field.lock("wepp.nodb"), None);
}

#[test]
fn a_container_has_a_name_and_a_pid_of_its_own() {
    let field = Field::new();
    let owner = |neighbour: &mut Neighbour| {
        neighbour.ok(json!({"op": "info"}))["owner"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let on_host = owner(&mut field.spawn(Style::Modern, "wepp"));
    let contained = owner(&mut field.spawn_in(Style::Modern, "wepp", Place::Container));
    assert!(
        contained.starts_with("neighbour-") && contained.ends_with(":1"),
        "{contained}"
    );
    assert!(
        !on_host.starts_with("neighbour-") && !on_host.ends_with(":1"),
        "{on_host}"
    );
}

#[test]
fn a_log_line_goes_to_the_file_and_the_bare_message_to_the_channel() {
    let field = Field::new();
    let mut client = field.redis.connect(0).unwrap();
    let mut channel = client.as_pubsub();
    channel.subscribe("mercuric-subcontract:climate").unwrap();
    let mut modern = field.spawn(Style::Modern, "climate");
    modern.ok(json!({"op": "log", "message": "Build Climates"}));
    modern.ok(json!({"op": "log", "message": "quiet", "level": "DEBUG"}));
    let message: String = channel.get_message().unwrap().get_payload().unwrap();
    assert_eq!(message, "Build Climates");
    let log = fs::read_to_string(field.file("climate.log")).unwrap();
    let last = log.lines().last().unwrap();
    assert!(
        last.ends_with(" [INFO] wepppy.run.mercuric-subcontract.climate: Build Climates"),
        "{last}"
    );
    let _: () = field.ask(15, &["SET", "loglevel:mercuric-subcontract", "10"]);
    modern.ok(json!({"op": "log", "message": "now heard", "level": "DEBUG"}));
    let message: String = channel.get_message().unwrap().get_payload().unwrap();
    assert_eq!(message, "now heard");
}

/// The table of PROTOCOL.md 3.
#[test]
fn identities_are_those_of_the_protocol() {
    let redis = RedisServer::start();
    let group = |group: &str, name: &str| json!({"_run_group": group, "_group_name": name});
    let ventilated = "/wc1/runs/ve/ventilated-gag";
    let omni = "_pups/omni/scenarios/uniform_low";
    for (directory, controller, fields, runid, relpath, channel) in [
        (
            "/wc1/runs/me/mercuric-subcontract",
            "wepp",
            json!({}),
            "mercuric-subcontract",
            "wepp.nodb",
            "mercuric-subcontract:wepp",
        ),
        (
            &format!("{ventilated}/{omni}"),
            "disturbed",
            json!({"_parent_wd": ventilated}),
            "ventilated-gag",
            &format!("{omni}/disturbed.nodb"),
            "ventilated-gag:omni",
        ),
        (
            &format!("{ventilated}/{omni}"),
            "climate",
            json!({}),
            "ventilated-gag",
            "climate.nodb",
            "ventilated-gag:climate",
        ),
        (
            "/wc1/batch/spring/runs/run-001",
            "wepp",
            group("batch", "spring"),
            "batch;;spring;;run-001",
            "wepp.nodb",
            "batch;;spring;;run-001:wepp",
        ),
        (
            "/wc1/batch/spring",
            "batch_runner",
            json!({}),
            "spring",
            "batch_runner.nodb",
            "spring:batch_runner",
        ),
        (
            "/wc1/culverts/U/runs/12",
            "watershed",
            group("culvert", "U"),
            "culvert;;U;;12",
            "watershed.nodb",
            "culvert;;U;;12:watershed",
        ),
        (
            "/wc1/runs/ab/abc/omni/scenarios/x",
            "wepp",
            json!({"_parent_wd": "/wc1/runs/ab/abc"}),
            "abc",
            "omni/scenarios/x/wepp.nodb",
            "abc:wepp",
        ),
    ] {
        for (style, layout) in [(Style::Old, "old"), (Style::Modern, "modern")] {
            let wd = tempfile::tempdir().unwrap();
            let mut document = json!({"py/object": "X"});
            match layout {
                "old" => document
                    .as_object_mut()
                    .unwrap()
                    .extend(fields.as_object().unwrap().clone()),
                _ => document["py/state"] = fields.clone(),
            }
            fs::write(
                wd.path().join(format!("{controller}.nodb")),
                document.to_string(),
            )
            .unwrap();
            let mut neighbour = Neighbour::spawn(
                style,
                wd.path(),
                Path::new(directory),
                controller,
                &redis.url(),
                Place::Host,
            );
            let info = neighbour.ok(json!({"op": "info"}));
            assert_eq!(
                (
                    &info["runid"],
                    &info["relpath"],
                    &info["channel"],
                    &info["cache_key"]
                ),
                (
                    &json!(runid),
                    &json!(relpath),
                    &json!(channel),
                    &json!(format!("{directory}/{controller}.nodb"))
                ),
            );
        }
    }
}

#[test]
fn without_redis_documents_are_read_and_nothing_is_written() {
    let field = Field::new();
    let mut modern = field.spawn(Style::Modern, "wepp");
    modern.ok(json!({"op": "lock"}));
    modern.ok(json!({"op": "unlock"}));
    let Field { redis, wd, .. } = field;
    drop(redis);
    assert_eq!(modern.ok(json!({"op": "reload"}))["from"], "disk");
    let before = fs::read(wd.path().join("wepp.nodb")).unwrap();
    assert_eq!(modern.refused(json!({"op": "lock"})), "FileNotFoundError");
    assert_eq!(modern.refused(json!({"op": "dump"})), "NoDbLockLostError");
    assert_eq!(fs::read(wd.path().join("wepp.nodb")).unwrap(), before);
}
