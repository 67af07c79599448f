//! A store that is a directory of this machine.
//!
//! Owns: files that are whole once they have their names, and on the disk before an flist names them.
//! Refuses: to follow what is no regular file.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::sink::Sink;
use crate::store::{Entry, Found};
use crate::{Object, StoreError};

/// How much of a file is read at once.
const PIECE: usize = 1 << 20;
/// How the names of files begin that are not whole yet.
const DRAFT: &str = ".tmp-";

#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn failed(&self, doing: &str, path: &Path, error: &io::Error) -> StoreError {
        StoreError::Io {
            store: self.root.display().to_string(),
            doing: format!("{doing} {}", path.display()),
            reason: error.to_string(),
        }
    }

    fn absent(&self, object: &Object) -> StoreError {
        StoreError::NotFound {
            store: self.root.display().to_string(),
            object: object.to_string(),
        }
    }

    fn path(&self, object: &Object) -> PathBuf {
        self.root.join(object.path())
    }

    pub(crate) fn get(&self, object: &Object, sink: &mut Sink<'_>) -> Result<(), StoreError> {
        let (path, store) = (self.path(object), self.root.display());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => self.absent(object),
            _ => self.failed("read", &path, &error),
        };
        let mut file = File::open(&path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        sink.announce(&store, object, about.len())?;
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => return Ok(()),
                read => sink.push(&store, object, &piece[..read])?,
            }
        }
    }

    pub(crate) fn find(&self, object: &Object) -> Result<Option<Found>, StoreError> {
        let path = self.path(object);
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_file() => Ok(Some(Found {
                bytes: Some(about.len()),
                modified: about.modified().ok(),
            })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("look at", &path, &error)),
        }
    }

    /// Says that the object is needed, to who removes what is old.
    pub(crate) fn renew(&self, object: &Object) -> Result<(), StoreError> {
        let path = self.path(object);
        let renewed = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        renewed.map_err(|error| self.failed("renew", &path, &error))
    }

    /// Under its name it is whole, and on the disk.
    pub(crate) fn put(&self, object: &Object, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(object);
        let parent = path.parent().unwrap_or(&self.root);
        let write = || {
            fs::create_dir_all(parent)?;
            let mut draft = tempfile::Builder::new()
                .prefix(DRAFT)
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                .tempfile_in(parent)?;
            draft.write_all(bytes)?;
            draft.as_file().sync_all()?;
            draft.persist(&path).map_err(|e| e.error)?;
            File::open(parent)?.sync_all()
        };
        write().map_err(|error| self.failed("write", &path, &error))
    }

    pub(crate) fn remove(&self, object: &Object) -> Result<(), StoreError> {
        let path = self.path(object);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        self.scan(&self.root, "", &mut found)?;
        let chunks = self.root.join("chunks");
        for shard in self.names(&chunks)? {
            self.scan(
                &chunks.join(&shard),
                &format!("chunks/{shard}/"),
                &mut found,
            )?;
        }
        Ok(found)
    }

    /// Removes what writers that ended early left, last written before that time.
    pub(crate) fn remove_drafts(&self, before: SystemTime) -> Result<u64, StoreError> {
        let chunks = self.root.join("chunks");
        let shards = self.names(&chunks)?;
        let below = shards.iter().map(|shard| chunks.join(shard));
        let mut removed = 0;
        for directory in below.chain([self.root.clone()]).filter(|d| d.is_dir()) {
            let names = self.names(&directory)?;
            for name in names.iter().filter(|name| name.starts_with(DRAFT)) {
                let path = directory.join(name);
                let about = fs::symlink_metadata(&path).and_then(|about| about.modified());
                if about.is_ok_and(|modified| modified < before) {
                    let gone = fs::remove_file(&path);
                    gone.map_err(|error| self.failed("remove", &path, &error))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn names(&self, directory: &Path) -> Result<Vec<String>, StoreError> {
        let failed = |error: io::Error| self.failed("list", directory, &error);
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    fn scan(
        &self,
        directory: &Path,
        prefix: &str,
        found: &mut Vec<Entry>,
    ) -> Result<(), StoreError> {
        if !fs::symlink_metadata(directory).is_ok_and(|about| about.is_dir()) {
            return Ok(());
        }
        for name in self.names(directory)? {
            let Some(object) = Object::parse(&format!("{prefix}{name}")) else {
                continue;
            };
            let path = directory.join(&name);
            let about = match fs::symlink_metadata(&path) {
                // Another has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| self.failed("look at", &path, &error))?,
            };
            let modified = about.modified();
            let modified = modified.map_err(|error| self.failed("look at", &path, &error))?;
            if about.is_file() {
                found.push(Entry {
                    object,
                    bytes: about.len(),
                    modified,
                });
            }
        }
        Ok(())
    }
}
