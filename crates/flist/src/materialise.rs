//! The whole disk of an flist, with every chunk in its place.
//!
//! Owns: writing it, sparse where it is zeros. Refuses: chunks that are not what the flist says.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use types::Digest;

use crate::chunk::ChunkError;
use crate::format::{Flist, FormatError};

#[derive(Debug, thiserror::Error)]
pub enum MaterialiseError {
    #[error("disk cannot be written")]
    Write(#[source] io::Error),
    #[error("chunk {chunk} cannot be read from the store")]
    Fetch {
        chunk: Digest,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// Sizes the disk and writes its metadata area; every chunk is zeros. `disk` was empty.
pub fn metadata_only<F: Read + Seek>(
    flist: &Flist,
    file: &mut F,
    disk: &File,
) -> Result<(), MaterialiseError> {
    disk.set_len(flist.disk_bytes())
        .map_err(MaterialiseError::Write)?;
    let mut out = disk;
    out.seek(SeekFrom::Start(0))
        .map_err(MaterialiseError::Write)?;
    flist.copy_metadata(file, &mut out)?;
    out.flush().map_err(MaterialiseError::Write)
}

/// Writes the whole disk. `file` is the `.flist`, `fetch` gives a chunk's stored bytes by their hash.
pub fn materialise<F: Read + Seek>(
    file: &mut F,
    fetch: &mut dyn FnMut(&Digest) -> io::Result<Vec<u8>>,
    disk: &File,
) -> Result<(), MaterialiseError> {
    let flist = Flist::read(file)?;
    metadata_only(&flist, file, disk)?;
    for chunk in flist.chunks() {
        let stored = fetch(&chunk.stored).map_err(|source| MaterialiseError::Fetch {
            chunk: chunk.stored,
            source,
        })?;
        let plain = chunk.open(&stored)?;
        disk.write_all_at(&plain, chunk.extent.start())
            .map_err(MaterialiseError::Write)?;
    }
    Ok(())
}
