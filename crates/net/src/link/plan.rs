//! From what is to what should be, as steps.
//!
//! Owns: the difference. Refuses: doing it.

use std::collections::BTreeMap;

use super::{Desired, Observed};
use crate::dhcp::Lease;

/// One change.
#[derive(Debug, Clone)]
pub enum Step {}

/// The steps from `observed` to `desired`; none where they agree. Links that are not described stay.
pub fn plan(desired: &[Desired], observed: &Observed) -> Vec<Step> {
    unimplemented!("{desired:?} {observed:?}")
}

/// The node's own links: loopback and all Ethernet ports up, and on each port what its lease says. The
/// first port with a gateway, in the kernel's order, is preferred.
pub fn uplinks(observed: &Observed, leases: &BTreeMap<String, Lease>) -> Vec<Desired> {
    unimplemented!("{observed:?} {leases:?}")
}
