//! Devices at fixed ports.

pub(crate) mod i8042;
pub(crate) mod pvpanic;
pub(crate) mod rtc;
pub(crate) mod serial;
pub(crate) mod watchdog;
