//! What happened to each controller, newest last: bounded lines in memory, as the bytes of a file that
//! grows at its end and is forgotten at its beginning.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::fs::attr::unix_nanos;
use crate::store::LockName;

/// What is kept of one controller, in bytes: some thousand lines.
const KEPT: usize = 128 << 10;
/// What is kept in all, in bytes: the busy controllers of some hundred runs.
const KEPT_IN_ALL: usize = 32 << 20;
/// What a journal costs beside its lines, in bytes.
const OVERHEAD: usize = 512;
/// The rows that stand for forgotten lines are of this length.
const ROW: u64 = 64;

/// One controller's lines. A position is the number of bytes noted before it, and never changes its
/// meaning; where the lines have been forgotten it reads as rows of dots.
#[derive(Debug, Default)]
pub struct Journal {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// The position after the last line.
    end: u64,
    bytes: usize,
    /// When that was added, in nanoseconds since the epoch.
    changed: Option<i128>,
}

/// One line, its end included.
#[derive(Clone, Debug)]
pub struct Line {
    /// How many lines were noted before it, of all controllers.
    pub number: u64,
    pub start: u64,
    pub text: Arc<str>,
}

impl Line {
    /// The position after it.
    pub fn end(&self) -> u64 {
        self.start + self.text.len() as u64
    }

    /// What it holds from a position within it on.
    pub fn from(&self, position: u64) -> &[u8] {
        let within = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        &self.text.as_bytes()[within.min(self.text.len())..]
    }
}

impl Lines {
    fn start(&self) -> u64 {
        self.kept.front().map_or(self.end, |line| line.start)
    }

    fn forget_to(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some(line) = self.kept.pop_front()
        {
            self.bytes -= line.text.len();
        }
    }

    /// The index of the line at `position`, which is kept.
    fn at(&self, position: u64) -> usize {
        self.kept.partition_point(|line| line.end() <= position)
    }
}

impl Journal {
    /// The position of the oldest line kept.
    pub fn start(&self) -> u64 {
        self.lines.lock().start()
    }

    /// The position after the last line.
    pub fn end(&self) -> u64 {
        self.lines.lock().end
    }

    /// When the last line was added, in nanoseconds since the epoch.
    pub fn changed(&self) -> Option<i128> {
        self.lines.lock().changed
    }

    /// Adds a line, which ends in a line feed; by how much the journal has grown in bytes.
    fn add(&self, number: u64, text: String) -> isize {
        let mut lines = self.lines.lock();
        let before = lines.bytes;
        let line = Line {
            number,
            start: lines.end,
            text: text.into(),
        };
        lines.end = line.end();
        lines.changed = Some(unix_nanos(SystemTime::now()));
        lines.bytes += line.text.len();
        lines.kept.push_back(line);
        lines.forget_to(KEPT);
        lines.bytes as isize - before as isize
    }

    /// Forgets all lines; how many bytes that were.
    fn clear(&self) -> usize {
        let mut lines = self.lines.lock();
        let bytes = lines.bytes;
        lines.forget_to(0);
        bytes
    }

    /// At most `size` bytes from `position` on, and the line in the middle of which they end.
    pub fn read(&self, position: u64, size: usize) -> (Vec<u8>, Option<Line>) {
        let lines = self.lines.lock();
        let end = lines.end.min(position.saturating_add(size as u64));
        let mut bytes =
            Vec::with_capacity(usize::try_from(end.saturating_sub(position)).unwrap_or(0));
        let kept_from = lines.start();
        bytes.extend((position..end.min(kept_from)).map(|at| filler(at, kept_from)));
        let mut last = None;
        for line in lines.kept.range(lines.at(position.max(kept_from))..) {
            let at = position + bytes.len() as u64;
            if at >= end {
                break;
            }
            let part = line.from(at);
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            bytes.extend(&part[..part.len().min(left)]);
            last = (part.len() > left).then(|| line.clone());
        }
        (bytes, last)
    }

    /// The lines from the one of this number on.
    fn since(&self, number: u64) -> Vec<Line> {
        let lines = self.lines.lock();
        let at = lines.kept.partition_point(|line| line.number < number);
        lines.kept.range(at..).cloned().collect()
    }
}

/// What stands at `position`, before the oldest line at `kept_from`: text that no search finds.
fn filler(position: u64, kept_from: u64) -> u8 {
    if position + 1 == kept_from || position % ROW == ROW - 1 {
        b'\n'
    } else {
        b'.'
    }
}

/// The journals of all controllers.
///
/// Lock order: `known` before a journal's `lines`.
#[derive(Debug)]
pub struct Journals {
    known: Mutex<Known>,
    grown: Condvar,
}

#[derive(Debug)]
struct Known {
    journals: LruCache<LockName, Arc<Journal>>,
    by_channel: HashMap<String, Vec<LockName>>,
    bytes: usize,
    /// How many lines were noted.
    noted: u64,
}

impl Default for Journals {
    fn default() -> Self {
        Self {
            known: Mutex::new(Known {
                journals: LruCache::unbounded(),
                by_channel: HashMap::new(),
                bytes: 0,
                noted: 0,
            }),
            grown: Condvar::new(),
        }
    }
}

impl Journals {
    /// The journal of a controller, made if need be.
    pub fn of(&self, name: &LockName) -> Arc<Journal> {
        let mut known = self.known.lock();
        let journal = known.of(name);
        known.bound();
        journal
    }

    /// Adds a line to a controller's journal.
    pub fn add(&self, name: &LockName, line: String) {
        let mut known = self.known.lock();
        let number = known.noted;
        known.noted += 1;
        let grown = known.of(name).add(number, line);
        known.bytes = known.bytes.saturating_add_signed(grown);
        known.bound();
        self.grown.notify_all();
    }

    /// The lines of several controllers from the one of this number on, in the order in which they were
    /// noted, and the number of the next; waits at most `patience` if nothing at all has been noted since.
    pub fn follow(
        &self,
        wanted: impl Fn(&LockName) -> bool,
        since: u64,
        patience: Duration,
    ) -> (Vec<(LockName, Line)>, u64) {
        let mut known = self.known.lock();
        if known.noted <= since {
            self.grown.wait_for(&mut known, patience);
        }
        let next = known.noted;
        let journals = known.journals.iter();
        let wanted: Vec<_> = journals
            .filter(|(name, _)| wanted(name))
            .map(|(name, journal)| (name.clone(), journal.clone()))
            .collect();
        drop(known);
        let mut lines: Vec<_> = wanted
            .into_iter()
            .flat_map(|(name, journal)| {
                let lines = journal.since(since).into_iter();
                lines.map(move |line| (name.clone(), line))
            })
            .filter(|(_, line)| line.number < next)
            .collect();
        lines.sort_by_key(|(_, line)| line.number);
        (lines, next)
    }

    /// The controllers known of a run.
    pub fn of_run(&self, runid: &str) -> Vec<LockName> {
        let known = self.known.lock();
        let names = known.journals.iter().map(|(name, _)| name);
        names.filter(|name| name.runid == runid).cloned().collect()
    }

    /// The controllers whose status channel this is: those that are known, and the one it is named after.
    pub fn on_channel(&self, channel: &str) -> Vec<LockName> {
        let known = self.known.lock();
        let mut names = known.by_channel.get(channel).cloned().unwrap_or_default();
        if let Some((runid, controller)) = channel.rsplit_once(':') {
            let own = LockName {
                runid: runid.to_owned(),
                relpath: format!("{controller}.nodb"),
            };
            if !names.contains(&own) {
                names.push(own);
            }
        }
        names
    }
}

impl Known {
    fn of(&mut self, name: &LockName) -> Arc<Journal> {
        if let Some(journal) = self.journals.get(name) {
            return journal.clone();
        }
        let journal = Arc::new(Journal::default());
        self.journals.put(name.clone(), journal.clone());
        let names = self.by_channel.entry(name.channel()).or_default();
        names.push(name.clone());
        self.bytes += OVERHEAD;
        journal
    }

    /// Forgets the lines of those that were used least lately. Who has a journal open keeps it, empty.
    fn bound(&mut self) {
        let mut tries = self.journals.len();
        while self.bytes > KEPT_IN_ALL && tries > 1 {
            tries -= 1;
            let Some((name, journal)) = self.journals.pop_lru() else {
                return;
            };
            self.bytes -= journal.clear();
            if Arc::strong_count(&journal) > 1 {
                self.journals.put(name, journal);
                continue;
            }
            self.bytes -= OVERHEAD;
            let channel = name.channel();
            if let Some(names) = self.by_channel.get_mut(&channel) {
                names.retain(|known| *known != name);
                if names.is_empty() {
                    self.by_channel.remove(&channel);
                }
            }
        }
    }
}

/// A journal in the shape of a file: its first byte is the position `base`, and it only grows.
#[derive(Debug)]
pub struct View {
    pub journal: Arc<Journal>,
    base: u64,
}

impl View {
    /// From the oldest line on.
    pub fn new(journal: Arc<Journal>) -> Self {
        let base = journal.start();
        Self { journal, base }
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.journal.end() - self.base
    }

    /// How many of its bytes have been forgotten.
    pub fn forgotten(&self) -> u64 {
        self.journal.start().saturating_sub(self.base)
    }

    /// The position of an offset in the file.
    pub fn position(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }
}

/// How one reader gets through a view: the rest of a line that it has begun stays its own, though the
/// line be forgotten meanwhile.
#[derive(Debug, Default)]
pub struct Reading {
    begun: Mutex<Option<Line>>,
}

impl Reading {
    /// At most `size` bytes from `offset` on.
    pub fn read(&self, view: &View, offset: u64, size: usize) -> Vec<u8> {
        let position = view.position(offset);
        let mut begun = self.begun.lock();
        let own = begun.take();
        let mut bytes = Vec::new();
        if let Some(line) = own.filter(|line| (line.start..line.end()).contains(&position)) {
            bytes.extend(line.from(position).iter().take(size));
            if bytes.len() == size && position + (size as u64) < line.end() {
                *begun = Some(line);
            }
        }
        let at = position + bytes.len() as u64;
        if bytes.len() < size {
            let (more, last) = view.journal.read(at, size - bytes.len());
            bytes.extend(more);
            *begun = last;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(runid: &str, relpath: &str) -> LockName {
        LockName {
            runid: runid.into(),
            relpath: relpath.into(),
        }
    }

    #[test]
    fn a_journal_is_a_file_that_grows() {
        let journals = Journals::default();
        let wepp = name("run", "wepp.nodb");
        journals.add(&wepp, "one\n".into());
        let view = View::new(journals.of(&wepp));
        let reading = Reading::default();
        assert_eq!(
            (view.size(), reading.read(&view, 0, 100)),
            (4, b"one\n".to_vec())
        );
        journals.add(&wepp, "two\n".into());
        assert_eq!(view.size(), 8);
        assert_eq!(reading.read(&view, 2, 4), b"e\ntw");
        assert_eq!(reading.read(&view, 6, 100), b"o\n");
        assert_eq!(reading.read(&view, 8, 100), b"");
        assert_eq!(reading.read(&view, u64::MAX, 100), b"");
    }

    #[test]
    fn what_is_forgotten_reads_as_text_of_the_same_length() {
        let journals = Journals::default();
        let wepp = name("run", "wepp.nodb");
        let view = View::new(journals.of(&wepp));
        let reading = Reading::default();
        let line = |n: usize| format!("{n:>99}\n");
        (0..KEPT / 100).for_each(|n| journals.add(&wepp, line(n)));
        assert_eq!(
            reading.read(&view, 0, 150),
            (line(0) + &line(1)[..50]).as_bytes()
        );
        (0..100).for_each(|n| journals.add(&wepp, line(n)));
        // the line that was begun is read to its end, whatever became of it
        assert_eq!(reading.read(&view, 150, 50), &line(1).as_bytes()[50..]);
        let all = reading.read(&view, 0, usize::MAX);
        assert_eq!(all.len() as u64, view.size());
        let forgotten = usize::try_from(view.forgotten()).unwrap();
        assert!(forgotten > 5000);
        let (filler, kept) = all.split_at(forgotten);
        assert!(filler.iter().all(|byte| b".\n".contains(byte)) && filler.ends_with(b"\n"));
        assert!(kept.chunks(100).all(|line| line.ends_with(b"\n")));
        assert_eq!(View::new(view.journal.clone()).size(), kept.len() as u64);
    }

    #[test]
    fn whoever_waits_is_given_the_lines_that_come_in_their_order() {
        let journals = Arc::new(Journals::default());
        let ours = |name: &LockName| name.runid == "run";
        assert_eq!(journals.follow(ours, 0, Duration::ZERO).1, 0);
        let adding = journals.clone();
        let added = std::thread::spawn(move || {
            for (runid, relpath) in [("run", "b"), ("other", "c"), ("run", "a"), ("run", "b")] {
                adding.add(&name(runid, relpath), format!("{relpath}\n"));
            }
        });
        let (mut told, mut next) = (Vec::new(), 0);
        while next < 4 {
            let (lines, after) = journals.follow(ours, next, Duration::from_secs(60));
            told.extend(
                lines
                    .into_iter()
                    .map(|(name, line)| (name.relpath, line.text.to_string())),
            );
            next = after;
        }
        added.join().unwrap();
        let expected = ["b", "a", "b"].map(|one| (one.to_owned(), format!("{one}\n")));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_least_used_are_forgotten_unless_somebody_has_them_open() {
        let journals = Journals::default();
        let open = journals.of(&name("run", "open.nodb"));
        journals.add(&name("run", "open.nodb"), "x\n".into());
        let line = "x".repeat(KEPT / 2 - 1) + "\n";
        let many = KEPT_IN_ALL / KEPT * 2 + 2;
        (0..many).for_each(|n| journals.add(&name("other", &format!("{n}.nodb")), line.clone()));
        let known = journals.known.lock();
        assert!(known.bytes <= KEPT_IN_ALL);
        assert_eq!(known.by_channel.len(), known.journals.len());
        drop(known);
        assert_eq!((open.start(), open.end()), (2, 2));
        assert!(Arc::ptr_eq(&open, &journals.of(&name("run", "open.nodb"))));
        assert!(!journals.of_run("other").contains(&name("other", "0.nodb")));
        assert!(journals.on_channel("other:0") == [name("other", "0.nodb")]);
    }
}
