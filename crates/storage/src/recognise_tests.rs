//! Marks by their specifications, and hostile bytes. What real tools make: `tests/matrix.rs`.

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::*;

const SIZE: u64 = 48 << 20;

/// A disk with these bytes at these places.
fn disk(pieces: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(SIZE).expect("a size");
    for (at, bytes) in pieces {
        file.as_file().write_all_at(bytes, *at).expect("written");
    }
    file
}

fn name(pieces: &[(u64, &[u8])]) -> String {
    let found = recognise(disk(pieces).as_file(), SIZE, 512).expect("a name");
    found.to_string()
}

#[test]
fn each_magic_number_of_the_table_gives_its_name() {
    for (expected, at, magic, _) in MAGICS {
        let found = name(&[(*at as u64, magic)]);
        assert!(found.starts_with(expected), "{found} for {expected}");
    }
}

#[test]
fn a_raid_superblock_of_each_version_is_known_by_the_kernels_definition() {
    let mut one = b"\xfc\x4e\x2b\xa9\x01\0\0\0".to_vec();
    one.resize(32, 0);
    one.extend(b"host:data\0");
    let at_end = ((SIZE / 512 - 16) & !7) * 512;
    for (at, version) in [(0, "1.1"), (4096, "1.2"), (at_end, "1.0")] {
        let expected = format!("Linux RAID member (metadata {version}) \"host:data\"");
        assert_eq!(name(&[(at, &one)]), expected);
    }
    let old = (SIZE & !0xffff) - (64 << 10);
    for magic in [b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc"] {
        assert_eq!(name(&[(old, magic)]), "Linux RAID member (metadata 0.90)");
    }
}

#[test]
fn a_mirror_with_its_superblock_at_the_end_is_a_member_before_it_is_a_file_system() {
    let one = b"\xfc\x4e\x2b\xa9\x01\0\0\0".as_slice();
    let at_end = ((SIZE / 512 - 16) & !7) * 512;
    let found = name(&[(0, b"XFSB"), (at_end, one)]);
    assert_eq!(found, "Linux RAID member (metadata 1.0), XFS file system");
}

#[test]
fn what_the_firmware_of_controllers_leaves_at_the_end_is_known_by_its_specification() {
    for (before, magic, expected) in [
        (512, b"\xde\x11\xde\x11".as_slice(), DDF),
        (257 * 512, b"\xde\x11\xde\x11", DDF),
        (1024, b"Intel Raid ISM Cfg Sig. 1.3.00", IMSM),
        (512, b"$XIDE$", LSI),
        (1024, b"NVIDIA  ", NVIDIA),
        (63 * 512, b"Promise Technology, Inc.", PROMISE),
    ] {
        assert_eq!(name(&[(SIZE - before, magic)]), expected);
    }
}

/// The four labels as ZFS On-Disk Specification has them: any of them is enough, and the pool's name is shown.
#[test]
fn a_zfs_member_is_known_by_any_of_its_four_labels_written_by_the_specification() {
    const LABEL: u64 = 256 << 10;
    let mut list = b"\x01\x01\0\0\0\0\0\0\0\0\0\x01".to_vec();
    list.extend(b"\0\0\0\x24\0\0\0\x20\0\0\0\x04name\0\0\0\x09\0\0\0\x01\0\0\0\x04tank");
    list.extend(b"\0\0\0\x24\0\0\0\x20\0\0\0\x09pool_guid\0\0\0\0\0\0\x08");
    for label in [0, LABEL, SIZE - 2 * LABEL, SIZE - LABEL] {
        let pieces: [(u64, &[u8]); 2] = [
            (label + (16 << 10), &list),
            (label + (128 << 10), b"\x0c\xb1\xba\0\0\0\0\0"),
        ];
        for some in [&pieces[..1], &pieces[..]] {
            assert_eq!(name(some), "ZFS member \"tank\"", "label at {label}");
        }
        assert_eq!(name(&pieces[1..]), "ZFS member", "label at {label}");
    }
}

#[test]
fn a_vmfs_volume_is_known_by_its_header_by_the_specification() {
    assert_eq!(
        name(&[(1 << 20, b"\x0d\xd0\x01\xc0")]),
        "VMware VMFS volume"
    );
    assert_eq!(
        name(&[(2 << 20, b"\x5e\xf1\xab\x2f")]),
        "VMware VMFS volume"
    );
}

#[test]
fn labels_are_for_people_and_do_no_harm_to_a_console() {
    assert_eq!(printable("data\u{1b}[2J\0rest"), "data[2J");
    assert_eq!(printable(&"x".repeat(99)).len(), LABEL_MAX);
}

/// An MBR of these entries: type, first sector, sectors.
fn boot_record(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (n, (kind, start, sectors)) in entries.iter().enumerate() {
        let entry = &mut sector[446 + 16 * n..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn a_chain_of_logical_partitions_that_goes_in_a_circle_ends() {
    let first = boot_record(&[(5, 2048, 4096)]);
    let circle = boot_record(&[(0x83, 8, 8), (5, 0, 4096)]);
    let found = recognise(
        disk(&[(0, &first), (2048 * 512, &circle)]).as_file(),
        SIZE,
        512,
    );
    assert_eq!(found.expect("a name").partitions.len(), 60);
}

/// A GPT of another program: entries of this size and number; the checksums are right.
fn gpt(count: u32, entry_bytes: u32) -> (Vec<u8>, Vec<u8>) {
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let held = u64::from(count.min(4)) * u64::from(entry_bytes.min(4096));
    let mut entries = vec![0; usize::try_from(held).expect("small")];
    entries[..16].fill(7);
    entries[32..40].copy_from_slice(&2048u64.to_le_bytes());
    entries[40..48].copy_from_slice(&4095u64.to_le_bytes());
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(92, 0);
    header[24..32].copy_from_slice(&1u64.to_le_bytes());
    header[72..80].copy_from_slice(&2u64.to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&entry_bytes.to_le_bytes());
    header[88..92].copy_from_slice(&crc.checksum(&entries).to_le_bytes());
    let sum = crc.checksum(&header).to_le_bytes();
    header[16..20].copy_from_slice(&sum);
    (header, entries)
}

#[test]
fn a_gpt_with_entries_of_another_size_is_read() {
    let (header, entries) = gpt(4, 256);
    let found = name(&[(512, &header), (1024, &entries), (1 << 20, b"XFSB")]);
    assert_eq!(found, "GPT partition table: 1 XFS file system");
}

/// Each of these made a reader of partition tables panic, or read for hours.
#[test]
fn a_gpt_whose_sizes_cannot_be_is_damaged_and_costs_nothing() {
    for (count, entry_bytes) in [
        (4, 127),
        (4, 0),
        (4, u32::MAX),
        (u32::MAX, 128),
        (1025, 128),
    ] {
        let (header, entries) = gpt(count, entry_bytes.max(64));
        let found = name(&[(512, &header), (1024, &entries)]);
        assert_eq!(
            found, "GPT partition table, damaged",
            "{count} {entry_bytes}"
        );
    }
}

proptest! {
    // Each disk is looked at whole.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_at_any_place_have_a_name_and_do_no_harm(
        pieces in prop::collection::vec((0u64..SIZE - 8192, prop::collection::vec(any::<u8>(), 1..600)), 0..4),
        magic in prop::sample::select(MAGICS),
        entries in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>()), 0..=4),
        is_small: bool,
    ) {
        let record = boot_record(&entries);
        let mut all: Vec<(u64, &[u8])> = vec![(0, &record), (magic.1 as u64, magic.2)];
        all.extend(pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice())));
        let file = disk(&all);
        // A disk that ends anywhere.
        let size = if is_small { pieces.first().map_or(1, |(at, _)| *at + 1) } else { SIZE };
        let found = recognise(file.as_file(), size, 512).expect("a name");
        assert!(!found.to_string().is_empty());
        assert!(found.partitions.len() <= 128);
        assert!(found.partitions.iter().all(|p| p.start + p.bytes <= size));
    }
}
