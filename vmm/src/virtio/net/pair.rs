//! One queue pair of a card: its end of the TAP, and the guest's buffers for what comes from there.
//!
//! Owns: buffers that were taken off the ring and not filled yet; packets into them, in as many pieces as
//! they need. Refuses: a buffer that cannot hold a header.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::tap::{HEADER_BYTES, Tap};
use crate::memory::io::{IoVec, read_packet};
use crate::virtio::chain::Chain;
use crate::virtio::ring::{Ring, Violation};

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;

/// How packets come to the guest, by what was agreed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes that the next packet may have, header included.
    pub(super) longest: u64,
    /// A packet may take several buffers.
    pub(super) mergeable: bool,
}

/// How filling one packet's worth of buffers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// Bytes with the Ethernet header.
    Packet(u64),
    Interrupted,
    NoPacket,
    NoBuffers,
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) tap: Tap,
    attached: bool,
    /// In the order of the ring.
    pub(super) buffers: VecDeque<Chain>,
    room: u64,
    /// There is room for the next packet.
    pub(super) fillable: bool,
}

impl Pair {
    /// On a TAP queue as it is opened: attached.
    pub(super) fn new(tap: Tap) -> Self {
        Self {
            tap,
            attached: true,
            buffers: VecDeque::new(),
            room: 0,
            fillable: false,
        }
    }

    pub(super) fn attach(&mut self, wanted: bool) -> io::Result<()> {
        if self.attached != wanted {
            self.tap.attach(wanted)?;
            self.attached = wanted;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Drops the buffers in hand.
    pub(super) fn forget(&mut self) {
        self.buffers.clear();
        self.room = 0;
        self.fillable = false;
    }

    /// Takes buffers off the ring until the longest packet fits. Whether there is something to fill.
    pub(super) fn gather(&mut self, ring: &mut Ring<'_>, shape: Shape) -> Result<bool, Violation> {
        loop {
            let enough = if shape.mergeable {
                self.room >= shape.longest
            } else {
                !self.buffers.is_empty()
            };
            // A driver whose whole ring is too small for the longest packet gets short ones cut.
            if enough || (self.buffers.len() >= ring.size() && !self.buffers.is_empty()) {
                return Ok(true);
            }
            match ring.pop()? {
                Some(chain) if chain.writable.bytes() < u64::from(HEADER_BYTES) => {
                    return Err(Violation::Request(
                        "receive buffer without room for a header",
                    ));
                }
                Some(chain) => {
                    self.room += chain.writable.bytes();
                    self.buffers.push_back(chain);
                }
                None if ring.arm()? => ring.disarm()?,
                None => return Ok(false),
            }
        }
    }

    /// Reads one packet into the guest's buffers.
    pub(super) fn fill(&mut self, ring: &mut Ring<'_>, shape: Shape) -> Result<Filled, Violation> {
        if !self.gather(ring, shape)? {
            return Ok(Filled::NoBuffers);
        }
        let usable = if shape.mergeable {
            self.buffers.len()
        } else {
            1
        };
        let mut list = IoVec::with_capacity(usable);
        for chain in self.buffers.iter().take(usable) {
            if !chain.writable.append_to(ring.ram(), &mut list) {
                return Err(Violation::Request("receive buffers in too many pieces"));
            }
        }
        let count = match read_packet(self.tap.as_fd(), &list) {
            Ok(0) => return Ok(Filled::NoPacket),
            Ok(count) => count as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Filled::NoPacket),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Ok(Filled::Interrupted);
            }
            Err(error) => return Err(Violation::Host("read the TAP", error)),
        };
        let (mut rest, mut used) = (count, Vec::new());
        let mut first = None;
        while rest > 0 {
            let Some(chain) = self.buffers.pop_front() else {
                break;
            };
            let room = chain.writable.bytes();
            let written = room.min(rest);
            self.room -= room;
            rest -= written;
            used.push((chain.head, u32::try_from(written).unwrap_or(u32::MAX)));
            first.get_or_insert(chain);
        }
        if let Some(mut chain) = first {
            // The TAP leaves this field to us.
            let count = u16::try_from(used.len()).expect("no more than the ring holds");
            if chain.writable.split_front(NUM_BUFFERS).is_some() {
                chain.writable.copy_from(ring.ram(), &count.to_le_bytes());
            }
        }
        ring.complete_together(&used)?;
        Ok(Filled::Packet(count.saturating_sub(HEADER_BYTES.into())))
    }
}
