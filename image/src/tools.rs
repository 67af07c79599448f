//! Programs of Debian that tests need and that are not installed: as packages they would start a service.
//!
//! Owns: their download into the cache, unpacked. Refuses: to run them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::paths::{self, Paths};
use crate::{apt, command};

/// Debian's container registry: the program.
pub fn docker_registry(paths: &Paths) -> Result<PathBuf> {
    unpacked(paths, "docker-registry", "usr/bin/docker-registry")
}

/// A file of a package. apt checks the signatures.
fn unpacked(paths: &Paths, package: &str, file: &str) -> Result<PathBuf> {
    let home = paths.cache.join("tools").join(package);
    if !home.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&home, |draft| {
            eprintln!("download {package} ...");
            let apt = apt::Private::new(draft, "deb").context("list Debian's packages")?;
            apt.run(&["download", package])
                .with_context(|| format!("download the package {package}"))?;
            apt.close()?;
            let archives = paths::entries(draft)?;
            let [archive] = &archives[..] else {
                anyhow::bail!(
                    "apt-get download {package} left {archives:?}, and one file was expected"
                );
            };
            let mut unpack = command::clean("dpkg-deb");
            command::output(unpack.arg("--extract").arg(archive).arg(draft))
                .with_context(|| format!("unpack the package {package}"))?;
            Ok(())
        })?;
    }
    let program = home.join(file);
    ensure!(
        program.is_file(),
        "{} is missing: remove {}, then run this again",
        program.display(),
        home.display()
    );
    Ok(program)
}
