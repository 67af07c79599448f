//! As much of ELF as it takes to say whether a program stands alone.
//!
//! Owns: reading 64-bit little-endian program headers, the dynamic section's needs and notes
//! (System V gABI, chapter 5).
//! Refuses: anything cut off or of another class, with an error and never a panic.

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("not a 64-bit little-endian ELF file")]
    Foreign,
    #[error("cut off or malformed ELF file")]
    Malformed,
}

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const DT_NEEDED: u64 = 1;
/// Type of the note "Xen" whose value is the 32-bit PVH entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What matters about a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elf {
    /// It names a program loader.
    pub interpreter: bool,
    /// Libraries it needs.
    pub needed: usize,
    /// Where a PVH boot protocol enters it.
    pub pvh_entry: Option<u64>,
}

pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

pub fn parse(bytes: &[u8]) -> Result<Elf, ElfError> {
    // Class 2: 64-bit. Data 1: little-endian.
    if !is_elf(bytes) || bytes.get(4..6) != Some(&[2, 1]) {
        return Err(ElfError::Foreign);
    }
    let fields = || {
        let table = number(bytes, 0x20, 8)?;
        let size = number(bytes, 0x36, 2)?;
        let count = number(bytes, 0x38, 2)?;
        let mut elf = Elf {
            interpreter: false,
            needed: 0,
            pvh_entry: None,
        };
        for index in 0..count {
            let header = usize::try_from(table.checked_add(index.checked_mul(size)?)?).ok()?;
            let kind = u32::try_from(number(bytes, header, 4)?).ok()?;
            match kind {
                PT_INTERP => elf.interpreter = true,
                PT_DYNAMIC => elf.needed += needed(segment(bytes, header)?),
                PT_NOTE => elf.pvh_entry = elf.pvh_entry.or(pvh_entry(segment(bytes, header)?)),
                _ => {}
            }
        }
        Some(elf)
    };
    fields().ok_or(ElfError::Malformed)
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

fn segment(bytes: &[u8], header: usize) -> Option<&[u8]> {
    let offset = usize::try_from(number(bytes, header.checked_add(8)?, 8)?).ok()?;
    let size = usize::try_from(number(bytes, header.checked_add(0x20)?, 8)?).ok()?;
    bytes.get(offset..offset.checked_add(size)?)
}

fn needed(dynamic: &[u8]) -> usize {
    dynamic
        .chunks_exact(16)
        .filter(|entry| number(entry, 0, 8) == Some(DT_NEEDED))
        .count()
}

fn pvh_entry(notes: &[u8]) -> Option<u64> {
    let mut at = 0;
    loop {
        let name_size = usize::try_from(number(notes, at, 4)?).ok()?;
        let size = usize::try_from(number(notes, at + 4, 4)?).ok()?;
        let kind = u32::try_from(number(notes, at + 8, 4)?).ok()?;
        let name = notes.get(at + 12..at.checked_add(12)?.checked_add(name_size)?)?;
        let value = (at + 12)
            .checked_add(name_size)?
            .checked_next_multiple_of(4)?;
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return number(notes, value, size.min(8));
        }
        at = value.checked_add(size)?.checked_next_multiple_of(4)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with the given segments: (type, content).
    pub(crate) fn elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56 * segments.len()];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x20] = 64;
        bytes[0x36] = 56;
        bytes[0x38] = u8::try_from(segments.len()).expect("few segments");
        for (index, (kind, content)) in segments.iter().enumerate() {
            let (header, offset) = (64 + 56 * index, bytes.len());
            bytes[header..header + 4].copy_from_slice(&kind.to_le_bytes());
            bytes[header + 8..header + 16].copy_from_slice(&offset.to_le_bytes());
            bytes[header + 0x20..header + 0x28].copy_from_slice(&content.len().to_le_bytes());
            bytes.extend_from_slice(content);
        }
        bytes
    }

    #[test]
    fn a_loader_and_libraries_are_seen() {
        let mut dynamic = [0; 48];
        dynamic[0] = 1;
        dynamic[16] = 1;
        let program = elf(&[(PT_INTERP, b"/lib/ld.so\0"), (PT_DYNAMIC, &dynamic)]);
        let found = Elf {
            interpreter: true,
            needed: 2,
            pvh_entry: None,
        };
        assert_eq!(parse(&program), Ok(found));
        assert_eq!(
            parse(&elf(&[])),
            Ok(Elf {
                interpreter: false,
                needed: 0,
                pvh_entry: None
            })
        );
    }

    #[test]
    fn the_pvh_entry_is_found_behind_other_notes() {
        let mut notes = vec![4, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0];
        notes.extend_from_slice(b"GNU\0abc\0");
        notes.extend_from_slice(&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
        notes.extend_from_slice(b"Xen\0");
        notes.extend_from_slice(&0x100_0000u64.to_le_bytes());
        let entry = parse(&elf(&[(PT_NOTE, &notes)]))
            .expect("a good file")
            .pvh_entry;
        assert_eq!(entry, Some(0x100_0000));
    }

    #[test]
    fn every_cut_is_an_error_and_none_a_panic() {
        let program = elf(&[
            (PT_NOTE, &[4, 0, 0, 0, 255, 255, 255, 255, 18, 0, 0, 0]),
            (PT_DYNAMIC, b"x"),
        ]);
        for cut in 0..program.len() {
            assert!(parse(&program[..cut]).is_err());
        }
        assert_eq!(parse(b"#!/bin/sh"), Err(ElfError::Foreign));
    }

    #[test]
    fn this_test_itself_is_dynamic() {
        let me = std::env::current_exe()
            .and_then(std::fs::read)
            .expect("my own file");
        assert!(parse(&me).is_ok_and(|elf| elf.interpreter && elf.needed > 0));
    }
}
