//! Machines of a deployment that other nodes have: by which network each is reached from here.
//!
//! Owns: what follows from the peers in a node's statement. Refuses: addresses, which only the machine's node knows, and machines
//! of other deployments.

use crate::deployment::Deployment;
use crate::{Cidr, Name};

/// Where a machine is that is not on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere<'a> {
    /// The network, which is on both nodes.
    pub network: &'a Name,
    /// This node's part of it.
    pub here: Cidr,
    /// As the owner calls the other node.
    pub node: &'a Name,
    /// That node's part of the network.
    pub there: Cidr,
}

/// Whether there is one way to such a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way<'a> {
    /// No other node has it.
    Nowhere,
    /// By internal networks alone, into which nothing is published.
    Internal,
    By(Elsewhere<'a>),
    /// By these and perhaps more: which of them is its first, only its own node's statement says.
    Several(&'a Name, &'a Name),
}

impl Deployment {
    /// The way to a machine of this name on another node.
    pub fn way_to(&self, machine: &Name) -> Way<'_> {
        let mut way = Way::Nowhere;
        for (network, of) in self.networks() {
            let peers = of.mesh.iter().flat_map(|mesh| &mesh.peers);
            let mut has = peers.filter(|(_, peer)| peer.machines.contains(machine));
            // A network across nodes that says no subnet is refused as a whole.
            let Some(((node, peer), here)) = has.next().zip(of.subnet) else {
                continue;
            };
            way = match (way, of.internal) {
                (Way::Nowhere, true) => Way::Internal,
                (before, true) => before,
                (Way::Nowhere | Way::Internal, false) => Way::By(Elsewhere {
                    network,
                    here,
                    node,
                    there: peer.subnet,
                }),
                (Way::By(first), false) => Way::Several(first.network, network),
                (several @ Way::Several(..), false) => several,
            };
        }
        way
    }
}

#[cfg(test)]
#[path = "elsewhere_tests.rs"]
mod tests;
