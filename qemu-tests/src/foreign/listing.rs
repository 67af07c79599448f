//! All that can be seen of a file tree, as data that two machines can compare.
//!
//! Owns: attributes, links, and content by its hash. Refuses: access times and block counts: they are the
//! file system's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

/// A file up to this long is hashed whole.
const WHOLE_BYTES: u64 = 64 << 20;
/// Of a longer one as many pieces, evenly spread, and its end.
pub(crate) const PIECES: u64 = 64;
pub(crate) const PIECE_BYTES: usize = 4096;

/// By path, with `%` before what is no plain letter, so that names need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listing(pub BTreeMap<String, Seen>);

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub content: Content,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub time: (i64, u32),
    pub links: u64,
    /// The first path of the same inode, of what has several.
    pub same_as: Option<String>,
    /// Values in hexadecimal.
    pub xattrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    Directory,
    File { bytes: u64, hash: String },
    Link(String),
    Char(u64, u64),
    Block(u64, u64),
    Pipe,
    Socket,
}

impl Listing {
    pub fn of(root: &Path) -> Result<Self> {
        let mut listing = Self::default();
        let mut inodes: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut left = vec![root.to_owned()];
        while let Some(path) = left.pop() {
            let cannot = || format!("look at {}", path.display());
            let meta = fs::symlink_metadata(&path).with_context(cannot)?;
            let name = escaped(path.strip_prefix(root)?.as_os_str().as_bytes());
            if meta.is_dir() {
                for entry in fs::read_dir(&path).with_context(cannot)? {
                    left.push(entry?.path());
                }
            } else if meta.nlink() > 1 {
                inodes.entry(meta.ino()).or_default().push(name.clone());
            }
            listing
                .0
                .insert(name, seen(&path, &meta).with_context(cannot)?);
        }
        listing.group(inodes.into_values());
        Ok(listing)
    }

    /// Says of the names of one inode that they are.
    pub(crate) fn group(&mut self, inodes: impl Iterator<Item = Vec<String>>) {
        for mut names in inodes {
            names.sort();
            for name in &names {
                if let Some(seen) = self.0.get_mut(name) {
                    seen.same_as = names.first().cloned();
                }
            }
        }
    }

    /// The first difference, for people.
    pub fn differs(&self, other: &Self) -> Option<String> {
        let names = self.0.keys().chain(other.0.keys());
        names
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .map(|name| format!("{name}: {:?}, {:?}", self.0.get(name), other.0.get(name)))
            .next()
    }
}

fn seen(path: &Path, meta: &fs::Metadata) -> Result<Seen> {
    let number = |n: u64| (major(n), minor(n));
    let content = match meta.mode() & 0o170_000 {
        0o040_000 => Content::Directory,
        0o120_000 => Content::Link(escaped(fs::read_link(path)?.as_os_str().as_bytes())),
        0o020_000 => Content::Char(number(meta.rdev()).0, number(meta.rdev()).1),
        0o060_000 => Content::Block(number(meta.rdev()).0, number(meta.rdev()).1),
        0o010_000 => Content::Pipe,
        0o140_000 => Content::Socket,
        _ => {
            let file = File::open(path)?;
            let hash = hash(meta.len(), |at, into| file.read_exact_at(into, at))?;
            Content::File {
                bytes: meta.len(),
                hash,
            }
        }
    };
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path).context("list its attributes")? {
        let value = xattr::get(path, &name).context("read an attribute")?;
        // A label that the machine gives by itself.
        if name != "security.selinux" {
            xattrs.insert(escaped(name.as_bytes()), hex(&value.unwrap_or_default()));
        }
    }
    Ok(Seen {
        content,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        time: (meta.mtime(), u32::try_from(meta.mtime_nsec())?),
        links: meta.nlink(),
        same_as: None,
        xattrs,
    })
}

/// The hash of a file's content, of a huge one of pieces of it.
pub(crate) fn hash(
    bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    if bytes > WHOLE_BYTES {
        let starts = (0..PIECES).map(|i| i * (bytes / PIECES));
        for at in starts.chain([bytes - PIECE_BYTES as u64]) {
            read(at, &mut piece)?;
            hasher.update(&piece);
        }
    } else {
        let mut at = 0;
        while at < bytes {
            let length = usize::try_from((bytes - at).min(PIECE_BYTES as u64))?;
            read(at, &mut piece[..length])?;
            hasher.update(&piece[..length]);
            at += length as u64;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn escaped(name: &[u8]) -> String {
    let one = |b: &u8| match b {
        b'/' | b'.' | b'_' | b'-' | b' ' => char::from(*b).to_string(),
        b if b.is_ascii_alphanumeric() => char::from(*b).to_string(),
        b => format!("%{b:02x}"),
    };
    name.iter().map(one).collect()
}
