use super::*;

fn parse(text: &str) -> Document {
    Document::parse(text.as_bytes()).unwrap_or_else(|invalid| panic!("{text}: {invalid}"))
}

fn invalid(bytes: impl AsRef<[u8]>) -> String {
    Document::parse(bytes.as_ref()).unwrap_err().to_string()
}

const SIGNATURE: Signature = Signature {
    mtime_ns: 1_700_000_000_250_000_000,
    size: 77,
};

/// Patches, checks that the way back is exact, and gives the text.
fn patch(text: &str) -> String {
    let patched = parse(text).patch(text.as_bytes(), SIGNATURE).unwrap();
    let restored = restore(&patched.text, &patched.edits).unwrap();
    assert_eq!(String::from_utf8(restored).unwrap(), text);
    String::from_utf8(patched.text).unwrap()
}

/// What RFC parsers refuse and Python accepts; that Python does, the suite `tests/document.rs` shows.
#[test]
fn pythons_own_dialect_is_accepted() {
    for text in [
        "NaN",
        "[Infinity, -Infinity]",
        r#"{"lone": "\ud800", "pair": "\ud83d\ude00", "\udc80": 1}"#,
        r#"{"twice": 1, "twice": 2}"#,
        "\t\n\r {} \t\n\r",
        "-0",
        "1E+400",
        "\"\u{7f}\u{85}\u{feff}\"",
        &"9".repeat(100_000),
    ] {
        parse(text);
    }
}

#[test]
fn refusals_say_what_and_where() {
    for (text, reason) in [
        ("", "the text ends where a value was expected at byte 0"),
        ("{}x", "more data after the document at byte 2"),
        ("\u{feff}{}", "a byte order mark at byte 0"),
        (
            "{\"a\": \"\n\"}",
            "a control character inside a string at byte 7",
        ),
        (r#"["\x"]"#, "a bad escape at byte 2"),
        (r#"["\u12g4"]"#, "a bad escape at byte 2"),
        (r#"["\"#, "a bad escape at byte 2"),
        ("[01]", "expected ',' or ']' at byte 2"),
        ("[1.]", "expected a digit at byte 3"),
        ("{\"a\" 1}", "expected ':' at byte 5"),
        (
            "{\"a\": 1,}",
            "expected a member's name in double quotes at byte 8",
        ),
        ("[1,]", "expected a value at byte 3"),
        ("[nul]", "expected a value at byte 1"),
        ("[\u{a0}1]", "expected a value at byte 1"),
        ("{\"a\": [1}", "expected ',' or ']' at byte 8"),
        (
            "{\"a\": 1",
            "the text ends where ',' or '}' was expected at byte 7",
        ),
        (
            "\"abc",
            "the text ends where the end of the string was expected at byte 4",
        ),
    ] {
        assert_eq!(invalid(text), reason, "{text}");
    }
    assert_eq!(invalid(b"[\"ab\xff\"]"), "not UTF-8 at byte 4");
    assert_eq!(invalid(b"[\"\xed\xa0\x80\"]"), "not UTF-8 at byte 2");
}

#[test]
fn nesting_ends_at_the_limit_and_never_overflows() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    parse(&nested(MAX_DEPTH));
    let beyond = invalid(nested(MAX_DEPTH + 1));
    assert_eq!(beyond, "nested deeper than 1000 levels at byte 1000");
    assert_eq!(
        invalid("{\"a\":".repeat(1 << 20)),
        "nested deeper than 1000 levels at byte 5000"
    );
}

#[test]
fn the_signature_goes_where_nodb_looks_for_it() {
    let set = r#""_nodb_mtime": 1700000000.25, "_nodb_size": 77"#;
    for (text, expected) in [
        // Old layout: at the top level. Modern: inside py/state.
        (r#"{"a": 1}"#, format!(r#"{{"a": 1, {set}}}"#)),
        (
            r#"{"py/object": "x", "py/state": {"a": [1]}, "b": 2}"#,
            format!(r#"{{"py/object": "x", "py/state": {{"a": [1], {set}}}, "b": 2}}"#),
        ),
        ("{}", format!("{{{set}}}")),
        ("{ \n}", format!("{{{set} \n}}")),
        ("{\"a\": 1\n}\n", format!("{{\"a\": 1, {set}\n}}\n")),
        (
            r#"{"py/state": {}}"#,
            format!(r#"{{"py/state": {{{set}}}}}"#),
        ),
        // A py/state that is no object holds no fields.
        (
            r#"{"py/state": null}"#,
            format!(r#"{{"py/state": null, {set}}}"#),
        ),
        // Of duplicates the last counts.
        (
            r#"{"py/state": {"a": 1}, "py/state": [], "b": 2}"#,
            format!(r#"{{"py/state": {{"a": 1}}, "py/state": [], "b": 2, {set}}}"#),
        ),
        (
            r#"{"py/state": {"_nodb_size": 1}, "py/state": {"b": 2}}"#,
            format!(r#"{{"py/state": {{"_nodb_size": 1}}, "py/state": {{"b": 2, {set}}}}}"#),
        ),
        (
            r#"{"_nodb_size": 1, "_nodb_size": null, "_nodb_mtime": {"x": []} }"#,
            r#"{"_nodb_size": 1, "_nodb_size": 77, "_nodb_mtime": 1700000000.25 }"#.to_owned(),
        ),
        (
            r#"{"_nodb_size": 1}"#,
            r#"{"_nodb_size": 77, "_nodb_mtime": 1700000000.25}"#.to_owned(),
        ),
        (
            r#"{"_nodb\u005fmtime":1,"\u00e9":2}"#,
            r#"{"_nodb\u005fmtime":1700000000.25,"\u00e9":2, "_nodb_size": 77}"#.to_owned(),
        ),
        // Fields elsewhere are somebody else's.
        (
            r#"{"a": {"_nodb_size": 1}, "b": [{"py/state": {"_nodb_size": 1}}]}"#,
            format!(
                r#"{{"a": {{"_nodb_size": 1}}, "b": [{{"py/state": {{"_nodb_size": 1}}}}], {set}}}"#
            ),
        ),
        (
            r#"{"_nodb_size": 1, "py/state": {"py/state": {"_nodb_size": 2}}}"#,
            format!(
                r#"{{"_nodb_size": 1, "py/state": {{"py/state": {{"_nodb_size": 2}}, {set}}}}}"#
            ),
        ),
    ] {
        assert_eq!(patch(text), expected, "{text}");
    }
}

#[test]
fn a_document_that_is_no_object_has_no_entry() {
    for text in ["[]", "null", "\"x\"", "[{\"py/state\": {}}]"] {
        assert_eq!(parse(text).patch(text.as_bytes(), SIGNATURE), None);
    }
}

#[test]
fn other_bytes_than_the_parsed_ones_do_no_harm() {
    let document = parse(r#"{"_nodb_size": 1, "a": "é"}"#);
    assert_eq!(document.patch(b"{}", SIGNATURE), None);
    let not_utf8 = [0xff; 40];
    assert_eq!(document.patch(&not_utf8, SIGNATURE), None);
}

#[test]
fn edits_that_do_not_fit_restore_nothing() {
    let edit = |at, len| Edit {
        at,
        len,
        was: "x".to_owned(),
    };
    for edits in [
        vec![edit(4, 0)],
        vec![edit(0, 4)],
        vec![edit(2, usize::MAX)],
        vec![edit(usize::MAX, 1)],
        vec![edit(2, 0), edit(1, 0)],
    ] {
        assert_eq!(restore(b"abc", &edits), None, "{edits:?}");
    }
    let fitting = restore(b"abc", &[edit(0, 1), edit(3, 0)]);
    assert_eq!(fitting.unwrap(), b"xbcx");
}

#[test]
fn times_are_printed_as_python_prints_them() {
    for (mtime_ns, printed) in [
        (0, "0.0"),
        (1, "1e-09"),
        (99_999, "9.9999e-05"),
        (100_000, "0.0001"),
        // Before the epoch the nanoseconds count up from the second below, and digits get lost.
        (-1, "-9.999999717180685e-10"),
        (-1_500_000_000, "-1.5"),
        (1_700_000_000_000_000_000, "1700000000.0"),
        (1_700_000_000_123_456_789, "1700000000.1234567"),
        (9_999_999_999_999_998_000_000_000, "9999999999999998.0"),
        (10_i128.pow(25), "1e+16"),
    ] {
        let signature = Signature { mtime_ns, size: 0 };
        assert_eq!(signature.mtime_repr(), printed);
    }
}

#[test]
fn identity_fields_come_from_the_state_object() {
    let modern = parse(
        r#"{"_parent_wd": "/top", "_group_name": "top",
            "py/state": {"_parent_wd": "/a\u002fb", "_run_group": "batch", "wd": "relative"}}"#,
    );
    assert_eq!(modern.parent_wd.as_deref(), Some("/a/b"));
    assert_eq!(modern.run_group.as_deref(), Some("batch"));
    assert_eq!(modern.group_name, None);
    assert!(modern.broken.is_empty());

    let old = parse(r#"{"_parent_wd": "/\u00e9\ud83d\ude00", "a": {"_run_group": "no"}}"#);
    assert_eq!(old.parent_wd.as_deref(), Some("/é😀"));
    assert_eq!(old.run_group, None);
}

#[test]
fn unusable_identity_fields_are_told_and_null_ones_are_not() {
    let document = parse(r#"{"_parent_wd": ["/a"], "_run_group": "", "_group_name": "\udc80"}"#);
    assert_eq!(document.parent_wd, None);
    assert_eq!(document.run_group, None);
    assert_eq!(document.group_name, None);
    assert_eq!(
        document.broken,
        [
            "_parent_wd is not a string",
            "_run_group is empty",
            "_group_name is not Unicode"
        ]
    );
    let null = parse(r#"{"_parent_wd": "/a", "_parent_wd": null}"#);
    assert_eq!(null.parent_wd, None);
    assert!(null.broken.is_empty());
}
