//! What lies below one directory, reached without ever leaving it.
//!
//! Owns: opening by path below a directory that was opened once. The kernel resolves every step
//! (openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that whoever swaps a directory for a
//! link while it is packed gets an error and not another directory's files.
//! Refuses: links on the way, `..`, absolute paths.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};

/// Longest path that goes into one call: PATH_MAX less its NUL. Longer ones are walked in pieces.
const CALL_BYTES_MAX: usize = 4095;
/// Opening may lose a race against a rename of something else (EAGAIN), which the manual says to repeat.
const RACES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    shown: PathBuf,
}

impl Beneath {
    /// The directory itself may be named by a link: whoever packs has chosen it.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_DIRECTORY.bits())
            .open(root)?;
        Ok(Self {
            root: file.into(),
            shown: root.to_owned(),
        })
    }

    /// For messages.
    pub(crate) fn show(&self, path: &[u8]) -> String {
        self.shown
            .join(OsStr::from_bytes(path))
            .display()
            .to_string()
    }

    /// What a path names, be it a link: for its attributes alone. The empty path is the directory itself.
    pub(crate) fn look(&self, path: &[u8]) -> io::Result<File> {
        self.opened(path, OFlag::O_PATH).map(File::from)
    }

    /// A file, for reading. Of what is none (a device, a pipe) nothing is read before somebody has looked.
    pub(crate) fn read(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        self.opened(path, flags).map(File::from)
    }

    /// The names in a directory, in no order.
    pub(crate) fn list(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut directory = Dir::from_fd(self.opened(path, flags)?)?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn opened(&self, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        if path.is_empty() {
            return step(self.root.as_fd(), b".", flags);
        }
        let (mut from, mut rest) = (None::<OwnedFd>, path);
        while rest.len() > CALL_BYTES_MAX {
            let slash = rest[..CALL_BYTES_MAX].iter().rposition(|b| *b == b'/');
            let cut = slash.ok_or(Errno::ENAMETOOLONG)?;
            let here = from.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            let next = step(here, &rest[..cut], OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            (from, rest) = (Some(next), &rest[cut + 1..]);
        }
        let here = from.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
        step(here, rest, flags)
    }
}

fn step(from: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    for _ in 0..RACES_MAX {
        match openat2(from, path.as_c_str(), how) {
            Err(Errno::EAGAIN) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Where a link leads, of what [`Beneath::look`] gave.
pub(crate) fn target(link: &File) -> io::Result<Vec<u8>> {
    Ok(readlinkat(link, "")?.into_vec())
}

/// A path of the very thing that a descriptor stands for, whatever its name is now: the calls for extended
/// attributes take no descriptor of [`Beneath::look`].
pub(crate) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_on_the_way_is_an_error_and_not_another_directory() {
        let work = tempfile::tempdir().expect("temp");
        fs::create_dir_all(work.path().join("root/d")).expect("directories");
        fs::create_dir(work.path().join("secret")).expect("directory");
        fs::write(work.path().join("secret/f"), "secret").expect("file");
        fs::write(work.path().join("root/d/f"), "public").expect("file");
        let beneath = Beneath::open(&work.path().join("root")).expect("opens");
        assert!(beneath.read(b"d/f").is_ok());
        fs::remove_dir_all(work.path().join("root/d")).expect("removed");
        symlink("../secret", work.path().join("root/d")).expect("link");
        for path in [&b"d/f"[..], b"../secret/f", b"/etc/passwd", b"d"] {
            assert!(beneath.read(path).is_err());
        }
        assert!(beneath.list(b"d").is_err());
        let link = beneath.look(b"d").expect("the link itself");
        assert_eq!(target(&link).expect("reads"), b"../secret");
    }

    #[test]
    fn a_path_longer_than_a_call_takes_is_walked() {
        let work = tempfile::tempdir().expect("temp");
        let mut here = File::open(work.path()).expect("opens");
        let name = "n".repeat(250);
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&here, name.as_str(), nix::sys::stat::Mode::S_IRWXU)
                .expect("made");
            here = File::from(step(here.as_fd(), name.as_bytes(), OFlag::O_RDONLY).expect("opens"));
        }
        let path = [name.as_str(); 40].join("/");
        assert!(path.len() > 2 * CALL_BYTES_MAX);
        let beneath = Beneath::open(work.path()).expect("opens");
        assert!(beneath.look(path.as_bytes()).is_ok());
        assert!(beneath.list(path.as_bytes()).expect("lists").is_empty());
    }
}
