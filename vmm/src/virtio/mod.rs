//! virtio 1.2 devices over memory-mapped registers.
//!
//! Owns: the trait of a device, its rings, its transport and its worker.
//! Refuses: trust in a driver. One that breaks the rules of its rings gets its device stopped
//! (DEVICE_NEEDS_RESET) and nothing else.

pub(crate) mod balloon;
pub(crate) mod blk;
pub(crate) mod chain;
pub(crate) mod console;
pub(crate) mod interrupt;
pub(crate) mod limit;
pub(crate) mod net;
pub(crate) mod pmem;
#[cfg(test)]
mod queue_tests;
pub(crate) mod ring;
pub(crate) mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transport;
pub(crate) mod vsock;
pub(crate) mod worker;

use serde_json::Value;

use crate::event::Source;
use ring::{Ring, Violation};

/// What woke the device's worker: one bit per queue and one per descriptor of [`Device::sources`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) queues: u32,
    pub(crate) sources: u32,
}

impl Ready {
    /// Look at everything: after activation, and when the machine stops.
    pub(crate) const ALL: Self = Self {
        queues: u32::MAX,
        sources: u32::MAX,
    };

    pub(crate) fn queue(self, index: usize) -> bool {
        self.queues >> index & 1 != 0
    }

    pub(crate) fn source(self, index: usize) -> bool {
        self.sources >> index & 1 != 0
    }
}

/// How a device's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Turn {
    /// Nothing more to do until something happens.
    Done,
    /// Its share is used up: others first, then again without waiting.
    Again,
}

impl Turn {
    pub(crate) fn and(self, other: Self) -> Self {
        if self == Self::Again { self } else { other }
    }
}

/// A snapshot holds a state that the device never had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign;

/// What people call a device (VIRTIO 1.2 section 5).
pub(crate) fn name(id: u32) -> &'static str {
    match id {
        1 => "network card",
        2 => "disk",
        3 => "console",
        4 => "entropy source",
        5 => "balloon",
        19 => "socket device",
        27 => "memory disk",
        _ => "device",
    }
}

/// A device behind the transport. All calls come with the device locked: registers from vCPUs, the
/// rest from its worker.
pub(crate) trait Device: Send + 'static {
    /// Device id (VIRTIO 1.2 section 5).
    const ID: u32;

    /// Most entries of each queue.
    fn queues(&self) -> &[u16];
    /// Whether a queue's chains are requests, which are timed until they are answered. In others they are room
    /// for what may come.
    fn answers(&self, queue: usize) -> bool {
        let _ = queue;
        false
    }
    /// What its metrics are named by; empty: its number among those of its kind.
    fn name(&self) -> &str {
        ""
    }
    /// Features of the device itself; the transport adds its own.
    fn features(&self) -> u64;
    /// The device configuration space.
    fn config(&self) -> &[u8];
    /// The driver writes to the configuration space, anything at any offset. Most devices do not care.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver is ready, with these features.
    fn activate(&mut self, features: u64);
    /// The driver has reset the device: forget everything it ever said.
    fn reset(&mut self);
    /// Descriptors that the worker waits for besides the queues. Asked anew before each wait.
    fn sources(&self, out: &mut Vec<Source>) {
        let _ = out;
    }
    /// Do what can be done now. Only called while the driver is ready.
    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation>;
    /// Brings the device to rest: when this returns nothing of it is in flight, no part of guest memory is
    /// read or written on its behalf, and all that a driver waits for stands in its rings. What was taken
    /// and not begun is put back ([`Ring::untake`]). A device that is at rest goes on with the next
    /// `serve`, to be called with [`Ready::ALL`]. Only called while the driver is ready.
    fn quiesce(&mut self, rings: &mut [Ring<'_>]) -> Result<(), Violation> {
        let _ = rings;
        Ok(())
    }
    /// Whether the kernel takes this queue's doorbell by itself now: the worker leaves it alone.
    fn kernel_serves(&self, queue: usize) -> bool {
        let _ = queue;
        false
    }
    /// What a snapshot keeps of a device at rest beyond its registers, rings and what is behind it.
    fn save(&self) -> Value {
        Value::Null
    }
    /// In a new machine, after `activate` where the driver was ready: goes on where `save` was called, as
    /// far as that makes sense to the outside.
    fn restore(&mut self, state: &Value) -> Result<(), Foreign> {
        match state {
            Value::Null => Ok(()),
            _ => Err(Foreign),
        }
    }
    /// What of it a device must have in common with the one in a snapshot.
    fn shape(&self) -> Vec<u8> {
        self.config().to_vec()
    }
    /// The machine has stopped: last words to the outside.
    fn stop(&mut self) {}
}
