//! The end of the machine.
//!
//! Owns: leaving the writable layer clean, and the reset, which is how this VM powers off.
//! Refuses: waiting for anything; what was worth waiting for has been.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;

use sys::mount::{Flags, remount};
use sys::reboot::Ending;

use crate::{Disks, console};

/// Makes the overlay, the disk below it and the volumes read-only, so that their journals are empty. Where the tenant's
/// own mounts prevent that, the sync has to do: the next mount replays the journal.
pub(crate) fn settle(disks: Disks) {
    let Disks { layer, mut volumes } = disks;
    volumes.release(None);
    nix::unistd::sync();
    let warn = |result: Result<(), String>| {
        if let Err(error) = result {
            console::warn(&error);
        }
    };
    for root in volumes.written() {
        warn(finish(root));
    }
    let Some(layer) = layer else { return };
    let overlay = remount(Path::new("/"), Flags::MS_RDONLY).map_err(|e| sys::chain(&e));
    warn(overlay.and_then(|()| finish(layer.as_fd())));
}

/// Makes a mount read-only. No path may lead to it any more, but its descriptor does.
fn finish(root: BorrowedFd<'_>) -> Result<(), String> {
    nix::unistd::fchdir(root).map_err(|e| format!("enter a disk: {e}"))?;
    remount(Path::new("."), Flags::MS_RDONLY).map_err(|e| sys::chain(&e))
}

/// Does not return: where the kernel refuses, init's own end makes it panic, and `panic=-1` resets.
pub(crate) fn reset() -> ! {
    match sys::reboot::end(Ending::Restart) {
        Ok(never) => match never {},
        Err(error) => panic!("{}", sys::chain(&error)),
    }
}
