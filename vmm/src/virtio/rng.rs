//! virtio-rng: entropy from the host.
//!
//! Owns: one queue. Refuses: requests of any size at once.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};

/// Most bytes of one request: what it makes us allocate. The guest asks again for more.
const BYTES_MAX: usize = 64 << 10;
const QUEUES: [u16; 1] = [16];

#[derive(Debug)]
pub(crate) struct Rng;

impl Device for Rng {
    const ID: u32 = VIRTIO_ID_RNG;

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        rings[0].drain(|ring, chain| {
            let wanted = usize::try_from(chain.writable.bytes())
                .unwrap_or(usize::MAX)
                .min(BYTES_MAX);
            let mut bytes = vec![0; wanted];
            getrandom::fill(&mut bytes)
                .map_err(|e| Violation::Host("get random bytes", std::io::Error::other(e)))?;
            let written = chain.writable.copy_from(ring.ram(), &bytes);
            ring.complete(chain.head, u32::try_from(written).expect("64 KiB at most"))
        })
    }
}
