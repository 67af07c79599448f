//! What is in the image, path by path.
//!
//! Owns: the file trees of the node's and the guest's initramfs.
//! Refuses: reading or building anything. Bytes in, archive out.

use types::PublicKey;
use types::cpio::{Archive, CpioError};

/// Major and minor number of /dev/console (kernel document `admin-guide/devices.txt`).
pub(crate) const CONSOLE: (u32, u32) = (5, 1);
/// Of /dev/null.
pub(crate) const NULL: (u32, u32) = (1, 3);
/// Directories the kernel's file systems are mounted on.
const MOUNT_POINTS: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

pub(crate) const INIT: &str = "/init";
pub(crate) const VMM: &str = "/bin/sifr-vmm";
pub(crate) const GUEST_KERNEL: &str = "/lib/sifr/guest/vmlinux.zst";
pub(crate) const GUEST_INITRAMFS: &str = "/lib/sifr/guest/initramfs.cpio";
pub(crate) const MKFS: &str = "/sbin/mkfs.xfs";
pub(crate) const REPAIR: &str = "/sbin/xfs_repair";
pub(crate) const OWNER: &str = "/etc/sifr/owner.pub";
/// Empty: pid1 mounts one over it that follows the network.
pub(crate) const RESOLV: &str = "/etc/resolv.conf";
pub(crate) const LICENCES: &str = "/etc/sifr/licences.zst";

/// The bytes of each file of the node.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    pub(crate) init: &'a [u8],
    pub(crate) vmm: &'a [u8],
    pub(crate) guest_kernel: &'a [u8],
    pub(crate) guest_initramfs: &'a [u8],
    pub(crate) mkfs: &'a [u8],
    pub(crate) repair: &'a [u8],
    /// Compressed: no program on the node reads them, and files of the image stay in memory.
    pub(crate) licences: &'a [u8],
    /// Built in where the image has one owner.
    pub(crate) owner: Option<PublicKey>,
}

impl Node<'_> {
    pub(crate) fn archive(&self) -> Result<Archive<'_>, CpioError> {
        let mut archive = base()?;
        for directory in [
            "/bin",
            "/etc",
            "/etc/sifr",
            "/lib",
            "/lib/sifr",
            "/lib/sifr/guest",
        ] {
            archive.directory(directory, 0o755)?;
        }
        for directory in ["/pool", "/sbin"] {
            archive.directory(directory, 0o755)?;
        }
        for (path, content) in [
            (INIT, self.init),
            (VMM, self.vmm),
            (MKFS, self.mkfs),
            (REPAIR, self.repair),
        ] {
            archive.file(path, 0o755, content)?;
        }
        for (path, content) in [
            (GUEST_KERNEL, self.guest_kernel),
            (GUEST_INITRAMFS, self.guest_initramfs),
            (LICENCES, self.licences),
            (RESOLV, &[]),
        ] {
            archive.file(path, 0o644, content)?;
        }
        if let Some(owner) = &self.owner {
            archive.file(OWNER, 0o644, format!("{owner}\n").into_bytes())?;
        }
        Ok(archive)
    }
}

/// The guest's initramfs: its init alone. The run specification is appended by the VMM.
pub(crate) fn guest(init: &[u8]) -> Result<Archive<'_>, CpioError> {
    let mut archive = base()?;
    archive.file(INIT, 0o755, init)?;
    Ok(archive)
}

/// Without /dev/console in the archive the kernel gives init no standard streams; where there is no
/// console at all, as in a guest, a Rust program that starts without them opens /dev/null or aborts.
fn base() -> Result<Archive<'static>, CpioError> {
    let mut archive = Archive::default();
    for path in MOUNT_POINTS {
        archive.directory(path, 0o755)?;
    }
    archive.character_device("/dev/console", 0o600, CONSOLE)?;
    archive.character_device("/dev/null", 0o666, NULL)?;
    Ok(archive)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NODE: Node<'static> = Node {
        init: b"init",
        vmm: b"vmm",
        guest_kernel: b"kernel",
        guest_initramfs: b"initramfs",
        mkfs: b"mkfs",
        repair: b"repair",
        licences: b"licences",
        owner: None,
    };

    #[test]
    fn the_node_has_the_files_of_the_contract_and_no_other() {
        let archive = NODE.archive().expect("plain paths");
        let paths: Vec<_> = archive.entries().map(|(path, _)| path).collect();
        let expected = "/bin /bin/sifr-vmm /dev /dev/console /dev/null /etc /etc/resolv.conf /etc/sifr /etc/sifr/licences.zst /init /lib \
             /lib/sifr /lib/sifr/guest /lib/sifr/guest/initramfs.cpio /lib/sifr/guest/vmlinux.zst \
             /pool /proc /run /sbin /sbin/mkfs.xfs /sbin/xfs_repair /sys";
        assert_eq!(paths.join(" "), expected);
    }

    #[test]
    fn an_owner_is_one_line_with_their_key() {
        let node = Node {
            owner: Some(PublicKey([0xab; 32])),
            ..NODE
        };
        let bytes = node.archive().expect("plain paths").encode();
        let line = format!("ed25519:{}\n", "ab".repeat(32));
        assert!(
            bytes
                .windows(line.len())
                .any(|window| window == line.as_bytes())
        );
    }

    #[test]
    fn the_same_parts_give_the_same_bytes() {
        let bytes = || NODE.archive().expect("plain paths").encode();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn a_guest_has_its_init_only() {
        let archive = guest(b"init").expect("plain paths");
        let paths: Vec<_> = archive.entries().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "/dev",
                "/dev/console",
                "/dev/null",
                "/init",
                "/proc",
                "/run",
                "/sys"
            ]
        );
    }
}
