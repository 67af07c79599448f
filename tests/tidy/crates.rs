//! Rules for third parties' crates: those of `deny.toml` that need no list of known faults.
//!
//! Owns: comparing every crate that cargo resolves with the licences, names, versions and sources that
//! `deny.toml` allows; reading licence expressions.
//! Refuses: advisories. `make deny` asks `cargo deny` for those, and for a second opinion on these.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::root;

/// A crate as cargo resolved it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    name: String,
    version: String,
    licence: String,
    /// Where it is from, where that is not the registry.
    source: Option<String>,
}

/// Every crate that one of the targets in `deny.toml` needs. (`cargo metadata` would do, but also lists
/// crates that only features nobody turns on would need.)
pub(crate) fn resolved(deny: &str) -> BTreeSet<Crate> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut crates = BTreeSet::new();
    for target in strings(deny, "targets") {
        let output = Command::new(&cargo)
            .args(["tree", "--workspace", "--locked", "--prefix=none"])
            .args(["--edges=normal,build,dev", "--format={p}\t{l}"])
            .args(["--target", target])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
        crates.extend(text.lines().filter_map(line));
    }
    assert!(!crates.is_empty(), "cargo tree lists crates");
    crates
}

/// `name v1.2.3 (remarks)`, a tab, the licence, and an asterisk where the crate was shown before.
fn line(line: &str) -> Option<Crate> {
    let (package, licence) = line.split_once('\t')?;
    let mut words = package.splitn(3, ' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let remarks = words.next().unwrap_or_default();
    // "(proc-macro) (/path with blanks)", either of them or neither.
    let remarks = remarks.trim_matches(['(', ')']).split(") (");
    let ours = root().display().to_string();
    let foreign =
        |remark: &&str| !matches!(*remark, "" | "proc-macro") && !remark.starts_with(&ours);
    Some(Crate {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.trim_end_matches(" (*)").to_owned(),
        source: remarks.into_iter().find(foreign).map(str::to_owned),
    })
}

/// What `deny.toml` has against the crates.
pub(crate) fn complaints(deny: &str, crates: &BTreeSet<Crate>) -> Vec<String> {
    let allowed = strings(deny, "allow");
    let denied = tables(deny, "deny");
    let skipped = tables(deny, "skip");
    assert!(!allowed.is_empty(), "deny.toml allows no licence");
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for found in crates {
        let Crate {
            name,
            version,
            licence,
            source,
        } = found;
        versions.entry(name).or_default().push(version);
        if !grants(licence, &allowed) {
            complaints.push(format!("{name} {version}: licence {licence:?}"));
        }
        if denied.iter().any(|entry| entry.name == name) {
            complaints.push(format!("{name} {version}: denied"));
        }
        if let Some(source) = source {
            complaints.push(format!("{name} {version}: from {source}"));
        }
    }
    // "2" stands for every version that begins with "2.".
    let matches = |entry: &Entry<'_>, version: &str| {
        let rest = version.strip_prefix(entry.version);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for (name, versions) in &mut versions {
        let skips: Vec<_> = skipped.iter().filter(|entry| entry.name == *name).collect();
        let several = versions.len() > 1;
        versions.retain(|version| !skips.iter().any(|entry| matches(entry, version)));
        if versions.len() > 1 {
            complaints.push(format!("{name}: versions {}", versions.join(" and ")));
        }
        if !several && !skips.is_empty() {
            complaints.push(format!("{name}: one version only: skip nothing"));
        }
    }
    for Entry { name, .. } in skipped.iter().filter(|e| !versions.contains_key(e.name)) {
        complaints.push(format!("{name}: not used: skip nothing"));
    }
    complaints
}

/// A table such as `{ name = "syn", version = "2", … }`.
#[derive(Debug)]
struct Entry<'a> {
    name: &'a str,
    version: &'a str,
}

/// The lines between `key = [` and the bracket that closes it.
fn list<'a>(toml: &'a str, key: &str) -> &'a str {
    let start = format!("\n{key} = [");
    let rest = toml.split_once(&start).map_or("", |(_, rest)| rest);
    rest.split_once(']').map_or("", |(inside, _)| inside)
}

fn strings<'a>(toml: &'a str, key: &str) -> Vec<&'a str> {
    list(toml, key).split('"').skip(1).step_by(2).collect()
}

fn tables<'a>(toml: &'a str, key: &str) -> Vec<Entry<'a>> {
    let field = |line: &'a str, name: &str| {
        let rest = line.split_once(&format!("{name} = \""))?.1;
        Some(rest.split_once('"')?.0)
    };
    let lines = list(toml, key).lines();
    let entry = |line: &'a str| {
        Some(Entry {
            name: field(line, "name")?,
            version: field(line, "version").unwrap_or_default(),
        })
    };
    lines.filter_map(entry).collect()
}

/// Whether an SPDX expression can be met with allowed licences only. A slash is an old form of OR.
fn grants(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = either(&mut words, allowed);
    verdict == Some(true) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `None` where the expression is malformed.
fn either(words: &mut Words<'_>, allowed: &[&str]) -> Option<bool> {
    let mut verdict = both(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        verdict |= both(words, allowed)?;
    }
    Some(verdict)
}

fn both(words: &mut Words<'_>, allowed: &[&str]) -> Option<bool> {
    let mut verdict = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed)?;
    }
    Some(verdict)
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> Option<bool> {
    match words.next()? {
        "(" => {
            let verdict = either(words, allowed)?;
            words.next_if_eq(&")")?;
            Some(verdict)
        }
        "AND" | "OR" | "WITH" | ")" => None,
        licence => match words.next_if_eq(&"WITH") {
            Some(_) => {
                let exception = words.next()?;
                Some(allowed.contains(&format!("{licence} WITH {exception}").as_str()))
            }
            None => Some(allowed.contains(&licence)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = "\nallow = [\n    \"MIT\",\n    \"Apache-2.0 WITH LLVM-exception\",\n]\n\
        deny = [\n    { name = \"bad\", reason = \"x\" },\n]\n\
        skip = [\n    { name = \"syn\", version = \"2\", reason = \"x\" },\n]\n";

    fn found(crates: &[(&str, &str)]) -> BTreeSet<Crate> {
        let one = |(name, version): &(&str, &str)| Crate {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            licence: "MIT".to_owned(),
            source: None,
        };
        crates.iter().map(one).collect()
    }

    #[test]
    fn cargos_lines_are_understood() {
        let ours = format!("net v0.0.0 ({}/crates/net)\tMIT (*)", root().display());
        assert_eq!(line(&ours).expect("a line").source, None);
        let git = line("x v1.2.3 (proc-macro) (https://a.example/x#1)\tMIT OR ISC (*)");
        let expected = Crate {
            name: "x".to_owned(),
            version: "1.2.3".to_owned(),
            licence: "MIT OR ISC".to_owned(),
            source: Some("https://a.example/x#1".to_owned()),
        };
        assert_eq!(git, Some(expected));
        assert_eq!(line(""), None);
    }

    #[test]
    fn licence_expressions_are_read_as_spdx_says() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        for fine in [
            "MIT",
            "Apache-2.0 OR MIT",
            "MIT/Apache-2.0",
            "(MIT OR X) AND ISC",
            "X AND Y OR MIT",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(grants(fine, &allowed), "{fine}");
        }
        for wrong in [
            "",
            "Apache-2.0",
            "MIT AND X",
            "MIT AND (X OR Y)",
            "(MIT",
            "MIT)",
            "MIT ISC",
            "MIT OR",
            "MIT WITH LLVM-exception",
        ] {
            assert!(!grants(wrong, &allowed), "{wrong}");
        }
    }

    #[test]
    fn a_crate_that_deny_toml_forbids_is_found() {
        let fine = found(&[("a", "1.0.0"), ("syn", "2.0.1"), ("syn", "3.0.0")]);
        assert_eq!(complaints(DENY, &fine), [""; 0]);
        let mut copyleft = fine.clone();
        copyleft.insert(Crate {
            name: "b".to_owned(),
            version: "1.0.0".to_owned(),
            licence: "GPL-2.0".to_owned(),
            source: Some("https://a.example".to_owned()),
        });
        assert_eq!(complaints(DENY, &copyleft).len(), 2);
        let denied = found(&[("bad", "1.0.0"), ("syn", "2.0.1"), ("syn", "3.0.0")]);
        assert_eq!(complaints(DENY, &denied), ["bad 1.0.0: denied"]);
    }

    #[test]
    fn a_second_version_is_found_and_so_is_an_exception_that_nobody_needs() {
        let twice = found(&[
            ("a", "1.0.0"),
            ("a", "2.0.0"),
            ("syn", "2.0.1"),
            ("syn", "3.0.0"),
        ]);
        assert_eq!(complaints(DENY, &twice), ["a: versions 1.0.0 and 2.0.0"]);
        assert_eq!(
            complaints(DENY, &found(&[("syn", "2.0.1")])),
            ["syn: one version only: skip nothing"]
        );
        assert_eq!(
            complaints(DENY, &found(&[("a", "1.0.0")])),
            ["syn: not used: skip nothing"]
        );
    }
}
