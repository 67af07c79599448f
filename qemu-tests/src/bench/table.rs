//! The table of figures.
//!
//! Owns: each row's words, the target and the peer beside the figure, and whether the target is met.
//! Refuses: rounding in our favour: a figure is compared before it is rounded.

use serde_json::{Value, json};

/// Somebody else's figure, in the unit of the row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peer {
    pub who: &'static str,
    pub figure: f64,
}

/// What is measured for its own sake, and what only explains it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Target { at_most: f64, peer: Option<Peer> },
    Part,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    what: &'static str,
    figure: f64,
    unit: &'static str,
    kind: Kind,
}

impl Row {
    /// A figure that must not be above `at_most`.
    pub fn target(what: &'static str, figure: f64, unit: &'static str, at_most: f64) -> Self {
        let kind = Kind::Target {
            at_most,
            peer: None,
        };
        Self {
            what,
            figure,
            unit,
            kind,
        }
    }

    /// The same with somebody to compare with.
    pub fn beside(mut self, who: &'static str, figure: f64) -> Self {
        if let Kind::Target { peer, .. } = &mut self.kind {
            *peer = Some(Peer { who, figure });
        }
        self
    }

    /// A part of the last target's figure, or another light on it.
    pub fn part(what: &'static str, figure: f64, unit: &'static str) -> Self {
        Self {
            what,
            figure,
            unit,
            kind: Kind::Part,
        }
    }

    /// Whether the target is met; nothing where there is none.
    pub fn met(&self) -> Option<bool> {
        match self.kind {
            Kind::Target { at_most, .. } => Some(self.figure <= at_most),
            Kind::Part => None,
        }
    }

    /// Name, figure, target, verdict, peer, ratio.
    fn cells(&self) -> [String; 6] {
        let figure = quantity(self.figure, self.unit);
        let Kind::Target { at_most, peer } = self.kind else {
            let empty = String::new;
            return [
                format!("  {}", self.what),
                figure,
                empty(),
                empty(),
                empty(),
                empty(),
            ];
        };
        let target = format!("<= {}", quantity(at_most, self.unit));
        let verdict = if self.figure <= at_most {
            "met"
        } else {
            "MISSED"
        };
        let (who, ratio) = peer.map_or_else(Default::default, |Peer { who, figure }| {
            let ratio = format!("{:.2}", self.figure / figure);
            (format!("{who}: {}", quantity(figure, self.unit)), ratio)
        });
        [
            self.what.to_owned(),
            figure,
            target,
            verdict.to_owned(),
            who,
            ratio,
        ]
    }

    fn json(&self) -> Value {
        let mut row = json!({ "what": self.what, "figure": self.figure, "unit": self.unit });
        if let Kind::Target { at_most, peer } = self.kind {
            row["target"] = json!({ "at_most": at_most, "met": self.met() });
            row["peer"] = json!(peer.map(|Peer { who, figure }| {
                json!({ "who": who, "figure": figure, "ratio": self.figure / figure })
            }));
        }
        row
    }
}

const HEAD: [&str; 6] = ["what", "figure", "target", "", "peer", "figure / peer"];
/// Columns of numbers.
const TO_THE_RIGHT: [bool; 6] = [false, true, true, false, false, true];

/// One line a row, columns aligned, and a last line that counts.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).filter_map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for ((cell, width), right) in line.iter().zip(&widths).zip(TO_THE_RIGHT) {
            text.push_str(&if right {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            });
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&summary(rows));
    out.push('\n');
    out
}

fn summary(rows: &[Row]) -> String {
    let targets = rows.iter().filter(|row| row.met().is_some()).count();
    let missed: Vec<_> = rows.iter().filter(|row| row.met() == Some(false)).collect();
    let met = targets - missed.len();
    let mut text = format!("{met} of {targets} targets are met");
    if !missed.is_empty() {
        let names: Vec<_> = missed.iter().map(|row| row.what).collect();
        text.push_str(&format!("; MISSED: {}", names.join(", ")));
    }
    text
}

/// For programs. `build` says what was measured.
pub fn json(build: &str, rows: &[Row]) -> Value {
    json!({ "build": build, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

fn quantity(value: f64, unit: &str) -> String {
    let digits = if value.fract() == 0.0 && value >= 10.0 {
        0
    } else {
        2
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Row; 3] {
        [
            Row::target("image", 23.999, "MiB", 24.0).beside("Talos", 55.0),
            Row::target("exits", 61.0, "", 60.0),
            Row::part("by QEMU", 190.25, "ms"),
        ]
    }

    #[test]
    fn a_row_says_whether_its_target_is_met_and_what_a_peer_has() {
        let text = table(&rows());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "image      24.00 MiB  <= 24 MiB  met     Talos: 55 MiB           0.44"
        );
        assert_eq!(lines[2], "exits             61      <= 60  MISSED");
        assert_eq!(lines[3], "  by QEMU  190.25 ms");
        assert_eq!(lines[5], "1 of 2 targets are met; MISSED: exits");
    }

    #[test]
    fn programs_get_the_figures_unrounded() {
        let json = json("sifr 1", &rows());
        assert_eq!(json["rows"][0]["figure"], 23.999);
        assert_eq!(json["rows"][0]["peer"]["who"], "Talos");
        assert_eq!(json["rows"][1]["target"]["met"], false);
        assert_eq!(json["rows"][2].get("target"), None);
    }
}
