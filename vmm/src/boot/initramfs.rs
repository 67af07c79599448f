//! The initramfs: parts of a cpio archive, one behind the other.
//!
//! Owns: where they go. Refuses: to look into them.

use std::fs::File;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;
use crate::memory::io::Positioned;

/// Parts of a cpio archive begin on this boundary, so that the kernel finds the next one.
const INITRAMFS_ALIGN: u64 = 512;
const PAGE: u64 = 4096;

/// Puts the parts one after the other, as high in `room` as they fit. Returns where. `mib` is the guest's
/// memory, for the error.
pub(crate) fn load(
    ram: &GuestRam,
    parts: &[File],
    room: &Range<u64>,
    mib: u64,
) -> Result<Range<u64>, BootError> {
    let mut sizes = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        sizes.push(
            part.metadata()
                .map_err(|e| BootError::InitramfsSize(index, e))?
                .len(),
        );
    }
    let (start, total) = place(&sizes, room, mib)?;
    let mut at = start;
    for (index, (part, size)) in parts.iter().zip(&sizes).enumerate() {
        let count = usize::try_from(*size).expect("64-bit only");
        ram.read_exact_volatile_from(GuestAddress(at), &mut Positioned::new(part), count)
            .map_err(|e| BootError::Initramfs(index, e))?;
        at += size.next_multiple_of(INITRAMFS_ALIGN);
    }
    Ok(start..start + total)
}

/// Start and total length. RAM is zero from the start, so padding needs no writing.
fn place(sizes: &[u64], room: &Range<u64>, mib: u64) -> Result<(u64, u64), BootError> {
    let padded = |size: &u64| size.checked_next_multiple_of(INITRAMFS_ALIGN);
    let total = sizes
        .iter()
        .map(padded)
        .try_fold(0u64, |sum, size| sum.checked_add(size?));
    let total = total.unwrap_or(u64::MAX);
    let start = room.end.checked_sub(total).map(|s| s / PAGE * PAGE);
    match start {
        Some(start) if start >= room.start => Ok((start, total)),
        _ => Err(BootError::Space {
            initramfs: total,
            mib,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout;

    #[test]
    fn parts_of_the_initramfs_are_padded_and_end_below_the_end_of_memory() {
        assert_eq!(
            place(&[1, 512, 513], &(0..64 << 20), 64).expect("fits"),
            ((64 << 20) - 4096, 2048)
        );
        let (start, total) = place(&[5000], &(0..layout::HOLE.start), 8192).expect("fits");
        assert!(start % PAGE == 0 && start + total <= layout::HOLE.start);
        assert_eq!(place(&[], &(0..64 << 20), 64).expect("fits"), (64 << 20, 0));
    }

    #[test]
    fn an_initramfs_that_would_reach_into_the_kernel_is_refused() {
        assert!(place(&[32 << 20], &(33 << 20..64 << 20), 64).is_err());
        assert!(place(&[u64::MAX], &(0..64 << 20), 64).is_err());
        assert!(place(&[u64::MAX - 600, 1000], &(0..64 << 20), 64).is_err());
    }

    #[test]
    fn a_kernel_that_sets_a_bound_gets_its_initramfs_below_it() {
        let bound = 0x1000_0000;
        let (start, total) = place(&[5000], &(0..bound), 8192).expect("fits");
        assert!(start + total <= bound && start >= bound - 8192);
        assert!(place(&[5000], &(0..0), 8192).is_err());
        // Nothing needs no room.
        assert!(place(&[], &(0..0), 8192).is_ok());
    }
}
