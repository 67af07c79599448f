//! The state file: a header that can be judged before anything else is read, and JSON.
//!
//! ```text
//!  0  8  "SIFRSNAP"
//!  8  4  version            little-endian, as all numbers here
//! 12  4  reserved, zero
//! 16  8  bytes of the JSON
//! 24  8  reserved, zero
//! 32 32  BLAKE3 of bytes 0 to 31 and of the JSON
//! 64     the JSON, to the end of the file
//! ```
//!
//! Owns: these bytes. Refuses: files of other versions, of other lengths, and those in which a bit differs
//! from what was written. What it hands on is as its writer wrote it, and no more trusted than the writer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::State;

const MAGIC: &[u8; 8] = b"SIFRSNAP";
/// Counts up with each change of what the JSON means.
pub(crate) const VERSION: u32 = 2;
const HEADER_BYTES: usize = 64;
/// 32 vCPUs have 2 MiB of registers as text, a digest for each block of 64 GiB of memory has 20 MiB.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("read the snapshot's state")]
    Read(#[source] io::Error),
    #[error("write the snapshot's state")]
    Write(#[source] io::Error),
    #[error(
        "this is no state file of a snapshot: pass the first of the two files that the snapshot was written to"
    )]
    Magic,
    #[error(
        "the snapshot has version {0}, this sifr-vmm reads version {VERSION}: restore it with a sifr-vmm of the release that wrote it"
    )]
    Version(u32),
    #[error(
        "the snapshot's state has {found} bytes, its header says {said}: the file was cut or added to, take it from where it was copied from"
    )]
    Length { found: u64, said: u64 },
    #[error("the snapshot's state has more than {PAYLOAD_BYTES_MAX} bytes")]
    Long,
    #[error(
        "the snapshot's state is damaged, its digest does not match: take it from where it was copied from"
    )]
    Digest,
    #[error("the snapshot's state is not what this version holds: it was not written by sifr-vmm")]
    Content(#[source] serde_json::Error),
}

fn digest(header: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..32]).update(payload);
    *hasher.finalize().as_bytes()
}

pub(crate) fn encode(state: &State) -> Vec<u8> {
    seal(&serde_json::to_vec(state).expect("plain data"))
}

/// A file of this version with this JSON.
pub(crate) fn seal(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    let digest = digest(&out, payload);
    out[32..].copy_from_slice(&digest);
    out.extend(payload);
    out
}

/// The whole content of a state file.
pub(crate) fn decode(bytes: &[u8]) -> Result<State, FormatError> {
    let (header, payload) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or(FormatError::Magic)?;
    if !header.starts_with(MAGIC) {
        return Err(FormatError::Magic);
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let said = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
    let found = payload.len() as u64;
    if found != said {
        return Err(FormatError::Length { found, said });
    }
    if digest(header, payload) != header[32..] {
        return Err(FormatError::Digest);
    }
    serde_json::from_slice(payload).map_err(FormatError::Content)
}

pub(crate) fn read(file: &File) -> Result<State, FormatError> {
    let length = file.metadata().map_err(FormatError::Read)?.len();
    if length > PAYLOAD_BYTES_MAX + HEADER_BYTES as u64 {
        return Err(FormatError::Long);
    }
    let mut bytes = vec![0; usize::try_from(length).expect("64-bit only")];
    file.read_exact_at(&mut bytes, 0)
        .map_err(FormatError::Read)?;
    decode(&bytes)
}

/// In the place of whatever the file held. Returns the bytes written.
pub(crate) fn write(file: &File, state: &State) -> Result<u64, FormatError> {
    let bytes = encode(state);
    file.set_len(0).map_err(FormatError::Write)?;
    file.write_all_at(&bytes, 0).map_err(FormatError::Write)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::state;
    use proptest::prelude::*;

    #[test]
    fn a_state_reads_back() {
        let state = state();
        let bytes = encode(&state);
        assert_eq!(encode(&decode(&bytes).expect("reads")), bytes);
    }

    #[test]
    fn a_newer_version_is_refused_by_its_name() {
        let mut bytes = encode(&state());
        bytes[8] += 1;
        let error = decode(&bytes).expect_err("newer");
        assert!(error.to_string().contains("version 3"), "{error}");
    }

    proptest! {
        #[test]
        fn no_flipped_bit_is_overlooked(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = encode(&state());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_cut_and_no_tail_is_overlooked(at in any::<prop::sample::Index>(), tail in 1usize..100) {
            let bytes = encode(&state());
            prop_assert!(decode(&bytes[..at.index(bytes.len())]).is_err());
            prop_assert!(decode(&[&bytes[..], &vec![0; tail]].concat()).is_err());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), is_ours: bool) {
            let mut bytes = bytes;
            if is_ours && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
