//! Documents against Python: nodbfs must accept exactly what `json.loads` accepts, and what it
//! puts into the cache must mean the same document to Python, with the file's signature in it.

mod generate;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;

use generate::{document, mutated, signature};
use nodbfs::nodb::document::{Document, Signature, restore};
use nodbfs::nodb::seal::Seal;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Python's answers, one line per case: whether it accepts the document and, if there is a patched
/// text, what is wrong with that. argv[1] is a file whose mtime may be changed.
const PYTHON: &str = r#"
import json, os, sys

if hasattr(sys, 'set_int_max_str_digits'):
    sys.set_int_max_str_digits(0)  # an interpreter's own limit, not the dialect's

def loads(text, **options):
    return json.loads(bytes.fromhex(text).decode('utf-8'), **options)

def compare(original, patched, mtime_ns, size):
    os.utime(sys.argv[1], ns=(mtime_ns, mtime_ns))
    stat = os.stat(sys.argv[1])
    if stat.st_mtime_ns != mtime_ns:
        return 'this file system cannot hold the time'
    # Constants and floats as they are written: nan != nan, and repr has to agree to the letter.
    as_written = dict(parse_float=lambda text: ('float', text), parse_constant=lambda text: ('constant', text))
    expected, found = loads(original, **as_written), loads(patched, **as_written)
    state = expected.get('py/state')
    if not isinstance(state, dict):
        state = expected
    state['_nodb_mtime'] = ('float', repr(stat.st_mtime))
    state['_nodb_size'] = size
    sys.setrecursionlimit(10000)
    same = repr(found) == repr(expected)
    sys.setrecursionlimit(1000)
    return 'same' if same else f'expected {expected!r}, found {found!r}'

for line in sys.stdin:
    original, patched, mtime_ns, size = line.rstrip('\n').split(',')
    try:
        loads(original)
    except (ValueError, RecursionError) as error:
        print('refused:', ascii(str(error)))
        continue
    print('accepted:', ascii(compare(original, patched, int(mtime_ns), int(size)) if patched else 'no object'))
"#;

/// A document to be judged by both, and the signature to be set in it.
struct Case {
    bytes: Vec<u8>,
    signature: Signature,
}

/// Asks one `python3` about all cases.
fn ask_python(lines: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let mut questions = tempfile::tempfile_in(&directory).unwrap();
    questions.write_all(lines.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut questions).unwrap();
    let stamped = tempfile::NamedTempFile::new_in(&directory).unwrap();
    let output = Command::new("python3")
        .args(["-c", PYTHON])
        .arg(stamped.path())
        .stdin(questions)
        .output()
        .expect("this test compares with python3, which must be installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answers = String::from_utf8(output.stdout).unwrap();
    answers.lines().map(str::to_owned).collect()
}

/// Compares the verdicts case by case and gives how many documents were accepted.
fn compare_with_python(cases: &[Case]) -> usize {
    let mut lines = String::new();
    let mut accepted = Vec::new();
    for Case { bytes, signature } in cases {
        let document = Document::parse(bytes);
        let patched = document
            .as_ref()
            .ok()
            .and_then(|document| document.patch(bytes, *signature));
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            })
        };
        let patched = patched
            .map(|patched| hex(&patched.text))
            .unwrap_or_default();
        let Signature { mtime_ns, size } = signature;
        writeln!(lines, "{},{patched},{mtime_ns},{size}", hex(bytes)).unwrap();
        accepted.push(document);
    }
    let answers = ask_python(&lines);
    assert_eq!(answers.len(), cases.len());
    for ((case, ours), python) in cases.iter().zip(&accepted).zip(&answers) {
        let text = String::from_utf8_lossy(&case.bytes);
        let agreed = match ours {
            Err(_) => python.starts_with("refused:"),
            Ok(_) => matches!(&**python, "accepted: 'same'" | "accepted: 'no object'"),
        };
        assert!(agreed, "{text:?}\nPython: {python}\nnodbfs: {ours:?}");
    }
    accepted.iter().filter(|verdict| verdict.is_ok()).count()
}

proptest! {
    #[test]
    fn restoring_a_patched_document_gives_its_exact_bytes(text in document(), signature in signature()) {
        let bytes = text.as_bytes();
        let document = Document::parse(bytes).unwrap();
        match document.patch(bytes, signature) {
            Some(patched) => {
                prop_assert_eq!(&restore(&patched.text, &patched.edits).unwrap(), bytes);
                let seal = Seal::from_bytes(&Seal::new(bytes, &patched, signature).to_bytes()).unwrap();
                prop_assert_eq!(&seal.open(&patched.text, signature).unwrap(), bytes);
                // Patching the entry again changes nothing: both found the same places.
                let again = Document::parse(&patched.text).unwrap();
                prop_assert_eq!(again.patch(&patched.text, signature).unwrap().text, patched.text);
            }
            None => prop_assert_ne!(text.trim_start().as_bytes()[0], b'{'),
        }
    }

    #[test]
    fn no_bytes_and_no_edits_make_it_panic(bytes in mutated(), other in mutated(), signature in signature()) {
        if let Ok(document) = Document::parse(&bytes)
            && let Some(patched) = document.patch(&other, signature)
        {
            let _ = restore(&bytes, &patched.edits);
            prop_assert_eq!(restore(&patched.text, &patched.edits), Some(other));
        }
    }
}

#[test]
fn python_agrees_on_generated_documents() {
    let mut runner = TestRunner::deterministic();
    let mut draw = |valid: bool| {
        let bytes = match valid {
            true => document().prop_map(String::into_bytes).boxed(),
            false => mutated().boxed(),
        };
        let (bytes, signature) = (bytes, signature())
            .new_tree(&mut runner)
            .unwrap()
            .current();
        Case { bytes, signature }
    };
    let valid: Vec<_> = (0..600).map(|_| draw(true)).collect();
    assert_eq!(compare_with_python(&valid), valid.len());
    let mutations: Vec<_> = (0..2500).map(|_| draw(false)).collect();
    let accepted = compare_with_python(&mutations);
    // The corpus is worth something only if it holds plenty of both.
    assert!((250..2250).contains(&accepted), "{accepted} accepted");
}

#[test]
fn python_agrees_on_nasty_documents() {
    let mut nasty: Vec<Vec<u8>> = [
        "",
        " ",
        "\n",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\"\\",
        "\"\\\"",
        ":",
        ",",
        "-",
        "+1",
        "--1",
        "- 1",
        "0",
        "-0",
        "00",
        "01",
        "-01",
        "0x1",
        "1_0",
        "1.",
        ".5",
        "1.e3",
        "1e",
        "1e+",
        "1E5",
        "1e-05",
        "1e999",
        "-1e999",
        "1.5E+3",
        "1e5.5",
        "1 2",
        "1,",
        "1]",
        "٣",
        "[1٣]",
        "1e٣",
        "NaN",
        "nan",
        "NAN",
        "-NaN",
        "Infinity",
        "-Infinity",
        "+Infinity",
        "- Infinity",
        "Inf",
        "-Inf",
        "-I",
        "Infinityx",
        "infinity",
        "null",
        "nul",
        "nulll",
        "None",
        "true",
        "True",
        "tru",
        "truefalse",
        "[true false]",
        "[]",
        "[ ]",
        "[,]",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1 2]",
        "[1}",
        "{]",
        "{}",
        "{ }",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\"::1}",
        "{\"a\" :\t1\r\n}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "{null:1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1;}",
        "{\"a\":1}}",
        "{\"a\":1}{\"b\":2}",
        "{\"a\":1}\0",
        "\0{}",
        "\u{feff}{}",
        "{}\u{feff}",
        "{\u{feff}}",
        "[\"\u{feff}\"]",
        "\u{a0}{}",
        "{}\u{a0}",
        "\u{2028}[]",
        "[]\u{2028}",
        "\u{b}[]",
        "[]\u{c}",
        "[\"\u{2028}\u{2029}\"]",
        "/**/[]",
        "[] // x",
        "#\n[]",
        "\"\t\"",
        "\"\n\"",
        "\"\0\"",
        "\"\u{1f}\"",
        "\"\u{7f}\"",
        "\"\u{80}\"",
        "{\"\t\":1}",
        r#""\a""#,
        r#""\'""#,
        r#""\0""#,
        r#""\x41""#,
        r#""\U0041""#,
        r#""\u""#,
        r#""\u004""#,
        r#""\u004g""#,
        r#""\u+041""#,
        r#""\u 041""#,
        r#""\u0x41""#,
        r#""\u00_1""#,
        r#""\u0041""#,
        r#""\uABCD\uabcd""#,
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ud800\ud800""#,
        r#""\ud800\u0041""#,
        r#""\ud800\n""#,
        r#""\ud800x""#,
        r#""\ud800\u""#,
        r#""\ud800\uzzzz""#,
        r#""\ud800\"#,
        r#""\ud83d\ude00""#,
        r#""\ude00\ud83d""#,
        r#"{"\ud800":1,"\ud800":2}"#,
        r#""\u0000""#,
        "\"😀\"",
        "\"e\u{301}\"",
        r#"{"a":1,"a":2}"#,
        r#"{"":1}"#,
        r#"{"py/state":{"_nodb_mtime":NaN,"_nodb_size":"x"}}"#,
        r#"{"py/state":{},"py/state":{}}"#,
        r#"{"py/state":{"a":1},"py/state":null}"#,
        r#"{"py/state":null,"py/state":{"a":{}}}"#,
        r#"{"py\u002fstate":{"_nodb_mtime":1}}"#,
        r#"{"\u0070y/state":{},"_nodb_size":{"_nodb_size":[1]},"_nodb_size":[]}"#,
        r#"{"py/state":[{"_nodb_size":1}]}"#,
        r#"{"py/state":"{}"}"#,
        r#"[{"py/state":{}}]"#,
        r#"{"py/state":{"py/state":{"_nodb_size":1},"_nodb_size":2},"_nodb_size":3}"#,
        r#"{"x":{"y":{"_nodb_size":1}},"py/state":{"z":[{"_nodb_size":1}]}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let raw: [&[u8]; 12] = [
        b"\xff",
        b"\"\xff\"",
        b"\"\xc0\x80\"",
        b"\"\xc3\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xed\xb0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\"\xf0\x80\x80\xaf\"",
        b"\"\xf0\x9f\x98\x80\"",
        b"{}\xc2",
        b"\xff\xfe{\x00}\x00",
        b"{\x00}\x00",
    ];
    nasty.extend(raw.map(<[u8]>::to_vec));
    for depth in [1, 100, 900] {
        nasty.push(("[".repeat(depth) + &"]".repeat(depth)).into());
        nasty.push(("{\"a\":".repeat(depth) + "1" + &"}".repeat(depth)).into());
        nasty.push("[".repeat(depth).into());
    }
    nasty.push("[".repeat(100_000).into());
    nasty.push("9".repeat(5_000).into());
    nasty.push(format!("{{\"a\": -{}.5}}", "7".repeat(5_000)).into());
    let signature = Signature {
        mtime_ns: 1_777_777_777_123_456_789,
        size: 4096,
    };
    let cases: Vec<_> = nasty
        .into_iter()
        .map(|bytes| Case { bytes, signature })
        .collect();
    compare_with_python(&cases);
}
