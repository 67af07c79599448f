//! A running QEMU.
//!
//! Owns: the process, its console and its monitor. Dropping the handle is a power cut.
//! Refuses: leaving a process behind when we are killed, unless started in the background.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::console::{Console, Miss};
use super::qmp::Qmp;
use super::{Accelerator, Machine, QEMU};
use crate::emulator;

/// How long a machine may take to go down in order.
const DOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a machine that does not read its serial line.
const TYPING_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of the console shown when what was waited for did not come.
const TAIL_LINES: usize = 40;

#[derive(Debug)]
pub struct Node {
    child: Child,
    console: Console,
    /// The serial line towards the machine.
    keyboard: UnixStream,
    monitor: Mutex<Monitor>,
    /// What QEMU itself complains about.
    complaints: File,
    detached: bool,
    /// Dropped last of all: until then the thread that started QEMU lives, and with it QEMU.
    _alive: mpsc::Sender<()>,
}

/// The monitor is greeted on first use: QEMU may still be starting.
#[derive(Debug)]
enum Monitor {
    Fresh(UnixStream),
    Open(Qmp),
    Broken,
}

impl Node {
    /// Powers the machine on. It ends with the handle, and with this process at the latest.
    pub fn spawn(machine: &Machine) -> Result<Self> {
        // The kernel kills the child when the thread that made it ends.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(emulator::program());
        Self::start(command, machine)
    }

    /// Powers the machine on. It runs on after [`Node::detach`] and does not hear our terminal's Ctrl-C.
    pub fn spawn_in_background(machine: &Machine) -> Result<Self> {
        let mut command = Command::new(emulator::program());
        command.process_group(0);
        Self::start(command, machine)
    }

    fn start(mut command: Command, machine: &Machine) -> Result<Self> {
        let pair = || UnixStream::pair().context("make sockets for QEMU");
        let ((serial, serial_end), (monitor, monitor_end)) = (pair()?, pair()?);
        let complaints = tempfile::tempfile().context("make a file for QEMU's messages")?;
        let stderr = complaints
            .try_clone()
            .context("share the file for QEMU's messages")?;
        command
            .args(machine.arguments(Accelerator::detect()))
            .stdin(Stdio::from(OwnedFd::from(serial_end)))
            .stdout(Stdio::from(OwnedFd::from(monitor_end)))
            .stderr(stderr);
        let console = Console::default();
        let reader = console.clone();
        let keyboard = serial.try_clone().context("share the serial line")?;
        keyboard
            .set_write_timeout(Some(TYPING_TIMEOUT))
            .context("set up the serial line")?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let (alive, dropped) = mpsc::channel();
        // The thread that reads lives as long as QEMU, so it is the one to start it.
        thread::spawn(move || {
            let spawned = command.spawn();
            // Our copies of QEMU's ends: while they are open its end cannot be seen.
            drop(command);
            let started = spawned.is_ok();
            if sender.send(spawned).is_ok() && started {
                reader.read_from(serial);
                // QEMU closes its console a moment before it exits.
                let _ = dropped.recv();
            }
        });
        let child = receiver
            .recv()
            .context("hear from the thread that starts QEMU")?
            .with_context(|| format!("start {QEMU}: run 'make setup'"))?;
        let monitor = Mutex::new(Monitor::Fresh(monitor));
        Ok(Self {
            child,
            console,
            keyboard,
            monitor,
            complaints,
            detached: false,
            _alive: alive,
        })
    }

    /// Waits for a line that contains `pattern`, printed since power-on or the last [`Node::mark`].
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> Result<String> {
        match self.console.wait_for(pattern, timeout) {
            Ok(line) => Ok(line),
            Err(miss) => {
                let why = match miss {
                    Miss::Ended => "the machine ended".to_owned(),
                    Miss::TimedOut => format!("{} s went by", timeout.as_secs()),
                };
                let (tail, complaints) = (self.console.tail(TAIL_LINES), self.complaints());
                bail!("{why} before {pattern:?} was printed; QEMU: {complaints}; console:\n{tail}")
            }
        }
    }

    /// Lines printed so far are not found by [`Node::wait_for_line`] any more: call it before
    /// whatever makes the machine print a line again.
    pub fn mark(&self) {
        self.console.mark();
    }

    /// Everything printed since power-on.
    pub fn console(&self) -> String {
        self.console.tail(usize::MAX)
    }

    /// Sends bytes to the machine's serial line. A machine that reads none makes this fail in the end.
    pub fn type_in(&self, bytes: &[u8]) -> Result<()> {
        let mut keyboard = &self.keyboard;
        keyboard
            .write_all(bytes)
            .context("write to the serial line")
    }

    /// Waits until QEMU ends by itself: the machine was powered off, or was reset with
    /// [`super::OnReset::Stop`].
    pub fn wait_for_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if !self.console.wait_for_end(timeout) {
            let tail = self.console.tail(TAIL_LINES);
            bail!(
                "the machine still runs after {} s; console:\n{tail}",
                timeout.as_secs()
            );
        }
        self.child.wait().context("wait for QEMU")
    }

    /// A power cut: the machine stops between two instructions.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill QEMU")?;
        self.child.wait().context("wait for QEMU").map(drop)
    }

    /// Presses the power button.
    pub fn power_button(&self) -> Result<()> {
        self.monitor("system_powerdown", &json!({})).map(drop)
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<()> {
        self.monitor("system_reset", &json!({})).map(drop)
    }

    /// Stops the machine's time.
    pub fn pause(&self) -> Result<()> {
        self.monitor("stop", &json!({})).map(drop)
    }

    pub fn resume(&self) -> Result<()> {
        self.monitor("cont", &json!({})).map(drop)
    }

    /// Plugs or unplugs the cable of network card number `index`.
    pub fn set_link(&self, index: usize, up: bool) -> Result<()> {
        self.monitor(
            "set_link",
            &json!({ "name": format!("card{index}"), "up": up }),
        )
        .map(drop)
    }

    /// Runs any monitor command.
    pub fn monitor(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut qmp = match std::mem::replace(&mut *monitor, Monitor::Broken) {
            Monitor::Fresh(stream) => Qmp::new(stream)?,
            Monitor::Open(qmp) => qmp,
            Monitor::Broken => bail!("QEMU's monitor did not answer before, or QEMU has ended"),
        };
        let answer = qmp.run(command, arguments);
        *monitor = Monitor::Open(qmp);
        answer
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets a machine that was started in the background run on without us.
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// Messages of QEMU itself, without the list of what its emulated processor lacks.
    fn complaints(&self) -> String {
        let mut text = String::new();
        let read = self.complaints.try_clone().and_then(|mut file| {
            file.rewind()?;
            file.read_to_string(&mut text)
        });
        if let Err(error) = read {
            return format!("its messages cannot be read: {error}");
        }
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.contains("TCG doesn't support"))
            .collect();
        if lines.is_empty() {
            "no message".to_owned()
        } else {
            lines.join("; ")
        }
    }
}

/// Stops a machine that runs in the background, by the socket of its monitor: with its power button,
/// and by ending QEMU if that does not help. False where none runs.
pub fn stop(socket: &Path) -> Result<bool> {
    let Ok(stream) = UnixStream::connect(socket) else {
        return Ok(false);
    };
    let mut monitor = Qmp::new(stream)?;
    monitor.run("system_powerdown", &json!({}))?;
    if !monitor.wait_for_end(DOWN_TIMEOUT)? {
        monitor.run("quit", &json!({}))?;
        monitor.wait_for_end(DOWN_TIMEOUT)?;
    }
    Ok(true)
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.detached {
            // It may have ended already; there is nothing else to do about an error here.
            let _ = self.kill();
        }
    }
}
