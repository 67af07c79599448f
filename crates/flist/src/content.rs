//! The content of files while they are packed.
//!
//! Owns: reading a range of a file, from a directory or out of an archive, and knowing holes.
//! Refuses: files that are not as they were when the tree was read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::beneath::Beneath;
use crate::tree::{Data, Found, Kind, NodeId, Segment, Tree};

/// Where the content of a tree is.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    Directory(Beneath),
    Archives(Vec<&'a File>),
}

pub(crate) struct Reader<'a> {
    tree: &'a Tree,
    place: Place<'a>,
    /// The file read last: chunks ask for one file many times in a row.
    open: Option<Open>,
}

struct Open {
    node: NodeId,
    file: File,
    sparse: bool,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(tree: &'a Tree, place: Place<'a>) -> Self {
        Self {
            tree,
            place,
            open: None,
        }
    }

    /// Whether a range is known to be zeros without reading it. When in doubt, no.
    pub(crate) fn is_hole(&mut self, node: NodeId, at: u64, bytes: u64) -> bool {
        match self.data(node) {
            Some(Data::Archive { segments, .. }) => {
                overlapping(segments, at, bytes).next().is_none()
            }
            Some(Data::Path(_)) => match self.opened(node) {
                Ok(open) if open.sparse => {
                    next_data(&open.file, at).is_some_and(|d| d >= at + bytes)
                }
                _ => false,
            },
            None => false,
        }
    }

    /// Fills `into` from offset `at`. A file that is another, or became shorter or longer, is `UnexpectedEof`.
    pub(crate) fn read(&mut self, node: NodeId, at: u64, into: &mut [u8]) -> io::Result<()> {
        match (self.data(node), &self.place) {
            (Some(Data::Archive { archive, segments }), Place::Archives(archives)) => {
                let (file, end) = (archives[*archive], at + into.len() as u64);
                for s in overlapping(segments, at, into.len() as u64) {
                    let (from, to) = (s.at.max(at), (s.at + s.bytes).min(end));
                    let range = index(from - at)..index(to - at);
                    file.read_exact_at(&mut into[range], s.offset + (from - s.at))?;
                }
                Ok(())
            }
            (Some(Data::Path(_)), Place::Directory(_)) => {
                self.opened(node)?.file.read_exact_at(into, at)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn data(&self, node: NodeId) -> Option<&'a Data> {
        match &self.tree.node(node).kind {
            Kind::File { data, .. } => Some(data),
            Kind::Directory(_)
            | Kind::Symlink(_)
            | Kind::Char { .. }
            | Kind::Block { .. }
            | Kind::Fifo
            | Kind::Socket => None,
        }
    }

    fn opened(&mut self, node: NodeId) -> io::Result<&Open> {
        let open = match self.open.take() {
            Some(open) if open.node == node => open,
            _ => self.open_path(node)?,
        };
        Ok(self.open.insert(open))
    }

    fn open_path(&self, node: NodeId) -> io::Result<Open> {
        let (Some(Data::Path(found)), Place::Directory(root)) = (self.data(node), &self.place)
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let file = root.read(&found.path)?;
        let now = file.metadata()?;
        if !now.is_file() || Found::of(&found.path, &now) != *found {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Open {
            node,
            sparse: now.blocks() * 512 < now.len(),
            file,
        })
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("inside a buffer")
}

fn overlapping(segments: &[Segment], at: u64, bytes: u64) -> impl Iterator<Item = &Segment> {
    let first = segments.partition_point(|s| s.at + s.bytes <= at);
    segments[first..]
        .iter()
        .take_while(move |s| s.at < at + bytes)
}

/// Where data begins at or after `at`; beyond every offset when only a hole is left. `None`: unknown.
fn next_data(file: &File, at: u64) -> Option<u64> {
    let offset = i64::try_from(at).ok()?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => u64::try_from(data).ok(),
        Err(Errno::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}
