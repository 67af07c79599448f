//! Block devices.
//!
//! Owns: their ioctls. Refuses: content other than zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

// linux/fs.h
nix::ioctl_none!(blkrrpart, 0x12, 95);
nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);

/// Makes the kernel read the partition table again. Fails with `EBUSY` while a partition is in use.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument; the descriptor is open as long as `disk` is borrowed.
    unsafe { blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}

/// Size in bytes of a block device.
pub fn size(disk: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the ioctl writes one u64, which lives until it returns.
    unsafe { blkgetsize64(disk.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Gives these bytes of a block device back: nobody needs what they hold. Whole sectors. Fails with `EOPNOTSUPP`
/// where the device cannot.
pub fn discard(disk: &File, bytes: Range<u64>) -> io::Result<()> {
    let range = [bytes.start, bytes.end.saturating_sub(bytes.start)];
    // SAFETY: the ioctl reads start and length, which live until it returns.
    unsafe { blkdiscard(disk.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Makes these bytes of a block device zeros. Whole sectors. Where the device cannot, the kernel writes them.
pub fn zero(disk: &File, bytes: Range<u64>) -> io::Result<()> {
    let range = [bytes.start, bytes.end.saturating_sub(bytes.start)];
    // SAFETY: as in `discard`.
    unsafe { blkzeroout(disk.as_raw_fd(), &raw const range) }?;
    Ok(())
}
