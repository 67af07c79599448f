//! Packing: from a file tree to an flist and its chunks.
//!
//! Owns: what goes into which chunk, and the order of work: read the tree, lay out the disk, then read
//! each file once, front to back. At most one chunk of content is in memory.
//! Refuses: clocks, threads and anything else that would give the same input another digest.

use std::fs::File;
use std::io;
use std::path::Path;

use types::Digest;
use types::flist::ImageConfig;

use crate::beneath::Beneath;
use crate::chunk::{Chunk, Encoder, hash};
use crate::content::{Place, Reader};
use crate::disk::{self, DiskError, DiskFormat};
use crate::erofs::{DataFile, Layout, LayoutError};
use crate::format::{self, FormatError};
use crate::map::Extent;
use crate::seal::Salt;
use crate::store::ChunkSink;
use crate::tree::{Tree, TreeError, show};
use crate::{BLOCK, BLOCK_LEN, CHUNK_BYTES_MAX, archive, scan};

/// Files of this size and above are cut into chunks of this size, by file offset, so that the same
/// content gives the same chunks wherever the file lies.
const LARGE_BYTES: u64 = 512 << 10;
/// Small files are packed together. From this fill on, a file whose name says so begins a new chunk:
/// after a file has grown or come, the cuts soon fall where they fell before.
const CUT_FROM_BYTES: u64 = 256 << 10;
/// One name in this many says so.
const CUT_ONE_IN: u8 = 16;

/// What to pack.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A directory on this machine, with its owners, modes and extended attributes.
    Directory(&'a Path),
    /// An uncompressed tar archive.
    Tar(&'a File),
    /// Uncompressed tar archives, the lowest first, with whiteouts as in the OCI image specification.
    Layers(&'a [File]),
    /// A disk image.
    Disk(&'a File, DiskFormat),
}

/// How far it is. `total_bytes` is known before the first byte of content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// The result of packing.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The `.flist` file.
    pub flist: Vec<u8>,
    pub digest: Digest,
    pub stats: Stats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Regular files with content, hard links counted once; none of a disk image, where nobody looks.
    pub files: u64,
    pub content_bytes: u64,
    pub disk_bytes: u64,
    pub chunks: u64,
    /// Bytes given to the sink, repeated chunks included.
    pub stored_bytes: u64,
    /// Extended attributes left out because EROFS has no place for them.
    pub xattrs_dropped: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("{path:?} cannot be {doing}")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("archive cannot be read as tar: {reason}")]
    Archive { reason: String },
    #[error("{path:?} changed while it was packed: try again when nothing writes to it")]
    Changed { path: String },
    #[error("chunk cannot be stored")]
    Sink(#[source] io::Error),
    #[error("chunk cannot be compressed")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Packs `source` with `config`. Chunks go to `sink` in the order of the disk; the flist is in the result,
/// for the caller to store last.
pub fn pack(
    source: Source<'_>,
    config: &ImageConfig,
    sink: &mut dyn ChunkSink,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    pack_with(source, config, None, sink, progress)
}

/// The same with encrypted chunks, where there is a salt. The flist then holds their keys: it is the secret.
pub fn pack_with(
    source: Source<'_>,
    config: &ImageConfig,
    salt: Option<&Salt>,
    sink: &mut dyn ChunkSink,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    let (mut tree, mut stats) = (Tree::new(), Stats::default());
    let place = match source {
        Source::Disk(file, format) => {
            return disk::pack(file, format, config, salt, sink, progress);
        }
        Source::Directory(path) => directory(path, &mut tree, &mut stats)?,
        Source::Tar(file) => {
            archive::add(file, 0, archive::Whiteouts::AreFiles, &mut tree, &mut stats)?;
            Place::Archives(vec![file])
        }
        Source::Layers(files) => {
            for (index, file) in files.iter().enumerate() {
                let whiteouts = archive::Whiteouts::Remove;
                archive::add(file, index, whiteouts, &mut tree, &mut stats)?;
            }
            Place::Archives(files.iter().collect())
        }
    };
    let layout = Layout::new(&tree)?;
    let mut writer = Writer {
        reader: Reader::new(&tree, place),
        encoder: Encoder::new(salt).map_err(PackError::Compress)?,
        buffer: Vec::with_capacity(CHUNK_BYTES_MAX),
        chunks: Vec::new(),
        sink,
        stats,
    };
    let total_bytes = layout.files.iter().map(|f| f.size).sum();
    let mut done_bytes = 0;
    progress(Progress {
        done_bytes,
        total_bytes,
    });
    for_each_chunk(&layout.files, |plan| {
        writer.write(&plan)?;
        done_bytes += plan.pieces.iter().map(|p| p.bytes).sum::<u64>();
        progress(Progress {
            done_bytes,
            total_bytes,
        });
        Ok(())
    })?;
    let Writer {
        chunks, mut stats, ..
    } = writer;
    let (metadata, records) = layout.metadata(&tree);
    let flist = format::encode(
        config,
        format::Metadata::Tree(&metadata, &records),
        layout.disk_bytes,
        salt.is_some(),
        &chunks,
    )?;
    stats.files = layout.files.len() as u64;
    stats.content_bytes = total_bytes;
    stats.disk_bytes = layout.disk_bytes;
    stats.chunks = chunks.len() as u64;
    Ok(Packed {
        digest: hash(&flist),
        flist,
        stats,
    })
}

/// Reads names and attributes of a directory, and says where the content is.
fn directory<'a>(path: &Path, tree: &mut Tree, stats: &mut Stats) -> Result<Place<'a>, PackError> {
    let root = Beneath::open(path).map_err(|source| PackError::Io {
        doing: "opened",
        path: path.display().to_string(),
        source,
    })?;
    scan::directory(&root, tree, stats)?;
    Ok(Place::Directory(root))
}

struct Writer<'a> {
    reader: Reader<'a>,
    encoder: Encoder,
    buffer: Vec<u8>,
    chunks: Vec<Chunk>,
    sink: &'a mut dyn ChunkSink,
    stats: Stats,
}

impl Writer<'_> {
    fn write(&mut self, plan: &Plan<'_>) -> Result<(), PackError> {
        if plan
            .pieces
            .iter()
            .all(|p| self.reader.is_hole(p.file.node, p.at, p.bytes))
        {
            return Ok(());
        }
        self.buffer.clear();
        for piece in &plan.pieces {
            let from = self.buffer.len();
            let bytes = usize::try_from(piece.bytes).expect("at most a chunk");
            self.buffer
                .resize((from + bytes).next_multiple_of(BLOCK_LEN), 0);
            let into = &mut self.buffer[from..from + bytes];
            self.reader
                .read(piece.file.node, piece.at, into)
                .map_err(|source| {
                    let path = show(&piece.file.name);
                    match source.kind() {
                        io::ErrorKind::UnexpectedEof => PackError::Changed { path },
                        _ => PackError::Io {
                            doing: "read",
                            path,
                            source,
                        },
                    }
                })?;
        }
        if is_zero(&self.buffer) {
            return Ok(());
        }
        let extent = Extent {
            start_block: u32::try_from(plan.start_block).expect("the layout checked the disk"),
            blocks: u32::try_from(self.buffer.len() as u64 / BLOCK).expect("at most a chunk"),
        };
        let encoded = self.encoder.encode(extent, &self.buffer);
        let (chunk, stored) = encoded.map_err(PackError::Compress)?;
        self.sink
            .put(&chunk.stored, stored)
            .map_err(PackError::Sink)?;
        self.stats.stored_bytes += u64::from(chunk.stored_bytes);
        self.chunks.push(chunk);
        Ok(())
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|w| *w == [0; 64]) && rest.iter().all(|b| *b == 0)
}

/// One chunk to be: neighbouring files, or a part of one.
#[derive(Debug)]
struct Plan<'a> {
    start_block: u64,
    pieces: Vec<Piece<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    file: &'a DataFile,
    at: u64,
    bytes: u64,
}

/// Cuts files, which lie on the disk one after another, into chunks.
fn for_each_chunk<'a>(
    files: &'a [DataFile],
    mut each: impl FnMut(Plan<'a>) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let mut group: Option<(Plan<'a>, u64)> = None;
    for file in files {
        let on_disk = file.size.next_multiple_of(BLOCK);
        let ends = group.as_ref().is_some_and(|(_, filled)| {
            file.size >= LARGE_BYTES
                || filled + on_disk > CHUNK_BYTES_MAX as u64
                || *filled >= CUT_FROM_BYTES && begins_chunk(&file.name)
        });
        if ends && let Some((plan, _)) = group.take() {
            each(plan)?;
        }
        if file.size >= LARGE_BYTES {
            let mut at = 0;
            while at < file.size {
                let bytes = LARGE_BYTES.min(file.size - at);
                let start_block = file.start_block + at / BLOCK;
                each(Plan {
                    start_block,
                    pieces: vec![Piece { file, at, bytes }],
                })?;
                at += bytes;
            }
            continue;
        }
        let start = || {
            (
                Plan {
                    start_block: file.start_block,
                    pieces: Vec::new(),
                },
                0,
            )
        };
        let (plan, filled) = group.get_or_insert_with(start);
        plan.pieces.push(Piece {
            file,
            at: 0,
            bytes: file.size,
        });
        *filled += on_disk;
    }
    group.map_or(Ok(()), |(plan, _)| each(plan))
}

fn begins_chunk(name: &[u8]) -> bool {
    blake3::hash(name).as_bytes()[0].is_multiple_of(CUT_ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(sizes: &[u64]) -> Vec<DataFile> {
        let mut start_block = 10;
        let file = |(node, size): (usize, &u64)| {
            let name = format!("f{node}").into_bytes();
            let file = DataFile {
                node,
                start_block,
                size: *size,
                name,
            };
            start_block += size.div_ceil(BLOCK);
            file
        };
        sizes.iter().enumerate().map(file).collect()
    }

    proptest! {
        #[test]
        fn chunks_cover_every_byte_once_in_order_and_fit(
            sizes in prop::collection::vec(
                prop_oneof![4 => 1u64..60_000, 2 => 1u64..600_000, 1 => 1u64..5_000_000], 0..60),
        ) {
            let files = files(&sizes);
            let (mut covered, mut last_end) = (vec![0; files.len()], 0);
            for_each_chunk(&files, |plan| {
                let mut at = plan.start_block;
                assert!(at >= last_end);
                for p in &plan.pieces {
                    assert_eq!(at, p.file.start_block + p.at / BLOCK);
                    assert_eq!(p.at, covered[p.file.node]);
                    covered[p.file.node] += p.bytes;
                    at += p.bytes.div_ceil(BLOCK);
                }
                assert!((at - plan.start_block) * BLOCK <= CHUNK_BYTES_MAX as u64);
                last_end = at;
                Ok(())
            }).expect("nothing fails");
            prop_assert_eq!(covered, sizes);
        }
    }

    #[test]
    fn after_a_file_that_grew_the_cuts_fall_where_they_fell_before() {
        let cuts = |sizes: &[u64]| {
            let (files, mut out) = (files(sizes), Vec::new());
            for_each_chunk(&files, |plan| {
                out.push(plan.pieces[0].file.node);
                Ok(())
            })
            .expect("nothing fails");
            out
        };
        let mut sizes = vec![9000; 2000];
        let before = cuts(&sizes);
        sizes[3] = 200_000;
        let after = cuts(&sizes);
        let same = after.iter().filter(|cut| before.contains(cut)).count();
        assert!(
            same * 10 >= before.len() * 9,
            "{same} of {} cuts stayed",
            before.len()
        );
    }
}
