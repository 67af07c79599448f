//! The machine's own apt configuration, as entries for a configuration of ours.
//!
//! Owns: finding Debian's archive among the machine's package sources, in both of their formats
//! (sources.list(5)).
//! Refuses: naming a server. Whichever mirror the machine uses, we use.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::paths;

/// Entries of the type `kind` (`deb` or `deb-src`) for each Debian archive this machine uses, in deb822 form.
pub(crate) fn sources(kind: &str) -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(paths::entries(Path::new("/etc/apt/sources.list.d"))?);
    let mut out = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = paths::text(file)?;
        let stanzas = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => from_deb822(kind, &text),
            Some("list") => from_lines(kind, &text),
            _ => continue,
        };
        out.push_str(&stanzas);
    }
    ensure!(
        !out.is_empty(),
        "no Debian archive in /etc/apt/sources.list*: add one, then run this again"
    );
    Ok(out)
}

/// An archive of Debian itself, on whichever mirror: its path ends in "debian".
fn is_debian(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

fn from_deb822(kind: &str, text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter(|stanza| {
            let uris = stanza.iter().find_map(|line| line.strip_prefix("URIs:"));
            uris.is_some_and(|uris| uris.split_whitespace().all(is_debian))
                && !stanza.iter().any(|line| line.trim() == "Enabled: no")
        })
        .map(|stanza| {
            let rest = stanza.iter().filter(|line| {
                !["Types:", "Architectures:"]
                    .iter()
                    .any(|field| line.starts_with(field))
            });
            let rest: String = rest.map(|line| format!("{line}\n")).collect();
            format!("Types: {kind}\n{rest}\n")
        })
        .collect()
}

fn from_lines(kind: &str, text: &str) -> String {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("deb ")?.trim();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let components: Vec<_> = words.take_while(|word| !word.starts_with('#')).collect();
            let signed = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map_or(String::new(), |key| format!("Signed-By: {key}\n"));
            is_debian(uri).then(|| {
                format!(
                    "Types: {kind}\nURIs: {uri}\nSuites: {suite}\nComponents: {}\n{signed}\n",
                    components.join(" ")
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_entries_follow_the_machines_own_mirror() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: a a-updates\n\
                    Components: main\nSigned-By: /k.gpg\n\nTypes: deb\n\
                    URIs: https://other.example/node\nSuites: x\nComponents: main\n";
        assert_eq!(
            from_deb822("deb-src", text),
            "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: a a-updates\n\
             Components: main\nSigned-By: /k.gpg\n\n"
        );
    }

    #[test]
    fn one_line_entries_are_understood_too() {
        let text = "# deb http://m.example/debian x main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ stable main contrib # c\n\
                    deb http://m.example/else stable main\n";
        assert_eq!(
            from_lines("deb-src", text),
            "Types: deb-src\nURIs: http://m.example/debian/\nSuites: stable\n\
             Components: main contrib\nSigned-By: /k.gpg\n\n"
        );
    }
}
