//! Addresses of machines: one subnet a signer, one address a machine, the same after every reboot.
//!
//! Owns: which address a machine gets when it has none. Refuses: moving one that has.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use types::{Cidr, VmId};

/// The gateway is the first address of a subnet; .0 and .255 are nobody's.
const FIRST: u32 = 2;
pub(crate) const COUNT: u32 = 253;
/// Subnets are this long everywhere on a node.
pub const PREFIX: u8 = 24;

/// The subnet that an address lies in.
pub fn subnet_of(address: Ipv4Addr) -> Cidr {
    Cidr::new(address, PREFIX)
        .expect("24 is a prefix length")
        .network()
}

/// A free address for `vm`: its hash says where the search begins, so that a machine that comes back
/// mostly finds its old one. `None` when the subnet is full.
pub(crate) fn choose(subnet: Cidr, vm: &VmId, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let hash = blake3::hash(vm.as_str().as_bytes());
    let [a, b, ..] = *hash.as_bytes();
    let begin = u32::from(u16::from_le_bytes([a, b]));
    (0..COUNT)
        .map(|step| u32::from(subnet.network().address) + FIRST + (begin + step) % COUNT)
        .map(Ipv4Addr::from)
        .find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_fills_to_its_last_address_and_no_further() {
        let subnet: Cidr = "10.130.4.1/24".parse().expect("a network");
        let mut taken = BTreeSet::new();
        for n in 0..COUNT {
            let vm: VmId = format!("vm{n}").parse().expect("a VM id");
            let address = choose(subnet, &vm, &taken).expect("a free address");
            assert!(subnet.contains(address) && (2..=254).contains(&address.octets()[3]));
            assert!(taken.insert(address), "{address} twice");
        }
        assert_eq!(
            choose(subnet, &"late".parse().expect("a VM id"), &taken),
            None
        );
    }

    #[test]
    fn the_same_machine_gets_the_same_address() {
        let subnet: Cidr = "10.130.4.1/24".parse().expect("a network");
        let vm: VmId = "web-shop-01010101".parse().expect("a VM id");
        assert_eq!(
            choose(subnet, &vm, &BTreeSet::new()),
            choose(subnet, &vm, &BTreeSet::new())
        );
    }
}
