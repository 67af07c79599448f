//! The salt of encrypted images: 32 secret bytes in a file of the configuration directory.
//!
//! Owns: the file, made when it is first needed, mode 0600. What it is for: docs/flist-format.md, "Encrypted
//! chunks".
//! Refuses: a file that others can read, and to make one where somebody named it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context as _;
use flist::seal::Salt;
use tempfile::NamedTempFile;
use types::Digest;

use crate::failure::Usage;
use crate::home::Home;
use crate::screen::Screen;

/// What the file begins with; 64 hexadecimal digits follow.
const TAG: &str = "sifr-salt";
/// Longer than any salt, short enough to read whatever the file is.
const BYTES_MAX: u64 = 256;

/// The salt in `named`, else the one in the configuration directory, which is made where there is none.
pub(crate) fn salt(home: &Home, screen: &Screen, named: Option<&Path>) -> anyhow::Result<Salt> {
    if let Some(path) = named {
        return read(path)?.ok_or_else(|| {
            Usage(format!(
                "there is no salt at {}: leave out --salt-file for your own, or copy your team's there",
                path.display()
            ))
            .into()
        });
    }
    let path = home.salt_file();
    if let Some(salt) = read(&path)? {
        return Ok(salt);
    }
    home.make_directory()?;
    make(&path).with_context(|| format!("cannot make the salt {}", path.display()))?;
    screen.note(&format!(
        "made the salt {}: keep a copy, images that are packed with another share no chunks with these",
        path.display()
    ));
    // Whoever was first has made it.
    read(&path)?.with_context(|| format!("the salt {} went away", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Option<Salt>> {
    let cannot = || format!("cannot read the salt {}", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(cannot)?,
    };
    let mode = file.metadata().with_context(cannot)?.permissions().mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(Usage(format!(
            "the salt {path} can be read by others (mode {:04o}): chmod 600 {path}",
            mode & 0o7777
        ))
        .into());
    }
    let mut text = String::new();
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    let digits = text.trim_end().strip_prefix(TAG).map(str::trim_start);
    let secret = digits.and_then(|digits| Digest::from_hex(digits).ok());
    let secret = secret.ok_or_else(|| {
        Usage(format!(
            "{} is no salt ({TAG} and 64 hexadecimal digits): put the copy back, or move it away and a new one is made",
            path.display()
        ))
    })?;
    Ok(Some(Salt::new(secret.0)))
}

/// Written beside and linked, so that there is a whole salt or none, and one that is there stays.
fn make(path: &Path) -> anyhow::Result<()> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("the kernel gives no random bytes")?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut draft = NamedTempFile::new_in(directory)?;
    writeln!(draft, "{TAG} {}", Digest(secret).hex())?;
    draft.as_file().sync_all()?;
    match fs::hard_link(draft.path(), path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(File::open(directory)?.sync_all()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_made_once_for_its_owner_alone() {
        let work = tempfile::tempdir().expect("temp");
        let path = work.path().join("salt");
        assert!(read(&path).expect("absent is no error").is_none());
        make(&path).expect("made");
        let first = read(&path).expect("reads").expect("is there");
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        make(&path).expect("it is there");
        assert!(read(&path).expect("reads") == Some(first));
        let others = tempfile::tempdir().expect("temp");
        make(&others.path().join("salt")).expect("made");
        let other = read(&others.path().join("salt")).expect("reads");
        assert!(other != read(&path).expect("reads"));
    }

    #[test]
    fn what_is_no_secret_is_refused_with_what_to_do() {
        let work = tempfile::tempdir().expect("temp");
        let path = work.path().join("salt");
        make(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        let error = read(&path).expect_err("open to the group").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::write(&path, "sifr-salt 12\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        let error = read(&path).expect_err("cut").to_string();
        assert!(error.contains("put the copy back"), "{error}");
    }
}
