//! Rules for what is not Rust: kernel fragments, pages, the changelog.
//!
//! Owns: their forms. Refuses: their content.

use std::collections::BTreeMap;

use crate::Text;

/// The fragments of one kernel: sorted, each option once, a reason on each.
pub(crate) fn fragments(files: &[Text]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        let mut last = String::new();
        for (number, line) in (1..).zip(file.text.lines()) {
            let place = format!("{}:{number}", file.path);
            let Some((option, reason)) = option(line) else {
                // A remark, above the options it is about.
                if !line.is_empty() && !line.starts_with("# ") {
                    complaints.push(format!("{place}: neither an option nor a remark"));
                }
                continue;
            };
            if reason.is_empty() {
                complaints.push(format!(
                    "{place}: {option} has no reason: write one after #"
                ));
            }
            if option < last {
                complaints.push(format!("{place}: {option} is not sorted"));
            }
            if let Some(earlier) = seen.insert(option.clone(), place.clone()) {
                complaints.push(format!("{place}: {option} is also in {earlier}"));
            }
            last = option;
        }
    }
    complaints
}

/// Name and reason of `CONFIG_X=y # reason` or `# CONFIG_X is not set # reason`.
fn option(line: &str) -> Option<(String, &str)> {
    let code = line
        .strip_prefix("# CONFIG_")
        .or_else(|| line.strip_prefix("CONFIG_"))?;
    let (setting, reason) = code.split_once(" # ").unwrap_or((code, ""));
    let name = setting.split(['=', ' ']).next().unwrap_or(setting);
    Some((format!("CONFIG_{name}"), reason.trim()))
}

/// The lines of a page that are not inside a code block.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

pub(crate) fn title(file: &Text) -> Vec<String> {
    let titles = prose(&file.text)
        .filter(|(_, line)| line.starts_with("# "))
        .count();
    let first = file.text.lines().find(|line| !line.is_empty());
    match (titles, first.is_some_and(|line| line.starts_with("# "))) {
        (1, true) => Vec::new(),
        _ => vec![format!(
            "{}: a page has one title, and it comes first",
            file.path
        )],
    }
}

/// Keep a Changelog 1.1: releases newest first, known sections, one list in each.
pub(crate) fn changelog(file: &Text) -> Vec<String> {
    const SECTIONS: [&str; 6] = [
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    ];
    let mut complaints = Vec::new();
    let mut releases = 0;
    let mut in_section = false;
    for (number, line) in prose(&file.text) {
        let fine = if let Some(section) = line.strip_prefix("### ") {
            in_section = true;
            releases > 0 && SECTIONS.contains(&section)
        } else if let Some(release) = line.strip_prefix("## ") {
            releases += 1;
            in_section = false;
            if releases == 1 {
                release == "[Unreleased]"
            } else {
                dated(release)
            }
        } else if line.starts_with("- ") {
            in_section
        } else if in_section {
            line.is_empty() || line.starts_with("  ")
        } else {
            // The introduction.
            releases == 0 || line.is_empty()
        };
        if !fine {
            complaints.push(format!(
                "{}:{number}: {line:?} does not belong here",
                file.path
            ));
        }
    }
    if releases == 0 {
        complaints.push(format!("{}: [Unreleased] is missing", file.path));
    }
    complaints
}

/// `[1.2.3] - 2026-01-31`.
fn dated(release: &str) -> bool {
    let Some((version, date)) = release.split_once(" - ") else {
        return false;
    };
    let version = version
        .strip_prefix('[')
        .and_then(|v| v.strip_suffix(']'))
        .unwrap_or("");
    let numbers = |text: &str, separator, lengths: &[usize]| {
        let parts: Vec<&str> = text.split(separator).collect();
        let digits = parts
            .iter()
            .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        let fits = lengths.is_empty() || parts.iter().map(|p| p.len()).eq(lengths.iter().copied());
        digits && fits && parts.len() == 3
    };
    numbers(version, '.', &[]) && numbers(date, '-', &[4, 2, 2])
}

/// Every code of `enum RefusalCode` has a row in the page about refusals, and no row is left over.
pub(crate) fn refusals(status: &str, page: &Text) -> Vec<String> {
    let body = status
        .split("pub enum RefusalCode {")
        .nth(1)
        .unwrap_or_default();
    let lines = body.lines().map(str::trim).take_while(|line| *line != "}");
    let codes: Vec<String> = lines
        .filter_map(|line| Some(snake(line.strip_suffix(',')?)))
        .collect();
    let rows: Vec<&str> = page.text.lines().filter_map(refusal_row).collect();
    let missing = codes.iter().filter(|code| !rows.contains(&code.as_str()));
    let extra = rows
        .iter()
        .filter(|row| !codes.iter().any(|code| code == *row));
    let missing = missing.map(|code| format!("{}: {code} has no row", page.path));
    missing
        .chain(extra.map(|row| format!("{}: {row} is no code", page.path)))
        .collect()
}

/// Of a row whose second cell is an HTTP status: those of troubles have none, and `cli` compares them.
fn refusal_row(line: &str) -> Option<&str> {
    let (code, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
    let status = rest.split(' ').next()?;
    status.parse::<u16>().ok().map(|_| code)
}

/// `UnknownKey` as serde writes it: `unknown_key`.
fn snake(variant: &str) -> String {
    let mut out = String::new();
    for (at, character) in variant.char_indices() {
        if character.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(character.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Text {
        Text::new("x", text)
    }

    #[test]
    fn an_option_without_reason_order_or_uniqueness_is_found() {
        let fine = "# What for.\nCONFIG_A=y # because\n# CONFIG_B is not set # because\n";
        assert!(fragments(&[file(fine)]).is_empty());
        assert_eq!(fragments(&[file("CONFIG_A=y\n")]).len(), 1);
        assert_eq!(
            fragments(&[file("CONFIG_B=y # x\nCONFIG_A=y # x\n")]).len(),
            1
        );
        assert_eq!(fragments(&[file(fine), file("CONFIG_B=y # x\n")]).len(), 1);
        assert_eq!(fragments(&[file("nonsense\n")]).len(), 1);
    }

    #[test]
    fn a_page_with_two_titles_or_none_is_found() {
        assert!(title(&file("# One\n```\n# a comment\n```\n## Two\n")).is_empty());
        assert_eq!(title(&file("# One\n# Two\n")).len(), 1);
        assert_eq!(title(&file("text\n# One\n")).len(), 1);
    }

    #[test]
    fn a_changelog_out_of_form_is_found() {
        let fine = "# Changelog\nText.\n\n## [Unreleased]\n\n### Added\n\n- a thing\n  of two lines\n\n\
            ## [1.0.0] - 2026-01-31\n\n### Fixed\n- b\n";
        assert!(
            changelog(&file(fine)).is_empty(),
            "{:?}",
            changelog(&file(fine))
        );
        for (from, to) in [
            ("### Added", "### New"),
            ("## [Unreleased]", "## Unreleased"),
            ("2026-01-31", "January"),
            ("- a thing", "a thing"),
        ] {
            assert!(
                !changelog(&file(&fine.replace(from, to))).is_empty(),
                "{to}"
            );
        }
        assert!(!changelog(&file("# Changelog\n")).is_empty());
    }

    #[test]
    fn a_refusal_without_a_row_and_a_row_without_refusal_are_found() {
        let status =
            "pub enum RefusalCode {\n    /// Why, and\n    UnknownKey,\n    Internal,\n}\n";
        let fine = "| code |\n| `unknown_key` | 403 |\n| `internal` | 500 |\n";
        assert!(refusals(status, &file(fine)).is_empty());
        assert_eq!(
            refusals(status, &file(&fine.replace("internal", "odd"))).len(),
            2
        );
    }
}
