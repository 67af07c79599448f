//! Loads a Linux kernel by its PVH entry, and its initramfs.
//!
//! Owns: where the parts go and the start info that names them. Refuses: kernels without a PVH note.

use std::fs::File;
use std::io;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::io::Positioned;
use crate::memory::{GuestRam, layout};

/// XEN_HVM_START_MAGIC_VALUE.
const START_MAGIC: u32 = 0x336e_c578;
/// Type of usable RAM in the memory map.
const RAM: u32 = 1;
/// Parts of a cpio archive begin on this boundary, so that the kernel finds the next one.
const INITRAMFS_ALIGN: u64 = 512;
const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("load the guest kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    #[error(
        "the guest kernel has no PVH entry: build it with CONFIG_PVH=y and pass vmlinux itself"
    )]
    NoPvh,
    #[error("read initramfs part {0}")]
    InitramfsSize(usize, #[source] io::Error),
    #[error("load initramfs part {0}")]
    Initramfs(usize, #[source] vm_memory::GuestMemoryError),
    #[error(
        "kernel and an initramfs of {initramfs} bytes do not fit into {mib} MiB: raise `memory_mib`"
    )]
    Space { initramfs: u64, mib: u64 },
    #[error("write the boot tables")]
    Tables(#[source] linux_loader::configurator::Error),
    #[error("write the {0}")]
    Write(&'static str, #[source] vm_memory::GuestMemoryError),
}

/// Puts the kernel where its ELF headers say. Returns its PVH entry and its end.
pub(crate) fn load_kernel(ram: &GuestRam, kernel: &File) -> Result<(u64, u64), BootError> {
    let mut file = Positioned::new(kernel);
    let lowest = Some(GuestAddress(layout::HIGH_RAM));
    let loaded = Elf::load(ram, None, &mut file, lowest).map_err(BootError::Kernel)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.0, loaded.kernel_end)),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(BootError::NoPvh)
        }
    }
}

/// Puts the parts one after the other as high as they fit below the device hole. Returns where.
pub(crate) fn load_initramfs(
    ram: &GuestRam,
    parts: &[File],
    kernel_end: u64,
    mib: u64,
) -> Result<std::ops::Range<u64>, BootError> {
    let mut sizes = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        sizes.push(
            part.metadata()
                .map_err(|e| BootError::InitramfsSize(index, e))?
                .len(),
        );
    }
    let (start, total) = place(&sizes, kernel_end, mib)?;
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
fn place(sizes: &[u64], kernel_end: u64, mib: u64) -> Result<(u64, u64), BootError> {
    let padded = |size: &u64| size.checked_next_multiple_of(INITRAMFS_ALIGN);
    let total = sizes
        .iter()
        .map(padded)
        .try_fold(0u64, |sum, size| sum.checked_add(size?));
    let total = total.unwrap_or(u64::MAX);
    let start = layout::low_ram_end(mib)
        .checked_sub(total)
        .map(|s| s / PAGE * PAGE);
    match start {
        Some(start) if start >= kernel_end => Ok((start, total)),
        _ => Err(BootError::Space {
            initramfs: total,
            mib,
        }),
    }
}

/// Writes command line, MP table, memory map, module list and start info.
pub(crate) fn write_tables(
    ram: &GuestRam,
    cmdline: &str,
    mp_table: &[u8],
    initramfs: &std::ops::Range<u64>,
    mib: u64,
) -> Result<(), BootError> {
    let line = [cmdline.as_bytes(), &[0]].concat();
    ram.write_slice(&line, GuestAddress(layout::COMMAND_LINE))
        .map_err(|e| BootError::Write("command line", e))?;
    ram.write_slice(mp_table, GuestAddress(layout::MP_TABLE.start))
        .map_err(|e| BootError::Write("MP table", e))?;
    let usable = layout::usable_ranges(mib).expect("memory of this size has been allocated");
    let map: Vec<_> = usable
        .iter()
        .map(|r| hvm_memmap_table_entry {
            addr: r.start,
            size: r.end - r.start,
            type_: RAM,
            reserved: 0,
        })
        .collect();
    let module = hvm_modlist_entry {
        paddr: initramfs.start,
        size: initramfs.end - initramfs.start,
        ..Default::default()
    };
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: u32::from(!initramfs.is_empty()),
        modlist_paddr: layout::MODULE_LIST,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("three at most"),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&[module], GuestAddress(layout::MODULE_LIST));
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(BootError::Tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_initramfs_are_padded_and_end_below_the_end_of_memory() {
        assert_eq!(
            place(&[1, 512, 513], 0, 64).expect("fits"),
            ((64 << 20) - 4096, 2048)
        );
        let (start, total) = place(&[5000], 0, 8192).expect("fits");
        assert!(start % PAGE == 0 && start + total <= layout::HOLE.start);
        assert_eq!(place(&[], 0, 64).expect("fits"), (64 << 20, 0));
    }

    #[test]
    fn an_initramfs_that_would_reach_into_the_kernel_is_refused() {
        assert!(place(&[32 << 20], 33 << 20, 64).is_err());
        assert!(place(&[u64::MAX], 0, 64).is_err());
        assert!(place(&[u64::MAX - 600, 1000], 0, 64).is_err());
    }
}
