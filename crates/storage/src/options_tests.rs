//! Partitions on disks as Debian's tools make them.

use std::path::Path;
use std::process::Command;

use types::PublicKey;

use super::*;

const SIZE: u64 = 40 << 20;

fn run(command: &mut Command) {
    let done = command.output().expect("it runs: make setup");
    assert!(done.status.success(), "{command:?}: {done:?}");
}

/// With partitions of these names, one after the other, of 4 MiB each from the first MiB on.
fn disk(path: &Path, names: &[&str]) -> File {
    let file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path);
    let file = file.expect("a file");
    file.set_len(SIZE).expect("a disk");
    for (name, number) in names.iter().zip(1..) {
        let new = format!("--new={number}:{}M:+4M", 1 + 4 * (number - 1));
        let named = format!("--change-name={number}:{name}");
        run(Command::new("/usr/sbin/sgdisk")
            .args([&new, &named])
            .arg(path));
    }
    file
}

#[test]
fn a_file_of_options_is_read_from_the_partition_of_its_name_as_a_person_makes_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let file = disk(&path, &["EFI", NAME, "sifr-config-2"]);
    let found = find(&file, SIZE, 512, NAME).expect("read");
    assert_eq!(
        found.iter().map(|part| part.number).collect::<Vec<_>>(),
        [2]
    );
    assert!(matches!(read(&file, found[0]), Err(FatError::None)));
    let at = 5 << 20;
    let offset = (at / 512).to_string();
    run(Command::new("/sbin/mkfs.vfat")
        .args(["--offset", &offset])
        .arg(&path)
        .arg("4096"));
    let text = directory.path().join("text");
    std::fs::write(&text, "sifr.dns=192.0.2.53\n").expect("written");
    let inside = format!("{}@@{at}", path.display());
    run(Command::new("mcopy")
        .args(["-i", &inside])
        .arg(&text)
        .arg("::options"));
    assert_eq!(
        read(&file, found[0]).expect("a file"),
        b"sifr.dns=192.0.2.53\n"
    );
    assert_eq!(find(&file, SIZE, 512, "another").expect("read"), []);
}

#[test]
fn each_partition_of_the_name_is_found_and_none_on_a_nodes_pool_or_a_disk_without_a_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let twice = disk(&path, &[NAME, "x", NAME]);
    assert_eq!(find(&twice, SIZE, 512, NAME).expect("read").len(), 2);
    let bare = disk(&directory.path().join("bare"), &[]);
    assert_eq!(find(&bare, SIZE, 512, NAME).expect("read"), []);
    let owner = PublicKey([7; 32]);
    crate::fuzz::make_table(&bare, SIZE, &owner);
    let name = crate::probe::partition_name(&owner);
    assert_eq!(find(&bare, SIZE, 512, &name).expect("read"), []);
}
