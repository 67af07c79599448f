//! The "newc" cpio format of an initramfs, byte for byte reproducible.
//!
//! Owns: writing an archive from a set of paths, and reading one back (kernel document
//! `driver-api/early-userspace/buffer-format`).
//! Refuses: clocks, owners other than root, hard links, symbolic links, and paths that are not
//! plain absolute ones.

use std::borrow::Cow;
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
/// Magic and thirteen numbers of eight hexadecimal digits.
const HEADER_BYTES: usize = 6 + 13 * 8;
/// An archive ends on this boundary, so that another can be appended to it.
const BLOCK_BYTES: usize = 512;
/// Longest path: the kernel's PATH_MAX without its NUL.
const PATH_BYTES_MAX: usize = 4095;
const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    #[error("cpio path {0:?} is not absolute and plain (no empty, '.' or '..' part, no NUL)")]
    Path(String),
    #[error("cpio path {0:?} is given twice")]
    Twice(String),
    #[error(
        "cpio file {path:?} has {bytes} bytes, the format holds at most {}",
        u32::MAX
    )]
    Large { path: String, bytes: usize },
    #[error("cpio archive is cut off or malformed at byte {0}")]
    Malformed(usize),
    #[error("cpio entry {path:?} has the type {kind:o}, which this image never has")]
    Kind { path: String, kind: u32 },
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node<'a> {
    Directory,
    File(Cow<'a, [u8]>),
    CharacterDevice { major: u32, minor: u32 },
}

/// A path's content and its permission bits (with set-user-ID and its kin).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    pub mode: u32,
    pub node: Node<'a>,
}

/// A set of absolute paths: what order they were added in does not show in the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archive<'a> {
    entries: BTreeMap<String, Entry<'a>>,
}

impl<'a> Archive<'a> {
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), CpioError> {
        self.add(path, mode, Node::Directory)
    }

    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        content: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), CpioError> {
        let content = content.into();
        if u32::try_from(content.len()).is_err() {
            return Err(CpioError::Large {
                path: path.to_owned(),
                bytes: content.len(),
            });
        }
        self.add(path, mode, Node::File(content))
    }

    pub fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> Result<(), CpioError> {
        self.add(path, mode, Node::CharacterDevice { major, minor })
    }

    /// Every path with its content, sorted by path.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry<'a>)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }

    fn add(&mut self, path: &str, mode: u32, node: Node<'a>) -> Result<(), CpioError> {
        if !plain(path) {
            return Err(CpioError::Path(path.to_owned()));
        }
        let entry = Entry {
            mode: mode & !TYPE_MASK,
            node,
        };
        match self.entries.insert(path.to_owned(), entry) {
            None => Ok(()),
            Some(_) => Err(CpioError::Twice(path.to_owned())),
        }
    }

    /// The archive's bytes: sorted (so that a directory precedes what is in it), owned by root,
    /// dated 0, numbered from 1, padded to 512 bytes. Directories that no one added are not made.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for ((path, entry), inode) in self.entries.iter().zip(1..) {
            let (kind, links, content, device): (u32, u32, &[u8], (u32, u32)) = match &entry.node {
                Node::Directory => (DIRECTORY, 2, &[], (0, 0)),
                Node::File(content) => (FILE, 1, content, (0, 0)),
                Node::CharacterDevice { major, minor } => {
                    (CHARACTER_DEVICE, 1, &[], (*major, *minor))
                }
            };
            let header = Header {
                inode,
                mode: kind | entry.mode,
                links,
                device,
            };
            member(&mut out, header, path.trim_start_matches('/'), content);
        }
        member(
            &mut out,
            Header {
                inode: 0,
                mode: 0,
                links: 1,
                device: (0, 0),
            },
            TRAILER,
            &[],
        );
        pad(&mut out, BLOCK_BYTES);
        out
    }
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn member(out: &mut Vec<u8>, header: Header, name: &str, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("checked when the file was added");
    let name_size = u32::try_from(name.len() + 1).expect("a path is at most 4095 bytes");
    let (major, minor) = header.device;
    out.extend_from_slice(MAGIC);
    // Inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name size, checksum.
    for number in [
        header.inode,
        header.mode,
        0,
        0,
        header.links,
        0,
        size,
        0,
        0,
        major,
        minor,
        name_size,
        0,
    ] {
        out.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(content);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, boundary: usize) {
    out.resize(out.len().next_multiple_of(boundary), 0);
}

fn plain(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    path.len() <= PATH_BYTES_MAX
        && !path.contains('\0')
        && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Reads one or several archives that were appended to each other. A path that occurs in two
/// archives is an error, as is any kind of file that [`Archive`] cannot hold.
pub fn decode(bytes: &[u8]) -> Result<Archive<'_>, CpioError> {
    let mut archive = Archive::default();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == 0 {
            // Padding between archives and after the last.
            at += 1;
            continue;
        }
        let numbers = numbers(bytes, at).ok_or(CpioError::Malformed(at))?;
        let [_, mode, _, _, _, _, size, _, _, major, minor, name_size, _] = numbers;
        let slice = |start: usize, length: u32| {
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            Some((bytes.get(start..end)?, end))
        };
        let (name, end) = slice(at + HEADER_BYTES, name_size).ok_or(CpioError::Malformed(at))?;
        let name = name
            .strip_suffix(&[0])
            .and_then(|name| std::str::from_utf8(name).ok());
        let name = name.ok_or(CpioError::Malformed(at))?;
        let (content, end) =
            slice(end.next_multiple_of(4), size).ok_or(CpioError::Malformed(at))?;
        if name != TRAILER {
            let path = format!("/{name}");
            match mode & TYPE_MASK {
                DIRECTORY => archive.directory(&path, mode)?,
                FILE => archive.file(&path, mode, content)?,
                CHARACTER_DEVICE => archive.character_device(&path, mode, (major, minor))?,
                kind => return Err(CpioError::Kind { path, kind }),
            }
        }
        at = end.next_multiple_of(4);
    }
    Ok(archive)
}

fn numbers(bytes: &[u8], at: usize) -> Option<[u32; 13]> {
    let digits = bytes
        .get(at..at.checked_add(HEADER_BYTES)?)?
        .strip_prefix(MAGIC)?;
    let mut numbers = [0; 13];
    for (number, text) in numbers.iter_mut().zip(digits.chunks_exact(8)) {
        // from_str_radix would take a sign.
        if !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *number = u32::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn sample() -> Archive<'static> {
        let mut archive = Archive::default();
        archive
            .file("/lib/sifr/x", 0o644, &b"hello"[..])
            .expect("a plain path");
        archive.directory("/lib", 0o755).expect("a plain path");
        archive.directory("/lib/sifr", 0o755).expect("a plain path");
        archive
            .character_device("/dev/console", 0o600, (5, 1))
            .expect("a plain path");
        archive.directory("/dev", 0o755).expect("a plain path");
        archive
    }

    #[test]
    fn an_archive_reads_back_as_it_was_written() {
        let archive = sample();
        assert_eq!(decode(&archive.encode()), Ok(archive));
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut other = Archive::default();
        other.directory("/dev", 0o755).expect("a plain path");
        other.directory("/lib", 0o755).expect("a plain path");
        other
            .character_device("/dev/console", 0o600, (5, 1))
            .expect("a plain path");
        other.directory("/lib/sifr", 0o755).expect("a plain path");
        other
            .file("/lib/sifr/x", 0o644, b"hello".to_vec())
            .expect("a plain path");
        assert_eq!(other.encode(), sample().encode());
    }

    #[test]
    fn a_file_is_written_as_the_kernel_document_says() {
        let mut archive = Archive::default();
        archive
            .file("/run.json", 0o400, &b"{}"[..])
            .expect("a plain path");
        let bytes = archive.encode();
        assert_eq!(bytes.len(), 512);
        let head = "0707010000000100008100000000000000000000000001000000000000000200000000\
                    0000000000000000000000000000000900000000run.json\0";
        // The name ends on a multiple of four after 110 bytes of header.
        assert_eq!(&bytes[..head.len()], head.as_bytes());
        assert_eq!(&bytes[120..122], b"{}");
        assert_eq!(&bytes[124..130], b"070701");
    }

    #[test]
    fn appended_archives_read_as_one() {
        let mut more = Archive::default();
        more.file("/run.json", 0o400, &b"{}"[..])
            .expect("a plain path");
        let mut bytes = sample().encode();
        bytes.extend(more.encode());
        let both = decode(&bytes).expect("two archives");
        assert_eq!(both.entries().count(), 6);
    }

    proptest! {
        #[test]
        fn any_archive_reads_back_and_any_change_of_it_is_read_or_refused(
            files in prop::collection::btree_map("(/[a-z.]{1,9}){1,4}", prop::collection::vec(any::<u8>(), 0..99), 0..9),
            at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut archive = Archive::default();
            for (path, content) in &files {
                let plain = archive.file(path, 0o644, content.as_slice());
                assert!(plain.is_ok() || path.contains("/."), "{path}");
            }
            let mut encoded = archive.encode();
            assert_eq!(decode(&encoded), Ok(archive.clone()));
            let start = at.index(encoded.len());
            let end = encoded.len().min(start + bytes.len());
            encoded[start..end].copy_from_slice(&bytes[..end - start]);
            if let Ok(changed) = decode(&encoded) {
                assert_eq!(decode(&changed.encode()), Ok(changed.clone()));
            }
        }
    }

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        let mut archive = Archive::default();
        for path in ["", "/", "init", "/a//b", "/a/", "/a/../b", "/./a", "/a\0b"] {
            let error = Err(CpioError::Path(path.to_owned()));
            assert_eq!(archive.directory(path, 0o755), error, "{path:?}");
        }
        archive.directory("/a", 0o755).expect("a plain path");
        assert_eq!(
            archive.directory("/a", 0o755),
            Err(CpioError::Twice("/a".to_owned()))
        );
    }

    #[test]
    fn a_damaged_archive_is_an_error_and_never_a_panic() {
        let bytes = sample().encode();
        let end = bytes.iter().rposition(|b| *b != 0).expect("not empty");
        for cut in 1..end {
            if bytes[cut - 1] != 0 {
                let _ = decode(&bytes[..cut]);
            }
        }
        assert!(decode(b"070701").is_err() && decode(b"garbage").is_err());
        let mut link = bytes;
        let mode = 6 + 8;
        link[mode..mode + 8].copy_from_slice(b"0000a1ff");
        assert!(matches!(decode(&link), Err(CpioError::Kind { .. })));
    }
}
