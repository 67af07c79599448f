//! How the vCPUs are grouped, and the APIC id that says so.
//!
//! Owns: ids and the bits in them, pure. Refuses: groups whose product is not the number of vCPUs.

use types::vm::Topology as Asked;

use super::CPUS_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TopologyError {
    #[error("{0} vCPUs: a machine has 1 to {CPUS_MAX}")]
    Cpus(u8),
    #[error(
        "topology of {sockets} sockets, {cores} cores and {threads} threads is not {cpus} vCPUs: their product has to be `cpus`",
        sockets = .asked.sockets, cores = .asked.cores, threads = .asked.threads
    )]
    Product { cpus: u8, asked: Asked },
}

/// A checked grouping of 1 to [`CPUS_MAX`] vCPUs.
///
/// An APIC id has a field of bits for the thread, above it one for the core, above it the socket, each as
/// wide as its count needs (Intel SDM volume 3, 10.9.1): with counts that are no powers of two, ids have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Topology {
    sockets: u8,
    cores: u8,
    threads: u8,
}

impl Topology {
    /// As asked, or one socket with a core for each vCPU.
    pub(crate) fn new(cpus: u8, asked: Option<Asked>) -> Result<Self, TopologyError> {
        if !(1..=CPUS_MAX).contains(&cpus) {
            return Err(TopologyError::Cpus(cpus));
        }
        let asked = asked.unwrap_or(Asked {
            sockets: 1,
            cores: cpus,
            threads: 1,
        });
        let product = asked
            .sockets
            .checked_mul(asked.cores)
            .and_then(|n| n.checked_mul(asked.threads));
        if product != Some(cpus) {
            return Err(TopologyError::Product { cpus, asked });
        }
        Ok(Self {
            sockets: asked.sockets,
            cores: asked.cores,
            threads: asked.threads,
        })
    }

    pub(crate) fn cpus(self) -> u8 {
        self.sockets * self.cores * self.threads
    }

    pub(crate) fn threads(self) -> u8 {
        self.threads
    }

    /// Threads of all cores of a socket.
    pub(crate) fn per_socket(self) -> u8 {
        self.cores * self.threads
    }

    pub(crate) fn cores(self) -> u8 {
        self.cores
    }

    /// Bits of an APIC id that number the threads of a core.
    pub(crate) fn thread_bits(self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC id that number the threads and cores of a socket.
    pub(crate) fn socket_bits(self) -> u32 {
        bits(self.threads) + bits(self.cores)
    }

    /// The APIC id of vCPU `index`. Threads of a core follow each other, and cores of a socket.
    pub(crate) fn apic_id(self, index: u8) -> u8 {
        let (thread, core) = (index % self.threads, index / self.threads % self.cores);
        let socket = index / self.per_socket();
        socket << self.socket_bits() | core << self.thread_bits() | thread
    }

    /// APIC ids in the order of the vCPUs, which is ascending.
    pub(crate) fn apic_ids(self) -> impl Iterator<Item = u8> {
        (0..self.cpus()).map(move |index| self.apic_id(index))
    }
}

/// Bits that number `count` things.
fn bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(sockets: u8, cores: u8, threads: u8) -> Asked {
        Asked {
            sockets,
            cores,
            threads,
        }
    }

    #[test]
    fn a_machine_that_asks_for_nothing_has_a_core_for_each_vcpu() {
        for cpus in 1..=CPUS_MAX {
            let topology = Topology::new(cpus, None).expect("sane");
            assert!(topology.apic_ids().eq(0..cpus));
            assert_eq!((topology.threads(), topology.per_socket()), (1, cpus));
        }
    }

    #[test]
    fn groups_that_are_no_powers_of_two_leave_gaps() {
        let topology = Topology::new(12, Some(asked(2, 3, 2))).expect("2 * 3 * 2");
        let ids: Vec<u8> = topology.apic_ids().collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!((topology.thread_bits(), topology.socket_bits()), (1, 3));
    }

    #[test]
    fn groups_that_are_not_the_vcpus_are_refused() {
        for (cpus, groups) in [
            (4, asked(1, 2, 1)),
            (4, asked(0, 4, 1)),
            (4, asked(4, 1, 0)),
            (32, asked(16, 16, 16)),
            (1, asked(1, 255, 255)),
        ] {
            let error = Topology::new(cpus, Some(groups)).expect_err("refused");
            assert_eq!(
                error,
                TopologyError::Product {
                    cpus,
                    asked: groups
                }
            );
        }
        assert_eq!(Topology::new(0, None), Err(TopologyError::Cpus(0)));
        assert_eq!(Topology::new(33, None), Err(TopologyError::Cpus(33)));
    }

    /// Every grouping there is.
    fn all() -> impl Iterator<Item = (Topology, Asked)> {
        let sides = || 1..=CPUS_MAX;
        let groups =
            sides().flat_map(move |s| sides().flat_map(move |c| sides().map(move |t| (s, c, t))));
        groups.filter_map(|(s, c, t)| {
            let cpus = s.checked_mul(c)?.checked_mul(t)?;
            let asked = asked(s, c, t);
            Some((Topology::new(cpus, Some(asked)).ok()?, asked))
        })
    }

    #[test]
    fn ids_are_unique_ascend_and_give_their_groups_back() {
        assert!(all().count() > 100);
        for (topology, asked) in all() {
            let ids: Vec<u8> = topology.apic_ids().collect();
            assert!(ids.windows(2).all(|w| w[0] < w[1]), "{asked:?}: {ids:?}");
            let distinct = |shift: u32| {
                let mut groups: Vec<u8> = ids.iter().map(|id| id >> shift).collect();
                groups.dedup();
                groups.len()
            };
            let (sockets, cores) = (usize::from(asked.sockets), usize::from(asked.cores));
            assert_eq!(distinct(topology.socket_bits()), sockets, "{asked:?}");
            assert_eq!(
                distinct(topology.thread_bits()),
                sockets * cores,
                "{asked:?}"
            );
            // 255 is the broadcast id, and the I/O APIC has the one above the last.
            assert!(ids.iter().all(|id| *id < 254), "{asked:?}: {ids:?}");
        }
    }
}
