//! Boot as one table of named phases, shared by pid1 (the first rows) and the node agent (the rest).
//!
//! Owns: the rows, their numbers, and the one line that each prints.
//! Refuses: what a phase does.

use std::fmt;
use std::time::Duration;

use types::trouble::Code;

/// Rows done by pid1, in order.
pub(crate) const PID1: [&str; 5] = ["mounts", "harden", "cgroups", "watchdog", "children"];
/// Rows done by the node agent, in order.
pub(crate) const NODE: [&str; 10] = [
    "disks",
    "pool",
    "identity",
    "clock",
    "kvm",
    "links",
    "address",
    "ledger",
    "api",
    "workloads",
];

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done; the text, if any, says what a person wants to know.
    Fine(Option<String>),
    /// It failed, and the boot goes on without what it brings.
    Failed(String),
}

/// The line of one row: `sifr: [ 3/15] cgroups      ok     12 ms`.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) took: Duration,
    pub(crate) outcome: &'a Outcome,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = PID1.iter().chain(&NODE);
        let number = rows
            .position(|row| *row == self.name)
            .map_or(0, |at| at + 1);
        let (total, name, ms) = (PID1.len() + NODE.len(), self.name, self.took.as_millis());
        let (word, text) = match self.outcome {
            Outcome::Fine(text) => ("ok", text.as_deref()),
            Outcome::Failed(text) => ("FAILED", Some(text.as_str())),
        };
        write!(
            f,
            "sifr: [{number:2}/{total}] {name:<10} {word:<6} {ms:5} ms"
        )?;
        text.map_or(Ok(()), |text| write!(f, "  {text}"))?;
        match self.outcome {
            Outcome::Fine(_) => Ok(()),
            Outcome::Failed(_) => {
                let code = Code::of_phase(name);
                write!(f, " ({code}: {})", code.remedy())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_number_its_time_and_its_reason() {
        let took = Duration::from_millis(132);
        let row = |name, outcome: &Outcome| {
            Row {
                name,
                took,
                outcome,
            }
            .to_string()
        };
        assert_eq!(
            row("mounts", &Outcome::Fine(None)),
            "sifr: [ 1/15] mounts     ok       132 ms"
        );
        let failed = Outcome::Failed("no disk".to_owned());
        assert_eq!(
            row("pool", &failed),
            format!(
                "sifr: [ 7/15] pool       FAILED   132 ms  no disk (phase_pool: {})",
                Code::PhasePool.remedy()
            )
        );
    }

    #[test]
    fn each_phase_has_a_code_and_each_code_of_a_phase_is_one() {
        let rows = PID1.iter().chain(&NODE);
        let mut codes: Vec<Code> = rows.map(|row| Code::of_phase(row)).collect();
        assert!(!codes.contains(&Code::Unknown), "{codes:?}");
        codes.sort_unstable();
        let all = Code::ALL.iter().copied();
        let mut phases: Vec<Code> = all.filter(|c| c.word().starts_with("phase_")).collect();
        phases.sort_unstable();
        assert_eq!(codes, phases);
    }
}
