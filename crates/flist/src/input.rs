//! What a person hands over as an image: told by its content, never by its name.
//!
//! Owns: directories, tar archives (plain, gzip, zstd), Docker archives, OCI archives, OCI layouts, disk images.
//! Refuses: everything else, with what it is and what to do about it.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use types::flist::ImageConfig;

use crate::compressed::{self, Compression, Room};
use crate::disk::{self, DiskFormat, START_BYTES};
use crate::format;
use crate::oci::{self, Form, Image, OciError};
use crate::pack::{Source, is_zero};

const TAR_BLOCK: usize = 512;
/// The file of skopeo's `dir:` transport, which has layers and no names for them.
const DIR_TRANSPORT: &[u8] = b"Directory Transport Version:";

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{path} cannot be read")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} is a packed image already: deploy it as it is")]
    Flist(String),
    #[error(
        "{path} is neither a directory nor a tar archive (plain, gzip or zstd), \
         nor an image that `docker save` or `skopeo copy oci-archive:` wrote, nor a disk image: it is {what}"
    )]
    Unknown { path: String, what: String },
    #[error(
        "{path} is a directory that `skopeo copy dir:` wrote: use `oci-archive:` instead of `dir:`"
    )]
    DirTransport { path: String },
    #[error("{path} is not packed")]
    Image {
        path: String,
        #[source]
        source: OciError,
    },
}

/// Something that can be packed.
#[derive(Debug)]
pub enum Input {
    /// A file tree on this machine.
    Directory(PathBuf),
    /// A file tree in an uncompressed tar; compressed ones were unpacked.
    Tar(File),
    /// A container image with its own configuration.
    Image(Image),
    /// A whole disk.
    Disk(File, DiskFormat),
}

impl Input {
    /// Looks what `path` is. What has to be unpacked goes into unnamed files in `spool`.
    pub fn open(path: &Path, spool: &Path) -> Result<Self, InputError> {
        let shown = || path.display().to_string();
        let read = |source| InputError::Read {
            path: shown(),
            source,
        };
        let image = |source| InputError::Image {
            path: shown(),
            source,
        };
        if fs::metadata(path).map_err(read)?.is_dir() {
            if oci::is_layout(path) {
                return oci::open_layout(path, spool)
                    .map(Self::Image)
                    .map_err(image);
            }
            if begins(&path.join("version"), DIR_TRANSPORT) && path.join("manifest.json").is_file()
            {
                return Err(InputError::DirTransport { path: shown() });
            }
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = File::open(path).map_err(read)?;
        let file = match Compression::of(&start(&file).map_err(read)?) {
            Compression::None => file,
            Compression::Gzip | Compression::Zstd | Compression::Other(_) => {
                compressed::unpack(&file, spool, &mut Room::of_an_image(), &mut |_| {})
                    .map_err(read)?
            }
        };
        let start = start(&file).map_err(read)?;
        if start.starts_with(&format::MAGIC) {
            return Err(InputError::Flist(shown()));
        }
        let blank = is_zero(&start[..TAR_BLOCK.min(start.len())]);
        let disk = disk::looks_like(&start);
        // An archive of nothing begins with zeros, and so does a disk that nothing boots from.
        if let Some(format) = disk.filter(|_| blank || !is_tar(&start)) {
            return Ok(Self::Disk(file, format));
        }
        if !is_tar(&start) {
            let what = guess(&start).to_owned();
            return Err(InputError::Unknown {
                path: shown(),
                what,
            });
        }
        let opened = oci::open_archive(&file, spool).map_err(image)?;
        Ok(opened.map_or_else(|| Self::Tar(file), Self::Image))
    }

    /// A file that is a disk, whatever it looks like: nothing is guessed and nothing unpacked.
    pub fn disk(path: &Path, format: DiskFormat) -> Result<Self, InputError> {
        let file = File::open(path).map_err(|source| InputError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self::Disk(file, format))
    }

    /// For [`crate::pack::pack`].
    pub fn source(&self) -> Source<'_> {
        match self {
            Self::Directory(path) => Source::Directory(path),
            Self::Tar(file) => Source::Tar(file),
            Self::Image(image) => Source::Layers(&image.layers),
            Self::Disk(file, format) => Source::Disk(file, *format),
        }
    }

    /// What the image itself says about running it; a bare file tree says nothing, and nor does a disk.
    pub fn config(&self) -> ImageConfig {
        match self {
            Self::Directory(_) | Self::Tar(_) | Self::Disk(..) => ImageConfig::default(),
            Self::Image(image) => image.config.clone(),
        }
    }

    /// For people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Tar(_) => "tar archive",
            Self::Disk(_, DiskFormat::Raw) => "raw disk image",
            Self::Disk(_, DiskFormat::Qcow2) => "qcow2 disk image",
            Self::Image(image) => match image.form {
                Form::DockerArchive => "Docker archive",
                Form::OciArchive => "OCI archive",
                Form::OciLayout => "OCI layout",
            },
        }
    }
}

fn begins(path: &Path, with: &[u8]) -> bool {
    let file = File::open(path)
        .ok()
        .filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
    file.and_then(|file| start(&file).ok())
        .is_some_and(|start| start.starts_with(with))
}

/// As much of the beginning as anything is told by, or what there is of it.
fn start(mut file: &File) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(START_BYTES);
    file.rewind()?;
    file.take(START_BYTES as u64).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start)
}

/// Whether a file that begins so is a tar: its first header has a right checksum (POSIX ustar, and all
/// before it), or it is the empty archive.
fn is_tar(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk::<TAR_BLOCK>() else {
        return false;
    };
    if block.iter().all(|b| *b == 0) {
        return true;
    }
    let text = block[148..156].iter().map(|b| char::from(*b));
    let text: String = text.collect();
    let Ok(said) = i64::from_str_radix(text.trim_matches(['\0', ' ']), 8) else {
        return false;
    };
    // Old writers summed signed bytes.
    let field = 148..156;
    let bytes = || {
        (0..)
            .zip(block)
            .map(|(at, b)| if field.contains(&at) { b' ' } else { *b })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    said == unsigned || said == signed
}

fn guess(start: &[u8]) -> &'static str {
    match start {
        [] => "empty",
        [0x7f, b'E', b'L', b'F', ..] => "a program",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [b'h', b's', b'q', b's', ..] => "a squashfs image",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::pack;
    use crate::store::NoStore;
    use std::io::Write;
    use tempfile::TempDir;
    use types::Digest;

    const CONFIG: &[u8] =
        br#"{"os":"linux","architecture":"amd64","config":{"Cmd":["/bin/app"],"User":"web"}}"#;

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

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("memory")
    }

    /// Names that say nothing: only content counts.
    fn written(work: &TempDir, bytes: &[u8]) -> PathBuf {
        let path = work.path().join("input");
        fs::write(&path, bytes).expect("write");
        path
    }

    fn open(bytes: &[u8]) -> Result<Input, InputError> {
        let work = TempDir::new().expect("temp");
        Input::open(&written(&work, bytes), work.path())
    }

    fn digest(input: &Input) -> Digest {
        let packed = pack(
            input.source(),
            &ImageConfig::default(),
            &mut NoStore,
            &mut |_| {},
        );
        packed.expect("packs").digest
    }

    /// The members of an OCI layout with one layer.
    fn layout(layer: &[u8]) -> Vec<(String, Vec<u8>)> {
        let path = |blob: &[u8]| format!("blobs/sha256/{}", hex(blob));
        let manifest = format!(
            r#"{{"config":{{"digest":"sha256:{}"}},"layers":[{{"digest":"sha256:{}"}}]}}"#,
            hex(CONFIG),
            hex(layer)
        );
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"sha256:{}"}}]}}"#,
            hex(manifest.as_bytes())
        );
        vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index.into()),
            (path(manifest.as_bytes()), manifest.into()),
            (path(CONFIG), CONFIG.to_vec()),
            (path(layer), layer.to_vec()),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
        let members: Vec<_> = members
            .iter()
            .map(|(n, c)| (n.as_str(), c.as_slice()))
            .collect();
        tar(&members)
    }

    #[test]
    fn every_form_of_one_tree_is_recognised_and_packs_to_one_digest() {
        let tree = tar(&[("bin/app", b"program"), ("etc/app", b"settings")]);
        let manifest = br#"[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]"#;
        let docker = tar(&[
            ("c", CONFIG),
            ("l", &tree),
            ("manifest.json", manifest.as_slice()),
        ]);
        let both = {
            let mut members = layout(&gzip(&tree));
            // Docker 25 and later: an OCI layout that is a Docker archive as well.
            let docker = format!(
                r#"[{{"Config":"{}","RepoTags":["a:1"],"Layers":["{}"]}}]"#,
                members[3].0, members[4].0
            );
            members.push(("manifest.json".to_owned(), docker.into()));
            tar_of(&members)
        };
        let oci = tar_of(&layout(&zstd(&tree)));
        let expected = digest(&open(&tree).expect("a tar"));
        for (bytes, what) in [
            (tree.clone(), "tar archive"),
            (gzip(&tree), "tar archive"),
            (zstd(&tree), "tar archive"),
            (docker.clone(), "Docker archive"),
            (gzip(&docker), "Docker archive"),
            (both, "Docker archive"),
            (oci.clone(), "OCI archive"),
            (zstd(&oci), "OCI archive"),
        ] {
            let input = open(&bytes).expect(what);
            assert_eq!(input.describe(), what);
            assert_eq!(digest(&input), expected, "{what}");
            let is_image = what != "tar archive";
            assert_eq!(input.config().cmd.is_empty(), !is_image);
            assert_eq!(input.config().user, if is_image { "web" } else { "" });
        }
    }

    #[test]
    fn a_layout_is_an_image_and_any_other_directory_is_a_tree() {
        let work = TempDir::new().expect("temp");
        let root = work.path().join("image");
        let tree = tar(&[("bin/app", b"program")]);
        fs::create_dir_all(root.join("blobs/sha256")).expect("directory");
        for (name, content) in layout(&gzip(&tree)) {
            fs::write(root.join(name), content).expect("write");
        }
        let input = Input::open(&root, work.path()).expect("a layout");
        assert_eq!(input.describe(), "OCI layout");
        assert_eq!(digest(&input), digest(&open(&tree).expect("a tar")));
        let layer = layout(&gzip(&tree))[4].0.clone();
        fs::remove_file(root.join(&layer)).expect("removed");
        let error = Input::open(&root, work.path()).expect_err("a layer is missing");
        let source = std::error::Error::source(&error)
            .expect("a cause")
            .to_string();
        assert!(source.contains(&layer), "{source}");
        fs::remove_file(root.join("index.json")).expect("removed");
        let input = Input::open(&root, work.path()).expect("a directory");
        assert_eq!(input.describe(), "directory");
        fs::write(root.join("version"), b"Directory Transport Version: 1.1\n").expect("write");
        fs::write(root.join("manifest.json"), b"{}").expect("write");
        let error = Input::open(&root, work.path()).expect_err("the dir: transport");
        assert!(error.to_string().contains("oci-archive:"), "{error}");
    }

    #[test]
    fn disks_are_told_from_archives_by_what_they_begin_with() {
        let mut ext = vec![0; 4096];
        ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let mut boots = vec![0; 4096];
        boots[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (bytes, what) in [
            (b"QFI\xfb".repeat(300), "qcow2 disk image"),
            (ext.clone(), "raw disk image"),
            (boots, "raw disk image"),
            (gzip(&ext), "raw disk image"),
            // Zeros alone are an archive of nothing; and what is in an archive says nothing about it.
            (vec![0; 4096], "tar archive"),
            (tar(&[("disk.img", &ext)]), "tar archive"),
        ] {
            assert_eq!(open(&bytes).expect(what).describe(), what);
        }
        let mut archive = tar(&[("f", &[0; 2048])]);
        archive[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(open(&archive).expect("a tar").describe(), "tar archive");
    }

    #[test]
    fn what_is_no_image_is_refused_with_what_it_is() {
        let cut = gzip(&tar(&[("f", &[7; 40_000])]));
        for (bytes, says) in [
            (b"".to_vec(), "it is empty"),
            (b"\x7fELF".repeat(300), "it is a program"),
            (b"PK\x03\x04".repeat(300), "it is a zip archive"),
            (b"hello, world\n".repeat(99), "it is something else"),
            (gzip(b"hello, world"), "it is something else"),
            (b"\xfd7zXZ\0".repeat(99), "with xz: use gzip"),
            (b"BZh9".repeat(99), "with bzip2: use gzip"),
            (b"SIFRFLS1".repeat(99), "deploy it as it is"),
            (cut[..cut.len() / 2].to_vec(), "cannot be read"),
        ] {
            let error = open(&bytes).expect_err(says);
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |e| e.to_string());
            let text = format!("{error}: {cause}");
            assert!(text.contains(says), "{text:?} does not say {says:?}");
        }
    }

    #[test]
    fn old_tars_without_a_magic_and_empty_ones_are_tars() {
        let mut old = tar::Header::new_old();
        old.set_path("f").expect("short");
        old.set_size(0);
        old.set_mode(0o644);
        old.set_cksum();
        let mut bytes = old.as_bytes().to_vec();
        bytes.resize(1536, 0);
        assert_eq!(open(&bytes).expect("a tar").describe(), "tar archive");
        assert_eq!(open(&[0; 1024]).expect("a tar").describe(), "tar archive");
        bytes[0] ^= 1;
        assert!(open(&bytes).is_err());
    }
}
