//! The benchmark's program inside the node, and in the guests that it measures.
//!
//! Owns: starting virtual machine monitors as pid1 would, and the clock around them.
//! Refuses: being in a shipped image: `bench` appends it to a copy.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use qemu_tests::bench::report::{
    AVAILABLE, FAILED, GUEST, GUEST_MIB, KERNEL, Monitor, PROC, QEMU, REPORT, ROLE, Report, Role,
};
use types::vm::{CONTROL_PACKET_MAX, Exits, Fd, FromVmm, SPEC_FD, StopReason, VmSpec};
use types::{Name, PublicKey, VmId};

const VMM: &str = "/bin/sifr-vmm";
/// Odd, so that one run is in the middle.
const RUNS: usize = 5;
/// Far longer than a guest takes to its init; all of it is counted time, so it costs the same everywhere.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two samples of free memory.
const SAMPLE: Duration = Duration::from_secs(1);
/// A VMM says little in a guest's life; more is an error of its own.
const MESSAGES_MAX: usize = 1000;

fn main() {
    let role = std::env::var(ROLE).ok().and_then(|word| Role::parse(&word));
    let result = match role {
        Some(Role::Reset) => end(RebootMode::RB_AUTOBOOT),
        Some(Role::Wait) => wait(),
        Some(Role::Sampler) => sample(),
        Some(Role::Idle) => idle(),
        Some(Role::Machines) => machines(),
        None => Err(anyhow::anyhow!(
            "{ROLE}= is not set on the kernel command line"
        )),
    };
    if let Err(error) = result {
        println!("\n{FAILED}{error:#}");
    }
    // Init must not return; where the machine does not go off, the kernel's panic ends it.
    let _ = end(RebootMode::RB_POWER_OFF);
}

fn end(mode: RebootMode) -> Result<()> {
    let never = reboot(mode).context("end the machine")?;
    match never {}
}

fn wait() -> Result<()> {
    loop {
        std::thread::park();
    }
}

fn mount_at(kind: &str, place: &str) -> Result<()> {
    mount(
        Some(kind),
        place,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount {kind} on {place}"))
}

/// Becomes the node's own init. The sampler has its view of memory before that init mounts anything.
fn idle() -> Result<()> {
    mount_at("proc", PROC)?;
    let memory = File::open(format!("{PROC}/meminfo")).context("open meminfo")?;
    let own = format!("{PROC}/self/exe");
    let mut sampler = Command::new(own);
    sampler
        .env(ROLE, Role::Sampler.word())
        .stdin(Stdio::from(memory));
    sampler.spawn().context("start the sampler")?;
    Err(Command::new("/init").env_remove(ROLE).exec()).context("become /init")
}

fn sample() -> Result<()> {
    let memory = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    loop {
        sleep(SAMPLE);
        let mut text = [0; 4096];
        let count = memory.read_at(&mut text, 0).context("read meminfo")?;
        let text = String::from_utf8_lossy(&text[..count]);
        let mib = |key| Some(kib_of(&text, key)? / 1024);
        let free = mib("MemAvailable:").context("no MemAvailable")?;
        let total = mib("MemTotal:").context("no MemTotal")?;
        println!("{AVAILABLE}{free} of {total}");
    }
}

/// The number in a line such as `MemAvailable:    1000 kB`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn machines() -> Result<()> {
    // The first descriptor of this process after the standard streams is the one that a VMM reads its
    // specification from.
    let spec = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open("/bench-spec");
    let mut spec = spec.context("make the specification's file")?;
    ensure!(
        spec.as_raw_fd() == SPEC_FD,
        "descriptor {SPEC_FD} was taken before"
    );
    inheritable(&spec)?;
    mount_at("devtmpfs", "/dev")?;
    mount_at("proc", "/proc")?;
    mount_at("sysfs", "/sys")?;
    let mut report = Report::default();
    for _ in 0..RUNS {
        let life = Ours::start(&mut spec, Role::Reset)?.finish()?;
        report.ours.life_us.push(life.took_us);
        report.setup_us.push(life.setup_us);
        report.exits = life.exits;
        report.qemu.life_us.push(qemu_life()?);
    }
    let mut ours = Ours::start(&mut spec, Role::Wait)?;
    report.ours.memory_kib = memory_of(&mut ours.process).context("memory of sifr-vmm")?;
    report.qemu.memory_kib = memory_of(&mut qemu(Role::Wait).spawn().context("start QEMU")?)
        .context("memory of QEMU")?;
    check(&report.qemu)?;
    println!("\n{REPORT}{}", serde_json::to_string(&report)?);
    Ok(())
}

fn check(monitor: &Monitor) -> Result<()> {
    ensure!(
        monitor.median_us() > 0 && monitor.memory_kib > 0,
        "nothing was measured"
    );
    Ok(())
}

/// A running sifr-vmm.
struct Ours {
    process: Child,
    control: OwnedFd,
    started: Instant,
}

struct Life {
    took_us: u64,
    setup_us: u64,
    exits: Exits,
}

impl Ours {
    fn start(spec: &mut File, role: Role) -> Result<Self> {
        let open = |path: &str| {
            let file = File::options()
                .read(true)
                .write(path.starts_with("/dev/"))
                .open(path);
            let file = file.with_context(|| format!("open {path}"))?;
            inheritable(&file)?;
            Ok::<_, anyhow::Error>(file)
        };
        let (kvm, kernel, guest) = (open("/dev/kvm")?, open(KERNEL)?, open(GUEST)?);
        let kind = SockType::SeqPacket;
        let (control, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .context("make the control socket")?;
        inheritable(&theirs)?;
        let name: Name = "bench".parse().context("name the machine")?;
        let text = serde_json::to_vec(&VmSpec {
            id: VmId::new(&PublicKey([7; 32]), &name, &name),
            cpus: 1,
            memory_mib: GUEST_MIB,
            kvm: Fd(kvm.as_raw_fd()),
            kernel: Fd(kernel.as_raw_fd()),
            initramfs: vec![Fd(guest.as_raw_fd())],
            cmdline: format!("{ROLE}={}", role.word()),
            disks: Vec::new(),
            nets: Vec::new(),
            control: Some(Fd(theirs.as_raw_fd())),
            log: None,
            serial: None,
        })?;
        spec.set_len(0)?;
        spec.rewind()?;
        spec.write_all(&text)?;
        spec.rewind()?;
        let started = Instant::now();
        let process = Command::new(VMM)
            .stdin(Stdio::null())
            .spawn()
            .context("start sifr-vmm")?;
        Ok(Self {
            process,
            control,
            started,
        })
    }

    /// Waits for the guest's end, then hears what the monitor said in the meantime.
    fn finish(mut self) -> Result<Life> {
        let status = self.process.wait().context("wait for sifr-vmm")?;
        let took_us = micros(self.started.elapsed());
        ensure!(status.success(), "sifr-vmm ended with {status}");
        let mut setup = None;
        for _ in 0..MESSAGES_MAX {
            match message(&self.control)? {
                FromVmm::Running { setup_us } => setup = Some(setup_us),
                FromVmm::Stopped {
                    reason: StopReason::GuestReset,
                    exits,
                } => {
                    let setup_us = setup.context("sifr-vmm never said that its guest runs")?;
                    return Ok(Life {
                        took_us,
                        setup_us,
                        exits,
                    });
                }
                FromVmm::Stopped { reason, .. } => bail!("the guest stopped: {reason:?}"),
                FromVmm::Guest(_) | FromVmm::ChunkFailed { .. } | FromVmm::Panicked { .. } => {}
            }
        }
        bail!("sifr-vmm says too much")
    }
}

fn message(control: &OwnedFd) -> Result<FromVmm> {
    let mut packet = vec![0; CONTROL_PACKET_MAX];
    let count = recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT);
    let count = count.context("hear from sifr-vmm")?;
    serde_json::from_slice(&packet[..count]).context("understand sifr-vmm")
}

/// Lets a child have this descriptor under the same number.
fn inheritable(descriptor: &impl AsFd) -> Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).context("pass on a descriptor")?;
    Ok(())
}

/// The smallest and quickest machine that QEMU has, with the same kernel, guest and memory. It has no
/// keyboard controller to reset it: a triple fault ends it. `nomodule` and so on are what our monitor
/// gives its guests.
fn qemu(role: Role) -> Command {
    let machine = "microvm,accel=kvm,x-option-roms=off,acpi=off,pit=off,pic=off,rtc=off,\
                   isa-serial=off,auto-kernel-cmdline=off";
    let arguments = format!(
        "reboot=t panic=-1 nomodule quiet loglevel=0 no_timer_check tsc=reliable \
         random.trust_cpu=on 8250.nr_uarts=0 {ROLE}={}",
        role.word()
    );
    let mut command = Command::new(QEMU);
    command
        .args([
            "-M",
            machine,
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &GUEST_MIB.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-kernel", KERNEL, "-initrd", GUEST, "-append", &arguments])
        .stdin(Stdio::null());
    command
}

fn qemu_life() -> Result<u64> {
    let mut command = qemu(Role::Reset);
    let started = Instant::now();
    let output = command.output().context("start QEMU")?;
    let took = started.elapsed();
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "QEMU ended with {}: {says:?}",
        output.status
    );
    Ok(micros(took))
}

/// Memory of a monitor whose guest has come to rest, without the guest's; the monitor is ended.
fn memory_of(process: &mut Child) -> Result<u64> {
    sleep(SETTLE);
    if let Some(status) = process.try_wait()? {
        bail!("it ended with {status}");
    }
    let maps =
        fs::read_to_string(format!("/proc/{}/smaps", process.id())).context("read its map")?;
    process.kill()?;
    process.wait()?;
    let (beyond, guests) = split(&maps);
    ensure!(guests > 0, "the guest's memory is not in its map");
    Ok(beyond)
}

/// Memory in KiB (proportional set size, proc_pid_smaps(5)): of mappings smaller than the guest's
/// memory, and of the others.
fn split(smaps: &str) -> (u64, u64) {
    let (mut beyond, mut guests, mut is_guests) = (0, 0, false);
    for line in smaps.lines() {
        if let Some(size) = kib_of(line, "Size:") {
            is_guests = size >= GUEST_MIB * 1024;
        }
        let pss = kib_of(line, "Pss:").unwrap_or(0);
        *(if is_guests { &mut guests } else { &mut beyond }) += pss;
    }
    (beyond, guests)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_the_monitors() {
        let smaps = "1-2 r-xp\nSize:  800 kB\nPss:  700 kB\nPss_Dirty: 1 kB\n\
                     3-4 rw-p\nSize:  131072 kB\nPss:  9000 kB\n5-6 rw-p\nSize: 8 kB\nPss: 4 kB\n";
        assert_eq!(split(smaps), (704, 9000));
    }
}
