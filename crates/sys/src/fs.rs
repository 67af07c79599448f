//! Files: durable replacement, sealed memory, shared extents, holes, locks.
//!
//! Owns: the order of write, sync and rename. Refuses: knowing what is in a file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{
    AT_FDCWD, FallocateFlags, FcntlArg, OFlag, OpenHow, ResolveFlag, SealFlag, openat2,
};
use nix::sys::memfd::MFdFlags;

use crate::error::{During, Result};

/// Makes names that were made, renamed or removed in `directory` durable.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .during(|| format!("sync directory {}", directory.display()))
}

/// Replaces the file at `path` with `content` so that a power cut leaves the old or the new one, whole,
/// and returns when the new one is durable. `mode` is the new file's.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let during = || format!("write {}", path.display());
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        .during(during)?;
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        .during(during)?
        .to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    // One that a power cut left behind, perhaps with other permissions.
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).during(|| format!("remove {}", temporary.display())),
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .during(|| format!("create {}", temporary.display()))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .during(during)?;
    std::fs::rename(&temporary, path)
        .during(|| format!("rename {} over {}", temporary.display(), path.display()))?;
    sync_directory(directory)
}

/// Opens for reading what is at `path` itself: no part of the path may be a symbolic link, which whoever can write
/// to a directory on the way could lead elsewhere.
pub fn open_without_links(path: &Path) -> Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
        .map(File::from)
        .during(|| format!("open {} without following links", path.display()))
}

/// A memory file with `content` that nobody can change any more, not even its maker.
pub fn sealed_memory(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd =
        nix::sys::memfd::memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .during(|| format!("make memory file {name}"))?;
    let mut file = File::from(fd);
    file.write_all(content)
        .during(|| format!("fill memory file {name}"))?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    nix::fcntl::fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
        .during(|| format!("seal memory file {name}"))?;
    io::Seek::rewind(&mut file).during(|| format!("rewind memory file {name}"))?;
    Ok(file.into())
}

// FICLONE, linux/fs.h.
nix::ioctl_write_int_bad!(ficlone, libc::FICLONE);

/// Makes `target` a copy of `source` that shares its extents. Only within one file system that can.
pub fn reflink(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor number as its argument, no memory; both are borrowed and so open.
    unsafe { ficlone(target.as_raw_fd(), source.as_raw_fd()) }?;
    Ok(())
}

/// Gives the range's blocks back to the file system; it reads as zeros from now on.
pub fn punch_hole(file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = |n: u64| i64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(file, flags, range(offset)?, range(length)?)?;
    Ok(())
}

/// Gives the file's first `length` bytes room on the disk, whatever its length is and stays. Where the file
/// system cannot promise that, nothing is promised and that is no error.
pub fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match nix::fcntl::fallocate(file, flags, 0, length) {
        Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_path_with_a_link_in_it_is_not_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        // The directory's own path may have links, as /tmp has on some systems.
        let real = directory.path().canonicalize().expect("a path");
        let (file, link) = (real.join("file"), real.join("link"));
        std::fs::write(&file, b"x").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        std::os::unix::fs::symlink(&real, real.join("here")).expect("linked");
        assert!(open_without_links(&file).is_ok());
        for path in [link, real.join("here/file")] {
            let error = open_without_links(&path).expect_err("a link");
            assert_eq!(error.source.raw_os_error(), Some(nix::libc::ELOOP));
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_left_over_temporary_is_no_obstacle() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        std::fs::write(directory.path().join("f.new"), "torn").expect("a left-over");
        write_atomic(&path, b"one", 0o600).expect("write");
        write_atomic(&path, b"two", 0o600).expect("write");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        assert!(!directory.path().join("f.new").exists());
    }

    #[test]
    fn sealed_memory_cannot_be_written() {
        let file = File::from(sealed_memory("test", b"abc").expect("memory"));
        let mut byte = [0; 3];
        file.read_exact_at(&mut byte, 0).expect("read");
        assert_eq!(&byte, b"abc");
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
    }

    #[test]
    fn what_is_reserved_takes_room_and_no_length() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"abc", 0).expect("write");
        reserve(&file, 1 << 20).expect("room");
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), 3);
        assert!(metadata.blocks() * 512 >= 1 << 20);
    }

    #[test]
    fn a_hole_reads_as_zeros_and_the_size_stays() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 8192], 0).expect("write");
        punch_hole(&file, 4096, 4096).expect("a hole");
        let mut bytes = [1; 8192];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes[..4096].iter().all(|b| *b == 7) && bytes[4096..].iter().all(|b| *b == 0));
    }
}
