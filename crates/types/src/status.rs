//! What the API says about deployments.
//!
//! Owns: states and the status document. Refuses: deciding them (`workload` does).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::address::{Kind, Range};
use crate::deployment::Port;
use crate::ingress::Host;
use crate::trouble::Code;
use crate::{Bytes, Cidr, Digest, Name, PublicKey};

/// The answer to an accepted statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    pub name: Name,
    pub version: u64,
    /// BLAKE3 of the signed payload.
    pub digest: Digest,
    /// The statement is on disk in two copies and survives a power cut. False on a node that runs from RAM.
    pub durable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    pub name: Name,
    pub version: u64,
    pub desired: Desired,
    pub durable: bool,
    /// Its machines.
    pub workloads: BTreeMap<Name, WorkloadStatus>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Name, VolumeStatus>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Name, NetworkStatus>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<Name, PoolStatus>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ingress: BTreeMap<Host, SiteStatus>,
    /// What threatens its machines and volumes although they are as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A pool of addresses, and who has which of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub kind: Kind,
    pub range: Range,
    /// As DEPLOYMENT/WORKLOAD.
    pub used: BTreeMap<IpAddr, String>,
}

/// A name under which machines are reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Whether each back end answers. `None`: nobody has asked it yet.
    pub backends: BTreeMap<String, Option<bool>>,
    /// The nodes of those that are on others, as the owner calls them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, Name>,
    /// One sentence: why it is not served as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Requests that were answered, by the hundreds of their code: index 0 has those of 1xx. Of TLS that is passed through the
    /// connections, among those of 2xx.
    #[serde(default)]
    pub answered: [u64; 5],
    /// The node's, where it speaks TLS under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
}

/// A certificate under which the node speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub state: CertificateState,
    /// It came with the deployment; else the node orders it.
    pub brought: bool,
    /// Its end, in seconds since 1970. `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_s: Option<u64>,
    /// When one is ordered next, the same. `None`: one is being ordered, or none ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_s: Option<u64>,
    /// Orders that failed, as long as the node keeps a certificate of this name.
    #[serde(default)]
    pub failures: u64,
    /// One sentence: what the last order failed at, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// There is none yet, and it has not been ordered.
    Wanted,
    /// There is none yet, and one is being ordered.
    Ordered,
    /// There is none yet: an order failed, and the next one waits.
    Waiting,
    Valid,
    /// It ends within the last third of its life, and orders for the next one have failed.
    Ending,
    Expired,
    /// It cannot be read.
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// `None`: it has had no machine yet, and asks for none.
    pub subnet: Option<Cidr>,
    /// Those of its machines that have an address in it.
    pub machines: BTreeMap<Name, Ipv4Addr>,
    /// Other nodes that it spans.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<Name, PeerStatus>,
}

/// Another node of a network, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub node: PublicKey,
    pub subnet: Cidr,
    /// Where it was last heard, or is tried.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since both agreed on a key; while they hear each other that is at most some three minutes. `None`: never.
    pub handshake_s: Option<u64>,
    pub sent: Bytes,
    pub received: Bytes,
}

/// Something that is so, of a machine or a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// In a word that never changes.
    pub code: Code,
    /// Its name in the deployment.
    pub workload: Name,
    /// One sentence.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Running,
    Stopped,
    Deleted,
}

/// Where a machine is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Acknowledged; nothing has been done yet.
    Pending,
    /// The VMM has been asked for; the program has not said that it runs.
    Starting,
    /// The program runs.
    Running,
    /// It was told to stop.
    Stopping,
    /// It stopped because it was told to.
    Stopped,
    /// The program ended by itself and its restart policy leaves it so.
    Exited,
    /// It ended or failed to start, and will be tried again after a pause.
    Backoff,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    pub state: State,
    /// In the first of its networks.
    pub address: Option<Ipv4Addr>,
    /// Of its own, from pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<Port>,
    /// Starts after the first.
    pub restarts: u64,
    /// How the program last ended.
    pub exit: Option<Exit>,
    /// One sentence: the last thing that went wrong and what is done about it.
    pub message: Option<String>,
    /// What that was, in a word that never changes.
    #[serde(default)]
    pub code: Option<Code>,
    /// Milliseconds from spawning the VMM to the program's start, last time.
    pub start_ms: Option<u64>,
    /// Share of the image that is on the node, in chunks: (present, all).
    pub chunks: Option<(u64, u64)>,
    /// The newest start, step by step.
    #[serde(default)]
    pub timeline: Option<Timeline>,
}

/// Where a volume is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Acknowledged; not on the pool yet.
    Pending,
    Ready,
    /// It is being made, grown, copied or restored.
    Changing,
    Removing,
    /// What was last tried failed, and is tried again after a pause.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub state: VolumeState,
    /// What it has on the pool; before it is there, what it will have.
    pub size: Bytes,
    /// What of the pool its content takes, shared with snapshots or not.
    #[serde(default)]
    pub used: Option<Bytes>,
    /// Machines that have it just now.
    pub attached: Vec<Name>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<Name, SnapshotStatus>,
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Of the statement that asked for it.
    pub version: u64,
    /// It is on the pool. Before, it will be of some moment to come.
    pub taken: bool,
    /// The machine's file system stood still for it: what the program had written is in it, as after a sync. Otherwise
    /// it is as after a power cut.
    #[serde(default)]
    pub settled: bool,
}

/// When a start reached each of its milestones, in milliseconds since it began: with the acknowledgement of the
/// deployment where that was new. `None`: not reached. By the node's clock, as the news came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// The image and the writable layer are open, the network is ready.
    pub image_ms: Option<u64>,
    /// The VMM's process has been started.
    pub vmm_ms: Option<u64>,
    /// Its vCPUs run.
    pub vcpus_ms: Option<u64>,
    /// The guest's kernel has entered its init.
    pub guest_init_ms: Option<u64>,
    /// The program has been started.
    pub program_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
    pub oom: bool,
}

/// Any refusal: what went wrong, in a word for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: RefusalCode,
    /// Says what to do next.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Not a document of the expected form.
    Malformed,
    /// The signer or caller is not known here.
    UnknownKey,
    /// The signature does not match the bytes.
    BadSignature,
    /// Addressed to another node.
    WrongNode,
    /// A version that has been used.
    Replayed,
    /// A version beyond the next one.
    Skipped,
    /// No such deployment, flist or chunk.
    NotFound,
    /// It does not fit beside what is already promised.
    OverCapacity,
    /// A published port is taken by another deployment.
    PortTaken,
    /// It contradicts what stands: a disk that would have to change its size, a name too like another.
    Conflict,
    /// A disk does not hold what the claim says, or cannot be claimed.
    DiskChanged,
    /// Chunks of the image are neither here nor in a named store.
    MissingChunks,
    /// The node keeps nothing over a reboot and the client has not accepted that.
    Volatile,
    /// The request is larger than its limit.
    TooLarge,
    /// The request took too long.
    TooSlow,
    /// The node has no owner key: it accepts nothing.
    NoOwner,
    /// The node's ledger needs a newer image, or cannot be read: nothing is taken and nothing told.
    LedgerUnread,
    /// The node's disk does not answer: nothing is taken until it does.
    DiskSilent,
    /// The owner has had the node's disks destroyed: what it took now would be gone with its power.
    Decommissioned,
    /// The node agent is about to be started again: the new one knows whether it was done.
    Restarting,
    /// The node failed; the message says where.
    Internal,
}
