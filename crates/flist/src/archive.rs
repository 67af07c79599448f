//! A tar archive as a file tree.
//!
//! Owns: ustar, GNU and PAX entries, hard links, devices, sparse files of both kinds, extended
//! attributes, and the whiteouts of image layers. Content stays in the archive.
//! Refuses: entry types that no file system has, and content beyond the end of the archive.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use tar::{Archive, Entry, EntryType};

use crate::DISK_BYTES_MAX;
use crate::erofs::xattr_index;
use crate::pack::{PackError, Stats};
use crate::tree::{Data, Kind, Meta, Node, Segment, Time, Tree, show};

/// Most pieces of one sparse file: its map is held in memory.
const SEGMENTS_MAX: usize = 1 << 20;
/// Longest number of a PAX sparse map, which is decimal text, one a line.
const SPARSE_LINE_MAX: usize = 24;
const TAR_BLOCK: u64 = 512;
/// Most bytes of all headers of one entry: a path, a link, extended attributes of the largest size and a sparse
/// map of [`SEGMENTS_MAX`] pieces fit. They are read into memory, and a compressed archive of zeros is small.
const HEADERS_BYTES_MAX: usize = 32 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What names that begin with `.wh.` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Nothing: they are ordinary files.
    AreFiles,
    /// Something of the layers below is removed (OCI image-spec `layer.md`).
    Remove,
}

/// Reads the archive with number `archive` over what is in the tree.
pub(crate) fn add(
    file: &File,
    archive: usize,
    whiteouts: Whiteouts,
    tree: &mut Tree,
    stats: &mut Stats,
) -> Result<(), PackError> {
    let archive_bytes = file.metadata().map_err(broken)?.len();
    if whiteouts == Whiteouts::Remove {
        // They apply to the layers below alone, so all of them come before the layer's own entries.
        for_each_entry(file, |entry, _| remove(&entry.path_bytes(), tree))?;
    }
    for_each_entry(file, |entry, headers| {
        let path = entry.path_bytes().into_owned();
        if whiteouts == Whiteouts::Remove && base_name(&path).starts_with(WHITEOUT) {
            return Ok(());
        }
        let pax = Pax::read(&path, headers, stats)?;
        let path = pax.sparse_name.clone().unwrap_or(path);
        let target = entry
            .link_name_bytes()
            .map(|t| t.into_owned())
            .unwrap_or_default();
        if entry.header().entry_type() == EntryType::Link {
            return Ok(tree.link(&path, &target)?);
        }
        let Some(kind) = kind(file, archive, archive_bytes, entry, &path, target, &pax)? else {
            return Ok(());
        };
        let meta = attributes(entry, pax)?;
        Ok(tree.insert(&path, Node { meta, kind })?)
    })
}

fn broken(error: io::Error) -> PackError {
    PackError::Archive {
        reason: error.to_string(),
    }
}

fn refused(path: &[u8], reason: &str) -> PackError {
    PackError::Archive {
        reason: format!("entry {:?} {reason}", show(path)),
    }
}

fn for_each_entry(
    file: &File,
    mut each: impl FnMut(&mut TarEntry<'_>, &Headers<'_>) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let headers = Headers::of(file).map_err(broken)?;
    let mut archive = Archive::new(&headers);
    for entry in archive.entries_with_seek().map_err(broken)? {
        each(&mut entry.map_err(broken)?, &headers)?;
        headers.next();
    }
    Ok(())
}

pub(crate) type TarEntry<'a> = Entry<'a, &'a Headers<'a>>;

/// An archive of which only headers are read: content is skipped, and read where it lies when it is packed.
#[derive(Debug)]
pub(crate) struct Headers<'a> {
    file: &'a File,
    /// What was read since the last entry: its headers, one behind the other.
    read: RefCell<Vec<u8>>,
}

impl<'a> Headers<'a> {
    pub(crate) fn of(mut file: &'a File) -> io::Result<Self> {
        file.rewind()?;
        Ok(Self {
            file,
            read: RefCell::default(),
        })
    }

    /// An entry has been taken.
    pub(crate) fn next(&self) {
        self.read.borrow_mut().clear();
    }

    /// The content of the extended header (POSIX pax) of the entry that was taken last. The `tar` crate cuts
    /// it at newlines, which values may have.
    fn extended(&self) -> Option<Vec<u8>> {
        let read = self.read.borrow();
        let (mut rest, mut found) = (&read[..], None);
        loop {
            let header: &[u8; 512] = rest.get(..512)?.try_into().ok()?;
            let header = tar::Header::from_byte_slice(header);
            let kind = header.entry_type();
            let is_pax = kind.is_pax_local_extensions();
            if !is_pax && !kind.is_gnu_longname() && !kind.is_gnu_longlink() {
                return found;
            }
            let end = 512 + usize::try_from(header.entry_size().ok()?).ok()?;
            if is_pax {
                found = Some(rest.get(512..end)?.to_vec());
            }
            rest = rest.get(end..)?;
        }
    }
}

impl Read for &Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = self.file;
        let count = file.read(buffer)?;
        let mut read = self.read.borrow_mut();
        read.extend_from_slice(&buffer[..count]);
        if read.len() > HEADERS_BYTES_MAX {
            let what = format!("an entry has more than {HEADERS_BYTES_MAX} bytes of headers");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(count)
    }
}

impl Seek for &Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut file = self.file;
        file.seek(to)
    }
}

fn base_name(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn remove(path: &[u8], tree: &mut Tree) -> Result<(), PackError> {
    let name = base_name(path);
    let parent = &path[..path.len() - name.len()];
    if name == OPAQUE {
        tree.clear(parent)?;
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(path, "is a whiteout of nothing"));
        }
        tree.remove(&[parent, hidden].concat())?;
    }
    Ok(())
}

/// What the extended header says and the `tar` crate does not apply by itself.
#[derive(Debug, Default)]
struct Pax {
    mtime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse_name: Option<Vec<u8>>,
    sparse_bytes: Option<u64>,
    /// `GNU.sparse.major` and `minor`: 1.0 has its map in front of the content.
    sparse_version: (u64, u64),
    sparse: bool,
}

impl Pax {
    fn read(path: &[u8], headers: &Headers<'_>, stats: &mut Stats) -> Result<Self, PackError> {
        let mut pax = Self::default();
        let content = headers.extended().unwrap_or_default();
        let mut rest = &content[..];
        while !rest.is_empty() {
            let (key, value);
            (key, value, rest) = record(rest)
                .ok_or_else(|| refused(path, "has an extended header that does not add up"))?;
            let number = || {
                let text = std::str::from_utf8(value).ok();
                text.and_then(|t| t.parse().ok())
                    .ok_or_else(|| refused(path, "has a bad number"))
            };
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if xattr_index(name).is_some() {
                    pax.xattrs.insert(name.to_vec(), value.to_vec());
                } else {
                    stats.xattrs_dropped += 1;
                }
                continue;
            }
            match key {
                b"mtime" => {
                    pax.mtime = Some(time(value).ok_or_else(|| refused(path, "has a bad time"))?)
                }
                b"GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => pax.sparse_bytes = Some(number()?),
                b"GNU.sparse.major" => pax.sparse_version.0 = number()?,
                b"GNU.sparse.minor" => pax.sparse_version.1 = number()?,
                _ => {}
            }
            pax.sparse |= key.starts_with(b"GNU.sparse.");
        }
        Ok(pax)
    }
}

/// One record, `<length of all of it> <key>=<value>` and a newline, and what is behind it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    Some((&text[..equals], &text[equals + 1..], rest))
}

/// A PAX time (POSIX pax, "pax Extended Header"): decimal seconds with a fraction, of which digits beyond
/// nanoseconds are dropped; the sign is the whole number's.
fn time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some(Time {
            seconds,
            nanoseconds,
        });
    }
    Some(Time {
        seconds: seconds.checked_sub(1)?,
        nanoseconds: 1_000_000_000 - nanoseconds,
    })
}

fn attributes(entry: &TarEntry<'_>, pax: Pax) -> Result<Meta, PackError> {
    let path = entry.path_bytes();
    let header = entry.header();
    let old = header.as_old();
    let id = |field: &[u8], n: io::Result<u64>| {
        // Some writers leave a number out where it would be zero.
        let n = if is_blank(field) {
            0
        } else {
            n.map_err(broken)?
        };
        u32::try_from(n).map_err(|_| refused(&path, "has an owner above 32 bits"))
    };
    let mode = if is_blank(&old.mode) {
        0
    } else {
        header.mode().map_err(broken)? & 0o7777
    };
    Ok(Meta {
        mode: u16::try_from(mode).expect("twelve bits"),
        uid: id(&old.uid, header.uid())?,
        gid: id(&old.gid, header.gid())?,
        mtime: pax.mtime.unwrap_or_else(|| Time {
            // A binary field of GNU tar may be negative, which reads as a huge number.
            seconds: header.mtime().map_or(0, u64::cast_signed),
            nanoseconds: 0,
        }),
        xattrs: pax.xattrs,
    })
}

fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|b| matches!(b, 0 | b' '))
}

fn kind(
    file: &File,
    archive: usize,
    archive_bytes: u64,
    entry: &TarEntry<'_>,
    path: &[u8],
    target: Vec<u8>,
    pax: &Pax,
) -> Result<Option<Kind>, PackError> {
    let device = || {
        let header = entry.header();
        let number = |n: io::Result<Option<u32>>| n.map_err(broken).map(|n| n.unwrap_or(0));
        Ok::<_, PackError>((
            number(header.device_major())?,
            number(header.device_minor())?,
        ))
    };
    Ok(Some(match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => {
            Kind::Directory(BTreeMap::new())
        }
        EntryType::Regular | EntryType::Continuous => {
            let (size, segments) = regular(file, entry, path, pax)?;
            content(archive, archive_bytes, path, size, segments)?
        }
        EntryType::GNUSparse => {
            let (size, segments) = gnu_sparse(file, entry, path)?;
            content(archive, archive_bytes, path, size, segments)?
        }
        EntryType::Directory => Kind::Directory(BTreeMap::new()),
        EntryType::Symlink if target.is_empty() || target.len() > crate::tree::PATH_BYTES_MAX => {
            return Err(refused(
                path,
                "is a symbolic link with an empty or overlong target",
            ));
        }
        EntryType::Symlink => Kind::Symlink(target),
        EntryType::Char => {
            let (major, minor) = device()?;
            Kind::Char { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            Kind::Block { major, minor }
        }
        EntryType::Fifo => Kind::Fifo,
        // Says something about later entries that images do not use (a comment, mostly).
        EntryType::XGlobalHeader => return Ok(None),
        other => {
            let letter = char::from(other.as_byte());
            return Err(refused(path, &format!("has the unknown type {letter:?}")));
        }
    }))
}

fn content(
    archive: usize,
    archive_bytes: u64,
    path: &[u8],
    size: u64,
    segments: Vec<Segment>,
) -> Result<Kind, PackError> {
    if size > DISK_BYTES_MAX {
        return Err(refused(
            path,
            &format!("has {size} bytes, more than an image can hold"),
        ));
    }
    let mut free_from = 0;
    for s in &segments {
        let (end, archive_end) = (s.at.checked_add(s.bytes), s.offset.checked_add(s.bytes));
        if s.at < free_from || end.is_none_or(|e| e > size) {
            return Err(refused(path, "has a sparse map that does not add up"));
        }
        if archive_end.is_none_or(|e| e > archive_bytes) {
            return Err(refused(
                path,
                "goes beyond the end of the archive, which was cut",
            ));
        }
        free_from = end.unwrap_or(u64::MAX);
    }
    Ok(Kind::File {
        size,
        data: Data::Archive { archive, segments },
    })
}

/// An ordinary file, or one with a PAX sparse map 1.0 in front of its content.
fn regular(
    file: &File,
    entry: &TarEntry<'_>,
    path: &[u8],
    pax: &Pax,
) -> Result<(u64, Vec<Segment>), PackError> {
    let (start, bytes) = (entry.raw_file_position(), entry.size());
    if !pax.sparse {
        return Ok((
            bytes,
            Vec::from([Segment {
                at: 0,
                offset: start,
                bytes,
            }]),
        ));
    }
    let (Some(size), (1, 0)) = (pax.sparse_bytes, pax.sparse_version) else {
        return Err(refused(
            path,
            "has a sparse map of an old kind: make the archive with format 1.0",
        ));
    };
    let mut lines = Lines {
        file,
        at: start,
        end: start.saturating_add(bytes),
        buffer: Vec::new(),
        used: 0,
    };
    let count = lines.number(path)?;
    if count > SEGMENTS_MAX as u64 {
        return Err(refused(path, "has a sparse map that is too long"));
    }
    let mut map = Vec::new();
    for _ in 0..count {
        map.push((lines.number(path)?, lines.number(path)?));
    }
    let data = start + (lines.position() - start).next_multiple_of(TAR_BLOCK);
    Ok((size, segments(data, map, path)?))
}

/// Lays pieces of a file, which follow one another in the archive, from `data` on.
fn segments(data: u64, map: Vec<(u64, u64)>, path: &[u8]) -> Result<Vec<Segment>, PackError> {
    let mut offset = data;
    let mut out = Vec::with_capacity(map.len());
    for (at, bytes) in map {
        if bytes > 0 {
            out.push(Segment { at, offset, bytes });
        }
        offset = offset
            .checked_add(bytes)
            .ok_or_else(|| refused(path, "has a sparse map that does not add up"))?;
    }
    Ok(out)
}

/// The sparse kind of GNU tar before PAX: four pieces in the header, more in blocks behind it.
fn gnu_sparse(
    file: &File,
    entry: &TarEntry<'_>,
    path: &[u8],
) -> Result<(u64, Vec<Segment>), PackError> {
    let gnu = entry
        .header()
        .as_gnu()
        .ok_or_else(|| refused(path, "is sparse without a map"))?;
    let size = gnu.real_size().map_err(broken)?;
    let mut map = Vec::new();
    let mut take = |pieces: &[tar::GnuSparseHeader]| {
        for piece in pieces.iter().filter(|p| !p.is_empty()) {
            map.push((
                piece.offset().map_err(broken)?,
                piece.length().map_err(broken)?,
            ));
        }
        if map.len() > SEGMENTS_MAX {
            return Err(refused(path, "has a sparse map that is too long"));
        }
        Ok(())
    };
    take(&gnu.sparse)?;
    let mut at = entry.raw_header_position() + TAR_BLOCK;
    let mut more = gnu.is_extended();
    while more {
        let mut block = tar::GnuExtSparseHeader::new();
        file.read_exact_at(block.as_mut_bytes(), at)
            .map_err(broken)?;
        take(block.sparse())?;
        more = block.is_extended();
        at += TAR_BLOCK;
    }
    Ok((size, segments(at, map, path)?))
}

/// Decimal numbers, one a line.
struct Lines<'a> {
    file: &'a File,
    /// Where the buffer's end lies in the archive.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Lines<'_> {
    fn position(&self) -> u64 {
        self.at - (self.buffer.len() - self.used) as u64
    }

    fn byte(&mut self) -> io::Result<u8> {
        if self.used == self.buffer.len() {
            let bytes = usize::try_from((self.end - self.at).min(TAR_BLOCK)).unwrap_or(0);
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.resize(bytes, 0);
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.at += bytes as u64;
            self.used = 0;
        }
        self.used += 1;
        Ok(self.buffer[self.used - 1])
    }

    fn number(&mut self, path: &[u8]) -> Result<u64, PackError> {
        let mut text = String::new();
        loop {
            match self.byte().map_err(broken)? {
                b'\n' => break,
                digit if text.len() < SPARSE_LINE_MAX => text.push(char::from(digit)),
                _ => return Err(refused(path, "has a sparse map that is no list of numbers")),
            }
        }
        text.parse()
            .map_err(|_| refused(path, "has a sparse map that is no list of numbers"))
    }
}
