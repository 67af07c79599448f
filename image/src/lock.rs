//! Which source packages this commit was tested with.
//!
//! Owns: `kernel-config/source.lock`, one `name version sha256` a line.
//! Refuses: nothing. A package that Debian has since updated is a warning, because security fixes
//! must get in without a commit.

use anyhow::{Context, Result};

use crate::command;
use crate::paths::{self, Paths};

/// A source package as found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub version: String,
    /// Of the tarball or of the signed source description.
    pub sha256: String,
}

pub(crate) fn installed_version(package: &str) -> Result<String> {
    let mut query = command::clean("dpkg-query");
    let version = command::output(query.args(["--show", "--showformat=${Version}", package]))?;
    Ok(version.trim().to_owned())
}

/// Debian's source package of an installed package, as `name version`.
pub(crate) fn source_package(package: &str) -> Result<String> {
    let format = "--showformat=${source:Package} ${source:Version}";
    command::output(command::clean("dpkg-query").args(["--show", format, package]))
}

pub(crate) fn name_and_version(text: &str) -> Result<(&str, &str)> {
    let pair = text.trim().split_once(' ');
    pair.with_context(|| format!("{text:?} is not a name and a version"))
}

/// Says so when `found` is not what the lock file names.
pub(crate) fn compare(paths: &Paths, found: &Source) -> Result<()> {
    let lock = paths::text(&paths.root.join("kernel-config/source.lock"))?;
    if let Some(warning) = difference(&lock, found) {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn difference(lock: &str, found: &Source) -> Option<String> {
    let Source {
        name,
        version,
        sha256,
    } = found;
    let line = format!("{name} {version} {sha256}");
    let locked = lock
        .lines()
        .find(|line| line.split(' ').next() == Some(name));
    match locked {
        Some(locked) if locked == line => None,
        Some(locked) => Some(format!(
            "this machine has \"{line}\", this commit was tested with \"{locked}\": \
             if it works, put the new line in kernel-config/source.lock"
        )),
        None => Some(format!(
            "kernel-config/source.lock does not name {name}: add \"{line}\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_or_unknown_source_is_spoken_of() {
        let source = |version: &str| Source {
            name: "linux".to_owned(),
            version: version.to_owned(),
            sha256: "ab".to_owned(),
        };
        let lock = "# why\nlinux 6.12.1 ab\n";
        assert_eq!(difference(lock, &source("6.12.1")), None);
        let says = difference(lock, &source("6.12.2")).expect("a warning");
        assert!(says.contains("linux 6.12.2 ab") && says.contains("linux 6.12.1 ab"));
        assert!(difference("", &source("6.12.1")).is_some_and(|says| says.contains("add")));
    }
}
