//! File systems of Debian's tools, ours by hand, and any bytes.

use std::process::Command;

use proptest::prelude::{any, prop_assert, proptest};

use super::*;
use crate::fuzz::{fat, options_of};
use crate::options::FILE_MAX;

fn options(volume: &[u8]) -> Result<Vec<u8>, FatError> {
    options_of(volume, volume.len() as u64)
}

fn run(command: &mut Command) {
    let done = command.output().expect("it runs: make setup");
    assert!(done.status.success(), "{command:?}: {done:?}");
}

/// Made by mkfs.vfat, filled by mcopy: what a person does.
fn made(kib: u32, how: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let volume = directory.path().join("volume");
    run(Command::new("/sbin/mkfs.vfat")
        .args(how)
        .arg("-C")
        .arg(&volume)
        .arg(kib.to_string()));
    for (name, content) in files {
        let file = directory.path().join("file");
        std::fs::write(&file, content).expect("written");
        run(Command::new("mcopy")
            .arg("-i")
            .arg(&volume)
            .arg(&file)
            .arg(format!("::{name}")));
    }
    std::fs::read(volume).expect("read")
}

#[test]
fn a_file_is_read_from_each_kind_that_mkfs_vfat_makes() {
    let long: Vec<u8> = (0..60_000u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    for (kib, how) in [
        (1024, &["-F", "12"][..]),
        (1024, &["-F", "12", "-s", "1", "-S", "512"]),
        (16 << 10, &["-F", "16"]),
        (32 << 10, &["-F", "16", "-S", "4096", "-s", "1"]),
        (40 << 10, &["-F", "32"]),
        (64 << 10, &[]),
    ] {
        let others: Vec<String> = (0..40)
            .map(|n| format!("a long name of another file {n}"))
            .collect();
        let mut files: Vec<(&str, &[u8])> = others
            .iter()
            .map(|name| (name.as_str(), &b"x"[..]))
            .collect();
        files.push(("options", &long));
        let volume = made(kib, how, &files);
        assert_eq!(options(&volume).expect("the file"), long, "{kib} {how:?}");
    }
}

#[test]
fn what_is_not_there_or_is_something_else_is_said() {
    let empty = made(1024, &[], &[("options", b"")]);
    assert_eq!(options(&empty).expect("empty"), b"");
    let other = made(1024, &[], &[("options.txt", b"x"), ("sifr.conf", b"x")]);
    assert!(matches!(options(&other), Err(FatError::Absent("options"))));
    let long = made(1024, &[], &[("OPTIONS", &[b'#'; 70_000])]);
    assert!(matches!(options(&long), Err(FatError::Long { .. })));
    assert!(matches!(options(&[0; 4096]), Err(FatError::None)));
    assert!(matches!(options(&[]), Err(FatError::None)));
}

#[test]
fn a_chain_that_ends_early_leads_out_or_goes_around_is_an_error_or_comes_to_an_end() {
    let content = [b'o'; 1200];
    let volume = fat(&content);
    assert_eq!(options(&volume).expect("the file"), content);
    // The numbers of clusters 2 and 3, twelve bits each.
    let chained = |two: u16, three: u16| {
        let mut volume = volume.clone();
        let both = u32::from(two) | u32::from(three) << 12;
        volume[512 + 3..512 + 6].copy_from_slice(&both.to_le_bytes()[..3]);
        options(&volume)
    };
    assert!(matches!(chained(0xfff, 4), Err(FatError::Damaged(_))));
    assert!(matches!(chained(0, 4), Err(FatError::Damaged(_))));
    assert!(matches!(chained(900, 4), Err(FatError::Damaged(_))));
    // As long as it says, of the same pieces again.
    assert_eq!(chained(2, 4).expect("a file").len(), 1200);
}

#[test]
fn a_directory_twice_the_name_and_a_file_system_that_is_too_long_are_errors() {
    let volume = fat(b"x");
    let at = volume
        .windows(11)
        .position(|w| w == b"OPTIONS    ")
        .expect("an entry");
    let mut directory = volume.clone();
    directory[at + 11] = DIRECTORY;
    assert!(matches!(options(&directory), Err(FatError::Directory(_))));
    let mut twice = volume.clone();
    twice.copy_within(at..at + 32, at + 32);
    assert!(matches!(options(&twice), Err(FatError::Damaged(_))));
    let mut named = volume.clone();
    named[at + 11] = VOLUME;
    assert!(matches!(options(&named), Err(FatError::Absent(_))));
    let short = options_of(&volume, volume.len() as u64 - 1);
    assert!(matches!(
        short,
        Err(FatError::Damaged("it is longer than its partition"))
    ));
}

proptest! {
    #[test]
    fn any_change_of_a_file_system_gives_a_file_or_an_error(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
        content in proptest::collection::vec(any::<u8>(), 0..1500),
        cut: proptest::sample::Index,
    ) {
        let mut volume = fat(&content);
        for (at, byte) in changes {
            // Most of it is content: what counts is in front.
            let at = at.index(volume.len().min(1100));
            volume[at] = byte;
        }
        volume.truncate(cut.index(volume.len()) + 1);
        if let Ok(read) = options(&volume) {
            prop_assert!(read.len() <= FILE_MAX as usize);
        }
    }

    #[test]
    fn any_boot_sector_gives_a_file_or_an_error(mut boot: [u8; 32], more: [u8; 32], rest: Vec<u8>) {
        boot[11..13].copy_from_slice(&512u16.to_le_bytes());
        let mut volume = [&boot[..], &more].concat();
        volume.resize(510, 0);
        volume.extend([0x55, 0xaa]);
        volume.extend(rest);
        volume.resize(64 << 10, 0xe5);
        let _ = options(&volume);
    }
}
