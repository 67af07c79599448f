//! Instructions that only a kernel has.
//!
//! Owns: ports, the cycle counter, hypercalls, the machine's end.
//! Refuses: interrupts; they stay off.
#![allow(unsafe_code)]

use core::arch::asm;

/// The keyboard controller's command port, and its pulse of the reset line.
const COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: a port write touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

pub(crate) fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) }
    value
}

pub(crate) fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// `rep insb` into `buffer`.
pub(crate) fn in_string(port: u16, buffer: &mut [u8]) {
    // SAFETY: the instruction writes as many bytes as the buffer has, from its beginning.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") buffer.as_mut_ptr() => _,
            inout("rcx") buffer.len() => _, options(nostack));
    }
}

/// `rep outsb` from `buffer`.
pub(crate) fn out_string(port: u16, buffer: &[u8]) {
    // SAFETY: the instruction reads as many bytes as the buffer has, from its beginning.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") buffer.as_ptr() => _,
            inout("rcx") buffer.len() => _, options(nostack));
    }
}

pub(crate) fn cycles() -> u64 {
    // SAFETY: reading the counter has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A leaf of CPUID, which exits to the hypervisor.
pub(crate) fn identify(leaf: u32) -> u32 {
    core::arch::x86_64::__cpuid(leaf).eax
}

/// `vmmcall` with any number: KVM turns it into what its processor has.
pub(crate) fn hypercall(number: u64, argument: u64) -> u64 {
    let answer;
    // SAFETY: KVM's hypercalls change no memory but what their arguments name; numbers that write memory
    // are not used.
    unsafe {
        asm!("vmmcall", inout("rax") number => answer, in("rcx") argument, in("rdx") argument,
            in("rsi") argument, options(nostack));
    }
    answer
}

pub(crate) fn reset() -> ! {
    loop {
        out8(COMMAND, PULSE_RESET);
    }
}

/// Stops with interrupts off: nothing wakes it.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: the processor waits for an interrupt that does not come.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// An interrupt without a table for it.
pub(crate) fn triple_fault() -> ! {
    // SAFETY: the machine ends here.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Goes on at `address`, whatever is there.
pub(crate) fn jump(address: u64) -> ! {
    // SAFETY: nothing of this program is relied on any more.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}
