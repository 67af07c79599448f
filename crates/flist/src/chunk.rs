//! One chunk: what the chunk table says of it, and how its stored bytes are made and opened.
//!
//! Owns: the encodings, both hashes, and the object name `chunks/<2 hex>/<62 hex>`.
//! Refuses: plain bytes that do not have the hash and length the table says.

use std::io;

use types::Digest;

use crate::CHUNK_BYTES_MAX;
use crate::map::Extent;

/// zstd level of chunks; part of the format, since names are hashes of stored bytes.
const LEVEL: i32 = 3;

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is: compression does not shrink it.
    Plain,
    /// One zstd frame.
    Zstd,
}

/// A row of the chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub extent: Extent,
    pub stored_bytes: u32,
    pub encoding: Encoding,
    /// BLAKE3 of the bytes on the disk.
    pub plain: Digest,
    /// BLAKE3 of the stored bytes: the chunk's name.
    pub stored: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk {name} has {actual} stored bytes instead of {expected}")]
    Length {
        name: Digest,
        actual: usize,
        expected: u32,
    },
    #[error("stored bytes of chunk {0} do not have that hash")]
    StoredHash(Digest),
    #[error("chunk {name} cannot be decompressed")]
    Zstd {
        name: Digest,
        #[source]
        source: io::Error,
    },
    #[error("chunk {name} decompresses to something else than its flist says: the flist is wrong")]
    Plain { name: Digest },
}

/// Where a store keeps a chunk, below its root.
pub fn object_path(stored: &Digest) -> String {
    let hex = stored.hex();
    format!("chunks/{}/{}", &hex[..2], &hex[2..])
}

pub(crate) fn hash(bytes: &[u8]) -> Digest {
    Digest(blake3::hash(bytes).into())
}

impl Chunk {
    /// Opens stored bytes: verifies their hash, decompresses into at most the chunk's own length,
    /// verifies the plain hash.
    pub fn open(&self, stored: &[u8]) -> Result<Vec<u8>, ChunkError> {
        let name = self.stored;
        if stored.len() != self.stored_bytes as usize {
            let expected = self.stored_bytes;
            return Err(ChunkError::Length {
                name,
                actual: stored.len(),
                expected,
            });
        }
        if hash(stored) != self.stored {
            return Err(ChunkError::StoredHash(name));
        }
        let length = usize::try_from(self.extent.bytes()).unwrap_or(CHUNK_BYTES_MAX);
        let plain = match self.encoding {
            Encoding::Plain => stored.to_vec(),
            Encoding::Zstd => zstd::bulk::decompress(stored, length.min(CHUNK_BYTES_MAX))
                .map_err(|source| ChunkError::Zstd { name, source })?,
        };
        if plain.len() == length && hash(&plain) == self.plain {
            Ok(plain)
        } else {
            Err(ChunkError::Plain { name })
        }
    }
}

/// Makes stored bytes. Keeps its buffers between chunks.
pub(crate) struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> io::Result<Self> {
        let buffer = vec![0; zstd::zstd_safe::compress_bound(CHUNK_BYTES_MAX)];
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            buffer,
        })
    }

    /// The row and the stored bytes of a chunk of at most [`CHUNK_BYTES_MAX`], whole blocks.
    pub(crate) fn encode<'a>(
        &'a mut self,
        extent: Extent,
        plain: &'a [u8],
    ) -> io::Result<(Chunk, &'a [u8])> {
        let length = self
            .compressor
            .compress_to_buffer(plain, &mut self.buffer[..])?;
        let (encoding, stored) = if length < plain.len() {
            (Encoding::Zstd, &self.buffer[..length])
        } else {
            (Encoding::Plain, plain)
        };
        let stored_bytes = u32::try_from(stored.len()).map_err(io::Error::other)?;
        let plain = hash(plain);
        Ok((
            Chunk {
                extent,
                stored_bytes,
                encoding,
                plain,
                stored: hash(stored),
            },
            stored,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(plain: &[u8]) -> (Chunk, Vec<u8>) {
        let blocks = u32::try_from(plain.len() / 4096).expect("small");
        let mut encoder = Encoder::new().expect("zstd");
        let made = encoder
            .encode(
                Extent {
                    start_block: 9,
                    blocks,
                },
                plain,
            )
            .expect("zstd");
        (made.0, made.1.to_vec())
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn chunks_open_again_compressed_or_not() {
        for (plain, encoding) in [
            (vec![7; 8192], Encoding::Zstd),
            (noise(8192), Encoding::Plain),
        ] {
            let (chunk, stored) = sample(&plain);
            assert_eq!(chunk.encoding, encoding);
            assert_eq!(chunk.open(&stored).expect("intact"), plain);
        }
    }

    #[test]
    fn a_bomb_is_cut_at_the_length_of_the_chunk() {
        let (mut chunk, stored) = sample(&vec![0; CHUNK_BYTES_MAX]);
        chunk.extent.blocks = 1;
        assert!(matches!(chunk.open(&stored), Err(ChunkError::Zstd { .. })));
    }

    #[test]
    fn changed_bytes_are_refused_by_either_hash() {
        let (chunk, mut stored) = sample(&[7; 8192]);
        let lies = Chunk {
            plain: Digest([0; 32]),
            ..chunk
        };
        assert!(matches!(lies.open(&stored), Err(ChunkError::Plain { .. })));
        stored[3] ^= 1;
        assert!(matches!(
            chunk.open(&stored),
            Err(ChunkError::StoredHash(_))
        ));
        assert!(matches!(
            chunk.open(&stored[1..]),
            Err(ChunkError::Length { .. })
        ));
    }

    #[test]
    fn the_object_path_is_the_stored_hash() {
        let path = object_path(&Digest([0xab; 32]));
        assert_eq!(path, format!("chunks/ab/{}", "ab".repeat(31)));
    }
}
