//! What the machine was told before it booted, from wherever that is written.
//!
//! Owns: reading the four places. Refuses: what it means ([`crate::options`]).

mod partition;

use std::fs::File;
use std::io::{ErrorKind, Read};

use types::site::OptionPlace;

use super::smbios;
use crate::options::{self, CMDLINE_MAX, FILE, Options};

/// Longest file of options: hundreds of lines.
const FILE_MAX: u64 = 64 << 10;

/// All options. What a place holds that cannot be read is among the errors.
pub(crate) fn options() -> Options {
    let mut errors = Vec::new();
    let mut bytes = |path: &str, max: u64| {
        read(path, max).unwrap_or_else(|error| {
            errors.push(format!("cannot read {path}: {error}"));
            Vec::new()
        })
    };
    let file = bytes(FILE, FILE_MAX);
    let command_line = bytes("/proc/cmdline", CMDLINE_MAX as u64);
    let table = bytes(smbios::TABLE, smbios::TABLE_MAX);
    let strings = smbios::oem_strings(&table).join("\n");
    let [file, command_line] = [&file, &command_line].map(|text| String::from_utf8_lossy(text));
    let places = [
        (OptionPlace::File, &*file),
        (OptionPlace::Smbios, &strings),
        (OptionPlace::CommandLine, &command_line),
    ];
    // These say whether there is a fourth, and which.
    let found = partition::once(&options::read(&places).config);
    let first = [(OptionPlace::Partition, found.text.as_str())];
    let mut options = options::read(&[&first[..], &places].concat());
    options.errors.extend(found.errors);
    options.errors.extend(errors);
    options
}

/// Nothing where there is no such file.
fn read(path: &str, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(max + 1).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(bytes),
        Err(error) => return Err(error),
    };
    if bytes.len() as u64 > max {
        return Err(std::io::Error::other(format!(
            "it is longer than {max} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_absent_says_nothing_and_one_that_is_too_long_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("options").display().to_string();
        assert_eq!(read(&path, 4).expect("absent"), b"");
        std::fs::write(&path, "four").expect("written");
        assert_eq!(read(&path, 4).expect("short enough"), b"four");
        assert!(read(&path, 3).is_err());
    }
}
