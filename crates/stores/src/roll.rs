//! The list of an encrypted image's chunks: what a store is told instead of the flist, which has their keys.
//!
//! ```text
//! SIFRLST1 │ digest of the flist │ count u32 │ count × (name of the stored bytes, their length u32)
//! ```
//!
//! Owns: that form (docs/flist-format.md, "In stores"): little-endian, in the order of the names, each once.
//! Refuses: to vouch for it. Nothing signs a list, and nothing need: chunks have the hashes that they are named by, and a
//! list that lies only has a store keep, or carry, other chunks than the image's.

use thiserror::Error;
use types::Digest;

use crate::Piece;

const MAGIC: [u8; 8] = *b"SIFRLST1";
const HEADER_BYTES: usize = 44;
const ROW_BYTES: usize = 36;
/// Of so many chunks: more than an flist may have.
pub const BYTES_MAX: u64 = 64 << 20;
/// A chunk that is larger is none: 1 MiB, and the tag of its encryption.
const CHUNK_BYTES_MAX: u32 = (1 << 20) + 16;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RollError {
    #[error("it has {0} bytes, which its count of chunks does not explain")]
    Length(usize),
    #[error("it does not begin as a list of chunks does")]
    Magic,
    #[error("it is of another flist, {0}")]
    Flist(Digest),
    #[error("row {0} is out of order, or of no length that a chunk has")]
    Row(usize),
}

/// Of chunks in any order, each once.
pub fn encode(flist: &Digest, chunks: &[Piece]) -> Vec<u8> {
    let mut chunks = chunks.to_vec();
    chunks.sort_unstable();
    let mut out = Vec::with_capacity(HEADER_BYTES + ROW_BYTES * chunks.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&flist.0);
    let count = u32::try_from(chunks.len()).expect("an flist has fewer chunks");
    out.extend_from_slice(&count.to_le_bytes());
    for piece in chunks {
        out.extend_from_slice(&piece.name.0);
        out.extend_from_slice(&piece.bytes.to_le_bytes());
    }
    out
}

/// What a store gave as the list of `flist`'s chunks.
pub fn decode(bytes: &[u8], flist: &Digest) -> Result<Vec<Piece>, RollError> {
    let length = RollError::Length(bytes.len());
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(length);
    };
    if header[..8] != MAGIC {
        return Err(RollError::Magic);
    }
    let named = Digest(header[8..40].try_into().expect("32 bytes"));
    if named != *flist {
        return Err(RollError::Flist(named));
    }
    let count = u32::from_le_bytes(header[40..].try_into().expect("4 bytes"));
    let (rows, tail) = rest.as_chunks::<ROW_BYTES>();
    if !tail.is_empty() || rows.len() as u64 != u64::from(count) {
        return Err(length);
    }
    let mut pieces: Vec<Piece> = Vec::with_capacity(rows.len());
    for (number, row) in rows.iter().enumerate() {
        let piece = Piece {
            name: Digest(row[..32].try_into().expect("32 bytes")),
            bytes: u32::from_le_bytes(row[32..].try_into().expect("4 bytes")),
        };
        let in_order = pieces.last().is_none_or(|last| last.name < piece.name);
        if !in_order || piece.bytes == 0 || piece.bytes > CHUNK_BYTES_MAX {
            return Err(RollError::Row(number));
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLIST: Digest = Digest([7; 32]);

    fn piece(byte: u8, bytes: u32) -> Piece {
        Piece {
            name: Digest([byte; 32]),
            bytes,
        }
    }

    #[test]
    fn a_list_of_another_flist_cut_swollen_or_out_of_order_is_none() {
        let right = encode(&FLIST, &[piece(1, 10), piece(2, 20)]);
        let refused = |bytes: &[u8]| decode(bytes, &FLIST).expect_err("refused");
        for cut in 0..right.len() {
            assert!(matches!(refused(&right[..cut]), RollError::Length(_)));
        }
        let swollen = [&right[..], &[0; 36]].concat();
        assert!(matches!(refused(&swollen), RollError::Length(_)));
        let other = Digest([8; 32]);
        assert_eq!(decode(&right, &other), Err(RollError::Flist(FLIST)));
        let mut magic = right.clone();
        magic[0] ^= 1;
        assert_eq!(refused(&magic), RollError::Magic);
        let mut turned = right.clone();
        turned[HEADER_BYTES..].rotate_left(ROW_BYTES);
        assert_eq!(refused(&turned), RollError::Row(1));
        for rows in [
            [piece(1, 10), piece(1, 10)],
            [piece(1, 10), piece(2, 0)],
            [piece(1, 10), piece(2, u32::MAX)],
        ] {
            assert_eq!(refused(&encode(&FLIST, &rows)), RollError::Row(1));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_and_nothing_else_is_read(
            names in prop::collection::btree_map(any::<[u8; 32]>(), 1..=CHUNK_BYTES_MAX, 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let rows = names.into_iter().map(|(name, bytes)| Piece { name: Digest(name), bytes });
            let pieces: Vec<Piece> = rows.collect();
            let bytes = encode(&FLIST, &pieces);
            prop_assert_eq!(decode(&bytes, &FLIST), Ok(pieces));
            if let Ok(read) = decode(&noise, &FLIST) {
                prop_assert_eq!(encode(&FLIST, &read), noise);
            }
        }
    }
}
