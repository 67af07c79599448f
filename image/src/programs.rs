//! Our own programs, static, the same bytes wherever they are built.
//!
//! Owns: cargo's flags for the image.
//! Refuses: paths of this machine inside a program, and a lock file that is out of date.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sifr::Identity;

use crate::command;
use crate::paths::Paths;
use crate::setup::TARGET;

/// Packages whose programs are in the image.
pub(crate) const IN_IMAGE: [&str; 3] = ["init", "guest", "vmm"];

/// Where each program was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub init: PathBuf,
    pub guest: PathBuf,
    pub vmm: PathBuf,
    /// The owner's and tenant's command; not in the image.
    pub cli: PathBuf,
}

/// Builds all of them. Cargo shows its own progress.
pub fn build(paths: &Paths) -> Result<Programs> {
    // The command line is built apart: cargo would otherwise give the programs of the image every
    // feature that the command line's dependencies turn on.
    for packages in [&IN_IMAGE[..], &["cli"][..]] {
        let mut cargo = cargo(paths)?;
        cargo.args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ]);
        cargo.arg(paths.target());
        packages.iter().for_each(|package| {
            cargo.args(["--package", package]);
        });
        command::show(&mut cargo).context("build the programs of the image")?;
    }
    let program = |name: &str| paths.target().join(TARGET).join("release").join(name);
    Ok(Programs {
        init: program("init"),
        guest: program("sifr-guest"),
        vmm: program("sifr-vmm"),
        cli: program("sifr"),
    })
}

/// The identity that [`build`] stamps: ours, but for what changed in the tree since we were built.
pub(crate) fn identity(paths: &Paths) -> Identity {
    let dirty = tree(&paths.root).is_some_and(|tree| tree == "dirty");
    Identity {
        dirty,
        ..sifr::IDENTITY
    }
}

pub(crate) fn rustc_version() -> Result<String> {
    Ok(command::output(command::clean("rustc").arg("--version"))?
        .trim()
        .to_owned())
}

fn cargo(paths: &Paths) -> Result<Command> {
    let mut cargo = plain_cargo(paths);
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let maps = [(home.as_path(), "/cargo"), (paths.root.as_path(), "/sifr")];
    let map = |flag: &str, separator: &str| {
        let flags: Vec<_> = maps
            .iter()
            .map(|(from, to)| format!("{flag}={}={to}", from.display()))
            .collect();
        flags.join(separator)
    };
    // Unit separators, so that a path may hold spaces.
    cargo.env(
        "CARGO_ENCODED_RUSTFLAGS",
        map("--remap-path-prefix", "\u{1f}"),
    );
    cargo.env_remove("RUSTFLAGS");
    cargo.env(
        format!("CFLAGS_{}", TARGET.replace('-', "_")),
        map("-ffile-prefix-map", " "),
    );
    if let Some(tree) = tree(&paths.root) {
        cargo.env("SIFR_TREE", tree);
    }
    Ok(cargo)
}

/// Cargo in the repository, with no flags of ours.
pub fn plain_cargo(paths: &Paths) -> Command {
    let program = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut cargo = command::clean(&program);
    // What `cargo run` told us about ourselves must not reach another build.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_MANIFEST_PATH");
    cargo.current_dir(&paths.root);
    cargo
}

/// Whether tracked files differ from the commit, at this moment. `None` outside a git work tree.
fn tree(root: &Path) -> Option<&'static str> {
    let mut git = command::clean("git");
    git.arg("-C")
        .arg(root)
        .args(["status", "--porcelain", "--untracked-files=no"]);
    let changes = command::output(&mut git).ok()?;
    Some(if changes.is_empty() { "clean" } else { "dirty" })
}
