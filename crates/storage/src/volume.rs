//! ext4 volumes in the pool: written by us, mounted only by guests.
//!
//! Owns: making one. Refuses: mounting one, and replacing one that exists.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, Options};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("make an ext4 volume of {bytes} bytes at {path}: the size is not possible")]
    Layout {
        path: PathBuf,
        bytes: u64,
        source: mkext4::Error,
    },
    #[error("write the volume {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Makes a sparse ext4 image of `bytes` (rounded down to 4096) at `path`, on disk when this returns.
/// An image that is there already stays as it is; a half-written one never has this name.
pub fn make_ext4(path: &Path, bytes: u64, uuid: [u8; 16]) -> Result<(), VolumeError> {
    if path.exists() {
        return Ok(());
    }
    let layout = |source| VolumeError::Layout {
        path: path.to_owned(),
        bytes,
        source,
    };
    let write = |source| VolumeError::Write {
        path: path.to_owned(),
        source,
    };
    // The epoch is fixed: the host's clock may be wrong, and the guest's first mount writes its own.
    let options = Options::new(bytes / 4096 * 4096, uuid, 0);
    let sealed = FsBuilder::new(options)
        .and_then(FsBuilder::seal)
        .map_err(layout)?;
    let partial = path.with_extension("partial");
    let _ = std::fs::remove_file(&partial);
    let mut sink = FileSink::create(&partial, sealed.image_len()).map_err(write)?;
    sealed
        .writer(&mut sink)
        .and_then(|writer| writer.finish())
        .map_err(layout)?;
    sink.into_file().sync_all().map_err(write)?;
    std::fs::rename(&partial, path).map_err(write)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn a_volume_is_sparse_and_clean_and_is_never_made_twice() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("upper.img");
        make_ext4(&path, 1 << 30, [7; 16]).expect("a volume");
        let metadata = path.metadata().expect("metadata");
        assert!(metadata.len() == 1 << 30 && metadata.blocks() * 512 < 64 << 20);
        let check = Command::new("/sbin/e2fsck")
            .arg("-fn")
            .arg(&path)
            .output()
            .expect("e2fsck");
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        );
        let before = metadata.ino();
        make_ext4(&path, 1 << 30, [8; 16]).expect("nothing to do");
        assert_eq!(path.metadata().expect("metadata").ino(), before);
    }
}
