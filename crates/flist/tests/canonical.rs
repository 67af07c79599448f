//! That a tree has one digest, wherever it is packed.
//!
//! Owns: digests that are the format (docs/flist-format.md, "Canonical order"): where one of these changes, every
//! digest that anybody has signed changes, and the format says so by its version or a flag.
//! Refuses: other tests beside it, since it changes the umask of the whole process.
#![cfg(test)]

mod tests {
    use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use flist::disk::DiskFormat;
    use flist::pack::{Source, pack, pack_with};
    use flist::seal::Salt;
    use flist::store::NoStore;
    use nix::sys::stat::{Mode, umask};
    use types::flist::ImageConfig;

    const TREE: &str = "blake3:8987282c6ccb1483985cb00a74bf4a6b513001b1d736570469c2c0fdde434e53";
    const SEALED: &str = "blake3:4b6870e4285ad7f275d79e002c7a6f9730a6cb6ea8dcae57b90a8d869dc94128";
    const DISK: &str = "blake3:3b0ef48ea78d4d423ddb0e04194d085cc377971f4f8bcaa72e840cc753225944";
    const EMPTY: &str = "blake3:400d38193488f5973fc9dce8013c593645b39b880b4883d818973446ba1f51c4";

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out
    }

    /// Path, content, mode, seconds and nanoseconds.
    type Entry = (String, Vec<u8>, u32, (u64, u32));

    fn files() -> Vec<Entry> {
        let mut files: Vec<_> = (0..200u64)
            .map(|i| {
                let len = usize::try_from(1 + i * 977 % 30_000).expect("small");
                let path = format!("usr/share/d{}/f{i}", i % 7);
                (path, noise(i, len), 0o640, (1_000_000_000 + i, 5))
            })
            .collect();
        files.push((
            "bin/app".to_owned(),
            noise(900, 1_700_000),
            0o4755,
            (7, 999_999_999),
        ));
        files.push(("bin/zeros".to_owned(), vec![0; 900_000], 0o600, (8, 0)));
        files.push(("empty".to_owned(), Vec::new(), 0o444, (9, 0)));
        files
    }

    fn config() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/bin/app".to_owned()],
            env: vec!["PATH=/bin".to_owned(), "LANG=\u{e4}".to_owned()],
            stop_signal: "SIGQUIT".to_owned(),
            ..ImageConfig::default()
        }
    }

    fn digest(source: Source<'_>, config: &ImageConfig) -> String {
        let packed = pack(source, config, &mut NoStore, &mut |_| {});
        packed.expect("packs").digest.to_string()
    }

    fn touch(path: &Path, (seconds, nanoseconds): (u64, u32)) {
        let time = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let times = FileTimes::new().set_modified(time);
        File::open(path)
            .and_then(|f| f.set_times(times))
            .expect("times");
    }

    fn directories() -> Vec<String> {
        let mut all: Vec<String> = (0..7).map(|i| format!("usr/share/d{i}")).collect();
        all.extend(["usr/share", "usr", "bin", ""].map(str::to_owned));
        all
    }

    /// The tree as files, made in the order given.
    fn on_disk(root: &Path, backwards: bool) {
        for directory in directories() {
            DirBuilder::new()
                .recursive(true)
                .create(root.join(directory))
                .expect("made");
        }
        let mut files = files();
        if backwards {
            files.reverse();
        }
        for (path, content, mode, time) in files {
            let path = root.join(path);
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path);
            file.and_then(|mut f| f.write_all(&content)).expect("file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
            touch(&path, time);
        }
        fs::hard_link(root.join("bin/app"), root.join("usr/app too")).expect("link");
        symlink("bin/app", root.join("app")).expect("link");
        let now = nix::sys::time::TimeSpec::new(77, 5);
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &root.join("app"),
            &now,
            &now,
            nix::sys::stat::UtimensatFlags::NoFollowSymlink,
        )
        .expect("times");
        for directory in directories() {
            let path = root.join(directory);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
            touch(&path, (55, 1));
        }
    }

    /// A disk of 2 GiB with something in three places.
    fn disk() -> File {
        let mut disk = tempfile::tempfile().expect("file");
        disk.set_len(2 << 30).expect("sparse");
        for at in [0, (1 << 19) - 5, 1 << 30] {
            disk.seek(SeekFrom::Start(at)).expect("seek");
            disk.write_all(b"something").expect("write");
        }
        disk
    }

    /// The tree as a tar, its entries in the order given.
    fn as_tar(backwards: bool, (uid, gid): (u32, u32)) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().expect("file"));
        let mut add = |path: &str, kind, content: &[u8], mode, time: (u64, u32)| {
            let mtime = format!("{}.{:09}", time.0, time.1);
            builder
                .append_pax_extensions([("mtime", mtime.as_bytes())])
                .expect("memory");
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid.into());
            header.set_gid(gid.into());
            let link = matches!(kind, tar::EntryType::Link | tar::EntryType::Symlink);
            if link {
                header
                    .set_link_name(str::from_utf8(content).expect("text"))
                    .expect("short");
            }
            let content = if link { &[][..] } else { content };
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, path, content)
                .expect("write");
        };
        let mut files = files();
        let mut directories = directories();
        if backwards {
            files.reverse();
            directories.reverse();
        }
        for (path, content, mode, time) in files {
            add(&path, tar::EntryType::Regular, &content, mode, time);
        }
        add("usr/app too", tar::EntryType::Link, b"bin/app", 0, (0, 0));
        add("app", tar::EntryType::Symlink, b"bin/app", 0o777, (77, 5));
        for directory in directories {
            let path = format!("./{directory}/");
            add(&path, tar::EntryType::Directory, b"", 0o755, (55, 1));
        }
        builder.into_inner().expect("write")
    }

    #[test]
    fn a_tree_has_one_digest_whatever_umask_order_time_and_threads() {
        let work = tempfile::tempdir().expect("temp");
        let mut digests = Vec::new();
        for (name, mask, backwards) in [("a", 0o022, false), ("b", 0o077, true), ("c", 0, true)] {
            let before = umask(Mode::from_bits_truncate(mask));
            let root = work.path().join(name);
            fs::create_dir(&root).expect("made");
            on_disk(&root, backwards);
            digests.push(digest(Source::Directory(&root), &config()));
            umask(before);
        }
        for backwards in [false, true] {
            let owner = (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            );
            let tar = as_tar(backwards, owner);
            digests.push(digest(Source::Tar(&tar), &config()));
        }
        // Many at once, each on a thread of its own: nothing is shared.
        let root = work.path().join("a");
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| digest(Source::Directory(&root), &config())))
                .collect();
            digests.extend(threads.into_iter().map(|t| t.join().expect("no panic")));
        });
        for other in &digests {
            assert_eq!(*other, digests[0]);
        }
        let of_root = digest(Source::Tar(&as_tar(false, (0, 0))), &config());
        assert_eq!(of_root, TREE, "the digest of the tree is the format");
        let salt = Salt::new([7; 32]);
        let tar = as_tar(false, (0, 0));
        let source = Source::Tar(&tar);
        let sealed = pack_with(source, &config(), Some(&salt), &mut NoStore, &mut |_| {});
        let sealed = sealed.expect("packs").digest.to_string();
        assert_eq!(sealed, SEALED, "and how keys are made is, too");
        let disk = digest(Source::Disk(&disk(), DiskFormat::Raw), &config());
        assert_eq!(disk, DISK, "and so is the digest of a disk");
        let empty = digest(Source::Layers(&[]), &ImageConfig::default());
        assert_eq!(empty, EMPTY, "the digest of nothing is the format");
    }
}
