//! Block devices.
//!
//! Owns: their ioctls. Refuses: writing content.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// linux/fs.h
nix::ioctl_none!(blkrrpart, 0x12, 95);
nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);

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
