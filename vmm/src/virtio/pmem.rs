//! virtio-pmem: where a disk image stands in guest-physical memory.
//!
//! Owns: its place and length, answers to flushes. Refuses: writes. The memory is read-only to the guest (a
//! write exits and goes nowhere), so that no flush can promise anything: each is answered with an error.

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;

use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};

/// Linux flushes one at a time.
const QUEUES: [u16; 1] = [16];
/// A request is its type, an answer its result (VIRTIO 1.2 section 5.19.6), four bytes each.
const WORD: u64 = 4;
const FLUSH: u32 = 0;
/// What came of a flush: VIRTIO_PMEM_RESP_TYPE_EIO.
const FAILED: u32 = 1;

#[derive(Debug)]
pub(crate) struct Pmem {
    /// Start and length.
    config: [u8; 16],
}

impl Pmem {
    pub(crate) fn new(start: u64, bytes: u64) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&bytes.to_le_bytes());
        Self { config }
    }
}

impl Device for Pmem {
    const ID: u32 = VIRTIO_ID_PMEM;

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn answers(&self, _queue: usize) -> bool {
        true
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        rings[0].drain(|ring, chain| {
            let mut kind = [0; 4];
            if chain.readable.bytes() < WORD || chain.writable.bytes() < WORD {
                return Err(Violation::Request("a flush without request or answer"));
            }
            chain.readable.copy_to(ring.ram(), &mut kind);
            if u32::from_le_bytes(kind) != FLUSH {
                return Err(Violation::Request("a request that is no flush"));
            }
            let written = chain.writable.copy_from(ring.ram(), &FAILED.to_le_bytes());
            ring.complete(chain.head, u32::try_from(written).expect("4 bytes"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{DATA, Driver, hostile};
    use proptest::prelude::*;

    #[test]
    fn the_driver_reads_where_the_image_is() {
        let pmem = Pmem::new(0x1_4000_0000, 0x40_0000);
        let word =
            |at: usize| u64::from_le_bytes(pmem.config()[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!((word(0), word(8)), (0x1_4000_0000, 0x40_0000));
    }

    #[test]
    fn a_flush_is_answered_with_an_error_because_nothing_written_is_kept() {
        let mut driver = Driver::new(&QUEUES);
        let mut pmem = Pmem::new(1 << 32, 1 << 21);
        driver.write(DATA, &0u32.to_le_bytes());
        let head = driver.offer(0, &[(DATA, 4)], &[(DATA + 64, 4)]);
        assert_eq!(driver.turn(&mut pmem).expect("served"), Turn::Done);
        assert_eq!(driver.used(0), [(head, 4)]);
        assert_eq!(driver.read(DATA + 64, 4), 1u32.to_le_bytes());
        assert!(driver.interrupted());
    }

    #[test]
    fn what_is_no_flush_stops_the_device() {
        for (kind, request, answer) in [(1u32, 4, 4), (0, 2, 4), (0, 4, 2)] {
            let mut driver = Driver::new(&QUEUES);
            driver.write(DATA, &kind.to_le_bytes());
            driver.offer(0, &[(DATA, request)], &[(DATA + 64, answer)]);
            let turn = driver.turn(&mut Pmem::new(0, 0));
            assert!(matches!(turn, Err(Violation::Request(_))));
        }
    }

    proptest! {
        #[test]
        fn no_descriptors_make_it_panic(table in hostile::descriptors(), heads in hostile::heads()) {
            let mut driver = Driver::new(&QUEUES);
            for (index, (address, length, flags, next)) in (0u16..).zip(&table) {
                driver.describe(0, index, *address, *length, *flags, *next);
            }
            for head in heads {
                driver.offer_head(0, head);
            }
            let _ = driver.turn(&mut Pmem::new(0, 0));
        }
    }
}
