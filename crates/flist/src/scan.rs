//! A directory of this machine as a file tree.
//!
//! Owns: reading names, attributes and links; content is read later.
//! Refuses: following symbolic links. Sockets and devices are taken as they are; a mount below the
//! directory is taken with it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::erofs::xattr_index;
use crate::pack::{PackError, Stats};
use crate::tree::{Data, Kind, Meta, Node, NodeId, ROOT, Tree, TreeError};

/// A label that the packing machine gave: meaningless elsewhere, and it would change the digest.
const XATTR_OF_THE_HOST: &[u8] = b"security.selinux";

pub(crate) fn directory(root: &Path, tree: &mut Tree, stats: &mut Stats) -> Result<(), PackError> {
    let meta = fs::metadata(root).map_err(failed("examined", root))?;
    if !meta.is_dir() {
        return Err(TreeError::Root.into());
    }
    tree.set_root(attributes(root, &meta, stats)?);
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut left = vec![(root.to_path_buf(), ROOT)];
    while let Some((path, id)) = left.pop() {
        for entry in fs::read_dir(&path).map_err(failed("listed", &path))? {
            let entry = entry.map_err(failed("listed", &path))?;
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).map_err(failed("examined", &path))?;
            let name = entry.file_name();
            let key = (meta.dev(), meta.ino());
            let shared = !meta.is_dir() && meta.nlink() > 1;
            if let Some(first) = linked.get(&key).filter(|_| shared) {
                tree.join(id, name.as_bytes(), *first);
                continue;
            }
            let node = Node {
                kind: kind(&path, &meta)?,
                meta: attributes(&path, &meta, stats)?,
            };
            let added = tree.add(id, name.as_bytes(), node)?;
            if shared {
                linked.insert(key, added);
            }
            if meta.is_dir() {
                left.push((path, added));
            }
        }
    }
    Ok(())
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> PackError + 'a {
    move |source| PackError::Io {
        doing,
        path: path.display().to_string(),
        source,
    }
}

fn kind(path: &Path, meta: &fs::Metadata) -> Result<Kind, PackError> {
    let kind = meta.file_type();
    let device = || {
        (
            u32::try_from(major(meta.rdev())),
            u32::try_from(minor(meta.rdev())),
        )
    };
    let number = |n: Result<u32, _>| {
        n.map_err(|_| failed("packed", path)(io::ErrorKind::InvalidData.into()))
    };
    Ok(if kind.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed("read", path))?;
        Kind::Symlink(target.into_os_string().into_vec())
    } else if kind.is_char_device() {
        let (major, minor) = device();
        Kind::Char {
            major: number(major)?,
            minor: number(minor)?,
        }
    } else if kind.is_block_device() {
        let (major, minor) = device();
        Kind::Block {
            major: number(major)?,
            minor: number(minor)?,
        }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File {
            size: meta.len(),
            data: Data::Path(PathBuf::from(path)),
        }
    })
}

fn attributes(path: &Path, meta: &fs::Metadata, stats: &mut Stats) -> Result<Meta, PackError> {
    let mode = u16::try_from(meta.mode() & 0o7777).expect("twelve bits");
    // Before 1970 is 1970: the field has no sign.
    let mtime = u64::try_from(meta.mtime()).unwrap_or(0);
    let xattrs = xattrs(path, stats)?;
    Ok(Meta {
        mode,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime,
        xattrs,
    })
}

fn xattrs(path: &Path, stats: &mut Stats) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, PackError> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        Err(e) => return Err(failed("read for its extended attributes", path)(e)),
    };
    let mut out = BTreeMap::new();
    for name in names {
        if name.as_bytes() == XATTR_OF_THE_HOST || xattr_index(name.as_bytes()).is_none() {
            stats.xattrs_dropped += 1;
            continue;
        }
        let value = xattr::get(path, &name);
        if let Some(value) = value.map_err(failed("read for its extended attributes", path))? {
            out.insert(name.into_vec(), value);
        }
    }
    Ok(out)
}
