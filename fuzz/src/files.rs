//! Files for readers that want one.
//!
//! Owns: files and directories in memory. Refuses: names that outlive an input.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;

/// A file in memory with this content.
pub(crate) fn file(content: &[u8]) -> File {
    let fd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("memory for a file");
    let file = File::from(fd);
    file.write_all_at(content, 0).expect("memory for a file");
    file
}

/// Memory, where the machine has it: readers that sync would wait for a disk.
const MEMORY: &str = "/dev/shm";

/// A directory that is gone when this is dropped.
pub(crate) fn directory() -> TempDir {
    let in_memory = tempfile::tempdir_in(MEMORY);
    in_memory
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}
