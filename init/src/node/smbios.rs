//! OEM strings of the machine's SMBIOS tables (DMTF DSP0134, type 11): what a hypervisor or a maker's tool writes there.
//!
//! Owns: finding them in the raw table. Refuses: all other structures.
//!
//! The bytes are the firmware's: every length in them is checked.

/// The structures as the kernel has copied them (`drivers/firmware/dmi_scan.c`).
pub(crate) const TABLE: &str = "/sys/firmware/dmi/tables/DMI";
/// Longest table that is read: the old entry point can say 64 KiB, and servers with many parts have a few times that.
pub(crate) const TABLE_MAX: u64 = 1 << 20;

/// Type, length of the formatted part, handle.
const HEADER: usize = 4;
const OEM_STRINGS: u8 = 11;
const END: u8 = 127;

/// The OEM strings, as far as the table can be read.
pub(crate) fn oem_strings(mut table: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let [kind, length, ..] = *table {
        let strings = usize::from(length).max(HEADER);
        let Some(text) = table.get(strings..) else {
            break;
        };
        // The strings of a structure end with an empty one; where there are none, two zeros stand there.
        let Some(end) = text.windows(2).position(|pair| pair == [0, 0]) else {
            break;
        };
        if kind == END {
            break;
        }
        if kind == OEM_STRINGS {
            let all = text[..end].split(|byte| *byte == 0);
            let text = all.map(|string| String::from_utf8_lossy(string).into_owned());
            found.extend(text.filter(|string| !string.is_empty()));
        }
        table = &text[end + 2..];
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn structure(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let length = u8::try_from(HEADER + formatted.len()).expect("short");
        let mut bytes = [&[kind, length, 0, 0], formatted].concat();
        for string in strings {
            bytes.extend_from_slice(string.as_bytes());
            bytes.push(0);
        }
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn oem_strings_are_found_between_other_structures() {
        let table = [
            structure(0, &[1, 2, 0, 0], &["maker", "1.0"]),
            structure(32, &[0; 8], &[]),
            structure(OEM_STRINGS, &[2], &["sifr.dns=192.0.2.53", "other"]),
            structure(OEM_STRINGS, &[1], &["third"]),
            structure(END, &[], &[]),
            structure(OEM_STRINGS, &[1], &["after the end"]),
        ];
        let strings = oem_strings(&table.concat());
        assert_eq!(strings, ["sifr.dns=192.0.2.53", "other", "third"]);
    }

    proptest! {
        #[test]
        fn any_table_gives_strings_or_none(bytes: Vec<u8>, cut in 0..64usize) {
            let _ = oem_strings(&bytes);
            let table = structure(OEM_STRINGS, &[1], &["one"]);
            let cut = &table[..cut.min(table.len())];
            prop_assert!(oem_strings(cut).len() <= 1);
        }
    }
}
