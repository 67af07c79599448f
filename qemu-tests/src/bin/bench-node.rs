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
use nix::sys::reboot::RebootMode;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use qemu_tests::bench::node;
use qemu_tests::bench::node::monitor::{self, Serial, Wanted};
use qemu_tests::bench::report::{
    CYCLES, FAILED, GUEST, GUEST_MIB, IDLE, Idle, KERNEL, Monitor, Overhead, PROC, REPORT, ROLE,
    Report, Role, VMM,
};
use qemu_tests::inside::{end, kib_of, mount_at, overhead, wait};
use types::vm::{CONTROL_PACKET_MAX, Exits, Fd, FromVmm, SPEC_FD, StopReason, VmSpec};
use types::{Name, PublicKey, VmId};

/// Odd, so that one run is in the middle.
const RUNS: usize = 5;
/// Far longer than a guest takes to its init; all of it is counted time, so it costs the same everywhere.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two samples of free memory.
const SAMPLE: Duration = Duration::from_secs(1);
/// Samples that are all the same when memory has settled: the kernel gives back what the boot has left in
/// its lists of free pages once a second.
const SAMPLES_ALIKE: usize = 15;
/// A node does something now and then: samples that differ by less are the same.
const ALIKE_KIB: u64 = 512;
/// Of these one is settled, or none ever is.
const SAMPLES_MAX: usize = 600;
/// The cgroup of a monitor whose memory is read.
const GROUP: &str = "/sys/fs/cgroup/monitor";
/// A VMM says little in a guest's life; more is an error of its own.
const MESSAGES_MAX: usize = 1000;

fn main() {
    let entered = sys::clock::cycles();
    let role = std::env::var(ROLE).ok().and_then(|word| Role::parse(&word));
    let result = match role {
        Some(Role::Reset) => end(RebootMode::RB_AUTOBOOT),
        Some(Role::Wait) => wait(),
        Some(Role::Sampler) => sample(),
        Some(Role::Idle) => idle(entered),
        Some(Role::Machines) => machines(),
        Some(
            role @ (Role::Disks
            | Role::Nets
            | Role::Scale
            | Role::Snapshots
            | Role::Networks
            | Role::Ask
            | Role::Serve
            | Role::Sleep
            | Role::Count
            | Role::UseDisk
            | Role::UseNet
            | Role::UseVsock),
        ) => node::work(role),
        None => Err(anyhow::anyhow!(
            "{ROLE}= is not set on the kernel command line"
        )),
    };
    if let Err(error) = result {
        println!("\n{FAILED}{error:#}");
    }
    node::end();
    // Init must not return; where the machine does not go off, the kernel's panic ends it.
    let _ = end(RebootMode::RB_POWER_OFF);
}

/// Becomes the node's own init. The sampler has its view of memory before that init mounts anything.
fn idle(entered: u64) -> Result<()> {
    println!("{CYCLES}{entered:016x}");
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

/// Says how much memory is free, once that has stayed the same for a while.
fn sample() -> Result<()> {
    let memory = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut first = Idle::default();
    let mut alike = 0;
    for _ in 0..SAMPLES_MAX {
        sleep(SAMPLE);
        let mut text = [0; 4096];
        let count = memory.read_at(&mut text, 0).context("read meminfo")?;
        let now = reading(&String::from_utf8_lossy(&text[..count]))?;
        alike += 1;
        if now.available_kib.abs_diff(first.available_kib) > ALIKE_KIB {
            (first, alike) = (now, 1);
        }
        if alike == SAMPLES_ALIKE {
            println!("\n{IDLE}{}", serde_json::to_string(&now)?);
            return wait();
        }
    }
    bail!("free memory does not settle")
}

fn reading(meminfo: &str) -> Result<Idle> {
    let kib = |key: &'static str| kib_of(meminfo, key).context(key);
    Ok(Idle {
        available_kib: kib("MemAvailable:")?,
        total_kib: kib("MemTotal:")?,
    })
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
    mount_at("cgroup2", "/sys/fs/cgroup")?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").context("count memory")?;
    let mut report = Report::default();
    for _ in 0..RUNS {
        let life = Ours::start(&mut spec, Role::Reset)?.finish()?;
        report.ours.life_us.push(life.took_us);
        report.setup_us.push(life.setup_us);
        report.exits = life.exits;
        report.qemu.life_us.push(qemu_life()?);
    }
    report.ours.memory = memory_of("sifr-vmm", || {
        Ours::start(&mut spec, Role::Wait).map(|ours| (ours.process, Some(ours.control)))
    })?;
    report.qemu.memory = memory_of("QEMU", || {
        let process = qemu(Role::Wait).spawn().context("start QEMU")?;
        Ok((process, None))
    })?;
    check(&report.qemu)?;
    println!("\n{REPORT}{}", serde_json::to_string(&report)?);
    Ok(())
}

fn check(monitor: &Monitor) -> Result<()> {
    ensure!(
        monitor.median_us() > 0 && monitor.memory.pss_kib > 0,
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
        let id = VmId::new(&PublicKey([7; 32]), &name, &name);
        let (kvm_fd, kernel_fd) = (Fd(kvm.as_raw_fd()), Fd(kernel.as_raw_fd()));
        let text = serde_json::to_vec(&VmSpec {
            initramfs: vec![Fd(guest.as_raw_fd())],
            cmdline: format!("{ROLE}={}", role.word()),
            control: Some(Fd(theirs.as_raw_fd())),
            ..VmSpec::new(id, 1, GUEST_MIB, kvm_fd, kernel_fd)
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
                FromVmm::Guest(_)
                | FromVmm::GuestInit { .. }
                | FromVmm::ChunkFailed { .. }
                | FromVmm::Panicked { .. }
                | FromVmm::Done { .. }
                | FromVmm::Refused { .. }
                | FromVmm::Metrics { .. } => {}
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

fn qemu(role: Role) -> Command {
    let mut wanted = Wanted::new(role);
    wanted.serial = Serial::None;
    let mut command = monitor::qemu(&wanted);
    command.stdin(Stdio::null());
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

/// Memory of a monitor whose guest has come to rest, without the guest's; the monitor is ended. What
/// `start` gives besides stays open until then.
fn memory_of(
    who: &str,
    start: impl FnOnce() -> Result<(Child, Option<OwnedFd>)>,
) -> Result<Overhead> {
    fs::create_dir(GROUP).context("make a cgroup")?;
    // Children begin where their parent is, and are counted there from their first page.
    fs::write(format!("{GROUP}/cgroup.procs"), "0").context("enter a cgroup")?;
    let started = start();
    fs::write("/sys/fs/cgroup/cgroup.procs", "0").context("leave a cgroup")?;
    let (mut process, _open) = started?;
    sleep(SETTLE);
    if let Some(status) = process.try_wait()? {
        bail!("{who} ended with {status}");
    }
    let maps = format!("/proc/{}/smaps", process.id());
    let maps = fs::read_to_string(maps).with_context(|| format!("read the map of {who}"))?;
    let stat = format!("{GROUP}/memory.stat");
    let stat = fs::read_to_string(stat).with_context(|| format!("read what {who} costs"))?;
    process.kill()?;
    process.wait()?;
    fs::remove_dir(GROUP).context("remove a cgroup")?;
    let overhead = overhead(&maps, &stat, GUEST_MIB);
    overhead.with_context(|| format!("memory of {who}: its guest's is not one mapping"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_in_kib() {
        let meminfo = "MemTotal:       1004980 kB\nMemAvailable:    868440 kB\n";
        let reading = reading(meminfo).expect("both are there");
        assert_eq!(
            (reading.total_kib, reading.available_kib),
            (1_004_980, 868_440)
        );
    }
}
