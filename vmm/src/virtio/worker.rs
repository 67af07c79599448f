//! A device in its slot: registers for vCPUs on one side, rings for its worker on the other.
//!
//! Owns: the lock between the two, doorbells, activation, reset, and what happens to a device whose
//! driver broke the rules. The worker does its I/O with the lock held: a register access in the middle
//! of it waits, which only a driver that resets a busy device ever does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::metrics;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{CONFIGURATION, Interrupt, USED_BUFFER};
use super::ring::{Ring, Violation};
use super::transport::mmio::{self, Effect, Registers, RegistersError, RegistersState};
use super::{Device, Foreign, Ready, Turn};
use crate::bus::{ABSENT, MmioDevice};
use crate::event::{Served, Source};
use crate::memory::GuestRam;
use crate::metrics::{Counters, kind};
use crate::report::Reports;
use crate::virtio;

pub(crate) struct Slot<D> {
    core: Mutex<Core<D>>,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    /// Signalled on activation, and by a turn that was too short: look at every queue.
    kick: EventFd,
    /// One per queue; KVM signals them.
    doorbells: Vec<EventFd>,
    /// One per queue.
    counters: Vec<Counters>,
    /// How often the driver broke the rules.
    stops: AtomicU64,
    name: String,
    reports: Reports,
}

struct Core<D> {
    registers: Registers,
    device: D,
    /// Counts changes of the configuration space (VIRTIO 1.2 section 2.5.1): what a driver reads in pieces
    /// is whole when this is the same before and after.
    generation: u32,
}

impl<D: Device> Slot<D> {
    pub(crate) fn new(device: D, ram: &Arc<GuestRam>) -> std::io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let doorbells = device
            .queues()
            .iter()
            .map(|_| event())
            .collect::<Result<_, _>>()?;
        let registers = Registers::new(D::ID, device.features(), device.queues());
        let counters = (0..).zip(device.queues()).map(|(queue, size)| {
            if device.answers(queue) {
                Counters::timed(*size)
            } else {
                Counters::default()
            }
        });
        let counters = counters.collect();
        Ok(Self {
            counters,
            stops: AtomicU64::new(0),
            name: device.name().to_owned(),
            core: Mutex::new(Core {
                registers,
                device,
                generation: 0,
            }),
            ram: Arc::clone(ram),
            interrupt: Interrupt::new(event()?),
            kick: event()?,
            doorbells,
            reports: Reports::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Core<D>> {
        self.core
            .lock()
            .expect("no panic while the device was locked")
    }

    fn rings<'s>(&'s self, registers: &'s mut Registers) -> Vec<Ring<'s>> {
        let queues = registers.queues().iter_mut().zip(&self.doorbells);
        queues
            .zip(&self.counters)
            .map(|((queue, bell), counters)| {
                Ring::new(queue, &self.ram, &self.interrupt, bell, counters)
            })
            .collect()
    }

    /// Changes the device's configuration space. A driver that is there is told.
    pub(crate) fn reconfigure<R>(&self, change: impl FnOnce(&mut D) -> R) -> R {
        let mut core = self.lock();
        let result = change(&mut core.device);
        core.generation = core.generation.wrapping_add(1);
        if core.registers.live() {
            self.interrupt.raise(CONFIGURATION);
        }
        result
    }

    /// Asks the device something, and has its worker look at it.
    pub(crate) fn ask<R>(&self, question: impl FnOnce(&mut D) -> R) -> R {
        let result = question(&mut self.lock().device);
        let _ = self.kick.write(1);
        result
    }

    fn broken(&self, core: &mut Core<D>, reason: &Violation) {
        core.registers.break_down();
        self.stops.fetch_add(1, Ordering::Relaxed);
        self.interrupt.raise(CONFIGURATION);
        let id = D::ID;
        self.reports.say(format_args!(
            "device {id} stopped until its reset: {reason}"
        ));
    }

    fn turn(&self, ready: Ready) {
        let mut core = self.lock();
        if !core.registers.live() {
            return;
        }
        let Core {
            registers, device, ..
        } = &mut *core;
        let mut rings = self.rings(registers);
        match device.serve(ready, &mut rings) {
            Ok(Turn::Done) => {}
            Ok(Turn::Again) => {
                let _ = self.kick.write(1);
            }
            Err(reason) => {
                drop(rings);
                self.broken(&mut core, &reason);
            }
        }
    }

    /// Brings the device to rest, see [`Device::quiesce`]. It goes on when its worker next looks at it.
    pub(crate) fn quiesce(&self) {
        let mut core = self.lock();
        if !core.registers.live() {
            return;
        }
        let Core {
            registers, device, ..
        } = &mut *core;
        let mut rings = self.rings(registers);
        if let Err(reason) = device.quiesce(&mut rings) {
            drop(rings);
            self.broken(&mut core, &reason);
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut core = self.lock();
        match core.registers.write(offset, value, &self.ram) {
            Effect::None => {}
            Effect::Activate(features) => {
                core.device.activate(features);
                // Counters of events overflow only after 2^64 signals.
                let _ = self.kick.write(1);
            }
            Effect::Reset => {
                core.device.reset();
                core.registers.reset();
                self.counters.iter().for_each(Counters::reset);
                self.interrupt.stand(0);
                self.interrupt.acknowledge(u32::MAX);
            }
            Effect::Break => {
                self.broken(
                    &mut core,
                    &Violation::Request("queue of wrong size, alignment or place"),
                );
            }
        }
    }
}

/// What a machine needs of any slot to connect it to KVM, and to keep it.
pub(crate) trait Wired: Send + Sync {
    fn doorbells(&self) -> &[EventFd];
    fn interrupt_line(&self) -> &EventFd;
    /// What it has counted; `None` where its kind has no place in the machine's metrics.
    fn metrics(&self) -> Option<metrics::Device>;
    /// Of a device at rest.
    fn save(&self) -> SlotState;
    /// Into a device at power-on, before its worker runs.
    fn restore(&self, state: &SlotState) -> Result<(), SlotError>;
}

/// What a snapshot keeps of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlotState {
    /// Device id.
    id: u32,
    /// What a device in the place of this one must have, too.
    shape: Vec<u8>,
    /// The configuration space: a driver is told where it is other now.
    config: Vec<u8>,
    registers: RegistersState,
    /// Pending causes.
    interrupt: u32,
    /// What the device keeps.
    device: Value,
}

/// Why a device does not go on as in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("it is a {ours}, in the snapshot it was a {theirs}")]
    Other {
        ours: &'static str,
        theirs: &'static str,
    },
    #[error("the {0} has another size, kind or place than in the snapshot")]
    Shape(&'static str),
    #[error("the {0} does not go on as in the snapshot")]
    Registers(&'static str, #[source] RegistersError),
    #[error("the snapshot holds a state of the {0} that it never had")]
    Foreign(&'static str),
}

impl<D: Device> Wired for Slot<D> {
    fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    fn interrupt_line(&self) -> &EventFd {
        self.interrupt.line()
    }

    fn metrics(&self) -> Option<metrics::Device> {
        Some(metrics::Device {
            kind: kind(D::ID)?,
            name: self.name.clone(),
            stops: self.stops.load(Ordering::Relaxed),
            queues: self.counters.iter().map(Counters::read).collect(),
        })
    }

    fn save(&self) -> SlotState {
        let core = self.lock();
        SlotState {
            id: D::ID,
            shape: core.device.shape(),
            config: core.device.config().to_vec(),
            registers: core.registers.save(),
            interrupt: self.interrupt.status(),
            device: core.device.save(),
        }
    }

    fn restore(&self, state: &SlotState) -> Result<(), SlotError> {
        let mut core = self.lock();
        let Core {
            registers,
            device,
            generation,
        } = &mut *core;
        let name = virtio::name(D::ID);
        if state.id != D::ID {
            let (ours, theirs) = (name, virtio::name(state.id));
            return Err(SlotError::Other { ours, theirs });
        }
        if state.shape != device.shape() {
            return Err(SlotError::Shape(name));
        }
        let agreed = registers.restore(&state.registers, &self.ram);
        let mut causes = state.interrupt & (USED_BUFFER | CONFIGURATION);
        if let Some(features) = agreed.map_err(|e| SlotError::Registers(name, e))? {
            device.activate(features);
            device
                .restore(&state.device)
                .map_err(|Foreign| SlotError::Foreign(name))?;
            // A doorbell may have been rung that nobody answered.
            let _ = self.kick.write(1);
            if state.config != device.config() {
                *generation = generation.wrapping_add(1);
                causes |= CONFIGURATION;
            }
        }
        if causes != 0 {
            // It may have been on its way. One too many finds nothing to do.
            self.interrupt.raise(causes);
        }
        Ok(())
    }
}

impl<D: Device> MmioDevice for Slot<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(mmio::CONFIG) {
            data.fill(0);
            let core = self.lock();
            let rest = usize::try_from(at)
                .ok()
                .and_then(|at| core.device.config().get(at..));
            for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
                *to = *from;
            }
            return;
        }
        let value = match offset {
            mmio::INTERRUPT_STATUS => self.interrupt.status(),
            mmio::CONFIG_GENERATION => self.lock().generation,
            _ => self.lock().registers.read(offset),
        };
        // Registers are read as words (section 4.2.2.2). Anything else reads as nothing would: what stood in
        // the buffer is of an earlier exit.
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(ABSENT),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(mmio::CONFIG) {
            let at = usize::try_from(at).expect("a page at most");
            self.lock().device.write_config(at, data);
            return;
        }
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            mmio::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            // KVM takes these before they get here; it stays correct if it does not.
            mmio::QUEUE_NOTIFY => {
                if let Some(bell) = usize::try_from(value)
                    .ok()
                    .and_then(|i| self.doorbells.get(i))
                {
                    let _ = bell.write(1);
                }
            }
            _ => self.write_register(offset, value),
        }
    }
}

impl<D: Device> Served for Slot<D> {
    fn sources(&self, out: &mut Vec<Source>) {
        out.push(Source::readable(&self.kick));
        let core = self.lock();
        for (queue, bell) in self.doorbells.iter().enumerate() {
            out.push(match core.device.kernel_serves(queue) {
                true => Source::never(),
                false => Source::readable(bell),
            });
        }
        if core.registers.live() {
            core.device.sources(out);
        }
    }

    fn serve(&self, fired: u64) {
        let count = self.doorbells.len();
        let queues = (fired >> 1) & ((1 << count) - 1);
        let sources = fired >> (1 + count);
        let bits = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let mut ready = Ready {
            queues: bits(queues),
            sources: bits(sources),
        };
        if fired & 1 != 0 {
            let _ = self.kick.read();
            ready = Ready::ALL;
        }
        for (index, bell) in self.doorbells.iter().enumerate() {
            if queues >> index & 1 != 0 {
                let _ = bell.read();
            }
        }
        self.turn(ready);
    }

    fn quiesce(&self) {
        Self::quiesce(self);
        // When it goes on, it looks at everything.
        let _ = self.kick.write(1);
    }

    fn stop(&self) {
        self.turn(Ready::ALL);
        self.quiesce();
        self.lock().device.stop();
    }
}

#[cfg(test)]
mod tests {
    use types::vm::Balloon as Spec;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::virtio::balloon::Balloon;
    use crate::virtio::pmem::Pmem;
    use crate::virtio::rng::Rng;

    fn slot<D: Device>(device: D) -> Slot<D> {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("maps");
        Slot::new(device, &Arc::new(ram)).expect("event counters")
    }

    /// As a driver does it, to the end.
    fn bring_up<D: Device>(slot: &Slot<D>, features: u32) {
        let write = |offset: u64, value: u32| slot.write(offset, &value.to_le_bytes());
        for status in [1, 3] {
            write(mmio::STATUS, status);
        }
        for (half, bits) in [(0, features), (1, 1)] {
            write(mmio::DRIVER_FEATURES_SEL, half);
            write(mmio::DRIVER_FEATURES, bits);
        }
        write(mmio::STATUS, 11);
        for (queue, at) in (0u32..)
            .zip((0x1_0000u32..).step_by(0x4000))
            .take(slot.doorbells.len())
        {
            write(mmio::QUEUE_SEL, queue);
            write(mmio::QUEUE_NUM, 16);
            for (register, place) in [
                (mmio::QUEUE_DESC, at),
                (mmio::QUEUE_DRIVER, at + 0x1000),
                (mmio::QUEUE_DEVICE, at + 0x2000),
            ] {
                write(register, place);
            }
            write(mmio::QUEUE_READY, 1);
        }
        write(mmio::STATUS, 15);
        assert!(slot.lock().registers.live());
    }

    fn read<D: Device>(slot: &Slot<D>, offset: u64) -> u32 {
        let mut word = [0; 4];
        slot.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn balloon(target_mib: Option<u64>) -> Balloon {
        let spec = Spec {
            target_mib,
            ..Spec::reporting()
        };
        Balloon::new(&spec, 128).expect("a good target")
    }

    /// Through the text that a state file holds.
    fn file(state: &SlotState) -> SlotState {
        let text = serde_json::to_vec(state).expect("plain data");
        serde_json::from_slice(&text).expect("reads back")
    }

    #[test]
    fn a_device_in_another_machine_is_as_it_was_and_its_driver_hears_of_what_is_not() {
        let before = slot(balloon(None));
        bring_up(&before, 1 << 1);
        before
            .reconfigure(|balloon| balloon.keep(100))
            .expect("a good target");
        before.write(mmio::INTERRUPT_ACK, &u32::MAX.to_le_bytes());
        let state = file(&before.save());
        let same = slot(balloon(None));
        same.restore(&state).expect("its own state");
        assert_eq!(same.save(), state);
        assert!(same.interrupt.line().read().is_err(), "nothing to tell");
        assert!(same.kick.read().is_ok(), "it looks at all queues");
        let other = slot(balloon(Some(64)));
        let generation = read(&other, mmio::CONFIG_GENERATION);
        other.restore(&state).expect("another target");
        assert_eq!(read(&other, mmio::INTERRUPT_STATUS), CONFIGURATION);
        assert!(other.interrupt.line().read().is_ok());
        assert_ne!(read(&other, mmio::CONFIG_GENERATION), generation);
        assert_eq!(read(&other, mmio::CONFIG), 64 * 256);
    }

    #[test]
    fn what_is_on_its_way_to_a_driver_comes_in_the_other_machine_and_nothing_else_does() {
        let before = slot(Pmem::new(1 << 32, 1 << 21));
        bring_up(&before, 0);
        before.interrupt.raise(USED_BUFFER);
        let mut state = file(&before.save());
        // Bits that no cause has.
        state.interrupt |= 0xfff0;
        let after = slot(Pmem::new(1 << 32, 1 << 21));
        after.restore(&state).expect("its own state");
        assert_eq!(read(&after, mmio::INTERRUPT_STATUS), USED_BUFFER);
        assert!(after.interrupt.line().read().is_ok());
    }

    #[test]
    fn another_device_or_one_in_another_place_is_refused() {
        let before = slot(Pmem::new(1 << 32, 1 << 21));
        let state = before.save();
        let moved = slot(Pmem::new(1 << 33, 1 << 21)).restore(&state);
        assert_eq!(moved, Err(SlotError::Shape("memory disk")));
        let other = slot(Rng).restore(&state);
        assert!(matches!(other, Err(SlotError::Other { .. })), "{other:?}");
        let mut foreign = slot(Rng);
        bring_up(&foreign, 0);
        let mut state = foreign.save();
        state.device = Value::from("text");
        foreign = slot(Rng);
        assert_eq!(
            foreign.restore(&state),
            Err(SlotError::Foreign("entropy source"))
        );
    }

    #[test]
    fn a_register_is_read_as_a_word_and_by_any_other_size_as_all_ones() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("maps");
        let slot = Slot::new(Rng, &Arc::new(ram)).expect("event counters");
        let read = |size: usize| {
            let mut data = vec![0x5a; size];
            slot.read(mmio::MAGIC, &mut data);
            data
        };
        assert_eq!(read(4), b"virt");
        for size in [1, 2, 8] {
            assert_eq!(read(size), vec![ABSENT; size]);
        }
    }

    /// What KVM hands us for a read is a buffer that holds what an earlier exit left there.
    #[test]
    fn no_read_of_any_register_leaves_what_stood_in_its_buffer() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("maps");
        let slot = Slot::new(Rng, &Arc::new(ram)).expect("event counters");
        for offset in 0..0x300 {
            for size in [1, 2, 4, 8] {
                let read = |poison: u8| {
                    let mut data = vec![poison; size];
                    slot.read(offset, &mut data);
                    data
                };
                assert_eq!(read(0x5a), read(0xa5), "{size} bytes at {offset:#x}");
            }
        }
    }
}
