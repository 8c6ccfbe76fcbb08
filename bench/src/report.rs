//! What a run says about itself, as a table and as JSON. Every result names machine, commit and method.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use weft_tests::{command, programs};

/// A finished run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was measured and how, for the reader of the figures.
    pub(crate) method: Vec<String>,
    /// Where it was measured.
    pub(crate) machine: Machine,
    /// Column titles of the summary.
    pub(crate) columns: Vec<String>,
    /// The summary: medians over the rounds.
    pub(crate) rows: Vec<Vec<String>>,
    /// Every round as it came out.
    pub(crate) rounds: serde_json::Value,
}

/// The machine and the programs.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    commit: String,
    profile: &'static str,
}

impl Machine {
    /// Looks at the machine that this runs on.
    pub(crate) fn here() -> Self {
        let said = |program: &str, args: &[&str]| -> String {
            let out = programs::tool(program).and_then(|p| command::run(Command::new(p).args(args)));
            out.map_or_else(|_| "unknown".to_owned(), |o| o.stdout.trim().to_owned())
        };
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        Self {
            kernel: said("uname", &["-sr"]),
            processor: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            commit: said("git", &["-C", root, "describe", "--always", "--dirty"]),
            profile: if cfg!(debug_assertions) { "DEBUG BUILD, figures do not count" } else { "release" },
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, processors, commit, profile } = self;
        write!(f, "{processors} x {processor}, {kernel}, commit {commit}, {profile}")
    }
}

impl Report {
    /// Prints method, machine and summary.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.machine)?;
        for line in &self.method {
            writeln!(out, "{line}")?;
        }
        writeln!(out)?;
        let table: Vec<&Vec<String>> = std::iter::once(&self.columns).chain(&self.rows).collect();
        let width =
            |n: usize| table.iter().map(|r| r.get(n).map_or(0, |c| c.chars().count())).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in table {
            let cells = row.iter().zip(&widths).enumerate();
            let padded = cells
                .map(|(n, (cell, &w))| if n == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
            writeln!(out, "{}", padded.collect::<Vec<_>>().join("  "))?;
        }
        Ok(())
    }

    /// Writes everything to `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("--json {}", path.display()))
    }
}

/// The middle of the values (the upper one of two); 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median([]).abs() < f64::EPSILON);
    }
}
