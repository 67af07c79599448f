//! The licences of everything in the image, as one text.
//!
//! Owns: which parts are linked into the image, the text of each licence once, and where the source of
//! what is under the GPL is to be had.
//! Refuses: crates that only build the others, and a part without a text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::lock::{self, Source};
use crate::paths::{self, Paths};
use crate::programs::{self, IN_IMAGE};
use crate::setup::TARGET;
use crate::xfsprogs::Xfsprogs;
use crate::{command, digest, kernel};

/// Beginnings of the names of files with a licence or a notice in them, in capitals.
const TEXT_NAMES: [&str; 6] = [
    "COPYING",
    "COPYRIGHT",
    "LICENCE",
    "LICENSE",
    "NOTICE",
    "UNLICENSE",
];
/// Folders of a crate whose content is not linked in.
const ASIDE: [&str; 5] = ["benches", "examples", "fuzz", "target", "tests"];
/// The copyright file of Debian's musl; Rust's target brings another version of it under the same.
const MUSL: &str = "/usr/share/doc/musl/copyright";

/// Something in the image that has a licence of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: String,
    version: String,
    /// An SPDX expression, or what else says it shortly.
    licence: String,
    texts: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
}

/// Composes the text.
pub(crate) fn licences(paths: &Paths, linux: &Source, xfsprogs: &Xfsprogs) -> Result<String> {
    let copyleft = copyleft(paths, linux, xfsprogs)?;
    let mut others = vec![ours(paths)?];
    others.extend(rust()?);
    others.extend(crates(paths)?);
    compose(&copyleft, &others)
}

/// What is under the GPL or linked into it.
fn copyleft(paths: &Paths, linux: &Source, xfsprogs: &Xfsprogs) -> Result<Vec<Part>> {
    let tree = kernel::tree(paths)?;
    let kernel_text = |name: &str| paths::text(&tree.join(name));
    let package = lock::source_package(&linux.name)?;
    let (name, version) = lock::name_and_version(&package)?;
    let mut parts = vec![
        Part {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: "GPL-2.0-only WITH Linux-syscall-note".to_owned(),
            texts: vec![
                kernel_text("COPYING")?,
                kernel_text("LICENSES/exceptions/Linux-syscall-note")?,
                kernel_text("LICENSES/preferred/GPL-2.0")?,
            ],
        },
        Part {
            name: xfsprogs.source.name.clone(),
            version: xfsprogs.source.version.clone(),
            licence: "GPL-2.0-only AND LGPL-2.1-only".to_owned(),
            texts: vec![
                paths::text(&xfsprogs.licence)?,
                kernel_text("LICENSES/preferred/LGPL-2.1")?,
            ],
        },
    ];
    for library in &xfsprogs.libraries {
        parts.push(Part {
            name: library.name.clone(),
            version: library.version.clone(),
            licence: "linked into mkfs.xfs or xfs_repair".to_owned(),
            texts: vec![paths::text(&library.copyright)?],
        });
    }
    Ok(parts)
}

fn ours(paths: &Paths) -> Result<Part> {
    let text = |name: &str| paths::text(&paths.root.join(name));
    Ok(Part {
        name: "sifr".to_owned(),
        version: sifr::IDENTITY.version.to_owned(),
        licence: "MIT OR Apache-2.0".to_owned(),
        texts: vec![text("LICENSE-MIT")?, text("LICENSE-APACHE")?],
    })
}

/// What the compiler links into every program.
fn rust() -> Result<[Part; 2]> {
    let root = command::output(command::clean("rustc").args(["--print", "sysroot"]))?;
    let notices = Path::new(root.trim()).join("share/doc/rust/COPYRIGHT-library.html");
    let version = programs::rustc_version()?;
    let part = |name: &str, licence: &str, text: String| Part {
        name: name.to_owned(),
        version: version.clone(),
        licence: licence.to_owned(),
        texts: vec![text],
    };
    let library = plain(&paths::text(&notices).context("find the notices of Rust's library")?);
    Ok([
        part(
            "Rust standard library of",
            "MIT OR Apache-2.0, and others",
            library,
        ),
        part("musl of", "MIT", paths::text(Path::new(MUSL))?),
    ])
}

/// HTML without its tags.
fn plain(html: &str) -> String {
    let mut out = String::new();
    for (at, piece) in html.split('<').enumerate() {
        let text = match at {
            0 => piece,
            _ => piece.split_once('>').map_or("", |(_, text)| text),
        };
        out.push_str(text);
    }
    for (code, character) in [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#60;", "<"),
        ("&#62;", ">"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        // Last, so that nothing is decoded twice.
        ("&amp;", "&"),
    ] {
        out = out.replace(code, character);
    }
    let lines: Vec<_> = out.lines().map(str::trim_end).collect();
    let mut kept: Vec<&str> = Vec::new();
    for line in lines {
        if !line.is_empty() || kept.last().is_some_and(|last| !last.is_empty()) {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// Every crate of others that is linked into a program of the image.
fn crates(paths: &Paths) -> Result<Vec<Part>> {
    let mut tree = programs::plain_cargo(paths);
    tree.args(["tree", "--locked", "--prefix=none", "--format={p}"])
        .args(["--edges=normal,no-proc-macro", "--target", TARGET]);
    for package in IN_IMAGE {
        tree.args(["--package", package]);
    }
    let linked = linked(&command::output(&mut tree).context("list the crates of the image")?);
    let mut metadata = programs::plain_cargo(paths);
    metadata
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", TARGET]);
    let metadata = command::output(&mut metadata).context("find the crates of the image")?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let mut parts = Vec::new();
    for package in metadata.packages {
        let Package {
            name,
            version,
            license,
            manifest_path,
        } = package;
        let is_ours = manifest_path.starts_with(&paths.root);
        if is_ours || !linked.contains(&(name.clone(), version.clone())) {
            continue;
        }
        let folder = manifest_path.parent().context("a manifest has a folder")?;
        let mut files = Vec::new();
        find(folder, &mut files)?;
        let texts = files
            .iter()
            .map(|file| Ok(String::from_utf8_lossy(&paths::read(file)?).into_owned()))
            .collect::<Result<_>>()?;
        parts.push(Part {
            name,
            version,
            licence: license.unwrap_or_else(|| "as its text says".to_owned()),
            texts,
        });
    }
    parts.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(parts)
}

/// Name and version in each line of `cargo tree`: `libc v0.2.1 (*)`.
fn linked(tree: &str) -> BTreeSet<(String, String)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some((name.to_owned(), version.to_owned()))
    };
    tree.lines().filter_map(line).collect()
}

/// Licence files of a crate, also of the C code inside it.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in paths::entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let capitals = name.to_uppercase();
        let named = TEXT_NAMES.iter().any(|start| capitals.starts_with(start));
        let in_named_folder = folder.ends_with("LICENSES");
        if path.is_dir() {
            if !name.starts_with('.') && !ASIDE.contains(&name.as_ref()) {
                find(&path, found)?;
            }
        } else if (named || in_named_folder) && !capitals.ends_with(".RS") {
            found.push(path);
        }
    }
    Ok(())
}

fn compose(copyleft: &[Part], others: &[Part]) -> Result<String> {
    let mut texts = Texts::default();
    let mut out = "\
What is in this image, and under which licences.
The numbers in brackets are those of the texts below.

Under the GNU General Public License, or linked into what is:

"
    .to_owned();
    out.push_str(&texts.list(copyleft)?);
    out.push_str(
        "
The source of each of these is the Debian source package of that name and version. How they were
configured and built stands in kernel-config/ and image/ of Sifr's own source, at the commit that
the node shows. Whoever gave you this image gives you all of it on request, for three years, at the
price of copying it (GNU General Public License, version 2, section 3).

Under other licences:

",
    );
    out.push_str(&texts.list(others)?);
    for (at, text) in (1..).zip(&texts.all) {
        out.push_str(&format!("\n==== text {at} ====\n\n{}\n", text.trim_end()));
    }
    Ok(out)
}

/// Each text once, however it is broken into lines.
#[derive(Debug, Default)]
struct Texts {
    all: Vec<String>,
    numbers: BTreeMap<String, usize>,
}

impl Texts {
    /// One line for each part.
    fn list(&mut self, parts: &[Part]) -> Result<String> {
        let mut out = String::new();
        for part in parts {
            let Part {
                name,
                version,
                licence,
                texts,
            } = part;
            ensure!(!texts.is_empty(), "{name} {version} has no licence text");
            let numbers: BTreeSet<_> = texts.iter().map(|text| self.number(text)).collect();
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            let numbers = numbers.join(", ");
            out.push_str(&format!("  {name} {version}: {licence} [{numbers}]\n"));
        }
        Ok(out)
    }

    fn number(&mut self, text: &str) -> usize {
        let words: Vec<_> = text.split_whitespace().collect();
        let digest = digest::sha256(words.join(" ").as_bytes());
        *self.numbers.entry(digest).or_insert_with(|| {
            self.all.push(text.to_owned());
            self.all.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn part(name: &str, texts: &[&str]) -> Part {
        Part {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT".to_owned(),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn each_text_is_there_once_and_every_part_names_its_own() {
        let all = compose(
            &[part("linux", &["gpl"])],
            &[
                part("a", &["mit\nof a", "apache"]),
                part("b", &["apache\n", "mit of a"]),
            ],
        )
        .expect("every part has a text");
        assert!(all.contains("  linux 1.0.0: MIT [1]\n"), "{all}");
        assert!(all.contains("  a 1.0.0: MIT [2, 3]\n") && all.contains("  b 1.0.0: MIT [2, 3]\n"));
        assert!(all.ends_with("==== text 3 ====\n\napache\n"), "{all}");
        assert_eq!(all.matches("apache").count(), 1);
    }

    #[test]
    fn a_part_without_a_text_stops_the_build() {
        let error = compose(&[part("linux", &["gpl"])], &[part("bare", &[])]);
        let error = error.expect_err("there is no text").to_string();
        assert_eq!(error, "bare 1.0.0 has no licence text");
    }

    #[test]
    fn texts_are_found_beside_the_code_and_inside_it() {
        let folder = tempfile::tempdir().expect("a directory");
        for name in [
            "LICENSE-MIT",
            "c/Copying",
            "LICENSES/ISC.txt",
            "src/license.rs",
            "tests/LICENSE",
            ".github/LICENSE",
            "README.md",
        ] {
            paths::write(&folder.path().join(name), name).expect("write");
        }
        let mut found = Vec::new();
        find(folder.path(), &mut found).expect("readable");
        let names: Vec<_> = found
            .iter()
            .map(|path| fs::read_to_string(path).expect("readable"))
            .collect();
        assert_eq!(names, ["LICENSE-MIT", "LICENSES/ISC.txt", "c/Copying"]);
    }

    #[test]
    fn cargos_tree_names_crates_and_versions() {
        let tree = "init v0.0.0 (/x/init)\nlibc v0.2.1\nlibc v0.2.1 (*)\n\n";
        let names: Vec<_> = linked(tree).into_iter().collect();
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(names, [pair("init", "0.0.0"), pair("libc", "0.2.1")]);
    }

    #[test]
    fn tags_and_codes_are_taken_out_of_html() {
        let html = "<p>A <b>&#34;B&#34;</b></p>\n\n\n<pre>x &lt; &amp;lt;</pre>";
        assert_eq!(plain(html), "A \"B\"\n\nx < &lt;");
    }
}
