//! A file tree with one of everything, made of words: nobody needs to be root to make it.
//!
//! Owns: the tree, the tar that says it, and what a machine must see of it.
//! Refuses: sockets, which no tar has ([`super::directory`] has one).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use tar::{EntryType, Header};

use super::listing::{self, Content, Listing, PIECES, Seen, escaped, hex};

/// Entries of the largest directory.
const MANY: usize = 10_000;
/// Directories in one another: with two bytes each, as long as a path may be.
const DEEP: usize = 2000;
const HUGE_BYTES: u64 = 200 << 30;

/// What stands where in a file; the rest of it is zeros.
type Pieces = Vec<(u64, Vec<u8>)>;

struct Tree {
    builder: tar::Builder<File>,
    expected: Listing,
    inodes: Vec<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    time: (i64, u32),
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

impl Attributes {
    fn plain(mode: u32) -> Self {
        Self {
            mode,
            owner: (0, 0),
            time: (1, 0),
            xattrs: Vec::new(),
        }
    }
}

/// The tar and what is in it.
pub fn everything() -> Result<(File, Listing)> {
    let mut tree = Tree {
        builder: tar::Builder::new(tempfile::tempfile()?),
        expected: Listing::default(),
        inodes: Vec::new(),
    };
    for path in ["", "many", "xattrs", "names", "links", "devices", "sizes"] {
        tree.add(
            path.as_bytes(),
            Content::Directory,
            &[],
            &Attributes::plain(0o755),
        )?;
    }
    for i in 0..MANY {
        tree.file(
            format!("many/entry {i}").as_bytes(),
            b"",
            &Attributes::plain(0o644),
        )?;
    }
    names(&mut tree)?;
    attributes(&mut tree)?;
    sizes(&mut tree)?;
    links(&mut tree)?;
    let mut path = b"d".to_vec();
    for _ in 0..DEEP {
        tree.add(&path, Content::Directory, &[], &Attributes::plain(0o700))?;
        path.extend(b"/d");
    }
    tree.file(&path, b"deep", &Attributes::plain(0o600))?;
    tree.finish()
}

fn names(tree: &mut Tree) -> Result<()> {
    let plain = Attributes::plain(0o644);
    tree.file(&[b"names/", &[b'n'; 255][..]].concat(), b"longest", &plain)?;
    for name in [
        &b"\xff\xfe not \xc3("[..],
        b"\x01\n\t",
        b"!before the dot",
        b"%",
        b"...",
    ] {
        tree.file(&[b"names/", name].concat(), name, &plain)?;
    }
    Ok(())
}

fn attributes(tree: &mut Tree) -> Result<()> {
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let owned = Attributes {
        mode: 0o6755,
        owner: (70_000, 4_000_000_000),
        time: (1_000_000_007, 123_456_789),
        xattrs: vec![("security.capability", capability)],
    };
    tree.file(b"xattrs/capability", b"program", &owned)?;
    let early = Attributes {
        time: (-2, 750_000_000),
        ..Attributes::plain(0o1777)
    };
    tree.add(b"xattrs/early", Content::Directory, &[], &early)?;
    // Kernel: `posix_acl_xattr.h`. User, a named user, group, mask, others.
    let acl: Vec<u8> = [
        (1, 6, u32::MAX),
        (2, 4, 5),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 4, u32::MAX),
    ]
    .iter()
    .flat_map(|(tag, permission, id): &(u16, u16, u32)| {
        [
            &tag.to_le_bytes()[..],
            &permission.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    })
    .collect();
    let acl = [&2u32.to_le_bytes()[..], &acl].concat();
    let listed = Attributes {
        xattrs: vec![
            ("system.posix_acl_access", acl.clone()),
            ("system.posix_acl_default", acl.clone()),
        ],
        ..Attributes::plain(0o765)
    };
    tree.add(b"xattrs/acl", Content::Directory, &[], &listed)?;
    let one = Attributes {
        xattrs: vec![("system.posix_acl_access", acl)],
        ..Attributes::plain(0o664)
    };
    tree.file(b"xattrs/acl file", b"x", &one)?;
    let heavy = Attributes {
        xattrs: vec![
            ("trusted.empty", Vec::new()),
            ("user.a", b"b".to_vec()),
            ("user.binary", (0..=255).filter(|b| *b != b'\n').collect()),
            ("user.largest", vec![b'v'; 65_535]),
            ("user.large", vec![b'w'; 60_000]),
            ("user.more", vec![b'x'; 60_001]),
            ("user.and more", vec![b'y'; 60_002]),
        ],
        ..Attributes::plain(0o644)
    };
    tree.file(b"xattrs/heavy", b"light", &heavy)?;
    tree.add(
        b"xattrs/heavy directory",
        Content::Directory,
        &[],
        &Attributes {
            mode: 0o755,
            ..heavy
        },
    )
}

fn sizes(tree: &mut Tree) -> Result<()> {
    for bytes in [1, 4095, 4096, 4097, 524_287, 524_288, 1_048_576, 3_000_001] {
        let name = format!("sizes/{bytes}");
        tree.file(name.as_bytes(), &noise(bytes), &Attributes::plain(0o644))?;
    }
    for i in 0..300 {
        let name = format!("sizes/small {i}");
        tree.file(
            name.as_bytes(),
            &noise(1 + i * 977 % 20_000),
            &Attributes::plain(0o600),
        )?;
    }
    tree.file(
        b"sizes/zeros",
        &vec![0; 2_000_000],
        &Attributes::plain(0o644),
    )?;
    let sparse = vec![(0, noise(5000)), (30 << 20, noise(70_000))];
    tree.sparse(b"sizes/sparse", 40 << 20, sparse)?;
    let step = HUGE_BYTES / PIECES;
    let huge = vec![(17 * step, noise(4096)), (HUGE_BYTES - 4096, noise(4096))];
    tree.sparse(b"sizes/huge", HUGE_BYTES, huge)
}

fn links(tree: &mut Tree) -> Result<()> {
    let link = Attributes {
        time: (77, 1),
        ..Attributes::plain(0o777)
    };
    for (name, target) in [
        (&b"links/short"[..], b"../sizes/1".to_vec()),
        (b"links/long", b"x/".repeat(2047)),
        (b"links/block", vec![b'b'; 4032]),
        (b"links/odd", b"\xff\xfe".to_vec()),
    ] {
        tree.add(name, Content::Link(escaped(&target)), &target, &link)?;
    }
    let names = [&b"sizes/4097"[..], b"links/hard", b"hard"];
    for name in &names[1..] {
        tree.hard(name, names[0])?;
    }
    tree.inodes.push(names.iter().map(|n| escaped(n)).collect());
    let device = Attributes {
        owner: (0, 6),
        ..Attributes::plain(0o660)
    };
    for (name, content) in [
        ("devices/null", Content::Char(1, 3)),
        ("devices/largest", Content::Char(4095, 0xf_ffff)),
        ("devices/disk", Content::Block(259, 70_000)),
        ("devices/pipe", Content::Pipe),
    ] {
        tree.add(name.as_bytes(), content, &[], &device)?;
    }
    Ok(())
}

impl Tree {
    fn file(&mut self, path: &[u8], bytes: &[u8], attributes: &Attributes) -> Result<()> {
        let content = Content::File {
            bytes: bytes.len() as u64,
            hash: listing::hash(bytes.len() as u64, |at, into| {
                read(&[(0, bytes.to_vec())], at, into)
            })?,
        };
        self.add(path, content, bytes, attributes)
    }

    /// With a map of the form 1.0 of GNU tar: decimal numbers, one a line, in blocks before the content.
    fn sparse(&mut self, path: &[u8], bytes: u64, pieces: Pieces) -> Result<()> {
        let mut map = format!("{}\n", pieces.len() + 1);
        for (at, piece) in &pieces {
            map.push_str(&format!("{at}\n{}\n", piece.len()));
        }
        // A hole at the end is said with a piece of nothing.
        map.push_str(&format!("{bytes}\n0\n"));
        let mut body = map.into_bytes();
        body.resize(body.len().next_multiple_of(512), 0);
        for (_, piece) in &pieces {
            body.extend(piece);
        }
        let hash = listing::hash(bytes, |at, into| read(&pieces, at, into))?;
        let size = bytes.to_string();
        let pax: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", path),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        self.entry(
            path,
            &Content::File { bytes, hash },
            &body,
            &Attributes::plain(0o644),
            &pax,
        )
    }

    fn add(
        &mut self,
        path: &[u8],
        content: Content,
        body: &[u8],
        attributes: &Attributes,
    ) -> Result<()> {
        self.entry(path, &content, body, attributes, &[])
    }

    fn entry(
        &mut self,
        path: &[u8],
        content: &Content,
        body: &[u8],
        attributes: &Attributes,
        more: &[(&str, &[u8])],
    ) -> Result<()> {
        let Attributes {
            mode,
            owner,
            time,
            xattrs,
        } = attributes;
        let mtime = match time {
            // The fraction counts away from zero, as the sign is the whole number's.
            (s, n @ 1..) if *s < 0 => format!("-{}.{:09}", -(s + 1), 1_000_000_000 - n),
            (s, n) => format!("{s}.{n:09}"),
        };
        let names: Vec<_> = xattrs
            .iter()
            .map(|(n, _)| format!("SCHILY.xattr.{n}"))
            .collect();
        let attributes = names
            .iter()
            .zip(xattrs)
            .map(|(n, (_, v))| (n.as_str(), v.as_slice()));
        let all = [("mtime", mtime.as_bytes())].into_iter().chain(attributes);
        self.builder
            .append_pax_extensions(all.chain(more.iter().copied()))?;
        let mut header = Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(owner.0.into());
        header.set_gid(owner.1.into());
        let (kind, numbers, target) = match content {
            Content::Directory => (EntryType::Directory, (0, 0), false),
            Content::File { .. } => (EntryType::Regular, (0, 0), false),
            Content::Link(_) => (EntryType::Symlink, (0, 0), true),
            Content::Char(major, minor) => (EntryType::Char, (*major, *minor), false),
            Content::Block(major, minor) => (EntryType::Block, (*major, *minor), false),
            Content::Pipe => (EntryType::Fifo, (0, 0), false),
            Content::Socket => anyhow::bail!("no tar has sockets"),
        };
        header.set_entry_type(kind);
        header.set_device_major(u32::try_from(numbers.0)?)?;
        header.set_device_minor(u32::try_from(numbers.1)?)?;
        let name: &Path = OsStr::from_bytes(if path.is_empty() { b"./" } else { path }).as_ref();
        let appended = if target {
            header.set_size(0);
            let target: &Path = OsStr::from_bytes(body).as_ref();
            self.builder.append_link(&mut header, name, target)
        } else {
            header.set_size(body.len() as u64);
            self.builder.append_data(&mut header, name, body)
        };
        appended.with_context(|| format!("add {}", escaped(path)))?;
        let xattrs = xattrs.iter().map(|(n, v)| ((*n).to_owned(), hex(v)));
        let seen = Seen {
            content: content.clone(),
            mode: *mode,
            owner: *owner,
            time: *time,
            links: 1,
            same_as: None,
            xattrs: xattrs.map(|(n, v)| (escaped(n.as_bytes()), v)).collect(),
        };
        self.expected.0.insert(escaped(path), seen);
        Ok(())
    }

    fn hard(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        let (path_os, target_os) = (OsStr::from_bytes(path), OsStr::from_bytes(target));
        self.builder.append_link(&mut header, path_os, target_os)?;
        let seen = self.expected.0.get(&escaped(target)).context("a target")?;
        let seen = seen.clone();
        self.expected.0.insert(escaped(path), seen);
        Ok(())
    }

    /// Counts the links.
    fn finish(self) -> Result<(File, Listing)> {
        let Self {
            builder,
            mut expected,
            inodes,
        } = self;
        let mut links: BTreeMap<String, u64> = BTreeMap::new();
        for (path, seen) in &expected.0 {
            if seen.content == Content::Directory {
                *links.entry(path.clone()).or_default() += 2;
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                if !path.is_empty() {
                    *links.entry(parent.to_owned()).or_default() += 1;
                }
            }
        }
        for names in &inodes {
            for name in names {
                links.insert(name.clone(), names.len() as u64);
            }
        }
        for (path, count) in links {
            expected.0.get_mut(&path).context("it was added")?.links = count;
        }
        expected.group(inodes.into_iter());
        Ok((builder.into_inner()?, expected))
    }
}

/// What [`listing::hash`] reads of pieces.
fn read(pieces: &[(u64, Vec<u8>)], at: u64, into: &mut [u8]) -> io::Result<()> {
    into.fill(0);
    for (start, piece) in pieces {
        let (from, to) = (
            at.max(*start),
            (at + into.len() as u64).min(start + piece.len() as u64),
        );
        if from < to {
            let place = |n: u64| usize::try_from(n).map_err(io::Error::other);
            let source = place(from - start)?..place(to - start)?;
            into[place(from - at)?..place(to - at)?].copy_from_slice(&piece[source]);
        }
    }
    Ok(())
}

/// Bytes that do not compress, others for each length.
fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}
