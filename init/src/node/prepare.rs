//! Everything that a VM needs before it can be spawned: image, layer, network, descriptors.
//!
//! Owns: the order of a start up to the spawn, and the VM's specification. One task a start, which may
//! be dropped at any await: what it holds is closed with it.
//! Refuses: slots and processes (`host` has them).

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use net::network::Ula;
use tokio::sync::watch;
use types::guest::{Link, RUN_SPEC_PATH, VolumeMount};
use types::vm::{
    DISK_QUEUES_MAX, Disk, Fd, Lazy, Log, NET_QUEUES_MAX, Net, NetLimit, NetQueue, SPEC_FD, VmSpec,
};
use types::{Cidr, cpio};
use workload::address::PREFIX;
use workload::admission::{LOG_FILE_MAX, Storage};
use workload::host::{Attachment, Layer, Start};

use super::images::{Image, Images};
use super::machines::Machines;
use super::mesh::Keys;
use super::network::{self, MTU};
use super::runspec::{self, IMAGE_SERIAL, UPPER_SERIAL};
use super::volumes::Volumes;

const KERNEL: &str = "/lib/sifr/guest/vmlinux.zst";
const INITRAMFS: &str = "/lib/sifr/guest/initramfs.cpio";
const KVM: &str = "/dev/kvm";
const VHOST_NET: &str = "/dev/vhost-net";
/// The run specification holds the tenant's environment: only the guest's root reads it.
const RUN_SPEC_MODE: u32 = 0o400;

/// What every start needs.
pub(crate) struct Means {
    pub(crate) images: Images,
    pub(crate) machines: Machines,
    pub(crate) volumes: Volumes,
    /// Tenant networks that are as they should be.
    pub(crate) networks: watch::Receiver<BTreeSet<String>>,
    pub(crate) kvm_problem: Option<String>,
    /// The guest kernel in memory, once a first VM has needed it.
    pub(crate) kernel: OnceCell<OwnedFd>,
    pub(crate) storage: Storage,
    /// The node's part of its machines' addresses of IPv6.
    pub(crate) ula: Ula,
    /// Names under which machines are reached.
    pub(crate) ingress: super::ingress::Ingress,
    /// Its keys for networks across nodes.
    pub(crate) keys: Keys,
}

/// A VM ready to be spawned.
pub(crate) struct Prepared {
    pub(crate) start: Start,
    /// For the VMM, from number 3 upwards.
    pub(crate) child: Vec<OwnedFd>,
    /// The node's end of the control socket.
    pub(crate) control: OwnedFd,
    /// The chunk daemon's end of the VM's chunk socket.
    pub(crate) chunks: OwnedFd,
}

fn text(error: impl std::error::Error) -> String {
    sys::error::chain(&error)
}

/// Layer and record first, so that what is reported as layered is; then what may take long.
pub(crate) async fn layer(
    means: &Means,
    start: &Start,
    at: Result<usize, String>,
) -> Result<File, String> {
    if let Some(problem) = &means.kvm_problem {
        return Err(format!("no VM can run on this node: {problem}"));
    }
    let at = match start.layer {
        Layer::Fresh => at?,
        // It stays where it is.
        Layer::Keep => 0,
    };
    let (machines, start) = (means.machines.clone(), start.clone());
    let made = tokio::task::spawn_blocking(move || machines.prepare(&start, at)).await;
    made.map_err(text)?.map_err(|e| format!("{e:#}"))
}

/// The rest of a start.
pub(crate) async fn prepare(
    means: Rc<Means>,
    start: Start,
    upper: File,
) -> Result<Prepared, String> {
    let store = start.machine.image.store.clone();
    let image = means.images.open(start.record.image, store).await?;
    let (links, names) = links(&start, means.ula)?;
    let (first, further) = links.split_first().ok_or("it is on no network")?;
    let mut run = runspec::merge(
        runspec::hostname(&start.record.deployment, &start.record.workload),
        &image.config,
        &start.machine,
        first.clone(),
        workload::STOP_GRACE_MS,
    )
    .map_err(text)?;
    run.further = further.to_vec();
    run.volumes = mounts(&start.volumes);
    let run = serde_json::to_vec(&run).map_err(text)?;
    let mut networks = means.networks.clone();
    let made = networks.wait_for(|made| names.iter().all(|name| made.contains(name)));
    drop(
        made.await
            .map_err(|_| "the node's network is gone".to_owned())?,
    );
    let queues = queues(start.machine.cpus, NET_QUEUES_MAX);
    let mut cards = Vec::new();
    for link in links {
        let (address, mtu) = (link.address.address, link.mtu);
        let taps = move || network::open_tap(address, mtu, queues);
        let taps = tokio::task::spawn_blocking(taps).await;
        cards.push((link, taps.map_err(text)??));
    }
    let (chunks, vmm_chunks) = sys::socket::pair().map_err(text)?;
    let (control, vmm_control) = sys::socket::pair().map_err(text)?;
    let parts = Parts {
        image,
        chunks: vmm_chunks,
        control: vmm_control,
        upper: upper.into(),
        cards,
        run,
    };
    let child = assemble(&means, &start, parts)?;
    let daemon_end = chunks.try_clone().map_err(text)?;
    let (vm, flist) = (start.vm.clone(), start.record.image);
    means.images.attach(vm, flist, daemon_end).await?;
    Ok(Prepared {
        start,
        child,
        control,
        chunks,
    })
}

/// What the guest mounts: parents first.
fn mounts(volumes: &[Attachment]) -> Vec<VolumeMount> {
    let mount = |volume: &Attachment| VolumeMount {
        volume: volume.name.clone(),
        serial: volume.attached.serial.clone(),
        path: volume.path.clone(),
        read_only: volume.attached.read_only,
    };
    let mut mounts: Vec<VolumeMount> = volumes.iter().map(mount).collect();
    mounts.sort_by(|a, b| a.path.cmp(&b.path));
    mounts
}

/// Its cards, and the networks that they are in.
fn links(start: &Start, ula: Ula) -> Result<(Vec<Link>, BTreeSet<String>), String> {
    let (mut links, mut names) = (Vec::new(), BTreeSet::new());
    for card in start.record.cards() {
        let address = card.address;
        let network = network::network_of(address)
            .ok_or_else(|| format!("{address} is in no tenant network"))?;
        let gateway = network.gateway.address;
        links.push(Link {
            mac: net::network::guest_mac(address),
            address: Cidr::new(address, PREFIX).ok_or("a subnet's prefix is over 32")?,
            gateway,
            dns: gateway,
            mtu: match start.across.contains(&card.network) {
                true => types::mesh::MTU,
                false => MTU,
            },
            address6: net::network::address6(ula, address),
        });
        names.insert(network.name);
    }
    Ok((links, names))
}

/// Descriptors that differ from VM to VM, and the run specification.
struct Parts {
    image: Image,
    chunks: OwnedFd,
    control: OwnedFd,
    upper: OwnedFd,
    /// The TAP of each card: a descriptor for each queue pair.
    cards: Vec<(Link, Vec<OwnedFd>)>,
    run: Vec<u8>,
}

/// The VMM's descriptors in the order of their numbers, and the specification that names them.
struct Table(Vec<OwnedFd>);

impl Table {
    /// The number follows from the place; the specification itself takes the first.
    fn add(&mut self, fd: OwnedFd) -> Fd {
        self.0.push(fd);
        let place = i32::try_from(self.0.len()).expect("a dozen descriptors");
        Fd(SPEC_FD + place)
    }
}

/// As many queues as vCPUs, up to what the VMM takes: each vCPU then has one of its own.
fn queues(cpus: u8, max: u8) -> NonZeroU8 {
    NonZeroU8::new(cpus.min(max)).unwrap_or(NonZeroU8::MIN)
}

/// A network card of the machine, whose packets the kernel moves where it can. It counts none: those of a card with a
/// limit go through the VMM.
fn card(
    table: &mut Table,
    taps: Vec<OwnedFd>,
    link: &Link,
    limit: Option<NetLimit>,
) -> Result<Net, String> {
    let mut pairs = Vec::new();
    for tap in taps {
        let tap = table.add(tap);
        let vhost = match limit {
            Some(_) => None,
            None => vhost()?.map(|fd| table.add(fd)),
        };
        pairs.push(NetQueue { tap, vhost });
    }
    let first = pairs.remove(0);
    Ok(Net {
        vhost: first.vhost,
        queues: pairs,
        limit,
        ..Net::new(first.tap, link.mac, link.mtu)
    })
}

/// One a queue pair. A kernel may lack it: the VMM then moves the packets.
fn vhost() -> Result<Option<OwnedFd>, String> {
    match OpenOptions::new().read(true).write(true).open(VHOST_NET) {
        Ok(file) => Ok(Some(file.into())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(format!("open {VHOST_NET}: {e}")),
    }
}

fn assemble(means: &Means, start: &Start, parts: Parts) -> Result<Vec<OwnedFd>, String> {
    let mut table = Table(Vec::new());
    let kvm = OpenOptions::new().read(true).write(true).open(KVM);
    let kvm = table.add(kvm.map_err(|e| format!("open {KVM}: {e}"))?.into());
    let kernel = table.add(kernel(means)?);
    let initramfs = File::open(INITRAMFS).map_err(|e| format!("open {INITRAMFS}: {e}"))?;
    let initramfs = vec![table.add(initramfs.into()), table.add(segment(&parts.run)?)];
    let lazy = Lazy {
        map: table.add(parts.image.map),
        chunks: table.add(parts.chunks),
    };
    let queues = queues(start.machine.cpus, DISK_QUEUES_MAX).get();
    let limits = start.machine.limits.unwrap_or_default();
    let limit = limits.of_disk();
    let image = Disk {
        lazy: Some(lazy),
        queues,
        limit,
        ..Disk::new(IMAGE_SERIAL, table.add(parts.image.disk), true)
    };
    let upper = Disk {
        queues,
        limit,
        ..Disk::new(UPPER_SERIAL, table.add(parts.upper), false)
    };
    let mut disks = vec![image, upper];
    for volume in &start.volumes {
        let Attachment {
            attached, record, ..
        } = volume;
        let file = means
            .volumes
            .open_content(&attached.volume, record, attached.read_only)
            .map_err(|e| format!("{e:#}"))?;
        disks.push(Disk {
            queues,
            limit: volume.limit.or(limit),
            ..Disk::new(&attached.serial, table.add(file.into()), attached.read_only)
        });
    }
    let mut nets = Vec::new();
    for (link, taps) in parts.cards {
        nets.push(card(&mut table, taps, &link, limits.of_net())?);
    }
    let [a, b] = means
        .machines
        .open_logs(&start.vm)
        .map_err(|e| format!("{e:#}"))?;
    let log = Log {
        files: [table.add(a.into()), table.add(b.into())],
        max_bytes: LOG_FILE_MAX.0,
    };
    let (cpus, memory_mib) = (start.machine.cpus, start.machine.memory.as_mib());
    let spec = VmSpec {
        initramfs,
        disks,
        nets,
        control: Some(table.add(parts.control)),
        log: Some(log),
        ..VmSpec::new(start.vm.clone(), cpus, memory_mib, kvm, kernel)
    };
    let json = serde_json::to_vec(&spec).map_err(text)?;
    let mut child = vec![sys::fs::sealed_memory("vm-spec", &json).map_err(text)?];
    child.extend(table.0);
    Ok(child)
}

/// The run specification as a segment that is appended to the guest's initramfs.
fn segment(run: &[u8]) -> Result<OwnedFd, String> {
    let mut archive = cpio::Archive::default();
    archive
        .file(RUN_SPEC_PATH, RUN_SPEC_MODE, run)
        .map_err(text)?;
    sys::fs::sealed_memory("run-spec", &archive.encode()).map_err(text)
}

/// Unpacked once: all VMs of a node read the same sealed memory.
fn kernel(means: &Means) -> Result<OwnedFd, String> {
    let held = match means.kernel.get() {
        Some(held) => held,
        None => {
            let held = unpack(Path::new(KERNEL))?;
            means.kernel.get_or_init(|| held)
        }
    };
    held.try_clone()
        .map_err(|e| format!("copy the guest kernel's descriptor: {e}"))
}

fn unpack(path: &Path) -> Result<OwnedFd, String> {
    let failed = |e: std::io::Error| format!("unpack {}: {e}", path.display());
    let packed = File::open(path).map_err(failed)?;
    let plain = zstd::decode_all(packed).map_err(failed)?;
    sys::fs::sealed_memory("guest-kernel", &plain).map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_segment_is_an_archive_with_the_run_specification_alone() {
        let mut bytes = Vec::new();
        File::from(segment(b"{}").expect("a segment"))
            .read_to_end(&mut bytes)
            .expect("readable");
        assert_eq!(bytes.len() % 512, 0);
        let archive = cpio::decode(&bytes).expect("an archive");
        let paths: Vec<_> = archive.entries().map(|(path, _)| path).collect();
        assert_eq!(paths, [RUN_SPEC_PATH]);
    }

    #[test]
    fn a_packed_kernel_is_unpacked_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vmlinux.zst");
        let plain = vec![7; 3 << 20];
        std::fs::write(&path, zstd::encode_all(&plain[..], 3).expect("packed")).expect("write");
        let mut back = Vec::new();
        File::from(unpack(&path).expect("unpacked"))
            .read_to_end(&mut back)
            .expect("readable");
        assert_eq!(back, plain);
        std::fs::write(&path, b"no kernel").expect("write");
        assert!(unpack(&path).expect_err("damaged").contains("vmlinux.zst"));
    }

    #[test]
    fn every_vcpu_has_a_queue_of_its_own_up_to_what_there_is() {
        let counts = [0, 1, 4, 8, 32].map(|cpus| queues(cpus, 8).get());
        assert_eq!(counts, [1, 1, 4, 8, 8]);
    }

    #[test]
    fn a_card_names_a_tap_for_each_pair_and_vhost_for_each_or_none() {
        let fd = || OwnedFd::from(File::open("/dev/null").expect("open"));
        let link = Link {
            mac: types::Mac([2, 0, 0, 0, 0, 1]),
            address: "10.0.0.2/24".parse().expect("a CIDR"),
            gateway: std::net::Ipv4Addr::new(10, 0, 0, 1),
            dns: std::net::Ipv4Addr::new(10, 0, 0, 1),
            mtu: 1500,
            address6: None,
        };
        let mut table = Table(Vec::new());
        let card = card(&mut table, vec![fd(), fd(), fd()], &link, None).expect("descriptors");
        assert_eq!(card.queues.len(), 2);
        let vhosts = card.queues.iter().filter(|pair| pair.vhost.is_some());
        assert_eq!(vhosts.count(), if card.vhost.is_some() { 2 } else { 0 });
        let expected = if card.vhost.is_some() { 6 } else { 3 };
        assert_eq!(table.0.len(), expected);
        let (mut table, limit) = (Table(Vec::new()), NetLimit::default());
        let limited = super::card(&mut table, vec![fd(), fd()], &link, Some(limit));
        let limited = limited.expect("descriptors");
        assert_eq!((limited.vhost, limited.limit), (None, Some(limit)));
        assert!(limited.queues.iter().all(|pair| pair.vhost.is_none()) && table.0.len() == 2);
    }

    #[test]
    fn numbers_follow_the_order_of_the_table() {
        let fd = || OwnedFd::from(File::open("/dev/null").expect("open"));
        let mut table = Table(Vec::new());
        assert_eq!([table.add(fd()), table.add(fd())], [Fd(4), Fd(5)]);
    }
}
