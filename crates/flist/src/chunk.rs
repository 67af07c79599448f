//! One chunk: what the chunk table says of it, and how its stored bytes are made and opened.
//!
//! Owns: the encodings, both hashes, and the object name `chunks/<2 hex>/<62 hex>`. Every stored byte becomes a
//! plain one in [`Chunk::open`] and nowhere else.
//! Refuses: plain bytes that do not have the hash and length the table says.

use std::borrow::Cow;
use std::io;

use types::Digest;

use crate::map::Extent;
use crate::seal::{Key, Salt, TAG_BYTES};
use crate::{CHUNK_BYTES_MAX, STORED_BYTES_MAX};

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
    /// Where the stored bytes are encrypted.
    pub key: Option<Key>,
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
    #[error(
        "chunk {0} is not what its key has sealed: the flist is wrong, or not the one it was packed with"
    )]
    Sealed(Digest),
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
    /// Whether stored bytes of this length can be the chunk's at all.
    pub(crate) fn adds_up(&self) -> bool {
        let tag = self.key.map_or(0, |_| TAG_BYTES as u64);
        let Some(encoded) = u64::from(self.stored_bytes).checked_sub(tag) else {
            return false;
        };
        match self.encoding {
            Encoding::Plain => encoded == self.extent.bytes(),
            Encoding::Zstd => (1..self.extent.bytes()).contains(&encoded),
        }
    }

    /// Opens stored bytes: verifies their hash, decrypts them, decompresses into at most the chunk's own
    /// length, verifies the plain hash.
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
        let encoded = match &self.key {
            None => Cow::Borrowed(stored),
            Some(key) => {
                let mut bytes = stored.to_vec();
                key.open(&mut bytes).map_err(|_| ChunkError::Sealed(name))?;
                Cow::Owned(bytes)
            }
        };
        let plain = match self.encoding {
            Encoding::Plain => encoded.into_owned(),
            Encoding::Zstd => zstd::bulk::decompress(&encoded, length.min(CHUNK_BYTES_MAX))
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
    seal: Option<Seal>,
}

struct Seal {
    salt: Salt,
    buffer: Vec<u8>,
}

impl Encoder {
    /// With a salt, of encrypted chunks.
    pub(crate) fn new(salt: Option<&Salt>) -> io::Result<Self> {
        let buffer = vec![0; zstd::zstd_safe::compress_bound(CHUNK_BYTES_MAX)];
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            buffer,
            seal: salt.map(|salt| Seal {
                salt: salt.clone(),
                buffer: Vec::with_capacity(STORED_BYTES_MAX),
            }),
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
        let (encoding, encoded) = if length < plain.len() {
            (Encoding::Zstd, &self.buffer[..length])
        } else {
            (Encoding::Plain, plain)
        };
        let (key, stored) = match &mut self.seal {
            None => (None, encoded),
            Some(Seal { salt, buffer }) => {
                let key = salt.key_of(encoded);
                buffer.clear();
                buffer.extend_from_slice(encoded);
                key.seal(buffer);
                (Some(key), &buffer[..])
            }
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
                key,
            },
            stored,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(plain: &[u8]) -> (Chunk, Vec<u8>) {
        encoded(plain, None)
    }

    fn encoded(plain: &[u8], salt: Option<&Salt>) -> (Chunk, Vec<u8>) {
        let blocks = u32::try_from(plain.len() / 4096).expect("small");
        let mut encoder = Encoder::new(salt).expect("zstd");
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
    fn an_encrypted_chunk_opens_with_its_key_and_with_no_other() {
        let salt = Salt::new([9; 32]);
        for (plain, encoding) in [
            (vec![7; 8192], Encoding::Zstd),
            (noise(8192), Encoding::Plain),
            (noise(CHUNK_BYTES_MAX), Encoding::Plain),
        ] {
            let (chunk, stored) = encoded(&plain, Some(&salt));
            assert_eq!(chunk.encoding, encoding);
            assert!(chunk.adds_up() && stored.len() <= STORED_BYTES_MAX);
            assert_eq!(chunk.open(&stored).expect("intact"), plain);
            let (open, _) = encoded(&plain, None);
            assert_eq!(open.plain, chunk.plain);
            assert_ne!(
                open.stored, chunk.stored,
                "the name says nothing of the content"
            );
            let (other, _) = encoded(&plain, Some(&Salt::new([8; 32])));
            assert_ne!(other.stored, chunk.stored);
            let wrong = Chunk {
                key: other.key,
                ..chunk
            };
            assert!(matches!(wrong.open(&stored), Err(ChunkError::Sealed(_))));
        }
    }

    #[test]
    fn a_tag_that_is_not_the_keys_is_refused_even_where_the_name_fits() {
        let (chunk, mut stored) = encoded(&[7; 8192], Some(&Salt::new([9; 32])));
        let last = stored.len() - 1;
        stored[last] ^= 1;
        let lies = Chunk {
            stored: hash(&stored),
            ..chunk
        };
        assert!(matches!(lies.open(&stored), Err(ChunkError::Sealed(_))));
        let short = Chunk {
            stored: hash(&stored[..9]),
            stored_bytes: 9,
            ..chunk
        };
        assert!(!short.adds_up());
        assert!(matches!(
            short.open(&stored[..9]),
            Err(ChunkError::Sealed(_))
        ));
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
