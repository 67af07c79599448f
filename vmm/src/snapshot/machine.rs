//! The parts of a running machine that a snapshot takes, and of a new one that it is given to.
//!
//! Owns: the order of both. Refuses: a running machine: all that is here rests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VcpuFd;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use types::guest::{Identity, Link};
use types::vm::SnapshotKind;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::memory::{self, Wanted};
use super::vcpu::VcpuState;
use super::{Chain, Shape, SnapshotError, State, format, random_hex};
use crate::bus::Pio;
use crate::cpu::vcpu::Shared;
use crate::gate::Gate;
use crate::hv::kvm::{Vm, Writes};
use crate::memory::{GuestRam, PAGE, layout};
use crate::virtio::worker::Wired;

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What the next differential snapshot differs from.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    /// The last snapshot's id.
    base: Option<String>,
    /// Pages written since then, by region, as far as they were asked for.
    bits: Vec<Vec<u64>>,
}

/// A machine as snapshots see it.
pub(crate) struct Subject {
    pub(crate) vm: Arc<Vm>,
    pub(crate) vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ram: Arc<GuestRam>,
    /// Memory that nobody has touched is known to be zero: it was not restored from a file.
    pub(crate) anonymous: bool,
    /// By KVM, and then by this process, too.
    pub(crate) writes: Writes,
    pub(crate) slots: Vec<Arc<dyn Wired>>,
    /// Devices that the calling thread serves itself.
    pub(crate) own: Vec<Arc<dyn crate::event::Served>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) shape: Shape,
    pub(crate) tracking: Mutex<Tracking>,
}

fn held(vcpu: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    vcpu.lock().expect("no panic while the vCPU was held")
}

fn ioctl(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> SnapshotError {
    move |error| SnapshotError::Ioctl(what, error)
}

impl Subject {
    fn tracking(&self) -> MutexGuard<'_, Tracking> {
        self.tracking.lock().expect("no panic while locked")
    }

    /// Stops everything with nothing in flight. Of a paused machine: done already.
    pub(crate) fn pause(&self) -> Result<(), SnapshotError> {
        let was_paused = self.gate.is_paused();
        self.gate.pause(|| self.shared.catch_up())?;
        if !was_paused {
            self.own.iter().for_each(|device| device.quiesce());
            for vcpu in &self.vcpus {
                // The guest's watchdogs are told of the lost time. A guest without this clock refuses.
                let _ = held(vcpu).kvmclock_ctrl();
            }
        }
        Ok(())
    }

    pub(crate) fn resume(&self) {
        if self.gate.is_paused() {
            self.own.iter().for_each(|device| device.resume());
        }
        self.gate.open();
    }

    /// Writes a snapshot into two files. Returns the bytes written. The machine is paused for it, and goes
    /// on unless it was paused before.
    pub(crate) fn snapshot(
        &self,
        kind: SnapshotKind,
        fds: Vec<OwnedFd>,
    ) -> Result<u64, SnapshotError> {
        let files: Vec<File> = fds.into_iter().map(File::from).collect();
        let [state, memory] = &files[..] else {
            return Err(SnapshotError::File(files.len()));
        };
        for (index, file) in files.iter().enumerate() {
            if !writable(file) {
                return Err(SnapshotError::File(index + 1));
            }
        }
        let was_paused = self.gate.is_paused();
        self.pause()?;
        let written = self.write(kind, state, memory);
        if !was_paused {
            self.resume();
        }
        written
    }

    fn write(
        &self,
        kind: SnapshotKind,
        state_file: &File,
        memory_file: &File,
    ) -> Result<u64, SnapshotError> {
        let mut tracking = self.tracking();
        let anonymous = self.anonymous && crate::memory::is_never_swapped();
        let (memory, memory_bytes) = match kind {
            SnapshotKind::Full => {
                memory::write(memory_file, &self.ram, &Wanted::All { anonymous })?
            }
            SnapshotKind::Differential => {
                if tracking.base.is_none() {
                    return Err(SnapshotError::NoBase);
                }
                self.gather(&mut tracking)?;
                memory::write(memory_file, &self.ram, &Wanted::Marked(&tracking.bits))?
            }
        };
        let parent = match kind {
            SnapshotKind::Full => None,
            SnapshotKind::Differential => tracking.base.clone(),
        };
        let id = random_hex(ID_BYTES)?;
        let state = self.state(id.clone(), parent, memory)?;
        let state_bytes = format::write(state_file, &state)?;
        if self.writes == Writes::Noted {
            self.begin(&mut tracking, id)?;
        }
        Ok(memory_bytes + state_bytes)
    }

    /// Adds what was written since the last time.
    fn gather(&self, tracking: &mut Tracking) -> Result<(), SnapshotError> {
        let logs = self.vm.take_log()?;
        for ((bits, log), region) in tracking.bits.iter_mut().zip(logs).zip(self.ram.iter()) {
            for (to, from) in bits.iter_mut().zip(log) {
                *to |= from;
            }
            region.bitmap().take(bits);
        }
        Ok(())
    }

    /// From here on pages are noted that the next snapshot differs in.
    fn begin(&self, tracking: &mut Tracking, id: String) -> Result<(), SnapshotError> {
        // Should this fail halfway, there is nothing to differ from.
        tracking.base = None;
        let words = |bytes: u64| bytes.div_ceil(PAGE as u64 * 64);
        let room = |r: u64| vec![0; usize::try_from(words(r)).expect("64-bit only")];
        tracking.bits = self.ram.iter().map(|r| room(r.len())).collect();
        // What was written until now is in the snapshot.
        self.gather(tracking)?;
        tracking.bits.iter_mut().for_each(|bits| bits.fill(0));
        tracking.base = Some(id);
        Ok(())
    }

    fn state(
        &self,
        id: String,
        parent: Option<String>,
        memory: memory::MemoryState,
    ) -> Result<State, SnapshotError> {
        let msrs = self.vm.msrs()?;
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let state = VcpuState::save(&held(vcpu), &msrs);
            vcpus.push(state.map_err(|e| SnapshotError::Vcpu(index, e))?);
        }
        let mut chips = Vec::with_capacity(CHIPS.len());
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            let got = self.vm.fd().get_irqchip(&mut chip);
            got.map_err(ioctl("get an interrupt controller"))?;
            chips.push(chip);
        }
        let clock = self.vm.fd().get_clock();
        Ok(State {
            written_by: sifr::IDENTITY.to_string(),
            id,
            parent,
            shape: self.shape.clone(),
            chips,
            clock: clock.map_err(ioctl("get the guest's clock"))?,
            vcpus,
            devices: self.slots.iter().map(|slot| slot.save()).collect(),
            ports: self.shared.pio.save(),
            memory,
        })
    }
}

/// An id of a snapshot, and a generation of a machine.
const ID_BYTES: usize = 16;
/// What the guest's random number generator takes in.
const ENTROPY_BYTES: usize = 32;

pub(crate) fn writable(file: &File) -> bool {
    let mode = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let is_open = mode.is_ok_and(|mode| {
        mode & OFlag::O_ACCMODE == OFlag::O_RDWR && !mode.contains(OFlag::O_APPEND)
    });
    let is_file =
        nix::sys::stat::fstat(file).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG);
    is_open && is_file
}

impl Chain {
    /// Whether a machine of this shape and these devices goes on from the snapshot. The kernel's place is
    /// the snapshot's.
    pub(crate) fn check(&self, ours: &Shape) -> Result<(), SnapshotError> {
        let theirs = &self.state().shape;
        let differ = |what, theirs: &dyn std::fmt::Debug, ours: &dyn std::fmt::Debug| {
            Err(SnapshotError::Shape {
                what,
                theirs: format!("{theirs:?}"),
                ours: format!("{ours:?}"),
            })
        };
        let state = self.state();
        if theirs.memory_mib != ours.memory_mib {
            return differ("MiB of memory:", &theirs.memory_mib, &ours.memory_mib);
        }
        if theirs.apic_ids != ours.apic_ids || state.vcpus.len() != ours.apic_ids.len() {
            return differ("vCPUs with the APIC ids", &theirs.apic_ids, &ours.apic_ids);
        }
        if theirs.ports != ours.ports {
            return differ("the parts at ports", &theirs.ports, &ours.ports);
        }
        match self
            .0
            .iter()
            .find(|f| f.state.memory.bytes != ours.memory_mib << 20)
        {
            Some(files) => differ(
                "bytes of memory:",
                &files.state.memory.bytes,
                &(ours.memory_mib << 20),
            ),
            None => Ok(()),
        }
    }

    /// Memory as it was.
    pub(crate) fn memory(self) -> Result<(State, Arc<GuestRam>), SnapshotError> {
        let mut files = self.0.into_iter();
        let first = files.next().expect("a chain has one");
        let mib = first.state.shape.memory_mib;
        let mapped = crate::memory::map_private(mib, &Arc::new(first.memory));
        let ram = mapped.map_err(SnapshotError::Map)?;
        let mut state = first.state;
        for files in files {
            files.state.memory.lay_over(&files.memory, &ram)?;
            state = files.state;
        }
        Ok((state, ram))
    }
}

impl State {
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Interrupt controllers and clock, before any vCPU has its state.
    pub(crate) fn restore_vm(&self, vm: &Vm) -> Result<(), SnapshotError> {
        for chip in &self.chips {
            let set = vm.fd().set_irqchip(chip);
            set.map_err(ioctl("set an interrupt controller"))?;
        }
        // Only the guest's time: how much has gone by outside is not for it to see.
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.fd()
            .set_clock(&clock)
            .map_err(ioctl("set the guest's clock"))
    }

    pub(crate) fn restore_vcpus(&self, vm: &Vm, vcpus: &[VcpuFd]) -> Result<(), SnapshotError> {
        let supported = vm.supported_cpuid()?;
        for (index, (state, vcpu)) in self.vcpus.iter().zip(vcpus).enumerate() {
            let done = state
                .check(supported.as_slice())
                .and_then(|()| state.restore(vcpu));
            done.map_err(|e| SnapshotError::Vcpu(index, e))?;
        }
        Ok(())
    }

    pub(crate) fn restore_devices(
        &self,
        slots: &[Arc<dyn Wired>],
        pio: &Pio,
    ) -> Result<(), SnapshotError> {
        if self.devices.len() != slots.len() {
            return Err(SnapshotError::Shape {
                what: "virtio devices:",
                theirs: self.devices.len().to_string(),
                ours: slots.len().to_string(),
            });
        }
        for (index, (state, slot)) in self.devices.iter().zip(slots).enumerate() {
            slot.restore(state)
                .map_err(|e| SnapshotError::Device(index, e))?;
        }
        pio.restore(&self.ports);
        Ok(())
    }
}

/// A new identity, in guest memory already.
pub(crate) fn identity(ram: &GuestRam, link: Option<Link>) -> Result<Identity, SnapshotError> {
    let mut generation = [0; ID_BYTES];
    getrandom::fill(&mut generation).map_err(SnapshotError::Random)?;
    ram.write_slice(&generation, GuestAddress(layout::GENERATION))
        .expect("conventional memory");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let time_ns = now.map_or(0, |now| now.as_nanos());
    Ok(Identity {
        generation: super::hex(&generation),
        entropy: random_hex(ENTROPY_BYTES)?,
        time_ns: u64::try_from(time_ns).unwrap_or(u64::MAX),
        link,
        hostname: None,
    })
}
