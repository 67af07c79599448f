//! The program of the nested laboratory: init of its node, and of its guests.
//!
//! Owns: finding out which of the two it is. Refuses: being in a shipped image.
#![forbid(unsafe_code)]

use nix::sys::reboot::RebootMode;
use qemu_tests::inside;
use qemu_tests::nested::{GUEST, guest, node};

fn main() {
    match std::env::var(GUEST) {
        Ok(word) => guest::main(&word),
        Err(_) => node::main(),
    }
    // Init must not return; where the machine does not go off, the kernel's panic ends it.
    let _ = inside::end(RebootMode::RB_POWER_OFF);
}
