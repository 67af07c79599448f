//! The kernel's file systems, for init in the initramfs and for the program in its root.
//!
//! Owns: what is mounted where, with which options, and the links in `/dev`.
//! Refuses: `/run` and `/tmp`: Docker leaves them to the image, and images keep directories in them.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use sys::error::During;
use sys::mount::{Flags, mount};

use crate::error::Result;
use crate::root::ensure;

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: Flags,
    options: &'static str,
}

const HIDE: Flags = Flags::MS_NOSUID
    .union(Flags::MS_NODEV)
    .union(Flags::MS_NOEXEC);
const DEVICES: Flags = Flags::MS_NOSUID.union(Flags::MS_NOEXEC);
const MEMORY: Flags = Flags::MS_NOSUID.union(Flags::MS_NODEV);

/// What init itself needs before there is a root.
const EARLY: [Mount; 3] = [
    Mount {
        target: "/dev",
        kind: "devtmpfs",
        flags: DEVICES,
        options: "mode=0755",
    },
    Mount {
        target: "/proc",
        kind: "proc",
        flags: HIDE,
        options: "",
    },
    Mount {
        target: "/sys",
        kind: "sysfs",
        flags: HIDE,
        options: "",
    },
];

/// What a container's program expects (OCI runtime-spec, "Default Filesystems"), parents first.
/// Everything is writable to root: the kernel behind it is the tenant's own.
const CONTAINER: [Mount; 7] = [
    Mount {
        target: "/proc",
        kind: "proc",
        flags: HIDE,
        options: "",
    },
    Mount {
        target: "/sys",
        kind: "sysfs",
        flags: HIDE,
        options: "",
    },
    Mount {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: HIDE,
        options: "",
    },
    Mount {
        target: "/dev",
        kind: "devtmpfs",
        flags: DEVICES,
        options: "mode=0755",
    },
    // 5 is the group `tty` on every distribution; `/dev/ptmx` of devtmpfs opens the pts beside it.
    Mount {
        target: "/dev/pts",
        kind: "devpts",
        flags: DEVICES,
        options: "newinstance,ptmxmode=0666,mode=0620,gid=5",
    },
    Mount {
        target: "/dev/shm",
        kind: "tmpfs",
        flags: MEMORY,
        options: "mode=1777",
    },
    Mount {
        target: "/dev/mqueue",
        kind: "mqueue",
        flags: HIDE,
        options: "",
    },
];

const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

pub(crate) fn early() -> Result<()> {
    all(&EARLY)
}

pub(crate) fn container() -> Result<()> {
    all(&CONTAINER)?;
    for (link, target) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error)
                    .during(|| format!("link {link} to {target}"))
                    .map_err(Into::into);
            }
            _ => {}
        }
    }
    // Images made from nothing but a program lack them; programs still write there.
    ensure("/tmp", 0o1777)?;
    ensure("/run", 0o755)
}

fn all(mounts: &[Mount]) -> Result<()> {
    for Mount {
        target,
        kind,
        flags,
        options,
    } in mounts
    {
        ensure(target, 0o755)?;
        mount(kind, Path::new(target), kind, *flags, options)?;
    }
    Ok(())
}
