//! Whole disks, packed and put together again.
//!
//! Owns: raw disks made of holes and noise. Refuses: qcow2, whose reader has its own tests.

use std::io::Write;

use super::*;
use crate::format::Flist;
use crate::materialise::materialise;
use crate::pack::{Source, pack as pack_any, pack_with};
use crate::store::{ChunkSink, DirStore, NoStore};
use types::Digest;

const MIB: usize = 1 << 20;

fn raw(bytes: u64, pieces: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().expect("temp");
    file.set_len(bytes).expect("sparse");
    for (at, piece) in pieces {
        file.write_all_at(piece, *at).expect("write");
    }
    file
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}

fn packed(file: &File, sink: &mut dyn ChunkSink) -> Packed {
    let source = Source::Disk(file, DiskFormat::Raw);
    pack_any(source, &ImageConfig::default(), sink, &mut |_| {}).expect("packs")
}

fn extents(packed: &Packed) -> Vec<(u32, u32)> {
    let flist = Flist::read(&mut io::Cursor::new(&packed.flist)).expect("valid");
    assert!(flist.is_disk());
    let pair = |chunk: &crate::chunk::Chunk| (chunk.extent.start_block, chunk.extent.blocks);
    flist.chunks().iter().map(pair).collect()
}

#[test]
fn a_disk_comes_back_byte_for_byte_and_holes_cost_nothing() {
    let content = noise(MIB, 1);
    let bytes = (2 << 30) + 512;
    let file = raw(
        bytes,
        &[
            (0, b"boot"),
            ((1 << 30) + 8192, &content),
            (bytes - 4, b"last"),
        ],
    );
    let home = tempfile::tempdir().expect("temp");
    let mut store = DirStore::open(home.path()).expect("a store");
    let packed = packed(&file, &mut store);
    assert_eq!(packed.stats.disk_bytes, (2 << 30) + 4096);
    let first = 1 << 18;
    assert_eq!(
        extents(&packed),
        [
            (0, 1),
            (first + 2, 126),
            (first + 128, 128),
            (first + 256, 2),
            (1 << 19, 1)
        ]
    );
    let disk = tempfile::tempfile().expect("temp");
    let mut flist = io::Cursor::new(&packed.flist);
    materialise(&mut flist, &mut |name| store.read_chunk(name), &disk).expect("whole");
    assert_eq!(
        disk.metadata().expect("stat").len(),
        packed.stats.disk_bytes
    );
    let mut back = vec![0; MIB];
    disk.read_exact_at(&mut back, (1 << 30) + 8192)
        .expect("read");
    assert!(back == content);
    disk.read_exact_at(&mut back[..4], bytes - 4).expect("read");
    assert_eq!(&back[..4], b"last");
}

#[test]
fn zeros_that_are_written_and_holes_are_the_same_image() {
    let sparse = raw(3 << 20, &[(1 << 20, &noise(MIB, 2))]);
    let full = raw(0, &[]);
    let mut bytes = vec![0; 3 * MIB];
    bytes[MIB..2 * MIB].copy_from_slice(&noise(MIB, 2));
    (&full).write_all(&bytes).expect("write");
    let digest = |file| packed(file, &mut NoStore).digest;
    assert_eq!(digest(&sparse), digest(&full));
}

#[test]
fn a_disk_of_nothing_but_zeros_has_no_chunk() {
    let packed = packed(&raw(1 << 40, &[]), &mut NoStore);
    assert!(extents(&packed).is_empty());
    assert!(packed.flist.len() < 100);
}

#[test]
fn two_disks_that_differ_in_a_place_share_all_other_chunks() {
    #[derive(Default)]
    struct Names(Vec<Digest>);
    impl ChunkSink for Names {
        fn put(&mut self, stored: &Digest, _bytes: &[u8]) -> io::Result<()> {
            self.0.push(*stored);
            Ok(())
        }
    }
    let mut content = noise(8 * MIB, 3);
    let (mut before, mut after) = (Names::default(), Names::default());
    packed(&raw(0, &[(0, &content)]), &mut before);
    content[5 * MIB] ^= 1;
    packed(&raw(0, &[(0, &content)]), &mut after);
    let new: Vec<_> = after
        .0
        .iter()
        .filter(|name| !before.0.contains(name))
        .collect();
    assert_eq!((before.0.len(), new.len()), (16, 1));
}

#[test]
fn a_disk_is_encrypted_as_every_image() {
    let file = raw(0, &[(0, &noise(MIB, 4))]);
    let salt = Salt::new([9; 32]);
    let source = Source::Disk(&file, DiskFormat::Raw);
    let config = ImageConfig::default();
    let packed = pack_with(source, &config, Some(&salt), &mut NoStore, &mut |_| {});
    let packed = packed.expect("packs");
    let flist = Flist::read(&mut io::Cursor::new(&packed.flist)).expect("valid");
    assert!(flist.is_encrypted() && flist.is_disk());
}

#[test]
fn an_empty_file_and_one_beyond_the_limit_are_no_disks() {
    for bytes in [0, DISK_BYTES_MAX + 1] {
        let file = raw(bytes, &[]);
        let source = Source::Disk(&file, DiskFormat::Raw);
        let error = pack_any(source, &ImageConfig::default(), &mut NoStore, &mut |_| {});
        let said = error.expect_err("no disk").to_string();
        assert!(said.contains("1 byte to 1 TiB"), "{said}");
    }
}

#[test]
fn disks_are_told_by_a_boot_sector_a_file_system_or_qcow2s_magic() {
    let mut start = vec![0; START_BYTES];
    assert_eq!(looks_like(&start), None);
    assert_eq!(looks_like(b""), None);
    start[510..512].copy_from_slice(&BOOT_SIGNATURE);
    assert_eq!(looks_like(&start), Some(DiskFormat::Raw));
    let mut start = vec![0; START_BYTES];
    start[EXT_MAGIC_AT..EXT_MAGIC_AT + 2].copy_from_slice(&EXT_MAGIC);
    assert_eq!(looks_like(&start), Some(DiskFormat::Raw));
    start[..4].copy_from_slice(b"QFI\xfb");
    assert_eq!(looks_like(&start), Some(DiskFormat::Qcow2));
}
