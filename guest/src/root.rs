//! The root file system: the image below, a writable layer above, and the way into it.
//!
//! Owns: the overlay, leaving the initramfs, and giving its memory back.
//! Refuses: paths of the image before the root has changed: a link in it could lead out of it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use sys::error::During;
use sys::mount::{Flags, mount};
use types::guest::RunSpec;

use crate::error::Result;
use crate::{device, lower};

/// Where things are mounted in the initramfs. Nobody sees these paths once the root has changed.
const IMAGE: &str = "/image";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";
/// The overlay's two directories must be on one file system.
const UPPER: &str = "/layer/upper";
const WORK: &str = "/layer/work";

/// Assembles the root and makes it `/`. Returns the mount of the writable layer if it is a disk: at
/// the end that must be made read-only, and by then no path leads to it.
pub(crate) fn enter(spec: &RunSpec) -> Result<Option<OwnedFd>> {
    for directory in [IMAGE, LAYER, ROOT] {
        ensure(directory, 0o755)?;
    }
    let image = device::disk(&spec.image_serial)?;
    let nodev = Flags::MS_NODEV;
    lower::mount_root(&image, Path::new(IMAGE))?;
    let layer = match &spec.upper_serial {
        Some(serial) => {
            let disk = device::disk(serial)?;
            mount(&disk.to_string_lossy(), Path::new(LAYER), "ext4", nodev, "")?;
            Some(File::open(LAYER).during(|| format!("open {LAYER}"))?.into())
        }
        None => {
            mount("tmpfs", Path::new(LAYER), "tmpfs", nodev, "mode=0700")?;
            None
        }
    };
    upper()?;
    ensure(WORK, 0o700)?;
    // redirect_dir: directories of the image can be renamed, which programs expect of a disk.
    let options = format!("lowerdir={IMAGE},upperdir={UPPER},workdir={WORK},redirect_dir=on");
    mount(
        "overlay",
        Path::new(ROOT),
        "overlay",
        Flags::empty(),
        &options,
    )?;
    discard_initramfs()?;
    switch()?;
    Ok(layer)
}

/// The upper directory is what the root looks like: it takes after the image's root when it is made.
fn upper() -> Result<()> {
    if Path::new(UPPER).is_dir() {
        return Ok(());
    }
    let during = || format!("make {UPPER}");
    let image = fs::metadata(IMAGE).during(|| format!("look at {IMAGE}"))?;
    fs::create_dir(UPPER).during(during)?;
    chown(UPPER, Some(image.uid()), Some(image.gid())).during(during)?;
    fs::set_permissions(UPPER, fs::Permissions::from_mode(image.mode() & 0o7777)).during(during)?;
    Ok(())
}

/// Removes every file of the initramfs: the memory is the tenant's, and so is what `/run.json` held.
fn discard_initramfs() -> Result<()> {
    let device = fs::metadata("/").during(|| "look at /".to_owned())?.dev();
    remove_below(Path::new("/"), device)
}

/// Stays on the file system `device`. The tree is ours and a few levels deep.
fn remove_below(directory: &Path, device: u64) -> Result<()> {
    let during = || format!("empty {}", directory.display());
    for entry in fs::read_dir(directory).during(during)? {
        let path = entry.during(during)?.path();
        let found = fs::symlink_metadata(&path).during(|| format!("look at {}", path.display()))?;
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            remove_below(&path, device)?;
            // Fails for what a mount lies upon; that is a directory and holds nothing.
            let _mount_point = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path).during(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn switch() -> Result<()> {
    // The container gets file systems of its own below the new root.
    for old in ["/proc", "/sys", "/dev"] {
        sys::mount::detach(Path::new(old))?;
    }
    std::env::set_current_dir(ROOT).during(|| format!("enter {ROOT}"))?;
    nix::mount::mount(Some("."), "/", None::<&str>, Flags::MS_MOVE, None::<&str>)
        .during(|| "move the new root over /".to_owned())?;
    nix::unistd::chroot(".").during(|| "change the root".to_owned())?;
    std::env::set_current_dir("/").during(|| "enter /".to_owned())?;
    Ok(())
}

/// A directory that is there or is made. Links are followed: this is also used inside the image.
pub(crate) fn ensure(directory: &str, mode: u32) -> Result<()> {
    if Path::new(directory).is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().mode(mode).create(directory);
    made.during(|| format!("make directory {directory}"))?;
    // The mode above has gone through the umask.
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
        .during(|| format!("set the permissions of {directory}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_stays_on_its_file_system_and_follows_no_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (
            directory.path().join("tree"),
            directory.path().join("outside"),
        );
        fs::create_dir_all(tree.join("a/b")).expect("directories");
        fs::write(tree.join("a/b/f"), "x").expect("a file");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("kept"), "x").expect("a file");
        std::os::unix::fs::symlink(&outside, tree.join("link")).expect("a link");
        let device = fs::metadata(&tree).expect("metadata").dev();
        remove_below(&tree, device + 1).expect("nothing to do");
        assert!(tree.join("a/b/f").exists());
        remove_below(&tree, device).expect("removed");
        assert_eq!(fs::read_dir(&tree).expect("a list").count(), 0);
        assert!(outside.join("kept").exists());
    }
}
