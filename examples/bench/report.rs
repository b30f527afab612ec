//! The table of workloads and candidates: for people, for programs, and as a picture.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

use crate::rounds::{quartiles, spell};
use crate::workloads::Workload;

/// What was measured where.
#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    /// The first is the one that the others are compared with.
    candidates: Vec<String>,
    rows: Vec<Measured>,
}

#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// The load before anything was measured.
    load: String,
}

/// One workload.
#[derive(Serialize)]
pub struct Measured {
    workload: &'static str,
    best_seen: Option<f64>,
    /// The median time of the first candidate.
    seconds: f64,
    /// Of each candidate's time to the first one's in the same round: quartiles. NaN: it cannot do it.
    ratios: Vec<[f64; 3]>,
}

impl Measured {
    /// `times` of each candidate, round by round.
    pub fn new(workload: &Workload, times: &[Vec<Duration>]) -> Self {
        let ratios = times.iter().map(|one| {
            let pairs = one.iter().zip(&times[0]);
            quartiles(
                pairs
                    .map(|(one, first)| one.as_secs_f64() / first.as_secs_f64())
                    .collect(),
            )
        });
        Self {
            workload: workload.name,
            best_seen: workload.best_seen,
            seconds: quartiles(times[0].iter().map(Duration::as_secs_f64).collect())[1],
            ratios: ratios.collect(),
        }
    }
}

impl Report {
    pub fn of(candidates: Vec<String>) -> Result<Self> {
        Ok(Self {
            machine: Machine::here()?,
            candidates,
            rows: Vec::new(),
        })
    }

    /// Adds a row, and shows it, for the whole takes its time.
    pub fn add(&mut self, row: Measured) {
        if self.rows.is_empty() {
            let Machine {
                processor,
                cores,
                memory_mib,
                kernel,
                load,
            } = &self.machine;
            println!("{processor}, {cores} cores, {memory_mib} MiB, Linux {kernel}, load {load}");
            print!("\n| workload (ratio to native) | best seen | native |");
            self.candidates[1..]
                .iter()
                .for_each(|name| print!(" {name} |"));
            println!(
                "\n|---|---|---|{}",
                "---|".repeat(self.candidates.len() - 1)
            );
        }
        let best = row.best_seen.map(|best| best.to_string());
        let (name, native) = (row.workload, spell(row.seconds));
        print!("| {name} | {} | {native} |", best.unwrap_or_default());
        row.ratios[1..]
            .iter()
            .for_each(|[_, median, _]| match median.is_nan() {
                true => print!(" – |"),
                false => print!(" {median:.2} |"),
            });
        println!();
        self.rows.push(row);
    }

    pub fn write_json(&self, path: &Path) -> Result<()> {
        let file = fs::File::create(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::to_writer_pretty(file, self)?)
    }

    /// A row of dots per workload, on a logarithmic scale.
    pub fn draw(&self, path: &Path) -> Result<()> {
        const ROW: u32 = 26;
        const LEGEND: i32 = 40;
        let height = ROW * self.rows.len() as u32 + 110;
        let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (legend, plot) = area.split_vertically(LEGEND);
        let names: Vec<_> = self.rows.iter().map(|row| row.workload).collect();
        let last = self.rows.len().saturating_sub(1);
        let mut chart = ChartBuilder::on(&plot)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(330)
            .build_cartesian_2d((0.5..100.0).log_scale(), (0..last).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(self.rows.len())
            .y_label_formatter(&|at| match at {
                SegmentValue::CenterOf(at) => names[last - *at].to_owned(),
                _ => String::new(),
            })
            .x_desc("time, in units of the source's own (less is better)")
            .x_label_formatter(&|ratio| format!("{ratio}"))
            .draw()?;
        for (at, name) in self.candidates.iter().enumerate() {
            let colour = if at == 0 {
                BLACK.to_rgba()
            } else {
                Palette99::pick(at - 1).to_rgba()
            };
            let all = self.rows.iter().enumerate();
            let measured = all.filter(|(_, measured)| !measured.ratios[at][1].is_nan());
            chart.draw_series(measured.map(|(row, measured)| {
                let y = SegmentValue::CenterOf(last - row);
                Circle::new(
                    (measured.ratios[at][1].clamp(0.5, 100.0), y),
                    5,
                    colour.filled(),
                )
            }))?;
            let x = 330 + at as i32 * 95;
            legend.draw(&Circle::new((x, 22), 5, colour.filled()))?;
            legend.draw(&Text::new(name.clone(), (x + 9, 16), ("sans-serif", 13)))?;
        }
        Ok(area.present()?)
    }
}

impl Machine {
    fn here() -> Result<Self> {
        let line = |path, start: &str| -> Result<String> {
            let text = fs::read_to_string(path)?;
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            Ok(line
                .unwrap_or_default()
                .trim_matches([' ', ':', '\t'])
                .to_owned())
        };
        let memory = line("/proc/meminfo", "MemTotal:")?;
        Ok(Self {
            processor: line("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: memory.trim_end_matches(" kB").parse().unwrap_or(0) / 1024,
            kernel: line("/proc/sys/kernel/osrelease", "")?,
            load: line("/proc/loadavg", "")?,
        })
    }
}
