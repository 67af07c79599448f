//! The licences of everything in the image, as one text.
//!
//! Owns: `/etc/sifr/licences`: which crates are linked in, and the texts of what is not a crate.
//! Refuses: crates that only build the others.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::kernel;
use crate::paths::{self, Paths};
use crate::programs;
use crate::setup::TARGET;
use crate::xfsprogs::Xfsprogs;
use crate::{command, lock::Source};

/// Packages whose programs are in the image.
const ROOTS: [&str; 3] = ["guest", "init", "vmm"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `None` for a dependency that is linked in.
    kind: Option<String>,
}

/// Composes the text.
pub(crate) fn licences(paths: &Paths, linux: &Source, xfsprogs: &Xfsprogs) -> Result<String> {
    let mut cargo = programs::plain_cargo(paths);
    cargo.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        TARGET,
    ]);
    let metadata = command::output(&mut cargo).context("list the crates")?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let tree = kernel::tree(paths)?;
    let texts = [
        ("Linux, COPYING", paths::text(&tree.join("COPYING"))?),
        ("Linux, LICENSES/exceptions", {
            paths::text(&tree.join("LICENSES/exceptions/Linux-syscall-note"))?
        }),
        ("GNU General Public License, version 2", {
            paths::text(&tree.join("LICENSES/preferred/GPL-2.0"))?
        }),
        ("xfsprogs", paths::text(&xfsprogs.licence)?),
    ];
    Ok(compose(
        &linked(&metadata),
        &[linux, &xfsprogs.source],
        &texts,
    ))
}

fn compose(
    crates: &BTreeSet<(String, String, String)>,
    sources: &[&Source],
    texts: &[(&str, String)],
) -> String {
    let mut out = "Programs in this image, and their licences.\n\n".to_owned();
    for source in sources {
        let Source { name, version, .. } = source;
        out.push_str(&format!(
            "{name} {version}: Debian's source package of that version\n"
        ));
    }
    for (name, version, licence) in crates {
        out.push_str(&format!("{name} {version}: {licence}\n"));
    }
    for (title, text) in texts {
        out.push_str(&format!("\n==== {title} ====\n\n{}\n", text.trim_end()));
    }
    out
}

/// Name, version and licence of every crate linked into a program of the image.
fn linked(metadata: &Metadata) -> BTreeSet<(String, String, String)> {
    let packages: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|p| (p.id.as_str(), p))
        .collect();
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .nodes
        .iter()
        .map(|n| (n.id.as_str(), n))
        .collect();
    let roots = metadata
        .packages
        .iter()
        .filter(|p| ROOTS.contains(&p.name.as_str()));
    let mut queue: Vec<&str> = roots.map(|p| p.id.as_str()).collect();
    let mut seen: BTreeSet<&str> = queue.iter().copied().collect();
    while let Some(id) = queue.pop() {
        let Some(node) = nodes.get(id) else { continue };
        for dependency in &node.deps {
            let linked = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            if linked && seen.insert(&dependency.pkg) {
                queue.push(&dependency.pkg);
            }
        }
    }
    seen.iter()
        .filter_map(|id| packages.get(id))
        .map(|p| {
            let licence = p
                .license
                .clone()
                .unwrap_or_else(|| "see its source".to_owned());
            (p.name.clone(), p.version.clone(), licence)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crates_that_are_linked_in_are_listed() {
        let package = |name: &str| Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1".to_owned(),
            license: Some("MIT".to_owned()),
        };
        let node = |name: &str, deps: &[(&str, Option<&str>)]| Node {
            id: name.to_owned(),
            deps: deps
                .iter()
                .map(|(pkg, kind)| Dependency {
                    pkg: (*pkg).to_owned(),
                    dep_kinds: vec![Kind {
                        kind: kind.map(str::to_owned),
                    }],
                })
                .collect(),
        };
        let metadata = Metadata {
            packages: ["init", "a", "b", "builder", "unused"].map(package).into(),
            resolve: Resolve {
                nodes: vec![
                    node("init", &[("a", None), ("builder", Some("build"))]),
                    node("a", &[("b", None)]),
                    node("b", &[]),
                    node("unused", &[]),
                ],
            },
        };
        let names: Vec<_> = linked(&metadata)
            .into_iter()
            .map(|(name, ..)| name)
            .collect();
        assert_eq!(names, ["a", "b", "init"]);
    }
}
