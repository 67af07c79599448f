//! The metadata area in columns: the order of its bytes in which they compress best.
//!
//! Owns: turning it there and back, a segment at a time, in memory that does not grow with the area.
//! Refuses: knowing on the way back what the records are. Where they lie is said, and checked; what is in them is bytes.
//!
//! An inode's fields resemble those of the inode before it, and so do a directory's entries; but they stand 64 and 12
//! bytes apart, with names between them. docs/flist-format.md, "Columns".

use std::io::{self, Read, Write};
use std::ops::Range;

/// What is turned at once: bounds a reader's memory. Whole blocks, which no record crosses.
pub const SEGMENT_BYTES: usize = 1 << 20;

/// Records of one length.
struct Class {
    bytes: usize,
    /// Of these bytes the difference to the record before stands in the column: numbers that count up.
    differences: Range<usize>,
}

/// Inodes: of these the first block and the serial number. Directory entries: the inode's number and where the name is.
const CLASSES: [Class; 2] = [
    Class {
        bytes: 64,
        differences: 16..24,
    },
    Class {
        bytes: 12,
        differences: 0..10,
    },
];

/// Where the records of each class begin: bytes of the metadata area, ascending.
#[derive(Debug, Default)]
pub(crate) struct Records(pub(crate) [Vec<usize>; 2]);

pub(crate) fn encode(metadata: &[u8], records: &Records) -> Vec<u8> {
    let mut out = Vec::with_capacity(metadata.len());
    for (number, segment) in metadata.chunks(SEGMENT_BYTES).enumerate() {
        let start = number * SEGMENT_BYTES;
        let inside = |all: &Vec<usize>| {
            let inside = all.iter().map(|at| at.wrapping_sub(start));
            inside.filter(|at| *at < segment.len()).collect::<Vec<_>>()
        };
        let records = records.0.each_ref().map(inside);
        for records in &records {
            out.extend_from_slice(&number_of(records.len()).to_le_bytes());
        }
        let mut taken = vec![false; segment.len()];
        for (class, records) in CLASSES.iter().zip(&records) {
            encode_places(records, &mut out);
            for column in 0..class.bytes {
                let mut before = 0;
                for at in records {
                    let byte = segment[at + column];
                    out.push(byte.wrapping_sub(before));
                    if class.differences.contains(&column) {
                        before = byte;
                    }
                }
            }
            for at in records {
                taken[*at..at + class.bytes].fill(true);
            }
        }
        let rest = segment.iter().zip(&taken).filter(|(_, taken)| !**taken);
        out.extend(rest.map(|(byte, _)| byte));
    }
    out
}

fn number_of(n: usize) -> u32 {
    u32::try_from(n).expect("at most SEGMENT_BYTES")
}

/// Each as the distance from the one before, the four bytes of these in columns.
fn encode_places(records: &[usize], out: &mut Vec<u8>) {
    for column in 0..4 {
        let mut before = 0;
        for at in records {
            out.push(number_of(at - before).to_le_bytes()[column]);
            before = *at;
        }
    }
}

/// Turns `bytes` bytes of metadata back. What is behind them stays in `input`.
///
/// # Errors
/// Of `input` and `out`, and `InvalidData` where records overlap or lie outside their segment.
pub fn decode(input: &mut impl Read, bytes: u64, out: &mut impl Write) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(SEGMENT_BYTES, |left| left.min(SEGMENT_BYTES));
        out.write_all(&decode_segment(input, length)?)?;
        left -= length as u64;
    }
    Ok(())
}

fn decode_segment(input: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut counts = [0; 2];
    for count in &mut counts {
        let mut bytes = [0; 4];
        input.read_exact(&mut bytes)?;
        *count = u32::from_le_bytes(bytes) as usize;
    }
    let claimed = CLASSES.iter().zip(counts);
    let claimed = claimed.map(|(class, count)| class.bytes.saturating_mul(count));
    let claimed = claimed.fold(0, usize::saturating_add);
    if claimed > length {
        return Err(wrong("claims more records than it has bytes"));
    }
    let (mut segment, mut taken) = (vec![0; length], vec![false; length]);
    for (class, count) in CLASSES.iter().zip(counts) {
        let places = decode_places(input, count)?;
        for at in &places {
            let end = at.saturating_add(class.bytes);
            let free = taken.get_mut(*at..end);
            let free = free.filter(|free| free.iter().all(|taken| !taken));
            free.ok_or_else(|| wrong("has records that overlap or are outside"))?
                .fill(true);
        }
        let mut columns = vec![0; count * class.bytes];
        input.read_exact(&mut columns)?;
        for (column, bytes) in columns.chunks_exact(count.max(1)).enumerate() {
            let mut before = 0;
            for (at, byte) in places.iter().zip(bytes) {
                let byte = byte.wrapping_add(before);
                segment[at + column] = byte;
                if class.differences.contains(&column) {
                    before = byte;
                }
            }
        }
    }
    let mut rest = vec![0; length - claimed];
    input.read_exact(&mut rest)?;
    let free = segment.iter_mut().zip(&taken).filter(|(_, taken)| !**taken);
    for ((into, _), byte) in free.zip(rest) {
        *into = byte;
    }
    Ok(segment)
}

fn decode_places(input: &mut impl Read, count: usize) -> io::Result<Vec<usize>> {
    let mut columns = vec![0; count * 4];
    input.read_exact(&mut columns)?;
    let mut at = 0usize;
    let place = |record: usize| {
        let byte = |column: usize| columns[column * count + record];
        let distance = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
        at = at.saturating_add(distance as usize);
        at
    };
    Ok((0..count).map(place).collect())
}

fn wrong(what: &str) -> io::Error {
    let message = format!("a segment of the metadata area {what}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn back(columns: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
        let (mut input, mut out) = (columns, Vec::new());
        decode(&mut input, bytes as u64, &mut out)?;
        assert!(input.is_empty(), "{} bytes are left", input.len());
        Ok(out)
    }

    #[test]
    fn two_entries_and_a_name_stand_as_the_document_shows() {
        // Bytes 0 to 11 and 12 to 23 are entries, behind them is a name.
        let mut area = vec![0; 4096];
        area[..12].copy_from_slice(&[36, 0, 0, 0, 0, 0, 0, 0, 24, 0, 2, 0]);
        area[12..24].copy_from_slice(&[39, 0, 0, 0, 0, 0, 0, 0, 25, 0, 1, 0]);
        area[24] = b'.';
        let columns = encode(&area, &Records([Vec::new(), vec![0, 12]]));
        let mut expected = vec![0, 0, 0, 0, 2, 0, 0, 0];
        expected.extend([0, 12, 0, 0, 0, 0, 0, 0]);
        expected.extend([36, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([24, 1, 0, 0, 2, 1, 0, 0]);
        expected.push(b'.');
        expected.resize(8 + 8 + 4096, 0);
        assert_eq!(columns, expected);
        assert_eq!(back(&columns, area.len()).expect("is right"), area);
    }

    #[test]
    fn records_that_overlap_or_lie_outside_are_refused() {
        let mut segment = vec![0; 4096];
        segment[..8].copy_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0]);
        for distances in [[0, 11], [0, 0], [4085, 12], [200, 0]] {
            segment[8..16].fill(0);
            let columns = [distances[0], distances[1]].map(|d: u32| d.to_le_bytes());
            for (record, bytes) in columns.iter().enumerate() {
                for (column, byte) in bytes.iter().enumerate() {
                    segment[8 + column * 2 + record] = *byte;
                }
            }
            let said = back(&segment, 4096).expect_err("is wrong").to_string();
            assert!(said.contains("overlap or are outside"), "{said}");
        }
        segment[..8].fill(255);
        let said = back(&segment, 4096).expect_err("is wrong").to_string();
        assert!(said.contains("more records"), "{said}");
    }

    proptest! {
        // Each case turns up to 1.3 MiB byte by byte.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_lies_wherever_comes_back(
            seed in any::<u64>(), blocks in 1usize..330,
            gaps in prop::collection::vec((0usize..90_000, any::<bool>()), 0..200),
        ) {
            let mut area = vec![0; blocks * 4096];
            let mut noise = blake3::Hasher::new();
            noise.update(&seed.to_le_bytes()).finalize_xof().fill(&mut area);
            let (mut records, mut at) = (Records::default(), 0);
            for (gap, is_inode) in gaps {
                let class = usize::from(!is_inode);
                at += gap;
                if at % 4096 + CLASSES[class].bytes > 4096 {
                    at = at.next_multiple_of(4096);
                }
                if at + CLASSES[class].bytes > area.len() {
                    break;
                }
                records.0[class].push(at);
                at += CLASSES[class].bytes;
            }
            let columns = encode(&area, &records);
            prop_assert!(back(&columns, area.len()).expect("is right") == area);
        }
    }
}
