//! Locks (PROTOCOL.md 2 and 4): what they are, whom they keep out, and whom they cannot.

use std::fs;

use serde_json::{Value, json};

use super::{Field, document, state};
use crate::common::python::{Neighbour, Place, Style};

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
