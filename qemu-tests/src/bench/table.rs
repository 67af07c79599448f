//! The table of figures.
//!
//! Owns: each row's words, the target beside the figure, and whether it is met.
//! Refuses: rounding in our favour: the figure is compared before it is rounded.

/// How a figure is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    AtMost(f64),
    /// Shown for comparison.
    None,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub what: &'static str,
    pub measured: f64,
    pub unit: &'static str,
    pub target: Target,
}

impl Row {
    pub fn new(what: &'static str, measured: f64, unit: &'static str, target: Target) -> Self {
        Self {
            what,
            measured,
            unit,
            target,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            Target::AtMost(most) if self.measured <= most => "ok",
            Target::AtMost(_) => "SHORT",
            Target::None => "",
        }
    }
}

/// One line a row, columns aligned.
pub fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.what.len())
        .max()
        .unwrap_or(0)
        .max("what".len());
    let mut out = format!("{:<width$}  {:>12}  {:>12}\n", "what", "measured", "target");
    for row in rows {
        let measured = quantity(row.measured, row.unit);
        let target = match row.target {
            Target::AtMost(most) => format!("<= {}", quantity(most, row.unit)),
            Target::None => String::new(),
        };
        let line = format!(
            "{:<width$}  {measured:>12}  {target:>12}  {}",
            row.what,
            row.verdict()
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
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

    #[test]
    fn a_row_says_whether_its_target_is_met() {
        let rows = [
            Row::new("image", 23.999, "MiB", Target::AtMost(24.0)),
            Row::new("exits", 61.0, "", Target::AtMost(60.0)),
            Row::new("QEMU", 190.25, "ms", Target::None),
        ];
        let text = table(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "image     24.00 MiB     <= 24 MiB  ok");
        assert_eq!(lines[2], "exits            61         <= 60  SHORT");
        assert_eq!(lines[3], "QEMU      190.25 ms");
    }
}
