//! Images: the `.flist` file, chunks, the map and packets of the chunk daemon, and what people pack.
//!
//! Owns: that what packs is read again, whole, and that what is read adds up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::time::Duration;

use ::flist::chunk::{Chunk, ChunkError, Encoding};
use ::flist::disk::DiskFormat;
use ::flist::format::Flist;
use ::flist::input::Input;
use ::flist::map::{Extent, Table};
use ::flist::pack::{Source, pack, pack_with};
use ::flist::seal::{Salt, TAG_BYTES};
use ::flist::store::{ChunkSink, NoStore};
use ::flist::trace::{Recorder, Trace};
use ::flist::wire::{FromNode, FromVmm, ToNode, ToVmm};
use ::flist::{BLOCK, DISK_BYTES_MAX};
use ::types::Digest;
use ::types::flist::ImageConfig;
use sha2::Digest as _;

use crate::Target;
use crate::choices::{Choices, Made};
use crate::files::{directory, file};

pub(crate) const TARGETS: [Target; 11] = [
    Target {
        name: "flist-chunk",
        bytes_max: 4096,
        run: chunk,
        seeds: chunks,
    },
    Target {
        name: "flist-columns",
        bytes_max: 8192,
        run: columns,
        seeds: columned,
    },
    Target {
        name: "flist-disk",
        bytes_max: 8192,
        run: disk,
        seeds: disks,
    },
    Target {
        name: "flist-format",
        bytes_max: 4096,
        run: format,
        seeds: flists,
    },
    Target {
        name: "flist-layers",
        bytes_max: 8192,
        run: layers,
        seeds: layered,
    },
    Target {
        name: "flist-map",
        bytes_max: 1024,
        run: map,
        seeds: maps,
    },
    Target {
        name: "flist-input",
        bytes_max: 8192,
        run: input,
        seeds: inputs,
    },
    Target {
        name: "flist-sealed",
        bytes_max: 8192,
        run: sealed,
        seeds: sealeds,
    },
    Target {
        name: "flist-tar",
        bytes_max: 8192,
        run: tar,
        seeds: tars,
    },
    Target {
        name: "flist-trace",
        bytes_max: 1024,
        run: trace,
        seeds: traces,
    },
    Target {
        name: "flist-wire",
        bytes_max: 1024,
        run: packet,
        seeds: packets,
    },
];

/// More metadata than this is unpacked by tests of its own, not a thousand times a second.
const METADATA_BYTES_MAX: u64 = 4 << 20;

fn format(input: &[u8]) {
    let mut file = Cursor::new(input);
    let Ok(flist) = Flist::read(&mut file) else {
        return;
    };
    let disk = flist.disk_bytes();
    assert!(disk <= DISK_BYTES_MAX && disk.is_multiple_of(BLOCK));
    assert!(flist.metadata_bytes() <= disk);
    let mut free_from = flist.metadata_bytes();
    for chunk in flist.chunks() {
        assert!(chunk.extent.start() >= free_from && chunk.extent.end() <= disk);
        let tag = if flist.is_encrypted() {
            TAG_BYTES as u64
        } else {
            0
        };
        assert!(u64::from(chunk.stored_bytes) <= chunk.extent.bytes() + tag);
        assert_eq!(chunk.key.is_some(), flist.is_encrypted());
        free_from = chunk.extent.end();
    }
    if flist.metadata_bytes() <= METADATA_BYTES_MAX {
        let mut out = Vec::new();
        if flist.copy_metadata(&mut file, &mut out).is_ok() {
            assert_eq!(out.len() as u64, flist.metadata_bytes());
        }
        assert!(out.len() as u64 <= flist.metadata_bytes());
    }
}

/// The first two bytes say how many blocks of metadata there are said to be, up to some segments.
fn columns(input: &[u8]) {
    let Some((blocks, mut rest)) = input.split_first_chunk() else {
        return;
    };
    let bytes = u64::from(u16::from_le_bytes(*blocks) % 600) * BLOCK;
    let mut out = Vec::new();
    match ::flist::columns::decode(&mut rest, bytes, &mut out) {
        Ok(()) => assert_eq!(out.len() as u64, bytes),
        Err(_) => assert!(out.len() as u64 <= bytes),
    }
}

/// A block without records, one with two entries, and one with two inodes and three entries.
fn columned() -> Vec<Vec<u8>> {
    let seed = |inodes: &[u32], entries: &[u32]| {
        let count = |records: &[u32]| u32::try_from(records.len()).expect("a few").to_le_bytes();
        let mut all = vec![1, 0];
        all.extend([count(inodes), count(entries)].concat());
        let mut records_bytes = 0;
        for (records, bytes) in [(inodes, 64), (entries, 12)] {
            let places: Vec<_> = records.iter().map(|place| place.to_le_bytes()).collect();
            all.extend((0..4).flat_map(|column| places.iter().map(move |place| place[column])));
            all.extend(vec![3; records.len() * bytes]);
            records_bytes += records.len() * bytes;
        }
        all.extend(vec![5; 4096 - records_bytes]);
        all
    };
    vec![
        seed(&[], &[]),
        seed(&[], &[0, 12]),
        seed(&[64, 400], &[128, 12, 700]),
    ]
}

fn flists() -> Vec<Vec<u8>> {
    let config = ImageConfig {
        cmd: vec!["/a".to_owned()],
        ..ImageConfig::default()
    };
    let salt = Salt::new([1; 32]);
    let mut all = Vec::new();
    for tar in tars() {
        for salt in [None, Some(&salt)] {
            let source = file(&tar);
            let source = Source::Tar(&source);
            let packed = pack_with(source, &config, salt, &mut NoStore, &mut |_| {});
            all.push(packed.expect("a good source").flist);
        }
    }
    all
}

/// A qcow2 image: it is refused, or it is a disk whose flist is read again.
fn disk(input: &[u8]) {
    let source = file(input);
    let source = Source::Disk(&source, DiskFormat::Qcow2);
    let config = ImageConfig::default();
    let Ok(packed) = pack(source, &config, &mut NoStore, &mut |_| {}) else {
        return;
    };
    let flist =
        Flist::read(&mut Cursor::new(&packed.flist)).expect("what was packed is read again");
    assert!(flist.is_disk() && flist.disk_bytes() == packed.stats.disk_bytes);
    // A cluster has 2 MiB at most, and 2 bytes of the file at least.
    assert!(packed.stats.content_bytes <= (input.len() as u64 / 2 + 1) << 21);
}

/// Images with clusters of 512 bytes: of both versions, with and without clusters of either kind.
fn disks() -> Vec<Vec<u8>> {
    let deflated = {
        let level = flate2::Compression::best();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(&[7; 512]).expect("memory");
        encoder.finish().expect("memory")
    };
    let zstd = zstd::bulk::compress(&[7; 512], 3).expect("memory");
    let image = |version: u32, kind: u8, packed: &[u8]| {
        let mut file = vec![0; 4 * 512];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &9u32.to_be_bytes());
        put(24, &(64u64 << 10).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        put(40, &512u64.to_be_bytes());
        if version == 3 {
            put(72, &(u64::from(kind) << 3).to_be_bytes());
            put(100, &112u32.to_be_bytes());
            put(104, &[kind]);
        }
        put(512, &(1024 | 1u64 << 63).to_be_bytes());
        put(1024, &(1536 | 1u64 << 63).to_be_bytes());
        put(1032, &(1u64 << 62 | 2048).to_be_bytes());
        put(1536, &[9; 512]);
        file.extend(packed);
        file
    };
    vec![
        image(2, 0, &deflated),
        image(3, 0, &deflated),
        image(3, 1, &zstd),
    ]
}

/// Stored bytes that have their name's hash, as a hostile packer makes them.
fn chunk(input: &[u8]) {
    let mut choices = Choices(input);
    let (blocks, encoding) = (choices.u16(), choices.u8());
    let stored = choices.rest();
    let chunk = Chunk {
        extent: Extent {
            start_block: 1,
            blocks: blocks.into(),
        },
        stored_bytes: u32::try_from(stored.len()).expect("an input is short"),
        encoding: if encoding & 1 == 0 {
            Encoding::Plain
        } else {
            Encoding::Zstd
        },
        plain: Digest([0; 32]),
        stored: Digest(blake3::hash(stored).into()),
        key: None,
    };
    assert!(chunk.open(stored).is_err(), "bytes without their hash");
}

fn chunks() -> Vec<Vec<u8>> {
    let plain = [7; 8192];
    let zstd = zstd::bulk::compress(&plain, 3).expect("memory");
    vec![
        Made::default().u16(2).u8(1).raw(&zstd).0,
        Made::default().u16(1).u8(0).raw(&plain[..3000]).0,
    ]
}

/// Bytes that are sealed with the key that their flist gives, whatever is in them: what gets past the hash and the tag.
fn sealed(input: &[u8]) {
    let mut choices = Choices(input);
    let (blocks, encoding, at) = (choices.u8(), choices.u8(), choices.u16());
    let encoded = choices.rest();
    let (key, mut stored) = Salt::new([1; 32]).sealed(encoded);
    let extent = Extent {
        start_block: 1,
        blocks: u32::from(blocks).max(1),
    };
    let length = usize::try_from(extent.bytes()).expect("a MiB at most");
    let encoding = match encoding & 1 {
        0 => Encoding::Plain,
        _ => Encoding::Zstd,
    };
    let expected = match encoding {
        Encoding::Plain => Some(encoded.to_vec()),
        Encoding::Zstd => zstd::bulk::decompress(encoded, length).ok(),
    };
    let expected = expected.filter(|plain| plain.len() == length);
    let hash = |bytes: &[u8]| Digest(blake3::hash(bytes).into());
    let mut chunk = Chunk {
        extent,
        stored_bytes: u32::try_from(stored.len()).expect("an input is short"),
        encoding,
        plain: hash(expected.as_deref().unwrap_or_default()),
        stored: hash(&stored),
        key: Some(key),
    };
    assert_eq!(chunk.open(&stored).ok(), expected);
    // With the right hash, and the wrong tag.
    let changed = usize::from(at) % stored.len();
    stored[changed] ^= 1;
    chunk.stored = hash(&stored);
    assert!(matches!(chunk.open(&stored), Err(ChunkError::Sealed(_))));
}

fn sealeds() -> Vec<Vec<u8>> {
    let plain = [7; 4096];
    let zstd = zstd::bulk::compress(&[7; 8192], 3).expect("memory");
    vec![
        Made::default().u8(1).u8(0).u16(9).raw(&plain).0,
        Made::default().u8(2).u8(1).u16(3).raw(&zstd).0,
        Made::default().u8(3).u8(1).u16(0).raw(&zstd).0,
    ]
}

/// Chunks of the flist that traces are read for.
const TRACED_CHUNKS: usize = 200;

fn trace(input: &[u8]) {
    let flist = Digest([1; 32]);
    let Ok(trace) = Trace::decode(input, &flist, TRACED_CHUNKS) else {
        return;
    };
    assert_eq!(trace.encode(), input);
    let mut seen = BTreeSet::new();
    for chunk in trace.chunks() {
        assert!((*chunk as usize) < TRACED_CHUNKS && seen.insert(*chunk));
    }
}

fn traces() -> Vec<Vec<u8>> {
    let of = |chunks: &[u32]| {
        let mut recorder = Recorder::default();
        let now = Duration::from_secs(1);
        chunks.iter().for_each(|chunk| recorder.touch(*chunk, now));
        recorder.finish(Digest([1; 32])).encode()
    };
    vec![of(&[]), of(&[5, 0, 199]), of(&[0, 1, 2, 3, 4, 5, 6, 7])]
}

fn map(input: &[u8]) {
    let Ok(table) = Table::decode(input) else {
        return;
    };
    assert!(table.map_bytes() <= input.len());
    assert_eq!(Table::decode(&table.encode()), Ok(table.clone()));
    let end = table.disk_bytes();
    assert_eq!(table.chunks_of(0..end), 0..table.chunks().len());
    for (index, chunk) in table.chunks().iter().enumerate() {
        assert_eq!(
            table.chunks_of(chunk.start()..chunk.end()),
            index..index + 1
        );
    }
}

pub(crate) fn maps() -> Vec<Vec<u8>> {
    let extents = [(1, 2), (3, 256), (300, 1)].map(|(start_block, blocks)| Extent {
        start_block,
        blocks,
    });
    let table = Table::new(400 * BLOCK, extents.to_vec()).expect("in order");
    let empty = Table::new(BLOCK, Vec::new()).expect("in order");
    vec![table.encode(), empty.encode()]
}

fn packet(input: &[u8]) {
    if let Ok(packet) = FromVmm::decode(input) {
        assert_eq!(packet.encode(), input);
    }
    if let Ok(packet) = ToVmm::decode(input) {
        assert_eq!(packet.encode(), input);
    }
    if let Ok(message) = serde_json::from_slice::<FromNode>(input) {
        let json = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<FromNode>(&json).ok(),
            Some(message)
        );
    }
    if let Ok(message) = serde_json::from_slice::<ToNode>(input) {
        let json = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(serde_json::from_slice::<ToNode>(&json).ok(), Some(message));
    }
}

fn packets() -> Vec<Vec<u8>> {
    let flist = Digest([1; 32]);
    let json = |message: &FromNode| serde_json::to_vec(message).expect("plain data");
    let answer = |message: &ToNode| serde_json::to_vec(message).expect("plain data");
    vec![
        FromVmm::Want(7).encode().to_vec(),
        ToVmm::Ready(7).encode().to_vec(),
        ToVmm::Hello.encode().to_vec(),
        json(&FromNode::Open {
            flist,
            store: Some("http://a/".into()),
            pin: true,
        }),
        json(&FromNode::Close { flist }),
        json(&FromNode::Started {
            vm: "web-shop-01010101".parse().expect("an id"),
        }),
        answer(&ToNode::Progress {
            flist,
            present: 1,
            total: 2,
        }),
        answer(&ToNode::OpenFailed {
            flist,
            error: "e".to_owned(),
        }),
    ]
}

/// Keeps what it is given.
#[derive(Default)]
struct Chunks(BTreeMap<Digest, Vec<u8>>);

impl ChunkSink for Chunks {
    fn put(&mut self, stored: &Digest, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(*stored, bytes.to_vec());
        Ok(())
    }
}

/// More content than this is not packed here: zeros are quickly said and slowly written.
const CONTENT_BYTES_MAX: u64 = 64 << 20;

/// What packs is an flist whose chunks are all there and open.
fn packs(source: Source<'_>, config: &ImageConfig) {
    let mut chunks = Chunks::default();
    let mut total = 0;
    let Ok(packed) = pack(source, config, &mut chunks, &mut |progress| {
        total = progress.total_bytes;
        assert!(progress.done_bytes <= total);
    }) else {
        return;
    };
    let mut file = Cursor::new(&packed.flist);
    let flist = Flist::read(&mut file).expect("what is packed is read");
    let content = packed.stats.content_bytes;
    // Of a disk, what is not zeros.
    assert!(content == total || flist.is_disk() && content <= flist.disk_bytes());
    assert_eq!(flist.config(), config);
    for chunk in flist.chunks() {
        chunk
            .open(&chunks.0[&chunk.stored])
            .expect("what is packed opens");
    }
    if flist.metadata_bytes() <= METADATA_BYTES_MAX {
        flist
            .copy_metadata(&mut file, &mut io::sink())
            .expect("what is packed unpacks");
    }
}

fn tar(input: &[u8]) {
    packs(Source::Tar(&file(input)), &ImageConfig::default());
}

/// A tar archive of regular files.
fn plain(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, *content)
            .expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// One entry of any type.
fn entry(name: &str, kind: ::tar::EntryType, link: &str) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o755);
    if !link.is_empty() {
        header.set_link_name(link).expect("short");
    }
    header.set_device_major(1).expect("a GNU header");
    header.set_device_minor(3).expect("a GNU header");
    builder
        .append_data(&mut header, name, io::empty())
        .expect("memory");
    // Without the two blocks that end an archive: more entries may follow.
    let mut whole = builder.into_inner().expect("memory");
    whole.truncate(whole.len() - 1024);
    whole
}

fn pax(name: &str, extensions: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions(extensions.iter().copied())
        .expect("memory");
    let mut header = ::tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, content)
        .expect("memory");
    builder.into_inner().expect("memory")
}

fn tars() -> Vec<Vec<u8>> {
    use ::tar::EntryType;
    let tree = [
        entry("d/", EntryType::Directory, ""),
        entry("d/s", EntryType::Symlink, "../f"),
        entry("null", EntryType::Char, ""),
        entry("pipe", EntryType::Fifo, ""),
        plain(&[("f", b"content"), ("d/g", &[7; 600])]),
    ]
    .concat();
    let mut map = b"2\n0\n512\n4096\n512\n".to_vec();
    map.resize(512, 0);
    map.resize(512 + 1024, 0xaa);
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"8192"),
    ];
    let attributes: [(&str, &[u8]); 2] = [("SCHILY.xattr.user.a", b"b"), ("mtime", b"7.5")];
    let mut linked = plain(&[("f", b"content")]);
    linked.truncate(linked.len() - 1024);
    linked.extend(entry("hard", EntryType::Link, "f"));
    vec![
        tree,
        pax("x", &sparse, &map),
        pax("x", &attributes, b"content"),
        linked,
        plain(&[(&format!("{}/long", "n".repeat(120)), b"name")]),
    ]
}

fn layers(input: &[u8]) {
    let mut choices = Choices(input);
    let lower = file(choices.long());
    let upper = file(choices.rest());
    packs(Source::Layers(&[lower, upper]), &ImageConfig::default());
}

fn layered() -> Vec<Vec<u8>> {
    let lower = plain(&[("etc/a", b"1"), ("etc/b", b"2"), ("opt/c", b"3")]);
    let upper = plain(&[("etc/.wh.a", b""), ("opt/.wh..wh..opq", b""), ("d", b"4")]);
    vec![Made::default().long(&lower).raw(&upper).0]
}

/// Any file as what a person hands over.
fn input(input: &[u8]) {
    let work = directory();
    let path = work.path().join("input");
    fs::write(&path, input).expect("memory");
    let Ok(input) = Input::open(&path, work.path()) else {
        return;
    };
    let length = |file: &File| file.metadata().map_or(0, |m| m.len());
    let unpacked = match &input {
        Input::Directory(_) => panic!("a file is no directory"),
        Input::Tar(file) | Input::Disk(file, _) => length(file),
        Input::Image(image) => image.layers.iter().map(length).sum(),
    };
    if unpacked <= CONTENT_BYTES_MAX {
        packs(input.source(), &input.config());
    }
}

const CONFIG: &str =
    r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["/a"],"Env":["A=b"],"Labels":null}}"#;

fn inputs() -> Vec<Vec<u8>> {
    let layer = plain(&[("a", b"new")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::bulk::compress(&layer, 3).expect("memory");
    let docker = plain(&[
        ("1/layer.tar", &gzip),
        ("c.json", CONFIG.as_bytes()),
        (
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["1/layer.tar"]}]"#,
        ),
    ]);
    let sha256 = |bytes: &[u8]| -> String {
        let digest = sha2::Sha256::digest(bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{}"}},"layers":[{{"digest":"sha256:{}"}}]}}"#,
        sha256(CONFIG.as_bytes()),
        sha256(&zstd)
    );
    let index = format!(
        r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}",
        "platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        sha256(manifest.as_bytes())
    );
    let path = |blob: &[u8]| format!("blobs/sha256/{}", sha256(blob));
    let oci = plain(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&path(manifest.as_bytes()), manifest.as_bytes()),
        (&path(CONFIG.as_bytes()), CONFIG.as_bytes()),
        (&path(&zstd), &zstd),
    ]);
    let whole = zstd::bulk::compress(&oci, 3).expect("memory");
    vec![docker, oci, whole, gzip, layer]
}
