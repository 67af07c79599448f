//! Where chunks go, and a store that is a plain directory.
//!
//! Owns: the layout `<flist digest>.flist` and `chunks/<2 hex>/<62 hex>`, written so that a half-written
//! file is never seen under its name. Any web server can serve the directory.
//! Refuses: checking content, which readers do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use types::Digest;

use crate::chunk::object_path;

/// Takes the chunks of an image while it is packed.
pub trait ChunkSink {
    /// One chunk's stored bytes under their hash. The same chunk may come more than once.
    fn put(&mut self, stored: &Digest, bytes: &[u8]) -> io::Result<()>;
}

/// Packs without keeping the chunks, for a digest alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl ChunkSink for NoStore {
    fn put(&mut self, _stored: &Digest, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    root: PathBuf,
}

impl DirStore {
    /// Makes the directory if it is missing.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(root.join("chunks"))?;
        Ok(Self { root })
    }

    /// Writes the flist. Write it after its chunks: who sees it may then fetch them.
    pub fn put_flist(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        write_once(&self.flist_path(digest), bytes)
    }

    pub fn flist_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(format!("{}.flist", digest.hex()))
    }

    pub fn chunk_path(&self, stored: &Digest) -> PathBuf {
        self.root.join(object_path(stored))
    }

    /// A chunk's stored bytes, unverified: open them with [`crate::chunk::Chunk::open`].
    pub fn read_chunk(&self, stored: &Digest) -> io::Result<Vec<u8>> {
        fs::read(self.chunk_path(stored))
    }
}

impl ChunkSink for DirStore {
    fn put(&mut self, stored: &Digest, bytes: &[u8]) -> io::Result<()> {
        write_once(&self.chunk_path(stored), bytes)
    }
}

/// Writes a content-addressed file that does not exist yet, by way of a temporary name beside it.
fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|m| m.len() == bytes.len() as u64) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    let temporary = temporary_beside(path);
    let mut file = match File::create_new(&temporary) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            File::create_new(&temporary)?
        }
        other => other?,
    };
    let written = file
        .write_all(bytes)
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name that no other writer uses, in the same directory.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".tmp-{}-{serial}", std::process::id()))
}
