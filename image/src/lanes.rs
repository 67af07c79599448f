//! The tests on booted nodes, several files of them at once.
//!
//! Owns: which programs those are, in which order and how many at a time they run, and that what one says is shown in one piece.
//! Refuses: what a test is; within one program they run one after another.

use std::collections::VecDeque;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use crate::suite::{Count, result};
use crate::{command, space};

/// Programs at once. A node that is emulated, with its own virtual machines in it, has about one core busy on average and
/// up to 4 GiB of memory: on two cores a third would only wait.
const LANES: usize = 2;

/// What takes longest (minutes, on two cores), so that neither lane is left alone with it at the end. The others are short:
/// one that is missing here costs time, nothing else. `hang` has nothing to compute: it waits, beside what needs the processors most.
const LONGEST_FIRST: [&str; 7] = [
    "vmm", "hang", "lazy", "torture", "running", "mirror", "health",
];

/// A line of `cargo test --no-run --message-format=json`; of the kinds that there are, only artifacts have an `executable`.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    name: String,
    path: PathBuf,
}

/// What one program said and came to.
struct Ended {
    text: String,
    count: Count,
    error: Option<anyhow::Error>,
}

/// All that has ended so far.
#[derive(Default)]
struct Tally {
    ended: usize,
    count: Count,
    error: Option<anyhow::Error>,
}

/// Builds what `test` (`cargo test ...`) builds, runs it in `folder`, where cargo would, and counts.
pub(crate) fn run(test: &mut Command, folder: &Path) -> Result<Count> {
    let built = command::output(test.args(["--no-run", "--message-format=json"]))?;
    let programs = in_order(programs(&built)?);
    ensure!(!programs.is_empty(), "{} built none", command::text(test));
    let all = programs.len();
    let waiting = Mutex::new(VecDeque::from(programs));
    // Locked while a program's words are shown.
    let tally = Mutex::new(Tally::default());
    let lane = || {
        while let Some(program) = take(&waiting) {
            println!("-- {} begins ({})", program.name, space::told(folder));
            let start = Instant::now();
            let ended = run_one(&program, folder);
            let took = start.elapsed().as_secs_f64();
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.ended += 1;
            let (name, path) = (&program.name, program.path.display());
            println!("-- {name}, {} of {all}: {took:.1} s ({path})", tally.ended);
            print!("{}", ended.text);
            tally.count = tally.count + ended.count;
            if let Some(error) = ended.error {
                println!("{error:#}");
                tally.error = Some(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(lane);
        }
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    match tally.error {
        Some(error) if tally.count.failed == 0 => Err(error),
        // Failed tests have said enough.
        Some(_) | None => Ok(tally.count),
    }
}

fn take(waiting: &Mutex<VecDeque<Program>>) -> Option<Program> {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.pop_front()
}

fn run_one(program: &Program, folder: &Path) -> Ended {
    let mut command = Command::new(&program.path);
    command.current_dir(folder);
    // Each node has all of this machine's cores: two tests of one program at once are for the lanes to say.
    command.arg("--test-threads=1");
    let said = say(&mut command);
    let (text, status) = match said {
        Ok(said) => said,
        Err(error) => {
            return Ended {
                text: String::new(),
                count: Count::default(),
                error: Some(error.context(format!("run {}", program.name))),
            };
        }
    };
    let count = text
        .lines()
        .filter_map(result)
        .fold(Count::default(), |sum, of| sum + of);
    let broken = !status.success() && count.failed == 0;
    let error = broken.then(|| anyhow!("{} failed ({status}) without a failed test", program.name));
    Ended { text, count, error }
}

/// All that it says, on either stream.
fn say(command: &mut Command) -> Result<(String, ExitStatus)> {
    let mut file = tempfile::tempfile().context("make a file for its output")?;
    let stream = || file.try_clone().context("share the file for its output");
    let (out, err) = (stream()?, stream()?);
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), status))
}

/// The test programs that cargo names, each once.
fn programs(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("read cargo's {line}"))?;
        let Some((path, target)) = message.executable.zip(message.target) else {
            continue;
        };
        if message.profile.is_some_and(|profile| profile.test) {
            programs.push(Program {
                name: target.name,
                path,
            });
        }
    }
    Ok(programs)
}

fn in_order(mut programs: Vec<Program>) -> Vec<Program> {
    let place = |program: &Program| LONGEST_FIRST.iter().position(|name| *name == program.name);
    // Absent ones after all that are there.
    programs.sort_by_key(|program| place(program).unwrap_or(LONGEST_FIRST.len()));
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: &str = r#"{"reason":"compiler-artifact","target":{"name":"sys"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"bench"},"profile":{"test":false},"executable":"/t/bench"}
{"reason":"compiler-artifact","target":{"name":"boot"},"profile":{"test":true},"executable":"/t/boot-1"}
{"reason":"compiler-artifact","target":{"name":"vmm"},"profile":{"test":true},"executable":"/t/vmm-2"}
{"reason":"build-finished","success":true}"#;

    fn program(path: &str) -> Program {
        Program {
            name: "it".to_owned(),
            path: PathBuf::from(path),
        }
    }

    #[test]
    fn what_takes_longest_begins_first() {
        let programs = in_order(programs(BUILT).expect("cargo's words"));
        let paths: Vec<_> = programs
            .iter()
            .map(|program| program.path.display().to_string())
            .collect();
        assert_eq!(paths, ["/t/vmm-2", "/t/boot-1"]);
    }

    #[test]
    fn a_program_that_fails_without_a_failed_test_is_an_error() {
        let failed = run_one(&program("/bin/false"), Path::new("/"));
        assert!(failed.error.is_some());
        assert!(
            run_one(&program("/no/such"), Path::new("/"))
                .error
                .is_some()
        );
        let ended = run_one(&program("/bin/echo"), Path::new("/"));
        assert!(ended.error.is_none());
        assert_eq!(ended.text, "--test-threads=1\n");
    }
}
