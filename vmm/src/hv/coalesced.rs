//! Writes of a guest that no vCPU stops for: KVM puts them into a ring ("coalesced MMIO").
//!
//! Owns: the ring's mapping, and which write is the oldest in it.
//! Refuses: to choose registers. Which of them can wait is for the device to say.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;

/// The ring is one page of x86.
const PAGE: usize = 4096;
/// Places in the ring (KVM_COALESCED_MMIO_MAX); KVM leaves one of them free.
const PLACES: u32 = {
    let places = (PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>();
    assert!(places == 170);
    170
};

/// One write as the guest made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) address: u64,
    data: [u8; 8],
    length: usize,
}

impl Write {
    pub(crate) fn data(&self) -> &[u8] {
        &self.data[..self.length]
    }
}

/// The ring of one VM. Every vCPU offers the same page; it is mapped once.
#[derive(Debug)]
pub(crate) struct Ring {
    page: NonNull<kvm_coalesced_mmio_ring>,
    /// Place of the oldest write. The kernel never changes it.
    first: u32,
}

// SAFETY: the mapping belongs to this value alone and does not depend on the thread that made it.
unsafe impl Send for Ring {}

impl Ring {
    /// `vcpu` is any vCPU of the VM.
    pub(crate) fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        Self::map(vcpu.as_raw_fd())
    }

    fn map(descriptor: RawFd) -> io::Result<Self> {
        let offset = i64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * 4096;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let page = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let null = std::ptr::null_mut();
            libc::mmap(null, PAGE, protection, libc::MAP_SHARED, descriptor, offset)
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).expect("mmap without MAP_FIXED never returns page 0");
        Ok(Self { page, first: 0 })
    }

    /// The oldest write; its place is free from then on.
    pub(crate) fn take(&mut self) -> Option<Write> {
        let page = self.page.as_ptr();
        // SAFETY: `page` is a mapping of a whole page that `self` owns, and both fields are aligned in
        // it. The kernel is the only other writer, and an `AtomicU32` may be shared with one.
        let (first, last) = unsafe {
            (
                AtomicU32::from_ptr(&raw mut (*page).first),
                AtomicU32::from_ptr(&raw mut (*page).last),
            )
        };
        let last = last.load(Ordering::Acquire);
        if last == self.first || last >= PLACES {
            return None;
        }
        // SAFETY: `self.first` is below `PLACES`, so the entry is inside the page. The kernel has
        // written it, because `last` was loaded with acquire ordering, and leaves it alone until
        // `first` has moved on.
        let entry = unsafe {
            let entries = page.add(1).cast::<kvm_coalesced_mmio>();
            entries.add(self.first as usize).read_volatile()
        };
        self.first = (self.first + 1) % PLACES;
        first.store(self.first, Ordering::Release);
        Some(Write {
            address: entry.phys_addr,
            data: entry.data,
            length: entry.data.len().min(entry.len as usize),
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`, and nothing refers to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const AT: u64 = KVM_COALESCED_MMIO_PAGE_OFFSET as u64 * 4096;

    /// A file in the place of a vCPU, and the kernel's part of the ring.
    struct Kernel(File);

    impl Kernel {
        fn new() -> Self {
            let file = tempfile::tempfile().expect("temporary file");
            file.set_len(AT + PAGE as u64).expect("grows");
            Self(file)
        }

        fn write(&self, place: u32, address: u64, data: &[u8]) {
            let mut entry = [address.to_le_bytes(), [0; 8], [0; 8]].concat();
            entry[8] = u8::try_from(data.len()).expect("short");
            entry[16..16 + data.len()].copy_from_slice(data);
            let at = AT + 8 + u64::from(place) * 24;
            self.0.write_all_at(&entry, at).expect("writes");
            self.end((place + 1) % PLACES);
        }

        fn end(&self, last: u32) {
            let last = last.to_le_bytes();
            self.0.write_all_at(&last, AT + 4).expect("writes");
        }

        fn first(&self) -> u32 {
            let mut first = [0; 4];
            self.0.read_exact_at(&mut first, AT).expect("reads");
            u32::from_le_bytes(first)
        }
    }

    #[test]
    fn writes_come_out_as_they_were_made_and_their_places_are_free_again() {
        let kernel = Kernel::new();
        let mut ring = Ring::map(kernel.0.as_raw_fd()).expect("maps");
        assert_eq!(ring.take(), None);
        for round in 0..3 * PLACES {
            let place = round % PLACES;
            kernel.write(place, u64::from(round), &round.to_le_bytes());
            let write = ring.take().expect("a write");
            assert_eq!(
                (write.address, write.data()),
                (u64::from(round), &round.to_le_bytes()[..])
            );
            assert_eq!(kernel.first(), (place + 1) % PLACES);
            assert_eq!(ring.take(), None);
        }
    }

    #[test]
    fn an_end_outside_the_ring_is_no_write() {
        let kernel = Kernel::new();
        let mut ring = Ring::map(kernel.0.as_raw_fd()).expect("maps");
        for last in [PLACES, u32::MAX] {
            kernel.end(last);
            assert_eq!(ring.take(), None);
        }
    }
}
