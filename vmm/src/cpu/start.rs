//! The state in which a vCPU begins: PVH entry for the first, the firmware's leavings for all.
//!
//! Owns: start registers and MSRs. The others wait for the first one's start-up interrupt.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::memory::layout;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0} of a vCPU")]
    Ioctl(&'static str, #[source] kvm_ioctls::Error),
    #[error("CPUID has more leaves than KVM takes")]
    Leaves,
    #[error("KVM refused MSR {0:#x} of a vCPU")]
    Msr(u32),
}

/// CR0.PE and CR0.ET: protected mode, paging off.
const CR0: u64 = 0x11;
/// The one bit of the flags register that is always set.
const RFLAGS: u64 = 0x2;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// Memory is write-back where no MTRR says else (there are none), MTRRs on: what firmware leaves.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Prepares one vCPU. `entry`: where the kernel's PVH entry is, for the first.
pub(crate) fn prepare(
    vcpu: &VcpuFd,
    leaves: &[kvm_bindings::kvm_cpuid_entry2],
    entry: Option<u64>,
) -> Result<(), StartError> {
    let cpuid = CpuId::from_entries(leaves).map_err(|_| StartError::Leaves)?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| StartError::Ioctl("set CPUID", e))?;
    set_msrs(vcpu)?;
    let Some(entry) = entry else { return Ok(()) };
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| StartError::Ioctl("get the system registers", e))?;
    pvh_sregs(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(|e| StartError::Ioctl("set the system registers", e))?;
    let regs = kvm_regs {
        rip: entry,
        rbx: layout::START_INFO,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(|e| StartError::Ioctl("set the registers", e))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), StartError> {
    let values = [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEFAULT, MTRR_ENABLED_WRITE_BACK),
    ];
    let entries = values.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).expect("two entries are below KVM's limit");
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(|e| StartError::Ioctl("set the MSRs", e))?;
    // KVM stops at the first it refuses.
    entries
        .get(set)
        .map_or(Ok(()), |refused| Err(StartError::Msr(refused.index)))
}

/// PVH (Xen's docs/misc/pvh.pandoc): 32-bit flat code and data, a 32-bit task segment, paging off.
fn pvh_sregs(sregs: &mut kvm_sregs) {
    let flat = |type_: u8, selector: u16| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // Types: 0xb = code, read, accessed; 0x3 = data, write, accessed; 0xb of a system segment = busy
    // 32-bit task. The kernel loads tables of its own before it loads a segment register.
    sregs.cs = flat(0xb, 0x8);
    let data = flat(0x3, 0x10);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_vcpu_starts_in_flat_protected_mode_without_paging() {
        let mut sregs = kvm_sregs {
            cr4: 7,
            efer: 0x500,
            ..Default::default()
        };
        pvh_sregs(&mut sregs);
        assert_eq!(
            (sregs.cr0 & 1, sregs.cr0 >> 31, sregs.cr4, sregs.efer),
            (1, 0, 0, 0)
        );
        assert_eq!(
            (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l),
            (0, 0xffff_ffff, 1, 0)
        );
        assert_eq!(sregs.tr.type_, 0xb);
    }
}
