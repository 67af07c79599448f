//! virtio-net: one network card on one TAP.
//!
//! Owns: packets both ways, straight between TAP and guest memory, with the offloads that the kernel
//! does for us. Refuses: to look into packets. The kernel checks their headers, the network around the
//! TAP says what may pass.

mod tap;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use types::Mac;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};

use self::tap::{CHECKSUM, HEADER_BYTES, SEGMENTATION_4, SEGMENTATION_6, Tap};
use super::chain::Chain;
use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};
use crate::event::Source;
use crate::memory::io::{IoVec, read_packet, write_packet};

const QUEUES: [u16; 2] = [256, 256];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
/// Packets for the guest in one turn; the TAP keeps what is left.
const PACKETS_PER_TURN: usize = 64;
/// Longest packet with its Ethernet header when segmentation is left to the guest.
const SEGMENTED_MAX: u32 = 65_535 + ETHERNET_BYTES;
/// Ethernet header with one VLAN tag.
const ETHERNET_BYTES: u32 = 18;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("set up the TAP: pass one that is attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Tap(#[source] io::Error),
    #[error("MTU {0} is outside 68 to 65521")]
    Mtu(u16),
}

#[derive(Debug)]
pub(crate) struct Net {
    tap: Tap,
    config: [u8; 12],
    mtu: u16,
    /// Agreed with the driver.
    features: u64,
    /// Offloads that the TAP is not told of yet: that is the worker's to do.
    offloads: Option<u32>,
    /// Buffers of the guest, taken off the ring and not filled yet.
    buffers: VecDeque<Chain>,
    room: u64,
    /// There is room for the next packet.
    fillable: bool,
}

/// How filling one packet's worth of buffers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    Packet,
    NoPacket,
    NoBuffers,
}

impl Net {
    pub(crate) fn new(tap: File, mac: Mac, mtu: u16) -> Result<Self, NetError> {
        Self::on(Tap::new(tap).map_err(NetError::Tap)?, mac, mtu)
    }

    /// On any descriptor of packets.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn fake(packets: File, mac: Mac, mtu: u16) -> Result<Self, NetError> {
        Self::on(Tap::fake(packets), mac, mtu)
    }

    fn on(tap: Tap, mac: Mac, mtu: u16) -> Result<Self, NetError> {
        if !(68..=65_521).contains(&mtu) {
            return Err(NetError::Mtu(mtu));
        }
        // MAC, link status, queue pairs, MTU.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac.0);
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Ok(Self {
            tap,
            config,
            mtu,
            features: 0,
            offloads: None,
            buffers: VecDeque::new(),
            room: 0,
            fillable: false,
        })
    }

    fn agreed(&self, feature: u32) -> bool {
        self.features >> feature & 1 != 0
    }

    /// Bytes that the next packet may have, header included.
    fn longest(&self) -> u64 {
        let segmented =
            self.agreed(VIRTIO_NET_F_GUEST_TSO4) || self.agreed(VIRTIO_NET_F_GUEST_TSO6);
        let packet = if segmented {
            SEGMENTED_MAX
        } else {
            u32::from(self.mtu) + ETHERNET_BYTES
        };
        u64::from(HEADER_BYTES + packet)
    }

    /// Takes buffers off the ring until the longest packet fits. Whether there is something to fill.
    fn gather(&mut self, ring: &mut Ring<'_>) -> Result<bool, Violation> {
        let mergeable = self.agreed(VIRTIO_NET_F_MRG_RXBUF);
        let longest = self.longest();
        loop {
            let enough = if mergeable {
                self.room >= longest
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
    fn fill(&mut self, ring: &mut Ring<'_>) -> Result<Filled, Violation> {
        if !self.gather(ring)? {
            return Ok(Filled::NoBuffers);
        }
        let usable = if self.agreed(VIRTIO_NET_F_MRG_RXBUF) {
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
        let mut rest = match read_packet(self.tap.as_fd(), &list) {
            Ok(0) => return Ok(Filled::NoPacket),
            Ok(count) => count as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Filled::NoPacket),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Filled::Packet),
            Err(error) => return Err(Violation::Host("read the TAP", error)),
        };
        let mut used = Vec::new();
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
        Ok(Filled::Packet)
    }

    fn deliver(&mut self, ring: &mut Ring<'_>) -> Result<(), Violation> {
        ring.disarm()?;
        for _ in 0..PACKETS_PER_TURN {
            match self.fill(ring)? {
                Filled::Packet => {}
                Filled::NoPacket | Filled::NoBuffers => break,
            }
        }
        ring.notify()
    }

    fn transmit(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        let tap = &self.tap;
        ring.drain(|ring, chain| {
            let length = chain.readable.bytes();
            let fits = (u64::from(HEADER_BYTES) + 1..=u64::from(HEADER_BYTES + SEGMENTED_MAX))
                .contains(&length);
            if let Some(list) = chain.readable.io_vec(ring.ram()).filter(|_| fits) {
                // A packet that the kernel does not take is lost, as on any wire.
                let _ = write_packet(tap.as_fd(), &list);
            }
            ring.complete(chain.head, 0)
        })
    }

    fn tell_tap(&mut self) -> Result<(), Violation> {
        match self.offloads.take() {
            Some(offloads) => self
                .tap
                .set_offloads(offloads)
                .map_err(|e| Violation::Host("set offloads", e)),
            None => Ok(()),
        }
    }
}

impl Device for Net {
    const ID: u32 = VIRTIO_ID_NET;

    fn queues(&self) -> &'static [u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
        ]
        .into_iter()
        .fold(0, |all, feature| all | 1 << feature)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let pairs = [
            (VIRTIO_NET_F_GUEST_CSUM, CHECKSUM),
            (VIRTIO_NET_F_GUEST_TSO4, SEGMENTATION_4),
            (VIRTIO_NET_F_GUEST_TSO6, SEGMENTATION_6),
        ];
        let agreed = pairs
            .into_iter()
            .filter(|(feature, _)| self.agreed(*feature));
        let offloads = agreed.fold(0, |all, (_, offload)| all | offload);
        // Segmentation without checksums makes no sense, and the kernel refuses it.
        self.offloads = Some(if offloads & CHECKSUM == 0 {
            0
        } else {
            offloads
        });
    }

    fn reset(&mut self) {
        self.features = 0;
        self.buffers.clear();
        self.room = 0;
        self.fillable = false;
    }

    fn sources(&self, out: &mut Vec<Source>) {
        // While there is no room, the guest's next buffers wake us, not the next packet.
        out.push(if self.fillable {
            Source::readable(&self.tap)
        } else {
            Source::never()
        });
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        self.tell_tap()?;
        if ready.queue(TO_GUEST) || ready.source(0) {
            self.deliver(&mut rings[TO_GUEST])?;
            // Leaves a packet's worth of buffers in hand, or the ring armed.
            self.fillable = self.gather(&mut rings[TO_GUEST])?;
        }
        if ready.queue(FROM_GUEST) {
            return self.transmit(&mut rings[FROM_GUEST]);
        }
        Ok(Turn::Done)
    }
}

#[cfg(test)]
mod tests;
