//! Network namespaces with names, and calls made inside them.
//!
//! Owns: `/run/netns/<name>`, the thread on which a call inside a namespace runs, sysctls there.
//! Refuses: moving the caller. A namespace belongs to a thread, so what must happen inside one happens
//! on a thread that is made for it and ends with it; sockets made there stay there, and are used here.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// Where named namespaces are mounted, as iproute2 has it.
pub const DIRECTORY: &str = "/run/netns";
/// Longest name: it is a file name, and short enough to read in a list.
pub const NAME_MAX: usize = 128;

fn path(name: &str) -> Result<PathBuf, Error> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(fine) {
        let reason = "use 1 to 128 letters, digits, '-' and '_'";
        return Err(Error::Refused {
            what: "namespace name",
            value: name.to_owned(),
            reason,
        });
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Creates the namespace unless it exists. It lives on in its mount when this process ends.
pub fn ensure(name: &str) -> Result<OwnedFd, Error> {
    let path = path(name)?;
    if let Some(namespace) = open(name)? {
        return Ok(namespace);
    }
    let make = || {
        fs::create_dir_all(DIRECTORY)?;
        // Left over from a crash between the next line and the mount: taken as it is.
        File::create(&path)?;
        Ok(())
    };
    make().map_err(Error::io(format!("make mount point {}", path.display())))?;
    on_thread(|| {
        let make = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        };
        make().map_err(Error::errno(format!("create namespace {name}")))
    })?;
    open(name)?
        .ok_or_else(|| Error::io(format!("open namespace {name}"))(ErrorKind::NotFound.into()))
}

/// The namespace, or `None` where there is none of that name.
pub fn open(name: &str) -> Result<Option<OwnedFd>, Error> {
    let path = path(name)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("open namespace {name}"))(error)),
    };
    // A plain file here is a mount point whose mount never came.
    let status = nix::sys::statfs::fstatfs(&file);
    let status = status.map_err(Error::errno(format!("open namespace {name}")))?;
    Ok((status.filesystem_type() == nix::sys::statfs::NSFS_MAGIC).then(|| file.into()))
}

/// Takes the name away. The namespace ends when no process, socket or descriptor is left in it.
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path(name)?;
    while open(name)?.is_some() {
        umount2(&path, MntFlags::MNT_DETACH)
            .map_err(Error::errno(format!("unmount namespace {name}")))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The names of all namespaces, sorted.
pub fn list() -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(DIRECTORY)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    let names = match read() {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        names => names.map_err(Error::io(format!("list {DIRECTORY}")))?,
    };
    Ok(names
        .into_iter()
        .filter(|name| matches!(open(name), Ok(Some(_))))
        .collect())
}

/// Runs `call` inside the namespace, on a thread of its own, and waits for it.
pub fn within<T: Send>(
    namespace: impl AsFd + Sync,
    call: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(Error::errno("enter a network namespace"))?;
        call()
    })
}

/// The exception to "layers 0 and 1 start no thread": a thread's namespace cannot be changed for the
/// length of a call without risking that it stays changed. This thread never outlives the call.
fn on_thread<T: Send>(call: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, call);
        let thread = thread.map_err(Error::io("start a thread"))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The network settings of the calling thread's namespace.
pub(crate) const SETTINGS: &str = "/proc/sys/net";

/// Sets `/proc/sys/net/<key>` of the calling thread's namespace.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<(), Error> {
    let path = format!("{SETTINGS}/{key}");
    fs::write(&path, value).map_err(Error::io(format!("write {value} to {path}")))
}

/// The same, where the kernel has that setting at all.
pub(crate) fn sysctl_if_present(key: &str, value: &str) -> Result<(), Error> {
    if Path::new(SETTINGS).join(key).exists() {
        sysctl(key, value)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn inode(namespace: impl AsFd) -> u64 {
        nix::sys::stat::fstat(namespace).expect("a status").st_ino
    }

    fn current() -> u64 {
        inode(File::open("/proc/thread-self/ns/net").expect("this thread's namespace"))
    }

    #[test]
    fn a_namespace_is_made_once_and_found_again() {
        let scratch = Scratch::new("names");
        let name = &scratch.name("one");
        let first = ensure(name).expect("a namespace; it needs root");
        let second = ensure(name).expect("the same namespace");
        assert_eq!(inode(&first), inode(&second));
        assert!(list().expect("a list").contains(name));
        remove(name).expect("removed");
        remove(name).expect("nothing to remove");
        assert!(open(name).expect("no error").is_none());
    }

    #[test]
    fn the_caller_stays_where_it_is() {
        let scratch = Scratch::new("caller");
        let namespace = ensure(&scratch.name("other")).expect("a namespace; it needs root");
        let before = current();
        let inside = within(&namespace, || Ok(current())).expect("entered");
        assert_eq!(inside, inode(&namespace));
        assert_ne!(inside, before);
        assert_eq!(current(), before);
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["", "..", "a/b", "ä", &"a".repeat(129)] {
            assert!(
                matches!(ensure(name), Err(Error::Refused { .. })),
                "{name:?}"
            );
        }
    }
}
