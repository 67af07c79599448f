//! What an NVMe controller tells of itself (linux/nvme_ioctl.h; NVM Express base specification, 5.16 "Get Log Page").
//!
//! Owns: the admin ioctl, bounded in time. Refuses: any command that changes something: pages of the log are read, nothing else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::scsi::millis;

/// Opcode of Get Log Page.
const GET_LOG_PAGE: u8 = 0x02;
/// Every namespace: the log of the controller.
const ALL: u32 = 0xffff_ffff;

/// `struct nvme_admin_cmd`.
#[repr(C)]
#[derive(Debug, Default)]
struct Command {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    words_2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    words_10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}
nix::ioctl_readwrite!(admin, b'N', 0x41, Command);

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Given,
    /// The controller's own status.
    Refused(i32),
}

/// Fills `page` from the beginning of the log page `number`. Whole words of four bytes.
pub fn log_page(disk: &File, number: u8, page: &mut [u8], timeout: Duration) -> io::Result<Reply> {
    let bytes = u32::try_from(page.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let words = match (bytes % 4, bytes / 4) {
        (0, words @ 1..=0xffff) => words - 1,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut command = Command {
        opcode: GET_LOG_PAGE,
        namespace: ALL,
        address: page.as_mut_ptr() as u64,
        data_bytes: bytes,
        words_10_15: [words << 16 | u32::from(number), 0, 0, 0, 0, 0],
        timeout_ms: millis(timeout),
        ..Command::default()
    };
    // SAFETY: `Command` is laid out as the kernel's, and lives until the call returns. The kernel copies at most `data_bytes`
    // to `address`: all of `page`, which is borrowed until then; it waits for the device itself, and nothing is written later.
    let status = unsafe { admin(disk.as_raw_fd(), &raw mut command) }?;
    Ok(match status {
        0 => Reply::Given,
        status => Reply::Refused(status),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_laid_out_as_the_kernels_and_pages_are_whole_words() {
        assert_eq!(std::mem::size_of::<Command>(), 72);
        assert_eq!(std::mem::offset_of!(Command, address), 24);
        assert_eq!(std::mem::offset_of!(Command, timeout_ms), 64);
        let file = tempfile::tempfile().expect("a file");
        let ask = |page: &mut [u8]| log_page(&file, 2, page, Duration::from_secs(1));
        let odd = ask(&mut [0; 511]).expect_err("no whole words");
        assert_eq!(odd.kind(), io::ErrorKind::InvalidInput);
        let none = ask(&mut []).expect_err("nothing");
        assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
        let file = ask(&mut [0; 512]).expect_err("no disk");
        assert_eq!(file.raw_os_error(), Some(libc::ENOTTY));
    }
}
