//! The hypervisor: what the machine asks of the kernel's virtualisation.
//!
//! Owns: KVM, and the one place where its descriptors become objects.
#![allow(unsafe_code)]

pub(crate) mod coalesced;
pub(crate) mod kick;
pub(crate) mod kvm;
