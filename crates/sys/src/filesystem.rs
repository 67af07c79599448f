//! File systems that are mounted.
//!
//! Owns: their ioctls: to hold one still, and to have an ext4 span a larger disk.
//! Refuses: choosing when.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// linux/fs.h: FIFREEZE and FITHAW take an int that the kernel does not look at.
nix::ioctl_readwrite!(fifreeze, b'X', 119, i32);
nix::ioctl_readwrite!(fithaw, b'X', 120, i32);
// fs/ext4/ext4.h
nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);

/// Writes the file system out and lets nothing be written to it. `root` is its root directory.
pub fn freeze(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: the argument is an int that lives until the call returns; the descriptor is borrowed and so open.
    unsafe { fifreeze(root.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Has it go on.
pub fn thaw(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: as in `freeze`.
    unsafe { fithaw(root.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Has a mounted ext4 span so many of its blocks. Of one that does already: nothing.
pub fn grow_ext4(root: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads one u64, which lives until it returns; the descriptor is borrowed and so open.
    unsafe { ext4_resize_fs(root.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}
