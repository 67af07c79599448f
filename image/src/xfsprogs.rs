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
use crate::{command, digest, elf};

const PACKAGE: &str = "xfsprogs";
/// Part of the cache key: count up when the steps below change what comes out.
const RECIPE: &str = "1";
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
}

/// Gives the programs from the cache, or builds them.
pub fn xfsprogs(paths: &Paths) -> Result<Xfsprogs> {
    let home = paths.cache.join("src").join(PACKAGE);
    if description(&home)?.is_none() {
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
    let libc = lock::installed_version("libc6-dev")?;
    let key = digest::key(&[RECIPE, &source.sha256, &compiler, &libc]);
    let directory = paths.cache.join(format!("xfsprogs/{key}"));
    if !directory.is_dir() {
        let tree = tree(&home)?;
        build(&tree)?;
        paths::appear(&directory, |draft| keep(&tree, draft))?;
    }
    let [mkfs, repair, licence] =
        ["mkfs.xfs", "xfs_repair", "copyright"].map(|name| directory.join(name));
    Ok(Xfsprogs {
        mkfs,
        repair,
        licence,
        source,
    })
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(
            entry
                .with_context(|| format!("list {}", directory.display()))?
                .path(),
        );
    }
    found.sort();
    Ok(found)
}

fn description(home: &Path) -> Result<Option<PathBuf>> {
    let dsc = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "dsc");
    Ok(entries(home)?.into_iter().find(dsc))
}

fn tree(home: &Path) -> Result<PathBuf> {
    let tree = entries(home)?
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

/// Downloads and unpacks the source. apt checks the signatures; lists and configuration are kept in
/// a directory of our own, so that the machine's stay as they are.
fn fetch(home: &Path) -> Result<()> {
    let sources = sources()?;
    ensure!(
        !sources.is_empty(),
        "no Debian archive in /etc/apt/sources.list*: add one, then run this again"
    );
    paths::appear(home, |draft| {
        let apt = draft.join("apt");
        for directory in ["lists/partial", "parts"] {
            paths::create(&apt.join(directory))?;
        }
        paths::write(&apt.join("parts/source.sources"), &sources)?;
        let options = [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={}", apt.join("parts").display()),
            format!("Dir::State::Lists={}", apt.join("lists").display()),
            // The unprivileged download user may not enter this directory.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let run = |what: &[&str]| {
            let mut command = command::clean("apt-get");
            options.iter().for_each(|option| {
                command.args(["-o", option]);
            });
            command::output(command.arg("-qq").args(what).current_dir(draft))
        };
        eprintln!("download the source of {PACKAGE} ...");
        run(&["update"]).context("list Debian's source packages")?;
        run(&["source", PACKAGE]).context("download the source of xfsprogs")?;
        fs::remove_dir_all(&apt).context("remove apt's lists")
    })
}

/// Source entries for each Debian archive this machine uses, in deb822 form.
fn sources() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(entries(Path::new("/etc/apt/sources.list.d"))?);
    let mut out = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = paths::text(file)?;
        let stanzas = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => from_deb822(&text),
            Some("list") => from_lines(&text),
            _ => continue,
        };
        out.push_str(&stanzas);
    }
    Ok(out)
}

/// An archive of Debian itself, on whichever mirror: its path ends in "debian".
fn is_debian(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

fn from_deb822(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter(|stanza| {
            let uris = stanza.iter().find_map(|line| line.strip_prefix("URIs:"));
            uris.is_some_and(|uris| uris.split_whitespace().all(is_debian))
                && !stanza.iter().any(|line| line.trim() == "Enabled: no")
        })
        .map(|stanza| {
            let rest = stanza.iter().filter(|line| {
                !["Types:", "Architectures:"]
                    .iter()
                    .any(|field| line.starts_with(field))
            });
            let rest: String = rest.map(|line| format!("{line}\n")).collect();
            format!("Types: deb-src\n{rest}\n")
        })
        .collect()
}

fn from_lines(text: &str) -> String {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("deb ")?.trim();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let components: Vec<_> = words.take_while(|word| !word.starts_with('#')).collect();
            let signed = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map_or(String::new(), |key| format!("Signed-By: {key}\n"));
            is_debian(uri).then(|| {
                format!(
                    "Types: deb-src\nURIs: {uri}\nSuites: {suite}\nComponents: {}\n{signed}\n",
                    components.join(" ")
                )
            })
        })
        .collect()
}

fn build(tree: &Path) -> Result<()> {
    let mut progress = Progress::new("build xfsprogs", LINES_ESTIMATE);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_entries_follow_the_machines_own_mirror() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: a a-updates\n\
                    Components: main\nSigned-By: /k.gpg\n\nTypes: deb\n\
                    URIs: https://other.example/node\nSuites: x\nComponents: main\n";
        assert_eq!(
            from_deb822(text),
            "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: a a-updates\n\
             Components: main\nSigned-By: /k.gpg\n\n"
        );
    }

    #[test]
    fn one_line_entries_are_understood_too() {
        let text = "# deb http://m.example/debian x main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ stable main contrib # c\n\
                    deb http://m.example/else stable main\n";
        assert_eq!(
            from_lines(text),
            "Types: deb-src\nURIs: http://m.example/debian/\nSuites: stable\n\
             Components: main contrib\nSigned-By: /k.gpg\n\n"
        );
    }

    #[test]
    fn the_version_is_the_signed_one() {
        assert_eq!(
            version("Format: 3.0\nVersion: 6.1.0-1\n"),
            Some("6.1.0-1".to_owned())
        );
    }
}
