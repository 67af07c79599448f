//! Running other programs.
//!
//! Owns: waiting for them, and saying what they said when they fail.
//! Refuses: shells. A command is a program and its arguments.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// Lines of output shown when a program fails: enough for a compiler's message.
const TAIL_LINES: usize = 40;

/// Runs to the end and gives the standard output. Standard error is shown only on failure.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let mut out = String::new();
    lines(command, |line| {
        out.push_str(line);
        out.push('\n');
    })?;
    Ok(out)
}

/// Runs to the end with everything shown.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", text(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", text(command));
    }
    Ok(())
}

/// Runs to the end, giving each line of standard output as it comes.
pub(crate) fn lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", text(command)))?;
    let stdout = child.stdout.take().expect("it was piped");
    let mut stderr = child.stderr.take().expect("it was piped");
    // Both pipes must be drained at once, or a full one stops the program.
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut tail = VecDeque::new();
    for next in BufReader::new(stdout).split(b'\n') {
        let next = next.with_context(|| format!("read the output of {}", text(command)))?;
        let next = String::from_utf8_lossy(&next);
        line(&next);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(next.into_owned());
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", text(command)))?;
    if status.success() {
        return Ok(());
    }
    let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
    let errors = String::from_utf8_lossy(&errors);
    let errors: Vec<_> = errors.lines().collect();
    let shown = &errors[errors.len().saturating_sub(TAIL_LINES)..];
    let tail = if shown.is_empty() {
        tail.make_contiguous().join("\n")
    } else {
        shown.join("\n")
    };
    bail!("{} failed ({status}):\n{tail}", text(command))
}

/// The command as a person would type it.
pub(crate) fn text(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy()),
    );
    words.join(" ")
}

/// A program that must not see the variables of the `make` around us: its job server is not ours.
pub(crate) fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = output(Command::new("ls").arg("/does/not/exist")).expect_err("no such file");
        let error = format!("{error:#}");
        assert!(error.contains("ls /does/not/exist failed") && error.contains("No such file"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program")).expect_err("no such program");
        assert!(format!("{error:#}").contains("start no-such-program"));
    }
}
