//! Guest memory: one anonymous mapping per range of guest-physical RAM.
//!
//! Owns: the mappings, vectored I/O on them, the shared chunk map.
//! Refuses: Rust references into memory that somebody else writes. Everything goes through
//! `VolatileSlice`, a raw pointer or an atomic.
#![allow(unsafe_code)]

pub(crate) mod io;
pub(crate) mod layout;
pub(crate) mod shared;

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// All RAM of one guest.
pub(crate) type GuestRam = GuestMemoryMmap<()>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("memory of {0} MiB is outside {min} to {max} MiB", min = layout::MEMORY_MIB_MIN, max = layout::MEMORY_MIB_MAX)]
    Size(u64),
    #[error("map {0} MiB of guest memory")]
    Map(u64, #[source] vm_memory::mmap::FromRangesError),
}

/// Maps `mib` MiB of zeroed RAM, in one piece below the device hole and one above 4 GiB.
pub(crate) fn allocate(mib: u64) -> Result<Arc<GuestRam>, MemoryError> {
    let ranges = layout::ram_ranges(mib).ok_or(MemoryError::Size(mib))?;
    let ranges: Vec<(GuestAddress, usize)> = ranges
        .iter()
        .map(|r| {
            (
                GuestAddress(r.start),
                usize::try_from(r.end - r.start).expect("64-bit only"),
            )
        })
        .collect();
    let ram = GuestRam::from_ranges(&ranges).map_err(|e| MemoryError::Map(mib, e))?;
    for region in ram.iter() {
        advise(region);
    }
    Ok(Arc::new(ram))
}

/// Guest memory never goes into a core dump. Huge pages are asked for: a guest's boot touches most of
/// what it gets, and one fault of 2 MiB is far cheaper than 512 small ones under nested paging.
fn advise(region: &vm_memory::GuestRegionMmap<()>) {
    let (start, bytes) = (region.as_ptr(), region.size());
    for advice in [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
        // SAFETY: `region` owns exactly this mapping and outlives the call; neither advice changes
        // its content. A kernel that knows no huge pages refuses, which costs nothing but speed.
        unsafe { libc::madvise(start.cast(), bytes, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryRegion;

    #[test]
    fn memory_above_the_device_hole_lands_above_four_gibibytes() {
        let ram = allocate(4096).expect("overcommitted");
        let starts: Vec<u64> = ram.iter().map(|r| r.start_addr().0).collect();
        assert_eq!(starts, [0, 4 << 30]);
        assert_eq!(ram.iter().map(|r| r.len()).sum::<u64>(), 4 << 30);
    }
}
