//! A guest kernel that attacks its monitor: it drives virtio devices as no driver would.
//!
//! Owns: the table of attacks, each with the end that it must come to, and after each the proof that every
//! device still serves a driver that follows the rules.
//! Refuses: being in a shipped image, and the monitor's own code: it knows the specification only.
#![no_std]
// Numbers are cut to the width of a register on purpose.
#![allow(clippy::cast_possible_truncation)]

mod attack;
mod console;
mod cpu;
mod device;
mod honest;
mod memory;
mod random;

use attack::Bench;
pub use attack::{ATTACKS, Attack, Ends, TWO_PROCESSORS};
pub use honest::pattern;

use crate::console::say;

/// Memory of the machine that this kernel is for.
pub const MEMORY_MIB: u64 = 64;
/// What a line begins with that says that all devices served after the attack.
pub const ANSWERED: &str = "hostile: answered";
/// What a line begins with that says what did not.
pub const FAILED: &str = "hostile: FAILED";
/// What a line begins with that says the clock's time: year, month, day, hours, minutes, seconds.
pub const CLOCK: &str = "hostile: clock";
/// The line of a kernel that has said a panic which is not the end.
pub const GOES_ON: &str = "hostile: goes on";

/// The whole kernel. `start_info` is where the monitor put its tables; `trampoline` is the code from
/// here to there that takes another processor from real mode to [`second`].
pub fn kernel(start_info: u64, trampoline: (u64, u64)) -> ! {
    let line = memory::command_line(start_info);
    let name = word(line, "attack=").unwrap_or("");
    let seed = word(line, "seed=").and_then(|s| s.parse().ok());
    let Some(attack) = ATTACKS.iter().find(|a| a.name == name) else {
        say(format_args!("{FAILED}: no attack {name:?}"));
        cpu::reset();
    };
    let mut bench = Bench::new(seed.unwrap_or(1), trampoline);
    (attack.run)(&mut bench);
    match honest::all(bench.devices()) {
        Ok(served) => say(format_args!("{ANSWERED} {served} devices")),
        Err(why) => say(format_args!("{FAILED}: {why}")),
    }
    cpu::reset()
}

/// All that another processor does.
pub fn second() -> ! {
    attack::second();
    cpu::halt()
}

/// Says why this kernel itself cannot go on.
pub fn give_up(why: &dyn core::fmt::Display) -> ! {
    say(format_args!("{FAILED}: {why}"));
    cpu::reset()
}

/// The value of `key` in a command line.
fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_attack_has_a_name_of_its_own() {
        let names: BTreeSet<_> = ATTACKS.iter().map(|a| a.name).collect();
        assert_eq!(names.len(), ATTACKS.len());
    }

    #[test]
    fn a_word_is_found_by_its_key() {
        let line = "quiet seed=7 attack=loop";
        assert_eq!(word(line, "attack="), Some("loop"));
        assert_eq!(word(line, "seed="), Some("7"));
        assert_eq!(word(line, "none="), None);
    }
}
