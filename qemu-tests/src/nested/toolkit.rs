//! What a scenario works with in the node: monitors, started and jailed as pid1 does, and all they say.
//!
//! Owns: a [`Plan`] of a machine, and the running [`Machine`]: its control socket, its console, its process.
//! Refuses: waiting for ever, and a monitor that outlives its handle.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::process::{Child, Confinement, Ended, FIRST_FD, Program};
use types::vm::{CONTROL_PACKET_MAX, Exits, Fd, FromVmm, StopReason, ToVmm, VmSpec};
use types::{Name, PublicKey, VmId};

use super::{GUEST, HOSTILE, INITRAMFS, KERNEL, VMM};
use crate::bench::report::Overhead;
use crate::inside::{mappings, overhead};

/// The longest wait for anything: two emulated cores run a node, its monitor and the guest.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// A scenario's directory for files of any kind: a tmpfs.
pub const FILES: &str = "/run";
/// The root directory of every monitor.
pub(crate) const EMPTY_ROOT: &str = "/run/empty";
const CGROUPS: &str = "/sys/fs/cgroup";
/// As pid1 gives them.
const FIRST_ID: u32 = 100_000;
const OPEN_FILES_MAX: u64 = 1024;
/// No disk of a scenario is larger.
const FILE_BYTES_MAX: u64 = 4 << 30;
const MEMORY_MIB: u64 = 128;
/// A monitor says little in a guest's life; more is an error of its own.
const MESSAGES_MAX: usize = 10_000;
/// Longest console output that a scenario reads.
const CONSOLE_BYTES_MAX: usize = 4 << 20;

/// The node as scenarios see it.
#[derive(Debug)]
pub struct Node {
    vmm: File,
    /// Monitors started so far: each has a user of its own.
    started: Cell<u32>,
}

impl Node {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            vmm: open(VMM)?,
            started: Cell::new(0),
        })
    }

    /// A machine with one vCPU, 128 MiB, our guest kernel and the guest program `guest`, whose console is
    /// the serial port. `name` is for people, a DNS label.
    pub fn plan(&self, name: &str, guest: &str) -> Result<Plan<'_>> {
        let mut plan = self.bare(name, open(KERNEL)?)?;
        let initramfs = plan.pass(open(INITRAMFS)?);
        plan.spec.initramfs.push(initramfs);
        plan.spec.cmdline = format!("console=ttyS0 {GUEST}={guest}");
        Ok(plan)
    }

    /// The same with the kernel that attacks its monitor, whose command line is `arguments`.
    pub fn hostile(&self, name: &str, arguments: &str) -> Result<Plan<'_>> {
        let mut plan = self.bare(name, open(HOSTILE)?)?;
        plan.spec.cmdline = format!("console=ttyS0 {arguments}");
        Ok(plan)
    }

    /// A machine with this kernel and nothing else but a serial port, which a kernel of ours may use
    /// where its command line has `console=ttyS0`.
    pub fn bare(&self, name: &str, kernel: File) -> Result<Plan<'_>> {
        let label: Name = name.parse().context("name the machine")?;
        let id = VmId::new(&PublicKey([7; 32]), &label, &label);
        // Numbers that `pass` replaces below.
        let none = Fd(-1);
        let mut plan = Plan {
            node: self,
            spec: VmSpec::new(id, 1, MEMORY_MIB, none, none),
            fds: Vec::new(),
            console: None,
        };
        plan.spec.kvm = plan.pass(open("/dev/kvm")?);
        plan.spec.kernel = Some(plan.pass(kernel));
        let (ours, theirs) = UnixStream::pair().context("make a console")?;
        theirs.set_nonblocking(true)?;
        plan.spec.serial = Some(plan.pass(theirs));
        plan.console = Some(ours);
        Ok(plan)
    }
}

/// A machine that is not started yet.
#[derive(Debug)]
pub struct Plan<'a> {
    node: &'a Node,
    /// Free to change, up to the control socket, which `start` makes.
    pub spec: VmSpec,
    fds: Vec<OwnedFd>,
    console: Option<UnixStream>,
}

impl Plan<'_> {
    /// The number that `fd` will have in the monitor.
    pub fn pass(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.fds.push(fd.into());
        let behind_spec = i32::try_from(self.fds.len()).expect("a few descriptors");
        Fd(FIRST_FD + behind_spec)
    }

    /// Starts the monitor in a jail of its own.
    pub fn start(mut self) -> Result<Machine> {
        let slot = self.node.started.replace(self.node.started.get() + 1);
        let (control, theirs) = sys::socket::pair().context("make a control socket")?;
        let theirs = self.pass(theirs);
        self.spec.control.get_or_insert(theirs);
        let text = serde_json::to_vec(&self.spec)?;
        let spec = sys::fs::sealed_memory("spec", &text)?;
        let group = PathBuf::from(format!("{CGROUPS}/vmm{slot}"));
        fs::create_dir(&group).context("make a cgroup")?;
        let output = tempfile::tempfile_in(FILES).context("make a file for messages")?;
        let fds = [spec.as_fd()]
            .into_iter()
            .chain(self.fds.iter().map(AsFd::as_fd));
        let child = sys::process::spawn(&Program {
            file: self.node.vmm.as_fd(),
            args: vec![CString::new(format!("vmm:{}", self.spec.id))?],
            env: Vec::new(),
            fds: fds.collect(),
            output: Some(output.as_fd()),
            cgroup: Some(File::open(&group).context("open a cgroup")?.as_fd()),
            confinement: Some(Confinement {
                id: FIRST_ID + slot,
                group: None,
                root: CString::new(EMPTY_ROOT)?,
                files_max: OPEN_FILES_MAX,
                file_bytes_max: FILE_BYTES_MAX,
            }),
        })?;
        Ok(Machine {
            child,
            ended: None,
            group,
            memory_mib: self.spec.memory_mib,
            control,
            messages: Vec::new(),
            console: self.console,
            said: Vec::new(),
            read: 0,
            output,
        })
    }
}

/// A monitor that runs, or has run.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    ended: Option<Ended>,
    group: PathBuf,
    memory_mib: u64,
    control: OwnedFd,
    /// All that came on the control socket so far.
    messages: Vec<FromVmm>,
    console: Option<UnixStream>,
    said: Vec<u8>,
    /// Where in `said` the lines begin that nobody has read.
    read: usize,
    output: File,
}

/// How a machine's life was.
#[derive(Debug)]
pub struct Life {
    pub ended: Ended,
    pub messages: Vec<FromVmm>,
    /// What the monitor wrote to its standard error.
    pub output: String,
    /// The console, from the beginning.
    pub console: String,
    /// Most memory that guest and monitor ever had together, as their cgroup counted it.
    pub peak_bytes: u64,
}

impl Life {
    /// The monitor's last message.
    pub fn stopped(&self) -> Result<(&StopReason, &Exits)> {
        match self.messages.last() {
            Some(FromVmm::Stopped { reason, exits }) => Ok((reason, exits)),
            other => bail!("the last message is {other:?}: {self:?}"),
        }
    }
}

impl Machine {
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// The next line of the console that contains `pattern`, without its end.
    pub fn line(&mut self, pattern: &str, patience: Duration) -> Result<String> {
        let until = Instant::now() + patience;
        loop {
            while let Some(line) = self.next_line() {
                if line.contains(pattern) {
                    return Ok(line);
                }
            }
            let console = self
                .console
                .as_mut()
                .context("the machine has no console")?;
            ensure!(
                readable(console.as_fd(), until)?,
                "{pattern:?} was not said in {patience:?}; {}",
                self.state()
            );
            if !self.read_console()? {
                self.hear_the_end()?;
                bail!(
                    "the machine ended before {pattern:?} was said; {}",
                    self.state()
                );
            }
        }
    }

    /// Of a monitor that is about to end, how it does, and all that it still says.
    fn hear_the_end(&mut self) -> Result<()> {
        self.wait(Instant::now() + PATIENCE)?;
        while readable(self.control.as_fd(), Instant::now())?
            && self.hear(Duration::ZERO)?.is_some()
        {}
        Ok(())
    }

    /// Forgets the lines that have been said so far.
    pub fn forget_lines(&mut self) -> Result<()> {
        while let Some(console) = &self.console
            && readable(console.as_fd(), Instant::now())?
            && self.read_console()?
        {}
        while self.next_line().is_some() {}
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        let rest = &self.said[self.read..];
        let end = rest.iter().position(|b| *b == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
        self.read += end + 1;
        Some(line)
    }

    /// False at its end.
    fn read_console(&mut self) -> Result<bool> {
        let Some(console) = &mut self.console else {
            return Ok(false);
        };
        let mut bytes = [0; 4096];
        let count = match console.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            other => other.context("read the console")?,
        };
        self.said.extend_from_slice(&bytes[..count]);
        ensure!(
            self.said.len() <= CONSOLE_BYTES_MAX,
            "the guest says too much"
        );
        Ok(count > 0)
    }

    /// The next message on the control socket; `None` when the monitor has closed it.
    pub fn hear(&mut self, patience: Duration) -> Result<Option<FromVmm>> {
        let until = Instant::now() + patience;
        ensure!(
            readable(self.control.as_fd(), until)?,
            "the monitor said nothing for {patience:?}; {}",
            self.state()
        );
        let mut packet = vec![0; CONTROL_PACKET_MAX];
        let received = match sys::socket::receive(self.control.as_fd(), &mut packet) {
            // It was killed with packets of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            other => other.context("hear from the monitor")?,
        };
        let Some(received) = received else {
            return Ok(None);
        };
        let message: FromVmm =
            serde_json::from_slice(&packet[..received.length]).context("understand the monitor")?;
        ensure!(
            self.messages.len() < MESSAGES_MAX,
            "the monitor says too much"
        );
        self.messages.push(message.clone());
        Ok(Some(message))
    }

    /// What `pick` takes of the messages to come. Those before it are kept for [`Life::messages`].
    pub fn hear_until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut pick: impl FnMut(&FromVmm) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + patience;
        loop {
            let message = self.hear(until.saturating_duration_since(Instant::now()));
            let message = message.with_context(|| format!("wait for {what}"))?;
            let message = message
                .ok_or_else(|| anyhow!("the machine ended before {what}; {}", self.state()))?;
            if let Some(found) = pick(&message) {
                return Ok(found);
            }
        }
    }

    /// Waits until vCPUs run.
    pub fn running(&mut self) -> Result<u64> {
        self.hear_until("the guest runs", PATIENCE, |message| match message {
            FromVmm::Running { setup_us } => Some(*setup_us),
            _ => None,
        })
    }

    /// Sends a request, with descriptors beside it.
    pub fn ask(&self, request: &ToVmm, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let packet = serde_json::to_vec(request)?;
        sys::socket::send(self.control.as_fd(), &packet, fds).context("ask the monitor")
    }

    /// The monitor's memory without the guest's, as it is now.
    pub fn memory(&self) -> Result<Overhead> {
        let maps = format!("/proc/{}/smaps", self.child.pid);
        let maps = fs::read_to_string(maps).context("read the monitor's map")?;
        let stat = fs::read_to_string(self.group.join("memory.stat"))?;
        let found = overhead(&maps, &stat, self.memory_mib);
        found.context("the guest's memory is not one mapping")
    }

    /// The monitor's mappings with pages of their own, largest first: KiB and what is mapped.
    pub fn mappings(&self) -> Result<Vec<(u64, String)>> {
        let maps = format!("/proc/{}/smaps", self.child.pid);
        let maps = fs::read_to_string(maps).context("read the monitor's map")?;
        Ok(mappings(&maps))
    }

    /// All that is charged to the monitor and its guest: pages of their own and the kernel's for them. Pages of
    /// files that somebody else has touched first are not.
    pub fn charged_bytes(&self) -> Result<u64> {
        let current = fs::read_to_string(self.group.join("memory.current"));
        let current = current.context("read what the monitor costs")?;
        current.trim().parse().context("understand what it costs")
    }

    /// A line of `/proc/<pid>/status` such as `Threads:`.
    pub fn status(&self, key: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.pid));
        let status = status.context("read the monitor's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        Ok(line.with_context(|| format!("no {key}"))?.trim().to_owned())
    }

    /// Time on processors that the monitor and its vCPUs have had.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.group.join("cpu.stat")).context("read cpu.stat")?;
        let micros = stat.lines().find_map(|l| l.strip_prefix("usage_usec "));
        let micros = micros.context("no usage_usec")?.parse()?;
        Ok(Duration::from_micros(micros))
    }

    /// Whether the monitor has not ended.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.wait(Instant::now())?.is_none())
    }

    /// Waits for the monitor's end and gathers all it said.
    pub fn finish(mut self, patience: Duration) -> Result<Life> {
        let until = Instant::now() + patience;
        // The console is read meanwhile: its room is bounded.
        while self.console.is_some() {
            let console = self.console.as_ref().expect("just seen").as_fd();
            ensure!(
                readable(console, until)?,
                "the machine still runs after {patience:?}; {}",
                self.state()
            );
            if !self.read_console()? {
                self.console = None;
            }
        }
        let Some(ended) = self.wait(until)? else {
            bail!(
                "the machine still runs after {patience:?}; {}",
                self.state()
            );
        };
        while self.hear(Duration::ZERO)?.is_some() {}
        let peak = fs::read_to_string(self.group.join("memory.peak"));
        Ok(Life {
            ended,
            peak_bytes: peak.context("read the most memory")?.trim().parse()?,
            messages: std::mem::take(&mut self.messages),
            output: self.output()?,
            console: String::from_utf8_lossy(&self.said).into_owned(),
        })
    }

    /// Kills the monitor and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended.is_none() {
            sys::signal::send(self.child.pidfd.as_fd(), nix::libc::SIGKILL)?;
            self.wait(Instant::now() + PATIENCE)?;
        }
        Ok(())
    }

    fn wait(&mut self, until: Instant) -> Result<Option<Ended>> {
        if self.ended.is_none() && readable(self.child.pidfd.as_fd(), until)? {
            let status = waitpid(Pid::from_raw(self.child.pid), None);
            self.ended = match status.context("wait for the monitor")? {
                WaitStatus::Exited(_, code) => Some(Ended::Code(code)),
                WaitStatus::Signaled(_, signal, _) => Some(Ended::Signal(signal as i32)),
                other => bail!("the monitor is {other:?}"),
            };
        }
        Ok(self.ended)
    }

    fn output(&self) -> Result<String> {
        let mut bytes = vec![0; 64 << 10];
        let count = std::os::unix::fs::FileExt::read_at(&self.output, &mut bytes, 0);
        let count = count.context("read the monitor's messages")?;
        Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }

    /// For the message of a failure.
    fn state(&mut self) -> String {
        let ended = self.wait(Instant::now());
        let tail = self.said.len().saturating_sub(2000);
        let said = String::from_utf8_lossy(&self.said[tail..]);
        let output = self.output();
        format!(
            "ended: {ended:?}, messages {:?}, output {output:?}, console {said:?}",
            self.messages
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What cannot be killed goes with the node, in a moment.
        let _ = self.kill();
        let _ = fs::remove_dir(&self.group);
    }
}

pub(super) fn open(path: &str) -> Result<File> {
    let device = path.starts_with("/dev/");
    let file = File::options().read(true).write(device).open(path);
    file.with_context(|| format!("open {path}"))
}

/// Whether there is something to read, or the other end is gone, before `until`.
pub fn readable(fd: BorrowedFd<'_>, until: Instant) -> Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last turn is not spent spinning.
        let left = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        let mut set = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut set, PollTimeout::from(left)) {
            Ok(0) if Instant::now() >= until => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error).context("wait for the machine"),
        }
    }
}
