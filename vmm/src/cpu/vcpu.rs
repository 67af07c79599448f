//! The run loop of one vCPU.
//!
//! Owns: what each exit means, and the count of exits. Refuses: to go on after a fault.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd};
use types::vm::{Exits, StopReason};

use crate::bus::{Mmio, Pio, PioWrite};
use crate::gate::Gate;
use crate::hv::coalesced::Ring;

/// Exits of all vCPUs by kind.
#[derive(Debug, Default)]
pub(crate) struct ExitCounts {
    pio_in: AtomicU64,
    pio_out: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    other: AtomicU64,
}

impl ExitCounts {
    pub(crate) fn read(&self) -> Exits {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Exits {
            pio_in: load(&self.pio_in),
            pio_out: load(&self.pio_out),
            mmio_read: load(&self.mmio_read),
            mmio_write: load(&self.mmio_write),
            other: load(&self.other),
        }
    }
}

/// What all vCPUs of a machine share.
pub(crate) struct Shared {
    pub(crate) pio: Pio,
    mmio: Mmio,
    pub(crate) exits: ExitCounts,
    /// Writes that no vCPU stopped for.
    coalesced: Mutex<Ring>,
}

impl Shared {
    pub(crate) fn new(pio: Pio, mmio: Mmio, coalesced: Ring) -> Self {
        Self {
            pio,
            mmio,
            exits: ExitCounts::default(),
            coalesced: Mutex::new(coalesced),
        }
    }

    /// Does what the guest wrote before it stopped. All vCPUs write into one ring: the lock is held
    /// until the last write is done, so that none overtakes another.
    pub(crate) fn catch_up(&self) {
        let mut ring = self.coalesced.lock().expect("no panic while locked");
        while let Some(write) = ring.take() {
            self.mmio.write(write.address, write.data());
        }
    }
}

/// Runs until the guest resets the machine or KVM cannot go on. While the machine rests nobody holds `vcpu`.
pub(crate) fn run(
    index: usize,
    vcpu: &Mutex<VcpuFd>,
    shared: &Arc<Shared>,
    gate: &Gate,
) -> StopReason {
    loop {
        let mut held = vcpu.lock().expect("no panic while the vCPU was held");
        if let Some(reason) = until_interrupted(index, &mut held, shared) {
            return reason;
        }
        drop(held);
        gate.vcpu();
    }
}

/// `None`: KVM_RUN was interrupted, and the last exit is done.
fn until_interrupted(index: usize, vcpu: &mut VcpuFd, shared: &Arc<Shared>) -> Option<StopReason> {
    let count = |which: &AtomicU64| which.fetch_add(1, Ordering::Relaxed);
    let exits = &shared.exits;
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
            Err(error) => return Some(fault(index, format!("KVM_RUN failed: {error}"))),
        };
        shared.catch_up();
        match exit {
            VcpuExit::IoIn(port, data) => {
                count(&exits.pio_in);
                shared.pio.read(port, data);
            }
            VcpuExit::IoOut(port, data) => {
                count(&exits.pio_out);
                match shared.pio.write(port, data) {
                    PioWrite::Done => {}
                    PioWrite::Reset => return Some(StopReason::GuestReset),
                    PioWrite::Panicked => {
                        let message = "the guest's kernel says that it has panicked".to_owned();
                        return Some(StopReason::Fault { message });
                    }
                }
            }
            VcpuExit::MmioRead(address, data) => {
                count(&exits.mmio_read);
                shared.mmio.read(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                count(&exits.mmio_write);
                shared.mmio.write(address, data);
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => {
                count(&exits.other);
            }
            VcpuExit::Shutdown => return Some(fault(index, "triple fault".to_owned())),
            VcpuExit::FailEntry(reason, cpu) => {
                let message =
                    format!("the processor {cpu} refused the guest's state: reason {reason:#x}");
                return Some(fault(index, message));
            }
            VcpuExit::InternalError => return Some(fault(index, internal_error(vcpu))),
            other => {
                // KVM's list grows with the kernel; what we never asked for is a fault.
                let message = format!("unexpected exit {other:?}");
                return Some(fault(index, message));
            }
        }
    }
}

fn internal_error(vcpu: &VcpuFd) -> String {
    let place = vcpu.get_regs().map_or_else(
        |e| format!("unknown place ({e})"),
        |r| format!("rip {:#x}", r.rip),
    );
    format!("KVM internal error at {place}")
}

fn fault(index: usize, message: String) -> StopReason {
    StopReason::Fault {
        message: format!("vCPU {index}: {message}"),
    }
}
