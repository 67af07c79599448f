//! Virtual machine monitors that do the same work: ours, QEMU's microvm, and others whose command lines are known.
//!
//! Owns: the command line of each, and hearing what their guests say on the serial port.
//! Refuses: to jail a foreign one. What a jail costs is counted against us only.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;
use sys::process::Ended;
use types::Mac;
use types::vm::{Disk, Engine, Net};

use crate::bench::report::{
    GUEST, GUEST_MIB, KERNEL, Overhead, PEERS, PEERS_WORD, QEMU, ROLE, Role,
};
use crate::inside::overhead;
use crate::nested::toolkit::{self, Node, Plan, readable};

/// The longest wait for a line of a guest; in counted time, so it costs the same everywhere.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// What a guest's figures begin with on its console, and its last line.
pub const FIGURE: &str = "guest: ";
pub const GUEST_END: &str = "guest: end";
/// Longest console output of a foreign monitor.
const CONSOLE_BYTES_MAX: usize = 1 << 20;
/// Where a foreign monitor's memory is counted.
const GROUP: &str = "/sys/fs/cgroup/foreign";
/// Of a measured card, where no other is asked for.
pub const MAC: Mac = Mac([2, 0, 0, 9, 9, 2]);
const MTU: u16 = 1500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    Ours,
    Qemu,
    Peer(Peer),
}

/// Monitors whose command lines are known; the program is given by its path (`bench --peer NAME=PATH`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Firecracker,
    CloudHypervisor,
}

impl Peer {
    pub const ALL: [Self; 2] = [Self::Firecracker, Self::CloudHypervisor];

    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// Those that are in this node.
    pub fn here() -> Vec<Self> {
        let words = std::env::var(PEERS_WORD).unwrap_or_default();
        let all = Self::ALL.into_iter();
        all.filter(|peer| words.split(',').any(|word| word == peer.name()))
            .collect()
    }

    fn path(self) -> String {
        format!("{PEERS}/{}", self.name())
    }
}

impl Monitor {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "sifr-vmm",
            Self::Qemu => "QEMU microvm",
            Self::Peer(peer) => peer.name(),
        }
    }

    /// Ours, QEMU and what else there is, in this order.
    pub fn all() -> Vec<Self> {
        let peers = Peer::here().into_iter().map(Self::Peer);
        [Self::Ours, Self::Qemu].into_iter().chain(peers).collect()
    }
}

/// How requests of a disk reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// One after the other; QEMU has threads for it.
    Plain,
    /// By io_uring; in QEMU beside a thread of the disk's own.
    Ring,
}

/// Who moves the packets of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    Monitor,
    Kernel,
}

/// A machine to start.
#[derive(Debug)]
pub struct Wanted {
    pub cpus: u8,
    pub role: Role,
    pub serial: Serial,
    pub disk: Option<(String, Path)>,
    pub card: Option<(OwnedFd, Mover)>,
    pub mac: Mac,
    /// More of the guest's command line, with a space before it.
    pub words: String,
}

/// Whether the guest has a serial port to speak on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    Heard,
    None,
}

impl Wanted {
    pub fn new(role: Role) -> Self {
        Self {
            cpus: 1,
            role,
            serial: Serial::Heard,
            disk: None,
            card: None,
            mac: MAC,
            words: String::new(),
        }
    }

    fn role_word(&self) -> String {
        let console = match self.serial {
            Serial::Heard => "console=ttyS0 ",
            Serial::None => "",
        };
        format!("{console}{ROLE}={}{}", self.role.word(), self.words)
    }

    /// What our monitor gives its guests, said to others'. Only a triple fault ends QEMU's microvm.
    fn line(&self, reboot: &str) -> String {
        let uarts = u8::from(self.serial == Serial::Heard);
        format!(
            "reboot={reboot} panic=-1 quiet loglevel=0 no_timer_check tsc=reliable \
             random.trust_cpu=on 8250.nr_uarts={uarts} {}",
            self.role_word()
        )
    }
}

/// A machine that runs.
#[derive(Debug)]
pub enum Running {
    Ours(Box<toolkit::Machine>),
    Foreign(Foreign),
}

impl Running {
    pub fn start(monitor: Monitor, node: &Node, wanted: Wanted) -> Result<Self> {
        println!("{}: {}", monitor.name(), wanted.role.word());
        let command = match monitor {
            Monitor::Ours => {
                let plan = ours(node, wanted)?;
                return Ok(Self::Ours(Box::new(plan.start()?)));
            }
            Monitor::Qemu => qemu(&wanted),
            Monitor::Peer(Peer::Firecracker) => firecracker(&wanted)?,
            Monitor::Peer(Peer::CloudHypervisor) => cloud_hypervisor(&wanted)?,
        };
        Foreign::start(monitor, command, wanted).map(Self::Foreign)
    }

    /// The next line of the guest that begins with [`FIGURE`], without that.
    pub fn figure(&mut self) -> Result<String> {
        let line = match self {
            Self::Ours(machine) => machine.line(FIGURE, PATIENCE)?,
            Self::Foreign(foreign) => foreign.line(FIGURE)?,
        };
        let (_, rest) = line.split_once(FIGURE).context("just found")?;
        println!("{rest}");
        if let Some(why) = rest.strip_prefix("FAILED") {
            bail!("the guest{why}");
        }
        Ok(rest.to_owned())
    }

    /// All figures up to the guest's last line: a name and a number each.
    pub fn figures(&mut self) -> Result<Vec<(String, f64)>> {
        let mut all = Vec::new();
        loop {
            let line = self.figure()?;
            if line == "end" {
                return Ok(all);
            }
            let pair = line.rsplit_once(' ');
            let (name, value) = pair.with_context(|| format!("understand {line:?}"))?;
            all.push((name.to_owned(), value.parse()?));
        }
    }

    pub fn memory(&self) -> Result<Overhead> {
        match self {
            Self::Ours(machine) => machine.memory(),
            Self::Foreign(foreign) => foreign.memory(),
        }
    }

    /// Waits for the machine's own end.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Ours(machine) => {
                let life = machine.finish(PATIENCE)?;
                ensure!(life.ended == Ended::Code(0), "sifr-vmm: {life:?}");
                Ok(())
            }
            Self::Foreign(foreign) => foreign.finish(),
        }
    }

    pub fn kill(self) -> Result<()> {
        match self {
            Self::Ours(mut machine) => machine.kill(),
            Self::Foreign(mut foreign) => foreign.kill(),
        }
    }
}

/// Our machine, in the jail that pid1 gives it.
pub fn ours(node: &Node, wanted: Wanted) -> Result<Plan<'_>> {
    let kernel = File::open(KERNEL).context("open the guest's kernel")?;
    let mut plan = node.bare("bench", kernel)?;
    let initramfs = plan.pass(File::open(GUEST).context("open the guest's initramfs")?);
    plan.spec.initramfs.push(initramfs);
    plan.spec.cmdline = wanted.role_word();
    plan.spec.memory_mib = GUEST_MIB;
    plan.spec.cpus = wanted.cpus;
    if wanted.serial == Serial::None {
        plan.spec.serial = None;
    }
    if let Some((path, way)) = &wanted.disk {
        let mut options = File::options();
        let file = options.read(true).write(true).open(path);
        let fd = plan.pass(file.with_context(|| format!("open {path}"))?);
        plan.spec.disks.push(Disk {
            engine: match way {
                Path::Plain => Engine::Sync,
                Path::Ring => Engine::Auto,
            },
            ..Disk::new("bench", fd, false)
        });
    }
    if let Some((tap, mover)) = wanted.card {
        let vhost = match mover {
            Mover::Monitor => None,
            Mover::Kernel => {
                let device = File::options().read(true).write(true).open(VHOST_NET);
                Some(plan.pass(device.context("open /dev/vhost-net")?))
            }
        };
        let tap = plan.pass(tap);
        plan.spec.nets.push(Net {
            vhost,
            ..Net::new(tap, wanted.mac, MTU)
        });
    }
    Ok(plan)
}

pub const VHOST_NET: &str = "/dev/vhost-net";

/// The smallest and quickest machine that QEMU has, with the same kernel, guest and memory. It has no
/// keyboard controller to reset it: a triple fault ends it. Its own additions to the command line are needed
/// only where it has devices.
pub fn qemu(wanted: &Wanted) -> Command {
    let on = |yes| if yes { "on" } else { "off" };
    let devices = wanted.disk.is_some() || wanted.card.is_some();
    let machine = format!(
        "microvm,accel=kvm,x-option-roms=off,acpi=off,pit=off,pic=off,rtc=off,\
         isa-serial={},auto-kernel-cmdline={}",
        on(wanted.serial == Serial::Heard),
        on(devices)
    );
    let mut command = Command::new(QEMU);
    command
        .args(["-M", &machine, "-cpu", "host"])
        .args(["-smp", &wanted.cpus.to_string()])
        .args(["-m", &GUEST_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-no-reboot")
        .args(["-kernel", KERNEL, "-initrd", GUEST])
        .args(["-append", &wanted.line("t")]);
    if devices {
        // The virtio of today, as all others have it.
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    if wanted.serial == Serial::Heard {
        command.args(["-chardev", "stdio,id=s,signal=off", "-serial", "chardev:s"]);
    }
    if let Some((path, way)) = &wanted.disk {
        let file = format!("id=d,if=none,format=raw,file={path}");
        match way {
            Path::Plain => command
                .args(["-drive", &format!("{file},aio=threads")])
                .args(["-device", "virtio-blk-device,drive=d"]),
            Path::Ring => command
                .args(["-object", "iothread,id=i"])
                .args(["-drive", &format!("{file},aio=io_uring")])
                .args(["-device", "virtio-blk-device,drive=d,iothread=i"]),
        };
    }
    if let Some((tap, mover)) = &wanted.card {
        let vhost = on(*mover == Mover::Kernel);
        command
            .args([
                "-netdev",
                &format!("tap,id=n,fd={},vhost={vhost}", tap.as_raw_fd()),
            ])
            .args([
                "-device",
                &format!("virtio-net-device,netdev=n,mac={}", wanted.mac),
            ]);
    }
    command
}

/// By its file, without its API (`docs/getting-started.md` there). Its TAPs go by name only, so it gets none.
fn firecracker(wanted: &Wanted) -> Result<Command> {
    ensure!(
        wanted.card.is_none(),
        "firecracker's cards are not measured"
    );
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": KERNEL,
            "initrd_path": GUEST,
            "boot_args": wanted.line("k"),
        },
        "machine-config": { "vcpu_count": wanted.cpus, "mem_size_mib": GUEST_MIB },
        "drives": [],
    });
    if let Some((path, way)) = &wanted.disk {
        let engine = match way {
            Path::Plain => "Sync",
            Path::Ring => "Async",
        };
        config["drives"] = json!([{
            "drive_id": "d", "path_on_host": path, "is_root_device": false,
            "is_read_only": false, "io_engine": engine, "cache_type": "Writeback",
        }]);
    }
    let file = "/run/firecracker.json";
    fs::write(file, config.to_string()).with_context(|| format!("write {file}"))?;
    let mut command = Command::new(Peer::Firecracker.path());
    command.args(["--no-api", "--config-file", file]);
    Ok(command)
}

/// Its devices are on PCI, which our guest kernel does not have: it gets none.
fn cloud_hypervisor(wanted: &Wanted) -> Result<Command> {
    let none = wanted.card.is_none() && wanted.disk.is_none();
    ensure!(
        none,
        "cloud-hypervisor's devices are on PCI, which the guest's kernel has not"
    );
    let serial = match wanted.serial {
        Serial::Heard => "tty",
        Serial::None => "off",
    };
    let mut command = Command::new(Peer::CloudHypervisor.path());
    command
        .args(["--kernel", KERNEL, "--initramfs", GUEST])
        .args(["--cmdline", &wanted.line("k")])
        .args(["--cpus", &format!("boot={}", wanted.cpus)])
        .args(["--memory", &format!("size={GUEST_MIB}M")])
        .args(["--console", "off", "--serial", serial]);
    Ok(command)
}

/// A monitor of somebody else's. What its guest says comes from its standard output.
#[derive(Debug)]
pub struct Foreign {
    name: &'static str,
    process: Child,
    output: ChildStdout,
    said: Vec<u8>,
    read: usize,
}

impl Foreign {
    fn start(monitor: Monitor, mut command: Command, wanted: Wanted) -> Result<Self> {
        let name = monitor.name();
        if let Some((tap, _)) = &wanted.card {
            fcntl(tap, FcntlArg::F_SETFD(FdFlag::empty())).context("pass on a TAP")?;
        }
        if !fs::exists(GROUP)? {
            fs::create_dir(GROUP).context("make a cgroup")?;
        }
        // Children begin where their parent is, and are counted there from their first page.
        fs::write(format!("{GROUP}/cgroup.procs"), "0").context("enter a cgroup")?;
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        fs::write("/sys/fs/cgroup/cgroup.procs", "0").context("leave a cgroup")?;
        let mut process = started.with_context(|| format!("start {name}"))?;
        let output = process.stdout.take().context("its output is a pipe")?;
        Ok(Self {
            name,
            process,
            output,
            said: Vec::new(),
            read: 0,
        })
    }

    fn line(&mut self, pattern: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let rest = &self.said[self.read..];
            if let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
                self.read += end + 1;
                if line.contains(pattern) {
                    return Ok(line);
                }
                continue;
            }
            let name = self.name;
            ensure!(
                readable(self.output.as_fd(), until)?,
                "{pattern:?} was not said in {PATIENCE:?} under {name}: {:?}",
                String::from_utf8_lossy(&self.said)
            );
            let mut bytes = [0; 4096];
            let count = self.output.read(&mut bytes).context("hear a guest")?;
            ensure!(
                count > 0 && self.said.len() < CONSOLE_BYTES_MAX,
                "{name} ended before {pattern:?} was said, or its guest says too much: {:?}",
                String::from_utf8_lossy(&self.said)
            );
            self.said.extend_from_slice(&bytes[..count]);
        }
    }

    fn memory(&self) -> Result<Overhead> {
        let name = self.name;
        let maps = format!("/proc/{}/smaps", self.process.id());
        let maps = fs::read_to_string(maps).with_context(|| format!("read the map of {name}"))?;
        let stat = fs::read_to_string(format!("{GROUP}/memory.stat"))?;
        let found = overhead(&maps, &stat, GUEST_MIB);
        found.with_context(|| format!("memory of {name}: its guest's is not one mapping"))
    }

    fn finish(mut self) -> Result<()> {
        let mut rest = Vec::new();
        let taken = (&mut self.output).take(CONSOLE_BYTES_MAX as u64);
        let _all = { taken }.read_to_end(&mut rest).context("hear a guest")?;
        let status = self.process.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It has ended, or goes with the node in a moment.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command) -> Vec<String> {
        let words = command.get_args().map(|a| a.to_string_lossy().into_owned());
        words.collect()
    }

    #[test]
    fn every_peer_has_a_name_of_its_own_and_a_command_line() {
        assert_ne!(Peer::Firecracker.name(), Peer::CloudHypervisor.name());
        let wanted = Wanted::new(Role::Reset);
        let line = words(&cloud_hypervisor(&wanted).expect("it needs no devices"));
        assert!(line.contains(&"boot=1".to_owned()), "{line:?}");
    }

    #[test]
    fn qemu_adds_to_the_kernels_line_only_where_it_has_devices() {
        let mut wanted = Wanted::new(Role::UseDisk);
        assert!(words(&qemu(&wanted))[1].ends_with("auto-kernel-cmdline=off"));
        wanted.disk = Some(("/x".to_owned(), Path::Ring));
        let line = words(&qemu(&wanted));
        assert!(line[1].ends_with("auto-kernel-cmdline=on"), "{line:?}");
        assert!(line.iter().any(|w| w.contains("aio=io_uring")), "{line:?}");
        assert!(line.iter().any(|w| w.contains("console=ttyS0")), "{line:?}");
    }
}
