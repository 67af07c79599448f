//! The processors: what they say they are, how they start, and their run loop.
//!
//! Owns: CPUID, start registers, MSRs, the exits of one vCPU.
//! Refuses: devices. An exit goes to the buses.

pub(crate) mod cpuid;
pub(crate) mod start;
pub(crate) mod topology;
pub(crate) mod vcpu;

/// Most vCPUs of a machine: NR_CPUS of the guest kernel, and what the MP table has room for.
pub(crate) const CPUS_MAX: u8 = 32;
