//! Loads a Linux kernel that is an ELF, by its PVH entry.
//!
//! Owns: where it goes and the start info that names everything. Refuses: kernels without a PVH note.

use std::fs::File;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::GuestAddress;

use super::BootError;
use crate::memory::io::Positioned;
use crate::memory::{GuestRam, layout};

/// XEN_HVM_START_MAGIC_VALUE.
const START_MAGIC: u32 = 0x336e_c578;
/// Type of usable RAM in the memory map.
const RAM: u32 = 1;
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

/// Writes memory map, module list and start info.
pub(crate) fn write_tables(
    ram: &GuestRam,
    initramfs: &std::ops::Range<u64>,
    mib: u64,
) -> Result<(), BootError> {
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
