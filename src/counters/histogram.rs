//! Times by their size: four classes to each doubling, so that a quantile is right to a quarter.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Up to 2^42 ns, more than an hour.
const CLASSES: usize = 42 * 4;

/// How often which time came.
#[derive(Debug)]
pub struct Histogram {
    classes: [AtomicU64; CLASSES],
    /// Nanoseconds.
    sum: AtomicU64,
}

impl Histogram {
    pub const fn new() -> Self {
        Self {
            classes: [const { AtomicU64::new(0) }; CLASSES],
            sum: AtomicU64::new(0),
        }
    }

    pub fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.classes[class_of(nanos)].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.classes.iter().map(|class| class.load(Relaxed)).sum()
    }

    pub fn mean(&self) -> Duration {
        let sum = self.sum.load(Relaxed);
        Duration::from_nanos(sum.checked_div(self.count()).unwrap_or(0))
    }

    /// The time that the part `quantile` of all did not exceed: the end of its class.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let counts = self.classes.each_ref().map(|class| class.load(Relaxed));
        let wanted = (counts.iter().sum::<u64>() as f64 * quantile).ceil();
        let mut seen = 0;
        let class = counts.iter().position(|count| {
            seen += count;
            *count > 0 && seen as f64 >= wanted
        });
        Duration::from_nanos(class.map_or(0, end_of))
    }
}

/// The number's magnitude and its two next binary digits.
fn class_of(nanos: u64) -> usize {
    let nanos = nanos.max(4);
    let magnitude = nanos.ilog2() as usize;
    let next = (nanos >> (magnitude - 2)) as usize & 3;
    (magnitude * 4 + next - 8).min(CLASSES - 1)
}

fn end_of(class: usize) -> u64 {
    let (magnitude, next) = (class / 4 + 2, class as u64 % 4);
    ((5 + next) << (magnitude - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_ends_at_most_a_quarter_above_its_times() {
        for nanos in (0..100_000).chain([1 << 30, (1 << 40) + 12_345]) {
            let end = end_of(class_of(nanos));
            assert!(nanos <= end, "{nanos}");
            assert!(end <= nanos.max(4) + nanos.max(4) / 4, "{nanos}: {end}");
        }
        assert_eq!(class_of(u64::MAX), CLASSES - 1);
    }

    #[test]
    fn quantiles_and_mean_of_what_was_added() {
        let histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        assert_eq!(histogram.mean(), Duration::ZERO);
        for micros in [10; 98].into_iter().chain([1000, 1000]) {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.count(), 100);
        let within =
            |time: Duration, micros: u128| (micros..micros * 5 / 4).contains(&time.as_micros());
        assert!(within(histogram.quantile(0.5), 10));
        assert!(within(histogram.quantile(0.99), 1000));
        assert_eq!(histogram.mean(), Duration::from_nanos(29_800));
    }
}
