//! The `.flist` file.
//!
//! Owns: its layout, encoding, and a reader that checks whatever it is given.
//! Refuses: knowing EROFS. The metadata area is bytes that the guest's kernel parses, never the host's.
//!
//! Layout and limits with their reasons: docs/flist-format.md. The digest of an flist is the BLAKE3 of the whole
//! file.

use std::io::{self, Read, Seek, SeekFrom, Write};

use types::Digest;
use types::flist::ImageConfig;

use crate::chunk::{Chunk, Encoding};
use crate::columns::{self, Records};
use crate::map::{Extent, MapError, Table};
use crate::seal::Key;
use crate::{BLOCK, CHUNKS_MAX};

pub const MAGIC: [u8; 8] = *b"SIFRFLS1";
pub const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 64;
pub const ENTRY_BYTES: usize = 80;
/// Chunks are encrypted, and each row of the table ends with a key.
const FLAG_SEALED: u32 = 1;
/// A whole disk, which has no metadata area: chunks may lie anywhere on it.
const FLAG_DISK: u32 = 2;
/// The metadata area is stored in columns. Files of before it was are read as well.
const FLAG_COLUMNS: u32 = 4;
const FLAGS: u32 = FLAG_SEALED | FLAG_DISK | FLAG_COLUMNS;
const KEY_BYTES: usize = 32;
/// Longest image configuration, as JSON: an environment of 64 KiB is beyond what anybody writes, and a
/// packet between daemon and node has to carry it.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Largest metadata area: some two million files.
pub const METADATA_BYTES_MAX: u64 = 256 << 20;
/// Longest `.flist` file: a node takes it from the network before it knows what it says.
pub const FLIST_BYTES_MAX: u64 = 64 << 20;
/// zstd level of the metadata area; part of the format, since the digest depends on it.
const METADATA_LEVEL: i32 = 19;
/// log2 of the zstd window of the metadata area: what a reader has to hold in memory.
const METADATA_WINDOW_LOG: u32 = 21;

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("flist cannot be read")]
    Read(#[source] io::Error),
    #[error("this is no flist: it does not begin with SIFRFLS1")]
    Magic,
    #[error(
        "flist has version {version} and flags {flags:#x}, which this program does not know: it needs a newer one"
    )]
    Version { version: u32, flags: u32 },
    #[error("flist of {actual} bytes should have {expected}: it was cut or something was added")]
    Length { actual: u64, expected: u64 },
    #[error("flist says its {what} has {bytes} bytes, which is more than is allowed")]
    Large { what: &'static str, bytes: u64 },
    #[error("flist is said to be a whole disk, and to have a metadata area")]
    Disk,
    #[error("flist has reserved bytes that are not zero")]
    Reserved,
    #[error("flist's image configuration is not valid")]
    Config(#[source] serde_json::Error),
    #[error("flist's chunk table does not add up")]
    Table(#[source] MapError),
    #[error("flist's chunk {0} has an unknown encoding or an impossible length")]
    Chunk(usize),
    #[error("flist's metadata area cannot be unpacked")]
    Metadata(#[source] io::Error),
    #[error("flist's metadata area is not the {0} bytes its header says")]
    MetadataLength(u64),
}

/// A checked flist without its metadata area, which stays in the file: see [`Flist::copy_metadata`].
#[derive(Debug, Clone, PartialEq)]
pub struct Flist {
    config: ImageConfig,
    table: Table,
    chunks: Vec<Chunk>,
    sealed: bool,
    columns: bool,
    metadata_bytes: u64,
    metadata_at: u64,
    metadata_stored: u64,
}

impl Flist {
    /// Reads and checks everything but the metadata area's content. The digest is the caller's: see
    /// [`digest_of`].
    pub fn read<F: Read + Seek>(file: &mut F) -> Result<Self, FormatError> {
        let actual = file.seek(SeekFrom::End(0)).map_err(FormatError::Read)?;
        file.rewind().map_err(FormatError::Read)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::Magic,
            _ => FormatError::Read(e),
        })?;
        let header = Header::decode(&header)?;
        if actual != header.file_bytes() {
            return Err(FormatError::Length {
                actual,
                expected: header.file_bytes(),
            });
        }
        let mut config = vec![0; header.config_bytes as usize];
        file.read_exact(&mut config).map_err(FormatError::Read)?;
        let config = serde_json::from_slice(&config).map_err(FormatError::Config)?;
        file.seek(SeekFrom::Start(header.table_at()))
            .map_err(FormatError::Read)?;
        let mut table = vec![0; header.chunk_count as usize * header.entry_bytes()];
        file.read_exact(&mut table).map_err(FormatError::Read)?;
        let chunk = |(index, entry)| decode_chunk(entry).ok_or(FormatError::Chunk(index));
        let chunks = table
            .chunks_exact(header.entry_bytes())
            .enumerate()
            .map(chunk)
            .collect::<Result<Vec<_>, _>>()?;
        let extents = chunks.iter().map(|c| c.extent).collect();
        let table = Table::new(header.disk_bytes, extents).map_err(FormatError::Table)?;
        if chunks
            .first()
            .is_some_and(|c| c.extent.start() < header.metadata_bytes)
        {
            return Err(FormatError::Chunk(0));
        }
        Ok(Self {
            config,
            table,
            chunks,
            sealed: header.sealed,
            columns: header.columns,
            metadata_bytes: header.metadata_bytes,
            metadata_at: header.metadata_at(),
            metadata_stored: header.metadata_stored,
        })
    }

    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn disk_bytes(&self) -> u64 {
        self.table.disk_bytes()
    }

    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// Whether it is a whole disk, of which only the machine that runs it knows what is on it; else a file tree.
    pub fn is_disk(&self) -> bool {
        self.metadata_bytes == 0
    }

    /// Whether the chunks are encrypted: then this file has their keys, and is itself the secret.
    pub fn is_encrypted(&self) -> bool {
        self.sealed
    }

    /// Length of the `.flist` file.
    pub fn file_bytes(&self) -> u64 {
        let table = (self.chunks.len() * entry_bytes(self.sealed)) as u64;
        self.metadata_at + self.metadata_stored + table
    }

    /// What the disk takes where it lies as a sparse file, once every chunk is in its place.
    pub fn placed_bytes(&self) -> u64 {
        let chunks = self.chunks.iter().map(|c| c.extent.bytes());
        self.metadata_bytes + chunks.sum::<u64>()
    }

    /// Writes the metadata area, the first [`Flist::metadata_bytes`] of the disk. Memory and output are
    /// bounded whatever the file says.
    pub fn copy_metadata<F: Read + Seek, W: Write>(
        &self,
        file: &mut F,
        out: &mut W,
    ) -> Result<(), FormatError> {
        if self.is_disk() {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.metadata_at))
            .map_err(FormatError::Read)?;
        let stored = file.take(self.metadata_stored);
        let mut decoder = zstd::stream::read::Decoder::new(stored)
            .map_err(FormatError::Metadata)?
            .single_frame();
        decoder
            .window_log_max(METADATA_WINDOW_LOG)
            .map_err(FormatError::Metadata)?;
        let copied = if self.columns {
            let turned = columns::decode(&mut decoder, self.metadata_bytes, out);
            turned.map(|()| self.metadata_bytes)
        } else {
            let limited = &mut decoder.by_ref().take(self.metadata_bytes);
            io::copy(limited, out)
        };
        let copied = copied.map_err(FormatError::Metadata)?;
        let more = decoder.read(&mut [0]).map_err(FormatError::Metadata)?;
        if copied == self.metadata_bytes && more == 0 {
            Ok(())
        } else {
            Err(FormatError::MetadataLength(self.metadata_bytes))
        }
    }
}

/// The digest of a file: BLAKE3 of all its bytes.
pub fn digest_of(file: &mut impl Read) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    io::copy(file, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()))
}

/// Bytes of a row of the chunk table.
fn entry_bytes(sealed: bool) -> usize {
    if sealed {
        ENTRY_BYTES + KEY_BYTES
    } else {
        ENTRY_BYTES
    }
}

/// What stands before the chunks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Metadata<'a> {
    /// Nothing: the image is a whole disk.
    None,
    /// A whole number of blocks, with the records in it.
    Tree(&'a [u8], &'a Records),
}

/// Builds the file. All chunks have keys where it is `sealed`, else none has.
pub(crate) fn encode(
    config: &ImageConfig,
    metadata: Metadata<'_>,
    disk_bytes: u64,
    sealed: bool,
    chunks: &[Chunk],
) -> Result<Vec<u8>, FormatError> {
    let config = serde_json::to_vec(config).map_err(FormatError::Config)?;
    let (bytes, stored) = match metadata {
        Metadata::None => (0, Vec::new()),
        Metadata::Tree(bytes, records) => {
            let stored = compress_metadata(&columns::encode(bytes, records));
            (bytes.len() as u64, stored.map_err(FormatError::Metadata)?)
        }
    };
    let large = |what, bytes: usize| FormatError::Large {
        what,
        bytes: bytes as u64,
    };
    let header = Header {
        sealed,
        disk: bytes == 0,
        columns: bytes != 0,
        disk_bytes,
        metadata_bytes: bytes,
        metadata_stored: stored.len() as u64,
        config_bytes: u32::try_from(config.len())
            .map_err(|_| large("configuration", config.len()))?,
        chunk_count: u32::try_from(chunks.len())
            .map_err(|_| large("chunk table", chunks.len() * entry_bytes(sealed)))?,
    };
    header.check()?;
    let mut out = Vec::with_capacity(HEADER_BYTES + config.len() + stored.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&config);
    out.extend_from_slice(&stored);
    for chunk in chunks {
        out.extend_from_slice(&encode_chunk(chunk));
        out.extend_from_slice(chunk.key.as_ref().map_or(&[][..], |key| &key.0));
    }
    Ok(out)
}

fn compress_metadata(metadata: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(METADATA_LEVEL)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::WindowLog(METADATA_WINDOW_LOG))?;
    compressor.compress(metadata)
}

#[derive(Debug, Clone, Copy)]
struct Header {
    sealed: bool,
    disk: bool,
    columns: bool,
    disk_bytes: u64,
    metadata_bytes: u64,
    metadata_stored: u64,
    config_bytes: u32,
    chunk_count: u32,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.sealed, FLAG_SEALED)
            | flag(self.disk, FLAG_DISK)
            | flag(self.columns, FLAG_COLUMNS);
        out[12..16].copy_from_slice(&flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.disk_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.metadata_bytes.to_le_bytes());
        out[32..40].copy_from_slice(&self.metadata_stored.to_le_bytes());
        out[40..44].copy_from_slice(&self.config_bytes.to_le_bytes());
        out[44..48].copy_from_slice(&self.chunk_count.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FormatError> {
        let (version, flags) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if bytes[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        if version != VERSION || flags & !FLAGS != 0 {
            return Err(FormatError::Version { version, flags });
        }
        if bytes[48..].iter().any(|b| *b != 0) {
            return Err(FormatError::Reserved);
        }
        let header = Self {
            sealed: flags & FLAG_SEALED != 0,
            disk: flags & FLAG_DISK != 0,
            columns: flags & FLAG_COLUMNS != 0,
            disk_bytes: u64_at(bytes, 16),
            metadata_bytes: u64_at(bytes, 24),
            metadata_stored: u64_at(bytes, 32),
            config_bytes: u32_at(bytes, 40),
            chunk_count: u32_at(bytes, 44),
        };
        header.check()?;
        Ok(header)
    }

    /// After this no sum of the lengths overflows.
    fn check(&self) -> Result<(), FormatError> {
        let large = |what, bytes| Err(FormatError::Large { what, bytes });
        if self.disk && (self.columns || (self.metadata_bytes, self.metadata_stored) != (0, 0)) {
            return Err(FormatError::Disk);
        }
        let missing = self.metadata_bytes == 0 && !self.disk;
        if missing
            || self.metadata_bytes > METADATA_BYTES_MAX.min(self.disk_bytes)
            || !self.metadata_bytes.is_multiple_of(BLOCK)
        {
            return large("metadata area", self.metadata_bytes);
        }
        if u64::from(self.config_bytes) > CONFIG_BYTES_MAX as u64 {
            return large("configuration", u64::from(self.config_bytes));
        }
        if self.chunk_count as usize > CHUNKS_MAX {
            return large("chunk table", self.table_bytes());
        }
        if self.metadata_stored > FLIST_BYTES_MAX || self.file_bytes() > FLIST_BYTES_MAX {
            return large("content", self.metadata_stored);
        }
        Ok(())
    }

    fn metadata_at(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.config_bytes)
    }

    fn table_at(&self) -> u64 {
        self.metadata_at() + self.metadata_stored
    }

    fn file_bytes(&self) -> u64 {
        self.table_at() + self.table_bytes()
    }

    fn entry_bytes(&self) -> usize {
        entry_bytes(self.sealed)
    }

    fn table_bytes(&self) -> u64 {
        u64::from(self.chunk_count) * self.entry_bytes() as u64
    }
}

fn encode_chunk(chunk: &Chunk) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    out[..4].copy_from_slice(&chunk.extent.start_block.to_le_bytes());
    out[4..8].copy_from_slice(&chunk.extent.blocks.to_le_bytes());
    out[8..12].copy_from_slice(&chunk.stored_bytes.to_le_bytes());
    let encoding = match chunk.encoding {
        Encoding::Plain => 0u32,
        Encoding::Zstd => 1,
    };
    out[12..16].copy_from_slice(&encoding.to_le_bytes());
    out[16..48].copy_from_slice(&chunk.plain.0);
    out[48..].copy_from_slice(&chunk.stored.0);
    out
}

/// Of a row with a key, or without one.
fn decode_chunk(bytes: &[u8]) -> Option<Chunk> {
    let encoding = match u32_at(bytes, 12) {
        0 => Encoding::Plain,
        1 => Encoding::Zstd,
        _ => return None,
    };
    let chunk = Chunk {
        extent: Extent {
            start_block: u32_at(bytes, 0),
            blocks: u32_at(bytes, 4),
        },
        stored_bytes: u32_at(bytes, 8),
        encoding,
        plain: Digest(bytes[16..48].try_into().expect("32 bytes")),
        stored: Digest(bytes[48..80].try_into().expect("32 bytes")),
        key: bytes.get(80..).and_then(|key| key.try_into().ok()).map(Key),
    };
    chunk.adds_up().then_some(chunk)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn chunk(start_block: u32, blocks: u32) -> Chunk {
        Chunk {
            extent: Extent {
                start_block,
                blocks,
            },
            stored_bytes: blocks * 4096,
            encoding: Encoding::Plain,
            plain: Digest([1; 32]),
            stored: Digest([2; 32]),
            key: None,
        }
    }

    /// Without records.
    fn tree(metadata: &[u8]) -> Metadata<'_> {
        static NONE: Records = Records([Vec::new(), Vec::new()]);
        Metadata::Tree(metadata, &NONE)
    }

    fn sample() -> Vec<u8> {
        let config = ImageConfig {
            cmd: vec!["/bin/true".to_owned()],
            ..ImageConfig::default()
        };
        let metadata: Vec<u8> = (0..8192u32).map(|i| i.to_be_bytes()[2]).collect();
        encode(
            &config,
            Metadata::Tree(&metadata, &Records([vec![64, 192], vec![256, 270, 5000]])),
            40 * BLOCK,
            false,
            &[chunk(2, 3), chunk(8, 32)],
        )
        .expect("fits")
    }

    #[test]
    fn a_file_reads_back() {
        let mut file = Cursor::new(sample());
        let flist = Flist::read(&mut file).expect("valid");
        assert_eq!(flist.config().cmd, ["/bin/true"]);
        assert_eq!(flist.chunks(), [chunk(2, 3), chunk(8, 32)]);
        assert_eq!(flist.disk_bytes(), 40 * BLOCK);
        let mut metadata = Vec::new();
        flist
            .copy_metadata(&mut file, &mut metadata)
            .expect("valid");
        assert_eq!(metadata.len(), 8192);
        assert_eq!(metadata[8191], 31);
    }

    #[test]
    fn an_encrypted_file_has_its_keys_and_reads_back() {
        let sealed = |start, key| Chunk {
            stored_bytes: 3 * 4096 + 16,
            key: Some(Key([key; 32])),
            ..chunk(start, 3)
        };
        let chunks = [sealed(2, 7), sealed(8, 9)];
        let config = ImageConfig::default();
        let mut file = encode(&config, tree(&[7; 8192]), 40 * BLOCK, true, &chunks).expect("fits");
        let flist = Flist::read(&mut Cursor::new(&file)).expect("valid");
        assert!(flist.is_encrypted());
        assert_eq!(flist.chunks(), chunks);
        assert_eq!(flist.file_bytes(), file.len() as u64);
        // Without the flag the rows are of another length; with one more nobody knows what is meant.
        file[12] = 4;
        let read = Flist::read(&mut Cursor::new(&file));
        assert!(matches!(read, Err(FormatError::Length { .. })), "{read:?}");
        file[12] = 9;
        let read = Flist::read(&mut Cursor::new(&file));
        assert!(matches!(read, Err(FormatError::Version { .. })), "{read:?}");
    }

    #[test]
    fn a_whole_disk_has_no_metadata_area_and_its_chunks_may_begin_at_its_first_block() {
        let config = ImageConfig::default();
        let chunks = [chunk(0, 3), chunk(8, 32)];
        let mut file = encode(&config, Metadata::None, 40 * BLOCK, false, &chunks).expect("fits");
        assert_eq!(file[12], 2);
        let flist = Flist::read(&mut Cursor::new(&file)).expect("valid");
        assert!(flist.is_disk());
        assert_eq!(flist.chunks(), chunks);
        let mut out = Vec::new();
        flist
            .copy_metadata(&mut Cursor::new(&file), &mut out)
            .expect("nothing to do");
        assert!(out.is_empty());
        // Without the flag there would have to be a metadata area, and with it there may be none.
        file[12] = 0;
        let read = Flist::read(&mut Cursor::new(&file));
        assert!(matches!(read, Err(FormatError::Large { .. })), "{read:?}");
        for flags in [2, 6] {
            let mut tree = sample();
            tree[12] = flags;
            let read = Flist::read(&mut Cursor::new(&tree));
            assert!(matches!(read, Err(FormatError::Disk)), "{read:?}");
        }
    }

    #[test]
    fn a_metadata_area_that_is_not_in_columns_is_read_as_well() {
        let file = encode(
            &ImageConfig::default(),
            tree(&[7; 8192]),
            9 * BLOCK,
            false,
            &[],
        );
        let (mut file, metadata) = (file.expect("fits"), [8; 8192]);
        let at = usize::try_from(
            Flist::read(&mut Cursor::new(&file))
                .expect("valid")
                .metadata_at,
        );
        file.truncate(at.expect("small"));
        file.extend(zstd::bulk::compress(&metadata, 9).expect("compresses"));
        file[12] = 0;
        let stored = (file.len() as u64 - HEADER_BYTES as u64 - 2).to_le_bytes();
        file[32..40].copy_from_slice(&stored);
        let (mut file, mut out) = (Cursor::new(file), Vec::new());
        let flist = Flist::read(&mut file).expect("valid");
        flist.copy_metadata(&mut file, &mut out).expect("valid");
        assert_eq!(out, metadata);
    }

    #[test]
    fn a_chunk_inside_the_metadata_area_is_refused() {
        let file = encode(
            &ImageConfig::default(),
            tree(&[7; 8192]),
            9 * BLOCK,
            false,
            &[chunk(1, 1)],
        );
        let read = Flist::read(&mut Cursor::new(file.expect("fits")));
        assert!(matches!(read, Err(FormatError::Chunk(0))), "{read:?}");
    }

    #[test]
    fn a_metadata_area_that_unpacks_to_more_than_it_says_is_refused() {
        let mut bytes = encode(
            &ImageConfig::default(),
            tree(&[0; 1 << 20]),
            1 << 30,
            false,
            &[],
        )
        .expect("fits");
        bytes[24..32].copy_from_slice(&4096u64.to_le_bytes());
        let mut file = Cursor::new(bytes);
        let flist = Flist::read(&mut file).expect("the header alone is fine");
        let mut out = Vec::new();
        let copied = flist.copy_metadata(&mut file, &mut out);
        assert!(
            matches!(copied, Err(FormatError::MetadataLength(4096))),
            "{copied:?}"
        );
        assert_eq!(out.len(), 4096);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_add_up(
            edits in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
            cut in prop_oneof![3 => Just(0usize), 1 => 0usize..400],
        ) {
            let mut bytes = sample();
            for (at, value) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - cut % bytes.len());
            let mut file = Cursor::new(bytes);
            if let Ok(flist) = Flist::read(&mut file) {
                let mut out = Vec::new();
                let copied = flist.copy_metadata(&mut file, &mut out);
                prop_assert!(out.len() as u64 <= flist.metadata_bytes());
                prop_assert!(copied.is_err() || out.len() as u64 == flist.metadata_bytes());
                prop_assert!(flist.chunks().iter().all(|c| c.extent.end() <= flist.disk_bytes()));
            }
        }
    }
}
