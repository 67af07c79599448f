//! The flist format, read by a reader that was written from docs/flist-format.md alone.
//!
//! Owns: that reader, and a tree with one of everything that it has to find again.
//! Refuses: any type or constant of the library: only the packer is called, so that document and packer
//! cannot drift apart.
#![cfg(test)]

mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs::{self, File};
    use std::io::{Read, Seek, Write};
    use std::path::Path;

    use flist::disk::DiskFormat;
    use flist::pack::{Source, pack_with};
    use flist::seal::Salt;
    use flist::store::DirStore;
    use types::flist::ImageConfig;

    const BLOCK: usize = 4096;

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2")))
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4")) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8")))
            .expect("64 bits")
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// "The file": its configuration, and the whole disk with every chunk in its place.
    fn disk_of(file: &[u8], store: &Path) -> (String, Vec<u8>) {
        assert_eq!(&file[..8], b"SIFRFLS1");
        assert_eq!(u32_at(file, 8), 1);
        let flags = u32_at(file, 12);
        let row_bytes = match flags {
            2 | 4 => 80,
            3 | 5 => 112,
            other => panic!("flags {other}"),
        };
        let (disk_bytes, metadata_bytes, stored) =
            (u64_at(file, 16), u64_at(file, 24), u64_at(file, 32));
        let (config_bytes, count) = (u32_at(file, 40), u32_at(file, 44));
        assert_eq!(&file[48..64], &[0; 16]);
        let metadata_at = 64 + config_bytes;
        let table_at = metadata_at + stored;
        assert_eq!(file.len(), table_at + row_bytes * count);
        let config = String::from_utf8(file[64..metadata_at].to_vec()).expect("JSON");
        let metadata = match flags & 2 {
            0 => {
                let frame = zstd::decode_all(&file[metadata_at..table_at]).expect("a frame");
                turned(&frame, metadata_bytes)
            }
            _ => file[metadata_at..table_at].to_vec(),
        };
        assert_eq!(flags & 2 != 0, metadata.is_empty());
        assert_eq!(metadata.len(), metadata_bytes);
        let mut disk = vec![0; disk_bytes];
        disk[..metadata_bytes].copy_from_slice(&metadata);
        let mut free_from = metadata_bytes;
        for row in file[table_at..].chunks_exact(row_bytes) {
            let (start, bytes) = (u32_at(row, 0) * BLOCK, u32_at(row, 4) * BLOCK);
            assert!(start >= free_from && (1..=256 * BLOCK).contains(&bytes));
            free_from = start + bytes;
            let name = hex(&row[48..80]);
            let path = store.join("chunks").join(&name[..2]).join(&name[2..]);
            let stored = fs::read(path).expect("the chunk is there");
            assert_eq!(stored.len(), u32_at(row, 8));
            assert_eq!(hex(blake3::hash(&stored).as_bytes()), name);
            let stored = match &row[80..] {
                [] => stored,
                key => opened(key, stored),
            };
            let plain = match u32_at(row, 12) {
                0 => stored,
                1 => zstd::decode_all(&stored[..]).expect("a frame"),
                other => panic!("encoding {other}"),
            };
            assert_eq!(blake3::hash(&plain).as_bytes()[..], row[16..48]);
            assert!(
                plain.iter().any(|b| *b != 0),
                "a chunk of zeros is left out"
            );
            disk[start..start + bytes].copy_from_slice(&plain);
        }
        assert!(free_from <= disk_bytes);
        (config, disk)
    }

    /// "Columns": the metadata area.
    fn turned(mut columns: &[u8], bytes: usize) -> Vec<u8> {
        let mut take = |n: usize| columns.split_off(..n).expect("is there").to_vec();
        let mut area = Vec::new();
        while area.len() < bytes {
            let length = (bytes - area.len()).min(1 << 20);
            let (mut segment, mut free) = (vec![0; length], vec![true; length]);
            let (inodes, entries) = (u32_at(&take(4), 0), u32_at(&take(4), 0));
            for (n, wide, counting) in [(inodes, 64, 16..24), (entries, 12, 0..10)] {
                let (places, records) = (take(4 * n), take(wide * n));
                let distance = |k: usize| {
                    let byte = |column: usize| usize::from(places[column * n + k]);
                    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
                };
                let mut before = vec![0; wide];
                let mut at = 0;
                for k in 0..n {
                    at += distance(k);
                    for column in 0..wide {
                        let mut byte = records[column * n + k];
                        if counting.contains(&column) {
                            byte = byte.wrapping_add(before[column]);
                            before[column] = byte;
                        }
                        assert!(free[at + column], "records overlap");
                        free[at + column] = false;
                        segment[at + column] = byte;
                    }
                }
            }
            let places: Vec<_> = (0..length).filter(|at| free[*at]).collect();
            for (at, byte) in places.iter().zip(take(places.len())) {
                segment[*at] = byte;
            }
            area.extend(segment);
        }
        assert!(columns.is_empty());
        area
    }

    /// "Whole disks": where its chunks are.
    #[test]
    fn a_whole_disk_is_cut_as_the_document_says() {
        let work = tempfile::tempdir().expect("temp");
        let mut disk = vec![0; (3 << 19) + 700];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[5 * BLOCK..90 * BLOCK].fill(7);
        disk[100 * BLOCK] = 1;
        // From the second piece into the third.
        disk[(1 << 20) - 1] = 1;
        disk[1 << 20] = 2;
        let end = disk.len();
        disk[end - 1] = 3;
        let path = work.path().join("disk");
        fs::write(&path, &disk).expect("write");
        let file = File::open(&path).expect("open");
        disk.resize(end.next_multiple_of(BLOCK), 0);
        for salt in [None, Some(Salt::new([4; 32]))] {
            let mut store = DirStore::open(work.path().join("store")).expect("a store");
            let source = Source::Disk(&file, DiskFormat::Raw);
            let config = ImageConfig::default();
            let packed = pack_with(source, &config, salt.as_ref(), &mut store, &mut |_| {});
            let flist = packed.expect("packs").flist;
            let (_, back) = disk_of(&flist, &work.path().join("store"));
            assert!(back == disk);
            let row_bytes = if salt.is_some() { 112 } else { 80 };
            let rows = flist[flist.len() - 4 * row_bytes..].chunks_exact(row_bytes);
            let places: Vec<_> = rows.map(|row| (u32_at(row, 0), u32_at(row, 4))).collect();
            assert_eq!(places, [(0, 101), (255, 1), (256, 1), (384, 1)]);
        }
    }

    /// "Encrypted chunks".
    fn opened(key: &[u8], mut stored: Vec<u8>) -> Vec<u8> {
        use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"));
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let plain = key.open_in_place(nonce, Aad::empty(), &mut stored);
        plain.expect("the tag is right").to_vec()
    }

    /// "The metadata area": every path with all that can be seen of it.
    struct Reader<'a> {
        disk: &'a [u8],
        found: BTreeMap<Vec<u8>, String>,
        /// Inode number to the place where it was met and its serial number.
        inodes: BTreeMap<usize, usize>,
    }

    impl Reader<'_> {
        fn superblock(&self) -> usize {
            let s = &self.disk[1024..1152];
            assert_eq!(u32_at(s, 0), 0xe0f5_e1e2);
            assert_eq!((u32_at(s, 8), s[12]), (2, 12));
            assert_eq!(u32_at(s, 36) * BLOCK, self.disk.len());
            let known = [0..4, 8..13, 14..24, 36..40];
            for (at, byte) in s.iter().enumerate() {
                assert!(*byte == 0 || known.iter().any(|k| k.contains(&at)), "{at}");
            }
            u16_at(s, 14)
        }

        fn walk(&mut self, number: usize, path: Vec<u8>, parent: usize) {
            let at = number * 32;
            let inode = &self.disk[at..at + 64];
            let (inline, xattrs) = match u16_at(inode, 0) {
                1 => (false, u16_at(inode, 2)),
                5 => (true, u16_at(inode, 2)),
                other => panic!("inode of form {other}"),
            };
            let (mode, size) = (u16_at(inode, 4), u64_at(inode, 8));
            let xattr_bytes = if xattrs == 0 {
                0
            } else {
                12 + (xattrs - 1) * 4
            };
            let body = at + 64;
            let inline_at = body + xattr_bytes;
            let attributes = self.attributes(body, xattr_bytes);
            let content_at = if inline {
                assert_eq!(at / BLOCK, (inline_at + size - 1) / BLOCK, "it crosses");
                inline_at
            } else {
                u32_at(inode, 16) * BLOCK
            };
            let device = {
                let n = u32_at(inode, 16);
                format!("{}:{}", n >> 8 & 0xfff, n & 0xff | n >> 12 & 0xf_ff00)
            };
            let content = |disk: &[u8]| disk[content_at..content_at + size].to_vec();
            let what = match mode >> 12 {
                4 => "directory".to_owned(),
                8 => format!(
                    "file {size} {}",
                    blake3::hash(&content(self.disk)).to_hex().as_str()
                ),
                10 => format!("link {}", String::from_utf8_lossy(&content(self.disk))),
                2 => format!("char {device}"),
                6 => format!("block {device}"),
                1 => "pipe".to_owned(),
                12 => "socket".to_owned(),
                other => panic!("type {other}"),
            };
            let seconds = i64::from_le_bytes(inode[32..40].try_into().expect("8"));
            let line = format!(
                "{what} {:o} {}:{} {seconds}.{:09} links {} {attributes}",
                mode & 0o7777,
                u32_at(inode, 24),
                u32_at(inode, 28),
                u32_at(inode, 40),
                u32_at(inode, 44),
            );
            self.found.insert(path.clone(), line);
            self.inodes.insert(number, u32_at(inode, 20));
            if mode >> 12 == 4 {
                self.directory(&content(self.disk), number, &path, parent);
            }
        }

        fn directory(&mut self, content: &[u8], number: usize, path: &[u8], parent: usize) {
            let mut last: Option<Vec<u8>> = None;
            for block in content.chunks(BLOCK) {
                let count = u16_at(block, 8) / 12;
                for i in 0..count {
                    let (child, from) = (u64_at(block, i * 12), u16_at(block, i * 12 + 8));
                    let to = if i + 1 < count {
                        u16_at(block, i * 12 + 20)
                    } else {
                        let end = block[from..].iter().position(|b| *b == 0);
                        end.map_or(block.len(), |end| from + end)
                    };
                    let name = block[from..to].to_vec();
                    assert!(last.as_ref().is_none_or(|last| *last < name), "sorted");
                    last = Some(name.clone());
                    let mode = u16_at(self.disk, child * 32 + 4) >> 12;
                    let types = [(8, 1), (4, 2), (2, 3), (6, 4), (1, 5), (12, 6), (10, 7)];
                    let kind = usize::from(block[i * 12 + 10]);
                    assert!(types.contains(&(mode, kind)), "{mode} {kind}");
                    match &name[..] {
                        b"." => assert_eq!(child, number),
                        b".." => assert_eq!(child, parent),
                        _ => self.walk(child, [path, b"/", &name].concat(), number),
                    }
                }
            }
        }

        fn attributes(&self, mut at: usize, bytes: usize) -> String {
            let (end, mut out) = (at + bytes, BTreeMap::new());
            at += 12;
            while bytes > 0 && at < end {
                let (length, prefix) = (usize::from(self.disk[at]), self.disk[at + 1]);
                let size = u16_at(self.disk, at + 2);
                let prefix = match prefix {
                    1 => "user.",
                    2 => "system.posix_acl_access",
                    3 => "system.posix_acl_default",
                    4 => "trusted.",
                    6 => "security.",
                    other => panic!("prefix {other}"),
                };
                let name = String::from_utf8_lossy(&self.disk[at + 4..at + 4 + length]);
                let value = &self.disk[at + 4 + length..at + 4 + length + size];
                out.insert(format!("{prefix}{name}"), hex(value));
                at += (4 + length + size).next_multiple_of(4);
            }
            format!("{out:?}")
        }
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new_keyed(&[seed; 32])
            .finalize_xof()
            .fill(&mut out);
        out
    }

    /// A tar of all this, and what the reader has to find.
    #[derive(Default)]
    struct Made {
        tar: Vec<u8>,
        expected: BTreeMap<Vec<u8>, String>,
    }

    struct Attributes<'a> {
        mode: u32,
        owner: (u64, u64),
        time: (&'a str, &'a str),
        links: u32,
        xattrs: &'a [(&'a str, &'a [u8])],
    }

    const PLAIN: Attributes<'static> = Attributes {
        mode: 0o644,
        owner: (0, 0),
        time: ("0", "0.000000000"),
        links: 1,
        xattrs: &[],
    };

    impl Made {
        fn add(&mut self, path: &str, kind: tar::EntryType, content: &[u8], a: &Attributes<'_>) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut pax: Vec<(String, Vec<u8>)> = vec![("mtime".into(), a.time.0.into())];
            for (name, value) in a.xattrs {
                pax.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
            }
            let pax = pax.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
            builder.append_pax_extensions(pax).expect("memory");
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(a.mode);
            header.set_uid(a.owner.0);
            header.set_gid(a.owner.1);
            let (mut data, mut what) = (content, String::new());
            match kind {
                tar::EntryType::Regular => {
                    what = format!("file {} {}", content.len(), blake3::hash(content).to_hex());
                }
                tar::EntryType::Symlink => {
                    let target = str::from_utf8(content).expect("text");
                    header.set_link_name(target).expect("short");
                    (data, what) = (&[], format!("link {target}"));
                }
                tar::EntryType::Link => {
                    let target = str::from_utf8(content).expect("text");
                    header.set_link_name(target).expect("short");
                    data = &[];
                }
                tar::EntryType::Char | tar::EntryType::Block => {
                    let (major, minor) = (u32::from(content[0]), u32::from(content[1]) << 8 | 7);
                    header.set_device_major(major).expect("ustar");
                    header.set_device_minor(minor).expect("ustar");
                    let kind = if kind == tar::EntryType::Char {
                        "char"
                    } else {
                        "block"
                    };
                    (data, what) = (&[], format!("{kind} {major}:{minor}"));
                }
                tar::EntryType::Fifo => what = "pipe".to_owned(),
                tar::EntryType::Directory => what = "directory".to_owned(),
                other => panic!("{other:?}"),
            }
            header.set_size(data.len() as u64);
            builder
                .append_data(&mut header, path, data)
                .expect("memory");
            let mut bytes = builder.into_inner().expect("memory");
            // Without the two blocks that end an archive.
            bytes.truncate(bytes.len() - 1024);
            self.tar.extend(bytes);
            let name = match path.trim_end_matches('/') {
                "." => Vec::new(),
                path => [b"/", path.as_bytes()].concat(),
            };
            if what.is_empty() {
                let same = [b"/", content].concat();
                self.expected.insert(name, self.expected[&same].clone());
                return;
            }
            let xattrs: BTreeMap<_, _> = a.xattrs.iter().map(|(n, v)| (*n, hex(v))).collect();
            let line = format!(
                "{what} {:o} {}:{} {} links {} {xattrs:?}",
                a.mode, a.owner.0, a.owner.1, a.time.1, a.links
            );
            self.expected.insert(name, line);
        }
    }

    fn one_of_everything() -> Made {
        use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
        let mut made = Made::default();
        let directory = |links| Attributes {
            mode: 0o755,
            links,
            ..PLAIN
        };
        made.add("./", Directory, b"", &directory(4));
        made.add("d/", Directory, b"", &directory(3));
        made.add("d/e/", Directory, b"", &directory(2));
        made.add("many/", Directory, b"", &directory(2));
        for i in 0..500 {
            made.add(&format!("many/entry {i}"), Regular, b"", &PLAIN);
        }
        let owned = Attributes {
            mode: 0o4751,
            owner: (70_000, 5),
            time: ("1000000007.123456789", "1000000007.123456789"),
            links: 3,
            xattrs: &[
                ("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0]),
                ("system.posix_acl_access", &[2, 0, 0, 0]),
                ("trusted.x", b""),
                ("user.lines", b"a\n12 path=evil\n"),
                ("user.long", &[0x61; 3000]),
            ],
        };
        made.add("d/small", Regular, &noise(1, 5000), &owned);
        made.add("hard", Link, b"d/small", &PLAIN);
        made.add("d/e/hard", Link, b"d/small", &PLAIN);
        let early = Attributes {
            time: ("-1.25", "-2.750000000"),
            ..PLAIN
        };
        made.add("large", Regular, &noise(2, 1_300_000), &early);
        made.add("even", Regular, &[b'x'; 8192], &PLAIN);
        made.add("zeros", Regular, &[0; 700_000], &PLAIN);
        made.add("!before the dot", Regular, b"1", &PLAIN);
        made.add("link", Symlink, b"d/small", &PLAIN);
        made.add("pipe", Fifo, b"", &PLAIN);
        made.add("null", Char, &[1, 0], &PLAIN);
        made.add("disk", Block, &[8, 3], &PLAIN);
        made
    }

    #[test]
    fn a_reader_written_from_the_document_finds_every_file_with_all_its_attributes() {
        finds_everything(None);
    }

    #[test]
    fn a_reader_written_from_the_document_opens_encrypted_chunks() {
        finds_everything(Some(&Salt::new([3; 32])));
    }

    fn finds_everything(salt: Option<&Salt>) {
        let work = tempfile::tempdir().expect("temp");
        let made = one_of_everything();
        let mut tar: File = tempfile::tempfile().expect("file");
        tar.write_all(&made.tar).expect("write");
        tar.rewind().expect("seek");
        let mut store = DirStore::open(work.path()).expect("store");
        let config = ImageConfig {
            cmd: vec!["/bin/app".to_owned(), "-v".to_owned()],
            user: "web".to_owned(),
            ..ImageConfig::default()
        };
        let packed = pack_with(Source::Tar(&tar), &config, salt, &mut store, &mut |_| {});
        let packed = packed.expect("packs");
        store
            .put_flist(&packed.digest, &packed.flist)
            .expect("stored");
        let name = format!("{}.flist", hex(blake3::hash(&packed.flist).as_bytes()));
        let mut file = Vec::new();
        File::open(work.path().join(name))
            .and_then(|mut f| f.read_to_end(&mut file))
            .expect("it is named by its digest");
        let (config, disk) = disk_of(&file, work.path());
        assert_eq!(config, r#"{"Cmd":["/bin/app","-v"],"User":"web"}"#);
        let mut reader = Reader {
            disk: &disk,
            found: BTreeMap::new(),
            inodes: BTreeMap::new(),
        };
        let root = reader.superblock();
        reader.walk(root, Vec::new(), root);
        for (path, what) in &made.expected {
            let shown = String::from_utf8_lossy(path);
            assert_eq!(reader.found.get(path), Some(what), "{shown}");
        }
        assert_eq!(reader.found.len(), made.expected.len());
        // Inodes lie in the order of their serial numbers, from 1.
        let serials: Vec<usize> = reader.inodes.values().copied().collect();
        assert_eq!(
            serials,
            (1..=reader.inodes.len()).collect::<Vec<_>>(),
            "canonical order"
        );
        assert_eq!(u64_at(&disk, 1024 + 16), reader.inodes.len());
        let links: BTreeSet<_> = ["/hard", "/d/e/hard", "/d/small"]
            .map(|p| reader.found[p.as_bytes()].clone())
            .into();
        assert_eq!(links.len(), 1);
    }
}
