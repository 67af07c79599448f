//! The program of the nested laboratory: init of its node and of its guests, and a tenant's program.
//!
//! Owns: finding out which of them it is. Refuses: being in a shipped image.
#![forbid(unsafe_code)]

use nix::sys::reboot::RebootMode;
use qemu_tests::inside;
use qemu_tests::nested::{GUEST, TENANT, guest, node, tenant};

fn main() {
    if let Ok(word) = std::env::var(TENANT) {
        return tenant::main(&word);
    }
    match std::env::var(GUEST) {
        Ok(word) => guest::main(&word),
        Err(_) => node::main(),
    }
    // Init must not return; where the machine does not go off, the kernel's panic ends it.
    let _ = inside::end(RebootMode::RB_POWER_OFF);
}
