//! The registers of a virtio-mmio device (VIRTIO 1.2 section 4.2.2), as state without side effects.
//!
//! Owns: feature negotiation and queue set-up. Refuses: features that were not offered; queue registers
//! at any time but between FEATURES_OK and DRIVER_OK, or of a queue that is ready already; queues whose
//! size, alignment or place is wrong. (CVE-2026-5747 was a queue resized after activation.)

use std::ops::Range;

use serde::{Deserialize, Serialize};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::status::{Phase, Request, Status};
use crate::memory::GuestRam;

pub(crate) const MAGIC: u64 = 0x00;
pub(crate) const VERSION: u64 = 0x04;
pub(crate) const DEVICE_ID: u64 = 0x08;
pub(crate) const VENDOR_ID: u64 = 0x0c;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC: u64 = 0x80;
pub(crate) const QUEUE_DRIVER: u64 = 0x90;
pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
const SHM_LEN: u64 = 0xb0;
const SHM_BASE: u64 = 0xb8;
pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
pub(crate) const CONFIG: u64 = 0x100;

/// Registers whose write is not felt before another register is read or STATUS written: the guest need
/// not stop for it. Neither doorbells nor interrupts nor STATUS are among them.
pub(crate) const PATIENT: [Range<u64>; 2] =
    [DEVICE_FEATURES_SEL..QUEUE_NOTIFY, QUEUE_DESC..SHM_LEN];

/// "virt".
const MAGIC_VALUE: u32 = 0x7472_6976;
const VERSION_VALUE: u32 = 2;
/// "SIFR".
const VENDOR_VALUE: u32 = 0x5246_4953;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What a register write means for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The driver is ready, with these features.
    Activate(u64),
    Reset,
    /// The driver broke the rules so that the device cannot go on.
    Break,
}

/// A queue as the driver describes it, before it is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setup {
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// Where a ready queue stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    next_available: u16,
    next_used: u16,
}

/// What a snapshot keeps of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegistersState {
    status: u32,
    accepted: u64,
    offered_sel: u32,
    accepted_sel: u32,
    queue_sel: u32,
    setups: Vec<Setup>,
    /// Of each queue, if it is ready.
    queues: Vec<Option<Place>>,
}

/// Why registers of a snapshot are not those of this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistersError {
    #[error("it had {0} queues")]
    Queues(usize),
    #[error("it offered features that are missing now: {0:#x}")]
    Features(u64),
    #[error("no device has the status {0:#x}")]
    Status(u32),
    #[error("its queue {0} is not in memory")]
    Queue(usize),
}

#[derive(Debug)]
pub(crate) struct Registers {
    status: Status,
    device_id: u32,
    offered: u64,
    accepted: u64,
    offered_sel: u32,
    accepted_sel: u32,
    queue_sel: u32,
    setups: Vec<Setup>,
    queues: Vec<Queue>,
}

impl Registers {
    pub(crate) fn new(device_id: u32, device_features: u64, sizes: &[u16]) -> Self {
        let queue =
            |size: &u16| Queue::new(*size).expect("queue sizes are powers of two by our choice");
        Self {
            status: Status::default(),
            device_id,
            offered: device_features | VERSION_1 | EVENT_IDX | INDIRECT,
            accepted: 0,
            offered_sel: 0,
            accepted_sel: 0,
            queue_sel: 0,
            setups: vec![Setup::default(); sizes.len()],
            queues: sizes.iter().map(queue).collect(),
        }
    }

    pub(crate) fn live(&self) -> bool {
        self.status.live()
    }

    pub(crate) fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    pub(crate) fn break_down(&mut self) {
        self.status.break_down();
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        self.status.reset();
        (
            self.accepted,
            self.offered_sel,
            self.accepted_sel,
            self.queue_sel,
        ) = (0, 0, 0, 0);
        self.setups.fill(Setup::default());
        self.queues.iter_mut().for_each(Queue::reset);
    }

    pub(crate) fn save(&self) -> RegistersState {
        let place = |queue: &Queue| {
            queue.ready().then(|| Place {
                next_available: queue.next_avail(),
                next_used: queue.next_used(),
            })
        };
        RegistersState {
            status: self.status.bits(),
            accepted: self.accepted,
            offered_sel: self.offered_sel,
            accepted_sel: self.accepted_sel,
            queue_sel: self.queue_sel,
            setups: self.setups.clone(),
            queues: self.queues.iter().map(place).collect(),
        }
    }

    /// Of a device at power-on. Every queue is checked as if the driver had just set it up. The features
    /// that the driver agreed on, where it had come so far that the device is live.
    pub(crate) fn restore(
        &mut self,
        state: &RegistersState,
        ram: &GuestRam,
    ) -> Result<Option<u64>, RegistersError> {
        let count = state.queues.len();
        if count != self.queues.len() || state.setups.len() != count {
            return Err(RegistersError::Queues(count));
        }
        let missing = state.accepted & !self.offered;
        if missing != 0 {
            return Err(RegistersError::Features(missing));
        }
        let status = Status::from_bits(state.status);
        let status = status.ok_or(RegistersError::Status(state.status))?;
        self.accepted = state.accepted;
        (self.offered_sel, self.accepted_sel, self.queue_sel) =
            (state.offered_sel, state.accepted_sel, state.queue_sel);
        self.setups.clone_from(&state.setups);
        for (index, place) in state.queues.iter().enumerate() {
            let Some(place) = place else { continue };
            if self.ready(index, ram) == Effect::Break {
                return Err(RegistersError::Queue(index));
            }
            self.queues[index].set_next_avail(place.next_available);
            self.queues[index].set_next_used(place.next_used);
        }
        self.status = status;
        Ok(status.live().then_some(self.accepted))
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_sel)
            .ok()
            .filter(|index| *index < self.queues.len())
    }

    /// Registers that are the transport's; the interrupt status is the interrupt's, the configuration's
    /// generation the slot's.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        let queue = self.selected().map(|index| &self.queues[index]);
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.device_id,
            VENDOR_ID => VENDOR_VALUE,
            DEVICE_FEATURES => half(self.offered, self.offered_sel),
            QUEUE_NUM_MAX => queue.map_or(0, |q| u32::from(q.max_size())),
            QUEUE_READY => queue.map_or(0, |q| u32::from(q.ready())),
            STATUS => self.status.bits(),
            // No shared memory regions: length and base read as all ones.
            SHM_LEN | 0xb4 | SHM_BASE | 0xbc => u32::MAX,
            _ => 0,
        }
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32, ram: &GuestRam) -> Effect {
        match offset {
            STATUS => return self.write_status(value),
            DEVICE_FEATURES_SEL => self.offered_sel = value,
            DRIVER_FEATURES_SEL => self.accepted_sel = value,
            DRIVER_FEATURES if self.status.configurable(Phase::Driver) => {
                set_half(&mut self.accepted, self.accepted_sel, value);
            }
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NUM..=QUEUE_READY | QUEUE_DESC..SHM_LEN => {
                return self.write_queue(offset, value, ram);
            }
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, value: u32) -> Effect {
        match self.status.request(value) {
            Request::Nothing => Effect::None,
            Request::Reset => Effect::Reset,
            Request::Enter(Phase::FeaturesOk) => {
                // Refused features leave the status as it was: the driver reads it back and gives up.
                if self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0 {
                    self.status.enter(Phase::FeaturesOk);
                }
                Effect::None
            }
            Request::Enter(Phase::Running) => {
                self.status.enter(Phase::Running);
                Effect::Activate(self.accepted)
            }
            Request::Enter(phase) => {
                self.status.enter(phase);
                Effect::None
            }
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32, ram: &GuestRam) -> Effect {
        let Some(index) = self.selected() else {
            return Effect::None;
        };
        if !self.status.configurable(Phase::FeaturesOk) || self.queues[index].ready() {
            return Effect::None;
        }
        let setup = &mut self.setups[index];
        match offset {
            QUEUE_NUM => setup.size = value,
            QUEUE_READY if value == 1 => return self.ready(index, ram),
            _ if offset == QUEUE_DESC => set_half(&mut setup.descriptors, 0, value),
            _ if offset == QUEUE_DESC + 4 => set_half(&mut setup.descriptors, 1, value),
            _ if offset == QUEUE_DRIVER => set_half(&mut setup.driver, 0, value),
            _ if offset == QUEUE_DRIVER + 4 => set_half(&mut setup.driver, 1, value),
            _ if offset == QUEUE_DEVICE => set_half(&mut setup.device, 0, value),
            _ if offset == QUEUE_DEVICE + 4 => set_half(&mut setup.device, 1, value),
            _ => {}
        }
        Effect::None
    }

    /// Checks everything about a queue at once; what passes does not change any more.
    fn ready(&mut self, index: usize, ram: &GuestRam) -> Effect {
        let setup = self.setups[index];
        let queue = &mut self.queues[index];
        let event_idx = self.accepted & EVENT_IDX != 0;
        let size = u16::try_from(setup.size).unwrap_or(u16::MAX);
        let fits = queue.try_set_size(size).is_ok()
            && queue
                .try_set_desc_table_address(GuestAddress(setup.descriptors))
                .is_ok()
            && queue
                .try_set_avail_ring_address(GuestAddress(setup.driver))
                .is_ok()
            && queue
                .try_set_used_ring_address(GuestAddress(setup.device))
                .is_ok();
        queue.set_event_idx(event_idx);
        queue.set_ready(fits);
        if fits && queue.is_valid(ram) {
            return Effect::None;
        }
        queue.reset();
        Effect::Break
    }
}

fn half(value: u64, which: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let (low, high) = bytes.split_at(4);
    match which {
        0 => u32::from_le_bytes(low.try_into().expect("4 bytes")),
        1 => u32::from_le_bytes(high.try_into().expect("4 bytes")),
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, to: u32) {
    match which {
        0 => *value = *value & !u64::from(u32::MAX) | u64::from(to),
        1 => *value = *value & u64::from(u32::MAX) | u64::from(to) << 32,
        // Feature bits above 63 do not exist: a driver that sets one is not heard.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("maps")
    }

    fn registers() -> Registers {
        Registers::new(4, 1 << 5, &[16, 8])
    }

    /// Writes the steps up to a phase.
    fn bring_to(registers: &mut Registers, ram: &GuestRam, phase: Phase) {
        let mut write = |offset, value| registers.write(offset, value, ram);
        for (step, value) in [(Phase::Acknowledged, 1), (Phase::Driver, 3)] {
            if phase >= step {
                write(STATUS, value);
            }
        }
        if phase >= Phase::FeaturesOk {
            write(DRIVER_FEATURES_SEL, 1);
            write(DRIVER_FEATURES, 1);
            write(STATUS, 0xb);
        }
        if phase >= Phase::Running {
            write(STATUS, 0xf);
        }
        assert_eq!(registers.status.phase(), phase);
    }

    fn set_up(registers: &mut Registers, ram: &GuestRam, size: u32, at: [u64; 3]) -> Effect {
        registers.write(QUEUE_NUM, size, ram);
        for (offset, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(at) {
            registers.write(offset, half(address, 0), ram);
            registers.write(offset + 4, half(address, 1), ram);
        }
        registers.write(QUEUE_READY, 1, ram)
    }

    const GOOD: [u64; 3] = [0x1000, 0x2000, 0x3000];

    #[test]
    fn a_driver_that_follows_the_rules_gets_a_live_device() {
        let (ram, mut registers) = (ram(), registers());
        bring_to(&mut registers, &ram, Phase::FeaturesOk);
        assert_eq!(set_up(&mut registers, &ram, 16, GOOD), Effect::None);
        assert_eq!(registers.read(QUEUE_READY), 1);
        assert_eq!(
            registers.write(STATUS, 0xf, &ram),
            Effect::Activate(VERSION_1)
        );
        assert!(registers.live());
        assert_eq!(registers.write(STATUS, 0, &ram), Effect::Reset);
        registers.reset();
        assert_eq!(
            (registers.read(STATUS), registers.read(QUEUE_READY)),
            (0, 0)
        );
    }

    #[test]
    fn queues_can_be_set_up_in_one_phase_only() {
        for phase in [
            Phase::Reset,
            Phase::Acknowledged,
            Phase::Driver,
            Phase::Running,
        ] {
            let (ram, mut registers) = (ram(), registers());
            bring_to(&mut registers, &ram, phase);
            assert_eq!(set_up(&mut registers, &ram, 16, GOOD), Effect::None);
            assert_eq!(registers.read(QUEUE_READY), 0, "{phase:?}");
        }
    }

    #[test]
    fn a_ready_queue_cannot_be_changed_nor_made_unready() {
        let (ram, mut registers) = (ram(), registers());
        bring_to(&mut registers, &ram, Phase::FeaturesOk);
        set_up(&mut registers, &ram, 8, GOOD);
        let before = registers.queues[0].state();
        set_up(&mut registers, &ram, 16, [0x4000, 0x5000, 0x6000]);
        registers.write(QUEUE_READY, 0, &ram);
        registers.write(STATUS, 0xf, &ram);
        set_up(&mut registers, &ram, 16, [0x4000, 0x5000, 0x6000]);
        assert_eq!(registers.queues[0].state(), before);
    }

    #[test]
    fn a_queue_of_wrong_size_alignment_or_place_breaks_the_device() {
        let bad = [
            (0, GOOD),
            (3, GOOD),
            (32, GOOD),
            (0x1_0010, GOOD),
            (16, [0x1001, 0x2000, 0x3000]),
            (16, [0x1000, 0x2001, 0x3000]),
            (16, [0x1000, 0x2000, 0x3002]),
            (16, [0xfff0, 0x2000, 0x3000]),
            (16, [0x1000, 0xfffe, 0x3000]),
            (16, [0x1000, 0x2000, 0xfffc]),
            (16, [!0xf, 0x2000, 0x3000]),
        ];
        for (size, at) in bad {
            let (ram, mut registers) = (ram(), registers());
            bring_to(&mut registers, &ram, Phase::FeaturesOk);
            assert_eq!(
                set_up(&mut registers, &ram, size, at),
                Effect::Break,
                "{size} {at:x?}"
            );
            registers.break_down();
            assert_eq!(registers.read(QUEUE_READY), 0);
            assert_eq!(registers.write(STATUS, 0xf, &ram), Effect::None);
            assert!(!registers.live());
        }
    }

    #[test]
    fn features_that_were_not_offered_or_lack_version_1_are_refused() {
        for (low, high) in [(0, 0), (1 << 5, 0), (1 << 6, 1), (0, 3)] {
            let (ram, mut registers) = (ram(), registers());
            bring_to(&mut registers, &ram, Phase::Driver);
            for (which, value) in [(0, low), (1, high)] {
                registers.write(DRIVER_FEATURES_SEL, which, &ram);
                registers.write(DRIVER_FEATURES, value, &ram);
            }
            registers.write(STATUS, 0xb, &ram);
            assert_eq!(registers.read(STATUS), 3);
        }
    }

    #[test]
    fn features_cannot_change_after_they_are_agreed() {
        let (ram, mut registers) = (ram(), registers());
        bring_to(&mut registers, &ram, Phase::FeaturesOk);
        registers.write(DRIVER_FEATURES_SEL, 0, &ram);
        registers.write(DRIVER_FEATURES, 1 << 5, &ram);
        assert_eq!(
            registers.write(STATUS, 0xf, &ram),
            Effect::Activate(VERSION_1)
        );
    }

    #[test]
    fn a_queue_that_does_not_exist_has_no_size() {
        let (ram, mut registers) = (ram(), registers());
        for (queue, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
            registers.write(QUEUE_SEL, queue, &ram);
            assert_eq!(registers.read(QUEUE_NUM_MAX), size);
        }
    }

    #[test]
    fn registers_read_back_from_a_snapshot_and_are_checked_as_the_driver_was() {
        let (ram, mut before) = (ram(), registers());
        bring_to(&mut before, &ram, Phase::FeaturesOk);
        set_up(&mut before, &ram, 16, GOOD);
        before.write(STATUS, 0xf, &ram);
        before.queues[0].set_next_avail(7);
        before.queues[0].set_next_used(5);
        let state = before.save();
        let mut after = registers();
        assert_eq!(after.restore(&state, &ram), Ok(Some(VERSION_1)));
        assert_eq!(after.save(), state);
        assert_eq!(after.queues[0].state(), before.queues[0].state());
        let refused = |change: fn(&mut RegistersState)| {
            let mut state = state.clone();
            change(&mut state);
            registers().restore(&state, &ram).expect_err("wrong")
        };
        assert_eq!(refused(|s| s.status = 6), RegistersError::Status(6));
        assert_eq!(refused(|s| s.accepted |= 1), RegistersError::Features(1));
        assert_eq!(refused(|s| s.queues.truncate(1)), RegistersError::Queues(1));
        assert_eq!(
            refused(|s| s.setups[0].device = 0xfffc),
            RegistersError::Queue(0)
        );
        assert_eq!(refused(|s| s.setups[0].size = 3), RegistersError::Queue(0));
    }

    proptest! {
        #[test]
        fn no_sequence_of_writes_makes_a_live_device_with_an_invalid_ready_queue(
            writes in prop::collection::vec((0u64..0x44, prop_oneof![0u32..16, any::<u32>()]), 0..200),
        ) {
            let (ram, mut registers) = (ram(), registers());
            for (register, value) in writes {
                match registers.write(register * 4, value, &ram) {
                    Effect::Reset => registers.reset(),
                    Effect::Break => registers.break_down(),
                    Effect::None | Effect::Activate(_) => {}
                }
                let _ = registers.read(register * 4);
                prop_assert!(registers.queues.iter().all(|q| !q.ready() || q.is_valid(&ram)));
                prop_assert!(!registers.live() || registers.accepted & !registers.offered == 0);
            }
        }
    }
}
