//! The cache as its users see it: what is put in, what is taken out, and what a sweep leaves.

use super::*;
use crate::pack::{Packed, Source, pack};
use crate::store::DirStore;
use tempfile::TempDir;
use types::flist::ImageConfig;

struct World {
    work: TempDir,
    store: DirStore,
    cache: Cache,
    packed: Packed,
}

fn world() -> World {
    let work = TempDir::new().expect("temp");
    let root = work.path().join("root");
    fs::create_dir(&root).expect("directory");
    for i in 0..4u8 {
        fs::write(root.join(format!("f{i}")), vec![i + 1; 600 << 10]).expect("file");
    }
    let mut store = DirStore::open(work.path().join("store")).expect("store");
    let source = Source::Directory(&root);
    let packed = pack(source, &ImageConfig::default(), &mut store, &mut |_| {}).expect("packs");
    let cache = Cache::open(work.path().join("pool")).expect("cache");
    World {
        work,
        store,
        cache,
        packed,
    }
}

#[test]
fn a_push_names_what_is_missing_until_all_is_there() {
    let w = world();
    let missing = w
        .cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    assert_eq!(missing.len(), 8);
    for (index, stored) in missing.iter().enumerate() {
        let bytes = w.store.read_chunk(stored).expect("there");
        w.cache.put_chunk(*stored, &bytes).expect("valid");
        w.cache.put_chunk(*stored, &bytes).expect("again is fine");
        let (flist, _) = w.cache.flist(&w.packed.digest).expect("there");
        assert_eq!(w.cache.missing(&flist), missing[index + 1..]);
    }
}

#[test]
fn content_that_is_replaced_is_there_at_every_moment() {
    let w = world();
    let (digest, flist) = (w.packed.digest, &w.packed.flist);
    w.cache.put_flist(digest, flist).expect("valid");
    let path = w.cache.flist_path(&digest);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(fs::read(&path).expect("there").len(), flist.len());
                reads += 1;
            }
            reads
        });
        for _ in 0..50 {
            w.cache.put_flist(digest, flist).expect("again");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().expect("never missing") > 0);
    });
    let directory = path.parent().expect("a directory");
    assert_eq!(fs::read_dir(directory).expect("listed").count(), 1);
}

#[test]
fn what_another_user_is_given_is_theirs_with_all_in_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let w = world();
    w.cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let cache = w.cache.clone().given_to(99_998).expect("given");
    let stored = cache.missing(&cache.flist(&w.packed.digest).expect("there").0)[0];
    let bytes = w.store.read_chunk(&stored).expect("there");
    cache.put_chunk(stored, &bytes).expect("valid");
    let chunk = cache.chunk_path(&stored);
    let paths = [
        cache.flist_path(&w.packed.digest),
        chunk.parent().expect("a directory").to_owned(),
        chunk,
        w.work.path().join("pool/chunks"),
        w.work.path().join("pool/images"),
    ];
    for path in paths {
        let metadata = fs::metadata(&path).expect("there");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (99_998, 99_998),
            "{path:?}"
        );
    }
}

#[test]
fn a_footprint_is_what_the_image_comes_to_take() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let w = world();
    let missing = w
        .cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let (flist, _) = w.cache.flist(&w.packed.digest).expect("there");
    let before = w.cache.footprint(&flist);
    let mut stored = w.packed.flist.len() as u64;
    for digest in &missing {
        let bytes = w.store.read_chunk(digest).expect("there");
        stored += bytes.len() as u64;
        w.cache.put_chunk(*digest, &bytes).expect("valid");
    }
    assert_eq!(before.stored, stored);
    assert_eq!(before.missing, stored - w.packed.flist.len() as u64);
    assert_eq!(w.cache.footprint(&flist).missing, 0);
    let (_, image) = w.cache.create_image(&w.packed.digest).expect("made");
    for chunk in flist.chunks() {
        let plain = w.cache.plain(chunk).expect("intact");
        image
            .write_all_at(&plain, chunk.extent.start())
            .expect("write");
    }
    image.sync_all().expect("sync");
    let taken = image.metadata().expect("stat").blocks() * 512;
    // Zeros within the metadata area may be left out.
    assert!(taken <= before.placed && before.placed <= flist.disk_bytes());
}

#[test]
fn what_does_not_hash_to_its_name_leaves_nothing_behind() {
    let w = world();
    let mut flist = w.packed.flist.clone();
    flist[70] ^= 1;
    let refused = w.cache.put_flist(w.packed.digest, &flist);
    assert!(
        matches!(refused, Err(CacheError::Hash { .. })),
        "{refused:?}"
    );
    let not_an_flist = w.cache.put_flist(hash(b"no flist"), b"no flist");
    assert!(matches!(
        not_an_flist,
        Err(CacheError::Format(FormatError::Magic))
    ));
    let name = Digest([7; 32]);
    assert!(matches!(
        w.cache.put_chunk(name, b"x"),
        Err(CacheError::Hash { .. })
    ));
    let long = vec![0; STORED_BYTES_MAX + 1];
    assert!(matches!(
        w.cache.put_chunk(hash(&long), &long),
        Err(CacheError::Large { .. })
    ));
    let pool = w.work.path().join("pool");
    assert_eq!(
        list(&pool.join("flists")).expect("list"),
        Vec::<PathBuf>::new()
    );
    assert_eq!(
        list(&pool.join("chunks/07")).expect("list"),
        Vec::<PathBuf>::new()
    );
}

#[test]
fn a_damaged_chunk_is_removed_when_it_is_read() {
    let w = world();
    w.cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let (flist, _) = w.cache.flist(&w.packed.digest).expect("there");
    let chunk = flist.chunks()[0];
    assert!(matches!(w.cache.plain(&chunk), Err(CacheError::Absent(_))));
    let bytes = w.store.read_chunk(&chunk.stored).expect("there");
    w.cache.put_chunk(chunk.stored, &bytes).expect("valid");
    assert_eq!(
        w.cache.plain(&chunk).expect("intact").len() as u64,
        chunk.extent.bytes()
    );
    let mut damaged = bytes.clone();
    damaged[5] ^= 1;
    fs::write(w.cache.chunk_path(&chunk.stored), &damaged).expect("write");
    assert!(matches!(
        w.cache.plain(&chunk),
        Err(CacheError::Damaged { .. })
    ));
    assert!(!w.cache.has(&chunk));
    // A push over a damaged file repairs it, even when the length is right.
    fs::write(w.cache.chunk_path(&chunk.stored), &damaged).expect("write");
    w.cache.put_chunk(chunk.stored, &bytes).expect("valid");
    assert!(w.cache.plain(&chunk).is_ok());
    fs::write(w.cache.flist_path(&w.packed.digest), b"SIFRFLS1").expect("write");
    assert!(matches!(
        w.cache.flist(&w.packed.digest),
        Err(CacheError::Damaged { .. })
    ));
}

#[test]
fn a_sweep_keeps_what_a_kept_flist_names() {
    let w = world();
    let missing = w
        .cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    for stored in &missing {
        w.cache
            .put_chunk(*stored, &w.store.read_chunk(stored).expect("there"))
            .expect("valid");
    }
    for why in [Keep::Spared, Keep::Pinned] {
        w.cache.put_chunk(hash(b"stray"), b"stray").expect("valid");
        let keep = BTreeMap::from([(w.packed.digest, why)]);
        assert_eq!(w.cache.sweep(&keep, u64::MAX).expect("sweeps"), 5);
        let (flist, _) = w.cache.flist(&w.packed.digest).expect("kept");
        assert!(w.cache.missing(&flist).is_empty());
    }
    assert!(w.cache.sweep(&BTreeMap::new(), u64::MAX).expect("sweeps") > 100);
    assert!(matches!(
        w.cache.flist(&w.packed.digest),
        Err(CacheError::Absent(_))
    ));
    for directory in list(&w.cache.root.join("chunks")).expect("there") {
        assert!(list(&directory).expect("there").is_empty());
    }
}

#[test]
fn what_rested_longest_goes_first_and_what_others_name_stays() {
    let mut w = world();
    let mut images = vec![w.packed];
    // Each has the files of the one before and one more.
    for more in 10..12u8 {
        let root = w.work.path().join("root");
        fs::write(root.join(format!("f{more}")), vec![more; 600 << 10]).expect("file");
        let source = Source::Directory(&root);
        let config = ImageConfig::default();
        let packed = pack(source, &config, &mut w.store, &mut |_| {}).expect("packs");
        images.push(packed);
    }
    for image in &images {
        let missing = w.cache.put_flist(image.digest, &image.flist);
        for stored in missing.expect("valid") {
            let bytes = w.store.read_chunk(&stored).expect("there");
            w.cache.put_chunk(stored, &bytes).expect("valid");
        }
    }
    let there = || {
        let is_there = |image: &&Packed| w.cache.flist_path(&image.digest).exists();
        images.iter().map(|i| is_there(&i)).collect::<Vec<_>>()
    };
    for at in [1, 2, 0] {
        w.cache.used(&images[at].digest).expect("there");
    }
    assert!(w.cache.sweep(&BTreeMap::new(), 1).expect("sweeps") >= 1);
    assert_eq!(there(), [true, false, true]);
    let flist = w.cache.looked_at(&images[2].digest).expect("there");
    assert!(w.cache.missing(&flist).is_empty(), "shared chunks stay");
    assert!(w.cache.sweep(&BTreeMap::new(), 1).expect("sweeps") >= 1);
    assert_eq!(there(), [true, false, false]);
    let flist = w.cache.looked_at(&images[0].digest).expect("there");
    assert!(w.cache.missing(&flist).is_empty());
    let keep = BTreeMap::from([(images[0].digest, Keep::Pinned)]);
    assert_eq!(w.cache.sweep(&keep, u64::MAX).expect("sweeps"), 0);
}

#[test]
fn nothing_is_swept_while_a_pinned_flist_is_missing_or_damaged() {
    let w = world();
    let missing = w.cache.put_flist(w.packed.digest, &w.packed.flist);
    let stored = missing.expect("valid")[0];
    let bytes = w.store.read_chunk(&stored).expect("there");
    w.cache.put_chunk(stored, &bytes).expect("valid");
    let pinned = BTreeMap::from([(w.packed.digest, Keep::Pinned)]);
    fs::write(w.cache.flist_path(&w.packed.digest), b"SIFRFLS1").expect("write");
    // The first look removes what is damaged; the second finds nothing.
    for _ in 0..2 {
        let error = w
            .cache
            .sweep(&pinned, u64::MAX)
            .expect_err("nobody knows its chunks");
        assert!(matches!(error, CacheError::Unknown(digest) if digest == w.packed.digest));
        assert!(w.cache.chunk_path(&stored).exists());
    }
    w.cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("pushed again");
    assert_eq!(w.cache.sweep(&pinned, u64::MAX).expect("sweeps"), 0);
    assert!(w.cache.chunk_path(&stored).exists());
    // What can be fetched again is not waited for.
    fs::remove_file(w.cache.flist_path(&w.packed.digest)).expect("removed");
    let spared = BTreeMap::from([(w.packed.digest, Keep::Spared)]);
    assert!(w.cache.sweep(&spared, u64::MAX).expect("sweeps") > 0);
}

#[test]
fn a_new_image_has_its_metadata_and_zeros() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let w = world();
    w.cache
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let (flist, image) = w.cache.create_image(&w.packed.digest).expect("made");
    let mut magic = [0; 4];
    image.read_exact_at(&mut magic, 1024).expect("read");
    assert_eq!(magic, [0xe2, 0xe1, 0xf5, 0xe0]);
    let meta = w
        .cache
        .image(&w.packed.digest)
        .expect("named")
        .metadata()
        .expect("stat");
    assert_eq!(meta.len(), flist.disk_bytes());
    assert!(meta.blocks() * 512 <= 8192 + flist.metadata_bytes());
    w.cache.create_image(&w.packed.digest).expect("replaces");
}
