//! The end of the machine.
//!
//! Owns: leaving the writable layer clean, and the reset, which is how this VM powers off.
//! Refuses: waiting for anything; what was worth waiting for has been.

use std::os::fd::OwnedFd;
use std::path::Path;

use sys::mount::{Flags, remount};
use sys::reboot::Ending;

use crate::console;

/// Makes the overlay and the disk below it read-only, so that its journal is empty. Where the tenant's
/// own mounts prevent that, the sync has to do: the next mount replays the journal.
pub(crate) fn settle(layer: Option<OwnedFd>) {
    nix::unistd::sync();
    let Some(layer) = layer else { return };
    let result = remount(Path::new("/"), Flags::MS_RDONLY)
        .map_err(|e| sys::chain(&e))
        .and_then(|()| {
            // No path leads to the mount any more, but its descriptor does.
            nix::unistd::fchdir(&layer).map_err(|e| format!("enter the writable layer: {e}"))?;
            remount(Path::new("."), Flags::MS_RDONLY).map_err(|e| sys::chain(&e))
        });
    if let Err(error) = result {
        console::warn(&error);
    }
}

/// Does not return: where the kernel refuses, init's own end makes it panic, and `panic=-1` resets.
pub(crate) fn reset() -> ! {
    match sys::reboot::end(Ending::Restart) {
        Ok(never) => match never {},
        Err(error) => panic!("{}", sys::chain(&error)),
    }
}
