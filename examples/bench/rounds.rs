//! Rounds: each thing compared is measured once per round, one after the other, and the ratios are
//! taken within a round, so that what slows the whole machine down slows both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// One of the things compared.
pub struct Subject<'a> {
    name: &'static str,
    /// Does it once more, and says how long one operation took.
    measure: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

impl<'a> Subject<'a> {
    pub fn new(name: &'static str, measure: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self {
            name,
            measure: Box::new(measure),
        }
    }
}

/// The cost of one subject in units of another one's, by their places in the list of subjects.
pub struct Ratio {
    pub of: usize,
    pub to: usize,
    pub goal: Option<f64>,
}

impl Ratio {
    pub fn new(of: usize, to: usize) -> Self {
        Self { of, to, goal: None }
    }

    pub fn goal(self, goal: f64) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }
}

#[derive(Clone)]
pub struct Rounds {
    count: usize,
    interrupted: Arc<AtomicBool>,
}

impl Rounds {
    pub fn new(count: usize, interrupted: Arc<AtomicBool>) -> Self {
        Self { count, interrupted }
    }

    /// `times` as many rounds.
    pub fn more(&self, times: usize) -> Self {
        Self::new(self.count * times, self.interrupted.clone())
    }

    /// A `part`th of the rounds, but enough for a median.
    pub fn fewer(&self, part: usize) -> Self {
        Self::new((self.count / part).max(3), self.interrupted.clone())
    }

    /// The times of `count` things, measured in turn; none of what cannot be measured.
    pub fn times(
        &self,
        count: usize,
        mut measure: impl FnMut(usize) -> Result<Option<Duration>>,
    ) -> Result<Vec<Vec<Duration>>> {
        let mut times = vec![Vec::new(); count];
        // the first round warms everything up and is not counted
        for round in 0..=self.count {
            for (at, times) in times.iter_mut().enumerate() {
                ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
                let time = measure(at)?;
                if round > 0 {
                    times.extend(time);
                }
            }
        }
        Ok(times)
    }

    /// Measures the subjects in turn and prints the ratios.
    pub fn compare(
        &self,
        title: &str,
        mut subjects: Vec<Subject<'_>>,
        ratios: &[Ratio],
    ) -> Result<()> {
        let times = self.times(subjects.len(), |at| (subjects[at].measure)().map(Some))?;
        let times: Vec<Vec<f64>> = times
            .iter()
            .map(|one| one.iter().map(Duration::as_secs_f64).collect())
            .collect();
        println!("{title}");
        for Ratio { of, to, goal } in ratios {
            let pairs = times[*of].iter().zip(&times[*to]);
            let [low, median, high] = quartiles(pairs.map(|(of, to)| of / to).collect());
            let verdict = match goal {
                Some(goal) if median <= *goal => format!("goal {goal:.1}: reached"),
                Some(goal) => format!("goal {goal:.1}: missed"),
                None => String::new(),
            };
            let [of_time, to_time] = [of, to].map(|at| quartiles(times[*at].clone())[1]);
            println!(
                "  {:<34} {median:>7.2}  {:<18} {verdict:<18} {} / {}",
                format!("{} / {}", subjects[*of].name, subjects[*to].name),
                format!("({low:.2} to {high:.2})"),
                spell(of_time),
                spell(to_time),
            );
        }
        println!();
        Ok(())
    }
}

/// How long one `op` takes, on the average of `times`.
pub fn timed(times: u32, mut op: impl FnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..times {
        op()?;
    }
    Ok(start.elapsed() / times)
}

pub fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    [1, 2, 3].map(|quarter| {
        values
            .get((last * quarter + 2) / 4)
            .copied()
            .unwrap_or(f64::NAN)
    })
}

/// A time in the unit that suits it.
pub fn spell(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
