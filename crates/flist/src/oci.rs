//! Container images on this machine: what `docker save`, `podman save`, `skopeo copy oci-archive:` and
//! `oci:` write.
//!
//! Owns: finding the image's configuration and layers in an archive or a layout, choosing linux/amd64,
//! and unpacking layers into unnamed temporary files.
//! Refuses: several images in one, other platforms, layers that unpack without end, and whatever does not have
//! the digest that the image names it by: of an OCI image each blob, of a Docker archive what its layers unpack
//! to. That finds what was damaged or mixed up; who may change an archive may change its digests as well.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};
use types::flist::ImageConfig;

use crate::archive::Headers;
use crate::compressed::{self, Room};
use crate::tree::{DETAIL_BYTES_MAX, NODES_MAX};

/// Longest manifest, index or configuration.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// Most layers of an image (Docker's own limit is 127).
const LAYERS_MAX: usize = 512;
/// Indexes inside indexes.
const DEPTH_MAX: usize = 4;
/// Indexes on one level: an archive of one image has one.
const INDEXES_MAX: usize = 16;
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("image cannot be read")]
    Read(#[source] io::Error),
    #[error("image does not have {0:?}, which its manifest names")]
    Missing(String),
    #[error("{name:?} in the image is not valid")]
    Json {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0:?} in the image is too long")]
    Large(String),
    #[error("this holds {0} images for linux/amd64: save exactly one")]
    Images(usize),
    #[error("image is for {os}/{architecture}, and this node runs linux/amd64: save that platform")]
    Platform { os: String, architecture: String },
    #[error("image names {0:?}, which is no sha256 digest")]
    Digest(String),
    #[error(
        "{name:?} in the image has the digest sha256:{actual}, and the image says {expected}: it is damaged, save it again"
    )]
    Damaged {
        name: String,
        expected: String,
        actual: String,
    },
    #[error("layer {name:?} cannot be unpacked")]
    Layer {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// Which form an image came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A tar with `manifest.json`: `docker save`, `podman save`, `skopeo copy docker-archive:`.
    DockerArchive,
    /// A tar with `oci-layout`: `skopeo copy oci-archive:`, `buildah push oci-archive:`.
    OciArchive,
    /// A directory with `oci-layout`: `skopeo copy oci:`, `umoci`.
    OciLayout,
}

/// An image to pack: its layers are for [`crate::pack::Source::Layers`].
#[derive(Debug)]
pub struct Image {
    pub form: Form,
    pub config: ImageConfig,
    /// Uncompressed tar archives, the lowest first.
    pub layers: Vec<File>,
}

/// Opens an image archive. `None`: the tar is none, so it is a file tree itself. Layers are unpacked into
/// unnamed files in `spool`, which needs room for them.
pub fn open_archive(file: &File, spool: &Path) -> Result<Option<Image>, OciError> {
    let members = Members::read(file)?;
    if let Some(manifests) = members.docker_manifests()? {
        return docker(&members, manifests, spool).map(Some);
    }
    if members.contains("oci-layout") {
        return oci(Form::OciArchive, &members, spool).map(Some);
    }
    Ok(None)
}

/// Opens a directory that is an OCI image layout (see [`is_layout`]).
pub fn open_layout(directory: &Path, spool: &Path) -> Result<Image, OciError> {
    oci(Form::OciLayout, &Members::Layout(directory), spool)
}

/// Whether a directory says that it is an OCI image layout, and has what one needs.
pub fn is_layout(directory: &Path) -> bool {
    directory.join("oci-layout").is_file()
        && directory.join("index.json").is_file()
        && directory.join("blobs").is_dir()
}

fn docker(
    members: &Members<'_>,
    manifests: Vec<DockerManifest>,
    spool: &Path,
) -> Result<Image, OciError> {
    let count = manifests.len();
    let one = <[DockerManifest; 1]>::try_from(manifests).map_err(|_| OciError::Images(count))?;
    let [DockerManifest { config, layers }] = one;
    let config = Blob {
        path: config,
        digest: None,
    };
    let blob = |path| Blob { path, digest: None };
    let layers: Vec<_> = layers.unwrap_or_default().into_iter().map(blob).collect();
    image(Form::DockerArchive, members, &config, &layers, spool)
}

fn oci(form: Form, members: &Members<'_>, spool: &Path) -> Result<Image, OciError> {
    let manifest = oci_manifest(members)?;
    let layers = manifest
        .layers
        .iter()
        .map(Descriptor::blob)
        .collect::<Result<Vec<_>, _>>()?;
    image(form, members, &manifest.config.blob()?, &layers, spool)
}

fn image(
    form: Form,
    members: &Members<'_>,
    config: &Blob,
    layers: &[Blob],
    spool: &Path,
) -> Result<Image, OciError> {
    if layers.len() > LAYERS_MAX {
        return Err(OciError::Large("manifest".to_owned()));
    }
    let (config, unpacked) = members.config(config)?;
    // Where there is one for each: old archives have none.
    let unpacked = unpacked.filter(|digests| digests.len() == layers.len());
    let mut room = Room::of_an_image();
    let mut files = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let unpacked = unpacked.as_ref().map(|digests| &digests[index]);
        files.push(members.layer(layer, unpacked, spool, &mut room)?);
    }
    Ok(Image {
        form,
        config,
        layers: files,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    /// `null` where an image has none.
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A part of an image, and the digest that it must have, in hexadecimal.
#[derive(Debug)]
struct Blob {
    path: String,
    digest: Option<String>,
}

/// The hexadecimal digits of a SHA-256 digest, which every registry has (OCI image-spec, `descriptor.md`).
fn sha256(digest: &str) -> Result<&str, OciError> {
    let digits = |hex: &&str| {
        let digit = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        hex.len() == 64 && hex.bytes().all(digit)
    };
    let hex = digest.strip_prefix("sha256:").filter(digits);
    hex.ok_or_else(|| OciError::Digest(digest.to_owned()))
}

fn compare(name: &str, expected: &str, hasher: Sha256) -> Result<(), OciError> {
    let actual: String = hasher
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if actual == expected {
        return Ok(());
    }
    Err(OciError::Damaged {
        name: name.to_owned(),
        expected: format!("sha256:{expected}"),
        actual,
    })
}

impl Descriptor {
    /// Where a layout keeps it.
    fn blob(&self) -> Result<Blob, OciError> {
        let hex = sha256(&self.digest)?;
        Ok(Blob {
            path: format!("blobs/sha256/{hex}"),
            digest: Some(hex.to_owned()),
        })
    }

    fn is_index(&self) -> bool {
        self.media_type.contains("image.index") || self.media_type.contains("manifest.list")
    }

    /// Without a platform it may be ours; attestations say `unknown`.
    fn may_be_ours(&self) -> bool {
        self.platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == "amd64")
    }
}

/// The one manifest for linux/amd64 below `index.json`.
fn oci_manifest(members: &Members<'_>) -> Result<Manifest, OciError> {
    let mut indexes = vec![Blob {
        path: "index.json".to_owned(),
        digest: None,
    }];
    let mut found = Vec::new();
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for blob in indexes {
            let index: Index = members.json(&blob)?;
            for descriptor in index.manifests.iter().filter(|d| d.may_be_ours()) {
                let list = if descriptor.is_index() {
                    &mut next
                } else {
                    &mut found
                };
                list.push(descriptor.blob()?);
            }
        }
        indexes = next;
        if indexes.is_empty() || indexes.len() > INDEXES_MAX {
            break;
        }
    }
    if !indexes.is_empty() {
        return Err(OciError::Large("index.json".to_owned()));
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    found.dedup_by(|a, b| a.path == b.path);
    let count = found.len();
    let [one] = <[Blob; 1]>::try_from(found).map_err(|_| OciError::Images(count))?;
    members.json(&one)
}

/// The parts of an image configuration that matter here.
#[derive(Deserialize)]
struct Configuration {
    os: Option<String>,
    architecture: Option<String>,
    #[serde(default)]
    config: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    /// Of what the layers unpack to, the lowest first.
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Clone)]
enum Member {
    At {
        offset: u64,
        bytes: u64,
    },
    /// Older archives share layers by links.
    Link(String),
}

/// The named parts of an image.
enum Members<'a> {
    /// What is where in a tar.
    Archive {
        file: &'a File,
        members: BTreeMap<String, Member>,
    },
    /// Files below a directory.
    Layout(&'a Path),
}

impl<'a> Members<'a> {
    fn read(file: &'a File) -> Result<Self, OciError> {
        let mut members = BTreeMap::new();
        let headers = Headers::of(file).map_err(OciError::Read)?;
        let mut archive = Archive::new(&headers);
        let mut names_bytes = 0;
        for entry in archive.entries_with_seek().map_err(OciError::Read)? {
            let entry = entry.map_err(OciError::Read)?;
            headers.next();
            names_bytes += entry.path_bytes().len();
            if members.len() >= NODES_MAX || names_bytes > DETAIL_BYTES_MAX {
                return Err(OciError::Large("the list of what is in it".to_owned()));
            }
            let Ok(path) = std::str::from_utf8(&entry.path_bytes()).map(normal) else {
                continue;
            };
            let target = entry
                .link_name_bytes()
                .map(|t| String::from_utf8_lossy(&t).into_owned());
            let member = match (entry.header().entry_type(), target) {
                (EntryType::Regular | EntryType::Continuous, _) => Member::At {
                    offset: entry.raw_file_position(),
                    bytes: entry.size(),
                },
                (EntryType::Link, Some(target)) => Member::Link(normal(&target)),
                (EntryType::Symlink, Some(target)) => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    Member::Link(normal(&format!("{parent}/{target}")))
                }
                _ => continue,
            };
            members.insert(path, member);
        }
        Ok(Self::Archive { file, members })
    }

    fn contains(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// What a Docker archive says it holds. `None`: it is none. A tree may well have a file
    /// `manifest.json` of its own, so it counts only with the two fields of every such archive.
    fn docker_manifests(&self) -> Result<Option<Vec<DockerManifest>>, OciError> {
        const NAME: &str = "manifest.json";
        if !self.contains(NAME) {
            return Ok(None);
        }
        let has_both = |image: &serde_json::Value| {
            image.get("Config").is_some() && image.get("Layers").is_some()
        };
        let blob = Blob {
            path: NAME.to_owned(),
            digest: None,
        };
        match self.json::<Vec<serde_json::Value>>(&blob) {
            Ok(images) if !images.is_empty() && images.iter().all(has_both) => {
                self.json(&blob).map(Some)
            }
            Ok(_) | Err(_) => Ok(None),
        }
    }

    fn open(&self, name: &str) -> Result<Section, OciError> {
        let missing = || OciError::Missing(name.to_owned());
        let (file, members) = match self {
            Self::Archive { file, members } => (file, members),
            Self::Layout(directory) => {
                let file =
                    File::open(directory.join(normal(name))).map_err(|e| match e.kind() {
                        io::ErrorKind::NotFound => missing(),
                        _ => OciError::Read(e),
                    })?;
                let metadata = file.metadata().map_err(OciError::Read)?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                return Ok(Section {
                    file,
                    at: 0,
                    end: metadata.len(),
                });
            }
        };
        let mut member = members.get(&normal(name)).ok_or_else(missing)?;
        if let Member::Link(target) = member {
            member = members.get(target).ok_or_else(missing)?;
        }
        match member {
            Member::At { offset, bytes } => Ok(Section {
                file: file.try_clone().map_err(OciError::Read)?,
                at: *offset,
                end: offset.saturating_add(*bytes),
            }),
            Member::Link(_) => Err(missing()),
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, blob: &Blob) -> Result<T, OciError> {
        let name = &blob.path;
        let mut section = self.open(name)?;
        if section.end - section.at > JSON_BYTES_MAX {
            return Err(OciError::Large(name.to_owned()));
        }
        let mut text = Vec::new();
        section.read_to_end(&mut text).map_err(OciError::Read)?;
        if let Some(expected) = &blob.digest {
            compare(name, expected, Sha256::new_with_prefix(&text))?;
        }
        serde_json::from_slice(&text).map_err(|source| OciError::Json {
            name: name.to_owned(),
            source,
        })
    }

    /// And the digests of what the layers unpack to.
    fn config(&self, blob: &Blob) -> Result<(ImageConfig, Option<Vec<String>>), OciError> {
        let Configuration {
            os,
            architecture,
            config,
            rootfs,
        } = self.json(blob)?;
        let os = os.unwrap_or_else(|| "linux".to_owned());
        let architecture = architecture.unwrap_or_else(|| "amd64".to_owned());
        if os != "linux" || architecture != "amd64" {
            return Err(OciError::Platform { os, architecture });
        }
        // Docker writes `null` for what is not set.
        let mut config = config.unwrap_or_default();
        config.retain(|_, value| !value.is_null());
        let json = |source| OciError::Json {
            name: blob.path.clone(),
            source,
        };
        let config = serde_json::from_value(config.into()).map_err(json)?;
        Ok((config, rootfs.map(|rootfs| rootfs.diff_ids)))
    }

    /// A layer as an uncompressed tar in a file of its own; how it is compressed is seen from its start.
    /// Either digest says all: the layer is hashed once.
    fn layer(
        &self,
        blob: &Blob,
        unpacked: Option<&String>,
        spool: &Path,
        room: &mut Room,
    ) -> Result<File, OciError> {
        let name = &blob.path;
        let failed = |source| OciError::Layer {
            name: name.to_owned(),
            source,
        };
        let mut section = Hashed {
            from: self.open(name)?,
            hasher: blob.digest.as_ref().map(|_| Sha256::new()),
        };
        let wanted = unpacked.filter(|_| blob.digest.is_none());
        let mut content = wanted.map(|_| Sha256::new());
        let file = compressed::unpack(&mut section, spool, room, &mut |piece| {
            if let Some(hasher) = &mut content {
                hasher.update(piece);
            }
        })
        .map_err(failed)?;
        // What a decoder leaves behind its end is the blob's as well.
        io::copy(&mut section, &mut io::sink()).map_err(failed)?;
        if let (Some(expected), Some(hasher)) = (&blob.digest, section.hasher) {
            compare(name, expected, hasher)?;
        }
        if let (Some(expected), Some(hasher)) = (wanted, content) {
            compare(name, sha256(expected)?, hasher)?;
        }
        Ok(file)
    }
}

/// A path without `.`, `..` and doubled slashes, which cannot lead out of the archive.
fn normal(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join("/")
}

/// Hashes what is read.
struct Hashed {
    from: Section,
    hasher: Option<Sha256>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// A piece of the archive.
struct Section {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{Source, pack};
    use crate::store::NoStore;
    use std::io::Write;
    use tempfile::TempDir;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, *content)
                .expect("memory");
        }
        builder.into_inner().expect("memory")
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("write");
        file
    }

    const CONFIG: &str = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"},
        "config":{"Entrypoint":null,"Cmd":["/bin/app","-x"],"Env":["PATH=/bin"],"User":"web","Labels":null}}"#;

    fn open(archive: &[u8]) -> Result<Option<Image>, OciError> {
        let spool = TempDir::new().expect("temp");
        open_archive(&file(archive), spool.path())
    }

    fn assert_packs_to_the_merge(image: &Image) {
        assert_eq!(image.config.cmd, ["/bin/app", "-x"]);
        assert_eq!(image.config.user, "web");
        assert!(image.config.entrypoint.is_empty());
        let digest = |source| {
            pack(source, &ImageConfig::default(), &mut NoStore, &mut |_| {})
                .expect("packs")
                .digest
        };
        let flat = file(&tar(&[("bin/app", b"new")]));
        assert_eq!(
            digest(Source::Layers(&image.layers)),
            digest(Source::Tar(&flat))
        );
    }

    fn layers() -> (Vec<u8>, Vec<u8>) {
        let lower = tar(&[("bin/app", b"old"), ("etc/gone", b"x")]);
        (lower, tar(&[("bin/app", b"new"), (".wh.etc", b"")]))
    }

    #[test]
    fn a_docker_archive_gives_configuration_and_layers() {
        let (lower, upper) = layers();
        let manifest =
            br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
        let archive = tar(&[
            ("1/layer.tar", &lower),
            ("2/layer.tar", &upper),
            ("c.json", CONFIG.as_bytes()),
            ("manifest.json", manifest),
        ]);
        assert_packs_to_the_merge(&open(&archive).expect("valid").expect("an image"));
    }

    #[test]
    fn an_oci_archive_gives_the_manifest_of_this_platform_whatever_the_compression() {
        let (lower, upper) = layers();
        let zstd = zstd::encode_all(&upper[..], 1).expect("zstd");
        let gzip = gzip(&lower);
        let (other, config) = ("0".repeat(64), hex(CONFIG.as_bytes()));
        let manifest = format!(
            r#"{{"config":{{"digest":"sha256:{config}"}},"layers":[
            {{"digest":"sha256:{}","mediaType":"application/vnd.oci.image.layer.v1.tar+gzip"}},
            {{"digest":"sha256:{}","mediaType":"application/vnd.oci.image.layer.v1.tar+zstd"}}]}}"#,
            hex(&gzip),
            hex(&zstd)
        );
        let nested = format!(
            r#"{{"manifests":[
            {{"digest":"sha256:{other}","platform":{{"os":"linux","architecture":"arm64"}}}},
            {{"digest":"sha256:{}","platform":{{"os":"linux","architecture":"amd64"}}}},
            {{"digest":"sha256:{other}","platform":{{"os":"unknown","architecture":"unknown"}}}}]}}"#,
            hex(manifest.as_bytes())
        );
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{}"}}]}}"#,
            hex(nested.as_bytes())
        );
        let blobs = [
            nested.as_bytes(),
            manifest.as_bytes(),
            CONFIG.as_bytes(),
            &gzip,
            &zstd,
        ];
        let paths = blobs.map(|blob| format!("blobs/sha256/{}", hex(blob)));
        let archive = |damaged: Option<usize>| {
            let mut members = vec![
                ("oci-layout", b"{}".to_vec()),
                ("index.json", index.clone().into()),
            ];
            for (i, (path, blob)) in paths.iter().zip(blobs).enumerate() {
                let mut blob = blob.to_vec();
                // Behind its end, where no decoder looks.
                if damaged == Some(i) {
                    blob.push(b' ');
                }
                members.push((path, blob));
            }
            let members: Vec<_> = members.iter().map(|(n, b)| (*n, b.as_slice())).collect();
            tar(&members)
        };
        assert_packs_to_the_merge(&open(&archive(None)).expect("valid").expect("an image"));
        for (i, path) in paths.iter().enumerate() {
            let error = open(&archive(Some(i))).expect_err("damaged");
            let says = |name: &str| error.to_string().contains(name);
            assert!(
                says(path) || matches!(error, OciError::Layer { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_docker_archive_whose_layer_is_another_is_refused() {
        let (lower, upper) = layers();
        let config = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}},"config":{{}}}}"#,
            hex(&lower)
        );
        let manifest = br#"[{"Config":"c","RepoTags":null,"Layers":["l"]}]"#;
        let archive = |layer: &[u8]| {
            tar(&[
                ("manifest.json", manifest),
                ("c", config.as_bytes()),
                ("l", layer),
            ])
        };
        // Of what it unpacks to: compression may be another.
        for layer in [lower.clone(), gzip(&lower)] {
            assert!(open(&archive(&layer)).expect("valid").is_some());
        }
        let error = open(&archive(&upper)).expect_err("another layer");
        assert!(matches!(error, OciError::Damaged { .. }), "{error}");
    }

    fn hex(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    #[test]
    fn a_tar_of_files_is_no_image_archive() {
        for own in [
            br#"{"name":"a web app"}"#.as_slice(),
            br#"[{"Config":1}]"#,
            b"[]",
            b"not JSON",
        ] {
            let tree = tar(&[("bin/app", b"x"), ("manifest.json", own)]);
            assert!(open(&tree).expect("valid").is_none());
        }
    }

    #[test]
    fn an_image_without_layers_is_one() {
        let manifest = br#"[{"Config":"c","RepoTags":null,"Layers":null}]"#;
        let archive = tar(&[("manifest.json", manifest), ("c", CONFIG.as_bytes())]);
        let image = open(&archive).expect("valid").expect("an image");
        assert!(image.layers.is_empty());
    }

    #[test]
    fn archives_that_do_not_add_up_are_refused() {
        let two = br#"[{"Config":"c","Layers":[]},{"Config":"c","Layers":[]}]"#;
        assert!(matches!(
            open(&tar(&[("manifest.json", two)])),
            Err(OciError::Images(2))
        ));
        let gone = br#"[{"Config":"c","Layers":[]}]"#;
        assert!(matches!(
            open(&tar(&[("manifest.json", gone)])),
            Err(OciError::Missing(_))
        ));
        let arm = br#"{"os":"linux","architecture":"arm64"}"#;
        let archive = tar(&[("manifest.json", gone), ("c", arm)]);
        assert!(matches!(open(&archive), Err(OciError::Platform { .. })));
        let escape = br#"{"manifests":[{"digest":"sha256:../../etc"}]}"#;
        let archive = tar(&[("oci-layout", b"{}"), ("index.json", escape)]);
        assert!(matches!(open(&archive), Err(OciError::Digest(_))));
        let cut = br#"[{"Config":"c","Layers":["l"]}]"#;
        let half = gzip(&tar(&[("f", &[7; 4000])]));
        let archive = tar(&[
            ("manifest.json", cut),
            ("c", b"{}"),
            ("l", &half[..half.len() / 2]),
        ]);
        assert!(matches!(open(&archive), Err(OciError::Layer { .. })));
    }
}
