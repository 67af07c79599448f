//! qcow2 images made byte by byte: good ones of every kind, and hostile ones.
//!
//! Owns: a writer of small images. Refuses: what qemu-img makes (`tests/disk.rs` compares with that).

use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Clusters of 512 bytes: an L2 table has 64 entries, for 32 KiB of the disk.
const BITS: u32 = 9;
const CLUSTER: usize = 1 << BITS;
const CLUSTERS_A_TABLE: usize = CLUSTER / 8;

/// One cluster of a disk, as an image can have it.
#[derive(Debug, Clone)]
enum Cluster {
    Nowhere,
    /// Version 3's flag, on a cluster that has a place.
    Zeroed,
    Plain(u8),
    Compressed(u8),
}

/// An image as QEMU would lay it out, with one reference count table less.
fn image(version: u32, compression: Compression, clusters: &[Cluster]) -> Vec<u8> {
    let tables = clusters.len().div_ceil(CLUSTERS_A_TABLE);
    let l1_clusters = (tables * 8).div_ceil(CLUSTER);
    let mut file = vec![0; (1 + l1_clusters + tables) * CLUSTER];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut file, 0, &MAGIC);
    put(&mut file, 4, &version.to_be_bytes());
    put(&mut file, 20, &BITS.to_be_bytes());
    put(
        &mut file,
        24,
        &((clusters.len() * CLUSTER) as u64).to_be_bytes(),
    );
    put(
        &mut file,
        36,
        &u32::try_from(tables).expect("few").to_be_bytes(),
    );
    put(&mut file, 40, &(CLUSTER as u64).to_be_bytes());
    if version == 3 {
        put(&mut file, 100, &112u32.to_be_bytes());
        if compression == Compression::Zstd {
            put(&mut file, 72, &COMPRESSION_TYPE.to_be_bytes());
            file[104] = 1;
        }
    }
    for table in 0..tables {
        let place = (1 + l1_clusters + table) * CLUSTER;
        put(
            &mut file,
            CLUSTER + table * 8,
            &(place as u64 | 1 << 63).to_be_bytes(),
        );
    }
    for (number, cluster) in clusters.iter().enumerate() {
        let entry = entry(&mut file, cluster, compression);
        let at = (1 + l1_clusters) * CLUSTER + number * 8;
        put(&mut file, at, &entry.to_be_bytes());
    }
    file
}

/// Puts a cluster behind the file, and gives its entry.
fn entry(file: &mut Vec<u8>, cluster: &Cluster, compression: Compression) -> u64 {
    let packed = match cluster {
        Cluster::Nowhere => return 0,
        Cluster::Zeroed => return ZERO | CLUSTER as u64,
        Cluster::Plain(seed) => {
            file.resize(file.len().next_multiple_of(CLUSTER), 0);
            let offset = file.len() as u64;
            file.extend(content(*seed));
            return offset | 1 << 63;
        }
        Cluster::Compressed(seed) => pack(&content(*seed), compression),
    };
    let offset = file.len() as u64;
    file.extend(&packed);
    let sectors = (offset % SECTOR + packed.len() as u64 - 1) / SECTOR;
    COMPRESSED | sectors << (62 - (BITS - 8)) | offset
}

fn content(seed: u8) -> Vec<u8> {
    (0..CLUSTER)
        .map(|i| seed.wrapping_add(u8::try_from(i / 9).expect("a cluster is short")) | 1)
        .collect()
}

fn pack(plain: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Deflate => {
            let level = flate2::Compression::best();
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(plain).expect("memory");
            encoder.finish().expect("memory")
        }
        Compression::Zstd => zstd::bulk::compress(plain, 3).expect("memory"),
    }
}

fn expected(clusters: &[Cluster]) -> Vec<u8> {
    let bytes = |cluster: &Cluster| match cluster {
        Cluster::Nowhere | Cluster::Zeroed => vec![0; CLUSTER],
        Cluster::Plain(seed) | Cluster::Compressed(seed) => content(*seed),
    };
    clusters.iter().flat_map(bytes).collect()
}

fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("temp");
    file.write_all(bytes).expect("write");
    file
}

/// Reads the whole disk in pieces of `piece` bytes, leaving out what is said to be zeros.
fn read_all(bytes: &[u8], piece: u64) -> Result<Vec<u8>, Qcow2Error> {
    let file = on_disk(bytes);
    let mut image = Qcow2::open(&file)?;
    let mut out = vec![0; usize::try_from(image.bytes()).expect("small")];
    let mut at = 0;
    while at < image.bytes() {
        let data = image.next_data(at)?;
        assert!(data >= at);
        at = data / piece * piece;
        if at >= image.bytes() {
            break;
        }
        let end = (at + piece).min(image.bytes());
        let index = |n| usize::try_from(n).expect("small");
        image.read(at, &mut out[index(at)..index(end)])?;
        at = end;
    }
    Ok(out)
}

fn refused(bytes: &[u8]) -> String {
    read_all(bytes, 4096).expect_err("hostile").to_string()
}

fn some() -> Vec<Cluster> {
    let mut all = vec![Cluster::Nowhere; 3 * CLUSTERS_A_TABLE];
    all[1] = Cluster::Plain(7);
    all[2] = Cluster::Compressed(9);
    all[3] = Cluster::Compressed(90);
    all[70] = Cluster::Plain(1);
    all
}

fn edited(at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = image(3, Compression::Deflate, &some());
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Where [`some`] has its first L2 table.
const TABLE: usize = 2 * CLUSTER;

fn with_entry(cluster: usize, entry: u64) -> Vec<u8> {
    edited(TABLE + cluster * 8, &entry.to_be_bytes())
}

#[test]
fn both_versions_and_both_compressions_read_as_what_was_written() {
    let clusters = some();
    for (version, compression) in [
        (2, Compression::Deflate),
        (3, Compression::Deflate),
        (3, Compression::Zstd),
    ] {
        let bytes = image(version, compression, &clusters);
        assert_eq!(read_all(&bytes, 4096).expect("reads"), expected(&clusters));
    }
}

#[test]
fn zeros_are_known_without_being_read() {
    let bytes = image(3, Compression::Deflate, &some());
    let file = on_disk(&bytes);
    let mut image = Qcow2::open(&file).expect("opens");
    let cluster = CLUSTER as u64;
    assert_eq!(image.next_data(0).expect("reads"), cluster);
    assert_eq!(image.next_data(4 * cluster).expect("reads"), 70 * cluster);
    assert_eq!(image.next_data(71 * cluster).expect("reads"), image.bytes());
}

#[test]
fn what_needs_another_file_or_a_key_is_refused_with_what_to_do() {
    let says = |at: usize, with: &[u8], words: &str| {
        let said = refused(&edited(at, with));
        assert!(said.contains(words), "{said}");
    };
    says(
        8,
        &64u64.to_be_bytes(),
        "backing file, and only part of the disk: make it whole with `qemu-img convert",
    );
    says(32, &1u32.to_be_bytes(), "is encrypted");
    says(32, &2u32.to_be_bytes(), "is encrypted");
    says(72, &CORRUPT.to_be_bytes(), "qemu-img check");
    says(72, &EXTERNAL_DATA.to_be_bytes(), "in another file");
    says(72, &EXTENDED_L2.to_be_bytes(), "subclusters");
    says(
        72,
        &(1u64 << 40).to_be_bytes(),
        "features that are not known",
    );
    says(4, &4u32.to_be_bytes(), "version 4");
    says(0, b"QFI\xfc", "no qcow2 image");
    read_all(&edited(72, &DIRTY.to_be_bytes()), 512)
        .expect("its counts are wrong, its content is not");
}

#[test]
fn numbers_that_cannot_be_are_refused_before_memory_is_taken() {
    let says = |at: usize, with: &[u8], words: &str| {
        let said = refused(&edited(at, with));
        assert!(said.contains(words), "{said}");
    };
    for bits in [0u32, 8, 22, 63, u32::MAX] {
        says(20, &bits.to_be_bytes(), "log2 of its clusters");
    }
    for size in [0, DISK_BYTES_MAX + 1, u64::MAX] {
        says(24, &size.to_be_bytes(), "length of its disk");
    }
    says(
        24,
        &DISK_BYTES_MAX.to_be_bytes(),
        "too large for its clusters",
    );
    says(24, &(1u64 << 20).to_be_bytes(), "length of its L1 table");
    says(36, &0u32.to_be_bytes(), "length of its L1 table");
    says(40, &513u64.to_be_bytes(), "place of its L1 table");
    says(40, &(1u64 << 62).to_be_bytes(), "its L1 table at byte");
    says(100, &72u32.to_be_bytes(), "length of its header");
}

#[test]
fn tables_and_clusters_that_are_not_in_the_file_are_damage() {
    let beyond = 1u64 << 40;
    let said = refused(&edited(CLUSTER, &beyond.to_be_bytes()));
    assert!(said.contains("an L2 table at byte"), "{said}");
    let said = refused(&with_entry(1, beyond));
    assert!(said.contains("a cluster at byte"), "{said}");
    let said = refused(&with_entry(1, COMPRESSED | beyond));
    assert!(said.contains("a compressed cluster at byte"), "{said}");
    // Its own header is no deflate stream.
    let said = refused(&with_entry(1, COMPRESSED));
    assert!(said.contains("does not decompress"), "{said}");
    let mut two = image(2, Compression::Deflate, &some());
    two[TABLE + 15] |= 1;
    assert!(refused(&two).contains("an entry of an L2 table"));
}

#[test]
fn a_file_may_end_within_its_last_cluster_and_zeros_follow() {
    let clusters = [Cluster::Plain(5)];
    let mut bytes = image(3, Compression::Deflate, &clusters);
    bytes.truncate(bytes.len() - 100);
    let read = read_all(&bytes, 512).expect("reads");
    let plain = content(5);
    assert_eq!(read[..412], plain[..412]);
    assert_eq!(read[412..], [0; 100]);
}

#[test]
fn tables_that_loop_or_share_are_refused_once_they_name_more_than_there_is() {
    // Every L2 table is the same one, and every entry of it the same cluster.
    let mut clusters = vec![Cluster::Nowhere; 16 * CLUSTERS_A_TABLE];
    clusters[0] = Cluster::Plain(3);
    let mut bytes = image(3, Compression::Deflate, &clusters);
    let table = bytes[CLUSTER..CLUSTER + 8].to_vec();
    for n in 1..16 {
        bytes[CLUSTER + n * 8..][..8].copy_from_slice(&table);
    }
    let place = TABLE;
    let first = bytes[place..place + 8].to_vec();
    for n in 1..CLUSTERS_A_TABLE {
        bytes[place + n * 8..][..8].copy_from_slice(&first);
    }
    assert!(refused(&bytes).contains("used more than once"));
}

fn cluster() -> impl Strategy<Value = Cluster> {
    prop_oneof![
        2 => Just(Cluster::Nowhere),
        1 => Just(Cluster::Zeroed),
        2 => any::<u8>().prop_map(Cluster::Plain),
        2 => any::<u8>().prop_map(Cluster::Compressed),
    ]
}

proptest! {
    #[test]
    fn any_image_reads_as_what_was_written_whatever_the_pieces(
        clusters in prop::collection::vec(cluster(), 1..200),
        zstd in any::<bool>(),
        piece in prop_oneof![Just(512u64), Just(1024), Just(700), Just(32 << 10), Just(512 << 10)],
    ) {
        let compression = if zstd { Compression::Zstd } else { Compression::Deflate };
        let bytes = image(3, compression, &clusters);
        prop_assert_eq!(read_all(&bytes, piece).expect("reads"), expected(&clusters));
    }

    #[test]
    fn hostile_bytes_end_in_an_error_or_in_a_disk(
        edits in prop::collection::vec((0usize..6 * CLUSTER, any::<u8>()), 1..8),
        cut in 0usize..600,
    ) {
        let mut bytes = image(3, Compression::Deflate, &some());
        for (at, value) in edits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut);
        let file = on_disk(&bytes);
        if let Ok(mut image) = Qcow2::open(&file) {
            let (mut at, mut read, mut piece) = (0, 0u64, vec![0; 64 << 10]);
            while at < image.bytes() {
                let Ok(data) = image.next_data(at) else { break };
                prop_assert!(data >= at);
                let length = (image.bytes().saturating_sub(data)).min(piece.len() as u64);
                if length == 0 || image.read(data, &mut piece[..usize::try_from(length).expect("small")]).is_err() {
                    break;
                }
                (at, read) = (data + length, read + 1);
            }
            // Every piece has at least one cluster that is somewhere, and a deflate stream has 2 bytes or more.
            prop_assert!(read <= bytes.len() as u64, "{read} pieces of {} bytes", bytes.len());
        }
    }
}
