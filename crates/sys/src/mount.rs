//! Mounts.
//!
//! Owns: mount, unmount, and leaving the initramfs root so that a child may pivot.
//! Refuses: choosing what is mounted where.

use std::path::Path;

use nix::mount::MntFlags;
pub use nix::mount::MsFlags as Flags;

use crate::error::{During, Result};

/// Mounts a file system. `options` is the file system's own option string, empty for none.
pub fn mount(source: &str, target: &Path, fstype: &str, flags: Flags, options: &str) -> Result<()> {
    let options = (!options.is_empty()).then_some(options);
    nix::mount::mount(Some(source), target, Some(fstype), flags, options)
        .during(|| format!("mount {fstype} {source} on {}", target.display()))
}

/// Makes `source` visible at `target` too.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    nix::mount::mount(
        Some(source),
        target,
        None::<&str>,
        Flags::MS_BIND,
        None::<&str>,
    )
    .during(|| format!("bind {} on {}", source.display(), target.display()))
}

/// Changes the flags of a mount that is there. With `MS_BIND` those of the one mount, not of its file system.
pub fn remount(target: &Path, flags: Flags) -> Result<()> {
    let flags = flags | Flags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .during(|| format!("remount {}", target.display()))
}

pub fn unmount(target: &Path) -> Result<()> {
    nix::mount::umount2(target, MntFlags::empty())
        .during(|| format!("unmount {}", target.display()))
}

/// Takes the mount out of the tree at once; it ends when its last user does.
pub fn detach(target: &Path) -> Result<()> {
    nix::mount::umount2(target, MntFlags::MNT_DETACH)
        .during(|| format!("detach {}", target.display()))
}

/// Moves a mount to another place.
pub fn relocate(from: &Path, to: &Path) -> Result<()> {
    nix::mount::mount(Some(from), to, None::<&str>, Flags::MS_MOVE, None::<&str>)
        .during(|| format!("move the mount {} to {}", from.display(), to.display()))
}

/// Leaves the initramfs root, from which `pivot_root` fails in every namespace made after it: binds
/// `/` on `staging`, moves that mount over `/` and enters it, as `switch_root` does.
///
/// Call it before anything else is mounted: a bind takes no mounts below it along.
pub fn leave_initramfs(staging: &Path) -> Result<()> {
    bind(Path::new("/"), staging)?;
    std::env::set_current_dir(staging).during(|| format!("enter {}", staging.display()))?;
    nix::mount::mount(Some("."), "/", None::<&str>, Flags::MS_MOVE, None::<&str>)
        .during(|| "move the new root over /".to_owned())?;
    nix::unistd::chroot(".").during(|| "change the root to the new root".to_owned())?;
    std::env::set_current_dir("/").during(|| "enter /".to_owned())
}

/// What is mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The device, or what stands for it.
    pub source: String,
    pub fstype: String,
}

/// What is mounted exactly at `target`, the topmost if there are several.
pub fn mounted(target: &Path) -> Result<Option<Mounted>> {
    let table = std::fs::read_to_string("/proc/self/mounts")
        .during(|| "read /proc/self/mounts".to_owned())?;
    Ok(find_mount(&table, target))
}

/// Where file systems of this type are mounted, the innermost first.
pub fn places_of(fstype: &str) -> Result<Vec<std::path::PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts")
        .during(|| "read /proc/self/mounts".to_owned())?;
    let place = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (target, kind) = (words.next()?, words.next()?);
        (kind == fstype).then(|| target.into())
    };
    Ok(table.lines().rev().filter_map(place).collect())
}

/// The last line wins: it is the mount on top.
fn find_mount(table: &str, target: &Path) -> Option<Mounted> {
    let lines = table.lines().rev();
    let mut fields = lines.map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|f| f.len() >= 3 && Path::new(f[1]) == target)?;
    Some(Mounted {
        source: found[0].to_owned(),
        fstype: found[2].to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_is_found() {
        let table = "none / rootfs rw 0 0\nt /pool tmpfs rw 0 0\n/dev/vda1 /pool xfs rw 0 0\n";
        let top = find_mount(table, Path::new("/pool")).expect("a mount");
        assert_eq!(
            (top.source.as_str(), top.fstype.as_str()),
            ("/dev/vda1", "xfs")
        );
        assert_eq!(find_mount(table, Path::new("/poo")), None);
    }
}
