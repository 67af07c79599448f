//! What libFuzzer says, as one line for people.
//!
//! Owns: the words of its output that count. Refuses: the rest of them.

use std::fmt;

/// How a target fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Fine,
    /// The input that shows it, in a file.
    Found(String),
    /// It did not run to its end.
    Broken(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) seconds: u64,
    pub(crate) runs: u64,
    /// Edges of the program that some input reached.
    pub(crate) coverage: u64,
    pub(crate) outcome: Outcome,
}

impl Report {
    /// Takes what a line says: `#512 NEW cov: 85 ft: …`, `stat::number_of_executed_units: 99` or
    /// `…; Test unit written to <file>`.
    pub(crate) fn read(&mut self, line: &str) {
        let after = |word: &str| line.split_once(word).map(|(_, rest)| rest.trim());
        let number = |word: &str| -> Option<u64> {
            after(word)?.split_ascii_whitespace().next()?.parse().ok()
        };
        if let Some(runs) = number("stat::number_of_executed_units:") {
            self.runs = runs;
        }
        if line.starts_with('#')
            && let Some(coverage) = number(" cov:")
        {
            self.coverage = coverage;
        }
        if let Some(file) = after("Test unit written to ") {
            self.outcome = Outcome::Found(file.to_owned());
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            seconds,
            runs,
            coverage,
            outcome,
        } = self;
        write!(
            f,
            "{name:<18}{seconds:>6} s{runs:>12} runs{coverage:>8} edges  "
        )?;
        match outcome {
            Outcome::Fine => f.write_str("ok"),
            Outcome::Found(file) => write!(f, "FOUND {file}"),
            Outcome::Broken(why) => write!(f, "BROKEN {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report {
            name: "net-sntp",
            seconds: 60,
            runs: 0,
            coverage: 0,
            outcome: Outcome::Fine,
        };
        lines.iter().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn a_quiet_run_is_one_line() {
        let report = report(&[
            "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 35Mb",
            "#9\tNEW    cov: 85 ft: 97 corp: 2/5b lim: 4 exec/s: 0 rss: 35Mb",
            "Done 1234 runs in 61 second(s)",
            "stat::number_of_executed_units: 1234",
        ]);
        assert_eq!(
            report.to_string(),
            "net-sntp              60 s        1234 runs      85 edges  ok"
        );
    }

    #[test]
    fn a_finding_names_its_input() {
        let report = report(&[
            "thread '<unnamed>' panicked at cov: 7",
            "artifact_prefix='x/'; Test unit written to x/crash-12",
        ]);
        assert_eq!(report.outcome, Outcome::Found("x/crash-12".to_owned()));
        assert_eq!(report.coverage, 0);
        assert!(report.to_string().ends_with("FOUND x/crash-12"));
    }
}
