//! Rules for the workspace: who may use whom, and what a manifest says.
//!
//! Owns: comparing `cargo metadata` with the layer table of ARCHITECTURE.md, and reading manifests.
//! Refuses: third parties' crates; `deny.toml` is about those.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::{Text, root};

/// What cargo says about one package of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Package {
    /// Our packages that it uses, in any way.
    pub(crate) uses: Vec<String>,
    pub(crate) version: String,
    pub(crate) published: bool,
    /// Root files of its crates, relative to the tree.
    pub(crate) crate_roots: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Metadata(pub(crate) BTreeMap<String, Package>);

impl Metadata {
    pub(crate) fn read() -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let arguments = [
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ];
        let output = Command::new(cargo)
            .args(arguments)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let json: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
        let packages = json["packages"].as_array().expect("packages");
        Self(
            packages
                .iter()
                .map(|p| (text(&p["name"]), package(p)))
                .collect(),
        )
    }

    pub(crate) fn crate_roots(&self) -> Vec<String> {
        self.0
            .values()
            .flat_map(|package| package.crate_roots.clone())
            .collect()
    }
}

fn package(json: &Value) -> Package {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let relative = |path: &Value| {
        let prefix = format!("{}/", root().display());
        text(path)
            .strip_prefix(&prefix)
            .unwrap_or_default()
            .to_owned()
    };
    let ours = list(&json["dependencies"])
        .into_iter()
        .filter(|d| d["path"].is_string());
    Package {
        uses: ours.map(|d| text(&d["name"])).collect(),
        version: text(&json["version"]),
        published: json["publish"]
            .as_array()
            .is_none_or(|registries| !registries.is_empty()),
        crate_roots: list(&json["targets"])
            .iter()
            .map(|t| relative(&t["src_path"]))
            .collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A row of the layer table.
#[derive(Debug)]
struct Row {
    layer: u32,
    may_use: Vec<String>,
}

/// Rows such as ``| 1 | `net` | types, sys |``.
fn table(architecture: &str) -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for line in architecture.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [layer, name, uses] = cells[..] else {
            continue;
        };
        let (Ok(layer), Some(name)) = (layer.parse(), name.strip_prefix('`')) else {
            continue;
        };
        let uses = uses
            .split(", ")
            .filter(|u| *u != "none")
            .map(str::to_owned)
            .collect();
        rows.insert(
            name.trim_end_matches('`').to_owned(),
            Row {
                layer,
                may_use: uses,
            },
        );
    }
    rows
}

/// The identity: below all layers, for every binary.
const IDENTITY: &str = "sifr";

pub(crate) fn layers(architecture: &str, metadata: &Metadata) -> Vec<String> {
    let rows = table(architecture);
    let mut complaints = Vec::new();
    for name in rows.keys().filter(|name| !metadata.0.contains_key(*name)) {
        complaints.push(format!(
            "ARCHITECTURE.md: {name} is in the layer table and not in the workspace"
        ));
    }
    for (name, package) in &metadata.0 {
        if package.published || package.version != "0.0.0" {
            complaints.push(format!(
                "{name}: publish = false and version 0.0.0: the commit is the version"
            ));
        }
        let Some(row) = rows.get(name) else {
            if name != IDENTITY {
                complaints.push(format!(
                    "ARCHITECTURE.md: {name} is missing from the layer table"
                ));
            }
            continue;
        };
        for used in &package.uses {
            let lower = used == IDENTITY
                || rows
                    .get(used)
                    .is_some_and(|r| r.layer < row.layer || r.layer == 2 && row.layer > 2);
            let granted = row.may_use.contains(used) || (used == IDENTITY && row.layer >= 2);
            if !granted {
                complaints.push(format!(
                    "{name} uses {used}, which the layer table does not allow"
                ));
            } else if !lower {
                complaints.push(format!("{name} uses {used}, which is not in a lower layer"));
            }
        }
    }
    complaints
}

pub(crate) fn manifest(file: &Text) -> Vec<String> {
    let is_root = file.text.contains("[workspace]");
    let mut complaints = Vec::new();
    let mut complain = |what: String| complaints.push(format!("{}: {what}", file.path));
    if section(&file.text, "lints") != ["workspace = true"] {
        complain("[lints] must say workspace = true".to_owned());
    }
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let lines = section(&file.text, kind);
        for line in lines
            .iter()
            .filter(|line| !line.contains("workspace = true"))
        {
            complain(format!("{line:?} must come from the workspace's table"));
        }
        if !lines.is_sorted() {
            complain(format!("[{kind}] is not sorted"));
        }
    }
    for field in ["version", "edition", "rust-version", "license", "publish"] {
        if !file.text.contains(&format!("{field}.workspace = true")) {
            complain(format!("{field}.workspace = true is missing"));
        }
    }
    if is_root && !file.text.contains("\npublish = false\n") {
        complain("the workspace must say publish = false".to_owned());
    }
    complaints
}

/// The lines of a table, without blanks and comments.
pub(crate) fn section<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("[{name}]");
    let lines = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != header)
        .skip(1);
    let body = lines.take_while(|line| !line.starts_with('['));
    body.filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "| layer | package | may use |\n|---|---|---|\n| 0 | `types` | none |\n\
        | 1 | `net` | types, sys |\n| 2 | `cli` | types, net |\n";

    fn metadata(packages: &[(&str, &[&str])]) -> Metadata {
        let package = |uses: &[&str]| Package {
            uses: uses.iter().map(|u| (*u).to_owned()).collect(),
            version: "0.0.0".to_owned(),
            ..Package::default()
        };
        Metadata(
            packages
                .iter()
                .map(|(name, uses)| ((*name).to_owned(), package(uses)))
                .collect(),
        )
    }

    #[test]
    fn an_edge_that_the_table_does_not_have_is_found() {
        let fine = metadata(&[
            ("types", &[]),
            ("net", &["types"]),
            ("cli", &["net", "sifr"]),
            ("sifr", &[]),
        ]);
        assert!(
            layers(TABLE, &fine).is_empty(),
            "{:?}",
            layers(TABLE, &fine)
        );
        let upward = metadata(&[("types", &["net"]), ("net", &["sifr"]), ("cli", &[])]);
        assert_eq!(
            layers(TABLE, &upward),
            [
                "net uses sifr, which the layer table does not allow",
                "types uses net, which the layer table does not allow"
            ]
        );
    }

    #[test]
    fn a_package_outside_the_table_and_a_row_without_package_are_found() {
        let complaints = layers(
            TABLE,
            &metadata(&[("types", &[]), ("net", &[]), ("odd", &[])]),
        );
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }

    #[test]
    fn a_manifest_that_goes_its_own_way_is_found() {
        let fine = "[package]\nversion.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
            license.workspace = true\npublish.workspace = true\n[dependencies]\nlibc.workspace = true\n\
            nix = { workspace = true }\n[lints]\nworkspace = true\n";
        let complaints = |text: &str| manifest(&Text::new("a/Cargo.toml", text));
        assert!(complaints(fine).is_empty(), "{:?}", complaints(fine));
        assert_eq!(
            complaints(&fine.replace("[lints]\nworkspace = true\n", "")).len(),
            1
        );
        assert_eq!(
            complaints(&fine.replace("libc.workspace = true", "libc = \"0.2\"")).len(),
            1
        );
        assert_eq!(complaints(&fine.replace("libc", "zlib")).len(), 1);
        assert_eq!(
            complaints(&fine.replace("publish.workspace = true\n", "")).len(),
            1
        );
    }
}
