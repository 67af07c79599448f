//! Ending the machine.
//!
//! Owns: the reboot call. Refuses: stopping anything first (pid1 does).

use nix::sys::reboot::RebootMode;

use crate::error::{During, Result};

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Restart,
    /// Processors stop, the console stays readable.
    Halt,
}

/// Does not return where it works. What is not synced is lost.
pub fn end(ending: Ending) -> Result<std::convert::Infallible> {
    let mode = match ending {
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Restart => RebootMode::RB_AUTOBOOT,
        Ending::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    nix::sys::reboot::reboot(mode).during(|| format!("reboot with {ending:?}"))
}

/// Ctrl-Alt-Del becomes a SIGINT to pid1 instead of a reset without a sync.
pub fn catch_ctrl_alt_del() -> Result<()> {
    nix::sys::reboot::set_cad_enabled(false).during(|| "catch ctrl-alt-del".to_owned())
}
