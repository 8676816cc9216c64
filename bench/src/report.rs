//! What a run prints: the machine, then one table.

use crate::stats::{Summary, verdict};
use std::fmt::Write as _;

/// One line of the table.
pub struct Row {
    /// What was measured, with its unit.
    pub what: String,
    /// Our figures.
    pub ours: Summary,
    /// The peer's name and figures.
    pub peer: Option<(String, Summary)>,
    /// Ours divided by the peer's, by pairs.
    pub ratio: Option<Summary>,
    /// At most this: of the ratio if `goal_is_ratio`, else of our figure.
    pub goal: Option<f64>,
    /// What the goal speaks of.
    pub goal_is_ratio: bool,
    /// Digits after the point of the figures.
    pub digits: usize,
}

impl Row {
    /// Pairs that were measured in turns; the goal is of their ratio.
    pub fn of_pairs(what: &str, peer: &str, pairs: &[(f64, f64)], goal: Option<f64>) -> Option<Self> {
        let column = |pick: fn(&(f64, f64)) -> f64| Summary::of(&pairs.iter().map(pick).collect::<Vec<_>>());
        Some(Self {
            what: what.to_owned(),
            ours: column(|pair| pair.0)?,
            peer: Some((peer.to_owned(), column(|pair| pair.1)?)),
            ratio: Summary::of_ratios(pairs),
            goal,
            goal_is_ratio: true,
            digits: 1,
        })
    }

    /// Figures with a goal of their own.
    pub fn of_figures(what: &str, figures: &[f64], goal: Option<f64>, digits: usize) -> Option<Self> {
        Some(Self {
            what: what.to_owned(),
            ours: Summary::of(figures)?,
            peer: None,
            ratio: None,
            goal,
            goal_is_ratio: false,
            digits,
        })
    }

    fn cells(&self) -> [String; 6] {
        let none = || "-".to_owned();
        let measured = match self.goal_is_ratio {
            true => self.ratio.map(|ratio| ratio.median),
            false => Some(self.ours.median),
        };
        [
            self.what.clone(),
            self.ours.show(self.digits),
            self.peer
                .as_ref()
                .map_or_else(none, |(name, figures)| format!("{name} {}", figures.show(self.digits))),
            self.ratio.map_or_else(none, |ratio| ratio.show(2)),
            self.goal.map_or_else(none, |goal| goal.to_string()),
            match (measured, self.goal) {
                (Some(measured), Some(goal)) => verdict(measured, goal).to_owned(),
                _ => none(),
            },
        ]
    }
}

/// The table in the form of docs/benchmarks.md.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        "| what | ours: median (min to max) | peer | ratio | goal | |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

/// Kernel, processor, memory, load, versions of the peers.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let first = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or_else(|| "?".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let command = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output();
        output
            .map(|output| {
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .next()
                    .unwrap_or("")
                    .trim()
                    .to_owned()
            })
            .unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{} | Linux {} | {cores} cores, {} | {} | load {}\n{} | {} | {}\n",
        command("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        read("/proc/sys/kernel/osrelease").trim(),
        first(&read("/proc/cpuinfo"), "model name"),
        first(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        command("mosquitto", &["-h"]),
        command("containerd", &["--version"]),
        command("runc", &["--version"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_compare_with_their_goal() {
        let pair = Row::of_pairs("deploy, ms", "ctr", &[(130.0, 100.0), (120.0, 100.0)], Some(1.3)).unwrap();
        let figure = Row::of_figures("node, MB", &[10.1], Some(10.0), 1).unwrap();
        let text = table(&[pair, figure]);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines[0],
            "| deploy, ms | 125.0 (120.0 to 130.0) | ctr 100.0 (100.0 to 100.0) | 1.25 (1.20 to 1.30) | 1.3 | met |"
        );
        assert_eq!(lines[1], "| node, MB | 10.1 (10.1 to 10.1) | - | - | 10 | missed |");
    }
}
