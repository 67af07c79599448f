//! The state in which a vCPU begins: its kernel's entry for the first, the firmware's leavings for all.
//!
//! Owns: start registers and MSRs. The others wait for the first one's start-up interrupt.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::{Entry, bzimage};
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
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// Enabled (LME) and active (LMA).
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// The one bit of the flags register that is always set.
const RFLAGS: u64 = 0x2;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// Memory is write-back where no MTRR says else (there are none), MTRRs on: what firmware leaves.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Prepares one vCPU. `entry`: the kernel's, for the first.
pub(crate) fn prepare(
    vcpu: &VcpuFd,
    leaves: &[kvm_bindings::kvm_cpuid_entry2],
    entry: Option<Entry>,
) -> Result<(), StartError> {
    let cpuid = CpuId::from_entries(leaves).map_err(|_| StartError::Leaves)?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| StartError::Ioctl("set CPUID", e))?;
    set_msrs(vcpu)?;
    let Some(entry) = entry else { return Ok(()) };
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| StartError::Ioctl("get the system registers", e))?;
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Pvh(at) => {
            pvh_sregs(&mut sregs);
            (regs.rip, regs.rbx) = (at, layout::START_INFO);
        }
        Entry::Long(at) => {
            long_sregs(&mut sregs);
            (regs.rip, regs.rsi) = (at, layout::ZERO_PAGE);
        }
    }
    vcpu.set_sregs(&sregs)
        .map_err(|e| StartError::Ioctl("set the system registers", e))?;
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

/// The 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode on page tables that map memory onto
/// itself, flat segments at the two selectors that the kernel counts on, interrupts off.
fn long_sregs(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: bzimage::CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: bzimage::DATA_SELECTOR,
        type_: 0x3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 64-bit task, which the processor wants to see and nobody uses.
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: bzimage::DATA_SELECTOR + 8,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = bzimage::GDT_LIMIT;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PAGE_TABLES.start;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_MODE;
    sregs.cr0 = CR0 | CR0_PAGING;
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

    #[test]
    fn a_bzimage_starts_in_long_mode_on_flat_segments() {
        let mut sregs = kvm_sregs::default();
        long_sregs(&mut sregs);
        assert_eq!(
            (sregs.cr0, sregs.cr4, sregs.efer),
            (0x8000_0011, 0x20, 0x500)
        );
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!(
            (sregs.ss.selector, sregs.ss.type_, sregs.ss.l),
            (0x18, 3, 0)
        );
        assert_eq!(sregs.cr3, layout::PAGE_TABLES.start);
    }
}
