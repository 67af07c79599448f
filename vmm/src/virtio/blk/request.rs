//! One block request, read from a chain and checked against the disk.
//!
//! Owns: the layout of requests (VIRTIO 1.2 section 5.2.6) and the bounds of the disk.
//! Refuses: what reaches beyond the disk, is no multiple of a sector, or writes to a read-only disk.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::memory::GuestRam;
use crate::virtio::chain::{Chain, Segments};
use crate::virtio::ring::Violation;

pub(crate) const SECTOR: u64 = 512;
const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
/// Most ranges of one discard or write-zeroes request, and sectors of each: said in the configuration
/// space. One range is what Linux sends unless asked for more.
pub(crate) const RANGES_MAX: u64 = 16;
pub(crate) const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Length of the serial in an answer to "get id".
pub(crate) const SERIAL_BYTES: usize = 20;
/// Flag of a write-zeroes range: the blocks may be given back.
const UNMAP: u32 = 1;

/// The last byte of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    IoError,
    Unsupported,
}

impl Outcome {
    pub(crate) const fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// What a request may ask of this disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) read_only: bool,
}

/// Bytes of the disk that a discard or write-zeroes request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) unmap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Read { offset: u64, data: Segments },
    Write { offset: u64, data: Segments },
    Flush,
    Identify { data: Segments },
    Discard(Vec<ByteRange>),
    WriteZeroes(Vec<ByteRange>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) head: u16,
    /// Where the outcome goes.
    pub(crate) status: Segments,
    /// What to do, or the outcome that is known already.
    pub(crate) operation: Result<Operation, Outcome>,
}

impl Request {
    /// A chain without room for header and status cannot even be answered.
    pub(crate) fn read(
        ram: &GuestRam,
        mut chain: Chain,
        limits: Limits,
    ) -> Result<Self, Violation> {
        let header = chain.readable.split_front(HEADER_BYTES);
        let header = header.ok_or(Violation::Request("block request without a header"))?;
        let status = chain.writable.split_back(1);
        let status = status.ok_or(Violation::Request("block request without a status byte"))?;
        let mut bytes = [0; 16];
        header.copy_to(ram, &mut bytes);
        let (kind, _) = bytes.split_first_chunk::<4>().expect("16 bytes");
        let (_, sector) = bytes.split_last_chunk::<8>().expect("16 bytes");
        let sector = u64::from_le_bytes(*sector);
        let operation = operation(
            ram,
            u32::from_le_bytes(*kind),
            sector,
            chain.readable,
            chain.writable,
            limits,
        );
        Ok(Self {
            head: chain.head,
            status,
            operation,
        })
    }
}

impl Request {
    /// Bytes of content that it moves.
    pub(crate) fn data_bytes(&self) -> u64 {
        match &self.operation {
            Ok(Operation::Read { data, .. } | Operation::Write { data, .. }) => data.bytes(),
            Ok(
                Operation::Flush
                | Operation::Identify { .. }
                | Operation::Discard(_)
                | Operation::WriteZeroes(_),
            )
            | Err(_) => 0,
        }
    }
}

fn operation(
    ram: &GuestRam,
    kind: u32,
    sector: u64,
    readable: Segments,
    writable: Segments,
    limits: Limits,
) -> Result<Operation, Outcome> {
    let writes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if writes && limits.read_only {
        return Err(Outcome::IoError);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = inside(sector, writable.bytes(), limits)?;
            Ok(Operation::Read {
                offset,
                data: writable,
            })
        }
        VIRTIO_BLK_T_OUT => {
            let offset = inside(sector, readable.bytes(), limits)?;
            Ok(Operation::Write {
                offset,
                data: readable,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_GET_ID if writable.bytes() >= SERIAL_BYTES as u64 => {
            Ok(Operation::Identify { data: writable })
        }
        VIRTIO_BLK_T_GET_ID => Err(Outcome::IoError),
        VIRTIO_BLK_T_DISCARD => Ok(Operation::Discard(ranges(ram, &readable, limits)?)),
        VIRTIO_BLK_T_WRITE_ZEROES => Ok(Operation::WriteZeroes(ranges(ram, &readable, limits)?)),
        _ => Err(Outcome::Unsupported),
    }
}

/// Byte offset of a transfer of whole sectors that lies inside the disk.
fn inside(sector: u64, length: u64, limits: Limits) -> Result<u64, Outcome> {
    let offset = sector.checked_mul(SECTOR).ok_or(Outcome::IoError)?;
    let end = offset.checked_add(length).ok_or(Outcome::IoError)?;
    let fits = end <= limits.bytes && length.is_multiple_of(SECTOR);
    if fits {
        Ok(offset)
    } else {
        Err(Outcome::IoError)
    }
}

fn ranges(ram: &GuestRam, data: &Segments, limits: Limits) -> Result<Vec<ByteRange>, Outcome> {
    let length = data.bytes();
    if length == 0 || !length.is_multiple_of(RANGE_BYTES) || length / RANGE_BYTES > RANGES_MAX {
        return Err(Outcome::IoError);
    }
    let mut bytes = vec![0; usize::try_from(length).expect("256 bytes at most")];
    data.copy_to(ram, &mut bytes);
    let (entries, _) = bytes.as_chunks::<16>();
    entries.iter().map(|entry| range(entry, limits)).collect()
}

/// Sector u64, count u32, flags u32.
fn range(entry: &[u8; 16], limits: Limits) -> Result<ByteRange, Outcome> {
    let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes"));
    let sector = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
    let (count, flags) = (word(8), word(12));
    if flags & !UNMAP != 0 {
        return Err(Outcome::Unsupported);
    }
    if count == 0 || count > RANGE_SECTORS_MAX {
        return Err(Outcome::IoError);
    }
    let length = u64::from(count) * SECTOR;
    let start = inside(sector, length, limits)?;
    Ok(ByteRange {
        start,
        length,
        unmap: flags & UNMAP != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    const DISK: Limits = Limits {
        bytes: 64 * SECTOR,
        read_only: false,
    };
    const READ_ONLY: Limits = Limits {
        read_only: true,
        ..DISK
    };

    /// Address and length of each piece.
    type Parts<'p> = &'p [(u64, u32)];

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("maps")
    }

    fn request(
        ram: &GuestRam,
        kind: u32,
        sector: u64,
        chain: (Parts<'_>, Parts<'_>),
        limits: Limits,
    ) -> Request {
        ram.write_obj(kind, GuestAddress(0)).expect("inside");
        ram.write_obj(sector, GuestAddress(8)).expect("inside");
        let readable = [&[(0, 16)], chain.0].concat();
        let writable = [chain.1, &[(0x100, 1)]].concat();
        let chain = Chain {
            head: 3,
            readable: Segments::from_parts(&readable),
            writable: Segments::from_parts(&writable),
        };
        Request::read(ram, chain, limits).expect("answerable")
    }

    #[test]
    fn a_read_at_the_end_of_the_disk_fits_and_one_sector_more_does_not() {
        let ram = ram();
        let read = |sector, length| {
            request(
                &ram,
                VIRTIO_BLK_T_IN,
                sector,
                (&[], &[(0x1000, length)]),
                DISK,
            )
            .operation
        };
        assert!(matches!(read(63, 512), Ok(Operation::Read { offset, .. }) if offset == 63 * 512));
        for (sector, length) in [
            (64, 512),
            (63, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (0, 511),
        ] {
            assert_eq!(read(sector, length), Err(Outcome::IoError));
        }
    }

    #[test]
    fn a_read_only_disk_takes_no_write_of_any_kind() {
        let ram = ram();
        for kind in [
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_DISCARD,
            VIRTIO_BLK_T_WRITE_ZEROES,
        ] {
            let refused = request(&ram, kind, 0, (&[(0x1000, 512)], &[]), READ_ONLY).operation;
            assert_eq!(refused, Err(Outcome::IoError));
        }
    }

    #[test]
    fn data_may_share_a_descriptor_with_header_and_status() {
        let ram = ram();
        ram.write_obj(VIRTIO_BLK_T_IN, GuestAddress(0))
            .expect("inside");
        ram.write_obj(2u64, GuestAddress(8)).expect("inside");
        let chain = Chain {
            head: 0,
            readable: Segments::from_parts(&[(0, 16)]),
            writable: Segments::from_parts(&[(0x1000, 513)]),
        };
        let read = Request::read(&ram, chain, DISK).expect("answerable");
        assert_eq!(read.status, Segments::from_parts(&[(0x1200, 1)]));
        let data = Segments::from_parts(&[(0x1000, 512)]);
        assert_eq!(read.operation, Ok(Operation::Read { offset: 1024, data }));
    }

    #[test]
    fn a_request_that_cannot_be_answered_is_a_violation() {
        let ram = ram();
        let parts = |p: &[(u64, u32)]| Segments::from_parts(p);
        for (readable, writable) in [
            (parts(&[(0, 15)]), parts(&[(0x100, 1)])),
            (parts(&[(0, 16)]), parts(&[])),
        ] {
            assert!(
                Request::read(
                    &ram,
                    Chain {
                        head: 0,
                        readable,
                        writable
                    },
                    DISK
                )
                .is_err()
            );
        }
    }

    #[test]
    fn discards_are_bounded_in_number_length_and_flags() {
        let ram = ram();
        let discard = |sector: u64, count: u32, flags: u32, length: u32| {
            ram.write_obj(sector, GuestAddress(0x1000)).expect("inside");
            ram.write_obj(count, GuestAddress(0x1008)).expect("inside");
            ram.write_obj(flags, GuestAddress(0x100c)).expect("inside");
            request(
                &ram,
                VIRTIO_BLK_T_DISCARD,
                0,
                (&[(0x1000, length)], &[]),
                DISK,
            )
            .operation
        };
        let fine = ByteRange {
            start: 512,
            length: 1024,
            unmap: false,
        };
        assert_eq!(discard(1, 2, 0, 16), Ok(Operation::Discard(vec![fine])));
        assert_eq!(discard(1, 0, 0, 16), Err(Outcome::IoError));
        assert_eq!(discard(63, 2, 0, 16), Err(Outcome::IoError));
        assert_eq!(discard(1, 2, 2, 16), Err(Outcome::Unsupported));
        assert_eq!(discard(1, 2, 0, 17), Err(Outcome::IoError));
        assert_eq!(discard(1, 2, 0, 0), Err(Outcome::IoError));
        assert_eq!(discard(1, 2, 0, 272), Err(Outcome::IoError));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside_the_disk(
            kind in 0u32..16, sector in any::<u64>(), near in 0u64..70, length in 0u32..2000, far in any::<bool>(),
        ) {
            let ram = ram();
            let sector = if far { sector } else { near };
            let part: &[(u64, u32)] = &[(0x1000, length)];
            let made = request(&ram, kind, sector, (part, part), DISK);
            let (start, length) = match made.operation {
                Ok(Operation::Read { offset, data } | Operation::Write { offset, data }) => (offset, data.bytes()),
                _ => (0, 0),
            };
            prop_assert!(start.checked_add(length).is_some_and(|end| end <= DISK.bytes));
        }
    }
}
