//! How a driver sets a device up: the device status and the memory-mapped registers.

pub(crate) mod mmio;
pub(crate) mod status;
