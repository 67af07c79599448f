//! Rules for what we depend on: a reason for each, and none that nobody uses.
//!
//! Owns: reading the workspace's table of dependencies, and finding their names in the sources.
//! Refuses: the crates below them; `deny.toml` and `crates.rs` are about those.

use crate::Text;
use crate::scrub::scrub;
use crate::workspace::section;

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Every crate of others stands with its reason, on its own line.
pub(crate) fn reasons(root: &Text) -> Vec<String> {
    let lines = section(&root.text, "workspace.dependencies");
    let theirs = lines.into_iter().filter(|line| !line.contains("path = "));
    theirs
        .filter(|line| line.split_once(" # ").is_none_or(|(_, why)| why.is_empty()))
        .map(|line| format!("{}: {line:?} has no reason: write one after #", root.path))
        .collect()
}

/// Every dependency of the workspace is a member's.
pub(crate) fn unused(root: &Text, manifests: &[Text]) -> Vec<String> {
    let used: Vec<&str> = manifests.iter().flat_map(dependencies).collect();
    let table = section(&root.text, "workspace.dependencies");
    table
        .into_iter()
        .map(name)
        .filter(|name| !used.contains(name))
        .map(|name| format!("{}: no member uses {name}: take it out", root.path))
        .collect()
}

/// Every dependency of a member is named in its sources.
pub(crate) fn unnamed(manifest: &Text, sources: &[Text]) -> Vec<String> {
    let folder = manifest.path.trim_end_matches("Cargo.toml");
    let is_own = |path: &str| match folder {
        "" => ["build.rs", "src/", "tests/"]
            .iter()
            .any(|start| path.starts_with(start)),
        folder => path.starts_with(folder),
    };
    let own = sources.iter().filter(|source| is_own(&source.path));
    let code: String = own.map(|source| scrub(&source.text)).collect();
    let words: Vec<&str> = code
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    dependencies(manifest)
        .into_iter()
        .filter(|name| !words.contains(&name.replace('-', "_").as_str()))
        .map(|name| format!("{}: nothing names {name}: take it out", manifest.path))
        .collect()
}

fn dependencies(manifest: &Text) -> Vec<&str> {
    let lines = KINDS.iter().flat_map(|kind| section(&manifest.text, kind));
    lines.map(name).collect()
}

/// `libc` of `libc.workspace = true` and `libc = "0.2"`.
fn name(line: &str) -> &str {
    line.split(['.', ' ', '=']).next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let table = "[workspace.dependencies]\n# Data.\nnet = { path = \"net\" }\n\
                     serde = \"1\" # structures\nlog = \"0.4\"\n";
        let complaints = reasons(&Text::new("Cargo.toml", table));
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("log"));
    }

    #[test]
    fn a_dependency_that_no_member_has_is_found() {
        let root = Text::new(
            "Cargo.toml",
            "[workspace.dependencies]\nlog = \"0.4\"\nserde-x = \"1\"\ntar = \"1\"\n",
        );
        let member = Text::new(
            "a/Cargo.toml",
            "[dependencies]\nlog.workspace = true\n[dev-dependencies]\ntar = { workspace = true }\n",
        );
        let complaints = unused(&root, &[member]);
        assert_eq!(
            complaints,
            ["Cargo.toml: no member uses serde-x: take it out"]
        );
    }

    #[test]
    fn a_dependency_that_only_a_comment_names_is_found() {
        let manifest = Text::new(
            "a/Cargo.toml",
            "[dependencies]\nhttp-body.workspace = true\nlog.workspace = true\n",
        );
        let sources = [
            Text::new("a/src/lib.rs", "// log\nuse http_body::Body;\n"),
            Text::new("b/src/lib.rs", "use log::warn;\n"),
        ];
        assert_eq!(
            unnamed(&manifest, &sources),
            ["a/Cargo.toml: nothing names log: take it out"]
        );
        let root = Text::new(
            "Cargo.toml",
            "[build-dependencies]\nsha2.workspace = true\n",
        );
        assert!(unnamed(&root, &[Text::new("build.rs", "use sha2::Sha256;")]).is_empty());
    }
}
