//! Stamps the build identity: git commit, whether the tree differs from it, digest of the kernel
//! configuration.
//!
//! Owns: the environment variables that `src/lib.rs` reads at compile time.
//! Refuses: clocks and host names, so that two builds of one commit are the same bytes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernel-config");
    // The image builder asks git at the moment it builds; without it the answer is as old as the
    // last commit, because watching every file would rebuild every binary at every edit.
    println!("cargo::rerun-if-env-changed=SIFR_TREE");
    for path in ["HEAD", "packed-refs"] {
        watch(&root, path);
    }
    if let Some(branch) = git(&root, &["symbolic-ref", "--quiet", "HEAD"]) {
        watch(&root, &branch);
    }
    let commit = git(&root, &["rev-parse", "--short=7", "HEAD"]);
    let tree = match (&commit, env::var("SIFR_TREE").ok()) {
        (None, _) => "clean".to_owned(),
        (Some(_), Some(tree)) => tree,
        (Some(_), None) => tree(&root).to_owned(),
    };
    println!(
        "cargo::rustc-env=SIFR_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
    println!("cargo::rustc-env=SIFR_TREE={tree}");
    println!(
        "cargo::rustc-env=SIFR_KERNEL_CONFIG={}",
        kernel_config(&root.join("kernel-config"))
    );
}

/// `None` where this is no git work tree of its own, or git is missing.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    if !root.join(".git").exists() {
        return None;
    }
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(arguments)
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn watch(root: &Path, name: &str) {
    let Some(path) = git(root, &["rev-parse", "--git-path", name]) else {
        return;
    };
    // A missing file would make cargo run this at every build.
    if root.join(&path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn tree(root: &Path) -> &'static str {
    match git(root, &["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => "clean",
        _ => "dirty",
    }
}

/// First eight digits of the SHA-256 of every fragment: its path, its length, its bytes, in the order of the
/// paths.
fn kernel_config(directory: &Path) -> String {
    let mut files = Vec::new();
    collect(directory, &mut files);
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let bytes = fs::read(&file).unwrap_or_else(|error| {
            panic!("read kernel configuration {}: {error}", file.display())
        });
        let name = file.strip_prefix(directory).expect("it was found there");
        digest.update(name.as_os_str().as_encoded_bytes());
        digest.update([0]);
        digest.update(
            u64::try_from(bytes.len())
                .expect("a length fits")
                .to_le_bytes(),
        );
        digest.update(bytes);
    }
    digest
        .finalize()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| {
        panic!("list kernel configuration {}: {error}", directory.display())
    });
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "config")
        {
            files.push(path);
        }
    }
}
