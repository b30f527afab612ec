//! Which ranges of a file one owner has locked.

use super::Strength;

/// The last byte a file can have.
pub const END: u64 = i64::MAX as u64;

/// Bytes that were locked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte and the last.
    pub first: u64,
    pub last: u64,
    /// The process that asked.
    pub pid: u32,
    /// The handle it asked through.
    pub handle: u64,
}

/// Ranges that do not overlap.
#[derive(Debug, Default)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The bytes of `range` are locked now, or not any more.
    pub fn set(&mut self, range: Range, strength: Option<Strength>) {
        let before = std::mem::take(&mut self.0);
        for old in before {
            if old.last < range.first || range.last < old.first {
                self.0.push(old);
                continue;
            }
            if old.first < range.first {
                let last = range.first - 1;
                self.0.push(Range { last, ..old });
            }
            if range.last < old.last {
                let first = range.last + 1;
                self.0.push(Range { first, ..old });
            }
        }
        if strength.is_some() {
            let joined = self.joined(range);
            self.0.push(joined);
        }
    }

    /// `range` with its neighbours of the same origin, which go.
    fn joined(&mut self, mut range: Range) -> Range {
        self.0.retain(|old| {
            let same = old.pid == range.pid && old.handle == range.handle;
            if same && old.last.checked_add(1) == Some(range.first) {
                range.first = old.first;
            } else if same && range.last.checked_add(1) == Some(old.first) {
                range.last = old.last;
            } else {
                return true;
            }
            false
        });
        range
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The range that holds the byte `at`.
    pub fn at(&self, at: u64) -> Option<Range> {
        let mut held = self.0.iter();
        held.find(|range| range.first <= at && at <= range.last)
            .copied()
    }

    /// Removes what was locked through `handle`.
    pub fn take(&mut self, handle: u64) -> Vec<Range> {
        self.0
            .extract_if(.., |range| range.handle == handle)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64, handle: u64) -> Range {
        Range {
            first,
            last,
            pid: 1,
            handle,
        }
    }

    #[test]
    fn a_hole_splits_a_range_and_neighbours_are_joined() {
        let mut held = Ranges::default();
        held.set(range(0, END, 1), Some(Strength::Exclusive));
        held.set(range(10, 19, 1), None);
        assert_eq!(held.at(9), Some(range(0, 9, 1)));
        assert_eq!(held.at(10), None);
        assert_eq!(held.at(END), Some(range(20, END, 1)));
        held.set(range(10, 19, 1), Some(Strength::Shared));
        assert_eq!(held.0, [range(0, END, 1)]);
    }

    #[test]
    fn what_was_locked_again_through_another_handle_is_that_ones() {
        let mut held = Ranges::default();
        held.set(range(0, 99, 1), Some(Strength::Shared));
        held.set(range(10, 19, 2), Some(Strength::Shared));
        assert_eq!(held.take(1), [range(0, 9, 1), range(20, 99, 1)]);
        assert_eq!(held.0, [range(10, 19, 2)]);
    }
}
