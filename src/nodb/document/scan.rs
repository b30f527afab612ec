//! One pass over a document: is it one, and where are the fields of its state object?
//!
//! The dialect is exactly what `json.loads(bytes.decode("utf-8"))` of Python 3 accepts, which is
//! wider than RFC 8259 (`NaN`, `-Infinity`, lone surrogates), so parsers of the RFC cannot judge
//! it. Nothing is built: memory is a byte per open container, whatever the document's size.

use std::ops::Range;

use super::Invalid;

/// The deepest nesting of arrays and objects accepted: the recursion limit Python starts with, so
/// a document beyond it could be published but not read by a NoDb process.
pub const MAX_DEPTH: usize = 1000;

/// The members nodbfs cares about, in the state object or, for `State`, at the top level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    State,
    Mtime,
    Size,
    ParentWd,
    RunGroup,
    GroupName,
}

impl Key {
    const COUNT: usize = 6;

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::State => "py/state",
            Self::Mtime => "_nodb_mtime",
            Self::Size => "_nodb_size",
            Self::ParentWd => "_parent_wd",
            Self::RunGroup => "_run_group",
            Self::GroupName => "_group_name",
        }
    }

    /// `quoted` is the name as it stands in the document; an escape may hide in it.
    fn of(quoted: &str) -> Option<Self> {
        let unescaped;
        let name = if quoted.contains('\\') {
            unescaped = unquote(quoted)?;
            &unescaped
        } else {
            quoted.trim_matches('"')
        };
        [
            Self::State,
            Self::Mtime,
            Self::Size,
            Self::ParentWd,
            Self::RunGroup,
            Self::GroupName,
        ]
        .into_iter()
        .find(|key| key.name() == name)
    }
}

/// The value of a string literal; `None` if a lone surrogate keeps it from being Unicode.
pub(super) fn unquote(quoted: &str) -> Option<String> {
    serde_json::from_str(quoted).ok()
}

/// What is remembered of an object: where its last member ends and where known values stand.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Behind the last value, or behind the brace while there is none.
    pub(super) end: usize,
    pub(super) empty: bool,
    values: [Option<Range<usize>>; Key::COUNT],
    /// The member being read.
    key: Option<Key>,
    value_at: usize,
}

impl Object {
    fn new(end: usize) -> Self {
        Self {
            end,
            empty: true,
            values: Default::default(),
            key: None,
            value_at: end,
        }
    }

    /// Where the value of `key` stands; of duplicates the last, which is the one Python keeps.
    pub(super) fn value(&self, key: Key) -> Option<Range<usize>> {
        self.values[key as usize].clone()
    }
}

/// Finds the state object: `py/state` if that is an object, else the top level; `None` if the
/// document is valid but no object.
pub(super) fn state_object(text: &str) -> Result<Option<Object>, Invalid> {
    let mut scanner = Scanner {
        text,
        bytes: text.as_bytes(),
        at: 0,
        open: Vec::new(),
        top: None,
        state: None,
        in_state: false,
    };
    scanner.document()?;
    let nested = scanner.top.as_ref().and_then(|top| top.value(Key::State));
    Ok(match nested {
        Some(value) if text[value.clone()].starts_with('{') => scanner.state,
        _ => scanner.top,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

/// Whether a value was read whole, or a container was opened whose first value comes next.
#[derive(PartialEq, Eq)]
enum Value {
    Complete,
    Opened,
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// The containers around `at`; explicit, so that no nesting overflows the thread's stack.
    open: Vec<Container>,
    top: Option<Object>,
    /// The last object seen as the top level's `py/state`.
    state: Option<Object>,
    /// Whether the container at depth 2 is `state`.
    in_state: bool,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Invalid> {
        self.whitespace();
        loop {
            let at = self.at;
            if let Some(object) = self.watched() {
                object.value_at = at;
            }
            if self.value()? == Value::Complete && self.follow()? {
                return Ok(());
            }
        }
    }

    fn value(&mut self) -> Result<Value, Invalid> {
        match self.peek() {
            Some(b'{') => return self.enter(Container::Object, b'}'),
            Some(b'[') => return self.enter(Container::Array, b']'),
            Some(b'"') => {
                self.string()?;
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.literal("true")?,
            Some(b'f') => self.literal("false")?,
            Some(b'n') => self.literal("null")?,
            Some(b'N') => self.literal("NaN")?,
            Some(b'I') => self.literal("Infinity")?,
            Some(0xef) if self.at == 0 && self.text.starts_with('\u{feff}') => {
                return Err(self.invalid("a byte order mark"));
            }
            _ => return Err(self.expected("a value")),
        }
        Ok(Value::Complete)
    }

    fn enter(&mut self, container: Container, close: u8) -> Result<Value, Invalid> {
        if self.open.len() == MAX_DEPTH {
            return Err(self.invalid(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.at += 1;
        self.open.push(container);
        let is_object = container == Container::Object;
        match self.open.len() {
            1 if is_object => self.top = Some(Object::new(self.at)),
            2 => {
                let key = self.top.as_ref().and_then(|top| top.key);
                self.in_state = is_object && key == Some(Key::State);
                if self.in_state {
                    self.state = Some(Object::new(self.at));
                }
            }
            _ => {}
        }
        self.whitespace();
        if self.eat(close) {
            self.open.pop();
            return Ok(Value::Complete);
        }
        if is_object {
            self.key()?;
        }
        Ok(Value::Opened)
    }

    /// What comes after a value: closing brackets, then a comma or the end (`true`).
    fn follow(&mut self) -> Result<bool, Invalid> {
        loop {
            let at = self.at;
            if let Some(object) = self.watched() {
                object.end = at;
                if let Some(key) = object.key {
                    object.values[key as usize] = Some(object.value_at..at);
                }
            }
            self.whitespace();
            match (self.open.last(), self.peek()) {
                (None, None) => return Ok(true),
                (None, Some(_)) => return Err(self.invalid("more data after the document")),
                (Some(container), Some(b',')) => {
                    let in_object = *container == Container::Object;
                    self.at += 1;
                    self.whitespace();
                    if in_object {
                        self.key()?;
                    }
                    return Ok(false);
                }
                (Some(Container::Array), Some(b']')) | (Some(Container::Object), Some(b'}')) => {
                    self.at += 1;
                    self.open.pop();
                }
                (Some(Container::Array), _) => return Err(self.expected("',' or ']'")),
                (Some(Container::Object), _) => return Err(self.expected("',' or '}'")),
            }
        }
    }

    /// The object at hand, if it is the top level or `py/state`.
    fn watched(&mut self) -> Option<&mut Object> {
        match self.open.len() {
            1 => self.top.as_mut(),
            2 if self.in_state => self.state.as_mut(),
            _ => None,
        }
    }

    fn key(&mut self) -> Result<(), Invalid> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a member's name in double quotes"));
        }
        let name = self.string()?;
        let text = self.text;
        if let Some(object) = self.watched() {
            object.empty = false;
            object.key = Key::of(&text[name]);
        }
        self.whitespace();
        if !self.eat(b':') {
            return Err(self.expected("':'"));
        }
        self.whitespace();
        Ok(())
    }

    fn string(&mut self) -> Result<Range<usize>, Invalid> {
        let start = self.at;
        self.at += 1;
        loop {
            let plain = self.bytes[self.at..]
                .iter()
                .position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ');
            self.at = plain.map_or(self.bytes.len(), |plain| self.at + plain);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at);
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.invalid("a control character inside a string")),
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Invalid> {
        self.at += match &self.bytes[self.at + 1..] {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_hexdigit()) => 6,
            _ => return Err(self.invalid("a bad escape")),
        };
        Ok(())
    }

    fn number(&mut self) -> Result<(), Invalid> {
        if self.eat(b'-') && self.peek() == Some(b'I') {
            return self.literal("Infinity");
        }
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Invalid> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        match self.at == start {
            true => Err(self.expected("a digit")),
            false => Ok(()),
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), Invalid> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expected(&self, what: &str) -> Invalid {
        match self.peek() {
            Some(_) => self.invalid(format!("expected {what}")),
            None => self.invalid(format!("the text ends where {what} was expected")),
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> Invalid {
        Invalid {
            offset: self.at,
            reason: reason.into(),
        }
    }
}
