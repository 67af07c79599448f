//! Whether a statement is accepted.
//!
//! Owns: every reason to refuse one, and the words in which that is said.
//! Refuses: signatures (the caller has verified them) and changing anything.

use std::collections::{BTreeMap, BTreeSet};

use types::deployment::{Action, Deployment, Statement};
use types::network::DEFAULT_NETWORK;
use types::node::Capacity;
use types::status::{Refusal, RefusalCode};
use types::{Bytes, Digest, Name, PublicKey, VmId};

use crate::address;
use crate::desired::{Desired, Key, Phase, Target, Verified, udp_ports};
use crate::placement::{Place, Shelf};

mod disks;
mod sites;
mod volumes;

pub use disks::{Placement, items, left};

/// vCPUs promised per CPU of the node. Tenants' vCPUs mostly wait; four to one is where general
/// purpose clouds stand, and a busy neighbour is held to its `cpu.weight`.
pub const CPU_OVERCOMMIT: u64 = 4;
/// What a VMM and its cgroup's kernel structures take whatever the guest's size.
const VMM_FIXED: Bytes = Bytes::mib(8);
/// Page tables of guest memory: 8 bytes a 4 KiB page, once for the VMM and once for the guest. The index of
/// a file in memory takes no more of its pages.
const PAGE_TABLES_DIVISOR: u64 = 256;
/// Two log files of [`LOG_FILE_MAX`] each.
const LOG_FILES: u64 = 2;
/// Size at which a log file gives way to the other: an evening of a talkative service.
pub const LOG_FILE_MAX: Bytes = Bytes::mib(4);
/// Names of one node, tombstones included: each is a few hundred bytes of ledger for ever.
const NAMES_MAX: usize = 65_536;

/// Memory that one machine costs the node: the guest's, and the VMM's own.
pub fn memory_of(guest: Bytes) -> Bytes {
    Bytes(guest.0 + VMM_FIXED.0 + guest.0 / PAGE_TABLES_DIVISOR)
}

/// Space of the pool that one machine may come to use.
pub fn disk_of(upper: Bytes) -> Bytes {
    Bytes(upper.0 + LOG_FILES * LOG_FILE_MAX.0)
}

/// Where a node keeps what its machines write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Disk,
    /// The node runs from RAM: the pool is memory that tenants cannot have for their machines.
    Memory,
}

impl Storage {
    /// Whether anything of it is there after a reboot.
    pub fn is_durable(self) -> bool {
        match self {
            Self::Disk => true,
            Self::Memory => false,
        }
    }
}

/// Space of the pool that a volume may come to use: each of its snapshots may come to differ from it in every block.
pub fn volume_of(size: Bytes, snapshots: usize) -> Bytes {
    let copies = u64::try_from(snapshots)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    Bytes(size.0.saturating_mul(copies))
}

/// Memory that one machine's VMM may come to hold. In a pool in memory, what it writes is among that, to its
/// `volumes` too: the kernel charges a page to who touches it first, and could give none back.
pub fn memory_limit(
    machine: &types::deployment::Machine,
    volumes: Bytes,
    storage: Storage,
) -> Bytes {
    let own = memory_of(machine.memory);
    match storage {
        Storage::Disk => own,
        Storage::Memory => {
            let files = disk_of(machine.disk).0.saturating_add(volumes.0);
            Bytes(own.0 + files + files / PAGE_TABLES_DIVISOR)
        }
    }
}

/// What is known of the node.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub key: PublicKey,
    pub owner: Option<PublicKey>,
    pub durable: bool,
    /// Neither the `used` fields are read, which follow from the ledger, nor `disk`, which the pools have.
    pub capacity: Capacity,
    /// The first first. Content that no deployment names is in the way of what their capacity would allow.
    pub pools: Vec<Shelf>,
    /// Where layers and volumes lie, or are to lie.
    pub places: &'a BTreeMap<VmId, Place>,
}

/// How much of an image is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePresence {
    /// Not even its flist.
    Absent,
    /// The flist, without this many chunks.
    Missing(u64),
    Complete,
}

/// What an image takes of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageSize {
    /// As it is stored.
    pub stored: Bytes,
    /// Of that, what is not on the node yet.
    pub missing: Bytes,
    /// Its disk, when all of it has been read once.
    pub disk: Bytes,
}

/// An image as the node sees it. One without a size (its flist is still in its store) is measured when it
/// arrives, and refused then where it does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    pub presence: ImagePresence,
    pub size: ImageSize,
}

/// Proof that a statement has been admitted: only [`admit`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    verified: Verified,
    placement: Placement,
}

impl Admitted {
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Where its layers and volumes are to lie, those that are made already included.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }
}

fn refuse<T>(code: RefusalCode, message: String) -> Result<T, Refusal> {
    Err(Refusal { code, message })
}

/// Checks a statement against the node and everything promised so far.
pub fn admit(
    verified: Verified,
    node: &Node<'_>,
    desired: &Desired,
    image: impl Fn(&Digest) -> Image,
) -> Result<Admitted, Refusal> {
    check_parties(&verified, node)?;
    let statement = &verified.statement;
    if let Err(error) = statement.check() {
        return refuse(
            RefusalCode::Malformed,
            format!("{error}; correct the deployment and sign it again"),
        );
    }
    let key = verified.key();
    let before = desired.get(&key);
    check_version(statement, before)?;
    let mut placement = Placement::new();
    match &statement.action {
        Action::Deploy(deployment) => {
            if before.is_none() && desired.len() >= NAMES_MAX {
                return refuse(
                    RefusalCode::OverCapacity,
                    format!(
                        "the node knows {NAMES_MAX} names, deleted ones included: use one of those again"
                    ),
                );
            }
            check_volatile(deployment, node)?;
            check_left_out(&key, deployment, before)?;
            check_disks(&key, deployment, before)?;
            disks::check_classes(&key, deployment, before)?;
            volumes::check(&key, deployment, before, node)?;
            check_addresses(&key, deployment, desired)?;
            check_ids(&key, deployment, desired)?;
            check_ports(&key, deployment, desired)?;
            check_mesh_ports(&key, deployment, desired)?;
            sites::check(&key, deployment, desired)?;
            check_capacity(&key, deployment, node, desired)?;
            placement = disks::check(&key, deployment, node, desired, &|flist| image(flist).size)?;
            check_images(deployment, &image)?;
        }
        Action::Stop
        | Action::Start
        | Action::Restart
        | Action::Delete
        | Action::Destroy { .. }
        | Action::Snapshot { .. }
        | Action::DropSnapshot { .. }
        | Action::Restore { .. } => {
            let Some(before) = before.filter(|target| target.phase != Phase::Deleted) else {
                let name = &statement.name;
                return refuse(
                    RefusalCode::NotFound,
                    format!("there is no deployment {name}: `sifr get` lists what is deployed"),
                );
            };
            volumes::check_action(statement, &key, before, node, desired, &|flist| {
                image(flist).size
            })?;
        }
    }
    Ok(Admitted {
        verified,
        placement,
    })
}

fn check_parties(verified: &Verified, node: &Node<'_>) -> Result<(), Refusal> {
    let Some(owner) = node.owner else {
        return refuse(
            RefusalCode::NoOwner,
            "this node has no owner key and accepts nothing: boot an image built with --owner"
                .to_owned(),
        );
    };
    if verified.signer != owner {
        return refuse(
            RefusalCode::UnknownKey,
            format!(
                "{} is not the owner of this node, and grants to others are not accepted yet: sign with the owner's key",
                verified.signer
            ),
        );
    }
    if verified.statement.node != node.key {
        return refuse(
            RefusalCode::WrongNode,
            format!(
                "the statement is for {}, this is {}: sign it for this node",
                verified.statement.node, node.key
            ),
        );
    }
    Ok(())
}

fn check_version(statement: &Statement, before: Option<&Target>) -> Result<(), Refusal> {
    let (name, version) = (&statement.name, statement.version);
    let last = before.map_or(0, |target| target.version);
    // A version cannot run out: at one statement a microsecond it takes half a million years.
    let expected = last.saturating_add(1);
    match version.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => refuse(
            RefusalCode::Replayed,
            format!("version {version} of {name} has been used: sign version {expected}"),
        ),
        std::cmp::Ordering::Greater => refuse(
            RefusalCode::Skipped,
            format!("version {version} of {name} is ahead of the node: sign version {expected}"),
        ),
    }
}

fn check_volatile(deployment: &Deployment, node: &Node<'_>) -> Result<(), Refusal> {
    if node.durable || deployment.accept_volatile {
        return Ok(());
    }
    refuse(
        RefusalCode::Volatile,
        "this node runs from memory and forgets everything at a reboot: give it a blank disk, or deploy with --accept-volatile"
            .to_owned(),
    )
}

/// What the new version leaves out without saying `remove` would lose its disk by an oversight.
fn check_left_out(
    key: &Key,
    deployment: &Deployment,
    before: Option<&Target>,
) -> Result<(), Refusal> {
    let kept = |name: &Name| deployment.workloads.contains_key(name);
    let left_out = before
        .and_then(Target::deployment)
        .into_iter()
        .flat_map(|old| old.workloads.keys())
        .find(|name| !kept(name) && !deployment.remove.contains(*name));
    match left_out {
        None => Ok(()),
        Some(name) => refuse(
            RefusalCode::Conflict,
            format!(
                "{} has a workload {name} that this version leaves out: name it under `remove` (or with --remove {name}) to delete it with its disk (of a volume, under `destroy` too), or add it again",
                key.name
            ),
        ),
    }
}

/// All machines of a signer that name no other network are in one. In another are no more than a deployment has.
fn check_addresses(key: &Key, deployment: &Deployment, desired: &Desired) -> Result<(), Refusal> {
    let is_in = |machine: &types::deployment::Machine| {
        let mut cards = machine.cards().into_iter();
        cards.any(|card| card.network.as_str() == DEFAULT_NETWORK)
    };
    let others = desired
        .machines()
        .filter(|(_, other, ..)| other.signer == key.signer && *other != key)
        .filter(|(.., machine)| is_in(machine))
        .count();
    let wanted = deployment.machines().filter(|(_, machine)| is_in(machine));
    let wanted = wanted.count();
    let most = address::COUNT as usize;
    if others + wanted <= most {
        return Ok(());
    }
    refuse(
        RefusalCode::OverCapacity,
        format!(
            "your network on this node has {most} addresses and {others} machines, {wanted} more do not fit: delete some or use another node"
        ),
    )
}

/// A writable layer keeps its size as long as it lives.
fn check_disks(key: &Key, deployment: &Deployment, before: Option<&Target>) -> Result<(), Refusal> {
    for (name, machine) in deployment.machines() {
        let Some(old) = before.and_then(|target| target.machine(name)) else {
            continue;
        };
        if old.image.flist == machine.image.flist && old.disk != machine.disk {
            return refuse(
                RefusalCode::Conflict,
                format!(
                    "the disk of {name} in {} has {}, not {}: its size changes only with a new image, or delete the deployment first",
                    key.name, old.disk, machine.disk
                ),
            );
        }
    }
    Ok(())
}

/// Long names are cut in a VM's id: two of them must not become the same.
fn check_ids(key: &Key, deployment: &Deployment, desired: &Desired) -> Result<(), Refusal> {
    let mut taken: BTreeSet<VmId> = desired
        .machines()
        .map(|(id, other, ..)| (id, other))
        .chain(desired.volumes().map(|(id, of)| (id, of.key)))
        .filter(|(_, other)| *other != key)
        .map(|(id, _)| id)
        .collect();
    for name in deployment.workloads.keys() {
        if !taken.insert(VmId::new(&key.signer, &key.name, name)) {
            return refuse(
                RefusalCode::Conflict,
                format!(
                    "workload {name} of {} is named too like another on this node: choose shorter names",
                    key.name
                ),
            );
        }
    }
    Ok(())
}

fn check_ports(key: &Key, deployment: &Deployment, desired: &Desired) -> Result<(), Refusal> {
    for (_, other, _, workload, machine) in
        desired.machines().filter(|(_, other, ..)| *other != key)
    {
        for taken in &machine.ports {
            let wanted = |p: &types::deployment::Port| p.on_node() == taken.on_node();
            if deployment
                .machines()
                .any(|(_, m)| m.ports.iter().any(wanted))
            {
                // Another tenant's names are nobody's business.
                let by = if other.signer == key.signer {
                    format!("{workload} of {}", other.name)
                } else {
                    "another tenant".to_owned()
                };
                return refuse(
                    RefusalCode::PortTaken,
                    format!(
                        "{} port {} of the node is published by {by}: choose another",
                        taken.protocol, taken.node
                    ),
                );
            }
        }
    }
    Ok(())
}

/// Of networks across nodes. Two published ports are told apart before, with whose the other is.
fn check_mesh_ports(key: &Key, deployment: &Deployment, desired: &Desired) -> Result<(), Refusal> {
    let taken = desired.udp_ports(Some(key));
    match udp_ports(deployment).intersection(&taken).next() {
        None => Ok(()),
        Some(port) => refuse(
            RefusalCode::PortTaken,
            format!(
                "UDP port {port} of the node is taken, by a network across nodes or published: choose another port, or deploy again where a network has taken it meanwhile"
            ),
        ),
    }
}

/// Machines and their images, of which each counts once however many run from it.
#[derive(Default)]
struct Sum {
    used: Capacity,
    images: BTreeSet<Digest>,
}

impl Sum {
    /// Of what the ledger promises; `except` is what is about to be replaced.
    fn promised(desired: &Desired, except: Option<&Key>) -> Self {
        let mut sum = Self::default();
        for (.., machine) in desired
            .machines()
            .filter(|(_, key, ..)| Some(*key) != except)
        {
            sum.add(machine);
        }
        for (_, of) in desired.volumes().filter(|(_, of)| Some(of.key) != except) {
            sum.add_volume(
                of.volume.size,
                of.target.history(of.workload).snapshots.len(),
            );
        }
        sum
    }

    /// `before`: what has snapshots keeps them.
    fn of(deployment: Option<&Deployment>, before: Option<&Target>) -> Self {
        let mut sum = Self::default();
        let volumes = deployment.into_iter().flat_map(Deployment::volumes);
        for (name, volume) in volumes {
            let snapshots = before.map_or(0, |target| target.history(name).snapshots.len());
            sum.add_volume(volume.size, snapshots);
        }
        let machines = deployment.into_iter().flat_map(Deployment::machines);
        machines.for_each(|(_, machine)| sum.add(machine));
        sum
    }

    fn add(&mut self, machine: &types::deployment::Machine) {
        self.used.cpus_used += u64::from(machine.cpus);
        self.used.memory_used.0 += memory_of(machine.memory).0;
        self.used.disk_used.0 += disk_of(machine.disk).0;
        self.images.insert(machine.image.flist);
    }

    fn add_volume(&mut self, size: Bytes, snapshots: usize) {
        let disk = &mut self.used.disk_used.0;
        *disk = disk.saturating_add(volume_of(size, snapshots).0);
    }

    /// The space of those of its images that `others` does not count already.
    fn images_beyond(&self, others: &Self, of: impl Fn(&Digest) -> Bytes) -> u64 {
        let images = self.images.difference(&others.images);
        images.fold(0, |sum: u64, flist| sum.saturating_add(of(flist).0))
    }

    /// The space of its machines, and of those of its images that `others` does not count already.
    fn disk(&self, others: &Self, of: impl Fn(&Digest) -> Bytes) -> u64 {
        let images = self.images_beyond(others, of);
        self.used.disk_used.0.saturating_add(images)
    }
}

/// The node's capacity with what is promised filled in. Stopped machines count: they may be started.
pub fn capacity(
    desired: &Desired,
    total: Capacity,
    size: impl Fn(&Digest) -> ImageSize,
) -> Capacity {
    let sum = Sum::promised(desired, None);
    let disk_used = Bytes(sum.disk(&Sum::default(), |flist| whole(size(flist))));
    Capacity {
        cpus: total.cpus,
        memory: total.memory,
        disk: total.disk,
        disk_used,
        ..sum.used
    }
}

fn whole(size: ImageSize) -> Bytes {
    Bytes(size.stored.0.saturating_add(size.disk.0))
}

fn check_capacity(
    key: &Key,
    deployment: &Deployment,
    node: &Node<'_>,
    desired: &Desired,
) -> Result<(), Refusal> {
    let others = Sum::promised(desired, Some(key));
    let wanted = Sum::of(Some(deployment), desired.get(key));
    let total = &node.capacity;
    let over = |what: &str, wanted: String, free: String| {
        refuse(
            RefusalCode::OverCapacity,
            format!(
                "the deployment needs {wanted} of {what}, {free} is free: make it smaller or delete another"
            ),
        )
    };
    let cpus = (total.cpus * CPU_OVERCOMMIT).saturating_sub(others.used.cpus_used);
    if wanted.used.cpus_used > cpus {
        return over("vCPUs", wanted.used.cpus_used.to_string(), cpus.to_string());
    }
    let memory = total.memory.0.saturating_sub(others.used.memory_used.0);
    if wanted.used.memory_used.0 > memory {
        return over("memory", mib(wanted.used.memory_used.0), mib(memory));
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{}Mi", Bytes(bytes).as_mib())
}

fn check_images(deployment: &Deployment, image: &impl Fn(&Digest) -> Image) -> Result<(), Refusal> {
    for (name, machine) in deployment.machines() {
        let what = match image(&machine.image.flist).presence {
            ImagePresence::Complete => continue,
            _ if machine.image.store.is_some() => continue,
            ImagePresence::Absent => "is not on the node".to_owned(),
            ImagePresence::Missing(chunks) => format!("lacks {chunks} chunks on the node"),
        };
        return refuse(
            RefusalCode::MissingChunks,
            format!(
                "the image of {name}, {}, {what} and names no store: push it first, as `sifr deploy` does",
                machine.image.flist
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
#[path = "admission/admission_tests.rs"]
mod tests;
