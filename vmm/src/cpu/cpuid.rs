//! CPUID: what the host supports, less what no guest of ours gets, with the machine's topology.
//!
//! Owns: the leaves as one vCPU sees them, pure. One socket, one thread a core.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

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

/// The leaves of vCPU `index` of `cpus`.
pub(crate) fn leaves(supported: &[kvm_cpuid_entry2], index: u8, cpus: u8) -> Vec<kvm_cpuid_entry2> {
    let id = u32::from(index);
    let count = u32::from(cpus);
    let mut leaves: Vec<_> = supported
        .iter()
        .filter(|e| !matches!(e.function, TOPOLOGY | TOPOLOGY_V2 | AMD_TOPOLOGY_V2))
        .copied()
        .map(|mut leaf| {
            adjust(&mut leaf, id, count);
            leaf
        })
        .collect();
    if leaves.iter().any(|e| e.function == 0 && e.eax >= TOPOLOGY) {
        leaves.extend(topology(TOPOLOGY, id, count));
    }
    leaves
}

fn adjust(leaf: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    match leaf.function {
        FEATURES => {
            // Brand index and CLFLUSH size stay; logical processors and APIC id are the machine's.
            leaf.ebx = leaf.ebx & 0xffff | count << 16 | id << 24;
            // No nesting and no performance counters: both are ways to more of the host's kernel.
            leaf.ecx &= !(ECX_VMX | ECX_PDCM);
            leaf.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            leaf.edx = if count > 1 {
                leaf.edx | EDX_HTT
            } else {
                leaf.edx & !EDX_HTT
            };
        }
        CACHES => {
            // Cores of the package, less one, in bits 31 to 26; sharers of the cache in 25 to 14: the
            // last level is shared by all, the others by nobody.
            let level = leaf.eax >> 5 & 7;
            let sharers = if level >= 3 { count } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | (sharers - 1) << 14 | (count - 1) << 26;
        }
        AMD_CACHES => {
            let level = leaf.eax >> 5 & 7;
            let sharers = if level >= 3 { count } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | (sharers - 1) << 14;
        }
        PERFORMANCE | AMD_PERFORMANCE | AMD_SVM => {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        AMD_FEATURES => {
            leaf.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFCTR | AMD_ECX_CMP_LEGACY);
            if count > 1 {
                leaf.ecx |= AMD_ECX_CMP_LEGACY;
            }
        }
        AMD_CORES => leaf.ecx = id_bits(count) << 12 | (count - 1),
        AMD_TOPOLOGY => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Bits of an APIC id that number the cores.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Extended topology: one thread a core, all cores in one package, and the end of the list.
fn topology(function: u32, id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind, shift, processors| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [
        level(0, LEVEL_THREAD, 0, 1),
        level(1, LEVEL_CORE, id_bits(count), count),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let guest = leaves(&host, 0, 1);
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
        let guest = leaves(&host, 0, 1);
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
            let guest = leaves(&host, id, 3);
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
            leaves(&[leaf(0, 7, 0, 0, 0)], 0, 2)
                .iter()
                .all(|e| e.function != TOPOLOGY)
        );
    }
}
