//! pvpanic: a port by which a guest's kernel says that it has panicked (QEMU's `docs/specs/pvpanic`).
//!
//! Owns: what its bits mean. Linux finds the port in ACPI tables alone, so that our own guests never use it:
//! theirs is found by `postmortem`.

pub(crate) const PORT: u16 = 0x505;
/// The events that we know, which the guest reads first.
pub(crate) const EVENTS: u8 = PANICKED | CRASH_LOADED;
const PANICKED: u8 = 1;
/// It panicked, and goes on into a kernel that saves its memory.
const CRASH_LOADED: u8 = 2;

/// Whether the guest is at its end. One that saves its memory resets by itself.
pub(crate) fn ends(value: u8) -> bool {
    value & EVENTS == PANICKED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_end_and_a_crash_kernel_is_not() {
        let ended: Vec<u8> = (0..8).filter(|value| ends(*value)).collect();
        assert_eq!(ended, [1, 5]);
    }
}
