//! Loads a Linux kernel that is a bzImage, by the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
//!
//! Owns: where it goes, its boot parameters, and the tables it starts on. Its header is checked here and
//! nowhere else: every value of it may be hostile.
//! Refuses: kernels older than protocol 2.12 (Linux 3.8) or without a 64-bit entry, and the real-mode code.

use std::fs::File;
use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, write};
use crate::memory::io::Positioned;
use crate::memory::{GuestRam, layout};

/// Where the header is, in the file and in the boot parameters.
const HEADER: usize = 0x1f1;
/// `jump` is two bytes; the second says how far the header goes on behind it.
const JUMP_LENGTH: usize = 0x201;
const HEADER_BASE: usize = 0x202;
/// What has to be read to see the whole header.
pub(crate) const HEAD_BYTES: usize = HEADER + size_of::<setup_header>();

/// "HdrS"
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// The first version with `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
/// Do not print while decompressing: there is nothing to print on.
const QUIET: u8 = 1 << 5;
const KERNEL_64: u16 = 1;
/// A loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const SECTOR: u64 = 512;
/// What `setup_sects` of 0 means.
const SETUP_SECTORS: u8 = 4;
/// The 64-bit entry is this far behind the beginning of the loaded kernel.
const ENTRY: u64 = 0x200;
/// Type of usable RAM in the memory map.
const RAM: u32 = 1;

/// Selectors that the protocol demands.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
pub(crate) const DATA_SELECTOR: u16 = 0x18;
/// Two empty entries, code (64-bit, read), data (read and write), and an empty one for the task.
const DESCRIPTORS: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0];
/// Last byte of the descriptor table.
pub(crate) const GDT_LIMIT: u16 = 5 * 8 - 1;

/// Present and writable; in a directory also: this is a page of 2 MiB.
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;
const PAGE: u64 = 4096;
/// Page directories, of 1 GiB each.
const DIRECTORIES: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BzImageError {
    #[error("its header ends before its fields do")]
    Short,
    #[error("its boot flag is {0:#x}, not 0xaa55")]
    BootFlag(u16),
    #[error("it speaks boot protocol {major}.{minor:02}: 2.12 or newer is needed", major = .0 >> 8, minor = .0 & 0xff)]
    Version(u16),
    #[error("it is a zImage, which is loaded below 1 MiB: build a bzImage")]
    Low,
    #[error("it has no 64-bit entry: build the kernel for x86_64")]
    NoLongMode,
    #[error("its alignment {0:#x} is no power of two")]
    Alignment(u32),
    #[error(
        "it is {file} bytes long, of which {setup} are setup code: there is no kernel behind them"
    )]
    Empty { file: u64, setup: u64 },
    #[error(
        "it needs {need} bytes from {from:#x} on, more than {mib} MiB hold: raise `memory_mib`"
    )]
    Space { need: u64, from: u64, mib: u64 },
    #[error("it takes a command line of {most} bytes, not {length}: shorten `cmdline`")]
    Cmdline { length: usize, most: u32 },
}

/// A bzImage in guest memory.
#[derive(Debug)]
pub(crate) struct BzImage {
    header: setup_header,
    place: Range<u64>,
}

/// Whether these first bytes of a file are a bzImage's.
pub(crate) fn is_one(head: &[u8]) -> bool {
    head.get(HEADER_BASE..HEADER_BASE + 4) == Some(&MAGIC.to_le_bytes())
}

/// The header in a file's first bytes, once it says that this loader can start the kernel.
fn header(head: &[u8]) -> Result<setup_header, BzImageError> {
    let behind = head.get(JUMP_LENGTH).ok_or(BzImageError::Short)?;
    let end = (HEADER_BASE + usize::from(*behind)).min(HEAD_BYTES);
    let bytes = head.get(HEADER..end).ok_or(BzImageError::Short)?;
    // Fields that an older protocol does not have stay zero.
    let mut header = setup_header::default();
    header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let (flag, version, alignment) = (header.boot_flag, header.version, header.kernel_alignment);
    if flag != BOOT_FLAG {
        return Err(BzImageError::BootFlag(flag));
    }
    if version < VERSION_MIN {
        return Err(BzImageError::Version(version));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BzImageError::Low);
    }
    if header.xloadflags & KERNEL_64 == 0 {
        return Err(BzImageError::NoLongMode);
    }
    if header.relocatable_kernel != 0 && !alignment.is_power_of_two() {
        return Err(BzImageError::Alignment(alignment));
    }
    Ok(header)
}

/// Bytes of the file before the part that is loaded.
fn setup_bytes(header: &setup_header) -> u64 {
    let sectors = match header.setup_sects {
        0 => SETUP_SECTORS,
        n => n,
    };
    (u64::from(sectors) + 1) * SECTOR
}

/// Where a kernel of which `bytes` are loaded goes: where it prefers, or if it may move, where it still fits.
fn place(header: &setup_header, bytes: u64, mib: u64) -> Result<Range<u64>, BzImageError> {
    let need = u64::from(header.init_size).max(bytes);
    let end = layout::low_ram_end(mib);
    let preferred = header.pref_address;
    let fits = |from: u64| {
        let range = from..from.checked_add(need)?;
        (from >= layout::HIGH_RAM && range.end <= end).then_some(range)
    };
    let lowest = (header.relocatable_kernel != 0)
        .then(|| layout::HIGH_RAM.next_multiple_of(header.kernel_alignment.into()));
    fits(preferred)
        .or_else(|| fits(lowest?))
        .ok_or(BzImageError::Space {
            need,
            from: lowest.map_or(preferred, |lowest| lowest.min(preferred)),
            mib,
        })
}

impl BzImage {
    /// Checks the header in `head`, the file's first [`HEAD_BYTES`], and puts the kernel into memory.
    pub(crate) fn load(
        ram: &GuestRam,
        file: &File,
        head: &[u8],
        mib: u64,
    ) -> Result<Self, BootError> {
        let header = header(head)?;
        let length = file.metadata().map_err(BootError::Read)?.len();
        let setup = setup_bytes(&header);
        let bytes = length.checked_sub(setup).filter(|b| *b > ENTRY);
        let bytes = bytes.ok_or(BzImageError::Empty {
            file: length,
            setup,
        })?;
        let place = place(&header, bytes, mib)?;
        let count = usize::try_from(bytes).expect("64-bit only");
        let mut from = Positioned::new(file);
        std::io::Seek::seek(&mut from, std::io::SeekFrom::Start(setup)).map_err(BootError::Read)?;
        ram.read_exact_volatile_from(GuestAddress(place.start), &mut from, count)
            .map_err(|e| BootError::Write("guest kernel", e))?;
        Ok(Self { header, place })
    }

    pub(crate) fn entry(&self) -> u64 {
        self.place.start + ENTRY
    }

    /// What it takes before it knows its memory: itself, and room to decompress.
    pub(crate) fn place(&self) -> Range<u64> {
        self.place.clone()
    }

    /// Where its initramfs has to end.
    pub(crate) fn initramfs_end(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Writes boot parameters, descriptors and page tables.
    pub(crate) fn write_tables(
        &self,
        ram: &GuestRam,
        cmdline: &str,
        initramfs: &Range<u64>,
        mib: u64,
    ) -> Result<(), BootError> {
        let params = self.parameters(cmdline, initramfs, mib)?;
        write(ram, params.as_slice(), layout::ZERO_PAGE, "boot parameters")?;
        let bytes = |words: &[u64]| {
            words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<_>>()
        };
        write(ram, &bytes(&DESCRIPTORS), layout::GDT, "descriptor table")?;
        write(
            ram,
            &bytes(&page_tables()),
            layout::PAGE_TABLES.start,
            "page tables",
        )
    }

    fn parameters(
        &self,
        cmdline: &str,
        initramfs: &Range<u64>,
        mib: u64,
    ) -> Result<boot_params, BzImageError> {
        let most = self.header.cmdline_size;
        if usize::try_from(most).is_ok_and(|most| cmdline.len() > most) {
            let length = cmdline.len();
            return Err(BzImageError::Cmdline { length, most });
        }
        let below_4_gib =
            |n: u64| u32::try_from(n).expect("initramfs and tables are below the hole");
        let mut params = boot_params {
            hdr: self.header,
            ..Default::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.loadflags |= QUIET;
        params.hdr.cmd_line_ptr = below_4_gib(layout::COMMAND_LINE);
        params.hdr.code32_start = below_4_gib(self.place.start);
        params.hdr.setup_data = 0;
        if !initramfs.is_empty() {
            params.hdr.ramdisk_image = below_4_gib(initramfs.start);
            params.hdr.ramdisk_size = below_4_gib(initramfs.end - initramfs.start);
        }
        let usable = layout::usable_ranges(mib).expect("memory of this size has been allocated");
        let mut table = params.e820_table;
        for (entry, range) in table.iter_mut().zip(&usable) {
            *entry = boot_e820_entry {
                addr: range.start,
                size: range.end - range.start,
                r#type: RAM,
            };
        }
        params.e820_table = table;
        params.e820_entries = u8::try_from(usable.len()).expect("three at most");
        Ok(params)
    }
}

/// The words of `layout::PAGE_TABLES`: the first 4 GiB, each address onto itself.
fn page_tables() -> Vec<u64> {
    let entries = usize::try_from(PAGE / 8).expect("512");
    let [mut top, mut pointers] = [vec![0; entries], vec![0; entries]];
    let table = |index: u64| (layout::PAGE_TABLES.start + index * PAGE) | PRESENT_WRITABLE;
    top[0] = table(1);
    for (pointer, directory) in pointers.iter_mut().zip(0..DIRECTORIES) {
        *pointer = table(2 + directory);
    }
    let large = (0..DIRECTORIES * 512).map(|page| page << 21 | LARGE | PRESENT_WRITABLE);
    top.into_iter().chain(pointers).chain(large).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Kernel;
    use crate::memory;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use types::vm::HugePages;

    const MIB: u64 = 64;

    /// A header as Linux 6.12 writes it, for a kernel that needs 8 MiB.
    fn good() -> setup_header {
        setup_header {
            setup_sects: 1,
            boot_flag: BOOT_FLAG,
            jump: 0x6aeb,
            header: MAGIC,
            version: 0x020f,
            loadflags: LOADED_HIGH,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            relocatable_kernel: 1,
            xloadflags: KERNEL_64,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 8 << 20,
            ..Default::default()
        }
    }

    fn image(header: &setup_header, payload: usize) -> Vec<u8> {
        let setup = usize::try_from(setup_bytes(header)).expect("small");
        let mut bytes = vec![0; setup];
        bytes[HEADER..HEAD_BYTES].copy_from_slice(header.as_slice());
        bytes.extend((0..payload).map(|n| u8::try_from(n % 251).expect("small")));
        bytes
    }

    fn load(bytes: &[u8]) -> Result<(std::sync::Arc<GuestRam>, Kernel), BootError> {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(bytes, 0).expect("writes");
        let ram = memory::allocate(MIB, HugePages::None).expect("memory");
        let kernel = Kernel::load(&ram, &file, MIB)?;
        Ok((ram, kernel))
    }

    fn refusal(header: &setup_header) -> BzImageError {
        match load(&image(header, 4096)).map(|_| ()) {
            Err(BootError::BzImage(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_kernel_is_put_where_it_prefers_and_its_entry_is_in_it() {
        let (ram, kernel) = load(&image(&good(), 5000)).expect("loads");
        assert_eq!(kernel.place(), 0x100_0000..0x180_0000);
        assert_eq!(kernel.entry(), super::super::Entry::Long(0x100_0200));
        let mut byte = [0];
        ram.read_slice(&mut byte, GuestAddress(0x100_0000 + 4999))
            .expect("inside");
        assert_eq!(u64::from(byte[0]), 4999 % 251);
        assert_eq!(kernel.initramfs_room(MIB), 0x180_0000..MIB << 20);
    }

    #[test]
    fn a_kernel_that_may_move_is_put_lower_where_memory_is_small() {
        let mut header = good();
        header.pref_address = 0x800_0000;
        let (_, kernel) = load(&image(&header, 4096)).expect("loads");
        assert_eq!(kernel.place().start, 0x20_0000);
        header.relocatable_kernel = 0;
        let error = refusal(&header);
        assert!(
            matches!(
                error,
                BzImageError::Space {
                    from: 0x800_0000,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn boot_parameters_name_command_line_initramfs_and_memory() {
        let (ram, kernel) = load(&image(&good(), 4096)).expect("loads");
        let initramfs = 0x200_0000..0x200_1000;
        kernel
            .write_tables(&ram, "quiet", &[], &initramfs, MIB)
            .expect("writes");
        let mut page = vec![0; 4096];
        ram.read_slice(&mut page, GuestAddress(layout::ZERO_PAGE))
            .expect("inside");
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"));
        // Offsets as the protocol has them.
        assert_eq!((page[0x210], page[0x1e8]), (0xff, 2));
        assert_eq!((word(0x218), word(0x21c)), (0x200_0000, 0x1000));
        assert_eq!(u64::from(word(0x228)), layout::COMMAND_LINE);
        assert_eq!((word(0x2d0), word(0x2d8), word(0x2e0)), (0, 0x9_fc00, 1));
        assert_eq!(word(0x2e4), 0x10_0000);
    }

    #[test]
    fn page_tables_map_the_first_four_gibibytes_onto_themselves() {
        let words = page_tables();
        let bytes = layout::PAGE_TABLES.end - layout::PAGE_TABLES.start;
        assert_eq!(words.len() as u64 * 8, bytes);
        let follow = |entry: u64| ((entry & !0xfff) - layout::PAGE_TABLES.start) / 8;
        for address in [0u64, 0x100_0200, 0xcfff_ffff, 0xffff_ffff] {
            let at = |table: u64, shift: u32| {
                let index = table + (address >> shift & 511);
                words[usize::try_from(index).expect("small")]
            };
            let top = at(0, 39);
            let directory = at(follow(top), 30);
            let page = at(follow(directory), 21);
            assert!([top, directory, page].iter().all(|e| e & 3 == 3) && page & LARGE != 0);
            assert_eq!(page & !0x1f_ffff | address & 0x1f_ffff, address);
        }
    }

    #[test]
    fn kernels_that_cannot_start_are_refused_for_their_reason() {
        let change = |change: fn(&mut setup_header)| {
            let mut header = good();
            change(&mut header);
            refusal(&header)
        };
        assert_eq!(change(|h| h.boot_flag = 0), BzImageError::BootFlag(0));
        assert_eq!(
            change(|h| h.version = 0x020b),
            BzImageError::Version(0x020b)
        );
        assert_eq!(change(|h| h.loadflags = 0), BzImageError::Low);
        assert_eq!(change(|h| h.xloadflags = 0), BzImageError::NoLongMode);
        assert_eq!(
            change(|h| h.kernel_alignment = 3),
            BzImageError::Alignment(3)
        );
        assert!(matches!(
            change(|h| h.init_size = u32::MAX),
            BzImageError::Space { .. }
        ));
        // Setup code that is longer than the file.
        let mut bytes = image(&good(), 4096);
        bytes[HEADER] = 255;
        let error = load(&bytes).map(|_| ()).expect_err("nothing behind it");
        let (file, setup) = (2 * SECTOR + 4096, 256 * SECTOR);
        assert!(matches!(error, BootError::BzImage(e) if e == BzImageError::Empty { file, setup }));
        assert_eq!(
            BzImageError::Version(0x020b).to_string(),
            "it speaks boot protocol 2.11: 2.12 or newer is needed"
        );
    }

    #[test]
    fn a_header_that_says_it_is_short_has_no_more_fields() {
        let mut header = good();
        // Up to `xloadflags`, without it.
        header.jump = 0x34eb;
        assert_eq!(refusal(&header), BzImageError::NoLongMode);
    }

    #[test]
    fn a_command_line_that_the_kernel_cannot_take_is_refused() {
        let mut header = good();
        header.cmdline_size = 10;
        let (ram, kernel) = load(&image(&header, 4096)).expect("loads");
        let tables = |line: &str| kernel.write_tables(&ram, line, &[], &(0..0), MIB);
        tables("0123456789").expect("fits");
        let error = tables("0123456789a").expect_err("one too many");
        assert!(matches!(
            error,
            BootError::BzImage(BzImageError::Cmdline { most: 10, .. })
        ));
    }

    proptest! {
        #[test]
        fn whatever_the_header_says_the_kernel_lies_in_memory_and_the_initramfs_beside_it(
            noise in proptest::collection::vec((0usize..size_of::<setup_header>(), any::<u8>()), 0..12),
            payload in 0usize..9000,
        ) {
            let mut header = good();
            for (at, byte) in noise {
                header.as_mut_slice()[at] = byte;
            }
            let mut bytes = image(&good(), payload);
            bytes[HEADER..HEAD_BYTES].copy_from_slice(header.as_slice());
            if let Ok((ram, kernel)) = load(&bytes) {
                let place = kernel.place();
                prop_assert!(place.start >= layout::HIGH_RAM && place.end <= MIB << 20);
                let super::super::Entry::Long(entry) = kernel.entry() else { panic!("no ELF") };
                prop_assert!(place.contains(&entry));
                let part = tempfile::tempfile().expect("temporary file");
                part.set_len(1 << 20).expect("sparse");
                let room = kernel.initramfs_room(MIB);
                if let Ok(at) = super::super::initramfs::load(&ram, &[part], &room, MIB) {
                    prop_assert!(at.start >= place.end && at.end <= MIB << 20);
                    let _ = kernel.write_tables(&ram, "quiet", &[], &at, MIB);
                }
            }
        }
    }
}
