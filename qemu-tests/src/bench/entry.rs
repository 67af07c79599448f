//! A kernel that says when it was entered, and nothing else: where a machine's firmware ends.
//!
//! Owns: its bytes, in the form of a bzImage (kernel document `arch/x86/boot.rst`).
//! Refuses: protected mode. The first instruction of a kernel's set-up code is in real mode.

use super::report::CYCLES;

/// A sector; the set-up code begins with the second.
const SECTOR: usize = 512;
/// Where the jump over the header leads.
const CODE: usize = SECTOR + 0x68;
/// Boot sector, set-up code, and a part for protected mode that is never entered.
const LENGTH: usize = 4 * SECTOR;

/// Reads the cycle counter first of all, then writes the text behind the code and 16 hexadecimal digits to
/// the first serial port, then stops for ever. 16-bit code:
///
/// ```text
///     rdtsc; mov ebp, eax; mov edi, edx; mov ax, cs; mov ds, ax; mov si, TEXT; cld
///  1: lodsb; test al, al; jz 2f; call put; jmp 1b
///  2: mov cx, 16
///  3: mov eax, edi; shr eax, 28; shld edi, ebp, 4; shl ebp, 4
///     add al, '0'; cmp al, '9'; jbe 4f; add al, 'a' - '9' - 1
///  4: call put; loop 3b; mov al, '\n'; call put
///  5: hlt; jmp 5b
/// put: mov ah, al; mov dx, 0x3fd
///  6: in al, dx; test al, 0x20; jz 6b; mov al, ah; mov dx, 0x3f8; out dx, al; ret
/// ```
const INSTRUCTIONS: [u8; 83] = [
    0x0f, 0x31, 0x66, 0x89, 0xc5, 0x66, 0x89, 0xd7, 0x8c, 0xc8, 0x8e, 0xd8, 0xbe, 0, 0, 0xfc, 0xac,
    0x84, 0xc0, 0x74, 0x05, 0xe8, 0x2a, 0, 0xeb, 0xf6, 0xb9, 0x10, 0, 0x66, 0x89, 0xf8, 0x66, 0xc1,
    0xe8, 0x1c, 0x66, 0x0f, 0xa4, 0xef, 0x04, 0x66, 0xc1, 0xe5, 0x04, 0x04, 0x30, 0x3c, 0x39, 0x76,
    0x02, 0x04, 0x27, 0xe8, 0x0a, 0, 0xe2, 0xe3, 0xb0, 0x0a, 0xe8, 0x03, 0, 0xf4, 0xeb, 0xfd, 0x88,
    0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xc3,
];
/// Where in them the text's address stands. It counts from the second sector, as the code segment does.
const TEXT_AT: usize = 13;

pub(super) fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    // One sector of set-up code behind the boot sector.
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    // Version 2.3 of the protocol, loaded high, and how high an initramfs may end.
    put(0x206, &[3, 2]);
    put(0x211, &[1]);
    put(0x22c, &0x37ff_ffff_u32.to_le_bytes());
    put(CODE, &INSTRUCTIONS);
    let text = CODE + INSTRUCTIONS.len();
    put(text, CYCLES.as_bytes());
    let address = u16::try_from(text - SECTOR).expect("within a segment");
    put(CODE + TEXT_AT, &address.to_le_bytes());
    bytes
}

/// The number on a line that the kernel, or [`super::report`]'s program, has printed.
pub(super) fn cycles(line: &str) -> Option<u64> {
    let (_, digits) = line.split_once(CYCLES)?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_finds_set_up_code_and_the_code_finds_its_text() {
        let kernel = kernel();
        assert_eq!(
            (&kernel[0x1fe..0x202], &kernel[0x202..0x206]),
            (&[0x55, 0xaa, 0xeb, 0x66][..], &b"HdrS"[..])
        );
        assert_eq!(kernel[CODE + TEXT_AT - 1], 0xbe);
        let address = [kernel[CODE + TEXT_AT], kernel[CODE + TEXT_AT + 1]];
        let text = &kernel[SECTOR + usize::from(u16::from_le_bytes(address))..];
        assert!(text.starts_with(CYCLES.as_bytes()) && text[CYCLES.len()] == 0);
    }

    #[test]
    fn a_line_with_cycles_is_read() {
        assert_eq!(
            cycles("bench: cycles 0000000000f6bce3\r"),
            Some(0x00f6_bce3)
        );
        assert_eq!(cycles("bench: cycles many"), None);
    }
}
