//! The guest's side: `vmm-node` as init of a guest, one small program by the word on its command line.
//!
//! Owns: what all those programs do: speak on the console, and end the machine.
//! Refuses: to go on after an error. It is said, and the machine resets.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use nix::sys::reboot::RebootMode;

use super::scenario;
use crate::inside::{end, mount_at};

/// What a line begins with that says why a guest's program failed.
pub const FAILED: &str = "guest: FAILED";

/// A guest's program. When it returns, the machine resets.
pub type Program = fn() -> Result<()>;

/// All of it. Returns only where the machine cannot be reset.
pub fn main(word: &str) {
    let outcome = scenario::guest(word).and_then(|program| program());
    if let Err(error) = outcome {
        say(&format!("{FAILED}: {error:#}"));
    }
    let _ = end(RebootMode::RB_AUTOBOOT);
}

/// Says a line on the console, whose other end the scenario has; returns when it is out.
pub fn say(line: &str) {
    let mut out = std::io::stdout();
    // A guest has nobody else to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let _ = nix::sys::termios::tcdrain(out);
}

/// Makes the directory and mounts there.
pub fn mount(kind: &str, place: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
    mount_at(kind, place)
}

/// The value of `key=value` on the guest's kernel command line, which the kernel gives to its init.
pub fn argument(key: &str) -> Result<String> {
    std::env::var(key).with_context(|| format!("{key}= is not on the kernel command line"))
}
