//! `sifr logs -f`, as a test reads it.
//!
//! Owns: the command while it runs, and the test's patience with it. Refuses: outliving the test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::PATIENCE;

#[derive(Debug)]
pub struct Follower {
    child: Arc<Mutex<Child>>,
    lines: Receiver<String>,
}

impl Follower {
    pub(crate) fn spawn(sifr: &Path, home: &Path, name: &str) -> Result<Self> {
        let mut child = Command::new(sifr)
            .args(["logs", "-f", name])
            .env("SIFR_HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", sifr.display()))?;
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the command, or when the test has no ear for it any more.
        thread::spawn(move || {
            let mut read = BufReader::new(output).lines().map_while(Result::ok);
            read.try_for_each(|line| sender.send(line))
        });
        let child = Arc::new(Mutex::new(child));
        Ok(Self { child, lines })
    }

    /// For who ends it from elsewhere.
    pub(crate) fn command(&self) -> Arc<Mutex<Child>> {
        Arc::clone(&self.child)
    }

    /// Reads up to a line that contains `text`.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end - Instant::now().min(end)) {
                Ok(line) if line.contains(text) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{text:?} did not come in {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the log ended before {text:?}"),
            }
        }
    }

    /// The next line, whatever it is.
    pub fn line(&self) -> Result<String> {
        let line = self.lines.recv_timeout(PATIENCE);
        line.context("no line came")
    }

    /// Lines that have come and were not read yet.
    pub fn so_far(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// The rest, once the command has ended by itself, and well.
    pub fn to_end(self) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let mut text = String::new();
        loop {
            match self.lines.recv_timeout(end - Instant::now().min(end)) {
                Ok(line) => text.extend([line.as_str(), "\n"]),
                Err(RecvTimeoutError::Timeout) => bail!("it goes on after {PATIENCE:?}: {text}"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = held(&self.child).wait().context("wait for sifr logs")?;
        ensure!(status.success(), "sifr logs ended with {status}: {text}");
        Ok(text)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let mut child = held(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(crate) fn held(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}
