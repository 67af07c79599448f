//! The lines a machine prints on its serial port.
//!
//! Owns: splitting bytes into lines, keeping them, and waking who waits for one.
//! Refuses: polling. A waiter sleeps until a line comes, the machine ends or time is up.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines kept: a boot prints about a thousand.
const LINES_MAX: usize = 50_000;
/// Longest line: more is cut into several, so that a machine that prints no newline cannot fill memory.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Why no line was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// The machine has ended.
    Ended,
    TimedOut,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Console(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    /// Number of the oldest line that is kept.
    first: usize,
    /// Lines before this number are not searched.
    mark: usize,
    partial: Vec<u8>,
    ended: bool,
}

impl Console {
    /// Reads to the end: the body of a thread.
    pub(super) fn read_from(&self, mut stream: impl Read) {
        let mut buffer = [0; 4096];
        // An error is an end like any other: the machine cannot be heard any more.
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            self.lock().push(&buffer[..count]);
            self.0.changed.notify_all();
        }
        self.lock().end();
        self.0.changed.notify_all();
    }

    /// The first line since the mark that contains `pattern`.
    pub(super) fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String, Miss> {
        let mut next = 0;
        self.wait(timeout, |state| {
            let start = next.max(state.mark).max(state.first);
            next = state.first + state.lines.len();
            let mut lines = state.lines.range(start - state.first..);
            lines.find(|line| line.contains(pattern)).cloned()
        })
    }

    /// Waits until the machine has ended.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> bool {
        self.wait(timeout, |state| state.ended.then_some(()))
            .is_ok()
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        mut found: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, Miss> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&state) {
                return Ok(value);
            }
            if state.ended {
                return Err(Miss::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Miss::TimedOut);
            }
            let woken = self.0.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What has been printed so far is not searched any more.
    pub(super) fn mark(&self) {
        let mut state = self.lock();
        state.mark = state.first + state.lines.len();
    }

    /// The last `count` lines.
    pub(super) fn tail(&self, count: usize) -> String {
        let state = self.lock();
        let skip = state.lines.len().saturating_sub(count);
        let lines: Vec<_> = state.lines.range(skip..).map(String::as_str).collect();
        lines.join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements of a holder.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.finish_line(),
                _ if self.partial.len() == LINE_BYTES_MAX => {
                    self.finish_line();
                    self.partial.push(*byte);
                }
                _ => self.partial.push(*byte),
            }
        }
    }

    fn finish_line(&mut self) {
        self.lines.push_back(plain(&self.partial));
        self.partial.clear();
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
            self.first += 1;
        }
    }

    fn end(&mut self) {
        if !self.partial.is_empty() {
            self.finish_line();
        }
        self.ended = true;
    }
}

/// The text without terminal control sequences (ECMA-48), which firmware prints.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    // Parameters, then one final character from '@' on.
                    let _ = chars.find(|char| ('@'..='~').contains(char));
                }
            }
            '\t' => out.push(char),
            _ if char.is_control() => {}
            _ => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_waiter_wakes_when_the_line_is_whole_and_learns_of_the_end() {
        let (mut machine, reader) = UnixStream::pair().expect("a socket pair");
        let console = Console::default();
        let clone = console.clone();
        let thread = thread::spawn(move || clone.read_from(reader));
        machine.write_all(b"\x1b[2Jone\r\ntw").expect("write");
        assert_eq!(console.wait_for("one", LONG), Ok("one".to_owned()));
        assert_eq!(console.wait_for("two", Duration::ZERO), Err(Miss::TimedOut));
        machine.write_all(b"o\nthree").expect("write");
        assert_eq!(console.wait_for("two", LONG), Ok("two".to_owned()));
        drop(machine);
        assert_eq!(console.wait_for("three", LONG), Ok("three".to_owned()));
        assert_eq!(console.wait_for("four", LONG), Err(Miss::Ended));
        assert!(console.wait_for_end(LONG));
        assert_eq!(console.tail(2), "two\nthree");
        thread.join().expect("the reader ends with its stream");
    }

    #[test]
    fn marked_lines_are_not_found_again() {
        let console = Console::default();
        console.lock().push(b"ready\n");
        console.mark();
        assert_eq!(
            console.wait_for("ready", Duration::ZERO),
            Err(Miss::TimedOut)
        );
        console.lock().push(b"ready again\n");
        assert_eq!(
            console.wait_for("ready", LONG),
            Ok("ready again".to_owned())
        );
    }

    #[test]
    fn neither_many_lines_nor_an_endless_one_fill_memory() {
        let mut state = State::default();
        state.push(&[b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!((state.lines.len(), state.partial.len()), (1, 1));
        state.push(&[b'\n'; LINES_MAX]);
        assert_eq!((state.lines.len(), state.first), (LINES_MAX, 1));
    }
}
