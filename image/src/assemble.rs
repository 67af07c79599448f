//! The finished image: everything in `dist/`.
//!
//! Owns: putting kernels, programs and trees together, the iPXE script, the manifest, the size table.
//! Refuses: an image that breaks a rule of [`crate::inspect`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use types::PublicKey;

use crate::kernel::{self, Kind, ZSTD_LEVEL};
use crate::lock::Source;
use crate::paths::{self, Paths};
use crate::{digest, inspect, licences, programs, tree, xfsprogs};

/// Largest kernel and initramfs together that we want.
const TARGET_BYTES: u64 = 24 << 20;
/// Kernel arguments of every boot: messages on the screen and, last and thus also init's, the serial
/// port.
pub const CONSOLE_ARGUMENTS: &str = "console=tty0 console=ttyS0,115200";

/// What was built, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub dist: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The `sifr` command for this machine.
    pub cli: PathBuf,
}

impl Image {
    /// The image that stands in `dist/`, if it is there.
    pub fn find(paths: &Paths) -> Result<Self> {
        let image = Self::at(paths);
        for file in [&image.kernel, &image.initramfs, &image.cli] {
            anyhow::ensure!(
                file.is_file(),
                "{} is missing: run 'make image'",
                file.display()
            );
        }
        Ok(image)
    }

    /// The identity that the image's programs show, from its manifest.
    pub fn identity(&self) -> Result<String> {
        let file = self.dist.join("manifest.json");
        let read = || format!("read {}", file.display());
        let manifest: serde_json::Value =
            serde_json::from_slice(&paths::read(&file)?).with_context(read)?;
        let build = manifest["build"].as_str().with_context(read)?;
        Ok(build.to_owned())
    }

    /// The same, if it was built from this commit and the tree is as the commit has it.
    pub fn current(paths: &Paths) -> Option<Self> {
        let image = Self::find(paths).ok()?;
        let ours = programs::identity(paths);
        let same = image.identity().ok()? == ours.to_string();
        (same && !ours.dirty).then_some(image)
    }

    fn at(paths: &Paths) -> Self {
        Self {
            dist: paths.dist.clone(),
            kernel: paths.dist.join("vmlinuz"),
            initramfs: paths.dist.join("initramfs.img"),
            cli: paths.root.join("target/sifr"),
        }
    }
}

#[derive(Debug, Serialize)]
struct Manifest {
    /// The identity that every program of the image shows.
    build: String,
    compiler: String,
    /// What boots.
    files: Vec<Line>,
    /// What is inside the initramfs.
    contents: Vec<Line>,
    /// Debian source packages that programs in the image were built from.
    sources: Vec<SourceLine>,
}

#[derive(Debug, Serialize)]
struct Line {
    path: String,
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Serialize)]
struct SourceLine {
    name: String,
    version: String,
    sha256: String,
}

/// Builds what is missing or changed and writes `dist/`.
pub fn build(paths: &Paths, owner: Option<PublicKey>) -> Result<Image> {
    let _lock = paths::lock(&paths.target())?;
    let host = kernel::kernel(paths, Kind::Host)?;
    let guest = kernel::kernel(paths, Kind::Guest)?;
    let xfsprogs = xfsprogs::xfsprogs(paths)?;
    let programs = programs::build(paths)?;
    let licences = licences::licences(paths, &host.source, &xfsprogs)?;
    let packed_licences =
        zstd::bulk::compress(licences.as_bytes(), ZSTD_LEVEL).context("compress the licences")?;
    let guest_init = paths::read(&programs.guest)?;
    let guest_initramfs = tree::guest(&guest_init)?.encode();
    let guest_kernel = guest
        .compressed
        .context("a guest kernel is kept compressed")?;
    let node = tree::Node {
        init: &paths::read(&programs.init)?,
        vmm: &paths::read(&programs.vmm)?,
        guest_kernel: &paths::read(&guest_kernel)?,
        guest_initramfs: &guest_initramfs,
        mkfs: &paths::read(&xfsprogs.mkfs)?,
        repair: &paths::read(&xfsprogs.repair)?,
        licences: &packed_licences,
        owner,
    };
    let archive = node.archive()?;
    let packed = packed(&paths.target().join("packed"), &archive.encode())?;
    let image = Image::at(paths);
    replace(&image.kernel, &paths::read(&host.file)?)?;
    replace(&image.initramfs, &packed)?;
    replace(
        &image.dist.join("boot.ipxe"),
        boot_script(owner.as_ref()).as_bytes(),
    )?;
    replace(&image.dist.join("licences"), licences.as_bytes())?;
    install(&programs.cli, &image.cli)?;
    let build = programs::identity(paths).to_string();
    let manifest = manifest(build, &image, &archive, &[&host.source, &xfsprogs.source])?;
    let json = serde_json::to_string_pretty(&manifest).context("write the manifest")?;
    replace(
        &image.dist.join("manifest.json"),
        format!("{json}\n").as_bytes(),
    )?;
    let findings = inspect::image(&image.dist)?;
    if !findings.is_empty() {
        let list: String = findings
            .iter()
            .map(|finding| format!("\n  {finding}"))
            .collect();
        bail!("the image breaks its rules:{list}");
    }
    print!("{}", table(&manifest));
    Ok(image)
}

/// The compressed bytes, which take seconds to make and are kept until others are made.
fn packed(kept: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let version = zstd::zstd_safe::version_string();
    let level = ZSTD_LEVEL.to_string();
    let file = kept.join(digest::key(&[version, &level, &digest::sha256(bytes)]));
    if !file.is_file() {
        if kept.exists() {
            fs::remove_dir_all(kept).with_context(|| format!("clear {}", kept.display()))?;
        }
        let packed = zstd::bulk::compress(bytes, ZSTD_LEVEL).context("compress the initramfs")?;
        paths::create(kept)?;
        replace(&file, &packed)?;
    }
    paths::read(&file)
}

/// The iPXE script: addresses are relative to where it was loaded from.
pub fn boot_script(owner: Option<&PublicKey>) -> String {
    let owner = owner.map_or(String::new(), |key| format!(" sifr.owner={key}"));
    format!(
        "#!ipxe\nkernel vmlinuz initrd=initramfs.img {CONSOLE_ARGUMENTS}{owner}\n\
         initrd initramfs.img\nboot\n"
    )
}

/// Writes a file so that a reader sees the old or the new one, never half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().context("a file has a name")?.to_owned();
    name.push(".new");
    let draft = path.with_file_name(name);
    paths::write(&draft, bytes)?;
    fs::rename(&draft, path).with_context(|| format!("put {} in place", path.display()))
}

/// A program that may be running is not written to: a new file takes its name.
fn install(from: &Path, to: &Path) -> Result<()> {
    replace(to, &paths::read(from)?)?;
    let permissions = fs::metadata(from)
        .with_context(|| format!("read the mode of {}", from.display()))?
        .permissions();
    fs::set_permissions(to, permissions).with_context(|| format!("mark {} a program", to.display()))
}

fn manifest(
    build: String,
    image: &Image,
    archive: &types::cpio::Archive<'_>,
    sources: &[&Source],
) -> Result<Manifest> {
    let line = |path: &str, bytes: &[u8]| Line {
        path: path.to_owned(),
        bytes: u64::try_from(bytes.len()).expect("a length fits"),
        sha256: digest::sha256(bytes),
    };
    let mut files = Vec::new();
    for name in ["vmlinuz", "initramfs.img", "boot.ipxe"] {
        files.push(line(name, &paths::read(&image.dist.join(name))?));
    }
    let contents = archive
        .entries()
        .filter_map(|(path, entry)| match &entry.node {
            types::cpio::Node::File(content) => Some(line(path, content)),
            types::cpio::Node::Directory | types::cpio::Node::CharacterDevice { .. } => None,
        })
        .collect();
    let source = |s: &&Source| SourceLine {
        name: s.name.clone(),
        version: s.version.clone(),
        sha256: s.sha256.clone(),
    };
    Ok(Manifest {
        build,
        compiler: programs::rustc_version()?,
        files,
        contents,
        sources: sources.iter().map(source).collect(),
    })
}

fn table(manifest: &Manifest) -> String {
    let mebibytes = |bytes: u64| {
        let hundredths = bytes * 100 / (1 << 20);
        format!("{:>4}.{:02} MiB", hundredths / 100, hundredths % 100)
    };
    let row = |name: &str, bytes: u64| format!("  {name:<34}{}\n", mebibytes(bytes));
    let mut out = format!("{}\n", manifest.build);
    for line in &manifest.contents {
        out.push_str(&row(&line.path, line.bytes));
    }
    out.push_str("packed:\n");
    let boots = || {
        manifest
            .files
            .iter()
            .filter(|line| line.path != "boot.ipxe")
    };
    for line in boots() {
        out.push_str(&row(&format!("dist/{}", line.path), line.bytes));
    }
    let sum: u64 = boots().map(|line| line.bytes).sum();
    let verdict = if sum <= TARGET_BYTES {
        "within"
    } else {
        "OVER"
    };
    out.push_str(&row(
        &format!("together ({verdict} {})", mebibytes(TARGET_BYTES).trim()),
        sum,
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_script_names_files_beside_it_and_the_owner() {
        let plain = "#!ipxe\nkernel vmlinuz initrd=initramfs.img console=tty0 console=ttyS0,115200\n\
                     initrd initramfs.img\nboot\n";
        assert_eq!(boot_script(None), plain);
        let key = PublicKey([0xab; 32]);
        assert!(boot_script(Some(&key)).contains(&format!("115200 sifr.owner={key}\n")));
    }

    #[test]
    fn what_is_packed_is_kept_until_other_bytes_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = directory.path().join("packed");
        let first = packed(&kept, b"first").expect("packed");
        assert_eq!(
            zstd::bulk::decompress(&first, 100).expect("sound"),
            b"first"
        );
        let file = paths::entries(&kept).expect("readable").remove(0);
        fs::write(&file, b"kept").expect("write");
        assert_eq!(packed(&kept, b"first").expect("kept"), b"kept");
        packed(&kept, b"other").expect("packed");
        assert_eq!(packed(&kept, b"first").expect("packed anew"), first);
    }

    #[test]
    fn the_table_says_whether_the_target_is_met() {
        let line = |path: &str, bytes| Line {
            path: path.to_owned(),
            bytes,
            sha256: String::new(),
        };
        let mut manifest = Manifest {
            build: "sifr 0".to_owned(),
            compiler: String::new(),
            files: vec![line("vmlinuz", 8 << 20), line("boot.ipxe", 100)],
            contents: vec![line("/init", 3 << 19)],
            sources: Vec::new(),
        };
        let text = table(&manifest);
        assert!(
            text.contains("1.50 MiB") && text.contains("within 24.00 MiB"),
            "{text}"
        );
        manifest.files.push(line("initramfs.img", 17 << 20));
        assert!(table(&manifest).contains("OVER 24.00 MiB"));
    }
}
