//! Guest memory and device registers, by address.
//!
//! Owns: the arena that rings and buffers are in, which no object of this program is in.
//! Refuses: CPU accesses outside the arena and the window of devices.
#![allow(unsafe_code)]

use core::ops::Range;

use crate::MEMORY_MIB;

/// Program and stack are below; the monitor's tables are in the first MiB.
pub(crate) const ARENA: Range<u64> = 0x40_0000..MEMORY_MIB << 20;
/// From the first device to 4 GiB.
pub(crate) const WINDOW: Range<u64> = 0xd000_0000..0x1_0000_0000;
/// Where in the start info the command line's address is (`hvm_start_info`).
const COMMAND_LINE_AT: u64 = 24;
const COMMAND_LINE_MAX: usize = 2048;

/// A plain number of 1 to 8 bytes.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

fn check<T>(range: &Range<u64>, address: u64) -> u64 {
    let size = size_of::<T>() as u64;
    let inside = address >= range.start && address <= range.end - size;
    assert!(inside, "{address:#x} is not in {range:x?}");
    address
}

pub(crate) fn get<T: Word>(address: u64) -> T {
    let at = check::<T>(&ARENA, address) as *const T;
    // SAFETY: the arena is mapped memory that no object of this program is in; any bytes are a number.
    unsafe { at.read_unaligned() }
}

pub(crate) fn put<T: Word>(address: u64, value: T) {
    let at = check::<T>(&ARENA, address) as *mut T;
    // SAFETY: as in `get`.
    unsafe { at.write_unaligned(value) }
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

pub(crate) fn fill(address: u64, count: u64, byte: u8) {
    for at in address..address + count {
        put(at, byte);
    }
}

/// A device's answer, read anew each time.
pub(crate) fn read<T: Word>(address: u64) -> T {
    let at = check::<T>(&WINDOW, address) as *const T;
    // SAFETY: the window is mapped and holds no memory of this program. The processor does not mind where
    // a word begins; the width is what a single move has.
    unsafe { volatile(at) }
}

pub(crate) fn write<T: Word>(address: u64, value: T) {
    let at = check::<T>(&WINDOW, address) as *mut T;
    // SAFETY: as in `read`.
    unsafe { core::ptr::write_volatile(at.cast::<Packed<T>>(), Packed(value)) }
}

/// A word anywhere: the compiler assumes no alignment.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Packed<T>(T);

/// # Safety
/// `at` is mapped.
unsafe fn volatile<T: Word>(at: *const T) -> T {
    // SAFETY: forwarded.
    unsafe { core::ptr::read_volatile(at.cast::<Packed<T>>()).0 }
}

/// A ring's index that the device writes.
pub(crate) fn fresh16(address: u64) -> u16 {
    let at = check::<u16>(&ARENA, address) as *const u16;
    // SAFETY: as in `get`.
    unsafe { volatile(at) }
}

/// Where another processor begins.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
const TRAMPOLINE_BYTES_MAX: u64 = 0x1000;

/// Copies code to [`TRAMPOLINE`].
pub(crate) fn place_trampoline((start, end): (u64, u64)) {
    let count = end - start;
    assert!(
        count <= TRAMPOLINE_BYTES_MAX,
        "a trampoline of {count} bytes"
    );
    // SAFETY: the source is this kernel's own code, `count` bytes of it; the page is conventional memory
    // that neither the monitor's tables nor an object of this program is in.
    unsafe {
        core::ptr::copy_nonoverlapping(start as *const u8, TRAMPOLINE as *mut u8, count as usize);
    }
}

/// The kernel command line, up to its end or the first byte that is not ASCII.
pub(crate) fn command_line(start_info: u64) -> &'static str {
    // SAFETY: the monitor's tables are in the first MiB, which is mapped and which nothing of ours is in.
    let bytes = unsafe {
        let address = ((start_info + COMMAND_LINE_AT) as *const u64).read_unaligned();
        core::slice::from_raw_parts(address as *const u8, COMMAND_LINE_MAX)
    };
    let end = bytes.iter().position(|b| *b == 0 || !b.is_ascii());
    core::str::from_utf8(&bytes[..end.unwrap_or(0)]).unwrap_or("")
}
