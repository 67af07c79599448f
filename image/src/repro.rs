//! Two builds of one commit, compared.
//!
//! Owns: cloning the commit into two directories, building both images, and saying what differs.
//! Refuses: comparing anything but bytes. Kernels and XFS programs come from the cache for both: their
//! keys say what they were made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::paths::{self, Paths};
use crate::{assemble, command};

/// Of different length and depth, so that a path in a program shows.
const DIRECTORIES: [&str; 2] = ["repro/a", "repro/second/and-longer"];

/// Builds the committed state twice and compares `dist/` file by file.
pub fn repro(paths: &Paths) -> Result<()> {
    let work = paths.run.join("repro");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("clear {}", work.display()))?;
    }
    let mut builds: Vec<Paths> = Vec::new();
    for directory in DIRECTORIES {
        // The second is cloned from the first: a commit made meanwhile changes neither.
        let origin = builds.first().map_or(&paths.root, |first| &first.root);
        let root = paths.run.join(directory);
        let mut git = command::clean("git");
        git.args(["clone", "--quiet", "--local"])
            .arg(origin)
            .arg(&root);
        command::output(&mut git).context("clone the commit")?;
        let build = Paths {
            dist: root.join("dist"),
            run: root.join("run"),
            root,
            cache: paths.cache.clone(),
        };
        assemble::build(&build, None)?;
        builds.push(build);
    }
    let [first, second] = [&builds[0].dist, &builds[1].dist];
    let different = different(first, second)?;
    ensure!(
        different.is_empty(),
        "not reproducible: {} differ between {} and {}",
        different.join(", "),
        first.display(),
        second.display()
    );
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    println!("two builds in different directories gave the same bytes");
    Ok(())
}

/// Names of files that are not the same in both directories.
fn different(first: &Path, second: &Path) -> Result<Vec<String>> {
    let names = |directory: &Path| -> Result<Vec<String>> {
        let entries = paths::entries(directory)?;
        Ok(entries
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    };
    let mut all = names(first)?;
    all.extend(names(second)?);
    all.sort();
    all.dedup();
    ensure!(
        !all.is_empty(),
        "there is nothing to compare in {}",
        first.display()
    );
    let read = |directory: &Path, name: &str| fs::read(directory.join(name)).ok();
    all.retain(|name| match (read(first, name), read(second, name)) {
        (Some(a), Some(b)) => a != b,
        (None, _) | (_, None) => true,
    });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_or_are_missing_are_named() {
        let directory = || tempfile::tempdir().expect("a directory");
        let (a, b) = (directory(), directory());
        for (directory, name, content) in [
            (&a, "same", "1"),
            (&b, "same", "1"),
            (&a, "other", "1"),
            (&b, "other", "2"),
            (&a, "one", "1"),
        ] {
            fs::write(directory.path().join(name), content).expect("write");
        }
        assert_eq!(
            different(a.path(), b.path()).expect("compared"),
            ["one", "other"]
        );
    }

    #[test]
    fn two_empty_directories_are_no_proof() {
        let (a, b) = (
            tempfile::tempdir().expect("a"),
            tempfile::tempdir().expect("b"),
        );
        assert!(different(a.path(), b.path()).is_err());
    }
}
