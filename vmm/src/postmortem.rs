//! Why a guest's kernel panicked, read from its memory once it has stopped.
//!
//! Owns: finding the last panic in the kernel's log, which is text in the kernel's own image.
//! Refuses: to cost a guest anything while it lives: no console, no register, no exit. And trust: a guest may
//! have written there what it likes.

use std::ops::Range;

use memchr::memmem;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

/// What the kernel says first of a panic (`panic` in kernel/panic.c).
const MARK: &[u8] = b"Kernel panic - not syncing: ";
/// What follows where it is not said but stands in the kernel's code.
const FORMAT: &[u8] = b"%s";
/// The log is among the kernel's last parts (`.bss`): in the kernel that we build, 2.1 MiB before its end. What is
/// in front is code, constants and, below where it was linked to, memory that nobody has touched.
const LOG_WITHIN_BYTES: u64 = 4 << 20;
/// Memory looked through at a time: the VMM's own memory is small.
const WINDOW_BYTES: usize = 64 << 10;
/// Of the log before the mark (the registers and calls of an oops) and after it (who ran, and its calls).
const BEFORE_BYTES: usize = 2048;
const AFTER_BYTES: usize = 1024;
/// Shorter pieces of text are what lies between two messages.
const LINE_MIN: usize = 4;
/// Longest reason: what `panic` itself keeps is longer, what people read is not.
const REASON_MAX: usize = 256;

/// The end of a kernel, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastWords {
    pub(crate) reason: String,
    /// The log around it, printable, oldest first.
    pub(crate) lines: Vec<String>,
}

/// What the kernel in this part of memory said when it panicked, if it did.
pub(crate) fn last_words(ram: &GuestRam, kernel: Range<u64>) -> Option<LastWords> {
    let start = kernel.end.saturating_sub(LOG_WITHIN_BYTES);
    let kernel = start.max(kernel.start)..kernel.end;
    let at = find(ram, kernel.clone())?;
    let start = at.saturating_sub(BEFORE_BYTES as u64).max(kernel.start);
    let end = (at + AFTER_BYTES as u64).min(kernel.end);
    let mut text = vec![0; usize::try_from(end - start).ok()?];
    ram.read_slice(&mut text, GuestAddress(start)).ok()?;
    Some(understand(&text, usize::try_from(at - start).ok()?))
}

/// Where the last panic is said.
fn find(ram: &GuestRam, kernel: Range<u64>) -> Option<u64> {
    // A mark and what follows it may lie across two windows.
    let overlap = MARK.len() + FORMAT.len();
    let step = (WINDOW_BYTES - overlap) as u64;
    let mut window = vec![0; WINDOW_BYTES];
    let mut found = None;
    let mut at = kernel.start;
    while at < kernel.end {
        let length = usize::try_from(kernel.end - at).map_or(WINDOW_BYTES, |l| l.min(WINDOW_BYTES));
        let part = &mut window[..length];
        ram.read_slice(part, GuestAddress(at)).ok()?;
        if let Some(place) = find_last(part) {
            found = Some(at + place as u64);
        }
        at += step;
    }
    found
}

fn find_last(bytes: &[u8]) -> Option<usize> {
    let said = |at: &usize| {
        let rest = &bytes[*at + MARK.len()..];
        !rest.starts_with(FORMAT) && rest.first().is_some_and(|b| is_text(*b))
    };
    memmem::find_iter(bytes, MARK).filter(said).last()
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (b' '..=b'~').contains(&byte)
}

/// Cuts the log's memory into messages; between any two are bytes that are no text.
fn understand(bytes: &[u8], mark: usize) -> LastWords {
    let texts = bytes.split(|b| !is_text(*b));
    let long = texts
        .map(without_echo)
        .filter(|text| text.len() >= LINE_MIN);
    let lines = long.map(|text| String::from_utf8_lossy(text).into_owned());
    let said = &bytes[mark + MARK.len()..];
    let length = said.iter().take_while(|b| is_text(**b)).count();
    let reason = without_echo(&said[..length]);
    LastWords {
        reason: String::from_utf8_lossy(&reason[..reason.len().min(REASON_MAX)]).into_owned(),
        lines: lines.collect(),
    }
}

/// The kernel takes the level, two bytes, off the front of a message by moving the rest; its last two bytes
/// then stand there twice (`printk_sprint` in kernel/printk/printk.c). Where a text really ends so, it loses
/// two letters: lengths are kept elsewhere.
fn without_echo(text: &[u8]) -> &[u8] {
    match text {
        [rest @ .., a, b, c, d] if (a, b) == (c, d) => &text[..rest.len() + 2],
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Range<u64> = 0x1_0000..0x3_0000;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x8_0000)]).expect("maps")
    }

    /// As the kernel's log holds messages: a number, the text, zeros up to a multiple of 8.
    fn log(texts: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (id, text) in (0x4141u64..).zip(texts) {
            bytes.extend(id.to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes.resize((bytes.len() + 1).next_multiple_of(8), 0);
        }
        bytes
    }

    fn put(ram: &GuestRam, at: u64, bytes: &[u8]) {
        ram.write_slice(bytes, GuestAddress(at)).expect("inside");
    }

    fn code(ram: &GuestRam) {
        put(
            ram,
            KERNEL.start,
            b"\x010Kernel panic - not syncing: %s\n\0",
        );
        let end = b"---[ end Kernel panic - not syncing: %s ]---\n\0";
        put(ram, KERNEL.start + 100, end);
    }

    #[test]
    fn the_reason_is_found_wherever_in_the_log_it_stands() {
        let texts = [
            "systemd: hello",
            "Kernel panic - not syncing: Out of memory: panic_on_oom is enabled",
            "CPU: 0 PID: 7 Comm: dd",
        ];
        // Around the border of two windows, byte by byte.
        let border = KERNEL.start + (WINDOW_BYTES - MARK.len() - FORMAT.len()) as u64;
        for at in border - 80..border + 80 {
            let ram = ram();
            code(&ram);
            put(&ram, at, &log(&texts));
            let words = last_words(&ram, KERNEL).expect("a panic");
            assert_eq!(words.reason, "Out of memory: panic_on_oom is enabled");
            assert_eq!(words.lines, texts);
        }
    }

    #[test]
    fn what_the_kernel_left_behind_a_message_is_not_shown() {
        let ram = ram();
        let texts = ["Kernel panic - not syncing: not enableded\n", "dd killed\n"];
        put(&ram, 0x2_0000, &log(&texts));
        let words = last_words(&ram, KERNEL).expect("a panic");
        assert_eq!(words.reason, "not enabled");
        assert_eq!(words.lines[1], "dd killed");
    }

    #[test]
    fn a_kernel_that_did_not_panic_says_nothing_although_its_code_knows_the_words() {
        let ram = ram();
        code(&ram);
        put(&ram, 0x2_8000, &log(&["random: crng init done"]));
        // Outside the kernel it is a program's text.
        let outside = log(&["Kernel panic - not syncing: a joke"]);
        put(&ram, KERNEL.end, &outside);
        put(&ram, 0x100, &outside);
        assert_eq!(last_words(&ram, KERNEL), None);
    }

    #[test]
    fn what_a_hostile_guest_leaves_is_bounded_and_printable() {
        let ram = ram();
        let flood = [MARK, &[b'x'; 100_000][..]].concat();
        put(&ram, 0x2_0000, &flood);
        let words = last_words(&ram, KERNEL).expect("words");
        assert_eq!(words.reason.len(), REASON_MAX);
        let length: usize = words.lines.iter().map(String::len).sum();
        assert!(length <= BEFORE_BYTES + AFTER_BYTES);
        // At the very end of the kernel, too.
        let ram = self::ram();
        put(
            &ram,
            KERNEL.end - 31,
            b"Kernel panic - not syncing: \x1b[2J and more",
        );
        assert_eq!(last_words(&ram, KERNEL), None);
        put(&ram, KERNEL.end - 31, b"Kernel panic - not syncing: abcdef");
        let words = last_words(&ram, KERNEL).expect("words");
        assert_eq!(words.reason, "abc");
    }
}
