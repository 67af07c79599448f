//! What the reconciler asks of the node, and what it hears back.
//!
//! Owns: the vocabulary of steps and events, and what a pool remembers of a machine.
//! Refuses: doing any of it: `init` implements [`Host`], the tests have a fake.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::address::{Allow, Kind, Wanted};
use types::deployment::{Machine, Port};
use types::ingress::{self, Site};
use types::mesh::Mesh;
use types::network::DEFAULT_NETWORK;
use types::status::Exit;
use types::vm::Limit;
use types::{Bytes, Cidr, Digest, Name, PublicKey, VmId, VolumeId};

use crate::desired::Key;

/// Which form of a machine a VM was launched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Of all that a running VM cannot change ([`launch_digest`]).
    pub digest: Digest,
    /// The deployment's version when it was launched.
    pub version: u64,
}

/// The digest of what a VM is made from. Published ports, the restart policy, the store and the size of volumes are
/// not in it: they change without a restart. A machine without mounts, or on no other network than the default one, has
/// the digest that it had before there were any: what has ended for good stays so.
pub fn launch_digest(machine: &Machine, incarnation: u64) -> Digest {
    let made_from = (
        &machine.image.flist,
        (machine.cpus, machine.memory, machine.disk),
        (&machine.entrypoint, &machine.command, &machine.env),
        (&machine.user, &machine.workdir),
        incarnation,
    );
    let networks = match &machine.networks[..] {
        [one] if one.network.as_str() == DEFAULT_NETWORK => &[],
        networks => networks,
    };
    // Who may speak to an address of its own changes without a restart; the address does not.
    let own = |wanted: &Wanted| (wanted.pool.clone(), wanted.address);
    let own: Vec<_> = machine.addresses.iter().map(own).collect();
    let json = match (&machine.mounts[..], networks, &own[..]) {
        ([], [], []) => serde_json::to_vec(&made_from),
        (mounts, [], []) => serde_json::to_vec(&(made_from, mounts)),
        (mounts, networks, []) => serde_json::to_vec(&(made_from, mounts, networks)),
        (mounts, networks, own) => serde_json::to_vec(&(made_from, mounts, networks, own)),
    };
    let json = json.expect("text keys and numbers always serialise");
    Digest(*blake3::hash(&json).as_bytes())
}

/// What the pool remembers of a machine, beside its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub signer: PublicKey,
    pub deployment: Name,
    pub workload: Name,
    /// The deletion before which everything of this name is void.
    pub incarnation: u64,
    pub image: Digest,
    pub disk: Bytes,
    /// In the first of its networks.
    pub address: Ipv4Addr,
    /// In each of them, the first too. Of a machine that names none, none: it is on the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<CardAddress>,
    /// Set where the program has ended for good, as its restart policy says.
    pub finished: Option<Finished>,
}

impl Record {
    pub fn key(&self) -> Key {
        Key {
            signer: self.signer,
            name: self.deployment.clone(),
        }
    }

    /// Where it is on each of its networks.
    pub fn cards(&self) -> Vec<CardAddress> {
        all_cards(self.address, &self.cards)
    }
}

/// The addresses of a machine of which these are said.
pub(crate) fn all_cards(first: Ipv4Addr, cards: &[CardAddress]) -> Vec<CardAddress> {
    if cards.is_empty() {
        vec![CardAddress::default_network(first)]
    } else {
        cards.to_vec()
    }
}

/// A machine's address in one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardAddress {
    pub network: Name,
    pub address: Ipv4Addr,
    /// From pools; of the first of its cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<Own>,
}

/// An address of a pool that a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    pub pool: Name,
    pub address: IpAddr,
}

impl CardAddress {
    pub fn default_network(address: Ipv4Addr) -> Self {
        let network = DEFAULT_NETWORK.parse().expect("it is a DNS label");
        Self {
            network,
            address,
            own: Vec::new(),
        }
    }

    pub fn is_default(&self) -> bool {
        self.network.as_str() == DEFAULT_NETWORK
    }
}

/// Which network of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkId {
    /// Of all machines of a signer that name none.
    Default(PublicKey),
    /// One of a deployment's own.
    Named(Key, Name),
}

impl NetworkId {
    pub fn of(key: &Key, network: &Name) -> Self {
        match network.as_str() {
            DEFAULT_NETWORK => Self::Default(key.signer),
            _ => Self::Named(key.clone(), network.clone()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    pub launch: Launch,
    pub exit: Exit,
}

/// What is found on the pool of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnPool {
    Record(Record),
    /// There is a disk and no telling whose: it is neither used nor removed by guess.
    Unreadable(String),
    /// Its data lies where the node does not get at it now: it waits, and is not begun anew. Its address stays its own.
    Away {
        address: Ipv4Addr,
        cards: Vec<CardAddress>,
        why: String,
    },
}

/// What happens to the writable layer at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Keep,
    /// Whatever is there goes.
    Fresh,
}

/// A machine to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub vm: VmId,
    pub launch: Launch,
    pub layer: Layer,
    /// To be on the pool before the VM runs.
    pub record: Record,
    pub machine: Machine,
    /// In the order of their disks.
    pub volumes: Vec<Attachment>,
    /// How often it was started again before this, since the node's boot.
    pub restarts: u64,
    /// Those of its networks that go on on other nodes.
    pub across: BTreeSet<Name>,
}

/// A volume of a machine that is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub attached: Attached,
    /// Its name in the deployment.
    pub name: Name,
    /// Where the program finds it.
    pub path: String,
    pub limit: Option<Limit>,
    /// What the pool has of it.
    pub record: VolumeRecord,
}

/// A volume that a VM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    pub volume: VolumeId,
    /// Of its disk.
    pub serial: String,
    pub read_only: bool,
}

/// What the pool remembers of a volume, beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    pub signer: PublicKey,
    pub deployment: Name,
    pub workload: Name,
    /// The deletion before which everything of this name is void.
    pub incarnation: u64,
    pub size: Bytes,
    /// Version of the newest restoration that was done, 0 before the first.
    pub restored: u64,
    /// By the version of the statement that asked for each.
    #[serde(default)]
    pub snapshots: BTreeMap<u64, SnapshotRecord>,
    /// The deployment's version when it was made: of two under one name, on two disks, the newer counts.
    #[serde(default)]
    pub made: u64,
    /// What its content shared with another volume when it was made.
    #[serde(default)]
    pub shared: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    pub name: Name,
    pub size: Bytes,
    /// The guest's file system stood still.
    pub settled: bool,
}

impl VolumeRecord {
    pub fn key(&self) -> Key {
        Key {
            signer: self.signer,
            name: self.deployment.clone(),
        }
    }
}

/// What is found on the pool of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeOnPool {
    Record(VolumeRecord),
    /// There is content and no telling whose: it is neither used nor removed by guess.
    Unreadable(String),
}

/// A VM whose program runs, and the volume as it has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub vm: VmId,
    pub attached: Attached,
}

/// What a copy is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub volume: VolumeId,
    pub record: VolumeRecord,
    /// Its version; `None`: the volume as it is.
    pub snapshot: Option<u64>,
    /// Who writes to the volume just now, where it is the volume that is copied.
    pub writer: Option<User>,
}

/// One change of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is nothing of it yet, or what a crash has left.
    Make {
        from: Option<Source>,
    },
    /// To the record's size. Who has it is told.
    Grow {
        users: Vec<User>,
    },
    /// The record has the snapshot of this version.
    Snapshot {
        version: u64,
        writer: Option<User>,
    },
    DropSnapshot {
        version: u64,
    },
    /// No VM has it. The record says which restoration it is.
    Restore {
        from: u64,
        before: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStep {
    pub volume: VolumeId,
    /// As it is to be on the pool when the change is done.
    pub record: VolumeRecord,
    pub change: Change,
}

/// A VM from before the agent's own restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    pub vm: VmId,
    pub key: Key,
    pub workload: Name,
    pub launch: Launch,
    pub volumes: Vec<Attached>,
    /// As in its [`Start`].
    pub restarts: u64,
    /// `None`: its program has not said that it runs.
    pub start_ms: Option<u64>,
}

/// A machine's place in its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub key: Key,
    pub workload: Name,
    /// The first of them is its way outside.
    pub cards: Vec<PlacedCard>,
    /// Lead to the first.
    pub ports: Vec<Port>,
    /// The same.
    pub own: Vec<PlacedOwn>,
}

/// An address of a machine's own, as the outside and the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedOwn {
    pub address: IpAddr,
    pub kind: Kind,
    /// Of the node, to the network that it is an address of. `None`: the one with the way out.
    pub link: Option<String>,
    pub allow: Vec<Allow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedCard {
    pub address: Ipv4Addr,
    /// Of a network that nothing leads out of.
    pub internal: bool,
}

/// What firewall, TAPs, names and the links to other nodes follow from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// All that have a place in the network.
    pub machines: BTreeMap<VmId, Placed>,
    /// Networks that go on on other nodes, with or without machines here.
    pub meshes: Vec<PlacedMesh>,
    /// Names, with or without machines that run.
    pub sites: BTreeMap<ingress::Host, PlacedSite>,
}

/// A name under which machines are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedSite {
    pub key: Key,
    pub site: Arc<Site>,
    /// Where its machines are that have a place here.
    pub machines: BTreeMap<Name, Ipv4Addr>,
    /// Those that are on other nodes.
    pub elsewhere: BTreeMap<Name, PlacedElsewhere>,
}

/// A machine of a deployment that another node has, whose gateway knows its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedElsewhere {
    /// As the owner calls it.
    pub node: Name,
    /// The part of their network that is here, and that node's.
    pub here: Cidr,
    pub there: Cidr,
}

/// A network across nodes, as far as it is on this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMesh {
    pub key: Key,
    pub network: Name,
    pub subnet: Cidr,
    pub internal: bool,
    pub mesh: Mesh,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make layer and record, network and VM. Answered by `Layered`, then `Running` or `Ended`; or
    /// by `StartFailed` where no VM has come to be.
    Start(Box<Start>),
    /// Ask the guest to stop; before there is a VM, abandon the start. Answered by `Ended` or
    /// `StartFailed`.
    Stop { vm: VmId },
    /// Kill the VMM; before there is one, abandon the start. Answered likewise.
    Kill { vm: VmId },
    /// The end has been noted. Save the record where one is given, and let go of the VM.
    Settle {
        vm: VmId,
        record: Option<Box<Record>>,
    },
    /// Remove disk, record and logs. Answered by `Removed` or `RemoveFailed`.
    Remove { vm: VmId },
    /// Change a volume. Answered by `VolumeChanged` or `VolumeFailed`.
    Change(Box<VolumeStep>),
    /// Remove a volume with its snapshots. Answered by `VolumeErased` or `VolumeFailed`.
    Erase { volume: VolumeId },
    /// Make the network so. Answered by `Published` or `PublishFailed`.
    Publish(Places),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Layered {
        vm: VmId,
    },
    StartFailed {
        vm: VmId,
        message: String,
    },
    Running {
        vm: VmId,
        start_ms: u64,
    },
    /// Its program has ended; the guest still writes what that left.
    Settling {
        vm: VmId,
    },
    Ended {
        vm: VmId,
        end: End,
    },
    /// Something worth showing that changes nothing by itself, such as a chunk that cannot be had.
    Trouble {
        vm: VmId,
        message: String,
    },
    Removed {
        vm: VmId,
    },
    RemoveFailed {
        vm: VmId,
        message: String,
    },
    /// The record is what the pool has. `trouble`: it is done, and a part of it only later.
    VolumeChanged {
        volume: VolumeId,
        record: Box<VolumeRecord>,
        trouble: Option<String>,
    },
    VolumeErased {
        volume: VolumeId,
    },
    VolumeFailed {
        volume: VolumeId,
        message: String,
    },
    Published,
    PublishFailed {
        message: String,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The program's exit, as the guest said it. `None`: the VM was lost under it.
    pub exit: Option<Exit>,
    /// What else is known: why set-up failed, why the VMM faulted.
    pub message: Option<String>,
}

/// Does steps. Beginning one returns at once; what came of it is an [`Event`], so that no machine
/// waits for another.
pub trait Host {
    fn begin(&mut self, step: Step);
}
