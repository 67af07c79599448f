//! KVM: one VM with its memory, in-kernel interrupt controllers and vCPUs.
//!
//! Owns: the ioctls. Refuses: decisions about what the machine looks like.

use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::dirty::DirtyLog;
use crate::memory::image::Placed;
use crate::memory::{GuestRam, layout};

#[derive(Debug, thiserror::Error)]
pub(crate) enum HvError {
    #[error("the KVM of this kernel speaks version {0}, not 12: pass the descriptor of /dev/kvm")]
    Version(i32),
    #[error("the KVM of this kernel lacks {0:?}")]
    Missing(Cap),
    #[error(
        "images end at {end:#x}, and addresses of this processor have {bits} bits: give the guest smaller ones"
    )]
    Addresses { end: u64, bits: u32 },
    #[error("{0}")]
    Ioctl(&'static str, #[source] kvm_ioctls::Error),
}

/// What we build on; each has been in KVM for more than ten years.
const REQUIRED: [Cap; 6] = [
    Cap::CoalescedMmio,
    Cap::Irqchip,
    Cap::Ioeventfd,
    Cap::Irqfd,
    Cap::UserMemory,
    Cap::TscDeadlineTimer,
];

/// CPUID leaf whose EAX says how wide addresses are.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// Whether KVM notes which pages vCPUs write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    Unnoted,
    Noted,
}

/// Reads of a device's registers that end in user space go through the bus; this goes past it.
pub(crate) struct Vm {
    kvm: Kvm,
    vm: VmFd,
    /// Kept for as long as the kernel may write into it.
    ram: Arc<GuestRam>,
    /// Kept for as long as the kernel may read it.
    _images: Vec<Placed>,
}

impl Vm {
    /// A VM with this memory and the in-kernel APICs, and without a PIT: guests have the TSC deadline
    /// timer. Memory comes first: it is what the later calls would make slow.
    /// Images are memory that the guest cannot write to.
    pub(crate) fn new(
        kvm: OwnedFd,
        ram: &Arc<GuestRam>,
        images: Vec<Placed>,
        writes: Writes,
    ) -> Result<Self, HvError> {
        // SAFETY: `kvm` is an open descriptor that we own; `Kvm` becomes its owner. That it really is
        // /dev/kvm shows in the API version right below: other files refuse the ioctl.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(HvError::Version(version));
        }
        if let Some(cap) = REQUIRED.into_iter().find(|c| !kvm.check_extension(*c)) {
            return Err(HvError::Missing(cap));
        }
        let vm = kvm
            .create_vm()
            .map_err(|e| HvError::Ioctl("create the VM", e))?;
        forgo_counters(&kvm, &vm)?;
        give_memory(&vm, ram, writes)?;
        let first = u32::try_from(ram.num_regions()).expect("two at most");
        add_images(&kvm, &vm, first, &images)?;
        let tss = usize::try_from(layout::TSS).expect("64-bit only");
        vm.set_tss_address(tss)
            .map_err(|e| HvError::Ioctl("set the TSS address", e))?;
        vm.create_irq_chip()
            .map_err(|e| HvError::Ioctl("create the interrupt controllers", e))?;
        Ok(Self {
            kvm,
            vm,
            ram: Arc::clone(ram),
            _images: images,
        })
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.vm
    }

    /// KVM's list of the MSRs that a vCPU's state consists of.
    pub(crate) fn msrs(&self) -> Result<Vec<u32>, HvError> {
        let list = self.kvm.get_msr_index_list();
        let list = list.map_err(|e| HvError::Ioctl("ask for the list of MSRs", e))?;
        Ok(list.as_slice().to_vec())
    }

    /// Of each region of RAM a bit for each page that was written since the last time.
    pub(crate) fn take_log(&self) -> Result<Vec<Vec<u64>>, HvError> {
        let log = |(slot, region): (u32, &GuestRegionMmap<DirtyLog>)| {
            self.vm.get_dirty_log(slot, region.size())
        };
        let logs = (0u32..).zip(self.ram.iter()).map(log);
        logs.collect::<Result<_, _>>()
            .map_err(|e| HvError::Ioctl("ask which pages were written", e))
    }

    /// What CPUID may say on this host.
    pub(crate) fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId, HvError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| HvError::Ioctl("ask for the supported CPUID leaves", e))
    }

    /// A vCPU with this APIC id: KVM knows it by no other number.
    pub(crate) fn create_vcpu(&self, apic_id: u8) -> Result<VcpuFd, HvError> {
        let vcpu = self
            .vm
            .create_vcpu(u64::from(apic_id))
            .map_err(|e| HvError::Ioctl("create a vCPU", e))?;
        // 0 means the host's TSC frequency as it knows it now. A new vCPU has what the host thought when
        // KVM was initialised, before it had measured precisely: where that was too low by more than 250
        // ppm and the processor cannot scale the TSC, the guest's timers would be late for ever.
        vcpu.set_tsc_khz(0)
            .map_err(|e| HvError::Ioctl("set a vCPU's TSC frequency", e))?;
        Ok(vcpu)
    }

    /// From now on a write of `value` (4 bytes) to `address` signals `event` without an exit to us.
    pub(crate) fn signal_on_write(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), HvError> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(|e| HvError::Ioctl("register a queue's doorbell", e))
    }

    /// From now on a write to one of these addresses does not stop the vCPU: it goes into the VM's
    /// [`Ring`](super::coalesced::Ring), until that is full. Ranges do not overlap doorbells.
    pub(crate) fn coalesce_writes(&self, addresses: &Range<u64>) -> Result<(), HvError> {
        let length = u32::try_from(addresses.end - addresses.start).expect("registers of a device");
        self.vm
            .register_coalesced_mmio(IoEventAddress::Mmio(addresses.start), length)
            .map_err(|e| HvError::Ioctl("let a device's registers wait", e))
    }

    /// From now on a signal on `event` raises interrupt line `irq`.
    pub(crate) fn interrupt_on_signal(&self, event: &EventFd, irq: u32) -> Result<(), HvError> {
        self.vm
            .register_irqfd(event, irq)
            .map_err(|e| HvError::Ioctl("register an interrupt line", e))
    }
}

/// A write of the guest to an image is an exit to us, and goes nowhere.
fn add_images(kvm: &Kvm, vm: &VmFd, first_slot: u32, images: &[Placed]) -> Result<(), HvError> {
    let Some(last) = images.last() else {
        return Ok(());
    };
    if !kvm.check_extension(Cap::ReadonlyMem) {
        return Err(HvError::Missing(Cap::ReadonlyMem));
    }
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.map_err(|e| HvError::Ioctl("ask for the width of addresses", e))?;
    let width = |leaf: &&kvm_cpuid_entry2| leaf.function == ADDRESS_SIZES;
    let bits = supported.as_slice().iter().find(width);
    // Without the leaf a processor has 36 (Intel's manual, volume 3, section 4.1.4).
    let bits = bits.map_or(36, |leaf| leaf.eax & 0xff);
    let end = last.start + last.image.bytes();
    if end > 1u64.checked_shl(bits).unwrap_or(u64::MAX) {
        return Err(HvError::Addresses { end, bits });
    }
    for (slot, placed) in (first_slot..).zip(images) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: placed.start,
            memory_size: placed.image.bytes(),
            userspace_addr: placed.image.address(),
        };
        // SAFETY: the image is mapped, of this length, and stays so while `_images` lives, which is as long as
        // the VM does. It lies above all RAM and above the image before it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|e| HvError::Ioctl("give the VM an image", e))?;
    }
    Ok(())
}

/// Each region of RAM is a slot.
fn give_memory(vm: &VmFd, ram: &GuestRam, writes: Writes) -> Result<(), HvError> {
    let flags = match writes {
        Writes::Unnoted => 0,
        Writes::Noted => KVM_MEM_LOG_DIRTY_PAGES,
    };
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped, of this length, and stays so while `Vm::ram` lives, which is
        // as long as the VM does. Regions of one `GuestRam` never overlap.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|e| HvError::Ioctl("give the VM its memory", e))?;
    }
    Ok(())
}

/// Gives a vCPU its extended state.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: this process never asks for a feature that makes the state larger than `kvm_xsave`, and what
    // a snapshot has beyond that is refused when it is saved.
    unsafe { vcpu.set_xsave(xsave) }
}

/// No performance counters, before the first vCPU: AMD's oldest ones have no CPUID bit to hide them by. A
/// KVM that does not offer this (before Linux 5.18, or told to virtualise no counters) is taken as it is.
fn forgo_counters(kvm: &Kvm, vm: &VmFd) -> Result<(), HvError> {
    let offered = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if offered.cast_unsigned() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let disable = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&disable)
        .map_err(|e| HvError::Ioctl("turn performance counters off", e))
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{Msrs, kvm_msr_entry};

    use super::*;
    use crate::memory;

    /// K7_PERFCTR0, which every AMD processor has, and IA32_PMC0.
    const COUNTERS: [u32; 2] = [0xc001_0004, 0xc1];

    #[test]
    fn a_vcpu_has_no_performance_counters() {
        let Ok(kvm) = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        else {
            println!("without /dev/kvm there is nothing to see");
            return;
        };
        let ram = memory::allocate(memory::layout::MEMORY_MIB_MIN, types::vm::HugePages::None)
            .expect("memory");
        let vm = Vm::new(kvm.into(), &ram, Vec::new(), Writes::Unnoted).expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let supported = vm.supported_cpuid().expect("leaves");
        let one = crate::cpu::topology::Topology::new(1, None).expect("one vCPU");
        let leaves = crate::cpu::cpuid::leaves(supported.as_slice(), 0, one);
        crate::cpu::start::prepare(&vcpu, &leaves, None).expect("prepared");
        for index in COUNTERS {
            let one = kvm_msr_entry {
                index,
                data: 1,
                ..Default::default()
            };
            let mut msrs = Msrs::from_entries(&[one]).expect("one entry");
            // Where KVM knows it at all, it takes a write and holds nothing.
            let _ = vcpu.set_msrs(&msrs);
            let read = vcpu.get_msrs(&mut msrs).expect("asked");
            let value = (read == 1).then(|| msrs.as_slice()[0].data);
            println!("{index:#x}: {value:?}");
            assert!(value.is_none_or(|v| v == 0), "{index:#x} counts");
        }
    }
}
