//! The file tree of an image while it is packed.
//!
//! Owns: nodes, hard links, the rules for names and paths, and the merge of one tree over another
//! (later entries replace earlier ones, whiteouts remove).
//! Refuses: paths with `..`, names that no file system has. Symbolic links are followed inside this
//! tree alone, so nothing can point out of it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Longest name of one entry (Linux NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path and longest target of a symbolic link (Linux PATH_MAX, less its final NUL).
pub const PATH_BYTES_MAX: usize = 4095;
/// Most files, directories and links of an image: bounds the packer's memory and the metadata area.
pub const NODES_MAX: usize = 2_000_000;
/// Most bytes of names, link targets, extended attributes and sparse maps together, replaced ones included:
/// twice what the metadata area may have, so that a few kilobytes of archive cannot unpack into all memory.
pub const DETAIL_BYTES_MAX: usize = 512 << 20;
/// Most devices, pipes and sockets. An image has a dozen; a whole `/dev` has a few hundred.
pub const DEVICES_MAX: usize = 4096;
/// Largest numbers of a device (Linux MINORBITS 20, and 12 bits above them).
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;
/// Most symbolic links followed in one path, as Linux has it (MAXSYMLINKS).
const FOLLOW_MAX: usize = 40;

pub(crate) type NodeId = usize;
pub(crate) const ROOT: NodeId = 0;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("{0:?} leaves the image: remove `..` from the path")]
    Escape(String),
    #[error(
        "{0:?} has a NUL byte, a name above {NAME_BYTES_MAX} or a length above {PATH_BYTES_MAX} bytes"
    )]
    Name(String),
    #[error("{path:?} passes through {at:?}, which is no directory")]
    NotDirectory { path: String, at: String },
    #[error("{0:?} passes through more than {FOLLOW_MAX} symbolic links")]
    Loop(String),
    #[error(
        "hard link {path:?} has the target {target:?}, which is not in the image or is a directory"
    )]
    Link { path: String, target: String },
    #[error("the root of the image has to be a directory")]
    Root,
    #[error("image has more than {NODES_MAX} files, directories and links: pack a part of it")]
    TooMany,
    #[error(
        "names, links, extended attributes and sparse maps of the image take more than \
         {DETAIL_BYTES_MAX} bytes: this is no image that a machine could use"
    )]
    Detail,
    #[error(
        "image has more than {DEVICES_MAX} devices, pipes and sockets: leave them out, a machine has \
         a /dev of its own"
    )]
    Devices,
    #[error("{name:?} is device {major}:{minor}: Linux has numbers up to {MAJOR_MAX}:{MINOR_MAX}")]
    Device {
        name: String,
        major: u32,
        minor: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    /// The low 12 bits of st_mode.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Full name to value.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Seconds since 1970, negative before it, and nanoseconds on top of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory(BTreeMap<Vec<u8>, NodeId>),
    File { size: u64, data: Data },
    Symlink(Vec<u8>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Path(Found),
    /// Pieces of an archive, sorted by their place in the file; what none covers is zeros.
    Archive {
        archive: usize,
        segments: Vec<Segment>,
    },
}

/// A file of this machine, by its path below what is packed, and what tells it from one that took its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: Vec<u8>,
    device: u64,
    inode: u64,
    size: u64,
    mtime: Time,
}

impl Found {
    pub(crate) fn of(path: &[u8], meta: &Metadata) -> Self {
        Self {
            path: path.to_vec(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mtime: Time {
                seconds: meta.mtime(),
                nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset in the file.
    pub(crate) at: u64,
    /// Offset in the archive.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}

/// Nodes by id; what has been replaced stays in the list and is reached from nowhere.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Of [`DETAIL_BYTES_MAX`] and [`DEVICES_MAX`], what is used.
    detail_bytes: usize,
    devices: usize,
}

pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The names of a path below the root. Leading `/` and `.` go; `..` is refused.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(TreeError::Name(show(path)));
    }
    let names: Vec<_> = path
        .split(|b| *b == b'/')
        .filter(|n| !matches!(n, [] | [b'.']))
        .collect();
    if names.contains(&&b".."[..]) {
        return Err(TreeError::Escape(show(path)));
    }
    if names.iter().any(|n| n.len() > NAME_BYTES_MAX) {
        return Err(TreeError::Name(show(path)));
    }
    Ok(names)
}

fn xattr_detail(meta: &Meta) -> usize {
    meta.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum()
}

fn empty_directory() -> Node {
    Node {
        meta: Meta {
            mode: 0o755,
            ..Meta::default()
        },
        kind: Kind::Directory(BTreeMap::new()),
    }
}

impl Tree {
    /// A root directory, 0755, owned by root.
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![empty_directory()],
            detail_bytes: 0,
            devices: 0,
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The children of a directory; of anything else, none.
    pub(crate) fn children(&self, id: NodeId) -> impl DoubleEndedIterator<Item = (&[u8], NodeId)> {
        let map = match &self.nodes[id].kind {
            Kind::Directory(map) => Some(map),
            _ => None,
        };
        map.into_iter()
            .flatten()
            .map(|(name, id)| (name.as_slice(), *id))
    }

    pub(crate) fn set_root(&mut self, meta: Meta) -> Result<(), TreeError> {
        self.take(xattr_detail(&meta))?;
        self.nodes[ROOT].meta = meta;
        Ok(())
    }

    fn take(&mut self, detail_bytes: usize) -> Result<(), TreeError> {
        self.detail_bytes = self.detail_bytes.saturating_add(detail_bytes);
        if self.detail_bytes > DETAIL_BYTES_MAX {
            return Err(TreeError::Detail);
        }
        Ok(())
    }

    /// What a node takes of the limits that no single one of them shows.
    fn account(&mut self, name: &[u8], node: &Node) -> Result<(), TreeError> {
        let own = match &node.kind {
            Kind::Directory(_) => 0,
            Kind::File { data, .. } => match data {
                Data::Path(found) => found.path.len(),
                Data::Archive { segments, .. } => size_of_val(&segments[..]),
            },
            Kind::Symlink(target) => target.len(),
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                if *major > MAJOR_MAX || *minor > MINOR_MAX {
                    return Err(TreeError::Device {
                        name: show(name),
                        major: *major,
                        minor: *minor,
                    });
                }
                self.devices += 1;
                0
            }
            Kind::Fifo | Kind::Socket => {
                self.devices += 1;
                0
            }
        };
        if self.devices > DEVICES_MAX {
            return Err(TreeError::Devices);
        }
        self.take(own + xattr_detail(&node.meta))
    }

    /// Adds under a directory; the caller has checked the name.
    pub(crate) fn add(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: Node,
    ) -> Result<NodeId, TreeError> {
        if self.nodes.len() >= NODES_MAX {
            return Err(TreeError::TooMany);
        }
        self.account(name, &node)?;
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.join(parent, name, id)?;
        Ok(id)
    }

    /// Gives a node one more name.
    pub(crate) fn join(
        &mut self,
        parent: NodeId,
        name: &[u8],
        id: NodeId,
    ) -> Result<(), TreeError> {
        self.take(name.len())?;
        if let Kind::Directory(map) = &mut self.nodes[parent].kind {
            map.insert(name.to_vec(), id);
        }
        Ok(())
    }

    /// Puts a node at a path, making directories on the way. A directory over a directory keeps its
    /// children and takes the new attributes; everything else is replaced.
    pub(crate) fn insert(&mut self, path: &[u8], node: Node) -> Result<(), TreeError> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            return match node.kind {
                Kind::Directory(_) => self.set_root(node.meta),
                _ => Err(TreeError::Root),
            };
        };
        let parent = self.walk(path, parents, true)?.ok_or(TreeError::Root)?;
        let old = self.child(parent, name);
        match (&node.kind, old) {
            (Kind::Directory(_), Some(old)) if self.is_directory(old) => {
                self.take(xattr_detail(&node.meta))?;
                self.nodes[old].meta = node.meta;
            }
            _ => {
                self.add(parent, name, node)?;
            }
        }
        Ok(())
    }

    /// A hard link: `path` becomes another name of what `target` names now.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let error = || TreeError::Link {
            path: show(path),
            target: show(target),
        };
        let target_names = components(target)?;
        let (name, parents) = target_names.split_last().ok_or_else(error)?;
        let found = self
            .walk(target, parents, false)?
            .and_then(|parent| self.child(parent, name));
        let id = found
            .filter(|id| !self.is_directory(*id))
            .ok_or_else(error)?;
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or(TreeError::Root)?;
        let parent = self.walk(path, parents, true)?.ok_or(TreeError::Root)?;
        self.join(parent, name, id)
    }

    /// Removes a name with all that is below it; absent is no error.
    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            return Err(TreeError::Root);
        };
        if let Some(parent) = self.walk(path, parents, false)?
            && let Kind::Directory(map) = &mut self.nodes[parent].kind
        {
            map.remove(*name);
        }
        Ok(())
    }

    /// Removes what is in a directory; absent is no error.
    pub(crate) fn clear(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let names = components(path)?;
        if let Some(id) = self.walk(path, &names, false)?
            && let Kind::Directory(map) = &mut self.nodes[id].kind
        {
            map.clear();
        }
        Ok(())
    }

    /// What a path names, not following symbolic links.
    #[cfg(test)]
    pub(crate) fn find(&self, path: &[u8]) -> Option<NodeId> {
        let names = components(path).ok()?;
        let mut id = ROOT;
        for name in names {
            id = self.child(id, name)?;
        }
        Some(id)
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[parent].kind {
            Kind::Directory(map) => map.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.nodes[id].kind, Kind::Directory(_))
    }

    /// The directory that `names` lead to, following symbolic links, with the root as `/` of absolute
    /// ones and as its own parent. `make`: directories that are missing are made.
    fn walk(
        &mut self,
        path: &[u8],
        names: &[&[u8]],
        make: bool,
    ) -> Result<Option<NodeId>, TreeError> {
        let mut trail = vec![ROOT];
        let mut left: VecDeque<Vec<u8>> = names.iter().map(|n| n.to_vec()).collect();
        let mut followed = 0;
        while let Some(name) = left.pop_front() {
            let here = trail.last().copied().unwrap_or(ROOT);
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let next = match self.child(here, &name) {
                Some(id) => id,
                None if make => self.add(here, &name, empty_directory())?,
                None => return Ok(None),
            };
            match &self.nodes[next].kind {
                Kind::Directory(_) => trail.push(next),
                Kind::Symlink(target) => {
                    followed += 1;
                    if followed > FOLLOW_MAX {
                        return Err(TreeError::Loop(show(path)));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let parts = target
                        .split(|b| *b == b'/')
                        .filter(|n| !matches!(n, [] | [b'.']));
                    for part in parts.rev() {
                        left.push_front(part.to_vec());
                    }
                }
                Kind::File { .. }
                | Kind::Char { .. }
                | Kind::Block { .. }
                | Kind::Fifo
                | Kind::Socket => {
                    return Err(TreeError::NotDirectory {
                        path: show(path),
                        at: show(&name),
                    });
                }
            }
        }
        Ok(trail.last().copied())
    }

    /// Every reachable node once, directories level by level, so that what is listed together lies
    /// together. Beside each, its parent (of hard links, the first).
    pub(crate) fn by_level(&self) -> Vec<(NodeId, NodeId)> {
        let mut seen = vec![false; self.nodes.len()];
        seen[ROOT] = true;
        let mut out = vec![(ROOT, ROOT)];
        let mut next = 0;
        while next < out.len() {
            let (parent, _) = out[next];
            next += 1;
            for (_, id) in self.children(parent) {
                if !std::mem::replace(&mut seen[id], true) {
                    out.push((id, parent));
                }
            }
        }
        out
    }

    /// Every reachable regular file once, with its first name, in the order of paths.
    pub(crate) fn files_by_path(&self) -> Vec<(NodeId, &[u8])> {
        let mut seen = vec![false; self.nodes.len()];
        let mut out = Vec::new();
        let mut stack: Vec<(NodeId, &[u8])> = vec![(ROOT, b"")];
        while let Some((id, name)) = stack.pop() {
            match &self.nodes[id].kind {
                Kind::Directory(_) => stack.extend(self.children(id).rev().map(|(n, i)| (i, n))),
                Kind::File { .. } if !std::mem::replace(&mut seen[id], true) => {
                    out.push((id, name))
                }
                Kind::File { .. }
                | Kind::Symlink(_)
                | Kind::Char { .. }
                | Kind::Block { .. }
                | Kind::Fifo
                | Kind::Socket => {}
            }
        }
        out
    }

    /// Number of nodes ever added: ids are below it.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> Node {
        Node {
            meta: Meta::default(),
            kind: Kind::File {
                size,
                data: Data::Archive {
                    archive: 0,
                    segments: Vec::new(),
                },
            },
        }
    }

    fn link_to(target: &[u8]) -> Node {
        Node {
            meta: Meta::default(),
            kind: Kind::Symlink(target.to_vec()),
        }
    }

    fn paths(tree: &Tree, id: NodeId, at: &str, out: &mut Vec<String>) {
        for (name, child) in tree.children(id) {
            let path = format!("{at}/{}", show(name));
            out.push(path.clone());
            paths(tree, child, &path, out);
        }
    }

    #[test]
    fn paths_that_leave_the_image_are_refused() {
        let mut tree = Tree::new();
        for path in [&b"../x"[..], b"a/../../x", b"/.."] {
            assert!(matches!(
                tree.insert(path, file(1)),
                Err(TreeError::Escape(_))
            ));
        }
        assert!(matches!(
            tree.insert(b"a\0b", file(1)),
            Err(TreeError::Name(_))
        ));
        assert!(matches!(
            tree.insert(&[b'x'; 256], file(1)),
            Err(TreeError::Name(_))
        ));
        assert!(matches!(tree.insert(b"/./", file(1)), Err(TreeError::Root)));
    }

    #[test]
    fn links_are_followed_inside_the_tree_and_never_out_of_it() {
        let mut tree = Tree::new();
        tree.insert(b"lib", link_to(b"../../usr/lib"))
            .expect("fits");
        tree.insert(b"lib/a", file(1)).expect("lands in usr/lib");
        tree.insert(b"usr/abs", link_to(b"/opt")).expect("fits");
        tree.insert(b"usr/abs/b", file(1)).expect("lands in opt");
        let mut found = Vec::new();
        paths(&tree, ROOT, "", &mut found);
        assert_eq!(
            found,
            [
                "/lib",
                "/opt",
                "/opt/b",
                "/usr",
                "/usr/abs",
                "/usr/lib",
                "/usr/lib/a"
            ]
        );
        tree.insert(b"l", link_to(b"l")).expect("fits");
        assert!(matches!(
            tree.insert(b"l/x", file(1)),
            Err(TreeError::Loop(_))
        ));
        tree.insert(b"f", file(1)).expect("fits");
        assert!(matches!(
            tree.insert(b"f/x", file(1)),
            Err(TreeError::NotDirectory { .. })
        ));
    }

    #[test]
    fn later_entries_replace_earlier_ones_and_directories_keep_their_children() {
        let mut tree = Tree::new();
        tree.insert(b"d/a", file(1)).expect("fits");
        let meta = Meta {
            mode: 0o700,
            ..Meta::default()
        };
        tree.insert(
            b"d",
            Node {
                meta,
                kind: Kind::Directory(BTreeMap::new()),
            },
        )
        .expect("fits");
        let d = tree.find(b"d").expect("there");
        assert_eq!(
            (tree.node(d).meta.mode, tree.children(d).count()),
            (0o700, 1)
        );
        tree.insert(b"d", file(2)).expect("replaces");
        assert_eq!(tree.files_by_path().len(), 1);
    }

    #[test]
    fn a_hard_link_needs_a_target_that_is_there_and_no_directory() {
        let mut tree = Tree::new();
        tree.insert(b"d/a", file(1)).expect("fits");
        tree.link(b"b", b"./d/a").expect("there");
        assert_eq!(tree.find(b"b"), tree.find(b"d/a"));
        assert_eq!(tree.files_by_path().len(), 1);
        assert!(matches!(tree.link(b"c", b"d"), Err(TreeError::Link { .. })));
        assert!(matches!(
            tree.link(b"c", b"nothing"),
            Err(TreeError::Link { .. })
        ));
        // Replacing one name leaves the other.
        tree.insert(b"d/a", file(2)).expect("replaces");
        assert_ne!(tree.find(b"b"), tree.find(b"d/a"));
    }

    #[test]
    fn removing_takes_what_is_below_and_absent_is_fine() {
        let mut tree = Tree::new();
        tree.insert(b"d/e/a", file(1)).expect("fits");
        tree.remove(b"x/y").expect("absent");
        tree.clear(b"d/e").expect("there");
        assert!(tree.find(b"d/e").is_some() && tree.find(b"d/e/a").is_none());
        tree.remove(b"d").expect("there");
        assert_eq!(tree.by_level(), [(ROOT, ROOT)]);
    }
}
