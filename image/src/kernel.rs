//! The two kernels: one for the node, one for its guests.
//!
//! Owns: unpacking Debian's kernel source, configuring it from `kernel-config/`, building it with
//! fixed dates and names, and keeping the result under a key made from all that went in.
//! Refuses: a configuration in which a wished option got lost.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::fragment::Config;
use crate::lock::{self, Source};
use crate::paths::{self, Paths};
use crate::progress::Progress;
use crate::{command, digest, elf, space};

/// What Debian's package installs.
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
const PACKAGE: &str = "linux-source-6.12";
/// Part of the cache key: count up when the steps below change what comes out.
const RECIPE: &str = "1";
/// In a source tree that is complete.
const UNPACKED: &str = ".unpacked";
/// Free space that the source and the objects of both kernels take: 1.5 GiB and 0.8 GiB, and a reserve.
const BUILD_BYTES: u64 = 4 << 30;
/// Level of the compressed guest kernel: the highest that needs no more memory to unpack.
pub(crate) const ZSTD_LEVEL: i32 = 19;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Host,
    Guest,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Host => "bzImage",
            Self::Guest => "vmlinux",
        }
    }

    /// Lines that the build prints, for the progress bar before it was ever built here.
    fn lines_estimate(self) -> u64 {
        match self {
            Self::Host => 3600,
            Self::Guest => 1700,
        }
    }
}

/// A finished kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Host: a bzImage. Guest: a stripped ELF with a PVH entry.
    pub file: PathBuf,
    /// The same compressed, for the guest kernel.
    pub compressed: Option<PathBuf>,
    /// The whole `.config` it was built from.
    pub config: PathBuf,
    pub source: Source,
}

/// Gives the kernel from the cache, or builds it.
pub fn kernel(paths: &Paths, kind: Kind) -> Result<Kernel> {
    let wish = wish(paths, kind)?;
    let source = source(paths)?;
    let key = digest::key(&[RECIPE, &source.sha256, &wish.allconfig(), &compiler()?]);
    let directory = paths.cache.join(format!("kernels/{}-{key}", kind.name()));
    if !directory.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        space::ensure(&paths.cache, BUILD_BYTES)?;
        paths::appear(&directory, |draft| {
            let tree = unpack(paths, &source)?;
            let built = build(paths, kind, &tree, &wish)?;
            keep(kind, &built, draft)
        })?;
    }
    let compressed = match kind {
        Kind::Host => None,
        Kind::Guest => Some(directory.join("vmlinux.zst")),
    };
    let file = directory.join(match kind {
        Kind::Host => "vmlinuz",
        Kind::Guest => "vmlinux",
    });
    Ok(Kernel {
        file,
        compressed,
        config: directory.join("config"),
        source,
    })
}

/// The source tree, unpacked: its licences are quoted in the image.
pub(crate) fn tree(paths: &Paths) -> Result<PathBuf> {
    let source = source(paths)?;
    let tree = place(paths, &source);
    if tree.join(UNPACKED).is_file() {
        return Ok(tree);
    }
    let _lock = paths::lock(&paths.cache)?;
    unpack(paths, &source)
}

fn place(paths: &Paths, source: &Source) -> PathBuf {
    let name = format!("linux-{}", &source.sha256[..16]);
    paths.cache.join("src").join(name)
}

fn wish(paths: &Paths, kind: Kind) -> Result<Config> {
    let directory = paths.root.join("kernel-config").join(kind.name());
    let mut fragments = Vec::new();
    let list = || format!("list {}", directory.display());
    for entry in fs::read_dir(&directory).with_context(list)? {
        let path = entry.with_context(list)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "config")
        {
            let name = path
                .strip_prefix(&paths.root)
                .unwrap_or(&path)
                .display()
                .to_string();
            fragments.push((name, paths::text(&path)?));
        }
    }
    fragments.sort();
    Ok(Config::join(&fragments)?)
}

fn source(paths: &Paths) -> Result<Source> {
    ensure!(
        Path::new(TARBALL).is_file(),
        "{TARBALL} is missing: run 'make setup', which installs {PACKAGE}"
    );
    let source = Source {
        name: PACKAGE.to_owned(),
        version: lock::installed_version(PACKAGE)?,
        sha256: digest::sha256_of(Path::new(TARBALL))?,
    };
    lock::compare(paths, &source)?;
    Ok(source)
}

fn compiler() -> Result<String> {
    let mut versions = String::new();
    for program in ["gcc", "ld"] {
        let text = command::output(command::clean(program).arg("--version"))?;
        versions.push_str(text.lines().next().unwrap_or_default());
        versions.push('\n');
    }
    Ok(versions)
}

fn unpack(paths: &Paths, source: &Source) -> Result<PathBuf> {
    let tree = place(paths, source);
    let marker = tree.join(UNPACKED);
    if !marker.is_file() {
        paths::create(&tree)?;
        let mut progress = Progress::new("unpack kernel source", 90_000);
        let mut tar = command::clean("tar");
        tar.args([
            "--extract",
            "--verbose",
            "--strip-components=1",
            "--file",
            TARBALL,
        ]);
        command::lines(tar.arg("--directory").arg(&tree), |_| progress.step())?;
        progress.finish();
        paths::write(&marker, &source.sha256)?;
    }
    Ok(tree)
}

/// Configures and compiles; gives the build directory.
fn build(paths: &Paths, kind: Kind, tree: &Path, wish: &Config) -> Result<PathBuf> {
    let out = paths.cache.join("build").join(kind.name());
    paths::create(&out)?;
    let allconfig = paths
        .cache
        .join("build")
        .join(format!("{}.allconfig", kind.name()));
    paths::write(&allconfig, wish.allconfig())?;
    command::output(
        make(tree, &out)
            .env("KCONFIG_ALLCONFIG", &allconfig)
            .arg("allnoconfig"),
    )?;
    let lost = wish.lost(&paths::text(&out.join(".config"))?);
    if !lost.is_empty() {
        let list: String = lost
            .iter()
            .map(|l| format!("\n  {}={} became {}", l.option, l.wished, l.found))
            .collect();
        bail!(
            "the {} kernel's configuration lost options; add what they depend on, or take them \
             out:{list}",
            kind.name()
        );
    }
    let count = paths
        .cache
        .join("build")
        .join(format!("{}.lines", kind.name()));
    let known = fs::read_to_string(&count)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let total = known.unwrap_or(kind.lines_estimate());
    let mut progress = Progress::new(&format!("build {} kernel", kind.name()), total);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = make(tree, &out);
    make.arg(format!("-j{jobs}")).arg(kind.target());
    command::lines(&mut make, |_| progress.step())?;
    let lines = progress.finish();
    // A build that found most of its objects made says nothing about a whole one.
    if known.is_none_or(|known| lines > known) && lines > kind.lines_estimate() / 2 {
        paths::write(&count, lines.to_string())?;
    }
    Ok(out)
}

/// Dates, names and counters that the kernel stamps into itself are fixed here.
fn make(tree: &Path, out: &Path) -> std::process::Command {
    let mut make = command::clean("make");
    make.arg("-C").arg(tree).arg(format!("O={}", out.display()));
    make.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01 00:00:00 UTC")
        .env("KBUILD_BUILD_USER", "sifr")
        .env("KBUILD_BUILD_HOST", "sifr")
        .env("KBUILD_BUILD_VERSION", "1");
    make
}

fn keep(kind: Kind, built: &Path, draft: &Path) -> Result<()> {
    fs::copy(built.join(".config"), draft.join("config")).context("keep the kernel's .config")?;
    match kind {
        Kind::Host => {
            fs::copy(built.join("arch/x86/boot/bzImage"), draft.join("vmlinuz"))
                .context("keep the host kernel")?;
        }
        Kind::Guest => {
            let file = draft.join("vmlinux");
            let mut strip = command::clean("objcopy");
            strip
                .arg("--strip-all")
                .arg(built.join("vmlinux"))
                .arg(&file);
            command::output(&mut strip)?;
            let bytes = paths::read(&file)?;
            let pvh = elf::parse(&bytes)
                .context("read the guest kernel")?
                .pvh_entry;
            ensure!(
                pvh.is_some(),
                "the guest kernel has no PVH entry: is CONFIG_PVH on?"
            );
            let packed = zstd::bulk::compress(&bytes, ZSTD_LEVEL).context("compress it")?;
            paths::write(&draft.join("vmlinux.zst"), packed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fragments_in_the_repository_are_sound() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let [cache, dist, run] = ["cache", "dist", "run"].map(|name| root.join(name));
        let paths = Paths {
            root,
            cache,
            dist,
            run,
        };
        for kind in [Kind::Host, Kind::Guest] {
            wish(&paths, kind).expect("sorted, unique, with reasons");
        }
    }
}
