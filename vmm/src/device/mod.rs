//! Devices at fixed ports.

pub(crate) mod i8042;
pub(crate) mod serial;
