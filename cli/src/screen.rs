//! What people and programs read.
//!
//! Owns: tables, JSON, progress; results go to standard output, all else to standard error.
//! Refuses: control characters from a node, and colours.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::args::Output;

/// Longest cell of a table, in characters, but for the last of a row; JSON has the whole.
const CELL_MAX: usize = 100;
/// Longest text of a node: no flood.
const TEXT_MAX: usize = 2000;
/// Between two columns.
const GAP: usize = 2;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    output: Output,
    /// Somebody watches standard error.
    watched: bool,
}

/// A progress bar, or nothing where nobody watches.
#[derive(Debug)]
pub(crate) struct Meter(ProgressBar);

impl Screen {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            watched: io::stderr().is_terminal(),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// The result: as JSON for programs, else as `text` gives it.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match self.output {
            Output::Json => {
                let json = serde_json::to_string_pretty(value)?;
                writeln!(out, "{json}")?;
            }
            Output::Table => {
                let text = text();
                out.write_all(text.as_bytes())?;
                if !text.is_empty() && !text.ends_with('\n') {
                    out.write_all(b"\n")?;
                }
            }
        }
        Ok(out.flush()?)
    }

    /// A line beside the result.
    pub(crate) fn note(&self, line: &str) {
        eprintln!("{line}");
    }

    pub(crate) fn meter(&self, doing: &'static str, total: u64) -> Meter {
        if !self.watched || total == 0 {
            return Meter(ProgressBar::hidden());
        }
        let style =
            ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}")
                .expect("the constant template is valid");
        Meter(
            ProgressBar::new(total)
                .with_style(style)
                .with_message(doing),
        )
    }

    pub(crate) fn identity(&self) -> anyhow::Result<()> {
        let sifr::Identity {
            version,
            commit,
            dirty,
            kernel_config,
        } = sifr::IDENTITY;
        let value = json!({ "version": version, "commit": commit, "dirty": dirty, "kernel_config": kernel_config });
        self.show(&value, || sifr::IDENTITY.to_string())
    }
}

impl Meter {
    pub(crate) fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    pub(crate) fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }

    pub(crate) fn done(&self) {
        self.0.finish_and_clear();
    }
}

/// Rows under headings, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(&headings)
        .chain(rows)
        .map(|row| {
            let mut cells = row.each_ref().map(|c| cell(c));
            // Nothing stands behind it that it would push away.
            if let (Some(shown), Some(text)) =
                (cells.last_mut(), row.last().filter(|t| !t.is_empty()))
            {
                *shown = clean(text);
            }
            cells
        })
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let padding = width - cell.chars().count() + GAP;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', padding));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one a line.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + GAP;
    fields
        .iter()
        .map(|(name, value)| format!("{name:<width$}{}\n", cell(value)))
        .collect()
}

/// Text that keeps its line and cannot move the cursor.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT_MAX)
        .collect()
}

/// The same, as long as a cell may be.
pub(crate) fn cell(text: &str) -> String {
    let clean = clean(text);
    if clean.chars().count() <= CELL_MAX {
        return if clean.is_empty() {
            "-".to_owned()
        } else {
            clean
        };
    }
    clean.chars().take(CELL_MAX - 1).chain(['…']).collect()
}

/// `3.1 MiB`.
pub(crate) fn mebibytes(bytes: u64) -> String {
    // One decimal, without floating point.
    let tenths = (u128::from(bytes) * 10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// `3 d 4 h`, `5 m 2 s`: the two largest units.
pub(crate) fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_cells_shown() {
        let rows = [
            ["shop".to_owned(), "1".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        assert_eq!(table(["NAME", "V"], &rows), "NAME  V\nshop  1\na     -\n");
        assert_eq!(
            fields(&[("a", "1".to_owned()), ("long", "2".to_owned())]),
            "a     1\nlong  2\n"
        );
    }

    #[test]
    fn what_stands_last_in_a_row_is_not_cut() {
        let long = "x".repeat(CELL_MAX + 50);
        let text = table(["A", "B"], &[[long.clone(), long.clone()]]);
        assert!(text.contains(&long) && text.contains('…'), "{text}");
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        assert_eq!(cell("a\x1b[2J\nb"), "a [2J b");
        assert_eq!(cell(&"x".repeat(200)).chars().count(), CELL_MAX);
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes(3 << 20 | 1 << 19), "3.5 MiB");
        assert_eq!(mebibytes(u64::MAX), "17592186044415.9 MiB");
        for (ms, text) in [
            (1234, "1.2 s"),
            (61_000, "1 m 1 s"),
            (7_260_000, "2 h 1 m"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(time(ms), text);
        }
    }
}
