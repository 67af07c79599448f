//! The keyboard controller, of which only the reset line exists: how a guest with `reboot=k` ends.
//!
//! Owns: three numbers.

/// Command port, and status when read.
pub(crate) const COMMAND: u16 = 0x64;
/// Input buffer empty: the guest need not wait to write a command.
pub(crate) const STATUS: u8 = 0;
/// Command "pulse output line 0": the processor's reset.
pub(crate) const RESET: u8 = 0xfe;
