//! Which pages of guest memory this process has written.
//!
//! Owns: one bit a page, from when it is asked for. Until then a write costs one look at a pointer.
//! Refuses: what others write. KVM notes the vCPUs' writes; whoever else writes here says so with `mark_dirty`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;

pub(crate) const PAGE: usize = 4096;

/// The log of one region of RAM.
#[derive(Debug, Default)]
pub(crate) struct DirtyLog {
    words: usize,
    bits: OnceLock<Box<[AtomicU64]>>,
}

impl NewBitmap for DirtyLog {
    fn with_len(bytes: usize) -> Self {
        Self {
            words: bytes.div_ceil(PAGE * 64),
            bits: OnceLock::new(),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        let Some(bits) = self.bits.get() else { return };
        let last = offset.saturating_add(bytes.saturating_sub(1)) / PAGE;
        for page in offset / PAGE..=last {
            if let Some(word) = bits.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE;
        let word = self.bits.get().and_then(|bits| bits.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 != 0)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { log: self, offset }
    }
}

/// The log from one place of its region on.
#[derive(Debug, Clone)]
pub(crate) struct DirtySlice<'a> {
    log: &'a DirtyLog,
    offset: usize,
}

/// Of the whole region, whatever the slice.
impl DirtySlice<'_> {
    /// Notes all writes from now on.
    pub(crate) fn begin(&self) {
        let words = self.log.words;
        self.log
            .bits
            .get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
    }

    /// Whether anybody has asked.
    pub(crate) fn has_begun(&self) -> bool {
        self.log.bits.get().is_some()
    }

    /// Adds what was written since the last time to `bits` (a bit a page, as KVM has them), and forgets it.
    pub(crate) fn take(&self, bits: &mut [u64]) {
        let own = self.log.bits.get().map(|b| &b[..]).unwrap_or_default();
        for (to, from) in bits.iter_mut().zip(own) {
            *to |= from.swap(0, Ordering::Relaxed);
        }
    }
}

impl<'a> WithBitmapSlice<'_> for DirtySlice<'a> {
    type S = DirtySlice<'a>;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        self.log.mark_dirty(self.offset.wrapping_add(offset), bytes);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.dirty_at(self.offset.wrapping_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log,
            offset: self.offset.wrapping_add(offset),
        }
    }
}

/// Pages that somebody else notes by guest-physical address, as vhost does: a bit each, from address 0 on.
#[derive(Debug)]
pub(crate) struct PhysicalLog {
    bits: Box<[AtomicU64]>,
    ram: GuestRam,
}

impl PhysicalLog {
    /// `None`: nobody asks what is written to this memory.
    pub(crate) fn new(ram: &GuestRam) -> Option<Self> {
        if !ram.iter().any(|region| region.bitmap().has_begun()) {
            return None;
        }
        let pages = usize::try_from(ram.last_addr().0).expect("64-bit only") / PAGE + 1;
        // The kernel sets a bit by a word that may begin at any byte.
        let words = pages.div_ceil(64) + 1;
        Some(Self {
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            ram: ram.clone(),
        })
    }

    /// Where the bits are, for who sets them: until this is dropped.
    pub(crate) fn address(&self) -> u64 {
        self.bits.as_ptr().expose_provenance() as u64
    }

    /// What is noted so far stands in the regions' own logs then.
    pub(crate) fn hand_over(&self) {
        for (word, bits) in (0u64..).zip(&self.bits) {
            let mut bits = bits.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let page = word * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let address = GuestAddress(page * PAGE as u64);
                if let Some((region, at)) = self.ram.to_region_addr(address) {
                    let offset = usize::try_from(at.0).expect("64-bit only");
                    region.bitmap().mark_dirty(offset, 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn writes_are_noted_from_when_it_is_asked_for_and_forgotten_when_taken() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("maps");
        let region = ram.iter().next().expect("one");
        ram.write_slice(&[1; 10], GuestAddress(0x5000))
            .expect("inside");
        let mut bits = [0; 4];
        region.bitmap().take(&mut bits);
        assert_eq!(bits, [0; 4]);
        region.bitmap().begin();
        ram.write_slice(&[1; 10], GuestAddress(0x3ffc))
            .expect("inside");
        ram.write_obj(1u64, GuestAddress(0x8_0000)).expect("inside");
        let mut list = crate::memory::io::IoVec::with_capacity(1);
        let slice = ram.get_slice(GuestAddress(0xf_f000), 1).expect("inside");
        assert!(list.push(&slice));
        region.bitmap().take(&mut bits);
        assert_eq!(bits, [0b11000, 0, 1, 1 << 63]);
        let mut again = [0; 4];
        region.bitmap().take(&mut again);
        assert_eq!(again, [0; 4]);
    }

    #[test]
    fn what_others_note_by_address_stands_in_the_logs_of_the_regions() {
        let high = 1 << 32;
        let ranges = [
            (GuestAddress(0), 0x10_0000),
            (GuestAddress(high), 0x10_0000),
        ];
        let ram = GuestRam::from_ranges(&ranges).expect("maps");
        assert!(PhysicalLog::new(&ram).is_none(), "nobody asks");
        ram.iter().for_each(|region| region.bitmap().begin());
        let log = PhysicalLog::new(&ram).expect("asked for");
        // The last is in no memory: whoever wrote it there did not.
        for address in [0, 0x4_1000, high + 0xf_f000, 0x8000_0000u64] {
            let page = address / 4096;
            let word = usize::try_from(page / 64).expect("small");
            log.bits[word].fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
        log.hand_over();
        log.hand_over();
        let taken = |region: usize| {
            let mut bits = [0; 4];
            let region = ram.iter().nth(region).expect("two");
            region.bitmap().take(&mut bits);
            bits
        };
        assert_eq!(taken(0), [1, 2, 0, 0]);
        assert_eq!(taken(1), [0, 0, 0, 1 << 63]);
    }
}
