//! The guest-physical address map.
//!
//! Owns: every fixed address of the machine. Refuses: overlap; the tests check it.

use std::ops::Range;

/// The least a Linux guest comes up in, with its kernel and initramfs.
pub(crate) const MEMORY_MIB_MIN: u64 = 32;
/// A bound that catches a wrong unit in a specification; no machine we know holds as much.
pub(crate) const MEMORY_MIB_MAX: u64 = 4 << 20;

/// Where RAM pauses for devices: 3.25 GiB to 4 GiB.
pub(crate) const HOLE: Range<u64> = 0xd000_0000..0x1_0000_0000;

/// Of a bzImage: the descriptor table, its boot parameters (the "zero page"), and page tables that map
/// the first 4 GiB onto themselves.
pub(crate) const GDT: u64 = 0x500;
pub(crate) const ZERO_PAGE: u64 = 0x8000;
pub(crate) const PAGE_TABLES: Range<u64> = 0x9000..0xf000;
/// PVH start info (`hvm_start_info`), its module list and its memory map.
pub(crate) const START_INFO: u64 = 0x6000;
pub(crate) const MODULE_LIST: u64 = 0x6100;
pub(crate) const MEMORY_MAP: u64 = 0x7000;
/// The kernel command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The MP table is in the last KiB of conventional memory, which the memory map leaves out: one of
/// the three places where the MP specification (section 4) has it looked for.
pub(crate) const MP_TABLE: Range<u64> = 0x9_fc00..0xa_0000;
/// The generation of a restored machine, 16 random bytes; zeros in one that has booted. The end of the
/// kibibyte that the memory map leaves out, behind the MP table.
pub(crate) const GENERATION: u64 = MP_TABLE.end - 16;
/// RAM goes on at 1 MiB, and the kernel is loaded there or above.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// First virtio-mmio device; each has one page.
pub(crate) const VIRTIO: u64 = HOLE.start;
pub(crate) const VIRTIO_STRIDE: u64 = 0x1000;
pub(crate) const IO_APIC: u64 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for real mode.
pub(crate) const TSS: u64 = 0xfffb_d000;

/// Interrupt lines of virtio devices: 0 to 4 belong to ISA parts (4 is the serial port), and the
/// I/O APIC has 24 pins.
pub(crate) const VIRTIO_IRQS: Range<u32> = 5..24;
pub(crate) const SERIAL_IRQ: u32 = 4;

/// Pmem images begin on a huge page's boundary and have whole ones: what a guest's kernel can map, and a host's
/// too.
pub(crate) const PMEM_UNIT: u64 = 2 << 20;
/// Nor does RAM share a memory section of Linux (128 MiB on x86-64) with one.
const PMEM_APART: u64 = 128 << 20;
/// Addresses have at most so many bits without five-level page tables, on any processor.
pub(crate) const ADDRESS_BITS_MAX: u32 = 46;

/// Where images of these lengths are put: above all RAM, one after the other. `None`: there is no room below
/// `end`, the first address that the guest's processor does not have.
pub(crate) fn pmem_starts(mib: u64, lengths: &[u64], end: u64) -> Option<Vec<u64>> {
    let mut at = ram_ranges(mib)?.last()?.end.max(HOLE.end);
    let mut starts = Vec::with_capacity(lengths.len());
    for length in lengths {
        let start = at.checked_next_multiple_of(PMEM_APART)?;
        at = start.checked_add(*length).filter(|at| *at <= end)?;
        starts.push(start);
    }
    Some(starts)
}

/// The ranges of RAM of a guest with `mib` MiB. `None`: too little or too much.
pub(crate) fn ram_ranges(mib: u64) -> Option<Vec<Range<u64>>> {
    if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib) {
        return None;
    }
    let bytes = mib << 20;
    let low = bytes.min(HOLE.start);
    let above = HOLE.end..HOLE.end + (bytes - low);
    let ranges = [0..low, above].into_iter();
    Some(ranges.filter(|r| !r.is_empty()).collect())
}

/// End of the RAM below the hole: where the initramfs is put.
pub(crate) fn low_ram_end(mib: u64) -> u64 {
    (mib << 20).min(HOLE.start)
}

/// Which ranges the guest may use as RAM: what there is, without the MP table and the ISA hole.
pub(crate) fn usable_ranges(mib: u64) -> Option<Vec<Range<u64>>> {
    let ram = ram_ranges(mib)?;
    let mut usable = vec![0..MP_TABLE.start, HIGH_RAM..ram[0].end];
    usable.extend_from_slice(&ram[1..]);
    Some(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_addresses_do_not_overlap() {
        let virtio = VIRTIO..VIRTIO + u64::from(VIRTIO_IRQS.end) * VIRTIO_STRIDE;
        let mut ranges = [
            GDT..GDT + 5 * 8,
            ZERO_PAGE..ZERO_PAGE + 4096,
            PAGE_TABLES,
            START_INFO..START_INFO + 56,
            MODULE_LIST..MODULE_LIST + 32,
            MEMORY_MAP..MEMORY_MAP + 16 * 24,
            COMMAND_LINE..COMMAND_LINE + 2048,
            MP_TABLE,
            virtio,
            IO_APIC..IO_APIC + 0x1000,
            LOCAL_APIC..LOCAL_APIC + 0x1000,
            TSS..TSS + 0x3000,
        ];
        ranges.sort_by_key(|r| r.start);
        assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start));
    }

    #[test]
    fn pmem_images_lie_above_all_ram_apart_and_inside_the_address_space() {
        let unit = PMEM_UNIT;
        let end = 1 << 40;
        let starts = pmem_starts(256, &[unit, 3 * unit], end).expect("room");
        assert_eq!(starts, [4 << 30, (4 << 30) + PMEM_APART]);
        let ram = ram_ranges(5000).expect("in range");
        let starts = pmem_starts(5000, &[unit], end).expect("room");
        assert!(starts[0] >= ram[1].end && starts[0].is_multiple_of(PMEM_APART));
        assert_eq!(
            pmem_starts(256, &[end - (4 << 30)], end).map(|s| s[0]),
            Some(4 << 30)
        );
        assert_eq!(pmem_starts(256, &[end - (4 << 30), unit], end), None);
        assert_eq!(pmem_starts(256, &[u64::MAX], u64::MAX), None);
    }

    #[test]
    fn all_memory_but_the_isa_hole_is_usable() {
        for mib in [32, 1024, 3328, 3329, 8192] {
            let bytes: u64 = usable_ranges(mib)
                .expect("in range")
                .iter()
                .map(|r| r.end - r.start)
                .sum();
            assert_eq!(bytes, (mib << 20) - (HIGH_RAM - MP_TABLE.start));
        }
        assert_eq!(ram_ranges(31), None);
        assert_eq!(ram_ranges(MEMORY_MIB_MAX + 1), None);
    }
}
