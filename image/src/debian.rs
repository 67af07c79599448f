//! A kernel that we did not build: Debian's, as its package brings it.
//!
//! Owns: its download into the cache, and which of its modules are wanted, in which order.
//! Refuses: to install it, or to boot it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths::{self, Paths};
use crate::{apt, command};

/// A kernel that Debian built, and those of its modules that mount an EROFS on a virtio disk, in an order in
/// which each finds what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianKernel {
    pub image: PathBuf,
    pub modules: Vec<PathBuf>,
}

/// What is wanted of a kernel, before what depends on it. EROFS asks for the first by its purpose alone.
const MODULES: [&str; 4] = ["crc32c_generic", "virtio_pci", "virtio_blk", "erofs"];
/// The package that depends on the newest kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// Debian's kernel, as it comes.
pub fn kernel(paths: &Paths) -> Result<DebianKernel> {
    let home = paths.cache.join("tools").join(KERNEL_PACKAGE);
    if !home.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&home, |draft| {
            let list = apt::download(draft, KERNEL_PACKAGE)?;
            let mut field = command::clean("dpkg-deb");
            let depends = command::output(field.arg("--field").arg(&list).arg("Depends"))?;
            let package = depends.split_whitespace().next().unwrap_or_default();
            fs::remove_file(list).context("remove a package")?;
            let archive = apt::download(draft, package)?;
            let whole = draft.join("whole");
            extract(&archive, &whole)?;
            fs::remove_file(archive).context("remove a package")?;
            pick(&whole, draft)?;
            fs::remove_dir_all(whole).context("remove what is not wanted of a kernel")
        })?;
    }
    let modules = paths::entries(&home.join("modules"))?;
    Ok(DebianKernel {
        image: home.join("vmlinuz"),
        modules,
    })
}

/// Moves the kernel and the modules that are wanted, numbered in their order, out of an unpacked package.
fn pick(whole: &Path, home: &Path) -> Result<()> {
    let boot = paths::entries(&whole.join("boot"))?;
    let is_image = |file: &&PathBuf| {
        file.file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"vmlinuz"))
    };
    let image = boot
        .iter()
        .find(is_image)
        .context("the package has no kernel")?;
    fs::rename(image, home.join("vmlinuz")).context("keep the kernel")?;
    let mut all = BTreeMap::new();
    let mut left = vec![whole.join("lib/modules"), whole.join("usr/lib/modules")];
    left.retain(|directory| directory.is_dir());
    while let Some(directory) = left.pop() {
        for entry in paths::entries(&directory)? {
            let name = entry
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if entry.is_dir() {
                left.push(entry);
            } else if let Some((name, _)) = name.split_once(".ko") {
                all.insert(name.replace('-', "_"), entry);
            }
        }
    }
    let mut order = Vec::new();
    for name in MODULES {
        order_of(name, &all, &mut order)?;
    }
    let modules = home.join("modules");
    paths::create(&modules)?;
    for (index, (name, content)) in order.iter().enumerate() {
        paths::write(&modules.join(format!("{index:02}-{name}.ko")), content)?;
    }
    Ok(())
}

/// Adds a module behind those that it depends on. One that is not there is part of the kernel itself.
fn order_of(
    name: &str,
    all: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(file) = all
        .get(name)
        .filter(|_| order.iter().all(|(n, _)| n != name))
    else {
        return Ok(());
    };
    if file.extension().is_some_and(|e| e == "xz") {
        command::output(
            command::clean("xz")
                .args(["--decompress", "--keep"])
                .arg(file),
        )?;
    }
    let content = paths::read(&file.with_extension("").with_extension("ko"))?;
    for other in dependencies(&content) {
        order_of(&other, all, order)?;
    }
    order.push((name.to_owned(), content));
    Ok(())
}

/// What the section `.modinfo` of a module says: texts `key=value`, each with a NUL behind it.
fn dependencies(module: &[u8]) -> Vec<String> {
    let texts = module.split(|b| *b == 0);
    let found = texts.filter_map(|text| text.strip_prefix(b"depends="));
    let list = found
        .map(String::from_utf8_lossy)
        .next()
        .unwrap_or_default();
    let names = list.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

fn extract(archive: &Path, into: &Path) -> Result<()> {
    let mut unpack = command::clean("dpkg-deb");
    command::output(unpack.arg("--extract").arg(archive).arg(into))
        .with_context(|| format!("unpack {}", archive.display()))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_those_that_they_depend_on() {
        let work = tempfile::tempdir().expect("a directory");
        let module = |name: &str, depends: &str| {
            let file = work.path().join(format!("{name}.ko"));
            fs::write(
                &file,
                format!("\u{7f}ELF\0license=GPL\0depends={depends}\0x"),
            )
            .expect("a file");
            (name.replace('-', "_"), file)
        };
        let all = [module("a", "b-1,c"), module("b-1", "c"), module("c", "")].into();
        let mut order = Vec::new();
        for name in ["a", "built_in", "c"] {
            order_of(name, &all, &mut order).expect("readable");
        }
        let names: Vec<_> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["c", "b_1", "a"]);
    }
}
