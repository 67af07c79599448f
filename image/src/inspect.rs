//! The negative check: what must not be in an image.
//!
//! Owns: reading a finished image back, and listing everything that breaks a rule.
//! Refuses: trusting the builder. It looks at the bytes that boot, not at what was meant to be there.
//! (An initramfs in this format cannot carry file capabilities: it has no extended attributes.)

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use types::cpio::{self, Entry, Node};

use crate::{elf, paths, tree};

/// Files the node may have; every other file is a finding.
const NODE_FILES: [&str; 9] = [
    tree::INIT,
    tree::VMM,
    tree::GUEST_KERNEL,
    tree::GUEST_INITRAMFS,
    tree::MKFS,
    tree::REPAIR,
    tree::OWNER,
    tree::LICENCES,
    tree::RESOLV,
];
/// Device files with their numbers and modes.
const DEVICES: [(&str, (u32, u32), u32); 2] = [
    ("/dev/console", tree::CONSOLE, 0o600),
    ("/dev/null", tree::NULL, 0o666),
];
/// Files that may be programs.
const NODE_PROGRAMS: [&str; 4] = [tree::INIT, tree::VMM, tree::MKFS, tree::REPAIR];
/// Programs linked with glibc, whose `system()` names a shell even though none is ever called.
const NAME_A_SHELL: [&str; 2] = [tree::MKFS, tree::REPAIR];
/// Names under which people or scripts get in. A prefix of the file name is enough.
const DOORS: [&str; 22] = [
    "agetty", "ash", "bash", "busybox", "csh", "dash", "dropbear", "fish", "getty", "ksh", "login",
    "lua", "mksh", "nc", "nsenter", "perl", "python", "sh", "ssh", "su", "telnet", "zsh",
];
/// Largest unpacked image read: far above what fits the size target.
const UNPACKED_BYTES_MAX: usize = 256 << 20;

/// A broken rule at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    pub fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not on the list of files.
    Unexpected,
    /// A program where none may be.
    Program,
    /// A program that needs a loader or libraries.
    Dynamic,
    /// A file that is no ELF program, or a damaged one, where a program must be.
    NotAProgram,
    /// A file that names an interpreter.
    Script,
    /// Set-user-ID, set-group-ID or sticky.
    SpecialMode,
    /// Others than root may write.
    Writable,
    /// The name of a shell, an interpreter or a login program.
    Door,
    /// One of our own programs holds the path of a shell.
    NamesAShell,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.fault {
            Fault::Unexpected => "is not on the list of files",
            Fault::Program => "is a program, and must not be",
            Fault::Dynamic => "is not static",
            Fault::NotAProgram => "is not a sound ELF program",
            Fault::Script => "begins with #!",
            Fault::SpecialMode => "has a set-ID or sticky bit",
            Fault::Writable => "can be written by others than root",
            Fault::Door => "has the name of a shell, interpreter or login program",
            Fault::NamesAShell => "holds the path /bin/sh",
        };
        write!(f, "{} {text}", self.path)
    }
}

/// Checks a built `dist/`: the node's tree, the guest's tree inside it, and the guest kernel.
pub fn image(dist: &Path) -> Result<Vec<Finding>> {
    let file = dist.join("initramfs.img");
    let bytes = zstd::bulk::decompress(&paths::read(&file)?, UNPACKED_BYTES_MAX)
        .with_context(|| format!("unpack {}", file.display()))?;
    let node = cpio::decode(&bytes).with_context(|| format!("read {}", file.display()))?;
    let mut findings = archive(&node, &NODE_FILES, &NODE_PROGRAMS);
    for (path, entry) in node.entries() {
        let Node::File(content) = &entry.node else {
            continue;
        };
        if path == tree::GUEST_INITRAMFS {
            let guest = cpio::decode(content).context("read the guest's initramfs")?;
            let inside = archive(&guest, &[tree::INIT], &[tree::INIT]);
            findings.extend(inside.into_iter().map(|finding| Finding {
                path: format!("{path}{}", finding.path),
                ..finding
            }));
        }
        if path == tree::GUEST_KERNEL {
            let kernel = zstd::bulk::decompress(content, UNPACKED_BYTES_MAX)
                .context("unpack the guest kernel")?;
            let pvh = elf::parse(&kernel).is_ok_and(|kernel| kernel.pvh_entry.is_some());
            let path = path.to_owned();
            findings.extend((!pvh).then_some(Finding {
                path,
                fault: Fault::NotAProgram,
            }));
        }
    }
    for path in NODE_FILES.iter().filter(|path| **path != tree::OWNER) {
        anyhow::ensure!(
            node.entries().any(|(there, _)| there == *path),
            "{path} is missing"
        );
    }
    Ok(findings)
}

/// Checks one tree against the files and programs it may have.
fn archive(archive: &cpio::Archive<'_>, files: &[&str], programs: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, entry) in archive.entries() {
        let faults = faults(path, entry, files, programs);
        findings.extend(faults.into_iter().map(|fault| Finding {
            path: path.to_owned(),
            fault,
        }));
    }
    findings
}

fn faults(path: &str, entry: &Entry<'_>, files: &[&str], programs: &[&str]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut rule = |broken: bool, fault: Fault| faults.extend(broken.then_some(fault));
    rule(entry.mode & 0o7000 != 0, Fault::SpecialMode);
    let content = match &entry.node {
        Node::Directory => {
            rule(entry.mode & 0o022 != 0, Fault::Writable);
            return faults;
        }
        Node::CharacterDevice { major, minor } => {
            rule(
                !DEVICES.contains(&(path, (*major, *minor), entry.mode)),
                Fault::Unexpected,
            );
            return faults;
        }
        Node::File(content) => content,
    };
    rule(entry.mode & 0o022 != 0, Fault::Writable);
    let name = path.rsplit('/').next().unwrap_or(path);
    rule(!files.contains(&path), Fault::Unexpected);
    rule(DOORS.iter().any(|door| is_door(name, door)), Fault::Door);
    rule(content.starts_with(b"#!"), Fault::Script);
    if programs.contains(&path) {
        match elf::parse(content) {
            Ok(program) => rule(program.interpreter || program.needed > 0, Fault::Dynamic),
            Err(_) => rule(true, Fault::NotAProgram),
        }
        let shell = content.windows(7).any(|window| window == b"/bin/sh");
        rule(shell && !NAME_A_SHELL.contains(&path), Fault::NamesAShell);
    } else {
        rule(elf::is_elf(content), Fault::Program);
    }
    faults
}

/// "sh" and "python3.11" are doors, "shared" is none.
fn is_door(name: &str, door: &str) -> bool {
    name.strip_prefix(door)
        .is_some_and(|rest| rest == "d" || !rest.contains(|c: char| c.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf;
    use crate::tree::tests::NODE;

    fn check(change: impl FnOnce(&mut cpio::Archive<'_>)) -> Vec<String> {
        let program = elf(&[]);
        let node = tree::Node {
            init: &program,
            vmm: &program,
            mkfs: &program,
            repair: &program,
            ..NODE
        };
        let mut tree = node.archive().expect("plain paths");
        change(&mut tree);
        archive(&tree, &NODE_FILES, &NODE_PROGRAMS)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_tree_as_agreed_has_no_findings() {
        assert_eq!(check(|_| {}), [""; 0]);
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let cases: [(&str, u32, Vec<u8>, &[&str]); 6] = [
            (
                "/bin/x",
                0o755,
                elf(&[]),
                &[
                    "is not on the list of files",
                    "is a program, and must not be",
                ],
            ),
            ("/bin/sh", 0o755, Vec::new(), &["has the name of a shell"]),
            (
                "/bin/python3.11",
                0o755,
                Vec::new(),
                &["has the name of a shell"],
            ),
            ("/bin/sshd", 0o755, Vec::new(), &["has the name of a shell"]),
            ("/x", 0o644, b"#!/bin/x".to_vec(), &["begins with #!"]),
            (
                "/shared",
                0o4777,
                Vec::new(),
                &["has a set-ID", "can be written by others"],
            ),
        ];
        for (path, mode, content, expected) in cases {
            let findings = check(|tree| tree.file(path, mode, content).expect("a plain path"));
            for text in expected {
                assert!(
                    findings.iter().any(|finding| finding.contains(text)),
                    "{findings:?}"
                );
            }
        }
    }

    #[test]
    fn a_device_file_with_another_number_is_found() {
        let findings = check(|tree| {
            tree.character_device("/dev/mem", 0o600, (1, 1))
                .expect("a plain path");
        });
        assert_eq!(findings, ["/dev/mem is not on the list of files"]);
        let disguised = Entry {
            mode: 0o666,
            node: Node::CharacterDevice { major: 1, minor: 1 },
        };
        let faults = faults("/dev/null", &disguised, &NODE_FILES, &NODE_PROGRAMS);
        assert_eq!(faults, [Fault::Unexpected]);
    }

    #[test]
    fn a_program_with_a_loader_or_the_path_of_a_shell_is_found() {
        let faults_of = |content: Vec<u8>| {
            let entry = Entry {
                mode: 0o755,
                node: Node::File(content.into()),
            };
            faults(tree::INIT, &entry, &NODE_FILES, &NODE_PROGRAMS)
        };
        assert_eq!(faults_of(elf(&[(3, b"/lib/ld.so")])), [Fault::Dynamic]);
        assert_eq!(faults_of(elf(&[(1, b"/bin/sh")])), [Fault::NamesAShell]);
        assert_eq!(faults_of(b"text".to_vec()), [Fault::NotAProgram]);
    }
}
