//! Guest memory: one anonymous mapping per range of guest-physical RAM, of the pages that were asked for.
//!
//! Owns: the mappings, vectored I/O on them, the shared chunk map.
//! Refuses: Rust references into memory that somebody else writes. Everything goes through
//! `VolatileSlice`, a raw pointer or an atomic.
#![allow(unsafe_code)]

pub(crate) mod dirty;
pub(crate) mod image;
pub(crate) mod io;
pub(crate) mod layout;
pub(crate) mod missing;
pub(crate) mod reclaim;
pub(crate) mod shared;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use types::vm::HugePages;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use self::dirty::DirtyLog;
use crate::snapshot::memory::Run;

/// All RAM of one guest.
pub(crate) type GuestRam = GuestMemoryMmap<DirtyLog>;
/// A page.
pub(crate) use dirty::PAGE;

/// Memory in reserved huge pages comes in whole ones.
const HUGE_MIB: u64 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("memory of {0} MiB is outside {min} to {max} MiB", min = layout::MEMORY_MIB_MIN, max = layout::MEMORY_MIB_MAX)]
    Size(u64),
    #[error(
        "{0} MiB are no whole number of huge pages: make `memory_mib` a multiple of {HUGE_MIB}"
    )]
    Odd(u64),
    #[error("map {0} MiB of guest memory")]
    Map(u64, #[source] MmapRegionError),
    #[error(
        "the host has no {pages} free huge pages for {mib} MiB of guest memory: raise vm.nr_hugepages, or ask for `huge_pages` \"transparent\"",
        pages = mib / HUGE_MIB
    )]
    NoHugePages {
        mib: u64,
        #[source]
        source: MmapRegionError,
    },
    #[error("watch guest memory for missing pages")]
    Userfault(#[source] sys::error::Error),
    #[error("put {0} MiB of guest memory together")]
    Collect(u64, #[source] vm_memory::GuestRegionCollectionError),
}

/// Maps `mib` MiB of zeroed RAM, in one piece below the device hole and one above 4 GiB.
pub(crate) fn allocate(mib: u64, pages: HugePages) -> Result<Arc<GuestRam>, MemoryError> {
    let ranges = check(mib, pages)?;
    let mut regions = Vec::with_capacity(ranges.len());
    for range in &ranges {
        let bytes = usize::try_from(range.end - range.start).expect("64-bit only");
        let mapping = map(bytes, pages).map_err(|source| refused(mib, pages, source))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
        let region = region.expect("the ranges of RAM end far below the end of addresses");
        advise(&region, pages);
        regions.push(region);
    }
    let ram = GuestRam::from_regions(regions).map_err(|e| MemoryError::Collect(mib, e))?;
    Ok(Arc::new(ram))
}

/// The ranges of so much memory, if there may be so much of these pages.
pub(crate) fn check(mib: u64, pages: HugePages) -> Result<Vec<Range<u64>>, MemoryError> {
    let ranges = layout::ram_ranges(mib).ok_or(MemoryError::Size(mib))?;
    if pages == HugePages::Reserved2Mi && !mib.is_multiple_of(HUGE_MIB) {
        return Err(MemoryError::Odd(mib));
    }
    Ok(ranges)
}

/// Maps a file of a guest's RAM, its ranges one after the other, so that what the guest writes stays with
/// it: clones of one snapshot share what none of them has written.
pub(crate) fn map_private(mib: u64, file: &Arc<File>) -> Result<Arc<GuestRam>, MemoryError> {
    let ranges = layout::ram_ranges(mib).ok_or(MemoryError::Size(mib))?;
    let mut regions = Vec::with_capacity(ranges.len());
    let mut offset = 0;
    for range in &ranges {
        let bytes = usize::try_from(range.end - range.start).expect("64-bit only");
        let mapping = MmapRegionBuilder::new_with_bitmap(bytes, DirtyLog::with_len(bytes))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
            .build()
            .map_err(|source| MemoryError::Map(mib, source))?;
        offset += range.end - range.start;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
        let region = region.expect("the ranges of RAM end far below the end of addresses");
        advise(&region, HugePages::None);
        regions.push(region);
    }
    let ram = GuestRam::from_regions(regions).map_err(|e| MemoryError::Collect(mib, e))?;
    Ok(Arc::new(ram))
}

/// Whether what [`resident`] leaves out is zero: a host with swap may have put pages there.
pub(crate) fn is_never_swapped() -> bool {
    // SAFETY: all zeros are a valid `sysinfo`: it consists of numbers.
    let mut about: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills `about`, which lives across the call.
    let asked = unsafe { libc::sysinfo(&raw mut about) };
    asked == 0 && about.totalswap == 0
}

/// Has the kernel begin to read these pages of the files behind `ram`, so that many are on their way at once.
pub(crate) fn expect(ram: &GuestRam, runs: &[Run]) -> std::io::Result<()> {
    advise_runs(ram, runs, libc::MADV_WILLNEED)
}

/// Reads these pages of the files behind `ram` and maps them.
pub(crate) fn populate(ram: &GuestRam, runs: &[Run]) -> std::io::Result<()> {
    advise_runs(ram, runs, libc::MADV_POPULATE_READ)
}

/// `runs` counts pages of all ranges of RAM, one after the other. What lies outside is left out.
fn advise_runs(ram: &GuestRam, runs: &[Run], advice: i32) -> std::io::Result<()> {
    let mut start = 0;
    for region in ram.iter() {
        let count = region.len() / PAGE as u64;
        for run in runs {
            let first = run.first.max(start);
            let end = run.first.saturating_add(run.count).min(start + count);
            if first >= end {
                continue;
            }
            let at = usize::try_from(first - start).expect("64-bit only") * PAGE;
            let bytes = usize::try_from(end - first).expect("64-bit only") * PAGE;
            // SAFETY: the range lies inside the mapping that `region` owns, which outlives the call. Neither
            // advice changes what is read there.
            let done = unsafe { libc::madvise(region.as_ptr().add(at).cast(), bytes, advice) };
            if done != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        start += count;
    }
    Ok(())
}

/// Which pages of a region have content of their own, a byte a page: those that are not there are zero, or in
/// swap, see [`is_never_swapped`]. Only anonymous memory can be asked.
pub(crate) fn resident(
    region: &GuestRegionMmap<DirtyLog>,
    offset: usize,
    pages: &mut [u8],
) -> std::io::Result<()> {
    let bytes = pages.len() * PAGE;
    if offset
        .checked_add(bytes)
        .is_none_or(|end| end > region.size())
    {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range lies in the mapping that `region` owns, and the kernel writes one byte for each page
    // of it, which is the length of `pages`.
    let done = unsafe {
        let start = region.as_ptr().add(offset).cast();
        libc::mincore(start, bytes, pages.as_mut_ptr())
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Anonymous memory. What is reserved is reserved here: a guest must not die on its first touch of a page
/// that the host no longer has. All else is given as it is touched.
fn map(bytes: usize, pages: HugePages) -> Result<MmapRegion<DirtyLog>, MmapRegionError> {
    let kind = match pages {
        HugePages::None | HugePages::Transparent => libc::MAP_NORESERVE,
        HugePages::Reserved2Mi => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
    };
    MmapRegionBuilder::new_with_bitmap(bytes, DirtyLog::with_len(bytes))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | kind)
        .with_hugetlbfs(pages == HugePages::Reserved2Mi)
        .build()
}

/// ENOMEM: too few are free. EINVAL: the kernel has none of this size. ENOSYS: it knows none at all.
fn refused(mib: u64, pages: HugePages, source: MmapRegionError) -> MemoryError {
    let cause = match &source {
        MmapRegionError::Mmap(error) => error.raw_os_error(),
        _ => None,
    };
    match (pages, cause) {
        (HugePages::Reserved2Mi, Some(libc::ENOMEM | libc::EINVAL | libc::ENOSYS)) => {
            MemoryError::NoHugePages { mib, source }
        }
        _ => MemoryError::Map(mib, source),
    }
}

/// Guest memory never goes into a core dump. Huge pages are asked for where they may be: a guest's boot
/// touches most of what it gets, and one fault of 2 MiB is far cheaper than 512 small ones under nested
/// paging.
fn advise(region: &GuestRegionMmap<DirtyLog>, pages: HugePages) {
    let (start, bytes) = (region.as_ptr(), region.size());
    let size = match pages {
        HugePages::None => Some(libc::MADV_NOHUGEPAGE),
        HugePages::Transparent => Some(libc::MADV_HUGEPAGE),
        HugePages::Reserved2Mi => None,
    };
    for advice in [Some(libc::MADV_DONTDUMP), size].into_iter().flatten() {
        // SAFETY: `region` owns exactly this mapping and outlives the call; none of the advice changes
        // its content. A kernel that knows no huge pages refuses, which costs nothing but speed.
        unsafe { libc::madvise(start.cast(), bytes, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_above_the_device_hole_lands_above_four_gibibytes() {
        let ram = allocate(4096, HugePages::Transparent).expect("overcommitted");
        let starts: Vec<u64> = ram.iter().map(|r| r.start_addr().0).collect();
        assert_eq!(starts, [0, 4 << 30]);
        assert_eq!(ram.iter().map(|r| r.len()).sum::<u64>(), 4 << 30);
    }

    /// Where the kernel keeps its flags of a mapping that holds `address`.
    fn flags_of(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("the kernel's account");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(a, b)| (number(a), number(b))) {
                inside = (from..to).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return format!("{flags} ");
            }
        }
        String::new()
    }

    #[test]
    fn a_guest_that_asks_for_small_pages_gets_no_huge_ones() {
        let cases = [(HugePages::None, " nh "), (HugePages::Transparent, " hg ")];
        for (pages, flag) in cases {
            let ram = allocate(32, pages).expect("memory");
            let start = ram.iter().next().expect("a region").as_ptr() as usize;
            let flags = flags_of(start);
            // A kernel without huge pages, or one that hides its account, shows neither.
            assert!(
                flags.contains(flag) || !(flags.contains(" nh ") || flags.contains(" hg ")),
                "{pages:?}: {flags}"
            );
        }
    }

    #[test]
    fn reserved_pages_that_the_host_does_not_have_are_an_error_that_says_what_to_raise() {
        // More than any host that runs this test has set aside.
        let mib = 1 << 20;
        let error = allocate(mib, HugePages::Reserved2Mi).expect_err("no host has these");
        assert!(
            matches!(error, MemoryError::NoHugePages { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("no 524288 free huge pages") && text.contains("vm.nr_hugepages"),
            "{text}"
        );
        assert!(matches!(
            allocate(33, HugePages::Reserved2Mi),
            Err(MemoryError::Odd(33))
        ));
    }

    #[test]
    fn what_the_kernel_says_decides_whether_huge_pages_are_the_reason() {
        let says = |errno| MmapRegionError::Mmap(std::io::Error::from_raw_os_error(errno));
        for errno in [libc::ENOMEM, libc::EINVAL, libc::ENOSYS] {
            let reserved = refused(64, HugePages::Reserved2Mi, says(errno));
            assert!(matches!(reserved, MemoryError::NoHugePages { mib: 64, .. }));
            let plain = refused(64, HugePages::None, says(errno));
            assert!(matches!(plain, MemoryError::Map(64, _)));
        }
        let other = refused(64, HugePages::Reserved2Mi, says(libc::EPERM));
        assert!(matches!(other, MemoryError::Map(64, _)));
    }
}
