//! Generators: valid documents, mutations of them, signatures.

use nodbfs::nodb::document::Signature;
use proptest::prelude::*;

fn whitespace() -> impl Strategy<Value = String> {
    prop_oneof![8 => Just(String::new()), 2 => "[ \t\n\r]{1,3}"]
}

fn literal() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        6 => "[a-z_/]",
        1 => r#"\\["\\/bfnrt]"#,
        1 => r"\\u[0-9a-fA-F]{4}",
        1 => r"\\ud[89ab][0-9a-f]{2}(\\ud[c-f][0-9a-f]{2})?",
        1 => r#"[^"\\\x00-\x1f]"#,
    ];
    prop::collection::vec(character, 0..6)
        .prop_map(|characters| format!("\"{}\"", characters.concat()))
}

fn name() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "py/state",
        "_nodb_mtime",
        "_nodb_size",
        "_parent_wd",
        "_run_group",
        "_nodb\\u005fsize",
        "py\\/state",
        "py/object",
    ];
    prop_oneof![
        prop::sample::select(KNOWN).prop_map(|name| format!("\"{name}\"")),
        literal()
    ]
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,4})?",
        prop::sample::select(&["true", "false", "null", "NaN", "Infinity", "-Infinity"][..])
            .prop_map(str::to_owned),
        literal(),
    ]
}

fn array(item: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let item = (whitespace(), item, whitespace()).prop_map(|(a, item, b)| a + &item + &b);
    prop::collection::vec(item, 0..4).prop_map(|items| match items.is_empty() {
        true => "[ ]".to_owned(),
        false => format!("[{}]", items.join(",")),
    })
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let space = whitespace;
    let member = (space(), name(), space(), space(), value, space())
        .prop_map(|(a, name, b, c, value, d)| format!("{a}{name}{b}:{c}{value}{d}"));
    (prop::collection::vec(member, 0..5), space()).prop_map(|(members, space)| {
        match members.is_empty() {
            true => format!("{{{space}}}"),
            false => format!("{{{}}}", members.join(",")),
        }
    })
}

/// Valid documents, most of them objects with the names that matter.
pub fn document() -> impl Strategy<Value = String> {
    let value = scalar().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![array(inner.clone()), object(inner).boxed()]
    });
    let modern = object(value.clone())
        .prop_map(|state| format!("{{\"py/object\": \"x\", \"py/state\": {state}}}"));
    let any = prop_oneof![3 => object(value.clone()), 2 => modern, 1 => value];
    (whitespace(), any, whitespace()).prop_map(|(a, document, b)| a + &document + &b)
}

pub fn signature() -> impl Strategy<Value = Signature> {
    let mtime_ns = prop_oneof![
        4 => 0..4_000_000_000_000_000_000_i64,
        2 => (0..4_000_000_000_i64).prop_map(|seconds| seconds * 1_000_000_000),
        1 => 0..1_000_000_i64,
        1 => -1_000_000_000_000_000_000..0_i64,
    ];
    (mtime_ns, any::<u64>()).prop_map(|(mtime_ns, size)| Signature {
        mtime_ns: mtime_ns.into(),
        size,
    })
}

/// `document` with one to three bytes replaced, inserted or removed.
pub fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop::sample::select(&b"{}[]\",:\\u0123456789eE+-. \t\n\x0b\x0ctfnNIaly\xef\xbb\xbf"[..]),
        1 => any::<u8>(),
    ];
    let change = (any::<prop::sample::Index>(), 0..3_usize, byte);
    (document(), prop::collection::vec(change, 1..4)).prop_map(|(document, changes)| {
        let mut bytes = document.into_bytes();
        for (index, what, byte) in changes {
            let at = index.index(bytes.len() + 1);
            let removed = usize::from(what != 0 && at < bytes.len());
            let inserted = (what != 1).then_some(byte);
            bytes.splice(at..at + removed, inserted);
        }
        bytes
    })
}
