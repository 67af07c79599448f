//! What disks behind the kernel's SCSI layer tell of themselves: SCSI's own, and ATA's through it (scsi/sg.h, SPC-5, SAT-4).
//!
//! Owns: the ioctl, the blocks of its commands, and their bound in time. Refuses: any command that changes something, and
//! reading what comes back: that is the disk's word (`storage::smart` reads it).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `SG_IO`.
const SG_IO: libc::Ioctl = 0x2285;
nix::ioctl_readwrite_bad!(sg_io, SG_IO, Header);

/// Sense data that is kept: descriptors of ATA are 22 bytes.
pub const SENSE_BYTES: usize = 64;
/// Status of a command that is done, and of one whose sense data says more.
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
/// `DID_TIME_OUT`.
const HOST_TIMEOUT: u16 = 3;
/// Blocks of ATA.
const BLOCK: usize = 512;

/// `struct sg_io_hdr`.
#[repr(C)]
#[derive(Debug)]
struct Header {
    interface: i32,
    direction: i32,
    command_bytes: u8,
    sense_max: u8,
    pieces: u16,
    data_bytes: u32,
    data: *mut u8,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_bytes: u8,
    host_status: u16,
    driver_status: u16,
    rest: i32,
    duration_ms: u32,
    info: u32,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// So many bytes came.
    Given(usize),
    /// Its sense data: a refusal, or what was asked for by it.
    Sense(Vec<u8>),
    /// The transport failed, or the disk was busy: status of host and disk.
    Failed { host: u16, status: u8 },
}

/// A command of ATA that changes nothing (ACS-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ata {
    Identify,
    SmartData,
    SmartThresholds,
    /// Its answer is in the registers, which come as sense data.
    SmartStatus,
    /// READ LOG EXT.
    Log {
        log: u8,
        page: u8,
    },
}

impl Ata {
    /// ATA PASS-THROUGH(16).
    fn block(self) -> [u8; 16] {
        /// Protocols: one that moves no data, one whose data comes by the processor; and that its fields have 16 bits.
        const NO_DATA: u8 = 3 << 1;
        const DATA_IN: u8 = 4 << 1;
        const EXTENDED: u8 = 1;
        /// Registers come back; data comes, as many blocks as the count says.
        const REGISTERS: u8 = 1 << 5;
        const BLOCKS_IN: u8 = 1 << 3 | 1 << 2 | 2;
        // The signature that each SMART command has in its address.
        let smart = |protocol, how, feature| {
            let mut block = [0; 16];
            (block[1], block[2], block[4]) = (protocol, how, feature);
            (block[6], block[10], block[12], block[14]) = (1, 0x4f, 0xc2, 0xb0);
            block
        };
        let mut block = match self {
            Self::SmartData => smart(DATA_IN, BLOCKS_IN, 0xd0),
            Self::SmartThresholds => smart(DATA_IN, BLOCKS_IN, 0xd1),
            Self::SmartStatus => smart(NO_DATA, REGISTERS, 0xda),
            Self::Identify => {
                let mut block = [0; 16];
                (block[1], block[2], block[6], block[14]) = (DATA_IN, BLOCKS_IN, 1, 0xec);
                block
            }
            Self::Log { log, page } => {
                let mut block = [0; 16];
                (block[1], block[2], block[6]) = (DATA_IN | EXTENDED, BLOCKS_IN, 1);
                (block[8], block[10], block[14]) = (log, page, 0x2f);
                block
            }
        };
        block[0] = 0x85;
        block
    }
}

/// Asks an ATA disk. One block comes, or none.
pub fn ata(
    disk: &File,
    command: Ata,
    block: &mut [u8; BLOCK],
    timeout: Duration,
) -> io::Result<Reply> {
    let data = match command {
        Ata::SmartStatus => &mut [],
        Ata::Identify | Ata::SmartData | Ata::SmartThresholds | Ata::Log { .. } => &mut block[..],
    };
    ask(disk, &command.block(), data, timeout)
}

/// LOG SENSE: the page `number`, its counters as they are now.
pub fn log_sense(disk: &File, number: u8, page: &mut [u8], timeout: Duration) -> io::Result<Reply> {
    /// Cumulative values.
    const NOW: u8 = 1 << 6;
    let room = u16::try_from(page.len()).unwrap_or(u16::MAX).to_be_bytes();
    let (command, page_code) = (0x4d, NOW | number & 0x3f);
    let block = [command, 0, page_code, 0, 0, 0, 0, room[0], room[1], 0];
    let room = usize::from(u16::from_be_bytes(room));
    ask(disk, &block, &mut page[..room], timeout)
}

/// A bound as ioctls take it; none would be the kernel's own, of a minute.
pub(crate) fn millis(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

fn ask(disk: &File, command: &[u8], data: &mut [u8], timeout: Duration) -> io::Result<Reply> {
    /// `SG_DXFER_NONE`, `SG_DXFER_FROM_DEV`.
    const NONE: i32 = -1;
    const FROM_DISK: i32 = -3;
    let mut sense = [0; SENSE_BYTES];
    let data_bytes = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let command_bytes = u8::try_from(command.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut header = Header {
        interface: i32::from(b'S'),
        direction: if data.is_empty() { NONE } else { FROM_DISK },
        command_bytes,
        sense_max: u8::try_from(SENSE_BYTES).unwrap_or(u8::MAX),
        pieces: 0,
        data_bytes,
        data: data.as_mut_ptr(),
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: millis(timeout),
        flags: 0,
        id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_bytes: 0,
        host_status: 0,
        driver_status: 0,
        rest: 0,
        duration_ms: 0,
        info: 0,
    };
    // SAFETY: `Header` is laid out as the kernel's, and lives until the call returns, as `command`, `data` and `sense` do, whose
    // lengths stand in it. The kernel writes no more than those, and nothing after it has returned.
    unsafe { sg_io(disk.as_raw_fd(), &raw mut header) }?;
    reply(&header, data.len(), &sense)
}

fn reply(header: &Header, room: usize, sense: &[u8]) -> io::Result<Reply> {
    let (host, status) = (header.host_status, header.status);
    match (host, status) {
        (HOST_TIMEOUT, _) => Err(io::ErrorKind::TimedOut.into()),
        (0, GOOD) => {
            let rest = usize::try_from(header.rest).unwrap_or(0);
            Ok(Reply::Given(room.saturating_sub(rest)))
        }
        (0, CHECK_CONDITION) => {
            let length = usize::from(header.sense_bytes).min(sense.len());
            Ok(Reply::Sense(sense[..length].to_vec()))
        }
        (host, status) => Ok(Reply::Failed { host, status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_the_specification() {
        // As smartctl sends them (`smartctl -r ioctl,2`).
        let identify = [0x85, 0x08, 0x0e, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xec, 0];
        assert_eq!(Ata::Identify.block(), identify);
        let data = [
            0x85, 0x08, 0x0e, 0, 0xd0, 0, 1, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0xb0, 0,
        ];
        assert_eq!(Ata::SmartData.block(), data);
        let status = Ata::SmartStatus.block();
        assert_eq!((status[1], status[2], status[4]), (6, 0x20, 0xda));
        let log = Ata::Log { log: 4, page: 7 }.block();
        assert_eq!(
            (log[1], log[8], log[10], log[12], log[14]),
            (9, 4, 7, 0, 0x2f)
        );
    }

    #[test]
    fn what_is_no_scsi_disk_says_so_and_a_header_is_laid_out_as_the_kernels() {
        assert_eq!(std::mem::size_of::<Header>(), 88);
        assert_eq!(std::mem::offset_of!(Header, timeout_ms), 40);
        assert_eq!(std::mem::offset_of!(Header, info), 80);
        let file = tempfile::tempfile().expect("a file");
        let wait = Duration::from_secs(1);
        let error = log_sense(&file, 0, &mut [0; 252], wait).expect_err("no disk");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        assert!(ata(&file, Ata::Identify, &mut [0; 512], wait).is_err());
    }
}
