//! The machine's own apt configuration, as entries for a configuration of ours.
//!
//! Owns: finding Debian's archive among the machine's package sources, in both of their formats
//! (sources.list(5)), and downloads with lists of our own, so that the machine's stay as they are.
//! Refuses: naming a server. Whichever mirror the machine uses, we use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::{command, paths};

/// Downloads a package into `draft`, which is empty but for other directories. apt checks the signatures.
pub(crate) fn download(draft: &Path, package: &str) -> Result<PathBuf> {
    eprintln!("download {package} ...");
    let apt = Private::new(draft, "deb").context("list Debian's packages")?;
    apt.run(&["download", package])
        .with_context(|| format!("download the package {package}"))?;
    apt.close()?;
    let archives = paths::entries(draft)?;
    let [archive] = &archives[..] else {
        bail!("apt-get download {package} left {archives:?}, and one file was expected");
    };
    Ok(archive.clone())
}

/// apt-get with package lists of its own.
pub(crate) struct Private {
    /// Where it runs: what it downloads lands here.
    draft: PathBuf,
    /// Lists and configuration, below the draft.
    home: PathBuf,
}

impl Private {
    /// Reads the lists of all packages of the type `kind` (`deb` or `deb-src`).
    pub(crate) fn new(draft: &Path, kind: &str) -> Result<Self> {
        let home = draft.join("apt");
        for directory in ["lists/partial", "parts"] {
            paths::create(&home.join(directory))?;
        }
        paths::write(&home.join("parts/debian.sources"), sources(kind)?)?;
        let draft = draft.to_owned();
        let apt = Self { draft, home };
        apt.run(&["update"])?;
        Ok(apt)
    }

    pub(crate) fn run(&self, what: &[&str]) -> Result<String> {
        let mut command = command::clean("apt-get");
        for option in [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!(
                "Dir::Etc::SourceParts={}",
                self.home.join("parts").display()
            ),
            format!("Dir::State::Lists={}", self.home.join("lists").display()),
            // The unprivileged download user may not enter this directory.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command::output(command.arg("-qq").args(what).current_dir(&self.draft))
    }

    /// Leaves only what was downloaded.
    pub(crate) fn close(self) -> Result<()> {
        fs::remove_dir_all(&self.home).context("remove apt's lists")
    }
}

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

/// An archive of Debian itself, on whichever mirror: its path ends in "debian", or it is Debian's own list
/// of mirrors, as on its cloud images.
fn is_debian(uri: &str) -> bool {
    let last = uri.trim_end_matches('/').rsplit('/').next();
    matches!(last, Some("debian" | "debian.list"))
}

/// Versions of these are for who asks for them by name.
fn is_plain(suite: &&str) -> bool {
    !["-backports", "-backports-sloppy", "-proposed-updates"]
        .iter()
        .any(|end| suite.ends_with(end))
}

fn from_deb822(kind: &str, text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(|stanza| from_stanza(kind, stanza))
        .collect()
}

fn from_stanza(kind: &str, stanza: &[&str]) -> Option<String> {
    let field = |name: &str| {
        stanza.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let is_binary = field("Types")?.split_whitespace().any(|word| word == "deb");
    // What apt takes for no (apt.conf(5)).
    let off = field("Enabled")
        .is_some_and(|value| ["no", "false", "without", "off", "disable", "0"].contains(&value));
    let suites: Vec<_> = field("Suites")?.split_whitespace().collect();
    let suites: Vec<_> = suites.into_iter().filter(is_plain).collect();
    let ours = field("URIs")?.split_whitespace().all(is_debian);
    if !is_binary || off || suites.is_empty() || !ours {
        return None;
    }
    let replaced = |line: &&&str| {
        line.split_once(':').is_some_and(|(name, _)| {
            ["Types", "Suites", "Architectures"]
                .iter()
                .any(|ours| name.eq_ignore_ascii_case(ours))
        })
    };
    let rest: String = stanza
        .iter()
        .filter(|line| !replaced(line))
        .map(|line| format!("{line}\n"))
        .collect();
    Some(format!(
        "Types: {kind}\nSuites: {}\n{rest}\n",
        suites.join(" ")
    ))
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
            let trust: String = options
                .split_whitespace()
                .filter_map(|option| match option.split_once('=')? {
                    ("signed-by", key) => Some(format!("Signed-By: {key}\n")),
                    ("trusted", answer) => Some(format!("Trusted: {answer}\n")),
                    _ => None,
                })
                .collect();
            (is_debian(uri) && is_plain(&suite)).then(|| {
                format!(
                    "Types: {kind}\nURIs: {uri}\nSuites: {suite}\nComponents: {}\n{trust}\n",
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
            "Types: deb-src\nSuites: a a-updates\nURIs: http://mirror.example/debian\n\
             Components: main\nSigned-By: /k.gpg\n\n"
        );
    }

    #[test]
    fn the_list_of_mirrors_of_a_cloud_image_counts_and_backports_do_not() {
        let text = "types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/debian.list\n\
                    Suites: a a-backports\nComponents: main\n\nTypes: deb-src\n\
                    URIs: http://m.example/debian\nSuites: a\n\nTypes: deb\nEnabled: false\n\
                    URIs: http://m.example/debian\nSuites: a\n";
        assert_eq!(
            from_deb822("deb", text),
            "Types: deb\nSuites: a\nURIs: mirror+file:///etc/apt/mirrors/debian.list\n\
             Components: main\n\n"
        );
    }

    #[test]
    fn one_line_entries_are_understood_too() {
        let text = "# deb http://m.example/debian x main\n\
                    deb http://m.example/debian/ stable-backports main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ stable main contrib # c\n\
                    deb http://m.example/else stable main\n";
        assert_eq!(
            from_lines("deb-src", text),
            "Types: deb-src\nURIs: http://m.example/debian/\nSuites: stable\n\
             Components: main contrib\nSigned-By: /k.gpg\n\n"
        );
    }
}
