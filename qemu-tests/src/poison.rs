//! Flists whose file system is hostile: what no packer writes, with a digest that somebody signs all the same.
//!
//! Owns: changing the metadata area of a good flist. Refuses: chunks, which stay as they are.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flist::format::{Flist, HEADER_BYTES, digest_of};

/// Where an EROFS superblock has the number of the root's inode.
const ROOT: usize = 1024 + 14;
const SLOT: usize = 32;
const INODE: usize = 64;
const DIRENT: usize = 12;
const BLOCK: usize = 4096;

/// The metadata area of an image, to be changed. Every inode in it is of the extended form, without attributes.
#[derive(Debug)]
pub struct Area(pub Vec<u8>);

impl Area {
    fn number<const N: usize>(&self, at: usize) -> usize {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[at..at + N]);
        usize::try_from(u64::from_le_bytes(bytes)).expect("64 bits")
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn root(&self) -> usize {
        self.number::<2>(ROOT) * SLOT
    }

    /// The entries of a directory: where each is, and its name. `inode` is where the directory's inode is.
    fn entries(&self, inode: usize) -> Vec<(usize, Vec<u8>)> {
        let is_inline = self.number::<2>(inode) == 5;
        let first = match is_inline {
            true => inode + INODE,
            false => self.number::<4>(inode + 16) * BLOCK,
        };
        let mut found = Vec::new();
        let end = first + self.number::<8>(inode + 8);
        for block in (first..end).step_by(BLOCK) {
            let block_end = end.min(block + BLOCK);
            let count = self.number::<2>(block + 8) / DIRENT;
            for k in 0..count {
                let at = block + k * DIRENT;
                let from = block + self.number::<2>(at + 8);
                let to = match k + 1 < count {
                    true => block + self.number::<2>(at + DIRENT + 8),
                    false => block_end,
                };
                let name = self.0[from..to].iter().copied();
                found.push((at, name.take_while(|byte| *byte != 0).collect()));
            }
        }
        found
    }

    /// Where the directory entry of a path is.
    pub fn entry(&self, path: &str) -> Result<usize> {
        let (mut inode, mut found) = (self.root(), None);
        for part in path.split('/') {
            let entries = self.entries(inode);
            let entry = entries.iter().find(|(_, name)| name == part.as_bytes());
            let (at, _) = entry.with_context(|| format!("no {part} of {path}"))?;
            inode = self.number::<8>(*at) * SLOT;
            found = Some(*at);
        }
        found.context("an empty path")
    }

    /// Where the inode of a path is.
    pub fn inode(&self, path: &str) -> Result<usize> {
        Ok(self.number::<8>(self.entry(path)?) * SLOT)
    }
}

/// A copy of an flist, beside it, with another metadata area. Gives its file.
pub fn poisoned(file: &Path, change: impl FnOnce(&mut Area) -> Result<()>) -> Result<PathBuf> {
    let flist = Flist::read(&mut File::open(file)?)?;
    let mut area = Vec::new();
    flist.copy_metadata(&mut File::open(file)?, &mut area)?;
    let mut area = Area(area);
    change(&mut area)?;
    ensure!(
        area.0.len() as u64 == flist.metadata_bytes(),
        "it has grown"
    );
    let good = fs::read(file)?;
    let length = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().expect("4 bytes"));
    let metadata_at = HEADER_BYTES + usize::try_from(length(40))?;
    let table_at = metadata_at + usize::try_from(length(32))?;
    // Not in columns: a reader takes that as well.
    let stored = zstd::bulk::compress(&area.0, 3)?;
    let mut bad = good[..metadata_at].to_vec();
    bad[12] = 0;
    bad[32..40].copy_from_slice(&(stored.len() as u64).to_le_bytes());
    bad.extend(stored);
    bad.extend_from_slice(&good[table_at..]);
    let digest = digest_of(&mut bad.as_slice())?;
    Flist::read(&mut Cursor::new(&bad)).context("a reader must not see that it is hostile")?;
    let out = file.with_file_name(format!("{}.flist", digest.hex()));
    fs::write(&out, bad)?;
    Ok(out)
}
