//! `make fuzz`: every target under libFuzzer and AddressSanitizer for a given time, and a line on each.
//!
//! Owns: building the instrumented program, seeds, corpora and findings below `target/fuzz`.
//! Refuses: to call a run good whose target did not run. Variables: FUZZ_SECONDS for each target (60),
//! FUZZ_JOBS at a time (one a processor). Arguments: names of targets; none = all.
#![forbid(unsafe_code)]

mod report;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use fuzz::{TARGET_VARIABLE, Target};

use crate::report::{Outcome, Report};

/// Instrumentation needs flags that only this compiler takes.
const TOOLCHAIN: &str = "nightly";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Coverage feedback for libFuzzer as `cargo fuzz` asks for it, and AddressSanitizer.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];
/// Long enough to go through every seed and its neighbours.
const SECONDS: u64 = 60;
/// One input: ten thousand times what a usual one takes, so that only what hangs is stopped.
const INPUT_SECONDS_MAX: u32 = 25;
/// Memory of one target. An input has a few KiB: what needs more is a finding.
const MEMORY_MIB_MAX: u32 = 2048;
/// One allocation: the longest table of an flist has 80 MiB.
const ALLOCATION_MIB_MAX: u32 = 512;
/// Lines of a failed target that are shown: the panic and the stack below it.
const LINES_SHOWN: usize = 30;

struct Options {
    seconds: u64,
    jobs: usize,
    targets: Vec<Target>,
}

/// Where things are.
struct Paths {
    root: PathBuf,
    /// Below `target`, so that `make clean` finds it.
    work: PathBuf,
}

impl Paths {
    fn new() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().unwrap_or(here).to_owned();
        let work = root.join("target/fuzz");
        Self { root, work }
    }

    fn program(&self) -> PathBuf {
        self.work.join(TRIPLE).join("fuzz/fuzz-target")
    }

    fn corpus(&self, target: &Target) -> PathBuf {
        self.work.join("corpus").join(target.name)
    }

    fn findings(&self, target: &Target) -> PathBuf {
        self.work.join("findings").join(target.name)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sifr-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was found.
fn run() -> Result<bool> {
    let options = Options::read()?;
    let paths = Paths::new();
    build(&paths)?;
    let waiting = Mutex::new(VecDeque::from(options.targets));
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some(target) = next(&waiting) {
                    let report = fuzz(&paths, &target, options.seconds);
                    println!("{report}");
                    reports.lock().expect("no panic while locked").push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().expect("no panic while locked");
    let runs: u64 = reports.iter().map(|report| report.runs).sum();
    let found = reports
        .iter()
        .filter(|report| report.outcome != Outcome::Fine)
        .count();
    println!(
        "{} targets, {runs} runs, {found} with findings",
        reports.len()
    );
    Ok(found == 0)
}

fn next(waiting: &Mutex<VecDeque<Target>>) -> Option<Target> {
    waiting.lock().expect("no panic while locked").pop_front()
}

impl Options {
    fn read() -> Result<Self> {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{name}={text:?} is not a number")),
            Err(_) => Ok(default),
        };
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let names: Vec<String> = std::env::args().skip(1).collect();
        let all = fuzz::targets();
        for name in &names {
            if !all.iter().any(|target| target.name == name) {
                let known: Vec<&str> = all.iter().map(|target| target.name).collect();
                bail!("there is no target {name:?}: use {}", known.join(", "));
            }
        }
        let wanted = |target: &Target| names.is_empty() || names.iter().any(|n| n == target.name);
        Ok(Self {
            seconds: number("FUZZ_SECONDS", SECONDS)?,
            jobs: usize::try_from(number("FUZZ_JOBS", processors)?.max(1))?,
            targets: all.into_iter().filter(wanted).collect(),
        })
    }
}

/// The instrumented program, in a place of its own: everything below it is compiled with other flags.
fn build(paths: &Paths) -> Result<()> {
    let mut cargo = Command::new("rustup");
    cargo
        .args(["run", TOOLCHAIN, "cargo", "build", "--locked"])
        .args(["--package", "fuzz", "--bin", "fuzz-target"])
        .args(["--features", "libfuzzer", "--profile", "fuzz"])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(&paths.work)
        .current_dir(&paths.root)
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = cargo.status().context("start rustup")?;
    ensure!(
        status.success(),
        "the targets do not build: fuzzing needs the {TOOLCHAIN} compiler, \
         `rustup toolchain install {TOOLCHAIN}` installs it"
    );
    Ok(())
}

fn fuzz(paths: &Paths, target: &Target, seconds: u64) -> Report {
    let tried = try_fuzz(paths, target, seconds);
    tried.unwrap_or_else(|error| Report {
        name: target.name,
        seconds: 0,
        runs: 0,
        coverage: 0,
        outcome: Outcome::Broken(format!("{error:#}")),
    })
}

fn try_fuzz(paths: &Paths, target: &Target, seconds: u64) -> Result<Report> {
    let (corpus, findings) = (paths.corpus(target), paths.findings(target));
    for directory in [&corpus, &findings] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let path = corpus.join(format!("seed-{number}"));
        fs::write(&path, seed).with_context(|| format!("write {}", path.display()))?;
    }
    let mut program = Command::new(paths.program());
    program
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.bytes_max))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"))
        .arg("-print_final_stats=1")
        .env(TARGET_VARIABLE, target.name)
        // Looking for leaks needs ptrace, which containers forbid.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = program.spawn().context("start fuzz-target")?;
    let stderr = child.stderr.take().expect("it was piped");
    let mut report = Report {
        name: target.name,
        seconds,
        runs: 0,
        coverage: 0,
        outcome: Outcome::Fine,
    };
    let mut shown: Vec<String> = Vec::new();
    for line in BufReader::new(stderr).split(b'\n') {
        let line =
            String::from_utf8_lossy(&line.context("read what fuzz-target says")?).into_owned();
        report.read(&line);
        // From where it says what happened.
        let begins = line.contains("panicked at") || line.contains("ERROR: ");
        if (begins || !shown.is_empty()) && shown.len() < LINES_SHOWN {
            shown.push(line);
        }
    }
    let status = child.wait().context("wait for fuzz-target")?;
    if !status.success() && report.outcome == Outcome::Fine {
        report.outcome = Outcome::Broken(status.to_string());
    }
    if report.outcome != Outcome::Fine {
        shown.iter().for_each(|line| println!("  {line}"));
        println!(
            "  again: {TARGET_VARIABLE}={} {} <input>",
            target.name,
            paths.program().display()
        );
    }
    Ok(report)
}
