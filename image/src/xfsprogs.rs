//! `mkfs.xfs` and `xfs_repair`, static, from Debian's source package.
//!
//! Owns: fetching that source with the machine's own apt configuration, building it, and keeping the
//! two programs and the licence under a key made from all that went in.
//! Refuses: writing to apt's own lists, and any server the machine does not already trust.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::lock::{self, Source};
use crate::paths::{self, Paths};
use crate::progress::Progress;
use crate::{apt, command, digest, elf};

const PACKAGE: &str = "xfsprogs";
/// Part of the cache key: count up when the steps below change what comes out.
const RECIPE: &str = "2";
/// Packages of static libraries that are linked in.
const LIBRARIES: [&str; 5] = [
    "libblkid-dev",
    "libc6-dev",
    "libinih-dev",
    "liburcu-dev",
    "uuid-dev",
];
/// In the cache: a file for each library, named `<source package>=<version>`, with its copyright.
const LINKED: &str = "linked";
/// Lines that the build prints, for the progress bar.
const LINES_ESTIMATE: u64 = 600;

/// The finished programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xfsprogs {
    pub mkfs: PathBuf,
    pub repair: PathBuf,
    /// Debian's copyright file: every licence in the package.
    pub licence: PathBuf,
    pub source: Source,
    /// What is linked into them.
    pub libraries: Vec<Library>,
}

/// A Debian source package whose code is inside a program of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    pub name: String,
    pub version: String,
    pub copyright: PathBuf,
}

/// Gives the programs from the cache, or builds them.
pub fn xfsprogs(paths: &Paths) -> Result<Xfsprogs> {
    let home = paths.cache.join("src").join(PACKAGE);
    if description(&home)?.is_none() {
        let _lock = paths::lock(&paths.cache)?;
        fetch(&home)?;
    }
    let file = description(&home)?.context("apt-get source left no .dsc file")?;
    let source = Source {
        name: PACKAGE.to_owned(),
        version: version(&paths::text(&file)?).context("the .dsc file has no version")?,
        sha256: digest::sha256_of(&file)?,
    };
    lock::compare(paths, &source)?;
    let compiler = command::output(command::clean("gcc").arg("--version"))?;
    let linked = LIBRARIES
        .map(lock::source_package)
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let key = digest::key(&[RECIPE, &source.sha256, &compiler, &linked.join("\n")]);
    let directory = paths.cache.join(format!("xfsprogs/{key}"));
    if !directory.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&directory, |draft| {
            let tree = tree(&home)?;
            build(&tree)?;
            keep(&tree, draft)?;
            keep_copyrights(&linked, &draft.join(LINKED))
        })?;
    }
    let [mkfs, repair, licence] =
        ["mkfs.xfs", "xfs_repair", "copyright"].map(|name| directory.join(name));
    Ok(Xfsprogs {
        mkfs,
        repair,
        licence,
        source,
        libraries: libraries(&directory.join(LINKED))?,
    })
}

fn libraries(directory: &Path) -> Result<Vec<Library>> {
    let library = |copyright: PathBuf| {
        let file = copyright.file_name()?.to_str()?;
        let (name, version) = file.split_once('=')?;
        Some(Library {
            name: name.to_owned(),
            version: version.to_owned(),
            copyright,
        })
    };
    let found = paths::entries(directory)?.into_iter();
    Ok(found.filter_map(library).collect())
}

fn description(home: &Path) -> Result<Option<PathBuf>> {
    let dsc = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "dsc");
    Ok(paths::entries(home)?.into_iter().find(dsc))
}

fn tree(home: &Path) -> Result<PathBuf> {
    let tree = paths::entries(home)?
        .into_iter()
        .find(|path| path.join("configure").is_file());
    tree.context("the source of xfsprogs has no configure script")
}

/// The package's version, from its signed description.
fn version(dsc: &str) -> Option<String> {
    dsc.lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .map(|v| v.trim().to_owned())
}

/// Downloads and unpacks the source. apt checks the signatures.
fn fetch(home: &Path) -> Result<()> {
    paths::appear(home, |draft| {
        eprintln!("download the source of {PACKAGE} ...");
        let apt = apt::Private::new(draft, "deb-src").context("list Debian's source packages")?;
        apt.run(&["source", PACKAGE])
            .context("download the source of xfsprogs")?;
        apt.close()
    })
}

fn build(tree: &Path) -> Result<()> {
    let mut progress = Progress::new("build xfsprogs", LINES_ESTIMATE);
    // make knows nothing of the libraries: what was linked with older ones would stay.
    if tree.join("include/builddefs").is_file() {
        let mut clean = command::clean("make");
        command::output(clean.current_dir(tree).arg("distclean"))?;
    }
    let prefix_map = format!("-g0 -O2 -ffile-prefix-map={}=.", tree.display());
    let mut configure = command::clean("./configure");
    configure.current_dir(tree).args([
        "--enable-static",
        "--disable-shared",
        "--enable-gettext=no",
        "--enable-scrub=no",
        "--enable-libicu=no",
    ]);
    configure
        .env("CFLAGS", &prefix_map)
        .env("DEBUG", "-DNDEBUG");
    command::lines(&mut configure, |_| progress.step())?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = command::clean("make");
    make.current_dir(tree)
        .arg(format!("-j{jobs}"))
        .arg("LLDFLAGS=-all-static");
    command::lines(&mut make, |_| progress.step())?;
    progress.finish();
    Ok(())
}

fn keep(tree: &Path, draft: &Path) -> Result<()> {
    for (built, name) in [
        ("mkfs/mkfs.xfs", "mkfs.xfs"),
        ("repair/xfs_repair", "xfs_repair"),
    ] {
        let file = draft.join(name);
        let mut strip = command::clean("strip");
        command::output(strip.arg("-o").arg(&file).arg(tree.join(built)))?;
        let program = elf::parse(&paths::read(&file)?).with_context(|| format!("read {name}"))?;
        ensure!(!program.interpreter, "{name} was not linked statically");
    }
    fs::copy(tree.join("debian/copyright"), draft.join("copyright"))
        .context("keep the licence of xfsprogs")?;
    Ok(())
}

/// Two packages of one source have the same copyright.
fn keep_copyrights(linked: &[String], directory: &Path) -> Result<()> {
    for (package, source) in LIBRARIES.iter().zip(linked) {
        let (name, version) = lock::name_and_version(source)?;
        let copyright = Path::new("/usr/share/doc").join(package).join("copyright");
        let file = directory.join(format!("{name}={version}"));
        paths::write(&file, paths::read(&copyright)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_back_as_they_were_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("util-linux=2.38.1-5+deb12u3");
        fs::write(&file, "text").expect("write");
        let expected = Library {
            name: "util-linux".to_owned(),
            version: "2.38.1-5+deb12u3".to_owned(),
            copyright: file,
        };
        assert_eq!(libraries(directory.path()).expect("readable"), [expected]);
    }

    #[test]
    fn the_version_is_the_signed_one() {
        assert_eq!(
            version("Format: 3.0\nVersion: 6.1.0-1\n"),
            Some("6.1.0-1".to_owned())
        );
    }
}
