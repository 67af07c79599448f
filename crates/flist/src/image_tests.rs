//! Packed images, checked by the EROFS of the kernel and by erofs-utils.
//!
//! Owns: trees with everything odd in them, and their comparison with what a mount shows.
//! Mounting needs root and a kernel with EROFS; without them the comparison is left out.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use types::flist::ImageConfig;

use crate::format::Flist;
use crate::materialise::materialise;
use crate::pack::{PackError, Packed, Source, pack};
use crate::store::{ChunkSink, DirStore, NoStore};
use crate::tree::DEVICES_MAX;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

fn run(program: &str, arguments: &[&OsStr]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

fn packed(source: Source<'_>, store: &mut dyn ChunkSink) -> Result<Packed, PackError> {
    pack(source, &ImageConfig::default(), store, &mut |_| {})
}

/// Everything odd that a directory can hold. As root: devices and capabilities as well.
fn odd_directory(root: &Path) {
    let write = |name: &[u8], bytes: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().expect("has one")).expect("directory");
        fs::write(path, bytes).expect("file");
    };
    write(b"empty", b"");
    write(b"one", b"1");
    write(b"block", &noise(1, 4096));
    write(b"block and one", &noise(2, 4097));
    write(b"large", &noise(3, 3_000_001));
    write(b"even", &vec![b'x'; 1 << 20]);
    write(b"zeros", &vec![0; 1_500_000]);
    write(b"!before dot", b"sorts before .");
    write(b"not \xff utf-8 \xc3(", b"bytes");
    write(&[b'n'; 255], b"longest name");
    for i in 0..300usize {
        write(
            format!("usr/share/f{i}").as_bytes(),
            &noise(i as u64, 1 + (i * 977) % 20_000),
        );
    }
    for i in 0..5000 {
        write(format!("many/entry number {i}").as_bytes(), b"");
    }
    let deep: Vec<u8> = b"deep/"
        .iter()
        .chain(b"d/".repeat(200).iter())
        .copied()
        .chain(*b"f")
        .collect();
    write(&deep, b"deep");
    fs::create_dir(root.join("empty directory")).expect("directory");
    let sparse = File::create(root.join("sparse")).expect("file");
    sparse.set_len(40 << 20).expect("length");
    sparse
        .write_all_at(b"in the middle", 17 << 20)
        .expect("write");
    fs::hard_link(root.join("large"), root.join("usr/large too")).expect("link");
    symlink("one", root.join("short link")).expect("link");
    symlink("x/".repeat(2047), root.join("long link")).expect("link");
    fs::set_permissions(root.join("one"), fs::Permissions::from_mode(0o4755)).expect("mode");
    fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o1777)).expect("mode");
    run("mkfifo", &[root.join("fifo").as_os_str()]);
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("socket");
    xattr::set(root.join("one"), "user.note", b"hello").expect("attribute");
    xattr::set(root.join("usr"), "user.big", &vec![b'v'; 1500]).expect("attribute");
    if nix::unistd::geteuid().is_root() {
        odd_things_of_root(root);
    }
    let old = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789));
    File::open(root.join("block"))
        .and_then(|f| f.set_times(old))
        .expect("times");
    let older = std::time::UNIX_EPOCH - std::time::Duration::new(3, 500_000_000);
    File::open(root.join("even"))
        .and_then(|f| f.set_times(fs::FileTimes::new().set_modified(older)))
        .expect("times");
}

fn odd_things_of_root(root: &Path) {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(root.join("block"), "security.capability", &capability).expect("attribute");
    xattr::set(root.join("block"), "trusted.x", b"").expect("attribute");
    let acl = [
        2u8, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0,
    ];
    let acl_rest = [
        4u8, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255,
    ];
    let other = [32u8, 0, 4, 0, 255, 255, 255, 255];
    let acl = [&acl[..], &acl_rest, &other].concat();
    xattr::set(root.join("empty"), "system.posix_acl_access", &acl).expect("attribute");
    let node = |name: &str, kind: &str, major: &str, minor: &str| {
        let path = root.join(name);
        run(
            "mknod",
            &[
                path.as_os_str(),
                kind.as_ref(),
                major.as_ref(),
                minor.as_ref(),
            ],
        );
    };
    node("null", "c", "1", "3");
    node("disk", "b", "259", "70000");
    std::os::unix::fs::lchown(root.join("one"), Some(70_000), Some(1)).expect("owner");
    std::os::unix::fs::lchown(root.join("short link"), Some(5), Some(4_000_000_000))
        .expect("owner");
}

/// All that can be seen of a tree, by path.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(root).expect("below").to_path_buf();
        let mut xattrs: Vec<_> = xattr::list(&path)
            .expect("list")
            .map(|n| (n.clone(), xattr::get(&path, &n).expect("get")))
            .collect();
        xattrs.sort();
        let content = if meta.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("readdir")
                    .map(|e| e.expect("entry").path()),
            );
            format!("links {}", meta.nlink())
        } else if meta.is_file() {
            let bytes = fs::read(&path).expect("read");
            format!("{} bytes {}", meta.len(), blake3::hash(&bytes))
        } else if meta.is_symlink() {
            format!("to {:?}", fs::read_link(&path).expect("readlink"))
        } else {
            format!("device {:#x}", meta.rdev())
        };
        let mtime = (meta.mtime(), meta.mtime_nsec());
        let who = (meta.mode(), meta.uid(), meta.gid(), mtime);
        let shared = (!meta.is_dir() && meta.nlink() > 1).then_some(meta.ino());
        let shared = shared.map(|ino| inodes.entry(ino).or_insert_with(|| name.clone()).clone());
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        out.insert(
            name,
            format!("{who:?} {links} {xattrs:?} {content} {}", shared.is_some()),
        );
    }
    out
}

/// Materialises, checks with fsck.erofs, and hands a mount of it to `check`.
fn checked(work: &Path, packed: &Packed, store: &DirStore, check: impl FnOnce(&Path)) {
    let disk_path = work.join("disk");
    let disk = File::create(&disk_path).expect("disk");
    materialise(
        &mut Cursor::new(&packed.flist),
        &mut |d| store.read_chunk(d),
        &disk,
    )
    .expect("whole");
    run("fsck.erofs", &[disk_path.as_os_str()]);
    let mount_point = work.join("mount");
    fs::create_dir_all(&mount_point).expect("directory");
    let options = ["-t", "erofs", "-o", "loop,ro"].map(OsStr::new);
    let mounted = Command::new("mount")
        .args(options)
        .args([disk_path.as_os_str(), mount_point.as_os_str()])
        .output()
        .expect("mount");
    if mounted.status.success() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mount_point)));
        run("umount", &[mount_point.as_os_str()]);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    } else {
        eprintln!("not mounted: {}", String::from_utf8_lossy(&mounted.stderr));
    }
}

fn assert_same(source: &BTreeMap<PathBuf, String>, image: &BTreeMap<PathBuf, String>) {
    for (path, what) in source {
        assert_eq!(image.get(path), Some(what), "{path:?}");
    }
    assert_eq!(source.len(), image.len());
}

#[test]
fn a_mounted_image_shows_exactly_the_directory_it_was_packed_from() {
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    odd_directory(&root);
    let mut store = DirStore::open(work.path().join("store")).expect("store");
    let packed = packed(Source::Directory(&root), &mut store).expect("packs");
    checked(work.path(), &packed, &store, |mount| {
        let source = listing(&root);
        let image = listing(mount);
        assert_same(&source, &image);
    });
    let flist = Flist::read(&mut Cursor::new(&packed.flist)).expect("valid");
    assert!(
        packed.stats.disk_bytes > 44 << 20,
        "the hole is on the disk"
    );
    let covered: u64 = flist.chunks().iter().map(|c| c.extent.bytes()).sum();
    assert!(
        covered < 12 << 20,
        "zeros belong to no chunk, but {covered} bytes are covered"
    );
}

#[test]
fn a_tar_of_every_format_gives_the_digest_of_the_directory() {
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    odd_directory(&root);
    fs::remove_file(root.join("socket")).expect("tar leaves sockets out");
    let expected = packed(Source::Directory(&root), &mut NoStore)
        .expect("packs")
        .digest;
    // Attributes and numbers above 21 bits only fit PAX; GNU format stands in for the sparse kind.
    for extra in [&["--sparse"][..], &[], &["--sort=name", "--sparse"]] {
        let tar_path = work.path().join("a.tar");
        let mut arguments = vec![
            OsStr::new("--format=posix"),
            "--xattrs".as_ref(),
            "--xattrs-include=*".as_ref(),
        ];
        arguments.extend(extra.iter().map(OsStr::new));
        arguments.extend([
            "-cf".as_ref(),
            tar_path.as_os_str(),
            "-C".as_ref(),
            root.as_os_str(),
            ".".as_ref(),
        ]);
        run("tar", &arguments);
        let tar = File::open(&tar_path).expect("made");
        let from_tar = packed(Source::Tar(&tar), &mut NoStore).expect("packs");
        assert_eq!(from_tar.digest, expected, "{extra:?}");
    }
}

#[test]
fn a_gnu_sparse_archive_gives_the_digest_of_the_directory() {
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    let sparse = File::create(root.join("sparse")).expect("file");
    for i in 0..60u64 {
        sparse
            .write_all_at(&noise(i, 9000), i * 300_000)
            .expect("write");
    }
    sparse.set_len(50_000_000).expect("length");
    // This format has whole seconds.
    let whole = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    sparse.set_times(whole).expect("times");
    File::open(&root)
        .and_then(|f| f.set_times(whole))
        .expect("times");
    let tar_path = work.path().join("a.tar");
    let dot = OsStr::new(".");
    let arguments = ["--format=gnu", "--sparse", "-cf"].map(OsStr::new);
    run(
        "tar",
        &[
            &arguments[..],
            &[tar_path.as_os_str(), "-C".as_ref(), root.as_os_str(), dot],
        ]
        .concat(),
    );
    assert!(
        fs::metadata(&tar_path).expect("made").len() < 2_000_000,
        "it is sparse"
    );
    let tar = File::open(&tar_path).expect("made");
    let from_tar = packed(Source::Tar(&tar), &mut NoStore)
        .expect("packs")
        .digest;
    assert_eq!(
        from_tar,
        packed(Source::Directory(&root), &mut NoStore)
            .expect("packs")
            .digest
    );
}

struct Entry<'a>(&'a str, tar::EntryType, &'a [u8]);

fn tar_of(work: &Path, entries: &[Entry<'_>]) -> File {
    let mut builder = tar::Builder::new(Vec::new());
    for Entry(name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let path = CString::new(*name).expect("no NUL");
        header.as_old_mut().name[..name.len()].copy_from_slice(path.as_bytes());
        let link = matches!(kind, tar::EntryType::Link | tar::EntryType::Symlink);
        if link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        }
        let content = if link { &[][..] } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("memory");
    }
    let mut file = tempfile::tempfile_in(work).expect("file");
    file.write_all(&builder.into_inner().expect("memory"))
        .expect("write");
    file
}

#[test]
fn archives_that_lie_are_refused_by_name() {
    use tar::EntryType::{Link, Regular, Symlink};
    let work = TempDir::new().expect("temp");
    let refusal = |entries: &[Entry<'_>]| {
        let file = tar_of(work.path(), entries);
        packed(Source::Tar(&file), &mut NoStore)
            .expect_err("refused")
            .to_string()
    };
    assert!(refusal(&[Entry("../etc/passwd", Regular, b"x")]).contains("leaves the image"));
    assert!(refusal(&[Entry("a", Link, b"missing")]).contains("not in the image"));
    assert!(refusal(&[Entry("a", Symlink, b"")]).contains("empty"));
    assert!(refusal(&[Entry("a", tar::EntryType::new(b'?'), b"")]).contains("unknown type"));
    let file = tar_of(work.path(), &[Entry("a", Regular, &[1; 4000])]);
    file.set_len(2000).expect("cut");
    let error = packed(Source::Tar(&file), &mut NoStore)
        .expect_err("refused")
        .to_string();
    assert!(error.contains("cut") || error.contains("tar"), "{error}");
}

#[test]
fn a_flood_of_devices_and_attributes_beyond_what_a_file_holds_are_refused_by_name() {
    use tar::EntryType::{Fifo, Regular};
    let work = TempDir::new().expect("temp");
    let names: Vec<String> = (0..=DEVICES_MAX).map(|i| format!("dev/{i}")).collect();
    let flood = |count: usize| {
        let entries = names.iter().take(count);
        let entries: Vec<_> = entries.map(|n| Entry(n, Fifo, b"")).collect();
        let file = tar_of(work.path(), &entries);
        packed(Source::Tar(&file), &mut NoStore).map(drop)
    };
    assert!(flood(DEVICES_MAX).is_ok());
    let error = flood(DEVICES_MAX + 1).expect_err("refused").to_string();
    assert!(error.contains("leave them out"), "{error}");

    let with = |attributes: &[(&str, Vec<u8>)]| {
        let mut builder = tar::Builder::new(tempfile::tempfile_in(work.path()).expect("file"));
        let keys = attributes
            .iter()
            .map(|(name, _)| format!("SCHILY.xattr.{name}"));
        let keys: Vec<String> = keys.collect();
        let values = attributes.iter().map(|(_, value)| value.as_slice());
        let pairs = keys.iter().map(String::as_str).zip(values);
        builder.append_pax_extensions(pairs).expect("attributes");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(Regular);
        header.set_size(0);
        builder
            .append_data(&mut header, "odd", &[][..])
            .expect("an entry");
        let file = builder.into_inner().expect("a tar");
        packed(Source::Tar(&file), &mut NoStore).map(drop)
    };
    let five = |bytes: usize| ["a", "b", "c", "d", "e"].map(|n| (n, vec![b'x'; bytes]));
    let named = |all: [(&str, Vec<u8>); 5]| all.map(|(n, v)| (format!("user.{n}"), v));
    let all = |bytes: usize| {
        let all = named(five(bytes));
        let all: Vec<_> = all.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
        with(&all)
    };
    assert!(with(&[("user.most", vec![b'x'; 65_535])]).is_ok());
    let too_long = with(&[("user.much", vec![b'x'; 65_536])]).expect_err("refused");
    assert!(too_long.to_string().contains("odd"), "{too_long}");
    assert!(all(50_000).is_ok());
    let too_many = all(60_000).expect_err("refused");
    assert!(too_many.to_string().contains("odd"), "{too_many}");
}

#[test]
fn a_directory_that_is_swapped_for_a_link_while_it_is_packed_never_gives_what_lies_elsewhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let work = TempDir::new().expect("temp");
    let [root, secret] = ["root", "secret"].map(|name| work.path().join(name));
    // Alike in all but content, so that no count of bytes tells them apart.
    for (tree, byte) in [(&root.join("d"), b'p'), (&secret, b's')] {
        fs::create_dir_all(tree).expect("directory");
        for i in 0..20 {
            fs::write(tree.join(format!("f{i}")), vec![byte; 4096]).expect("file");
        }
    }
    symlink(&secret, root.join("link")).expect("link");
    let over = AtomicBool::new(false);
    let (mut whole, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let [here, link, aside] = ["d", "link", "aside"].map(|name| root.join(name));
            while !over.load(Ordering::Relaxed) {
                for (from, to) in [
                    (&here, &aside),
                    (&link, &here),
                    (&here, &link),
                    (&aside, &here),
                ] {
                    fs::rename(from, to).expect("a rename");
                }
            }
        });
        for _ in 0..400 {
            let store = work.path().join("store");
            let mut store = DirStore::open(store).expect("a store");
            match packed(Source::Directory(&root), &mut store) {
                Ok(packed) => {
                    whole += 1;
                    let flist = Flist::read(&mut Cursor::new(&packed.flist)).expect("valid");
                    for chunk in flist.chunks() {
                        let stored = store.read_chunk(&chunk.stored).expect("a chunk");
                        let plain = chunk.open(&stored).expect("intact");
                        assert!(!plain.contains(&b's'), "the secret is in the image");
                    }
                }
                Err(_) => refused += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        swaps.join().expect("it swaps to the end");
    });
    assert!(
        whole > 0 && refused > 0,
        "{whole} packed, {refused} refused"
    );
}

#[test]
fn an_absurd_size_is_refused_before_anything_is_read() {
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    let made = File::create(root.join("absurd"))
        .expect("file")
        .set_len(3 << 40);
    if made.is_ok() {
        let error = packed(Source::Directory(&root), &mut NoStore)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("absurd"), "{error}");
    }
}

#[test]
fn layers_are_merged_with_whiteouts_and_opaque_directories() {
    use tar::EntryType::{Directory, Regular};
    let work = TempDir::new().expect("temp");
    let lower = tar_of(
        work.path(),
        &[
            Entry("etc/gone", Regular, b"1"),
            Entry("etc/stays", Regular, b"2"),
            Entry("opt/old", Regular, b"3"),
            Entry("var/", Directory, b""),
        ],
    );
    // The opaque mark comes after the entry of its own layer, which it does not hide.
    let upper = tar_of(
        work.path(),
        &[
            Entry("etc/.wh.gone", Regular, b""),
            Entry("opt/new", Regular, b"4"),
            Entry("opt/.wh..wh..opq", Regular, b""),
            Entry("etc/back", Regular, b"5"),
            Entry(".wh.var", Regular, b""),
        ],
    );
    let flat = tar_of(
        work.path(),
        &[
            Entry("etc/back", Regular, b"5"),
            Entry("etc/stays", Regular, b"2"),
            Entry("opt/new", Regular, b"4"),
        ],
    );
    let merged = packed(Source::Layers(&[lower, upper]), &mut NoStore).expect("packs");
    assert_eq!(
        merged.digest,
        packed(Source::Tar(&flat), &mut NoStore)
            .expect("packs")
            .digest
    );
}

#[test]
fn an_empty_tree_is_an_image_with_a_root() {
    let work = TempDir::new().expect("temp");
    let mut store = DirStore::open(work.path().join("store")).expect("store");
    let packed = packed(Source::Layers(&[]), &mut store).expect("packs");
    checked(work.path(), &packed, &store, |mount| {
        let meta = fs::metadata(mount).expect("root");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.nlink()),
            (0o755, 0, 2)
        );
    });
}

#[test]
fn a_second_release_shares_the_chunks_of_what_did_not_change() {
    struct Names(std::collections::BTreeSet<types::Digest>);
    impl ChunkSink for Names {
        fn put(&mut self, stored: &types::Digest, _: &[u8]) -> std::io::Result<()> {
            self.0.insert(*stored);
            Ok(())
        }
    }
    let work = TempDir::new().expect("temp");
    let root = work.path();
    for i in 0..2000u64 {
        fs::write(root.join(format!("file{i:04}")), noise(i, 6000)).expect("file");
    }
    let mut first = Names(Default::default());
    packed(Source::Directory(root), &mut first).expect("packs");
    fs::write(root.join("file0100"), noise(9999, 60_000)).expect("file");
    fs::write(root.join("file0100b"), noise(9998, 10_000)).expect("file");
    let mut second = Names(Default::default());
    packed(Source::Directory(root), &mut second).expect("packs");
    let new = second.0.difference(&first.0).count();
    assert!(
        new <= 4 && second.0.len() > 15,
        "{new} of {} are new",
        second.0.len()
    );
}

#[test]
fn stores_and_caches_of_an_encrypted_image_hold_no_plain_text_and_give_it_whole() {
    const MARKER: &[u8] = b"the marker that nobody may find";
    fn holds_marker(directory: &Path) -> bool {
        fs::read_dir(directory).expect("readdir").any(|entry| {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                return holds_marker(&path);
            }
            let stored = fs::read(&path).expect("read");
            // One may have been compressed alone.
            let plain = zstd::decode_all(&stored[..]).unwrap_or_default();
            [stored, plain]
                .iter()
                .any(|bytes| bytes.windows(MARKER.len()).any(|w| w == MARKER))
        })
    }
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    fs::write(root.join("noise"), [&noise(1, 9000)[..], MARKER].concat()).expect("file");
    fs::write(root.join("text"), MARKER.repeat(30_000)).expect("file");
    let salt = crate::seal::Salt::new([5; 32]);
    for salt in [None, Some(&salt)] {
        let at = |name: &str| work.path().join(format!("{name} {}", salt.is_some()));
        let mut store = DirStore::open(at("store")).expect("store");
        let source = Source::Directory(&root);
        let config = ImageConfig::default();
        let packed = crate::pack::pack_with(source, &config, salt, &mut store, &mut |_| {});
        let packed = packed.expect("packs");
        let cache = crate::cache::Cache::open(at("cache")).expect("cache");
        let missing = cache.put_flist(packed.digest, &packed.flist).expect("put");
        for name in &missing {
            let stored = store.read_chunk(name).expect("it was packed");
            cache.put_chunk(*name, &stored).expect("put");
        }
        let (flist, _) = cache.flist(&packed.digest).expect("whole");
        assert_eq!(flist.is_encrypted(), salt.is_some());
        let plain = flist
            .chunks()
            .iter()
            .flat_map(|chunk| cache.plain(chunk).expect("opens"));
        let plain: Vec<u8> = plain.collect();
        assert!(plain.windows(MARKER.len()).any(|w| w == MARKER));
        for directory in [at("store").join("chunks"), at("cache").join("chunks")] {
            assert_eq!(holds_marker(&directory), salt.is_none(), "{directory:?}");
        }
    }
}
