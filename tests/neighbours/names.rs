//! Identities (PROTOCOL.md 3) and telemetry (PROTOCOL.md 7).

use std::fs;
use std::path::Path;

use serde_json::json;

use super::Field;
use crate::common::python::{Neighbour, Place, Style};
use crate::common::redis::RedisServer;

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
