//! How far a long step is.
//!
//! Owns: a bar on a terminal, a line now and then elsewhere.
//! Refuses: guessing silently. An estimated total is shown as such by the caller's text.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Pause between lines where there is no terminal: a log stays readable.
const LINE_EVERY: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    total: u64,
    done: u64,
    start: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let template = "{msg} [{wide_bar}] {pos}/{len} {elapsed}";
            let style = ProgressStyle::with_template(template).expect("the template is valid");
            ProgressBar::new(total)
                .with_style(style)
                .with_message(what.to_owned())
        });
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        let start = Instant::now();
        Self {
            what: what.to_owned(),
            total,
            done: 0,
            start,
            spoke: start,
            bar,
        }
    }

    pub(crate) fn step(&mut self) {
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_length(self.total.max(self.done));
                bar.set_position(self.done);
            }
            None if self.spoke.elapsed() >= LINE_EVERY => {
                self.spoke = Instant::now();
                let seconds = self.start.elapsed().as_secs();
                let total = self.total.max(self.done);
                eprintln!("{} {}/{total}, {seconds} s", self.what, self.done);
            }
            None => {}
        }
    }

    /// Ends it and gives the number of steps.
    pub(crate) fn finish(self) -> u64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {:.1} s", self.what, self.start.elapsed().as_secs_f64());
        self.done
    }
}
