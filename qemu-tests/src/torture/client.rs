//! `sifr`, run by an owner whose node may lose its power in the middle.
//!
//! Owns: the command while it runs, so that it can be ended with its node. Refuses: patience with a node that is off.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use crate::Answer;
use crate::follower::{Follower, held};

/// One life's client: once [`Client::end`] was called nothing runs any more.
#[derive(Debug)]
pub(super) struct Client {
    sifr: PathBuf,
    home: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    child: Option<Child>,
    /// Commands that follow a log: they would ask a node without power for two minutes.
    followers: Vec<Arc<Mutex<Child>>>,
    is_over: bool,
}

impl Client {
    pub(super) fn new(sifr: &Path, home: &Path) -> Self {
        Self {
            sifr: sifr.to_owned(),
            home: home.to_owned(),
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sifr(&self, args: &[&str], input: &str) -> Result<Answer> {
        let (mut stderr, mut stdin) = (tempfile::tempfile()?, tempfile::tempfile()?);
        stdin.write_all(input.as_bytes())?;
        stdin.rewind()?;
        let mut command = Command::new(&self.sifr);
        command
            .args(args)
            .env("SIFR_HOME", &self.home)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(File::try_clone(&stderr)?);
        let mut output = {
            let mut running = self.running();
            let mut child = command.spawn().context("start sifr")?;
            let output = child.stdout.take().context("no standard output")?;
            if running.is_over {
                child.kill()?;
            }
            running.child = Some(child);
            output
        };
        let mut stdout = String::new();
        // It ends with the command. Meanwhile another thread may end that.
        output.read_to_string(&mut stdout).context("hear sifr")?;
        let child = self.running().child.take();
        let status = child.context("sifr is gone")?.wait()?;
        let mut said = String::new();
        stderr.rewind()?;
        stderr.read_to_string(&mut said)?;
        Ok(Answer {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: said,
        })
    }

    /// `sifr logs -f`.
    pub(super) fn follow(&self, name: &str) -> Result<Follower> {
        let mut running = self.running();
        let follower = Follower::spawn(&self.sifr, &self.home, name)?;
        if running.is_over {
            held(&follower.command()).kill()?;
        }
        running.followers.push(follower.command());
        Ok(follower)
    }

    /// Ends what runs, and whatever would be run.
    pub(super) fn end(&self) -> Result<()> {
        let mut running = self.running();
        running.is_over = true;
        for follower in &running.followers {
            held(follower).kill().context("end sifr logs")?;
        }
        match &mut running.child {
            Some(child) => child.kill().context("end sifr"),
            None => Ok(()),
        }
    }
}
