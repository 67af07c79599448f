//! All that a vCPU is, read from KVM and given back to it.
//!
//! Owns: which parts there are, and the order in which KVM must get them.
//! Refuses: a processor that lacks what the guest was told that it has.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::raw;
use crate::{hv, report};

#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuError {
    #[error("{0} of a vCPU")]
    Ioctl(&'static str, #[source] kvm_ioctls::Error),
    #[error("the snapshot's vCPU has more {0} than KVM takes")]
    Many(&'static str),
    #[error(
        "this KVM refuses MSR {0:#x} with the snapshot's value {1:#x}: restore on a host with the processor and kernel that the snapshot is from, or newer ones"
    )]
    Msr(u32, u64),
    #[error(
        "the snapshot is from a processor of {theirs:?}, this one is of {ours:?}: restore it on one of its own maker"
    )]
    Maker { theirs: String, ours: String },
    #[error(
        "this processor lacks what the snapshot's guest uses (CPUID leaf {leaf:#x}.{index:#x}, {register}, bits {missing:#x}): restore on the processor that the snapshot is from, or a newer one"
    )]
    Features {
        leaf: u32,
        index: u32,
        register: &'static str,
        missing: u32,
    },
    #[error(
        "the snapshot's guest counts {theirs} kHz, this processor {ours} and cannot scale that: restore on one with the guest's TSC frequency, or one that can"
    )]
    Tsc {
        theirs: u32,
        ours: u32,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("extended state of {0} bytes is more than this version saves")]
    ExtendedState(u32),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpuState {
    #[serde(with = "raw::list")]
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    #[serde(with = "raw")]
    mp_state: kvm_mp_state,
    #[serde(with = "raw")]
    regs: kvm_regs,
    #[serde(with = "raw")]
    sregs: kvm_sregs,
    #[serde(with = "raw")]
    xsave: kvm_xsave,
    #[serde(with = "raw")]
    xcrs: kvm_xcrs,
    #[serde(with = "raw")]
    debugregs: kvm_debugregs,
    #[serde(with = "raw")]
    lapic: kvm_lapic_state,
    #[serde(with = "raw")]
    events: kvm_vcpu_events,
    #[serde(with = "raw::list")]
    msrs: Vec<kvm_msr_entry>,
}

/// IA32_TSC_DEADLINE: arms the timer at once, so it comes when the timer and the TSC are right.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TSC.
const TSC: u32 = 0x10;
/// KVM takes no longer list at once (MAX_IO_MSRS of Linux is 256).
const MSRS_AT_ONCE: usize = 128;
/// Entries of KVM's own list are some hundred.
const MSRS_MAX: usize = 4096;
/// What KVM_GET_XSAVE gives.
const XSAVE_BYTES: u32 = 4096;
const EXTENDED_STATE: u32 = 0xd;

/// A clock that a guest keeps by its TSC alone goes wrong by no more than this, a minute and a half a day.
const TSC_TOLERANCE_PPM: u64 = 1000;

fn ioctl(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Ioctl(what, error)
}

impl VcpuState {
    /// Of a vCPU that is not in KVM_RUN and has done its last exit. `msrs` is KVM's own list.
    pub(crate) fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VcpuError> {
        let cpuid = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("get CPUID"))?;
        let area = cpuid.as_slice().iter();
        let area = area
            .filter(|l| l.function == EXTENDED_STATE && l.index == 0)
            .map(|l| l.ecx)
            .next();
        if let Some(bytes) = area.filter(|bytes| *bytes > XSAVE_BYTES) {
            return Err(VcpuError::ExtendedState(bytes));
        }
        // The order of reading matters once: what a waiting SIPI or an INIT does to the state of the
        // processor, KVM does when it is asked for that state.
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz().map_err(ioctl("get the TSC frequency"))?,
            mp_state: vcpu.get_mp_state().map_err(ioctl("get the run state"))?,
            regs: vcpu.get_regs().map_err(ioctl("get the registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(ioctl("get the system registers"))?,
            xsave: vcpu.get_xsave().map_err(ioctl("get the extended state"))?,
            xcrs: vcpu
                .get_xcrs()
                .map_err(ioctl("get the extended control registers"))?,
            debugregs: vcpu
                .get_debug_regs()
                .map_err(ioctl("get the debug registers"))?,
            lapic: vcpu.get_lapic().map_err(ioctl("get the local APIC"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(ioctl("get pending events"))?,
            msrs: read(vcpu, msrs)?,
        })
    }

    /// Gives a new vCPU this state. The guest goes on as soon as it runs.
    pub(crate) fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        if self.msrs.len() > MSRS_MAX {
            return Err(VcpuError::Many("MSRs"));
        }
        let cpuid =
            CpuId::from_entries(&self.cpuid).map_err(|_| VcpuError::Many("CPUID leaves"))?;
        vcpu.set_cpuid2(&cpuid).map_err(ioctl("set CPUID"))?;
        let (theirs, ours) = (self.tsc_khz, vcpu.get_tsc_khz());
        let ours = ours.map_err(ioctl("get the TSC frequency"))?;
        match vcpu.set_tsc_khz(theirs) {
            Ok(()) => {}
            Err(_) if is_same_tsc(theirs, ours) => report::line(&format!(
                "the snapshot's guest counts {theirs} kHz and goes on with the {ours} of this processor"
            )),
            Err(source) => {
                return Err(VcpuError::Tsc {
                    theirs,
                    ours,
                    source,
                });
            }
        }
        vcpu.set_mp_state(self.mp_state)
            .map_err(ioctl("set the run state"))?;
        vcpu.set_regs(&self.regs)
            .map_err(ioctl("set the registers"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(ioctl("set the system registers"))?;
        hv::kvm::set_xsave(vcpu, &self.xsave).map_err(ioctl("set the extended state"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(ioctl("set the extended control registers"))?;
        vcpu.set_debug_regs(&self.debugregs)
            .map_err(ioctl("set the debug registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(ioctl("set the local APIC"))?;
        let (last, first): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|m| m.index == TSC_DEADLINE);
        write(vcpu, &first)?;
        // A timer that went off while nobody ran may have left no deadline behind: one that lies in the
        // past makes it go off again, which a guest's kernel takes as early and sets anew.
        let tsc = self
            .msrs
            .iter()
            .find(|m| m.index == TSC)
            .map_or(1, |m| m.data);
        let last: Vec<_> = last
            .into_iter()
            .map(|m: &kvm_msr_entry| kvm_msr_entry {
                data: if m.data == 0 { tsc } else { m.data },
                ..*m
            })
            .collect();
        write(vcpu, &last)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(ioctl("set pending events"))
    }

    /// Whether a processor that supports `host` does all that this vCPU was said to do.
    pub(crate) fn check(&self, host: &[kvm_cpuid_entry2]) -> Result<(), VcpuError> {
        let (theirs, ours) = (maker(&self.cpuid), maker(host));
        if theirs != ours {
            return Err(VcpuError::Maker { theirs, ours });
        }
        for (leaf, index, register, of) in FEATURES {
            let bits = |leaves: &[kvm_cpuid_entry2]| {
                let found = leaves
                    .iter()
                    .find(|l| (l.function, l.index) == (*leaf, *index));
                found.map_or(0, of)
            };
            let missing = bits(&self.cpuid) & !bits(host) & !always(*leaf, register);
            if missing != 0 {
                return Err(VcpuError::Features {
                    leaf: *leaf,
                    index: *index,
                    register,
                    missing,
                });
            }
        }
        Ok(())
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn with_leaves(cpuid: Vec<kvm_cpuid_entry2>) -> Self {
        Self {
            cpuid,
            tsc_khz: 1_000_000,
            mp_state: Default::default(),
            regs: Default::default(),
            sregs: Default::default(),
            xsave: Default::default(),
            xcrs: Default::default(),
            debugregs: Default::default(),
            lapic: Default::default(),
            events: Default::default(),
            msrs: vec![kvm_msr_entry::default(); 3],
        }
    }
}

/// Whether the two can be measurements of one processor. A kernel measures twice, the second time more than a
/// second after its start; KVM gives a guest the one of its time, and takes 250 ppm as the same.
fn is_same_tsc(a_khz: u32, b_khz: u32) -> bool {
    u64::from(a_khz.abs_diff(b_khz)) * 1_000_000 <= u64::from(a_khz) * TSC_TOLERANCE_PPM
}

type Register = fn(&kvm_cpuid_entry2) -> u32;

/// Leaves whose bits are features of the processor: one that is missing is missed by the guest.
const FEATURES: &[(u32, u32, &str, Register)] = &[
    (0x1, 0, "ecx", |l| l.ecx),
    (0x1, 0, "edx", |l| l.edx),
    (0x7, 0, "ebx", |l| l.ebx),
    (0x7, 0, "ecx", |l| l.ecx),
    (0x7, 0, "edx", |l| l.edx),
    (0x7, 1, "eax", |l| l.eax),
    (0xd, 0, "eax", |l| l.eax),
    (0xd, 1, "eax", |l| l.eax),
    (0x4000_0001, 0, "eax", |l| l.eax),
    (0x8000_0001, 0, "ecx", |l| l.ecx),
    (0x8000_0001, 0, "edx", |l| l.edx),
    (0x8000_0007, 0, "edx", |l| l.edx),
    (0x8000_0008, 0, "ebx", |l| l.ebx),
    (0x8000_0021, 0, "eax", |l| l.eax),
];

/// Bits that say nothing about the processor: those that `cpu::cpuid` sets by itself, and OSXSAVE and OSPKE,
/// which say what the guest has turned on.
fn always(leaf: u32, register: &str) -> u32 {
    match (leaf, register) {
        (0x1, "ecx") => 1 << 24 | 1 << 27 | 1 << 31,
        (0x1, "edx") => 1 << 28,
        (0x7, "ecx") => 1 << 4,
        (0x8000_0001, "ecx") => 1 << 1,
        _ => 0,
    }
}

fn maker(leaves: &[kvm_cpuid_entry2]) -> String {
    let leaf = leaves
        .iter()
        .find(|l| l.function == 0)
        .copied()
        .unwrap_or_default();
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx]
        .map(u32::to_le_bytes)
        .concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What of `list` can be read; KVM's list has some that this processor lacks.
fn read(vcpu: &VcpuFd, list: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuError> {
    let mut out = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let count = rest.len().min(MSRS_AT_ONCE);
        let entries: Vec<_> = rest[..count].iter().map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| VcpuError::Many("MSRs"))?;
        let done = vcpu.get_msrs(&mut msrs).map_err(ioctl("get the MSRs"))?;
        out.extend_from_slice(&msrs.as_slice()[..done.min(count)]);
        // KVM stops at the first that it cannot read.
        let skip = usize::from(done < count);
        rest = &rest[done.min(count) + skip..];
    }
    Ok(out)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// A value that KVM refuses is no error where the new vCPU has it already.
fn write(vcpu: &VcpuFd, list: &[impl std::borrow::Borrow<kvm_msr_entry>]) -> Result<(), VcpuError> {
    let entries: Vec<_> = list.iter().map(|m| *m.borrow()).collect();
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let count = rest.len().min(MSRS_AT_ONCE);
        let msrs = Msrs::from_entries(&rest[..count]).map_err(|_| VcpuError::Many("MSRs"))?;
        let done = vcpu
            .set_msrs(&msrs)
            .map_err(ioctl("set the MSRs"))?
            .min(count);
        rest = &rest[done..];
        if done < count {
            let refused = rest[0];
            let now = read(vcpu, &[refused.index])?;
            if now.first().map(|m| m.data) != Some(refused.data) {
                return Err(VcpuError::Msr(refused.index, refused.data));
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn a_processor_that_lacks_a_feature_of_the_snapshot_is_refused_by_its_name() {
        let state = VcpuState::with_leaves(vec![leaf(0, 1, 2, 3), leaf(7, 1 << 16, 0, 0)]);
        state
            .check(&[leaf(0, 1, 2, 3), leaf(7, u32::MAX, 0, 0)])
            .expect("has more");
        let error = state.check(&[leaf(0, 1, 2, 3), leaf(7, !(1 << 16), 0, 0)]);
        let text = error.expect_err("lacks AVX-512").to_string();
        assert!(text.contains("leaf 0x7.0x0, ebx, bits 0x10000"), "{text}");
        let error = state.check(&[leaf(0, 9, 2, 3), leaf(7, u32::MAX, 0, 0)]);
        assert!(matches!(error, Err(VcpuError::Maker { .. })));
    }

    #[test]
    fn two_measurements_of_one_processor_are_told_from_two_processors() {
        assert!(is_same_tsc(2_593_869, 2_595_900) && is_same_tsc(2_595_900, 2_593_869));
        assert!(!is_same_tsc(2_593_869, 2_600_000) && !is_same_tsc(0, 1));
    }

    #[test]
    fn what_the_guest_has_turned_on_is_no_feature_of_the_processor() {
        let state = VcpuState::with_leaves(vec![leaf(1, 0, 1 << 27 | 1 << 31, 1 << 28)]);
        state.check(&[]).expect("lacks nothing");
    }
}
