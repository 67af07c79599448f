//! Rules for Rust sources.
//!
//! Owns: headers, lengths, where `unsafe` may be, what must not be left behind, files nobody compiles.
//! Refuses: what the compiler and clippy check already.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::Text;
use crate::scrub::scrub;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
/// The places with `unsafe` in them: two that ship, and a guest kernel for tests.
const UNSAFE: [&str; 3] = ["crates/sys/src/", "hostile/src/", "vmm/src/"];

pub(crate) fn header(file: &Text) -> Vec<String> {
    if file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!(
        "{}:1: a file opens with //! and says what it owns and refuses",
        file.path
    )]
}

pub(crate) fn lengths(file: &Text) -> Vec<String> {
    if is_test(&file.path) {
        return Vec::new();
    }
    let code = without_tests(&scrub(&file.text));
    let lines = code.lines().filter(|line| *line != TEST_LINE).count();
    let mut complaints = Vec::new();
    if lines > FILE_LINES_MAX {
        let path = &file.path;
        complaints.push(format!(
            "{path}: {lines} lines without tests, at most {FILE_LINES_MAX}: split it by topic"
        ));
    }
    for (line, length) in functions(&code) {
        if length > FUNCTION_LINES_MAX {
            let path = &file.path;
            complaints.push(format!(
                "{path}:{line}: a function of {length} lines, at most {FUNCTION_LINES_MAX}"
            ));
        }
    }
    complaints
}

fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "tests.rs" || name.ends_with("_tests.rs") || path.contains("tests/")
}

/// Stands for a line of a test module.
const TEST_LINE: &str = "\u{1}";

/// Replaces the lines of `#[cfg(test)] mod … { }` blocks.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        let after = &rest[start..];
        let block = after
            .find(['{', ';'])
            .filter(|at| after.as_bytes()[*at] == b'{');
        let is_module = after[..block.unwrap_or(0)].contains("mod ");
        let end = match block {
            Some(open) if is_module => start + open + block_length(&after[open..]),
            _ => start + "#[cfg(test)]".len(),
        };
        out.push_str(&rest[..start]);
        if is_module {
            let lines = rest[start..end].matches('\n').count();
            (0..lines).for_each(|_| out.push_str("\u{1}\n"));
        } else {
            out.push_str(&rest[start..end]);
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Bytes of a block that begins with `{`, to its matching `}` inclusive.
fn block_length(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Line number and number of lines of each function with a body.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for start in words(code, "fn") {
        let after = &code[start..];
        // A type such as `fn(u8) -> u8` has no name; a declaration ends before any block.
        let named = after[2..]
            .trim_start()
            .starts_with(|c: char| c.is_alphabetic() || c == '_');
        let Some(open) = body(after).filter(|_| named) else {
            continue;
        };
        let end = open + block_length(&after[open..]);
        let line = code[..start].matches('\n').count() + 1;
        found.push((line, after[..end].matches('\n').count() + 1));
    }
    found
}

/// Where a function's body opens; `None` for a declaration. A `;` inside brackets is an array's length.
fn body(code: &str) -> Option<usize> {
    let mut brackets = 0usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'[' => brackets += 1,
            b']' => brackets = brackets.saturating_sub(1),
            b';' if brackets == 0 => return None,
            b'{' => return Some(at),
            _ => {}
        }
    }
    None
}

/// Where `word` stands alone.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let inside = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = at.checked_sub(1).and_then(|b| bytes.get(b));
            !inside(before) && !inside(bytes.get(at + word.len()))
        })
}

pub(crate) fn unsafe_code(file: &Text) -> Vec<String> {
    if UNSAFE.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let code = scrub(&file.text);
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let complaint = |at| {
        format!(
            "{}:{}: unsafe belongs in crates/sys or vmm",
            file.path,
            line(at)
        )
    };
    let mut complaints: Vec<String> = words(&code, "unsafe").map(complaint).collect();
    let is_root = ["src/lib.rs", "src/main.rs"]
        .iter()
        .any(|name| file.path.ends_with(name));
    if is_root && !code.contains("#![forbid(unsafe_code)]") {
        complaints.push(format!(
            "{}: a crate root says #![forbid(unsafe_code)]",
            file.path
        ));
    }
    complaints
}

pub(crate) fn leftovers(file: &Text) -> Vec<String> {
    let code = scrub(&file.text);
    let mut complaints = Vec::new();
    for name in ["todo", "unimplemented", "dbg"] {
        for at in words(&code, name).filter(|at| code[at + name.len()..].starts_with('!')) {
            let line = code[..at].matches('\n').count() + 1;
            complaints.push(format!(
                "{}:{line}: {name}! is for an afternoon, not for a commit",
                file.path
            ));
        }
    }
    complaints
}

/// Sources that no crate root leads to.
pub(crate) fn unreachable(files: &[Text], crate_roots: &[String]) -> Vec<String> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut ahead: Vec<(String, bool)> = crate_roots
        .iter()
        .map(|root| (root.clone(), true))
        .collect();
    while let Some((path, is_root)) = ahead.pop() {
        let Some(file) = files.iter().find(|f| f.path == path) else {
            continue;
        };
        if !reached.insert(path) {
            continue;
        }
        for candidates in modules(file, is_root) {
            let found = candidates
                .into_iter()
                .find(|c| files.iter().any(|f| f.path == *c));
            ahead.extend(found.map(|module| (module, false)));
        }
    }
    let lost = files.iter().filter(|f| !reached.contains(&f.path));
    lost.map(|f| {
        format!(
            "{}: no crate contains this file: add its mod line or remove it",
            f.path
        )
    })
    .collect()
}

/// For each `mod name;` the paths where its file may be.
fn modules(file: &Text, is_root: bool) -> Vec<Vec<String>> {
    let path = Path::new(&file.path);
    let directory = path.parent().unwrap_or(Path::new(""));
    let own = match is_root || path.file_name().is_some_and(|n| n == "mod.rs") {
        true => directory.to_owned(),
        false => directory.join(path.file_stem().unwrap_or_default()),
    };
    let mut given: Option<String> = None;
    let mut found = Vec::new();
    for line in file.text.lines().map(str::trim) {
        if let Some(path) = line
            .strip_prefix("#[path = \"")
            .and_then(|l| l.strip_suffix("\"]"))
        {
            given = Some(plain(&directory.join(path)));
        } else if let Some(name) = declared(line) {
            found.push(match given.take() {
                Some(path) => vec![path],
                None => vec![
                    plain(&own.join(format!("{name}.rs"))),
                    plain(&own.join(name).join("mod.rs")),
                ],
            });
        }
    }
    found
}

/// The name in `mod name;`, with any visibility.
fn declared(line: &str) -> Option<&str> {
    let (before, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
    let visibility = before.is_empty() || before.starts_with("pub");
    (visibility && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_header_is_found() {
        assert_eq!(header(&Text::new("a.rs", "use std::fs;\n")).len(), 1);
        assert!(header(&Text::new("a.rs", "//! A thing.\n")).is_empty());
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let long = "const A: u8 = 0;\n".repeat(801);
        assert_eq!(lengths(&Text::new("a.rs", &long)).len(), 1);
        let tested = format!(
            "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
            &long[..799 * 17],
            long
        );
        assert!(
            lengths(&Text::new("a.rs", &tested)).is_empty(),
            "{:?}",
            lengths(&Text::new("a.rs", &tested))
        );
        assert!(lengths(&Text::new("a/tests/b.rs", &long)).is_empty());
    }

    #[test]
    fn a_long_function_is_found_whatever_stands_in_its_strings() {
        let body = "    call(\"}\"); // }\n".repeat(69);
        let long = format!("pub fn f(x: [u8; 3]) {{\n{body}}}\n");
        assert_eq!(
            lengths(&Text::new("a.rs", &long)),
            ["a.rs:1: a function of 71 lines, at most 70"]
        );
        let short = format!(
            "trait T {{ fn g(&self); }}\nconst F: fn(u8) = h;\n{}",
            long.replacen("    call(\"}\"); // }\n", "", 1)
        );
        assert!(lengths(&Text::new("a.rs", &short)).is_empty());
    }

    #[test]
    fn unsafe_outside_its_two_places_is_found_in_code_only() {
        let text = "//! unsafe\n#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }\n";
        assert_eq!(
            unsafe_code(&Text::new("init/src/a.rs", text)),
            ["init/src/a.rs:3: unsafe belongs in crates/sys or vmm"]
        );
        assert!(unsafe_code(&Text::new("vmm/src/a.rs", text)).is_empty());
        assert_eq!(
            unsafe_code(&Text::new("cli/src/main.rs", "fn main() {}")).len(),
            1
        );
    }

    #[test]
    fn leftovers_are_found() {
        let text = "fn f() { todo!() }\nfn g() { dbg!(1); }\n// todo!\nfn unimplemented() {}\n";
        assert_eq!(leftovers(&Text::new("a.rs", text)).len(), 2);
    }

    #[test]
    fn a_file_that_nobody_compiles_is_found() {
        let files = [
            Text::new(
                "src/lib.rs",
                "mod a;\npub(crate) mod b;\n#[path = \"odd_tests.rs\"]\nmod c;\n",
            ),
            Text::new("src/a.rs", "pub mod deep;\n"),
            Text::new("src/a/deep.rs", ""),
            Text::new("src/b/mod.rs", "mod leaf;\n"),
            Text::new("src/b/leaf.rs", ""),
            Text::new("src/odd_tests.rs", ""),
            Text::new("src/lost.rs", ""),
        ];
        let complaints = unreachable(&files, &["src/lib.rs".to_owned()]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("src/lost.rs: "));
    }
}
