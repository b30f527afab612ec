//! The Redis store: what it writes for NoDb processes to read, what it makes of what they write, and
//! what it says when the server says no. Servers that are away are in store_outages.rs.

mod common {
    pub mod redis;
    pub mod store;
}

use std::time::Duration;

use common::redis::RedisServer;
use common::store::{OWNER, TTL, busy, connect, name, take, take_for};
use nodbfs::error::Error;
use nodbfs::store::lease::acquire_waiting;
use nodbfs::store::redis::{Redis, Settings};
use nodbfs::store::{
    Acquired, Cache, Cached, Committed, Lease, LockName, Locks, Status, Store, StoreError,
    StoreErrorKind,
};

const KEY: &str = "nodb-lock:mercuric-subcontract:wepp.nodb";
const RUN: &str = "mercuric-subcontract";
// python: hashlib.sha256(b"run\0mercuric-subcontract").hexdigest()
const FENCE: &str =
    "nodb:run-replacement:f1ce333b4aa72b16d852d3075d99844c4c9163c778fef89583bbf4a7b9bfc00d";
const MIRROR: &str = "locked:wepp.nodb";

fn mirror(server: &RedisServer) -> Option<String> {
    server.text(&["HGET", RUN, MIRROR])
}

#[test]
fn the_stored_value_is_what_nodb_processes_write() {
    let server = RedisServer::start();
    let store = connect(&format!("{}/7", server.url()));
    let lease = take_for(&store, &name("wepp.nodb"), Duration::from_millis(59_500));
    let value = server.text(&["GET", KEY]).unwrap();
    assert_eq!(value, lease.value);

    let fields: serde_json::Value = serde_json::from_str(&value).unwrap();
    let (token, owner) = (
        fields["token"].as_str().unwrap(),
        fields["owner"].as_str().unwrap(),
    );
    let (from, until) = (
        fields["acquired_at"].as_u64().unwrap(),
        fields["expires_at"].as_u64().unwrap(),
    );
    let compact = format!(
        r#"{{"token":"{token}","owner":"{owner}","acquired_at":{from},"expires_at":{until},"ttl":60}}"#
    );
    assert_eq!(value, compact);
    assert_eq!(owner, OWNER);
    assert_eq!(until - from, 60);
    assert!(
        token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{token}"
    );
    assert_eq!(
        (&token[12..13], "89ab".contains(&token[16..17])),
        ("4", true),
        "no uuid4: {token}"
    );

    let left: u64 = redis::from_redis_value(server.cmd(&["PTTL", KEY])).unwrap();
    assert!((1..=59_500).contains(&left), "{left}");
    server.cmd(&["PEXPIRE", KEY, "30000"]);
    let renewed = store.renew(&lease).unwrap().unwrap();
    assert_eq!(server.text(&["GET", KEY]).unwrap(), renewed.value);
    let left: u64 = redis::from_redis_value(server.cmd(&["PTTL", KEY])).unwrap();
    assert!((30_001..=59_500).contains(&left), "{left}");
}

#[test]
fn the_mirror_flag_follows_the_lock() {
    let server = RedisServer::start();
    let store = connect(&server.unix_url());
    let lease = take(&store, &name("wepp.nodb"));
    assert_eq!(mirror(&server).as_deref(), Some("true"));
    let forged = Lease {
        value: "forged".into(),
        ..lease.clone()
    };
    assert!(!store.release(&forged, None).unwrap());
    assert_eq!(
        mirror(&server).as_deref(),
        Some("true"),
        "somebody still holds it"
    );
    assert!(store.release(&lease, None).unwrap());
    assert_eq!(mirror(&server).as_deref(), Some("false"));
    assert_eq!(server.text(&["HGET", RUN, "last_modified"]), None);

    // an expired lock leaves the flag behind, until somebody looks
    take(&store, &name("wepp.nodb"));
    server.cmd(&["DEL", KEY]);
    assert_eq!(store.holder(&name("wepp.nodb")).unwrap(), None);
    assert_eq!(mirror(&server).as_deref(), Some("false"));
    // and nobody invents one
    assert_eq!(store.holder(&name("soils.nodb")).unwrap(), None);
    assert_eq!(server.text(&["HGET", RUN, "locked:soils.nodb"]), None);
}

#[test]
fn a_commit_reaches_run_hash_and_subscribers() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    let mut connection = server.connect(2).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("mercuric-subcontract:wepp").unwrap();

    let lease = take(&store, &name("wepp.nodb"));
    let message = Some((
        "mercuric-subcontract:wepp".to_owned(),
        "ünïcode \"text\"".to_owned(),
    ));
    let committed = Committed {
        last_modified: 1_770_000_000,
        message,
    };
    assert!(store.release(&lease, Some(&committed)).unwrap());
    assert_eq!(
        server.text(&["HGET", RUN, "last_modified"]).as_deref(),
        Some("1770000000")
    );
    store.touch(RUN, 1_770_000_009).unwrap();
    assert_eq!(
        server.text(&["HGET", RUN, "last_modified"]).as_deref(),
        Some("1770000009")
    );
    store
        .publish("mercuric-subcontract:wepp", "second")
        .unwrap();
    for expected in ["ünïcode \"text\"", "second"] {
        assert_eq!(
            subscriber
                .get_message()
                .unwrap()
                .get_payload::<String>()
                .unwrap(),
            expected
        );
    }
}

#[test]
fn a_run_being_replaced_gives_no_locks() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    server.cmd(&["SET", FENCE, "x"]);
    assert!(matches!(
        store.acquire(&name("wepp.nodb"), OWNER, TTL).unwrap(),
        Acquired::Fenced
    ));
    assert_eq!(server.text(&["GET", KEY]), None);
    assert_eq!(mirror(&server), None);
    let wait = Duration::from_millis(30);
    let error =
        acquire_waiting(&store, &name("wepp.nodb"), OWNER, TTL, wait, &|| false).unwrap_err();
    assert!(
        matches!(&error, Error::Replaced { runid } if runid == RUN),
        "{error:?}"
    );
    let other = LockName {
        runid: "another-run".into(),
        relpath: "wepp.nodb".into(),
    };
    take(&store, &other);
    server.cmd(&["DEL", FENCE]);
    take(&store, &name("wepp.nodb"));
}

#[test]
fn foreign_lock_values_are_busy_and_never_released() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    for (value, owner) in [
        ("2f1c0e5d8a7b4c3e9f0a1b2c3d4e5f60", None),
        (r#"{"token":"t","acquired_at":1}"#, None),
        (r#"{"owner":"web:7","token":"t"}"#, Some("web:7")),
        (r#"{"token": "spaced", "owner": "old:8"}"#, Some("old:8")),
        ("{\"token\":", None),
        ("[1, 2]", None),
        ("null", None),
        ("", None),
    ] {
        server.cmd(&["SET", KEY, value]);
        let holder = busy(&store, &name("wepp.nodb"));
        assert_eq!(
            (holder.value.as_str(), holder.owner.as_deref()),
            (value, owner)
        );
        assert_eq!(store.holder(&name("wepp.nodb")).unwrap(), Some(holder));
    }
    let mut connection = server.connect(0).unwrap();
    redis::cmd("SET")
        .arg(KEY)
        .arg(b"\xff\x00\xfe")
        .exec(&mut connection)
        .unwrap();
    assert_eq!(busy(&store, &name("wepp.nodb")).owner, None);
}

#[test]
fn only_the_own_token_releases_or_renews() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    let lease = take(&store, &name("wepp.nodb"));
    let other_token = lease.value.replace("\"token\":\"", "\"token\":\"0");
    let longer = format!("{} ", lease.value.split(",\"owner\"").next().unwrap());
    for theirs in [other_token.as_str(), longer.as_str(), "bare", ""] {
        server.cmd(&["SET", KEY, theirs]);
        assert!(!store.release(&lease, None).unwrap());
        assert!(store.renew(&lease).unwrap().is_none());
        assert_eq!(server.text(&["GET", KEY]).as_deref(), Some(theirs));
    }
    // a bare token that begins with ours
    let bare = Lease {
        value: "bare".into(),
        ..lease
    };
    server.cmd(&["SET", KEY, "bare-and-more"]);
    assert!(!store.release(&bare, None).unwrap());
    server.cmd(&["SET", KEY, "bare"]);
    assert!(store.release(&bare, None).unwrap());
}

#[test]
fn entry_and_seal_live_for_72_hours_in_their_database() {
    let server = RedisServer::start();
    let store = connect(&format!("{}/5", server.url()));
    store
        .put("/wc1/runs/me/x/wepp.nodb", b"{}", b"seal")
        .unwrap();
    for key in [
        "/wc1/runs/me/x/wepp.nodb",
        "nodbfs:seal:/wc1/runs/me/x/wepp.nodb",
    ] {
        let ttl: i64 = redis::from_redis_value(server.cmd_in(13, &["TTL", key])).unwrap();
        assert!((259_000..=259_200).contains(&ttl), "{key}: {ttl}");
    }
    // an entry that a NoDb process wrote has no seal
    server.cmd_in(13, &["SET", "/foreign", "{}"]);
    let cached = store.get("/foreign").unwrap();
    assert_eq!(
        cached,
        Cached {
            entry: Some(b"{}".to_vec()),
            seal: None
        }
    );
    store
        .delete(&["/foreign".into(), "/wc1/runs/me/x/wepp.nodb".into()])
        .unwrap();
    assert_eq!(server.cmd_in(13, &["DBSIZE"]), redis::Value::Int(0));
}

#[test]
fn wrong_and_missing_passwords_are_told_apart_from_an_absent_server() {
    let server = RedisServer::with_password("geheim-1");
    let denied = |url: &str, words: &str| {
        let store = connect(url);
        for error in [store.ping(), store.get("/k").map(drop)].map(Result::unwrap_err) {
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            assert!(error.cause.contains(words), "{error}");
        }
    };
    denied(&server.bare_url(), "NOAUTH Authentication required");
    denied(
        &server.url().replace("geheim-1", "geheim-2"),
        "WRONGPASS invalid username-password",
    );
    denied(
        &server.unix_url().replace("geheim-1", "geheim-2"),
        "WRONGPASS",
    );
    for url in [server.url(), server.unix_url()] {
        let store = connect(&url);
        store.ping().unwrap();
        take(&store, &name(&url));
    }
    let open = RedisServer::start();
    let url = open.url().replace("redis://", "redis://:geheim-1@");
    denied(&url, "without any password configured");
}

#[test]
fn an_acl_user_is_denied_what_it_may_not_do() {
    let server = RedisServer::start();
    server.cmd(&[
        "ACL", "SETUSER", "nodb", "on", ">geheim", "~*", "+@all", "-set",
    ]);
    let url = server.url().replace("redis://", "redis://nodb:geheim@");
    let store = connect(&url);
    store.ping().unwrap();
    let error = store.put("/k", b"{}", b"s").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied);
    assert!(error.cause.starts_with("NOPERM"), "{error}");
    assert_eq!(
        store.get("/k").unwrap(),
        Cached::default(),
        "the connection is still good"
    );
}

#[test]
fn the_servers_refusals_come_out_in_its_own_words() {
    let server = RedisServer::start();
    let store = connect(&server.url());
    let refused = |error: StoreError, words: &str| {
        assert_eq!(error.kind, StoreErrorKind::Refused, "{error}");
        assert!(error.cause.contains(words), "{error}");
    };
    let lease = take(&store, &name("soils.nodb"));
    server.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    refused(store.put("/k", b"{}", b"s").unwrap_err(), "OOM");
    refused(
        store
            .acquire(&name("wepp.nodb"), OWNER, TTL)
            .map(drop)
            .unwrap_err(),
        "OOM",
    );
    assert!(
        store.release(&lease, None).unwrap(),
        "room is made all the same"
    );
    server.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    server.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    refused(store.put("/k", b"{}", b"s").unwrap_err(), "READONLY");
    refused(
        store
            .acquire(&name("wepp.nodb"), OWNER, TTL)
            .map(drop)
            .unwrap_err(),
        "READONLY",
    );
    server.cmd(&["REPLICAOF", "NO", "ONE"]);
    take(&store, &name("wepp.nodb"));
    // a run hash that is none: no lock is left behind that nobody knows of
    server.cmd(&["SET", "odd-run", "text"]);
    let odd = LockName {
        runid: "odd-run".into(),
        relpath: "wepp.nodb".into(),
    };
    refused(
        store.acquire(&odd, OWNER, TTL).map(drop).unwrap_err(),
        "WRONGTYPE",
    );
    assert_eq!(server.text(&["GET", &odd.key()]), None);
    assert_eq!(store.holder(&odd).unwrap(), None);
}

#[test]
fn no_password_is_ever_shown() {
    let mut server = RedisServer::with_password("geheim");
    let lookup = |name: &str| (name == "REDIS_PASSWORD").then(|| "geheim".to_owned());
    let filled = Settings::resolve(Some(&server.bare_url()), &lookup)
        .unwrap()
        .unwrap();
    let store = Redis::new(filled);
    store.ping().unwrap();
    let wrong = connect(&server.url().replace("geheim", "geheim-2"));
    let mut shown = vec![format!("{store:?}"), store.describe(), format!("{wrong:?}")];
    shown.extend([
        format!("{:?}", wrong.ping()),
        wrong.ping().unwrap_err().to_string(),
    ]);
    server.kill();
    shown.extend([
        format!("{:?}", store.ping()),
        store.ping().unwrap_err().to_string(),
    ]);
    assert_eq!(store.describe(), server.bare_url());
    for text in shown {
        assert!(!text.contains("geheim"), "{text}");
    }
}
