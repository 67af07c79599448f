//! What this machine has: processors, memory, KVM.
//!
//! Owns: reading it. Refuses: dividing it (`context::tenant_capacity` does).

use std::fs::OpenOptions;
use std::path::Path;

use types::Bytes;

/// Memory as the kernel counts it, from `/proc/meminfo`.
pub(crate) fn memory() -> Bytes {
    meminfo("MemTotal")
}

/// Memory that new programs could have, by the kernel's estimate.
pub(crate) fn memory_available() -> Bytes {
    meminfo("MemAvailable")
}

/// What the kernel found of a TPM. Nothing is asked of it.
pub(crate) fn tpm() -> Option<String> {
    let version = std::fs::read_to_string("/sys/class/tpm/tpm0/tpm_version_major").ok()?;
    Some(format!("{}.x found", version.trim()))
}

fn meminfo(name: &str) -> Bytes {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    field(&text, name).unwrap_or_default()
}

fn field(meminfo: &str, name: &str) -> Option<Bytes> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(Bytes(kib << 10))
}

pub(crate) fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(u64::MAX))
}

/// Size of the file system at `path`.
pub(crate) fn size_of(path: &Path) -> Bytes {
    nix::sys::statvfs::statvfs(path)
        .map(|s| Bytes(s.blocks().saturating_mul(s.fragment_size())))
        .unwrap_or_default()
}

/// Bytes of the file system at `path` that nothing is written to.
pub(crate) fn available_in(path: &Path) -> Bytes {
    nix::sys::statvfs::statvfs(path)
        .map(|s| Bytes(s.blocks_available().saturating_mul(s.fragment_size())))
        .unwrap_or_default()
}

/// Why no VM can run here, and what to do about it; `None` where KVM works.
pub(crate) fn kvm_problem() -> Option<String> {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    explain(&flags, opened.err().map(|e| e.to_string()).as_deref())
}

fn explain(cpuinfo: &str, open_error: Option<&str>) -> Option<String> {
    let error = open_error?;
    let has = |flag: &str| cpuinfo.split_ascii_whitespace().any(|word| word == flag);
    Some(if has("vmx") || has("svm") {
        format!(
            "/dev/kvm: {error}; the processor can: enable VT-x or AMD-V (SVM) in the firmware's set-up"
        )
    } else if has("hypervisor") {
        format!("/dev/kvm: {error}; this node is itself a VM: turn on nested virtualisation for it")
    } else {
        format!(
            "/dev/kvm: {error}; enable VT-x or AMD-V (SVM) in the firmware's set-up, if this processor has it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says() {
        assert_eq!(
            field("MemTotal:  1024 kB\nMemFree: 1 kB\n", "MemTotal"),
            Some(Bytes::mib(1))
        );
        assert_eq!(field("nothing", "MemTotal"), None);
    }

    #[test]
    fn a_machine_without_kvm_says_what_to_do() {
        assert_eq!(explain("flags: svm", None), None);
        let says =
            |cpuinfo| explain(cpuinfo, Some("No such file or directory")).expect("a problem");
        assert!(says("flags\t: fpu svm").contains("firmware"));
        assert!(says("flags\t: fpu hypervisor").contains("nested"));
    }
}
