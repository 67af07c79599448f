//! The buses: which device answers a port or an address.
//!
//! Owns: dispatch. Refuses: guessing. What is absent reads as all ones and swallows writes.

mod mmio;
mod pio;

pub(crate) use mmio::{Mmio, MmioDevice};
pub(crate) use pio::{Pio, PioWrite, Ports, PortsState};

/// What an absent device reads as: all ones, which drivers take for "nobody there".
pub(crate) const ABSENT: u8 = 0xff;
