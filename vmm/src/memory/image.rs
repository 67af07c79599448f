//! A file mapped for the guest alone: a disk image as memory.
//!
//! Owns: the mapping, read-only and shared with everybody who maps the same file.
//! Refuses: to look into it. Nothing of this process ever reads the mapping, so that a file which is cut short
//! all the same is the guest's end (KVM cannot fault the page in) and not a signal here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use super::layout::PMEM_UNIT;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("ask for the size of a pmem image")]
    Size(#[source] io::Error),
    #[error("a pmem image is no regular file: pass a file or sealed memory")]
    Kind,
    #[error("a pmem image is empty: pass one with content")]
    Empty,
    #[error("a pmem image of {0} bytes is larger than any machine")]
    Large(u64),
    #[error("map a pmem image of {0} bytes")]
    Map(usize, #[source] io::Error),
}

/// An image, and where the guest sees it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) start: u64,
    pub(crate) image: Image,
}

/// The mapping begins on a huge page's boundary and is padded with zeros to whole units.
#[derive(Debug)]
pub(crate) struct Image {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and nothing is read or written through it here.
unsafe impl Send for Image {}
// SAFETY: as above; a shared reference gives away an address and a length.
unsafe impl Sync for Image {}

impl Image {
    pub(crate) fn open(file: &File) -> Result<Self, ImageError> {
        let found = file.metadata().map_err(ImageError::Size)?;
        if !found.is_file() {
            return Err(ImageError::Kind);
        }
        let content = found.len();
        if content == 0 {
            return Err(ImageError::Empty);
        }
        let padded = content
            .checked_next_multiple_of(PMEM_UNIT)
            .filter(|bytes| *bytes < 1 << super::layout::ADDRESS_BITS_MAX)
            .ok_or(ImageError::Large(content))?;
        let size = |bytes: u64| usize::try_from(bytes).expect("64-bit only");
        let (content, bytes) = (size(content), size(padded));
        let image = reserve(bytes).map_err(|e| ImageError::Map(bytes, e))?;
        // SAFETY: the file takes the place of the beginning of a mapping that `image` owns and that nothing
        // refers to yet.
        let mapped = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let at = image.start.as_ptr().cast();
            libc::mmap(at, content, libc::PROT_READ, flags, file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(ImageError::Map(bytes, io::Error::last_os_error()));
        }
        for advice in [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
            // SAFETY: exactly our mapping; neither advice changes what it holds, and each may be refused.
            unsafe { libc::madvise(image.start.as_ptr().cast(), bytes, advice) };
        }
        Ok(image)
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// Zeros, aligned to a unit. `bytes` is whole units.
fn reserve(bytes: usize) -> io::Result<Image> {
    let unit = usize::try_from(PMEM_UNIT).expect("64-bit only");
    let wide = bytes + unit;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
    let at = unsafe { libc::mmap(ptr::null_mut(), wide, libc::PROT_READ, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = at.align_offset(unit);
    // SAFETY: both ends lie in the mapping just made, around the `bytes` that are kept; an empty end is left
    // out, because the kernel refuses a length of 0.
    let start = unsafe {
        let start = at.byte_add(before);
        for (end, length) in [(at, before), (start.byte_add(bytes), unit - before)] {
            if length > 0 {
                libc::munmap(end, length);
            }
        }
        start
    };
    let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never returns page 0");
    Ok(Image { start, bytes })
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was kept; the VM that knew it is gone: it owns the image.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A byte of the mapping, for tests whose file stays as it is.
    fn byte(image: &Image, at: usize) -> u8 {
        assert!(at < image.bytes);
        // SAFETY: inside the mapping, and nobody cuts the file of a test.
        unsafe { image.start.as_ptr().add(at).read_volatile() }
    }

    #[test]
    fn an_image_is_aligned_and_padded_with_zeros_and_shows_its_file() {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[7; 5000], 0).expect("writes");
        let image = Image::open(&file).expect("maps");
        assert_eq!((image.address() % PMEM_UNIT, image.bytes()), (0, PMEM_UNIT));
        let bytes = [0, 4999, 5000, 8191, 8192, image.bytes - 1].map(|at| byte(&image, at));
        assert_eq!(bytes, [7, 7, 0, 0, 0, 0]);
        file.write_all_at(&[8], 3).expect("writes");
        assert_eq!(byte(&image, 3), 8);
    }

    #[test]
    fn what_is_no_file_with_content_is_refused() {
        let empty = tempfile::tempfile().expect("temporary file");
        assert!(matches!(Image::open(&empty), Err(ImageError::Empty)));
        let null = File::open("/dev/null").expect("opens");
        assert!(matches!(Image::open(&null), Err(ImageError::Kind)));
        let large = tempfile::tempfile_in("/dev/shm").expect("memory");
        large.set_len(1 << 60).expect("sparse");
        assert!(matches!(Image::open(&large), Err(ImageError::Large(_))));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("write-only");
        let write_only = File::create(&path).expect("creates");
        write_only.set_len(1).expect("grows");
        assert!(matches!(Image::open(&write_only), Err(ImageError::Map(..))));
    }
}
