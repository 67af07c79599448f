//! What the API says about the node itself.
//!
//! Owns: the node report, its disks, and the drill. Refuses: measuring or killing anything (`init` does).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::health::DiskHealth;
use crate::site::NodeNetwork;
use crate::status::State;
use crate::trouble::Trouble;
use crate::{AnyCidr, Bytes, Digest, Mac, Name, PublicKey};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub key: PublicKey,
    pub owner: Option<PublicKey>,
    /// `sifr::IDENTITY`'s text: version, commit, kernel configuration digest.
    pub build: String,
    pub uptime_ms: u64,
    /// Process number of the node agent: another one after each restart of it.
    pub agent_pid: u32,
    /// False where the node runs from RAM.
    pub durable: bool,
    /// Why it does, and what to do; `None` where it is durable.
    pub volatile_because: Option<String>,
    /// `None` where KVM works; else why not and what to do.
    pub virtualisation_problem: Option<String>,
    /// `None` where pools that are made are encrypted, with a key that the TPM keeps; else why they are not.
    #[serde(default)]
    pub encryption_problem: Option<String>,
    pub clock: Clock,
    pub capacity: Capacity,
    pub links: Vec<Link>,
    /// The options that links follow from.
    #[serde(default)]
    pub network: NodeNetwork,
    pub disks: Vec<Disk>,
    /// The first is where images go. Empty on a node that runs from RAM.
    #[serde(default)]
    pub pools: Vec<Pool>,
    pub boot: Vec<Phase>,
    pub last_error: Option<String>,
    /// How the boot before this one ended; `None` where nothing is known of it.
    #[serde(default)]
    pub last_end: Option<LastEnd>,
    /// What is wrong, newest last: at most one of each code and workload.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// How many workloads are in which state.
    #[serde(default)]
    pub workloads: BTreeMap<State, u64>,
    /// What the kernel found of a TPM; `None`: none.
    #[serde(default)]
    pub tpm: Option<String>,
    /// Of each disk that is there, as it last answered.
    #[serde(default)]
    pub health: Vec<DiskHealth>,
}

/// How a boot ended. Braces, as serde would read over unknown fields of a bare variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case", deny_unknown_fields)]
pub enum LastEnd {
    /// In order: power button, or a signal to pid1.
    SwitchedOff {},
    Rebooted {},
    /// The kernel, or pid1 and so the kernel; its own words.
    Panicked {
        headline: String,
    },
    /// The node made no progress, and the hardware ended it.
    Watchdog {},
    /// pid1 ended it, as the node agent did not stop its machines in time.
    Forced {},
    /// Nothing was said before it: power was lost, or the machine was reset from outside.
    Unannounced {},
}

impl fmt::Display for LastEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff {} => write!(f, "switched off, in order"),
            Self::Rebooted {} => write!(f, "rebooted, in order"),
            Self::Panicked { headline } => write!(f, "{headline}"),
            Self::Watchdog {} => write!(f, "by the watchdog: the node made no progress"),
            Self::Forced {} => write!(
                f,
                "by force: the node agent did not stop its machines in time"
            ),
            Self::Unannounced {} => write!(f, "without a word: power was lost, or it was reset"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    pub realtime_ms: u64,
    /// Whether a time server has been heard since boot.
    pub synchronised: bool,
}

/// What tenants may use in all, and what is promised to deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    pub cpus: u64,
    pub cpus_used: u64,
    pub memory: Bytes,
    pub memory_used: Bytes,
    pub disk: Bytes,
    pub disk_used: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub name: String,
    pub mac: Mac,
    pub up: bool,
    /// Of both families; those that every link has by itself are left out. The first is shown where there is room for one.
    pub addresses: Vec<AnyCidr>,
    pub gateways: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name: another one after a reboot, maybe.
    pub name: String,
    /// What the disk says of itself; empty where it says nothing.
    pub serial: String,
    /// The same.
    pub model: String,
    pub class: DiskClass,
    pub size: Bytes,
    /// `pool`, `blank`, or what was recognised on it, the partitions' content too. For people.
    pub content: String,
    /// Of somebody's partition table.
    pub partitions: Vec<Partition>,
    pub used: DiskUse,
    /// Why it is used so, and what to do where that is not what is wanted; `None` of the pool.
    pub because: Option<String>,
    /// `None` where there is no pool on it.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// Of what is on the disk now: a claim names it ([`crate::claim`]). `None` where nothing can be claimed, and in
    /// [`NodeInfo`], which is as the disks were found at the start.
    pub fingerprint: Option<Digest>,
}

/// A pool of the node: there, or missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// 32 hexadecimal digits, for good.
    pub id: String,
    /// Kernel name of its disk; `None` where that is not there.
    pub disk: Option<String>,
    pub serial: String,
    pub class: DiskClass,
    pub state: PoolState,
    /// Of its file system; zero where that is not there.
    pub size: Bytes,
    pub free: Bytes,
    /// What is wrong with it.
    pub because: Option<String>,
    /// The disks that it lies on, where they are several: each of them has all of it.
    #[serde(default)]
    pub mirror: Option<Mirror>,
}

/// A pool on two disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// What the kernel calls it.
    pub array: String,
    pub halves: Vec<Half>,
    /// How much of a half that is being filled is done, of a hundred.
    pub percent: Option<u8>,
}

impl Mirror {
    /// Whether either disk may be lost.
    pub fn is_whole(&self) -> bool {
        self.halves.len() > 1
            && self
                .halves
                .iter()
                .all(|half| half.state == HalfState::InStep)
    }
}

/// A disk of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Half {
    /// Kernel name; `None` where it is not there.
    pub disk: Option<String>,
    /// Empty where nobody knows it.
    pub serial: String,
    pub state: HalfState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfState {
    /// It has all of the pool.
    InStep,
    /// It is being filled from the other.
    Filling,
    /// Its disk is there, and failed.
    Failed,
    Missing,
}

impl HalfState {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::InStep => "in step",
            Self::Filling => "being filled",
            Self::Failed => "failed",
            Self::Missing => "not there",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Identity and ledger are here, and what is placed here.
    InUse,
    /// Its disk is there and does not do what it should. What lies on it waits.
    Failed,
    /// Its disk is not there. What lies on it waits.
    Missing,
}

/// How a pool of Sifr lies on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum Encryption {
    /// Whoever has the disk can read it.
    Clear {},
    /// As LUKS2.
    Encrypted {
        uuid: String,
        /// Whose key opens `sealed`: `x25519:…`. `None` where the header does not say.
        recovery: Option<String>,
        /// A passphrase of the disk, sealed to that key, in base64. No secret without the key.
        sealed: Option<String>,
    },
}

/// How a disk stores, as it reports; the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskClass {
    /// Flash on NVMe.
    Nvme,
    /// Other flash, or what behaves so.
    Ssd,
    /// It rotates.
    Hdd,
}

impl fmt::Display for DiskClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvme => "nvme",
            Self::Ssd => "ssd",
            Self::Hdd => "hdd",
        })
    }
}

/// What a node does with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskUse {
    /// A pool of the node is on it.
    Pool,
    /// Nothing is on it: a pool may come to be made there.
    Ready,
    /// A pool of this owner that is not in use: of another node, or one that contradicts those in use.
    OtherPool,
    /// Nothing is written to it.
    LeftAlone,
}

/// A partition of a disk that is somebody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub number: u32,
    /// From the disk's first byte.
    pub start: Bytes,
    pub size: Bytes,
    /// As its table has it; an MBR has none.
    pub name: String,
    pub content: String,
}

/// Answer to `GET /v1/node/disks`: as they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDisks {
    /// A claim repeats it. Drawn anew at each start of the node agent and after each claim, so that no claim counts twice.
    pub challenge: Digest,
    pub disks: Vec<Disk>,
    /// As in [`NodeInfo`].
    #[serde(default)]
    pub health: Vec<DiskHealth>,
}

/// One line of the boot table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub ms: u64,
    /// `None` where it went well.
    pub error: Option<String>,
}

/// Which process of a node is to be killed as by a crash. Each of them is started again by its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kill", rename_all = "snake_case", deny_unknown_fields)]
pub enum Drill {
    /// The node agent itself. Braces, as serde would read over unknown fields of a bare variant.
    Node {},
    /// The chunk daemon.
    Chunks {},
    /// The proxy before machines that have names.
    Ingress {},
    /// The VMM of one machine: to its guest, a power cut.
    Machine { deployment: Name, workload: Name },
}

/// The answer to a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drilled {
    /// The process that was killed. The node agent's is alive until this answer has been read.
    pub pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_names_one_of_four_processes_and_nothing_else() {
        let shop: Name = "shop".parse().expect("a name");
        let machine = Drill::Machine {
            deployment: shop.clone(),
            workload: shop,
        };
        for (json, drill) in [
            (r#"{"kill":"node"}"#, Drill::Node {}),
            (r#"{"kill":"chunks"}"#, Drill::Chunks {}),
            (r#"{"kill":"ingress"}"#, Drill::Ingress {}),
            (
                r#"{"kill":"machine","deployment":"shop","workload":"shop"}"#,
                machine,
            ),
        ] {
            assert_eq!(serde_json::to_string(&drill).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Drill>(json).expect(json), drill);
        }
        for json in [
            r#"{"kill":"pid1"}"#,
            r#"{"kill":"node","signal":9}"#,
            r#"{"kill":"chunks","deployment":"shop"}"#,
            r#"{"kill":"machine","deployment":"shop"}"#,
            r#"{"kill":"machine","deployment":"../x","workload":"shop"}"#,
            r#"{"pid":1}"#,
        ] {
            assert!(serde_json::from_str::<Drill>(json).is_err(), "{json}");
        }
    }
}
