//! The flist format, as others see it.
//!
//! Owns: packed images on a kernel that Debian built, before erofs-utils, and in a machine of ours where the image
//! is hostile. Refuses: our own reader (crates/flist/tests has one).
#![cfg(test)]

mod tests {
    use std::process::Command;

    use flist::pack::Source;
    use qemu_tests::foreign::{self, Listing, declared, directory};
    use tempfile::TempDir;

    #[test]
    fn debians_kernel_shows_the_identical_tree_and_its_fsck_accepts_it() {
        let work = TempDir::new().expect("temp");
        let (tar, declared) = declared::everything().expect("a tar");
        let root = work.path().join("root");
        directory::fill(&root).expect("a directory");
        let found = Listing::of(&root).expect("a listing");
        let disks = [work.path().join("declared"), work.path().join("directory")];
        foreign::disk(Source::Tar(&tar), &disks[0]).expect("packs");
        foreign::disk(Source::Directory(&root), &disks[1]).expect("packs");
        for disk in &disks {
            // It calls itself for each directory in a directory, and 2000 are more than a usual stack holds.
            let fsck = Command::new("prlimit")
                .args(["--stack=1073741824", "fsck.erofs"])
                .arg(disk)
                .output();
            let fsck = fsck.expect("erofs-utils: run 'make setup'");
            assert!(fsck.status.success(), "{fsck:?}");
        }
        let (kernel, seen) = foreign::listings(&disks).expect("Debian's kernel boots");
        assert!(kernel.contains("Debian"), "{kernel}");
        println!(
            "{} and {} files on {kernel}",
            seen[0].0.len(),
            seen[1].0.len()
        );
        assert_eq!(declared.differs(&seen[0]), None);
        assert_eq!(found.differs(&seen[1]), None);
    }
}
