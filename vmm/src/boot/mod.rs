//! What is in memory when the first vCPU starts: kernel, initramfs, command line, tables.
//!
//! Owns: which boot protocol a kernel speaks, told by its first bytes. Refuses: firmware; there is none.

pub(crate) mod bzimage;
pub(crate) mod cmdline;
pub(crate) mod initramfs;
pub(crate) mod mptable;
pub(crate) mod pvh;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::io::Positioned;
use crate::memory::{GuestRam, layout};
use bzimage::{BzImage, BzImageError};

/// First bytes of an ELF.
const ELF: &[u8] = b"\x7fELF";

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("read the guest kernel")]
    Read(#[source] io::Error),
    #[error(
        "the guest kernel is neither an ELF nor a bzImage: pass vmlinux or arch/x86/boot/bzImage of a 64-bit build, not compressed once more"
    )]
    Unknown,
    #[error("load the guest kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    #[error(
        "the guest kernel has no PVH entry: build it with CONFIG_PVH=y, or pass its bzImage instead"
    )]
    NoPvh,
    #[error("the guest kernel is a bzImage that cannot start")]
    BzImage(#[from] BzImageError),
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

/// How the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Protected mode without paging, start info in RBX.
    Pvh(u64),
    /// Long mode, boot parameters in RSI.
    Long(u64),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) enum Kernel {
    Elf { entry: u64, end: u64 },
    BzImage(BzImage),
}

impl Kernel {
    /// Puts the kernel where it wants to be. `mib`: the guest's memory.
    pub(crate) fn load(ram: &GuestRam, file: &File, mib: u64) -> Result<Self, BootError> {
        let mut head = Vec::with_capacity(bzimage::HEAD_BYTES);
        Positioned::new(file)
            .take(bzimage::HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(BootError::Read)?;
        if head.starts_with(ELF) {
            let (entry, end) = pvh::load_kernel(ram, file)?;
            Ok(Self::Elf { entry, end })
        } else if bzimage::is_one(&head) {
            Ok(Self::BzImage(BzImage::load(ram, file, &head, mib)?))
        } else {
            Err(BootError::Unknown)
        }
    }

    pub(crate) fn entry(&self) -> Entry {
        match self {
            Self::Elf { entry, .. } => Entry::Pvh(*entry),
            Self::BzImage(image) => Entry::Long(image.entry()),
        }
    }

    /// Where it is, and what it needs behind itself before it knows its memory.
    pub(crate) fn place(&self) -> Range<u64> {
        match self {
            Self::Elf { end, .. } => layout::HIGH_RAM..*end,
            Self::BzImage(image) => image.place(),
        }
    }

    /// Where its initramfs may be.
    pub(crate) fn initramfs_room(&self, mib: u64) -> Range<u64> {
        let end = match self {
            Self::Elf { .. } => u64::MAX,
            Self::BzImage(image) => image.initramfs_end(),
        };
        self.place().end..end.min(layout::low_ram_end(mib))
    }

    /// Writes command line, MP table, and the tables of this kernel's boot protocol.
    pub(crate) fn write_tables(
        &self,
        ram: &GuestRam,
        cmdline: &str,
        mp_table: &[u8],
        initramfs: &Range<u64>,
        mib: u64,
    ) -> Result<(), BootError> {
        let line = [cmdline.as_bytes(), &[0]].concat();
        write(ram, &line, layout::COMMAND_LINE, "command line")?;
        write(ram, mp_table, layout::MP_TABLE.start, "MP table")?;
        match self {
            Self::Elf { .. } => pvh::write_tables(ram, initramfs, mib),
            Self::BzImage(image) => image.write_tables(ram, cmdline, initramfs, mib),
        }
    }
}

fn write(ram: &GuestRam, bytes: &[u8], at: u64, what: &'static str) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(at))
        .map_err(|e| BootError::Write(what, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::os::unix::fs::FileExt;
    use types::vm::HugePages;

    #[test]
    fn what_is_no_kernel_is_refused_with_what_to_pass() {
        let ram = memory::allocate(32, HugePages::None).expect("memory");
        for bytes in [&b""[..], b"\x1f\x8b gzip", &[0; 4096], b"#!/bin/sh"] {
            let file = tempfile::tempfile().expect("temporary file");
            file.write_all_at(bytes, 0).expect("writes");
            let error = Kernel::load(&ram, &file, 32).expect_err("no kernel");
            assert!(matches!(error, BootError::Unknown), "{error:?}");
        }
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(ELF, 0).expect("writes");
        let error = Kernel::load(&ram, &file, 32).expect_err("a torn ELF");
        assert!(matches!(error, BootError::Kernel(_)), "{error:?}");
    }
}
