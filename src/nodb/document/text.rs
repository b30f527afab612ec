//! A document's text, worked on where it stands: nothing is read into numbers and strings and
//! written anew, so what is not touched stays byte for byte. All of this is for texts that are
//! known to be documents.

use std::ops::Range;

use super::Invalid;
use super::scan::unquote;

/// Why a field cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettable {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the document is no object, so it has no fields")]
    NoObject,
    #[error("there is no '{0}', so nothing can be set in it")]
    Missing(String),
    #[error("'{0}' is neither an object nor an array")]
    NoContainer(String),
    #[error("'{0}' is no index of an array of {1}")]
    NoIndex(String, usize),
}

/// Whether two documents differ in nothing but white space between their parts.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    Parts::of(one).eq(Parts::of(other))
}

/// The bytes of a text without the white space outside of its strings.
struct Parts<'a> {
    bytes: std::slice::Iter<'a, u8>,
    in_string: bool,
    escaped: bool,
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self {
            bytes: bytes.iter(),
            in_string: false,
            escaped: false,
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let in_string = self.in_string;
        let byte = *self
            .bytes
            .find(|byte| in_string || !byte.is_ascii_whitespace())?;
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ => {}
        }
        Some(byte)
    }
}

/// A JSON value for `typed`: itself if it is one, else a string of it, escaped as Python's `json`
/// does it.
pub fn value_of(typed: &str) -> String {
    if super::Document::parse(typed.as_bytes()).is_ok() {
        return typed.trim().to_owned();
    }
    quoted(typed)
}

/// As `json.dumps` writes a string: in ASCII.
fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    let mut ascii = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(unit) if unit.is_ascii() && unit != 0x7f => ascii.push(unit.into()),
            _ => ascii += &format!("\\u{unit:04x}"),
        }
    }
    ascii
}

/// `text` with the field `path` of its state object set to the JSON `value`. The path's steps are
/// separated by dots, `\.` is a dot within one; a step into an array is an index. A last step that
/// an object lacks is added at its end.
pub fn set(text: &str, path: &str, value: &str) -> Result<String, Unsettable> {
    let mut at = state_of(text)?;
    let steps = steps(path);
    let mut walked = String::new();
    for (nth, step) in steps.iter().enumerate() {
        let last = nth + 1 == steps.len();
        let container = Container::read(text, at);
        at = match container.find(step) {
            Ok(at) => at,
            Err(Absent::Member) if last => return Ok(container.append(text, step, value)),
            Err(Absent::Member) => return Err(Unsettable::Missing(join(&walked, step))),
            Err(Absent::Index(len)) => return Err(Unsettable::NoIndex(step.clone(), len)),
            Err(Absent::NoContainer) => return Err(Unsettable::NoContainer(walked)),
        };
        walked = join(&walked, step);
    }
    Ok(format!("{}{value}{}", &text[..at.start], &text[at.end..]))
}

/// The object whose members are the state's fields (PROTOCOL.md 1).
fn state_of(text: &str) -> Result<Range<usize>, Unsettable> {
    super::Document::parse(text.as_bytes())?;
    let top = skip_space(text, 0)..text.trim_end().len();
    let container = Container::read(text, top.clone());
    if container.open != b'{' {
        return Err(Unsettable::NoObject);
    }
    Ok(match container.find("py/state") {
        Ok(state) if text[state.clone()].starts_with('{') => state,
        _ => top,
    })
}

fn steps(path: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        let step = steps.len() - 1;
        match c {
            '\\' if chars.peek() == Some(&'.') => steps[step].extend(chars.next()),
            '.' => steps.push(String::new()),
            c => steps[step].push(c),
        }
    }
    steps
}

fn join(walked: &str, step: &str) -> String {
    match walked {
        "" => step.to_owned(),
        walked => format!("{walked}.{step}"),
    }
}

/// What stands where a step leads nowhere.
enum Absent {
    Member,
    Index(usize),
    NoContainer,
}

/// An array or an object, and where its parts stand.
struct Container {
    open: u8,
    /// The names of an object's members, unquoted.
    names: Vec<Option<String>>,
    values: Vec<Range<usize>>,
    /// Where a further part would go: behind the last, or behind the opening bracket.
    end: usize,
}

impl Container {
    /// Reads what stands `at`, which is a value.
    fn read(text: &str, at: Range<usize>) -> Self {
        let bytes = text.as_bytes();
        let mut container = Self {
            open: bytes[at.start],
            names: Vec::new(),
            values: Vec::new(),
            end: at.start + 1,
        };
        if !matches!(container.open, b'{' | b'[') {
            return container;
        }
        let mut here = skip_space(text, at.start + 1);
        while here < at.end && !matches!(bytes[here], b'}' | b']') {
            if container.open == b'{' {
                let name = here..skip_value(text, here);
                container.names.push(unquote(&text[name.clone()]));
                // the colon
                here = skip_space(text, skip_space(text, name.end) + 1);
            }
            let value = here..skip_value(text, here);
            container.end = value.end;
            here = skip_space(text, value.end);
            container.values.push(value);
            if bytes.get(here) == Some(&b',') {
                here = skip_space(text, here + 1);
            }
        }
        container
    }

    /// Where `step` leads; of duplicate names to the last, which is the one Python keeps.
    fn find(&self, step: &str) -> Result<Range<usize>, Absent> {
        let at = match self.open {
            b'{' => {
                let is = |name: &Option<String>| name.as_deref() == Some(step);
                self.names.iter().rposition(is).ok_or(Absent::Member)?
            }
            b'[' => {
                let index = step.parse().ok().filter(|index| *index < self.values.len());
                index.ok_or(Absent::Index(self.values.len()))?
            }
            _ => return Err(Absent::NoContainer),
        };
        Ok(self.values[at].clone())
    }

    /// The text with one more member in this object.
    fn append(&self, text: &str, name: &str, value: &str) -> String {
        let separator = if self.values.is_empty() { "" } else { ", " };
        let (before, behind) = text.split_at(self.end);
        format!("{before}{separator}{}: {value}{behind}", quoted(name))
    }
}

fn skip_space(text: &str, at: usize) -> usize {
    let rest = &text.as_bytes()[at..];
    let space = rest.iter().take_while(|byte| byte.is_ascii_whitespace());
    at + space.count()
}

/// The end of the value that begins `at`.
fn skip_value(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut here) = (0usize, at);
    while here < bytes.len() {
        match bytes[here] {
            b'"' => {
                here = skip_string(bytes, here);
                if depth == 0 {
                    return here;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return here + 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return here,
            _ => {}
        }
        here += 1;
    }
    here
}

fn skip_string(bytes: &[u8], at: usize) -> usize {
    let mut here = at + 1;
    while here < bytes.len() && bytes[here] != b'"' {
        here += if bytes[here] == b'\\' { 2 } else { 1 };
    }
    here + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str = r#"{"py/object": "wepp", "n": 1, "n": 1.50, "py/state": {"a": [NaN, {"b.c": -Infinity}, []], "big": 123456789012345678901234567890, "e": {}, "s": "\ud800\",}", "f": 1e5}}"#;

    fn put(path: &str, value: &str) -> Result<String, Unsettable> {
        set(ODD, path, value)
    }

    #[test]
    fn one_field_changes_and_every_other_byte_stays() {
        for (path, value, from, to) in [
            ("f", "2", "1e5", "2"),
            ("a.0", "null", "NaN", "null"),
            (r"a.1.b\.c", "0", "-Infinity", "0"),
            ("a.2", "[1]", "[]", "[1]"),
            ("big", "1", "123456789012345678901234567890", "1"),
            ("s", "\"x\"", r#""\ud800\",}""#, "\"x\""),
            ("e", "{\"x\": 1}", "{}", "{\"x\": 1}"),
            ("e.new", "true", "{}", "{\"new\": true}"),
            ("n", "3", "1e5}", "1e5, \"n\": 3}"),
            ("é", "3", "1e5}", "1e5, \"\\u00e9\": 3}"),
        ] {
            assert_eq!(
                put(path, value).unwrap(),
                ODD.replacen(from, to, 1),
                "{path}"
            );
        }
    }

    #[test]
    fn the_state_is_at_the_top_of_old_documents_and_the_last_duplicate_counts() {
        let set = |text, path| set(text, path, "9").unwrap();
        assert_eq!(
            set(r#" {"n": 1, "n" : 1.50} "#, "n"),
            r#" {"n": 1, "n" : 9} "#
        );
        assert_eq!(set("{\n}", "n"), "{\"n\": 9\n}");
        assert_eq!(set(r#"{"\u006e": 1}"#, "n"), r#"{"\u006e": 9}"#);
        let broken_state = r#"{"py/state": 1, "a": 2}"#;
        assert_eq!(set(broken_state, "a"), r#"{"py/state": 1, "a": 9}"#);
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        let why = |path| put(path, "1").unwrap_err().to_string();
        assert_eq!(why("x.y"), "there is no 'x', so nothing can be set in it");
        assert_eq!(why("f.y"), "'f' is neither an object nor an array");
        assert_eq!(why("a.3"), "'3' is no index of an array of 3");
        assert_eq!(why("a.x"), "'x' is no index of an array of 3");
        assert_eq!(set("[1]", "0", "1"), Err(Unsettable::NoObject));
        assert!(matches!(set("{", "0", "1"), Err(Unsettable::Invalid(_))));
    }

    #[test]
    fn what_is_typed_is_json_or_else_a_string_as_python_writes_it() {
        for (typed, value) in [
            ("12", "12"),
            (" NaN ", "NaN"),
            ("[1, 2]", "[1, 2]"),
            ("\"12\"", "\"12\""),
            ("true", "true"),
            ("True", "\"True\""),
            ("a \"b\"\\", r#""a \"b\"\\""#),
            ("é😀\n\u{7f}", r#""\u00e9\ud83d\ude00\n\u007f""#),
            ("\"", r#""\"""#),
            ("", "\"\""),
        ] {
            assert_eq!(value_of(typed), value);
        }
    }

    #[test]
    fn documents_are_the_same_whatever_the_space_between_their_parts() {
        assert!(same(
            br#"{"a": [1, "x \" y"]}"#,
            b"{ \"a\":[1,\n\"x \\\" y\"] }\n"
        ));
        assert!(!same(br#"{"a": "x y"}"#, br#"{"a": "xy"}"#));
        assert!(!same(b"[1]", b"[1, 2]"));
    }
}
