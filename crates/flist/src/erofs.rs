//! The disk: a plain, uncompressed EROFS file system.
//!
//! Owns: where every inode, directory and file lies on the disk, and the bytes of the metadata area.
//! Refuses: file content, which the packer reads later and puts where this says.
//!
//! Layout, blocks of 4096: superblock at byte 1024, from byte 1152 the inodes (extended, 64 bytes, with
//! inline extended attributes; small directories and symbolic links inline as well), then blocks of large
//! directories and long links, then the data region, where each regular file begins at a block
//! (EROFS_INODE_FLAT_PLAIN). Numbers are little-endian; fields follow `fs/erofs/erofs_fs.h` of Linux.

use crate::DISK_BYTES_MAX;
use crate::columns::Records;
use crate::format::METADATA_BYTES_MAX;
use crate::tree::{Kind, Node, NodeId, Tree};
use crate::{BLOCK, BLOCK_LEN};

const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_BYTES: u64 = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_MTIME: u32 = 2;
/// Inodes are addressed in slots of 32 bytes.
const SLOT: u64 = 32;
const INODE_BYTES: u64 = 64;
const DIRENT_BYTES: u64 = 12;
const DIRENT_LEN: usize = 12;
const XATTR_HEADER_BYTES: u64 = 12;
const XATTR_HEADER_LEN: usize = 12;
/// Longest value of an extended attribute (the field has 16 bits).
const XATTR_VALUE_MAX: usize = 65535;
/// Most bytes of extended attributes of one inode (a count of 16 bits, in units of 4 bytes).
const XATTR_BYTES_MAX: u64 = 65535 * 4;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("{name:?} has an extended attribute or a set of them that is too large for EROFS")]
    Xattr { name: String },
    #[error(
        "metadata of the image takes {0} bytes, more than {METADATA_BYTES_MAX}: too many files"
    )]
    Metadata(u64),
    #[error(
        "content of the image takes more than {DISK_BYTES_MAX} bytes; the largest file is {name:?}"
    )]
    Disk { name: String },
}

/// Where everything lies.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Reachable nodes in inode order, each with its parent.
    order: Vec<(NodeId, NodeId)>,
    /// By node id: what was decided about it.
    places: Vec<Place>,
    pub(crate) metadata_bytes: u64,
    pub(crate) disk_bytes: u64,
    /// Regular files that have content, in the order of their data.
    pub(crate) files: Vec<DataFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) node: NodeId,
    pub(crate) start_block: u64,
    pub(crate) size: u64,
    /// Its first name, for grouping and for messages.
    pub(crate) name: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    nid: u64,
    /// Bytes of content that the inode describes: of a directory its entries, of a link its target.
    size: u64,
    /// Content follows the inode.
    inline: bool,
    /// First block of content that does not.
    block: u64,
    nlink: u32,
}

impl Layout {
    pub(crate) fn new(tree: &Tree) -> Result<Self, LayoutError> {
        let order = tree.by_level();
        let mut places = vec![Place::default(); tree.len()];
        count_links(tree, &order, &mut places);
        let mut at = SUPERBLOCK_AT as u64 + SUPERBLOCK_BYTES;
        for (id, _) in &order {
            let place = &mut places[*id];
            at = place_inode(tree, *id, at, place)?;
        }
        let mut block = at.div_ceil(BLOCK);
        for (id, _) in &order {
            let place = &mut places[*id];
            let is_file = matches!(tree.node(*id).kind, Kind::File { .. });
            if !is_file && !place.inline && place.size > 0 {
                place.block = block;
                block += place.size.div_ceil(BLOCK);
            }
        }
        let metadata_bytes = block * BLOCK;
        if metadata_bytes > METADATA_BYTES_MAX {
            return Err(LayoutError::Metadata(metadata_bytes));
        }
        let files = place_files(tree, &mut block, &mut places)?;
        Ok(Self {
            order,
            places,
            metadata_bytes,
            disk_bytes: block * BLOCK,
            files,
        })
    }

    /// The bytes of the metadata area, and where its inodes and entries of directories are.
    pub(crate) fn metadata(&self, tree: &Tree) -> (Vec<u8>, Records) {
        let len = usize::try_from(self.metadata_bytes).expect("at most METADATA_BYTES_MAX");
        let mut out = vec![0; len];
        self.write_superblock(&mut out[SUPERBLOCK_AT..]);
        for (serial, (id, parent)) in self.order.iter().enumerate() {
            let serial = u32::try_from(serial + 1).expect("at most NODES_MAX nodes");
            self.write_inode(tree, *id, *parent, serial, &mut out);
        }
        (out, self.records(tree))
    }

    fn records(&self, tree: &Tree) -> Records {
        let bytes = |at: u64| usize::try_from(at).expect("inside the metadata area");
        let (mut inodes, mut dirents) = (Vec::new(), Vec::new());
        for (id, parent) in &self.order {
            let (node, place) = (tree.node(*id), &self.places[*id]);
            let inode = place.nid * SLOT;
            inodes.push(bytes(inode));
            if !matches!(node.kind, Kind::Directory(_)) {
                continue;
            }
            let mut at = match place.inline {
                true => inode + INODE_BYTES + xattr_bytes(node),
                false => place.block * BLOCK,
            };
            for block in split_blocks(&entries(tree, *id, *parent)) {
                dirents.extend((0..block.len()).map(|n| bytes(at) + n * DIRENT_LEN));
                at += BLOCK;
            }
        }
        // Of small directories they are behind the inode, of others behind all inodes.
        dirents.sort_unstable();
        Records([inodes, dirents])
    }

    fn write_superblock(&self, out: &mut [u8]) {
        let (root, _) = self.order[0];
        let root = u16::try_from(self.places[root].nid).expect("the root is the first inode");
        put(out, 0, &MAGIC.to_le_bytes());
        put(out, 8, &COMPAT_MTIME.to_le_bytes());
        put(out, 12, &[12]); // log2 of the block size
        put(out, 14, &root.to_le_bytes());
        put(out, 16, &(self.order.len() as u64).to_le_bytes());
        put(out, 36, &block_u32(self.disk_bytes / BLOCK).to_le_bytes());
        // Everything else is zero: no checksum (the digest covers it), no build time (no clocks), inodes
        // addressed from block 0, no UUID, no incompatible features.
    }

    fn write_inode(&self, tree: &Tree, id: NodeId, parent: NodeId, serial: u32, out: &mut [u8]) {
        let (node, place) = (tree.node(id), &self.places[id]);
        let at = usize::try_from(place.nid * SLOT).expect("inside the metadata area");
        let xattrs = xattr_bytes(node);
        let icount = match xattrs {
            0 => 0,
            n => u16::try_from((n - XATTR_HEADER_BYTES) / 4 + 1).expect("checked when placed"),
        };
        let layout: u16 = if place.inline { 2 } else { 0 };
        let union = match &node.kind {
            Kind::Char { major, minor } | Kind::Block { major, minor } => device(*major, *minor),
            Kind::Directory(_) | Kind::File { .. } | Kind::Symlink(_) => block_u32(place.block),
            Kind::Fifo | Kind::Socket => 0,
        };
        put(out, at, &(1 | layout << 1).to_le_bytes());
        put(out, at + 2, &icount.to_le_bytes());
        put(
            out,
            at + 4,
            &(node.meta.mode & 0o7777 | type_bits(&node.kind)).to_le_bytes(),
        );
        put(out, at + 8, &place.size.to_le_bytes());
        put(out, at + 16, &union.to_le_bytes());
        put(out, at + 20, &serial.to_le_bytes());
        put(out, at + 24, &node.meta.uid.to_le_bytes());
        put(out, at + 28, &node.meta.gid.to_le_bytes());
        put(out, at + 32, &node.meta.mtime.seconds.to_le_bytes());
        put(out, at + 40, &node.meta.mtime.nanoseconds.to_le_bytes());
        put(out, at + 44, &place.nlink.to_le_bytes());
        let body = at + 64;
        put(out, body, &encode_xattrs(node));
        let content = match &node.kind {
            Kind::Directory(_) => self.directory(tree, id, parent),
            Kind::Symlink(target) => target.clone(),
            Kind::File { .. }
            | Kind::Char { .. }
            | Kind::Block { .. }
            | Kind::Fifo
            | Kind::Socket => {
                return;
            }
        };
        let xattrs = usize::try_from(xattrs).expect("at most XATTR_BYTES_MAX");
        let block_at = usize::try_from(place.block * BLOCK).expect("inside the metadata area");
        put(
            out,
            if place.inline {
                body + xattrs
            } else {
                block_at
            },
            &content,
        );
    }

    /// The entries of a directory: per block the fixed parts, then the names. Sorted by name, `.` and
    /// `..` among them, because the kernel searches by halving.
    fn directory(&self, tree: &Tree, id: NodeId, parent: NodeId) -> Vec<u8> {
        let entries = entries(tree, id, parent);
        let mut out = Vec::new();
        for block in split_blocks(&entries) {
            if !out.len().is_multiple_of(BLOCK_LEN) {
                out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
            }
            let mut name_at = block.len() * DIRENT_LEN;
            for (name, child) in block {
                let offset = u16::try_from(name_at).expect("inside a block");
                out.extend_from_slice(&self.places[*child].nid.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&[file_type(&tree.node(*child).kind), 0]);
                name_at += name.len();
            }
            for (name, _) in block {
                out.extend_from_slice(name);
            }
        }
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn block_u32(block: u64) -> u32 {
    u32::try_from(block).expect("the disk is at most DISK_BYTES_MAX")
}

fn count_links(tree: &Tree, order: &[(NodeId, NodeId)], places: &mut [Place]) {
    for (id, _) in order {
        if matches!(tree.node(*id).kind, Kind::Directory(_)) {
            places[*id].nlink += 2;
            for (_, child) in tree.children(*id) {
                match tree.node(child).kind {
                    // Its `..`; its own name is in the 2 that it begins with.
                    Kind::Directory(_) => places[*id].nlink += 1,
                    _ => places[child].nlink += 1,
                }
            }
        }
    }
}

/// Finds the place of an inode at or after `at`, and returns where it ends.
fn place_inode(tree: &Tree, id: NodeId, at: u64, place: &mut Place) -> Result<u64, LayoutError> {
    let node = tree.node(id);
    let xattrs = xattr_bytes(node);
    if xattrs > XATTR_BYTES_MAX || node.meta.xattrs.values().any(|v| v.len() > XATTR_VALUE_MAX) {
        return Err(LayoutError::Xattr {
            name: name_of(tree, id),
        });
    }
    place.size = match &node.kind {
        Kind::Directory(_) => directory_bytes(tree, id),
        Kind::Symlink(target) => target.len() as u64,
        Kind::File { size, .. } => *size,
        Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo | Kind::Socket => 0,
    };
    let may_inline = matches!(node.kind, Kind::Directory(_) | Kind::Symlink(_));
    let whole = INODE_BYTES + xattrs + place.size;
    place.inline = may_inline && place.size > 0 && whole <= BLOCK;
    // Inline content may not cross a block, nor may the inode proper.
    let together = if place.inline { whole } else { INODE_BYTES };
    let mut at = at.next_multiple_of(SLOT);
    if at % BLOCK + together > BLOCK {
        at = at.next_multiple_of(BLOCK);
    }
    place.nid = at / SLOT;
    Ok(at
        + if place.inline {
            whole
        } else {
            INODE_BYTES + xattrs
        })
}

fn place_files(
    tree: &Tree,
    block: &mut u64,
    places: &mut [Place],
) -> Result<Vec<DataFile>, LayoutError> {
    let mut files = Vec::new();
    for (node, name) in tree.files_by_path() {
        let size = places[node].size;
        if size == 0 {
            continue;
        }
        places[node].block = *block;
        files.push(DataFile {
            node,
            start_block: *block,
            size,
            name: name.to_vec(),
        });
        *block = block.saturating_add(size.div_ceil(BLOCK));
        if *block > DISK_BYTES_MAX / BLOCK {
            let largest = files
                .iter()
                .max_by_key(|f| f.size)
                .map_or(&[][..], |f| &f.name);
            return Err(LayoutError::Disk {
                name: crate::tree::show(largest),
            });
        }
    }
    Ok(files)
}

/// Some name of a node, for messages.
fn name_of(tree: &Tree, id: NodeId) -> String {
    let order = tree.by_level();
    let parents = order.iter().map(|(node, _)| *node);
    let mut named = parents
        .flat_map(|p| tree.children(p))
        .filter(|(_, child)| *child == id);
    named
        .next()
        .map_or_else(|| "/".to_owned(), |(name, _)| crate::tree::show(name))
}

fn entries(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut out: Vec<(&[u8], NodeId)> = vec![(b".", id), (b"..", parent)];
    out.extend(tree.children(id));
    out.sort_unstable();
    out
}

/// Cuts sorted entries into runs that fill one block each.
fn split_blocks<'a, 'b>(entries: &'a [(&'b [u8], NodeId)]) -> Vec<&'a [(&'b [u8], NodeId)]> {
    let (mut out, mut first, mut used) = (Vec::new(), 0, 0);
    for (index, (name, _)) in entries.iter().enumerate() {
        let need = DIRENT_BYTES + name.len() as u64;
        if used + need > BLOCK {
            out.push(&entries[first..index]);
            (first, used) = (index, 0);
        }
        used += need;
    }
    out.push(&entries[first..]);
    out
}

fn directory_bytes(tree: &Tree, id: NodeId) -> u64 {
    let entries = entries(tree, id, id);
    let blocks = split_blocks(&entries);
    let last = blocks.last().map_or(0, |b| {
        b.iter()
            .map(|(name, _)| DIRENT_BYTES + name.len() as u64)
            .sum::<u64>()
    });
    (blocks.len() as u64 - 1) * BLOCK + last
}

/// The prefix number that EROFS stores instead of an attribute's prefix, and the rest of the name.
/// `None`: an attribute that EROFS cannot hold.
pub(crate) fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        (1..=255).contains(&rest.len()).then_some((*index, rest))
    })
}

fn xattr_bytes(node: &Node) -> u64 {
    let entries = node.meta.xattrs.iter().filter_map(|(name, value)| {
        let (_, rest) = xattr_index(name)?;
        Some((4 + rest.len() + value.len()).next_multiple_of(4) as u64)
    });
    match entries.sum() {
        0 => 0,
        bytes => XATTR_HEADER_BYTES + bytes,
    }
}

fn encode_xattrs(node: &Node) -> Vec<u8> {
    let mut entries: Vec<_> = node
        .meta
        .xattrs
        .iter()
        .filter_map(|(n, v)| xattr_index(n).map(|(i, r)| (i, r, v)))
        .collect();
    entries.sort_unstable();
    if entries.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; XATTR_HEADER_LEN];
    for (index, rest, value) in entries {
        let length = u8::try_from(rest.len()).expect("xattr_index allows 255 bytes");
        let size = u16::try_from(value.len()).expect("checked when placed");
        out.extend_from_slice(&[length, index]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The kernel's own encoding of a device number in 32 bits (`new_encode_dev`).
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The file type bits of st_mode.
fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Char { .. } => 0o020_000,
        Kind::Block { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
    }
}

/// The type in a directory entry.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::Char { .. } => 3,
        Kind::Block { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device(1, 3), 0x103);
        assert_eq!(device(8, 0x12345), 0x1230_0845);
    }

    #[test]
    fn only_attributes_that_erofs_can_hold_have_an_index() {
        assert_eq!(
            xattr_index(b"security.capability"),
            Some((6, &b"capability"[..]))
        );
        assert_eq!(xattr_index(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(xattr_index(b"user."), None);
        assert_eq!(xattr_index(b"btrfs.compression"), None);
    }
}
