//! Programs of Debian that tests need and that are not installed: as packages they would start a service.
//!
//! And one that Debian does not have, built from its crate.
//!
//! Owns: their way into the cache. Refuses: to run them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::paths::{self, Paths};
use crate::{apt, command};

/// Debian's container registry: the program.
pub fn docker_registry(paths: &Paths) -> Result<PathBuf> {
    unpacked(paths, "docker-registry", "usr/bin/docker-registry")
}

/// The two newest versions of a package that this machine's own package lists know, older first, each unpacked.
pub fn two_releases(paths: &Paths, package: &str) -> Result<[PathBuf; 2]> {
    let listed = command::output(command::clean("apt-cache").args(["madison", package]))?;
    let versions = two_newest(&listed);
    let versions = versions.with_context(|| {
        format!("this machine's package lists have fewer than two versions of {package}: run 'apt-get update'")
    })?;
    let mut homes = Vec::new();
    for version in versions.iter().rev() {
        let home = paths.cache.join(format!("tools/{package}={version}"));
        if !home.is_dir() {
            let _lock = paths::lock(&paths.cache)?;
            paths::appear(&home, |draft| {
                eprintln!("download {package} {version} ...");
                let mut download = command::clean("apt-get");
                download.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
                command::output(
                    download
                        .arg(format!("{package}={version}"))
                        .current_dir(draft),
                )?;
                let archives = paths::entries(draft)?;
                let [archive] = &archives[..] else {
                    anyhow::bail!("apt-get download {package} left {archives:?}");
                };
                let mut unpack = command::clean("dpkg-deb");
                command::output(unpack.arg("--extract").arg(archive).arg(draft.join("root")))?;
                Ok(())
            })?;
        }
        homes.push(home.join("root"));
    }
    homes
        .try_into()
        .map_err(|homes| anyhow::anyhow!("{homes:?} are not two"))
}

/// Of the table of apt-cache(8) madison: package, version, source, separated by bars, newest first.
fn two_newest(listed: &str) -> Option<[String; 2]> {
    let mut versions: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .collect();
    versions.dedup();
    let two = versions.get(..2)?;
    Some([two[0].to_owned(), two[1].to_owned()])
}

/// A server of S3 over a directory, which checks signatures: the crate `s3s-fs`. Its lock file says what it is made of.
const S3_SERVER: &str = "s3s-fs";
const S3_SERVER_VERSION: &str = "0.14.1";

/// The server of S3: the program. Building it takes minutes, once.
pub fn s3_server(paths: &Paths) -> Result<PathBuf> {
    let home = paths
        .cache
        .join("tools")
        .join(format!("{S3_SERVER}-{S3_SERVER_VERSION}"));
    if !home.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&home, |draft| {
            eprintln!("build {S3_SERVER} {S3_SERVER_VERSION} ...");
            let mut install = command::clean("cargo");
            install.args(["install", "--quiet", "--locked", S3_SERVER]);
            install.args(["--version", S3_SERVER_VERSION, "--features", "binary"]);
            command::output(install.arg("--root").arg(draft))
                .with_context(|| format!("build {S3_SERVER}: is the network up?"))?;
            Ok(())
        })?;
    }
    program(&home, "bin/s3s-fs")
}

/// A file of a package. apt checks the signatures.
fn unpacked(paths: &Paths, package: &str, file: &str) -> Result<PathBuf> {
    let home = paths.cache.join("tools").join(package);
    if !home.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&home, |draft| {
            let archive = apt::download(draft, package)?;
            let mut unpack = command::clean("dpkg-deb");
            command::output(unpack.arg("--extract").arg(&archive).arg(draft))
                .with_context(|| format!("unpack the package {package}"))?;
            Ok(())
        })?;
    }
    program(&home, file)
}

fn program(home: &Path, file: &str) -> Result<PathBuf> {
    let program = home.join(file);
    ensure!(
        program.is_file(),
        "{} is missing: remove {}, then run this again",
        program.display(),
        home.display()
    );
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_newest_versions_are_the_first_two_that_differ() {
        let listed = " a | 2.1-1 | somewhere main\n a | 2.1-1 | elsewhere main\n a | 2.0-3 | somewhere main\n";
        let two = ["2.1-1".to_owned(), "2.0-3".to_owned()];
        assert_eq!(two_newest(listed), Some(two));
        assert_eq!(two_newest(" a | 2.1-1 | somewhere main\n"), None);
    }
}
