//! Memory that the guest does not use goes back to the host.
//!
//! Owns: the advice to the kernel, whatever is behind a mapping.
//! Refuses: anything but whole pages inside guest RAM; and huge pages that were reserved for this guest, which
//! somebody else would have taken when it needs them again. What is given back reads as zeros, or as what the file
//! behind a private mapping holds, until the guest writes it anew: it has said that it does not care.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::GuestRam;
use super::dirty::DirtyLog;

const PAGE: u64 = 4096;

/// Gives back what of `range` is RAM, in whole pages; returns how many bytes. What lies outside is left out.
pub(crate) fn give_back(ram: &GuestRam, range: &Range<u64>) -> io::Result<u64> {
    let mut bytes = 0;
    for region in ram.iter() {
        let first = region.start_addr().0;
        let start = range.start.max(first);
        let end = range.end.min(first + region.len());
        if start < end {
            bytes += drop_pages(region, start - first..end - first)?;
        }
    }
    Ok(bytes)
}

/// `range` is inside the region, counted from its start.
fn drop_pages(region: &GuestRegionMmap<DirtyLog>, range: Range<u64>) -> io::Result<u64> {
    // Pages of the mapping: it begins on one.
    let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    if start >= end || region.flags() & libc::MAP_HUGETLB != 0 {
        return Ok(0);
    }
    // Of a shared mapping the pages belong to the file: only a hole in it gives them back.
    let advice = match region.flags() & libc::MAP_SHARED {
        0 => libc::MADV_DONTNEED,
        _ => libc::MADV_REMOVE,
    };
    let offset = usize::try_from(start).expect("64-bit only");
    let bytes = usize::try_from(end - start).expect("64-bit only");
    // SAFETY: `start..end` lies inside the mapping, which `region` owns and which outlives the call. No Rust
    // reference into it exists; KVM and system calls under way fault in fresh pages.
    let done = unsafe { libc::madvise(region.as_ptr().add(offset).cast(), bytes, advice) };
    match done {
        0 => Ok(end - start),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

    const BYTES: usize = 16 * 4096;

    fn anonymous() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), BYTES), (GuestAddress(0x10_0000), BYTES)])
            .expect("maps")
    }

    /// One region on a file, mapped so.
    fn on(file: &File, flags: i32) -> GuestRam {
        let file = file.try_clone().expect("a descriptor");
        let mapping = MmapRegionBuilder::new(BYTES)
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .expect("maps");
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).expect("no overflow");
        GuestMemoryMmap::from_regions(vec![region]).expect("one region")
    }

    fn filled(ram: &GuestRam) {
        for region in ram.iter() {
            let bytes = vec![7; BYTES];
            ram.write_slice(&bytes, region.start_addr())
                .expect("inside");
        }
    }

    fn byte(ram: &GuestRam, at: u64) -> u8 {
        ram.read_obj(GuestAddress(at)).expect("inside")
    }

    /// Pages of the mapping that are in memory.
    fn resident(ram: &GuestRam) -> usize {
        let region = ram.iter().next().expect("a region");
        let mut pages = [0u8; BYTES / 4096];
        // SAFETY: the mapping has `BYTES` bytes, and `pages` a byte for each of its pages.
        let done =
            unsafe { libc::mincore(region.as_ptr().cast(), BYTES, pages.as_mut_ptr().cast()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn only_whole_pages_inside_a_range_go() {
        let ram = anonymous();
        filled(&ram);
        assert_eq!(give_back(&ram, &(4095..3 * 4096 + 1)).expect("gives"), 8192);
        assert_eq!(resident(&ram), 14);
        assert_eq!(
            [4095, 4096, 12287, 12288].map(|at| byte(&ram, at)),
            [7, 0, 0, 7]
        );
        assert_eq!(give_back(&ram, &(5..4096)).expect("nothing"), 0);
    }

    #[test]
    fn a_range_over_a_hole_gives_what_is_memory_on_both_sides() {
        let ram = anonymous();
        filled(&ram);
        let around = BYTES as u64 - 4096..0x10_1000;
        assert_eq!(give_back(&ram, &around).expect("gives"), 8192);
        assert_eq!(
            [0xe000, 0xf000, 0x10_0000, 0x10_1000].map(|at| byte(&ram, at)),
            [7, 0, 0, 7]
        );
        assert_eq!(
            give_back(&ram, &(0..u64::MAX)).expect("gives"),
            2 * BYTES as u64
        );
        assert_eq!(
            give_back(&ram, &(u64::MAX - 8192..u64::MAX)).expect("nothing"),
            0
        );
    }

    #[test]
    fn of_a_shared_file_the_hole_is_in_the_file() {
        let file = tempfile::tempfile_in("/dev/shm").expect("memory");
        file.set_len(BYTES as u64).expect("grows");
        let ram = on(&file, libc::MAP_SHARED);
        filled(&ram);
        let blocks = |file: &File| {
            use std::os::unix::fs::MetadataExt;
            file.metadata().expect("stat").blocks() * 512
        };
        assert_eq!(blocks(&file), BYTES as u64);
        assert_eq!(
            give_back(&ram, &(0..BYTES as u64 / 2)).expect("gives"),
            BYTES as u64 / 2
        );
        assert_eq!(blocks(&file), BYTES as u64 / 2);
        assert_eq!([0, 0x8000].map(|at| byte(&ram, at)), [0, 7]);
    }

    #[test]
    fn of_a_private_mapping_the_file_stays_whole() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[3; BYTES], 0).expect("writes");
        let ram = on(&file, libc::MAP_PRIVATE);
        filled(&ram);
        assert_eq!(give_back(&ram, &(0..4096)).expect("gives"), 4096);
        assert_eq!([0, 4096].map(|at| byte(&ram, at)), [3, 7]);
        let mut content = [0];
        file.read_exact_at(&mut content, 0).expect("reads");
        assert_eq!(content, [3]);
    }
}
