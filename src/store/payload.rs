//! What a lock's stored value looks like (PROTOCOL.md 2), the same in both stores.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Holder;

/// The fields in the order in which NoDb processes write them. Whole seconds, unix time.
#[derive(Serialize)]
struct Payload<'a> {
    token: &'a str,
    owner: &'a str,
    acquired_at: u64,
    expires_at: u64,
    ttl: u64,
}

/// Writes the value of a new lock, with a token of its own.
pub fn new(owner: &str, ttl: Duration) -> String {
    let now = unix_seconds();
    let ttl = whole_seconds(ttl);
    let token = Uuid::new_v4().simple().to_string();
    let payload = Payload {
        token: &token,
        owner,
        acquired_at: now,
        expires_at: now.saturating_add(ttl),
        ttl,
    };
    serde_json::to_string(&payload).expect("strings and integers have a JSON form")
}

/// The same lock's value with an expiry counted from now; unchanged if it is none of ours.
pub fn renewed(value: &str, ttl: Duration) -> String {
    match identity(value) {
        Some(identity) => {
            let ttl = whole_seconds(ttl);
            format!(
                r#"{identity}{},"ttl":{ttl}}}"#,
                unix_seconds().saturating_add(ttl)
            )
        }
        None => value.to_owned(),
    }
}

/// What all values of one acquisition have in common, and no other has: all that stands before the
/// expiry, the random token among it. `None` for a value that nodbfs did not write.
pub fn identity(value: &str) -> Option<&str> {
    const TOKEN: &str = r#"{"token":""#;
    // an owner cannot contain this: its quotes are escaped
    const EXPIRY: &str = r#","expires_at":"#;
    let end = value.find(EXPIRY)? + EXPIRY.len();
    value.starts_with(TOKEN).then(|| &value[..end])
}

/// Whether `stored` belongs to the acquisition that `value` belongs to.
pub fn same(stored: &str, value: &str) -> bool {
    stored == value || identity(value).is_some_and(|identity| stored.starts_with(identity))
}

/// Reads whatever is stored; what is not JSON is a bare token (PROTOCOL.md 4).
pub fn holder(value: &[u8]) -> Holder {
    #[derive(Deserialize)]
    struct Named {
        owner: String,
    }
    let owner = serde_json::from_slice::<Named>(value)
        .ok()
        .map(|named| named.owner);
    Holder {
        value: String::from_utf8_lossy(value).into_owned(),
        owner,
        left: None,
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Rounded up, so that nobody believes a lock to be over before it is.
fn whole_seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_value_is_the_same_lock_and_another_is_not() {
        let first = new("host:1", Duration::from_secs(60));
        let second = renewed(&first, Duration::from_millis(3_599_001));
        assert!(second.ends_with(r#","ttl":3600}"#), "{second}");
        assert!(same(&second, &first) && same(&first, &second));
        let other = new("host:1", Duration::from_secs(60));
        assert!(!same(&other, &first));
        assert_eq!(holder(second.as_bytes()).owner.as_deref(), Some("host:1"));
    }

    #[test]
    fn an_owner_cannot_forge_an_identity() {
        let value = new(r#"a","expires_at":1"#, Duration::from_secs(1));
        assert!(identity(&value).is_some_and(|identity| identity.contains("acquired_at")));
        assert_eq!(
            holder(value.as_bytes()).owner.as_deref(),
            Some(r#"a","expires_at":1"#)
        );
    }

    #[test]
    fn foreign_values_are_compared_whole_and_never_rewritten() {
        assert_eq!(identity("bare-token"), None);
        assert!(same("bare-token", "bare-token"));
        assert!(!same("bare-token-2", "bare-token"));
        assert_eq!(renewed("bare-token", Duration::from_secs(1)), "bare-token");
    }

    #[test]
    fn garbage_has_a_holder_without_a_name() {
        for value in [
            &b"bare"[..],
            b"123",
            b"{",
            b"{}",
            b"\"x\"",
            br#"{"owner":1}"#,
            b"\xff\xfe",
            b"",
        ] {
            assert_eq!(holder(value).owner, None, "{value:?}");
        }
        assert_eq!(holder(b"x\xff").value, "x\u{fffd}");
    }
}
