//! The MP table (Intel MultiProcessor Specification 1.4): processors and interrupt lines, no ACPI.
//!
//! Owns: its bytes, pure. Its kibibyte has room for the largest machine.

use crate::cpu::topology::Topology;
use crate::memory::layout;

const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
const SPECIFICATION: u8 = 4;
/// Version of the APICs we say we have; 0x14 is what KVM's local APIC reports.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOT: u8 = 2;
const INTERRUPT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Floating pointer and table as they stand at `layout::MP_TABLE`.
pub(crate) fn build(topology: Topology) -> Vec<u8> {
    let cpus = topology.cpus();
    // One above the last local APIC id.
    let io_apic = topology.apic_ids().last().map_or(0, |id| id + 1);
    let mut entries = Vec::new();
    for id in topology.apic_ids() {
        let boot = if id == 0 { PROCESSOR_BOOT } else { 0 };
        entries.extend([ENTRY_PROCESSOR, id, APIC_VERSION, PROCESSOR_ENABLED | boot]);
        // Signature, feature flags (an on-chip APIC), reserved: the guest asks CPUID instead.
        entries.extend(0x0600u32.to_le_bytes());
        entries.extend(0x0201u32.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([ENTRY_BUS, 0]);
    entries.extend(*b"ISA   ");
    entries.extend([ENTRY_IO_APIC, io_apic, IO_APIC_VERSION, 1]);
    entries.extend(
        u32::try_from(layout::IO_APIC)
            .expect("below 4 GiB")
            .to_le_bytes(),
    );
    // Flags 0: polarity and trigger as ISA has them, which is high and edge.
    for line in 0..u8::try_from(layout::VIRTIO_IRQS.end).expect("24 pins") {
        entries.extend([ENTRY_IO_INTERRUPT, INTERRUPT, 0, 0, 0, line, io_apic, line]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, 0, 0, 0, 0]);
    entries.extend([
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        0,
        0,
        ALL_LOCAL_APICS,
        1,
    ]);

    let count = u16::from(cpus) + 1 + 1 + 24 + 2;
    let mut table = header(entries.len(), count);
    table.extend(entries);
    table[7] = checksum(&table);
    let mut out = floating_pointer();
    out.extend(table);
    out
}

fn floating_pointer() -> Vec<u8> {
    let table = u32::try_from(layout::MP_TABLE.start).expect("below 1 MiB") + 16;
    let mut out = Vec::with_capacity(POINTER_BYTES);
    out.extend(*b"_MP_");
    out.extend(table.to_le_bytes());
    // Length in units of 16 bytes, version, checksum, five feature bytes (no default configuration).
    out.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    out[10] = checksum(&out);
    out
}

fn header(entry_bytes: usize, count: u16) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + entry_bytes).expect("a kibibyte");
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend(*b"PCMP");
    out.extend(length.to_le_bytes());
    out.extend([SPECIFICATION, 0]);
    out.extend(*b"SIFR    ");
    out.extend(*b"MICROVM     ");
    // No OEM table.
    out.extend([0; 6]);
    out.extend(count.to_le_bytes());
    out.extend(
        u32::try_from(layout::LOCAL_APIC)
            .expect("below 4 GiB")
            .to_le_bytes(),
    );
    // No extended table.
    out.extend([0; 4]);
    out
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CPUS_MAX;
    use types::vm::Topology as Asked;

    fn plain(cpus: u8) -> Topology {
        Topology::new(cpus, None).expect("a sane count")
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
    }

    #[test]
    fn pointer_and_table_sum_to_zero_and_the_pointer_finds_the_table() {
        for cpus in 1..=CPUS_MAX {
            let bytes = build(plain(cpus));
            let (pointer, table) = bytes.split_at(16);
            assert_eq!((sum(pointer), sum(table)), (0, 0));
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
            let at = u32::from_le_bytes(pointer[4..8].try_into().expect("4 bytes"));
            assert_eq!(u64::from(at), layout::MP_TABLE.start + 16);
            let room = layout::GENERATION - layout::MP_TABLE.start;
            assert!(
                bytes.len() as u64 <= room,
                "{} of {room} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn the_count_of_entries_is_what_a_reader_counts() {
        let bytes = build(plain(3));
        let table = &bytes[16..];
        let (mut at, mut count, mut processors) = (HEADER_BYTES, 0, 0);
        while at < table.len() {
            let processor = table[at] == ENTRY_PROCESSOR;
            processors += usize::from(processor);
            at += if processor { 20 } else { 8 };
            count += 1;
        }
        assert_eq!((at, processors), (table.len(), 3));
        assert_eq!(count, u16::from_le_bytes([table[34], table[35]]));
    }

    #[test]
    fn processors_have_the_ids_of_their_groups_and_the_io_apic_the_next_one() {
        let asked = Asked {
            sockets: 2,
            cores: 3,
            threads: 1,
        };
        let bytes = build(Topology::new(6, Some(asked)).expect("2 * 3"));
        let entries = &bytes[16 + HEADER_BYTES..];
        let ids: Vec<u8> = entries.chunks(20).take(6).map(|entry| entry[1]).collect();
        assert_eq!(ids, [0, 1, 2, 4, 5, 6]);
        // After the processors the bus, of 8 bytes, then the I/O APIC.
        let io_apic = &entries[6 * 20 + 8..];
        assert_eq!(io_apic[..2], [ENTRY_IO_APIC, 7]);
    }
}
