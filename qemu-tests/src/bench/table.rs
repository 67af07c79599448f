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
    Target { bound: Bound, peer: Option<Peer> },
    Part,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtMost(most) => format!("<= {}", quantity(most, unit)),
            Self::AtLeast(least) => format!(">= {}", quantity(least, unit)),
        }
    }

    fn json(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(most) => ("at_most", most),
            Self::AtLeast(least) => ("at_least", least),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    what: String,
    figure: Figure,
    unit: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Figure {
    /// `spread`: half of what lies between the least and the most of all runs, as a part of the figure.
    Measured { value: f64, spread: Option<f64> },
    /// Why there is none.
    Cannot(String),
}

impl Row {
    /// A figure that must not be above `at_most`.
    pub fn target(what: impl Into<String>, figure: f64, unit: &'static str, at_most: f64) -> Self {
        let kind = Kind::Target {
            bound: Bound::AtMost(at_most),
            peer: None,
        };
        Self::new(what, figure, unit, kind)
    }

    /// A figure that must not be below `at_least`.
    pub fn floor(what: impl Into<String>, figure: f64, unit: &'static str, at_least: f64) -> Self {
        let kind = Kind::Target {
            bound: Bound::AtLeast(at_least),
            peer: None,
        };
        Self::new(what, figure, unit, kind)
    }

    /// A part of the last target's figure, or another light on it.
    pub fn part(what: impl Into<String>, figure: f64, unit: &'static str) -> Self {
        Self::new(what, figure, unit, Kind::Part)
    }

    /// Such a part that could not be measured.
    pub fn cannot(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figure: Figure::Cannot(why.into()),
            unit: "",
            kind: Kind::Part,
        }
    }

    fn new(what: impl Into<String>, value: f64, unit: &'static str, kind: Kind) -> Self {
        let spread = None;
        Self {
            what: what.into(),
            figure: Figure::Measured { value, spread },
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

    /// The same with how far runs differed, as a part of the figure.
    pub fn spread(mut self, part: f64) -> Self {
        if let Figure::Measured { spread, .. } = &mut self.figure {
            *spread = Some(part);
        }
        self
    }

    /// Whether the target is met; nothing where there is none.
    pub fn met(&self) -> Option<bool> {
        match (&self.kind, &self.figure) {
            (Kind::Target { bound, .. }, Figure::Measured { value, .. }) => {
                Some(bound.holds(*value))
            }
            (Kind::Target { .. }, Figure::Cannot(_)) => Some(false),
            (Kind::Part, _) => None,
        }
    }

    /// Name, figure, target, verdict, peer, ratio.
    fn cells(&self) -> [String; 6] {
        let figure = match &self.figure {
            Figure::Measured { value, spread } => {
                let spread = spread.map(|part| format!(" +-{:.0} %", part * 100.0));
                format!(
                    "{}{}",
                    quantity(*value, self.unit),
                    spread.unwrap_or_default()
                )
            }
            Figure::Cannot(why) => format!("cannot: {why}"),
        };
        let Kind::Target { bound, peer } = self.kind else {
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
        let verdict = if self.met() == Some(true) {
            "met"
        } else {
            "MISSED"
        };
        let beside = peer.zip(self.value()).map(|(Peer { who, figure }, value)| {
            let ratio = format!("{:.2}", value / figure);
            (format!("{who}: {}", quantity(figure, self.unit)), ratio)
        });
        let (who, ratio) = beside.unwrap_or_default();
        [
            self.what.clone(),
            figure,
            bound.text(self.unit),
            verdict.to_owned(),
            who,
            ratio,
        ]
    }

    fn value(&self) -> Option<f64> {
        match self.figure {
            Figure::Measured { value, .. } => Some(value),
            Figure::Cannot(_) => None,
        }
    }

    fn json(&self) -> Value {
        let mut row = json!({ "what": self.what });
        match &self.figure {
            Figure::Measured { value, spread } => {
                row["figure"] = json!(value);
                row["unit"] = json!(self.unit);
                if let Some(spread) = spread {
                    row["spread"] = json!(spread);
                }
            }
            Figure::Cannot(why) => row["cannot"] = json!(why),
        }
        if let Kind::Target { bound, peer } = self.kind {
            let (word, limit) = bound.json();
            row["target"] = json!({ word: limit, "met": self.met() });
            row["peer"] = json!(peer.zip(self.value()).map(|(Peer { who, figure }, value)| {
                json!({ "who": who, "figure": figure, "ratio": value / figure })
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
    // A reason is as long as it has to be, and the last cell of its line.
    let measured = |column: usize| {
        let cells = lines
            .iter()
            .filter(move |l| column != 1 || !l[1].starts_with("cannot"));
        cells.map(move |line| line[column].chars().count())
    };
    let width = |column: usize| measured(column).max();
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
        let names: Vec<_> = missed.iter().map(|row| &*row.what).collect();
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
    fn a_floor_is_met_from_above_and_what_could_not_be_measured_says_why() {
        let rows = [
            Row::floor("disk", 1.5, "", 1.0).spread(0.031),
            Row::floor("net", 0.99, "", 1.0),
            Row::cannot("QEMU", "the kernel of the host does not have what it needs"),
        ];
        let text = table(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "disk    1.50 +-3 %  >= 1.00  met");
        assert_eq!(lines[2], "net           0.99  >= 1.00  MISSED");
        assert_eq!(
            lines[3],
            "  QEMU  cannot: the kernel of the host does not have what it needs"
        );
        let json = json("sifr 1", &rows);
        assert_eq!(json["rows"][0]["target"]["at_least"], 1.0);
        assert!(json["rows"][2].get("figure").is_none());
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
