//! A directory of this machine as a file tree.
//!
//! Owns: reading names, attributes and links; content is read later.
//! Refuses: following symbolic links, on the way too (`beneath` has the kernel see to that). Sockets and
//! devices are taken as they are; a mount below the directory is taken with it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use crate::beneath::{self, Beneath};
use crate::erofs::xattr_index;
use crate::pack::{PackError, Stats};
use crate::tree::{Data, Found, Kind, Meta, Node, NodeId, ROOT, Time, Tree};

/// A label that the packing machine gave: meaningless elsewhere, and it would change the digest.
const XATTR_OF_THE_HOST: &[u8] = b"security.selinux";

pub(crate) fn directory(
    root: &Beneath,
    tree: &mut Tree,
    stats: &mut Stats,
) -> Result<(), PackError> {
    let here = root.look(b"").map_err(failed("examined", root, b""))?;
    let meta = here.metadata().map_err(failed("examined", root, b""))?;
    tree.set_root(attributes(root, b"", &here, &meta, stats)?)?;
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut left = vec![(Vec::new(), ROOT)];
    while let Some((directory, id)) = left.pop() {
        for name in root
            .list(&directory)
            .map_err(failed("listed", root, &directory))?
        {
            let path = below(&directory, &name);
            let look = root.look(&path);
            let file = look.map_err(failed("examined", root, &path))?;
            let meta = file.metadata().map_err(failed("examined", root, &path))?;
            let key = (meta.dev(), meta.ino());
            let shared = !meta.is_dir() && meta.nlink() > 1;
            if let Some(first) = linked.get(&key).filter(|_| shared) {
                tree.join(id, &name, *first)?;
                continue;
            }
            let node = Node {
                kind: kind(root, &path, &file, &meta)?,
                meta: attributes(root, &path, &file, &meta, stats)?,
            };
            let added = tree.add(id, &name, node)?;
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

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

fn failed<'a>(
    doing: &'static str,
    root: &'a Beneath,
    path: &'a [u8],
) -> impl Fn(io::Error) -> PackError + 'a {
    move |source| PackError::Io {
        doing,
        path: root.show(path),
        source,
    }
}

fn kind(root: &Beneath, path: &[u8], file: &File, meta: &Metadata) -> Result<Kind, PackError> {
    let kind = meta.file_type();
    let number = |n: u64| {
        let wide = |_| failed("packed", root, path)(io::ErrorKind::InvalidData.into());
        u32::try_from(n).map_err(wide)
    };
    Ok(if kind.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if kind.is_symlink() {
        Kind::Symlink(beneath::target(file).map_err(failed("read", root, path))?)
    } else if kind.is_char_device() {
        Kind::Char {
            major: number(major(meta.rdev()))?,
            minor: number(minor(meta.rdev()))?,
        }
    } else if kind.is_block_device() {
        Kind::Block {
            major: number(major(meta.rdev()))?,
            minor: number(minor(meta.rdev()))?,
        }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File {
            size: meta.len(),
            data: Data::Path(Found::of(path, meta)),
        }
    })
}

fn attributes(
    root: &Beneath,
    path: &[u8],
    file: &File,
    meta: &Metadata,
    stats: &mut Stats,
) -> Result<Meta, PackError> {
    let mode = u16::try_from(meta.mode() & 0o7777).expect("twelve bits");
    let xattrs = xattrs(file, stats);
    Ok(Meta {
        mode,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: Time {
            seconds: meta.mtime(),
            // A file system that says otherwise is not believed.
            nanoseconds: u32::try_from(meta.mtime_nsec()).map_or(0, |n| n.min(999_999_999)),
        },
        xattrs: xattrs.map_err(failed("read for its extended attributes", root, path))?,
    })
}

fn xattrs(file: &File, stats: &mut Stats) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = beneath::path_of(file);
    let names = match xattr::list_deref(&path) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        names => names?,
    };
    let mut out = BTreeMap::new();
    for name in names {
        if name.as_bytes() == XATTR_OF_THE_HOST || xattr_index(name.as_bytes()).is_none() {
            stats.xattrs_dropped += 1;
        } else if let Some(value) = xattr::get_deref(&path, &name)? {
            out.insert(name.into_vec(), value);
        }
    }
    Ok(out)
}
