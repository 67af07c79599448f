//! All tests, from a fresh machine to the booted image.
//!
//! Owns: the order of the phases, the time each took, and one closing line that counts the tests.
//! Refuses: stopping at the first failure, except where the rest cannot run without it.

use std::io::{BufRead, BufReader};
use std::ops::Add;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::paths::Paths;
use crate::programs::plain_cargo;
use crate::setup::TARGET;
use crate::{assemble, command, lanes, setup, space};

/// Passed and failed tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
        }
    }
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    took: Duration,
    count: Count,
    error: Option<anyhow::Error>,
}

/// Runs everything and fails if anything failed.
pub fn test(paths: &Paths) -> Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = plain_cargo(paths);
        cargo.args(arguments);
        cargo
    };
    let mut phases = Vec::new();
    phases.push(phase(paths, "setup", || {
        setup::setup(paths).map(|()| Count::default())
    }));
    phases.push(phase(paths, "format", || {
        run(&mut cargo(&["fmt", "--all", "--check"]))
    }));
    phases.push(phase(paths, "lints", || {
        run(&mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    }));
    phases.push(phase(paths, "unit tests", || {
        run(&mut cargo(&[
            "test",
            "--workspace",
            "--exclude",
            "qemu-tests",
            "--no-fail-fast",
        ]))
    }));
    // What is shipped has another C library, which makes system calls of its own and in its own way.
    for package in ["vmm", "init"] {
        phases.push(phase(paths, "filters on musl", || {
            let only = ["--lib", "--target", TARGET, "confine::"];
            run(cargo(&["test", "--package", package]).args(only))
        }));
    }
    phases.push(phase(paths, "image", || {
        assemble::build(paths, None).map(|_| Count::default())
    }));
    // Without an image of this commit there is nothing to boot.
    if phases.last().is_some_and(|phase| phase.error.is_none()) {
        phases.push(phase(paths, "tests in QEMU", || {
            let mut tests = cargo(&["test", "--package", "qemu-tests"]);
            lanes::run(&mut tests, &paths.root.join("qemu-tests"))
        }));
    }
    let count = sum(&phases);
    print!("{}", report(&phases));
    println!("{} passed, {} failed", count.passed, count.failed);
    ensure!(count.failed == 0, "{} failed: see above", count.failed);
    Ok(())
}

fn phase(paths: &Paths, name: &'static str, body: impl FnOnce() -> Result<Count>) -> Phase {
    println!("== {name} ({})", space::told(&paths.root));
    let start = Instant::now();
    let (count, error) = match body() {
        Ok(count) => (count, None),
        Err(error) => (
            Count {
                passed: 0,
                failed: 1,
            },
            Some(error),
        ),
    };
    Phase {
        name,
        took: start.elapsed(),
        count,
        error,
    }
}

/// Runs a command with its output shown and counts the tests in it. A command that fails without a failed
/// test (it did not compile, say) is an error.
fn run(command: &mut Command) -> Result<Count> {
    let text = command::text(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {text}"))?;
    let stdout = child.stdout.take().expect("it was piped");
    let mut count = Count::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("read the output of {text}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count = count + result(&line).unwrap_or_default();
    }
    let status = child.wait().with_context(|| format!("wait for {text}"))?;
    ensure!(
        status.success() || count.failed > 0,
        "{text} failed ({status})"
    );
    Ok(count)
}

/// The counts in a line such as `test result: ok. 6 passed; 0 failed; 0 ignored; ...`.
pub(crate) fn result(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let mut parts = numbers.split("; ");
        parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Count {
        passed: number(" passed")?,
        failed: number(" failed")?,
    })
}

fn sum(phases: &[Phase]) -> Count {
    let counts = phases.iter().map(|phase| phase.count);
    counts.fold(Count::default(), Add::add)
}

fn report(phases: &[Phase]) -> String {
    let mut out = "\n".to_owned();
    for Phase {
        name,
        took,
        count,
        error,
    } in phases
    {
        let Count { passed, failed } = count;
        let verdict = match (error, failed) {
            (Some(error), _) => format!("FAILED: {error:#}"),
            (None, 0) if *passed == 0 => "ok".to_owned(),
            (None, 0) => format!("{passed} passed"),
            (None, _) => format!("{passed} passed, {failed} FAILED"),
        };
        out.push_str(&format!(
            "{name:<16}{:>7.1} s  {verdict}\n",
            took.as_secs_f64()
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_result_lines_are_counted() {
        let line =
            "test result: FAILED. 13 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            result(line),
            Some(Count {
                passed: 13,
                failed: 2
            })
        );
        assert_eq!(result("test a::b ... ok"), None);
        assert_eq!(result("test result: nonsense"), None);
    }

    #[test]
    fn a_phase_that_breaks_counts_as_a_failure() {
        let paths = Paths::find().expect("the repository");
        let broken = phase(&paths, "lints", || anyhow::bail!("no compiler"));
        let fine = phase(&paths, "unit tests", || {
            Ok(Count {
                passed: 5,
                failed: 0,
            })
        });
        assert_eq!(
            sum(&[broken, fine]),
            Count {
                passed: 5,
                failed: 1
            }
        );
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_is_an_error() {
        assert!(run(&mut Command::new("false")).is_err());
        let mut echo = Command::new("echo");
        echo.arg("test result: ok. 3 passed; 0 failed; 0 ignored");
        assert_eq!(
            run(&mut echo).expect("it succeeds"),
            Count {
                passed: 3,
                failed: 0
            }
        );
    }
}
