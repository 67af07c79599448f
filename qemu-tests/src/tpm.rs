//! The TPM of a machine in QEMU: Debian's `swtpm`, with its state in a directory.
//!
//! Owns: the process, from power-on to power-on. Refuses: two machines with one TPM at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;

/// It tells nobody when its socket is there.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A chip that keeps what it has while the power is off.
#[derive(Debug)]
pub struct Chip {
    directory: PathBuf,
    process: Option<Child>,
}

/// Makes a recovery key of which two of three shares are enough, with its papers in a directory.
pub fn recovery(directory: &Path) -> Result<(String, Vec<PathBuf>)> {
    let made = Command::new(crate::command()?)
        .args(["key", "recovery", "--shares", "3", "--need", "2", "-o"])
        .arg(directory)
        .env("SIFR_HOME", directory)
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let key = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let share = |n: u8| directory.join(format!("share-{n}-of-3"));
    Ok((key, (1..=3).map(share).collect()))
}

impl Chip {
    /// A new one, or the one that is in this directory already.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            process: None,
        })
    }

    /// Where the machine finds it.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Must be called before each power-on: the emulator ends with its machine.
    pub fn start(&mut self) -> Result<()> {
        self.stop();
        let socket = self.socket();
        let _ = fs::remove_file(&socket);
        let state = format!("dir={}", self.directory.display());
        let control = format!("type=unixio,path={}", socket.display());
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &state, "--ctrl", &control])
            .stdin(Stdio::null())
            .spawn()
            .context("start swtpm: run 'make setup'")?;
        self.process = Some(process);
        let since = Instant::now();
        while !socket.exists() {
            ensure!(since.elapsed() < PATIENCE, "swtpm makes no socket");
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        self.stop();
    }
}
