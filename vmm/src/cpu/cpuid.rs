//! CPUID: what the host supports, less what no guest of ours gets, with the machine's topology.
//!
//! Owns: the leaves as one vCPU sees them, pure.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::topology::Topology;

const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_CORES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_SVM: u32 = 0x8000_000a;
const AMD_PERFORMANCE: u32 = 0x8000_0022;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
/// Counters of the core, of the northbridge and of the last-level cache.
const AMD_ECX_PERFCTR: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// Types of level in leaves 0xb and 0x1f.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Caches of this level and above are shared by a socket.
const LAST_LEVEL: u32 = 3;

/// The leaves of vCPU `index`.
pub(crate) fn leaves(
    supported: &[kvm_cpuid_entry2],
    index: u8,
    topology: Topology,
) -> Vec<kvm_cpuid_entry2> {
    let vcpu = Vcpu {
        id: topology.apic_id(index).into(),
        socket: (index / topology.per_socket()).into(),
        topology,
        amd: is_amd(supported),
    };
    let mut leaves: Vec<_> = supported
        .iter()
        .filter(|e| !matches!(e.function, TOPOLOGY | TOPOLOGY_V2 | AMD_TOPOLOGY_V2))
        .copied()
        .map(|mut leaf| {
            adjust(&mut leaf, &vcpu);
            leaf
        })
        .collect();
    let highest = supported.iter().find(|e| e.function == 0);
    let highest = highest.map_or(0, |e| e.eax);
    for function in [TOPOLOGY, TOPOLOGY_V2] {
        if highest >= function {
            leaves.extend(levels(function, &vcpu));
        }
    }
    leaves
}

/// One vCPU in its machine.
struct Vcpu {
    /// APIC id.
    id: u32,
    socket: u32,
    topology: Topology,
    amd: bool,
}

impl Vcpu {
    /// Threads of the socket.
    fn count(&self) -> u32 {
        self.topology.per_socket().into()
    }

    /// Ids that the sharers of a cache of this level span: the last level is shared by the socket, the
    /// others by the threads of a core.
    fn sharers(&self, level: u32) -> u32 {
        let bits = if level >= LAST_LEVEL {
            self.topology.socket_bits()
        } else {
            self.topology.thread_bits()
        };
        1 << bits
    }
}

/// AuthenticAMD and HygonGenuine: their leaves above 0x80000000 say what Intel's below do.
fn is_amd(supported: &[kvm_cpuid_entry2]) -> bool {
    let vendor = supported.iter().find(|e| e.function == 0).map(|e| e.ebx);
    [*b"Auth", *b"Hygo"]
        .map(u32::from_le_bytes)
        .iter()
        .any(|name| vendor == Some(*name))
}

fn adjust(leaf: &mut kvm_cpuid_entry2, vcpu: &Vcpu) {
    let count = vcpu.count();
    match leaf.function {
        FEATURES => {
            // Brand index and CLFLUSH size stay; logical processors and APIC id are the machine's.
            leaf.ebx = leaf.ebx & 0xffff | count << 16 | vcpu.id << 24;
            // No nesting and no performance counters: both are ways to more of the host's kernel.
            leaf.ecx &= !(ECX_VMX | ECX_PDCM);
            leaf.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            leaf.edx = if count > 1 {
                leaf.edx | EDX_HTT
            } else {
                leaf.edx & !EDX_HTT
            };
        }
        // Type 0 ends the list of caches.
        CACHES if leaf.eax & 0x1f != 0 => {
            // Cores of the socket, less one, in bits 31 to 26; sharers of the cache in 25 to 14.
            let sharers = vcpu.sharers(leaf.eax >> 5 & 7);
            let cores = u32::from(vcpu.topology.cores());
            leaf.eax = leaf.eax & 0x3fff | (sharers - 1) << 14 | (cores - 1) << 26;
        }
        AMD_CACHES if leaf.eax & 0x1f != 0 => {
            let sharers = vcpu.sharers(leaf.eax >> 5 & 7);
            leaf.eax = leaf.eax & 0x3fff | (sharers - 1) << 14;
        }
        PERFORMANCE | AMD_PERFORMANCE | AMD_SVM => {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        AMD_FEATURES => {
            leaf.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFCTR | AMD_ECX_CMP_LEGACY);
            if vcpu.amd && count > 1 {
                leaf.ecx |= AMD_ECX_CMP_LEGACY;
            }
        }
        // APM volume 3, E.4.7 and E.4.16: width of the id within a socket, threads of the socket less one;
        // id, core within the socket with its threads less one, and the socket as one node.
        AMD_CORES if vcpu.amd => leaf.ecx = vcpu.topology.socket_bits() << 12 | (count - 1),
        AMD_TOPOLOGY => {
            let within = (1 << vcpu.topology.socket_bits()) - 1;
            let core = (vcpu.id & within) >> vcpu.topology.thread_bits();
            let threads = u32::from(vcpu.topology.threads());
            (leaf.eax, leaf.ebx) = (vcpu.id, (threads - 1) << 8 | core);
            leaf.ecx = vcpu.socket;
        }
        _ => {}
    }
}

/// Extended topology (Intel SDM volume 2, CPUID): threads of a core, threads of a socket, the end of the list.
fn levels(function: u32, vcpu: &Vcpu) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind, shift, processors| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: vcpu.id,
        ..Default::default()
    };
    let topology = vcpu.topology;
    [
        level(
            0,
            LEVEL_THREAD,
            topology.thread_bits(),
            topology.threads().into(),
        ),
        level(1, LEVEL_CORE, topology.socket_bits(), vcpu.count()),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::vm::Topology as Asked;

    /// A machine that asked for nothing.
    fn plain(cpus: u8) -> Topology {
        Topology::new(cpus, None).expect("a sane count")
    }

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves
            .iter()
            .find(|e| e.function == function && e.index == index)
            .expect("leaf is there")
    }

    #[test]
    fn a_guest_gets_the_deadline_timer_and_no_nesting() {
        let host = [
            leaf(1, 0, 0xffff_ffff, ECX_VMX, 0),
            leaf(AMD_FEATURES, 0, 0, AMD_ECX_SVM, 0),
        ];
        let guest = leaves(&host, 0, plain(1));
        assert_eq!(find(&guest, 1, 0).ecx, ECX_TSC_DEADLINE | ECX_HYPERVISOR);
        assert_eq!(find(&guest, AMD_FEATURES, 0).ecx, 0);
    }

    #[test]
    fn a_guest_is_told_of_no_performance_counters() {
        let host = [
            leaf(1, 0, 0, ECX_PDCM, 0),
            leaf(PERFORMANCE, 0x0730_0404, 0, 0, 0x603),
            leaf(AMD_FEATURES, 0, 0, u32::MAX, 0),
            leaf(AMD_PERFORMANCE, 1, 6, 0, 0),
        ];
        let guest = leaves(&host, 0, plain(1));
        assert_eq!(find(&guest, 1, 0).ecx & ECX_PDCM, 0);
        let counters = 1 << 23 | 1 << 24 | 1 << 28;
        assert_eq!(find(&guest, AMD_FEATURES, 0).ecx & counters, 0);
        for function in [PERFORMANCE, AMD_PERFORMANCE] {
            let leaf = find(&guest, function, 0);
            assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
        }
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_and_all_share_one_package() {
        let host = [
            leaf(0, 0xd, 0, 0, 0),
            leaf(1, 0, 0x0800, 0, 0),
            leaf(TOPOLOGY, 9, 9, 9, 9),
        ];
        for id in 0..3 {
            let guest = leaves(&host, id, plain(3));
            assert_eq!(
                find(&guest, 1, 0).ebx,
                u32::from(id) << 24 | 3 << 16 | 0x0800
            );
            assert_eq!(find(&guest, 1, 0).edx & EDX_HTT, EDX_HTT);
            let core = find(&guest, TOPOLOGY, 1);
            assert_eq!((core.eax, core.ebx, core.edx), (2, 3, u32::from(id)));
            assert_eq!(guest.iter().filter(|e| e.function == TOPOLOGY).count(), 3);
        }
    }

    #[test]
    fn a_host_without_the_topology_leaf_gives_none() {
        assert!(
            leaves(&[leaf(0, 7, 0, 0, 0)], 0, plain(2))
                .iter()
                .all(|e| e.function != TOPOLOGY)
        );
    }

    /// The last vCPU of two sockets with three cores of two threads: socket 1, core 2, thread 1.
    fn last_of_twelve(host: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let asked = Asked {
            sockets: 2,
            cores: 3,
            threads: 2,
        };
        let topology = Topology::new(12, Some(asked)).expect("2 * 3 * 2");
        leaves(host, 11, topology)
    }

    const AMD: u32 = u32::from_le_bytes(*b"Auth");

    #[test]
    fn sockets_cores_and_threads_are_in_both_leaves_of_the_extended_topology() {
        let guest = last_of_twelve(&[leaf(0, TOPOLOGY_V2, 0, 0, 0), leaf(1, 0, 0, 0, 0)]);
        for function in [TOPOLOGY, TOPOLOGY_V2] {
            let [thread, core, end] = [0, 1, 2].map(|index| find(&guest, function, index));
            assert_eq!((thread.eax, thread.ebx, thread.ecx), (1, 2, 0x100));
            assert_eq!((core.eax, core.ebx, core.ecx), (3, 6, 0x201));
            assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
            assert!([thread, core, end].iter().all(|l| l.edx == 0b1101));
        }
        assert_eq!(find(&guest, 1, 0).ebx, 0b1101 << 24 | 6 << 16);
    }

    #[test]
    fn threads_share_the_inner_caches_and_a_socket_the_last() {
        let cache = |function, index, level: u32| kvm_cpuid_entry2 {
            index,
            ..leaf(function, level << 5 | 1, 7, 7, 7)
        };
        let host = [CACHES, AMD_CACHES]
            .map(|f| {
                [
                    cache(f, 0, 1),
                    cache(f, 1, 2),
                    cache(f, 2, 3),
                    leaf(f, 0, 0, 0, 0),
                ]
            })
            .concat();
        let guest = last_of_twelve(&host);
        let sharers = |l: kvm_cpuid_entry2| l.eax >> 14 & 0xfff;
        for function in [CACHES, AMD_CACHES] {
            let of = |index| sharers(find(&guest, function, index));
            assert_eq!([of(0), of(1), of(2)], [1, 1, 7]);
        }
        assert_eq!(find(&guest, CACHES, 2).eax >> 26, 2);
        // The end of the list stays the end.
        assert!(guest.iter().any(|l| l.function == CACHES && l.eax == 0));
    }

    #[test]
    fn amd_guests_find_their_core_and_socket_where_amd_has_them() {
        let host = [
            leaf(0, 0xd, AMD, 0, 0),
            leaf(AMD_FEATURES, 0, 0, 0, 0),
            leaf(AMD_CORES, 0x3030, 0, 0x700f, 0),
            leaf(AMD_TOPOLOGY, 1, 2, 3, 0),
        ];
        let guest = last_of_twelve(&host);
        assert_eq!(find(&guest, AMD_CORES, 0).ecx, 3 << 12 | 5);
        let topology = find(&guest, AMD_TOPOLOGY, 0);
        assert_eq!(
            (topology.eax, topology.ebx, topology.ecx),
            (0b1101, 1 << 8 | 2, 1)
        );
        assert_eq!(find(&guest, AMD_FEATURES, 0).ecx, AMD_ECX_CMP_LEGACY);
    }

    #[test]
    fn what_only_amd_says_is_not_put_into_an_intel_guests_reserved_bits() {
        let intel = u32::from_le_bytes(*b"Genu");
        let host = [
            leaf(0, 0x1f, intel, 0, 0),
            leaf(AMD_FEATURES, 0, 0, 0, 0),
            leaf(AMD_CORES, 0x3027, 0, 0, 0),
        ];
        let guest = last_of_twelve(&host);
        assert_eq!(find(&guest, AMD_CORES, 0).ecx, 0);
        assert_eq!(find(&guest, AMD_FEATURES, 0).ecx, 0);
    }
}
