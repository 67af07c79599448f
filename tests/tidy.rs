//! The house rules of STYLE.md as a test.
//!
//! Owns: walking the tree, and one test per rule. Each rule is a function from text to complaints, and
//! beside it stands a test that it can complain.
//! Refuses: rules that need judgement. Those are in STYLE.md, for people.

#[path = "tidy/crates.rs"]
mod crates;
#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/papers.rs"]
mod papers;
#[path = "tidy/scrub.rs"]
mod scrub;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/workspace.rs"]
mod workspace;

use std::fs;
use std::path::{Path, PathBuf};

/// One file of the tree, its path relative to the root with `/` between its parts.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) path: String,
    pub(crate) text: String,
}

#[cfg(test)]
impl Text {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files that end in `.extension`, without what is built.
fn files(extension: &str) -> Vec<Text> {
    let mut found = Vec::new();
    walk(root(), extension, &mut found);
    found.sort();
    assert!(
        !found.is_empty(),
        "no .{extension} file below {}",
        root().display()
    );
    let read = |path: PathBuf| {
        let relative = path.strip_prefix(root()).expect("below the root");
        let name = relative
            .to_str()
            .expect("paths of this tree are text")
            .to_owned();
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {name}: {e}"));
        Text { path: name, text }
    };
    found.into_iter().map(read).collect()
}

fn walk(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the tree") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let built = matches!(name, "target" | "dist" | "run") && directory == root();
        if path.is_dir() && !built && !name.starts_with('.') {
            walk(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            found.push(path);
        }
    }
}

fn manifests() -> Vec<Text> {
    let all = files("toml").into_iter();
    all.filter(|file| file.path.ends_with("Cargo.toml"))
        .collect()
}

/// Runs one rule over files and fails with all complaints at once.
fn hold(files: &[Text], rule: impl Fn(&Text) -> Vec<String>) {
    let complaints: Vec<String> = files.iter().flat_map(rule).collect();
    none(&complaints);
}

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_file_says_what_it_owns() {
        hold(&files("rs"), source::header);
    }

    #[test]
    fn files_and_functions_are_short() {
        hold(&files("rs"), source::lengths);
    }

    #[test]
    fn unsafe_has_an_address() {
        hold(&files("rs"), source::unsafe_code);
    }

    #[test]
    fn nothing_is_left_to_do() {
        hold(&files("rs"), source::leftovers);
    }

    #[test]
    fn every_source_file_is_compiled() {
        let files = files("rs");
        none(&source::unreachable(
            &files,
            &workspace::Metadata::read().crate_roots(),
        ));
    }

    #[test]
    fn dependencies_follow_the_layers() {
        let table = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
        none(&workspace::layers(&table, &workspace::Metadata::read()));
    }

    #[test]
    fn manifests_inherit_from_the_workspace() {
        hold(&manifests(), workspace::manifest);
    }

    #[test]
    fn every_dependency_has_a_reason_and_a_use() {
        let (manifests, sources) = (manifests(), files("rs"));
        let root = manifests.iter().find(|file| file.path == "Cargo.toml");
        let root = root.expect("a Cargo.toml");
        none(&dependencies::reasons(root));
        none(&dependencies::unused(root, &manifests));
        hold(&manifests, |file| dependencies::unnamed(file, &sources));
    }

    #[test]
    fn every_crate_is_one_that_deny_toml_allows() {
        let deny = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
        none(&crates::complaints(&deny, &crates::resolved(&deny)));
    }

    #[test]
    fn every_kernel_option_has_a_reason_and_one_place() {
        for side in ["host", "guest"] {
            let all = files("config").into_iter();
            let fragments: Vec<Text> = all
                .filter(|f| f.path.starts_with(&format!("kernel-config/{side}/")))
                .collect();
            assert!(!fragments.is_empty(), "no fragments for {side}");
            none(&papers::fragments(&fragments));
        }
    }

    #[test]
    fn every_page_has_one_title() {
        hold(&files("md"), papers::title);
    }

    #[test]
    fn the_changelog_keeps_its_form() {
        let changelog = files("md").into_iter().find(|f| f.path == "CHANGELOG.md");
        none(&papers::changelog(&changelog.expect("a CHANGELOG.md")));
    }

    #[test]
    fn every_refusal_is_explained() {
        let status =
            fs::read_to_string(root().join("crates/types/src/status.rs")).expect("status.rs");
        let page = files("md").into_iter().find(|f| f.path == "docs/errors.md");
        none(&papers::refusals(&status, &page.expect("a docs/errors.md")));
    }
}
