//! One target under libFuzzer: the one that the variable names.
//!
//! Owns: nothing but the choice. Refuses: to run without one. `sifr-fuzz` builds and starts it.
#![no_main]
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var(fuzz::TARGET_VARIABLE).unwrap_or_default();
    let found = fuzz::targets().into_iter().find(|t| t.name == name);
    found.unwrap_or_else(|| panic!("set {} to the name of a target", fuzz::TARGET_VARIABLE))
}

fuzz_target!(|input: &[u8]| {
    (TARGET.get_or_init(chosen).run)(input);
});
