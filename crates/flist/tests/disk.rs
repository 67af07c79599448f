//! Disk images that QEMU's own tools made, packed, put together again, and compared with what `qemu-img convert` says
//! they hold.
//!
//! Owns: every kind of image that qemu-img makes and that can be packed. Refuses: hostile ones, which have their tests
//! beside the code.
#![cfg(test)]

mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use flist::disk::DiskFormat;
    use flist::input::Input;
    use flist::materialise::materialise;
    use flist::pack::{Packed, pack};
    use flist::store::DirStore;
    use tempfile::TempDir;
    use types::flist::ImageConfig;

    const MIB: usize = 1 << 20;
    const DISK_BYTES: usize = 5 * MIB;

    fn qemu_img(home: &Path, args: &[&str]) {
        let mut command = Command::new("qemu-img");
        let output = command.current_dir(home).args(args).output();
        let output = output.expect("qemu-img runs: run 'make setup'");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {args:?}: {said}");
    }

    /// A disk with noise, text that compresses, zeros and holes.
    fn source(home: &Path) -> PathBuf {
        let mut bytes = vec![0; DISK_BYTES];
        blake3::Hasher::new()
            .finalize_xof()
            .fill(&mut bytes[MIB..3 * MIB / 2]);
        for (at, byte) in bytes[2 * MIB + 700..4 * MIB].iter_mut().enumerate() {
            *byte = b"all the same words again and again "[at / 3 % 35];
        }
        bytes[DISK_BYTES - 1] = 1;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let path = home.join("disk.raw");
        fs::write(&path, bytes).expect("write");
        path
    }

    fn packed(input: &Input, store: &mut DirStore) -> Packed {
        let config = ImageConfig::default();
        pack(input.source(), &config, store, &mut |_| {}).expect("packs")
    }

    /// Packs `image`, which is told by its content, and gives the disk that comes of it.
    fn through_a_pack(home: &Path, image: &str) -> (Packed, Vec<u8>) {
        let input = Input::open(&home.join(image), home).expect("is known");
        let mut store = DirStore::open(home.join("store")).expect("a store");
        let packed = packed(&input, &mut store);
        let out = home.join("out.raw");
        let disk = File::create(&out).expect("a file");
        let mut flist = std::io::Cursor::new(&packed.flist);
        let done = materialise(&mut flist, &mut |name| store.read_chunk(name), &disk);
        done.expect("whole");
        (packed, fs::read(&out).expect("read"))
    }

    #[test]
    fn what_qemu_img_makes_is_the_same_image_as_the_raw_disk() {
        let home = TempDir::new().expect("temp");
        let home = home.path();
        let raw = fs::read(source(home)).expect("read");
        let (expected, disk) = through_a_pack(home, "disk.raw");
        assert!(disk == raw, "the raw disk itself");
        for options in [
            &["-o", "compat=0.10"][..],
            &["-o", "compat=0.10", "-c"],
            &["-o", "compat=1.1"],
            &["-o", "compat=1.1,lazy_refcounts=on"],
            &["-o", "compat=1.1", "-c"],
            &["-o", "compat=1.1,compression_type=zstd", "-c"],
            &["-o", "cluster_size=512"],
            &["-o", "cluster_size=512", "-c"],
            &["-o", "cluster_size=4k,compression_type=zstd", "-c"],
            &["-o", "cluster_size=2M"],
            &["-o", "cluster_size=2M", "-c"],
            &["-o", "preallocation=metadata"],
            &["-o", "preallocation=falloc"],
            &["-S", "0"],
        ] {
            let convert = ["convert", "-f", "raw", "-O", "qcow2"];
            let files = ["disk.raw", "disk.qcow2"];
            qemu_img(home, &[&convert[..], options, &files].concat());
            let (packed, disk) = through_a_pack(home, "disk.qcow2");
            assert!(disk == raw, "{options:?}");
            assert_eq!(packed.digest, expected.digest, "{options:?}");
        }
    }

    #[test]
    fn the_present_state_counts_and_snapshots_inside_do_not() {
        let home = TempDir::new().expect("temp");
        let home = home.path();
        source(home);
        qemu_img(home, &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
        qemu_img(home, &["snapshot", "-c", "before", "disk.qcow2"]);
        // What is written after the snapshot gets clusters of its own.
        let write = [
            "-c",
            "write -P 7 1M 2M",
            "-c",
            "write -z 3584k 64k",
            "-c",
            "discard 3M 128k",
            "disk.qcow2",
        ];
        let output = Command::new("qemu-io")
            .current_dir(home)
            .args(write)
            .output();
        assert!(output.expect("qemu-io runs").status.success());
        qemu_img(home, &["convert", "-O", "raw", "disk.qcow2", "now.raw"]);
        let now = fs::read(home.join("now.raw")).expect("read");
        assert_eq!(now[2 * MIB], 7);
        let (_, disk) = through_a_pack(home, "disk.qcow2");
        assert!(disk == now);
        // A snapshot is another state: one that is wanted is converted out first.
        let out = [
            "convert",
            "-l",
            "before",
            "-O",
            "qcow2",
            "disk.qcow2",
            "before.qcow2",
        ];
        qemu_img(home, &out);
        let (_, disk) = through_a_pack(home, "before.qcow2");
        assert!(disk == fs::read(home.join("disk.raw")).expect("read"));
    }

    #[test]
    fn images_that_are_not_whole_or_not_open_are_refused() {
        let home = TempDir::new().expect("temp");
        let home = home.path();
        source(home);
        qemu_img(home, &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
        let create = ["create", "-q", "-f", "qcow2"];
        let backed = ["-b", "disk.qcow2", "-F", "qcow2", "backed.qcow2"];
        qemu_img(home, &[&create[..], &backed].concat());
        let external = ["-o", "data_file=data.raw", "external.qcow2", "1M"];
        qemu_img(home, &[&create[..], &external].concat());
        let secret = [
            "--object",
            "secret,id=s,data=sixteen-byte-key",
            "-o",
            "encrypt.format=aes,encrypt.key-secret=s",
            "secret.qcow2",
            "1M",
        ];
        qemu_img(home, &[&create[..], &secret].concat());
        let subclusters = ["-o", "extended_l2=on,cluster_size=64k", "sub.qcow2", "1M"];
        qemu_img(home, &[&create[..], &subclusters].concat());
        for (image, why) in [
            ("backed.qcow2", "has a backing file"),
            ("external.qcow2", "has its content in another file"),
            ("secret.qcow2", "is encrypted"),
            ("sub.qcow2", "has subclusters"),
        ] {
            let input = Input::open(&home.join(image), home).expect("is known");
            let mut store = DirStore::open(home.join("store")).expect("a store");
            let config = ImageConfig::default();
            let error = pack(input.source(), &config, &mut store, &mut |_| {});
            let said = error.expect_err(image).to_string();
            assert!(said.contains(why), "{image}: {said}");
        }
    }

    #[test]
    fn a_disk_that_is_said_to_be_raw_is_not_looked_into() {
        let home = TempDir::new().expect("temp");
        let home = home.path();
        source(home);
        qemu_img(home, &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
        let input = Input::disk(&home.join("disk.qcow2"), DiskFormat::Raw).expect("opens");
        let mut store = DirStore::open(home.join("store")).expect("a store");
        let length = fs::metadata(home.join("disk.qcow2")).expect("stat").len();
        assert_eq!(packed(&input, &mut store).stats.disk_bytes, length);
    }
}
