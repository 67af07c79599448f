//! The machine's name, and the files in `/etc` that say where it is.
//!
//! Owns: the host name, `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`, rewritten at each start.
//! Refuses: writing through a link: many images ship `/etc/resolv.conf` as one.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sys::error::During;
use types::Name;
use types::guest::{Link, RunSpec};

use crate::error::Result;
use crate::root::ensure;

pub(crate) fn write(spec: &RunSpec) -> Result<()> {
    set(&spec.hostname, spec.link.as_ref())
}

pub(crate) fn set(name: &Name, link: Option<&Link>) -> Result<()> {
    let name = name.as_str();
    nix::unistd::sethostname(name).during(|| format!("set the host name to {name}"))?;
    ensure("/etc", 0o755)?;
    let etc = Path::new("/etc");
    replace(etc, "hostname", &format!("{name}\n"))?;
    replace(etc, "hosts", &hosts(name, link))?;
    match link {
        Some(link) => replace(etc, "resolv.conf", &format!("nameserver {}\n", link.dns)),
        // Without a network the image's own is as good as any.
        None => Ok(()),
    }
}

fn hosts(name: &str, link: Option<&Link>) -> String {
    // Debian's convention for a machine without an address of its own.
    let own = link.map_or_else(|| "127.0.1.1".to_owned(), |l| l.address.address.to_string());
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{own}\t{name}\n"
    )
}

/// Makes `directory/name` a regular file with this content, whatever it was; leaves it alone where it
/// is that already, so that a restart writes nothing.
pub(crate) fn replace(directory: &Path, name: &str, content: &str) -> Result<()> {
    let path = directory.join(name);
    let during = || format!("write {}", path.display());
    let regular = fs::symlink_metadata(&path).is_ok_and(|m| {
        m.is_file() && usize::try_from(m.len()).is_ok_and(|length| length == content.len())
    });
    if regular && fs::read(&path).is_ok_and(|found| found == content.as_bytes()) {
        return Ok(());
    }
    let temporary = directory.join(format!(".{name}.sifr"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).during(during).map_err(Into::into);
        }
        _ => {}
    }
    // create_new follows no link at the end of the path, rename replaces one.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .during(during)?;
    file.write_all(content.as_bytes()).during(during)?;
    file.set_permissions(Permissions::from_mode(0o644))
        .during(during)?;
    fs::rename(&temporary, &path).during(during)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_untouched() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("target");
        fs::write(&target, "kept").expect("a file");
        symlink(&target, directory.path().join("resolv.conf")).expect("a link");
        // A link where the temporary file goes is no way out either.
        symlink(&target, directory.path().join(".resolv.conf.sifr")).expect("a link");
        replace(directory.path(), "resolv.conf", "new").expect("replaced");
        assert_eq!(fs::read_to_string(&target).expect("a file"), "kept");
        let found = fs::symlink_metadata(directory.path().join("resolv.conf")).expect("a file");
        assert!(found.is_file());
    }

    #[test]
    fn what_is_right_already_is_not_written_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let inode = || {
            fs::metadata(directory.path().join("hosts"))
                .expect("a file")
                .ino()
        };
        replace(directory.path(), "hosts", "a").expect("written");
        let first = inode();
        replace(directory.path(), "hosts", "a").expect("left alone");
        assert_eq!(inode(), first);
        replace(directory.path(), "hosts", "b").expect("written");
        assert_ne!(inode(), first);
    }

    #[test]
    fn a_machine_knows_its_own_name_with_and_without_a_network() {
        assert!(hosts("web", None).contains("127.0.1.1\tweb\n"));
        assert!(hosts("web", None).contains("127.0.0.1\tlocalhost\n"));
    }
}
