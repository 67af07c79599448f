//! Descriptor chains, checked once and whole before a device sees them.
//!
//! Owns: the rules of VIRTIO 1.2 section 2.7 for one chain: readable parts before writable ones, inside
//! guest memory, no longer than the queue, properly ended.
//! Refuses: every other chain.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestRam;
use crate::memory::io::IoVec;

/// Most descriptors of a chain: the size of our largest queue, which the specification makes the
/// limit. It also bounds what one request makes us allocate.
pub(crate) const DESCRIPTORS_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("descriptor chain is longer than {DESCRIPTORS_MAX}")]
    TooLong,
    #[error("descriptor chain has a readable part after a writable one")]
    Order,
    #[error("descriptor chain does not end properly")]
    Cut,
    #[error("descriptor of {length} bytes at {address:#x} is not in memory")]
    Memory { address: u64, length: u32 },
}

/// One piece of guest memory, known to be inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: GuestAddress,
    pub(crate) length: u32,
}

/// One request of the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Segments,
    pub(crate) writable: Segments,
}

impl Chain {
    pub(crate) fn read(
        ram: &GuestRam,
        chain: DescriptorChain<&GuestRam>,
    ) -> Result<Self, ChainError> {
        let mut out = Self {
            head: chain.head_index(),
            ..Self::default()
        };
        let (mut ended, mut writing) = (false, false);
        let mut count = 0;
        for descriptor in chain {
            count += 1;
            if count > DESCRIPTORS_MAX {
                return Err(ChainError::TooLong);
            }
            let (address, length) = (descriptor.addr(), descriptor.len());
            if !ram.check_range(address, length as usize) {
                return Err(ChainError::Memory {
                    address: address.0,
                    length,
                });
            }
            let list = match (descriptor.is_write_only(), writing) {
                (true, _) => {
                    writing = true;
                    &mut out.writable
                }
                (false, false) => &mut out.readable,
                (false, true) => return Err(ChainError::Order),
            };
            // A piece without bytes is at no place, and must not hide the pieces behind it.
            if length > 0 {
                list.list.push(Segment { address, length });
            }
            ended = !descriptor.has_next();
        }
        // The iterator ends without a word at a bad index or table: then the last one had a successor.
        if ended { Ok(out) } else { Err(ChainError::Cut) }
    }
}

/// Pieces of guest memory in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    list: Vec<Segment>,
}

impl Segments {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.list.iter().map(|s| u64::from(s.length)).sum()
    }

    /// Takes `count` bytes off the front. `None`, and nothing taken, where there are fewer.
    pub(crate) fn split_front(&mut self, count: u64) -> Option<Self> {
        if self.bytes() < count {
            return None;
        }
        let mut front = Self::default();
        let mut rest = count;
        while rest > 0 {
            let first = self.list[0];
            let take = u32::try_from(rest).unwrap_or(u32::MAX).min(first.length);
            front.list.push(Segment {
                length: take,
                ..first
            });
            rest -= u64::from(take);
            if take == first.length {
                self.list.remove(0);
            } else {
                self.list[0] = Segment {
                    address: GuestAddress(first.address.0 + u64::from(take)),
                    length: first.length - take,
                };
            }
        }
        Some(front)
    }

    /// Takes `count` bytes off the end.
    pub(crate) fn split_back(&mut self, count: u64) -> Option<Self> {
        let keep = self.bytes().checked_sub(count)?;
        let front = self.split_front(keep)?;
        Some(std::mem::replace(self, front))
    }

    /// Copies from the front into `out`; returns how much there was.
    pub(crate) fn copy_to(&self, ram: &GuestRam, out: &mut [u8]) -> usize {
        let mut done = 0;
        for segment in &self.list {
            let part = &mut out[done..];
            let count = part.len().min(segment.length as usize);
            // Checked to be inside memory, which never shrinks.
            if count == 0 || ram.read_slice(&mut part[..count], segment.address).is_err() {
                break;
            }
            done += count;
        }
        done
    }

    /// Copies `bytes` to the front; returns how much there was room for.
    pub(crate) fn copy_from(&self, ram: &GuestRam, bytes: &[u8]) -> usize {
        let mut done = 0;
        for segment in &self.list {
            let part = &bytes[done..];
            let count = part.len().min(segment.length as usize);
            if count == 0 || ram.write_slice(&part[..count], segment.address).is_err() {
                break;
            }
            done += count;
        }
        done
    }

    /// Appends all pieces to `list` for vectored I/O. False where it gets too long.
    #[must_use]
    pub(crate) fn append_to<'m>(&self, ram: &'m GuestRam, list: &mut IoVec<'m>) -> bool {
        self.list.iter().all(|segment| {
            GuestMemoryBackend::get_slices(ram, segment.address, segment.length as usize)
                .all(|slice| slice.is_ok_and(|slice| list.push(&slice)))
        })
    }

    pub(crate) fn io_vec<'m>(&self, ram: &'m GuestRam) -> Option<IoVec<'m>> {
        let mut list = IoVec::with_capacity(self.list.len());
        self.append_to(ram, &mut list).then_some(list)
    }

    #[cfg(test)]
    pub(crate) fn from_parts(parts: &[(u64, u32)]) -> Self {
        let segment = |&(address, length): &(u64, u32)| Segment {
            address: GuestAddress(address),
            length,
        };
        Self {
            list: parts.iter().map(segment).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_keeps_every_byte_in_order() {
        let mut all = Segments::from_parts(&[(0x1000, 10), (0x3000, 20), (0x2000, 5)]);
        let front = all.split_front(15).expect("35 bytes");
        let back = all.split_back(1).expect("20 bytes");
        assert_eq!(front, Segments::from_parts(&[(0x1000, 10), (0x3000, 5)]));
        assert_eq!(all, Segments::from_parts(&[(0x3005, 15), (0x2000, 4)]));
        assert_eq!(back, Segments::from_parts(&[(0x2004, 1)]));
        assert_eq!(all.split_front(20), None);
        assert_eq!(all.split_back(20), None);
        assert_eq!(all.bytes(), 19);
    }
}
