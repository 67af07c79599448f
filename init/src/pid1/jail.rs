//! The jail of a VMM: cgroup, namespaces, user, empty root.
//!
//! Owns: `/sys/fs/cgroup/vms/<vm id>`, and the command line of a VMM (there is none).
//! Refuses: choosing limits (the node does).

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::error::During;
use sys::process::{Child, Confinement, Program};
use types::VmId;

use crate::wire::Limits;

/// The root directory of every VMM: nothing is in it.
pub(super) const EMPTY_ROOT: &str = "/run/sifr/empty";
const CGROUPS: &str = "/sys/fs/cgroup";
const VMM: &str = "/bin/sifr-vmm";
/// uid and gid of slot 0. Nothing else on a node uses this range.
const FIRST_ID: u32 = 100_000;
/// The group that may make an io_uring (`kernel.io_uring_group`): all VMMs, and nothing else on a node.
pub(super) const RING_GROUP: &str = "99999";
const RING_GROUP_ID: u32 = 99_999;
/// Descriptors of a VMM: what it inherits, and as many again for its own events and connections.
const FILES_MAX: u64 = 1024;
/// What `cpu.max` counts in: the kernel's own default, long enough that a burst of a device is not cut.
const CPU_PERIOD_US: u64 = 100_000;

/// Share of the processors for the node agent where all are busy: of eleven parts ten, the chunk daemon beside it and all
/// machines together have as many as the kernel's default gives them. It needs little, and at once.
const NODE_WEIGHT: &str = "1000";
/// Memory that nothing else can take from the node agent: what it uses with a thousand deployments.
const NODE_MEMORY_MIN: u64 = 48 << 20;
/// The same of the chunk daemon with its buffers. It can do with less, slowly.
const CHUNKS_MEMORY_LOW: u64 = 24 << 20;
/// The most that ingress may take, with what the kernel holds for its connections: four thousand clients with their buffers.
const INGRESS_MEMORY_MAX: u64 = 512 << 20;
/// Of all memory, what machines together may never take: half of what is promised to none of them
/// (`node::context::MEMORY_RESERVED_MIN` and its share). The other half is for what the kernel counts as theirs beside
/// their guests: VMMs, page tables, and files that they read.
const KEPT_DIVISOR: u64 = 32;
const KEPT_MIN: u64 = 80 << 20;

/// Makes the groups, hands the controllers down, and keeps the node's own share before any machine runs.
pub(super) fn prepare() -> sys::Result<()> {
    let root = Path::new(CGROUPS);
    delegate(root)?;
    for name in ["node", "chunks", "ingress", "vms"] {
        make(&root.join(name))?;
    }
    delegate(&root.join("vms"))?;
    write(&root.join("node"), "cpu.weight", NODE_WEIGHT)?;
    let bytes = NODE_MEMORY_MIN.to_string();
    write(&root.join("node"), "memory.min", &bytes)?;
    let bytes = CHUNKS_MEMORY_LOW.to_string();
    write(&root.join("chunks"), "memory.low", &bytes)?;
    let bytes = INGRESS_MEMORY_MAX.to_string();
    write(&root.join("ingress"), "memory.max", &bytes)?;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match machines_max(&meminfo) {
        Some(bytes) => write(&root.join("vms"), "memory.max", &bytes.to_string()),
        None => Ok(()),
    }
}

/// The most that all machines together may take.
fn machines_max(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    let bytes = kib.checked_mul(1024)?;
    Some(bytes.saturating_sub((bytes / KEPT_DIVISOR).max(KEPT_MIN)))
}

fn delegate(group: &Path) -> sys::Result<()> {
    write(group, "cgroup.subtree_control", "+cpu +memory +pids")
}

fn make(group: &Path) -> sys::Result<()> {
    match fs::create_dir(group) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.during(|| format!("make cgroup {}", group.display())),
    }
}

fn write(group: &Path, file: &str, value: &str) -> sys::Result<()> {
    let path = group.join(file);
    fs::write(&path, value).during(|| format!("write {value:?} to {}", path.display()))
}

fn group(vm: &VmId) -> PathBuf {
    Path::new(CGROUPS).join("vms").join(vm.as_str())
}

/// The cgroup of an agent, to start it in.
pub(super) fn agent_group(name: &str) -> sys::Result<File> {
    let path = Path::new(CGROUPS).join(name);
    sys::fs::open_without_links(&path)
}

/// Starts a VMM in its jail. `output` takes what it writes to standard output and error.
pub(super) fn spawn(
    vm: &VmId,
    slot: u16,
    limits: &Limits,
    fds: &[OwnedFd],
    output: impl AsFd,
) -> sys::Result<Child> {
    let group = group(vm);
    make(&group)?;
    let started =
        limit(&group, limits).and_then(|()| start(vm, slot, limits, fds, &output, &group));
    if started.is_err() {
        remove(vm);
    }
    started
}

fn limit(group: &Path, limits: &Limits) -> sys::Result<()> {
    write(group, "memory.max", &limits.memory_bytes.to_string())?;
    write(group, "pids.max", &limits.pids.to_string())?;
    let quota = limits.cpus.max(1).saturating_mul(CPU_PERIOD_US);
    write(group, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
    write(
        group,
        "cpu.weight",
        &limits.cpu_weight.clamp(1, 10_000).to_string(),
    )
}

fn start(
    vm: &VmId,
    slot: u16,
    limits: &Limits,
    fds: &[OwnedFd],
    output: &impl AsFd,
    group: &Path,
) -> sys::Result<Child> {
    let file = sys::fs::open_without_links(Path::new(VMM))?;
    let group = sys::fs::open_without_links(group)?;
    let name = CString::new(format!("vmm:{vm}")).during(|| "name the VMM".to_owned())?;
    sys::process::spawn(&Program {
        file: file.as_fd(),
        args: vec![name],
        env: Vec::new(),
        fds: fds.iter().map(AsFd::as_fd).collect(),
        output: Some(output.as_fd()),
        cgroup: Some(group.as_fd()),
        confinement: Some(Confinement {
            id: FIRST_ID + u32::from(slot),
            group: Some(RING_GROUP_ID),
            root: CString::new(EMPTY_ROOT).during(|| "name the empty root".to_owned())?,
            files_max: FILES_MAX,
            file_bytes_max: limits.file_bytes,
        }),
    })
}

/// Removes the group of a VMM that is gone. One that is not empty yet is left for the next VMM of that
/// name, which takes it over.
pub(super) fn remove(vm: &VmId) {
    if let Err(error) = fs::remove_dir(group(vm))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("remove the cgroup of {vm}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::reserved_memory;

    #[test]
    fn machines_together_get_all_that_is_promised_to_them_and_never_what_the_node_needs() {
        for mib in [256u64, 512, 1024, 16 << 10, 512 << 10] {
            let all = mib << 20;
            let most = machines_max(&format!("MemTotal: {} kB\n", mib << 10)).expect("a number");
            let promised = all.saturating_sub(reserved_memory(all));
            assert!(promised < most, "{mib} MiB: {promised} of {most}");
            assert!(
                all - most >= NODE_MEMORY_MIN + CHUNKS_MEMORY_LOW,
                "{mib} MiB"
            );
        }
        assert_eq!(machines_max("MemTotal: much\n"), None);
    }
}
