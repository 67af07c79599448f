//! Where the builder reads and writes.
//!
//! Owns: the repository root, `dist/`, `run/` and the cache directory.
//! Refuses: anything outside them, except what apt installs.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The repository.
    pub root: PathBuf,
    /// What is costly to make and named by what it was made from: kernels, sources, user lands.
    pub cache: PathBuf,
    /// The finished image.
    pub dist: PathBuf,
    /// State of the demonstration node.
    pub run: PathBuf,
}

impl Paths {
    /// Finds the repository above the current directory. `SIFR_CACHE` moves the cache.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("read the current directory")?;
        let root = here
            .ancestors()
            .find(|path| path.join("kernel-config").is_dir() && path.join("Cargo.lock").is_file())
            .with_context(|| {
                format!(
                    "{} is not inside the repository: change into it",
                    here.display()
                )
            })?
            .to_owned();
        Ok(Self {
            cache: cache()?,
            dist: root.join("dist"),
            run: root.join("run"),
            root,
        })
    }

    /// Where cargo puts the image's binaries. A directory of its own, because any other build could
    /// replace them with ones that have other flags.
    pub fn target(&self) -> PathBuf {
        self.root.join("target/image")
    }
}

fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SIFR_CACHE") {
        return std::path::absolute(&path).context("make SIFR_CACHE absolute");
    }
    if let Some(path) = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path).join("sifr"));
    }
    let home = env::var_os("HOME").context("HOME is not set: set it, or SIFR_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/sifr"))
}

pub(crate) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make directory {}", directory.display()))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

pub(crate) fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    if let Some(directory) = path.parent() {
        create(directory)?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// What is in a directory, sorted; nothing where it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(
            entry
                .with_context(|| format!("list {}", directory.display()))?
                .path(),
        );
    }
    found.sort();
    Ok(found)
}

/// Keeps other processes from building in a directory until it is dropped. Waits its turn.
pub(crate) fn lock(directory: &Path) -> Result<File> {
    create(directory)?;
    let path = directory.join("lock");
    let take = || format!("lock {}", path.display());
    let file = File::create(&path).with_context(take)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!(
                "waiting for another process to leave {} ...",
                directory.display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(take),
    }
    file.lock().with_context(take)?;
    Ok(file)
}

/// Beginning of the names of directories that are being filled.
const DRAFT: &str = ".draft-";

/// Makes `directory` appear whole or not at all: `fill` works on a neighbour that is renamed last.
/// The caller holds the lock, so that drafts of others are those of processes that were killed.
pub(crate) fn appear(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory
        .parent()
        .context("a cache directory has a parent")?;
    create(parent)?;
    for path in entries(parent)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(DRAFT) {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let draft = tempfile::Builder::new()
        .prefix(DRAFT)
        .tempdir_in(parent)
        .with_context(|| format!("make a directory in {}", parent.display()))?;
    fill(draft.path())?;
    match fs::rename(draft.path(), directory) {
        Ok(()) => {
            let _ = draft.keep();
            Ok(())
        }
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("put {} in place", directory.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_or_not_at_all_and_killed_drafts_go() {
        let cache = tempfile::tempdir().expect("a directory");
        let (killed, wanted) = (cache.path().join(".draft-x"), cache.path().join("wanted"));
        create(&killed).expect("made");
        appear(&wanted, |_| anyhow::bail!("broken")).expect_err("it breaks");
        assert!(!killed.exists() && entries(cache.path()).expect("readable").is_empty());
        appear(&wanted, |draft| write(&draft.join("file"), "1")).expect("filled");
        appear(&wanted, |_| anyhow::bail!("not called again")).expect("it is there");
        assert_eq!(text(&wanted.join("file")).expect("readable"), "1");
        assert_eq!(entries(cache.path()).expect("readable"), [wanted]);
    }
}
