//! What commands print: tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write};

use anyhow::Result;
use serde::Serialize;

/// A table with a title for each column.
#[derive(Debug)]
pub struct Table<const N: usize> {
    pub titles: [&'static str; N],
    /// Columns of numbers, which stand at the right.
    pub right: &'static [usize],
}

impl<const N: usize> Table<N> {
    /// Prints a line for each of `rows`; every column but the last is as wide as its widest cell.
    pub fn print(&self, rows: Vec<[String; N]>) -> Result<()> {
        let mut lines = vec![self.titles.map(str::to_owned)];
        lines.extend(rows);
        let widths: [usize; N] = std::array::from_fn(|column| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.max().unwrap_or_default()
        });
        let mut out = io::stdout().lock();
        for line in &lines {
            let cells = line.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                match self.right.contains(&column) {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:width$}"),
                }
            });
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// One document, for programs.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// Without anything that a terminal would act on.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// The result of printing: a reader that has seen enough, such as `head`, is no failure.
pub fn finish(printed: Result<()>) -> Result<()> {
    match printed {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        io.or(cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind))
    };
    error
        .chain()
        .any(|cause| kind(cause) == Some(ErrorKind::BrokenPipe))
}
