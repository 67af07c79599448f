//! The chunk cache of a node.
//!
//! Owns: `flists/<hex>.flist`, `chunks/<2 hex>/<62 hex>` and `images/<hex>.img` below one directory.
//! What is under its name is whole and durable: it is written without a name, synced, and then linked.
//! The node takes pushes with it while the chunk daemon fetches; both may write at once.
//! Refuses: bytes that do not hash to their name, and anything above the limits of the format.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown, fchown, lchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use types::Digest;

use crate::chunk::{Chunk, ChunkError, hash, object_path};
use crate::format::{self, FLIST_BYTES_MAX, Flist, FormatError};
use crate::materialise::{self, MaterialiseError};
use crate::trace::{self, Trace};

pub use crate::STORED_BYTES_MAX;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cannot {doing} {path}")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} is not in the cache")]
    Absent(Digest),
    #[error(
        "content sent as {expected} hashes to {actual}: it was damaged on the way, send it again"
    )]
    Hash { expected: Digest, actual: Digest },
    #[error("content sent as {digest} is longer than the allowed {limit} bytes")]
    Large { digest: Digest, limit: u64 },
    #[error(
        "the image {0} of a deployment is missing or damaged, so nobody can tell which chunks it needs, and none \
         is removed: push it again, or delete the deployment"
    )]
    Unknown(Digest),
    #[error("{digest} in the cache was damaged and has been removed")]
    Damaged { digest: Digest },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("chunk {0} contradicts its flist, which was packed wrongly: pack the image again")]
    Contradiction(Digest, #[source] ChunkError),
    #[error(transparent)]
    Image(#[from] MaterialiseError),
}

/// Why a sweep leaves an flist and its chunks alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// A deployment needs it, and this node may be the only place that has it.
    Pinned,
    /// It is in use or on its way, and it does no harm if it is missing: what it names can be had again.
    Spared,
}

impl CacheError {
    /// Whether the disk has no room.
    pub fn is_full(&self) -> bool {
        let kind = match self {
            Self::Io { source, .. } => source.kind(),
            Self::Image(MaterialiseError::Write(source)) => source.kind(),
            _ => return false,
        };
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CacheError + 'a {
    move |source| CacheError::Io {
        doing,
        path: path.display().to_string(),
        source,
    }
}

/// What an image takes of the cache's disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// The flist, and each stored chunk once.
    pub stored: u64,
    /// Of these, what is not there yet.
    pub missing: u64,
    /// The image file with every chunk in its place.
    pub placed: u64,
}

/// A chunk file that was read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    pub digest: Digest,
    pub bytes: u64,
    /// It was not what its name says, and is no more.
    pub was_damaged: bool,
}

/// Paths only: cheap to clone, holds nothing open.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// Whose the files and directories are that it makes, user and group; the process's own if absent.
    owner: Option<u32>,
}

/// Directories below a cache's root.
const DIRECTORIES: [&str; 3] = ["flists", "chunks", "images"];

impl Cache {
    /// The cache below `root` (`/pool` on a node), with its directories made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let cache = Self {
            root: root.into(),
            owner: None,
        };
        for name in DIRECTORIES {
            let path = cache.root.join(name);
            fs::create_dir_all(&path).map_err(failed("make directory", &path))?;
        }
        Ok(cache)
    }

    /// The same cache for a process of another user beside this privileged one: all that is in it is given to
    /// `owner`, once, and so is all that this process puts there.
    pub fn given_to(self, owner: u32) -> Result<Self, CacheError> {
        for name in DIRECTORIES {
            give(&self.root.join(name), owner)?;
        }
        let owner = Some(owner);
        Ok(Self { owner, ..self })
    }

    pub fn flist_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(format!("flists/{}.flist", digest.hex()))
    }

    pub fn chunk_path(&self, stored: &Digest) -> PathBuf {
        self.root.join(object_path(stored))
    }

    pub fn trace_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("flists").join(trace::object(digest))
    }

    pub fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(format!("images/{}.img", digest.hex()))
    }

    /// Begins to take an flist whose bytes arrive in pieces.
    pub fn receive_flist(&self, digest: Digest) -> Result<Upload, CacheError> {
        Upload::new(self, self.flist_path(&digest), digest, FLIST_BYTES_MAX)
    }

    /// Takes a whole `.flist` file: checked, durable on return. Gives what [`Cache::missing`] gives.
    pub fn put_flist(&self, digest: Digest, bytes: &[u8]) -> Result<Vec<Digest>, CacheError> {
        let mut upload = self.receive_flist(digest)?;
        upload.push(bytes)?;
        Ok(self.missing(&upload.finish_flist()?))
    }

    /// Takes a chunk's stored bytes: checked against its name, durable on return.
    pub fn put_chunk(&self, stored: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.chunk_path(&stored);
        let same_length = self.chunk_length(&stored) == Some(bytes.len() as u64);
        if same_length && hash(bytes) == stored && fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        let mut upload = Upload::new(self, path, stored, STORED_BYTES_MAX as u64)?;
        upload.push(bytes)?;
        upload.finish()
    }

    /// Reads an flist, and verifies it again: disks forget.
    pub fn flist(&self, digest: &Digest) -> Result<(Flist, File), CacheError> {
        let path = self.flist_path(digest);
        let mut file = open_existing(&path, digest)?;
        let actual = format::digest_of(&mut file).map_err(failed("read", &path))?;
        if actual != *digest {
            remove(&path)?;
            return Err(CacheError::Damaged { digest: *digest });
        }
        Ok((Flist::read(&mut file)?, file))
    }

    /// The trace that is kept beside an flist of so many chunks. One that cannot be read is as good as none, and makes room
    /// for the next.
    pub fn trace(&self, digest: &Digest, count: usize) -> Option<Trace> {
        let path = self.trace_path(digest);
        let mut bytes = Vec::new();
        let limit = trace::BYTES_MAX as u64 + 1;
        let file = File::open(&path).ok()?;
        io::Read::read_to_end(&mut io::Read::take(file, limit), &mut bytes).ok()?;
        let read = Trace::decode(&bytes, digest, count);
        if read.is_err() {
            remove(&path).ok()?;
        }
        read.ok()
    }

    /// Keeps a trace beside its flist, in place of one that is there.
    pub fn put_trace(&self, trace: &Trace) -> Result<(), CacheError> {
        let path = self.trace_path(trace.flist());
        let mut file = unnamed(&path, self.owner)?;
        file.write_all(&trace.encode())
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        name(&file, &path)?;
        sync(path.parent().unwrap_or(&path))
    }

    /// Whether a chunk is there with the length its flist says; its hash is verified when it is read.
    pub fn has(&self, chunk: &Chunk) -> bool {
        self.chunk_length(&chunk.stored) == Some(u64::from(chunk.stored_bytes))
    }

    fn chunk_length(&self, stored: &Digest) -> Option<u64> {
        fs::metadata(self.chunk_path(stored)).ok().map(|m| m.len())
    }

    /// The chunks that are not there, each once, in the order of the disk.
    pub fn missing(&self, flist: &Flist) -> Vec<Digest> {
        let mut seen = HashSet::new();
        let chunks = flist.chunks().iter();
        chunks
            .filter(|c| seen.insert(c.stored) && !self.has(c))
            .map(|c| c.stored)
            .collect()
    }

    /// What the image takes when all of it is there.
    pub fn footprint(&self, flist: &Flist) -> Footprint {
        let mut seen = HashSet::new();
        let mut footprint = Footprint {
            stored: flist.file_bytes(),
            missing: 0,
            placed: flist.placed_bytes(),
        };
        for chunk in flist.chunks().iter().filter(|c| seen.insert(c.stored)) {
            footprint.stored += u64::from(chunk.stored_bytes);
            if !self.has(chunk) {
                footprint.missing += u64::from(chunk.stored_bytes);
            }
        }
        footprint
    }

    /// A chunk's plain bytes, both hashes verified. What does not hash to its name is removed.
    pub fn plain(&self, chunk: &Chunk) -> Result<Vec<u8>, CacheError> {
        let path = self.chunk_path(&chunk.stored);
        let file = open_existing(&path, &chunk.stored)?;
        let mut stored = Vec::with_capacity(chunk.stored_bytes as usize);
        io::Read::read_to_end(
            &mut io::Read::take(file, STORED_BYTES_MAX as u64 + 1),
            &mut stored,
        )
        .map_err(failed("read", &path))?;
        match chunk.open(&stored) {
            Ok(plain) => Ok(plain),
            Err(ChunkError::StoredHash(_) | ChunkError::Length { .. })
                if hash(&stored) != chunk.stored =>
            {
                remove(&path)?;
                Err(CacheError::Damaged {
                    digest: chunk.stored,
                })
            }
            Err(error) => Err(CacheError::Contradiction(chunk.stored, error)),
        }
    }

    /// The chunk files whose names begin with this byte, and what else lies there.
    pub fn stored_in(&self, first: u8) -> Vec<PathBuf> {
        list(&self.root.join(format!("chunks/{first:02x}"))).unwrap_or_default()
    }

    /// Reads a chunk file again; one that does not hash to its name is removed. `None`: it is no chunk, or cannot be read.
    pub fn scrub(&self, path: &Path) -> Option<Scrubbed> {
        let digest = stored_at(path)?;
        let mut stored = Vec::new();
        let file = File::open(path).ok()?;
        let mut file = io::Read::take(file, STORED_BYTES_MAX as u64 + 1);
        let read = io::Read::read_to_end(&mut file, &mut stored);
        // A sector that cannot be read is as lost as one that has something else.
        let was_damaged = read.is_err() || hash(&stored) != digest;
        if was_damaged {
            remove(path).ok()?;
        }
        Some(Scrubbed {
            digest,
            bytes: stored.len() as u64,
            was_damaged,
        })
    }

    /// A new image file of an flist under its name: metadata in place, chunks still zeros. One that
    /// was there is replaced; who has it open keeps the old one.
    pub fn create_image(&self, digest: &Digest) -> Result<(Flist, File), CacheError> {
        let (flist, mut file) = self.flist(digest)?;
        let path = self.image_path(digest);
        let image = unnamed(&path, self.owner)?;
        materialise::metadata_only(&flist, &mut file, &image)?;
        name(&image, &path)?;
        Ok((flist, image))
    }

    /// The image file, if it is there: opened for writing.
    pub fn image(&self, digest: &Digest) -> Result<File, CacheError> {
        let path = self.image_path(digest);
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))
    }

    /// The image files that are there.
    pub fn images(&self) -> Vec<Digest> {
        let names = list(&self.root.join("images")).unwrap_or_default();
        let digest = |path: &PathBuf| {
            Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(".img")?).ok()
        };
        names.iter().filter_map(digest).collect()
    }

    /// Removes the image file; who has it open keeps it.
    pub fn remove_image(&self, digest: &Digest) -> Result<(), CacheError> {
        remove(&self.image_path(digest))
    }

    /// Notes that an flist is used now: among those that nothing keeps, the one that rested longest goes first.
    pub fn used(&self, digest: &Digest) -> Result<(), CacheError> {
        let path = self.flist_path(digest);
        let now = FileTimes::new().set_accessed(SystemTime::now());
        let file = open_existing(&path, digest)?;
        file.set_times(now)
            .map_err(failed("set the last use of", &path))
    }

    /// Makes `wanted` bytes free, if so many can be: what no flist names goes, then flists that are not in `keep` with the
    /// chunks that only they name, in the order of their last use. A pinned flist that is missing or damaged makes it stop
    /// before it removes anything: nobody could tell which chunks it names. Gives the bytes that became free.
    pub fn sweep(&self, keep: &BTreeMap<Digest, Keep>, wanted: u64) -> Result<u64, CacheError> {
        let mut users: HashMap<Digest, u32> = HashMap::new();
        for (digest, why) in keep {
            match (self.flist(digest), why) {
                (Ok((flist, _)), _) => count(&mut users, &flist),
                (Err(CacheError::Absent(_) | CacheError::Damaged { .. }), Keep::Spared) => {}
                (Err(CacheError::Absent(_) | CacheError::Damaged { .. }), Keep::Pinned) => {
                    return Err(CacheError::Unknown(*digest));
                }
                (Err(error), _) => return Err(error),
            }
        }
        let others = self.others(keep)?;
        for digest in &others {
            count(&mut users, &self.looked_at(digest)?);
        }
        let mut freed = remove_others(&self.root.join("flists"), |path| {
            flist_at(path).is_some_and(|d| keep.contains_key(&d) || others.contains(&d))
        })?;
        for directory in list(&self.root.join("chunks"))? {
            freed += remove_others(&directory, |path| {
                stored_at(path).is_some_and(|digest| users.contains_key(&digest))
            })?;
        }
        for digest in others {
            if freed >= wanted {
                break;
            }
            let flist = self.looked_at(&digest)?;
            freed += remove_counted(&self.flist_path(&digest))?;
            freed += remove_counted(&self.trace_path(&digest))?;
            for stored in distinct(&flist) {
                let left = users.entry(stored).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    freed += remove_counted(&self.chunk_path(&stored))?;
                }
            }
        }
        Ok(freed)
    }

    /// The readable flists that nothing keeps, the one that rested longest first. What cannot be read is no use to anybody,
    /// and is left out.
    fn others(&self, keep: &BTreeMap<Digest, Keep>) -> Result<Vec<Digest>, CacheError> {
        let mut others = Vec::new();
        for path in list(&self.root.join("flists"))? {
            let is_flist = path.extension().is_some_and(|e| e == "flist");
            let Some(digest) = flist_at(&path).filter(|d| is_flist && !keep.contains_key(d)) else {
                continue;
            };
            let used = fs::metadata(&path).and_then(|m| m.accessed());
            if let (Ok(used), Ok(_)) = (used, self.looked_at(&digest)) {
                others.push((used, digest));
            }
        }
        others.sort_unstable();
        Ok(others.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Reads an flist without using it.
    fn looked_at(&self, digest: &Digest) -> Result<Flist, CacheError> {
        let path = self.flist_path(digest);
        let used = fs::metadata(&path).and_then(|m| m.accessed());
        let (flist, file) = self.flist(digest)?;
        used.and_then(|used| file.set_times(FileTimes::new().set_accessed(used)))
            .map_err(failed("set the last use of", &path))?;
        Ok(flist)
    }
}

/// The chunks of an flist, each once.
fn distinct(flist: &Flist) -> HashSet<Digest> {
    flist.chunks().iter().map(|c| c.stored).collect()
}

fn count(users: &mut HashMap<Digest, u32>, flist: &Flist) {
    for stored in distinct(flist) {
        *users.entry(stored).or_default() += 1;
    }
}

/// The flist that a file of the cache is, or is beside.
fn flist_at(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    let of_an_flist = name.strip_suffix(".flist").or(name.strip_suffix(".trace"));
    Digest::from_hex(of_an_flist?).ok()
}

/// The name of the chunk that a file of the cache holds.
fn stored_at(path: &Path) -> Option<Digest> {
    let begin = path.parent()?.file_name()?.to_str()?;
    let rest = path.file_name()?.to_str()?;
    Digest::from_hex(&format!("{begin}{rest}")).ok()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
    entries
        .map(|e| e.map(|e| e.path()).map_err(failed("list", directory)))
        .collect()
}

fn remove_others(directory: &Path, keep: impl Fn(&Path) -> bool) -> Result<u64, CacheError> {
    let mut freed = 0;
    for path in list(directory)?.iter().filter(|path| !keep(path)) {
        freed += remove_counted(path)?;
    }
    Ok(freed)
}

/// Removes a file that may be there; gives its length.
fn remove_counted(path: &Path) -> Result<u64, CacheError> {
    let bytes = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    remove(path)?;
    Ok(bytes)
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn open_existing(path: &Path, digest: &Digest) -> Result<File, CacheError> {
    File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => CacheError::Absent(*digest),
        _ => failed("open", path)(e),
    })
}

/// A file in the directory of `path` without a name: if the writer dies, nothing is left of it.
fn unnamed(path: &Path, owner: Option<u32>) -> Result<File, CacheError> {
    let file = unnamed_of_ours(path, owner)?;
    if owner.is_some() {
        fchown(&file, owner, owner).map_err(failed("give away a file beside", path))?;
    }
    Ok(file)
}

fn unnamed_of_ours(path: &Path, owner: Option<u32>) -> Result<File, CacheError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits());
    match options.open(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(directory).or_else(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(failed("make directory", directory)(e)),
            })?;
            if owner.is_some() {
                chown(directory, owner, owner).map_err(failed("give away", directory))?;
            }
            // So that the new directory itself is found after a power cut.
            sync(directory.parent().unwrap_or(directory))?;
            options
                .open(directory)
                .map_err(failed("create a file in", directory))
        }
        other => other.map_err(failed("create a file in", directory)),
    }
}

/// Gives a directory and all in it to `owner`; itself last, so that one that is theirs is theirs with all in it.
fn give(path: &Path, owner: u32) -> Result<(), CacheError> {
    let metadata = fs::symlink_metadata(path).map_err(failed("stat", path))?;
    if metadata.uid() == owner {
        return Ok(());
    }
    if metadata.is_dir() {
        for inner in list(path)? {
            give(&inner, owner)?;
        }
    }
    lchown(path, Some(owner), Some(owner)).map_err(failed("give away", path))
}

/// Gives an unnamed file its name, in place of one that has it: at every moment one of the two is there. What a crash
/// leaves beside it has no name of content, and goes with the next sweep.
fn name(file: &File, path: &Path) -> Result<(), CacheError> {
    let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let link =
        |to: &Path| nix::unistd::linkat(AT_FDCWD, &from, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
    match link(path) {
        Ok(()) => return Ok(()),
        // What has the name is damaged or is being replaced; another writer may be as quick.
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed("name", path)(errno.into())),
    }
    // No two writers have the same: each has its process and, while it writes, its descriptor.
    let own = format!("new-{}-{}", std::process::id(), file.as_raw_fd());
    let beside = path.with_extension(own);
    remove(&beside)?;
    link(&beside).map_err(|errno| failed("name", &beside)(errno.into()))?;
    fs::rename(&beside, path).map_err(failed("replace", path))
}

fn sync(directory: &Path) -> Result<(), CacheError> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(failed("sync directory", directory))
}

/// Content on its way into the cache. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    path: PathBuf,
    digest: Digest,
    limit: u64,
    file: File,
    hasher: Box<blake3::Hasher>,
    bytes: u64,
}

impl Upload {
    fn new(cache: &Cache, path: PathBuf, digest: Digest, limit: u64) -> Result<Self, CacheError> {
        let file = unnamed(&path, cache.owner)?;
        Ok(Self {
            path,
            digest,
            limit,
            file,
            hasher: Box::default(),
            bytes: 0,
        })
    }

    /// The next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.limit {
            return Err(CacheError::Large {
                digest: self.digest,
                limit: self.limit,
            });
        }
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(failed("write", &self.path))
    }

    /// All bytes are there: checks that they are a valid flist, makes it durable and gives it its name.
    pub fn finish_flist(self) -> Result<Flist, CacheError> {
        self.check()?;
        let flist = Flist::read(&mut &self.file)?;
        // Every byte of it will be unpacked at the first start: better to refuse it now.
        flist.copy_metadata(&mut &self.file, &mut io::sink())?;
        self.finish()?;
        Ok(flist)
    }

    fn check(&self) -> Result<(), CacheError> {
        let (expected, actual) = (self.digest, Digest(self.hasher.finalize().into()));
        if expected == actual {
            Ok(())
        } else {
            Err(CacheError::Hash { expected, actual })
        }
    }

    fn finish(self) -> Result<(), CacheError> {
        self.check()?;
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        name(&self.file, &self.path)?;
        sync(self.path.parent().unwrap_or(&self.path))
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
