//! What a tenant asks for: the statement that is signed, and the workloads inside it.
//!
//! Owns: the document's fields and the limits that need no node to check.
//! Refuses: unknown fields, and values that can never be right on any node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::address::{self, AddressError, Pool, Wanted};
use crate::ingress::{self, IngressError, Sites};
use crate::limits::Limits;
use crate::network::{self, Card, Network, NetworkError};
use crate::node::DiskClass;
use crate::stores::{Stores, StoresError};
use crate::volume::{self, Mount, Volume, VolumeError};
use crate::{Bytes, Digest, Name, PublicKey};

/// DSSE payload type of a [`Statement`].
pub const PAYLOAD_TYPE: &str = "application/vnd.sifr.deployment.v1+json";
/// DSSE payload type reserved for an owner's grant to a tenant. Refused until grants exist.
pub const GRANT_PAYLOAD_TYPE: &str = "application/vnd.sifr.grant.v1+json";

/// Most bytes of a signed envelope, on the wire and in the ledger: [`WORKLOADS_MAX`] workloads with ordinary arguments,
/// and a node that keeps thousands of them holds them in memory.
pub const ENVELOPE_MAX: usize = 256 << 10;

/// The workload of a deployment that has just one and no name for it: it goes by the deployment's name.
pub const ONLY_WORKLOAD: &str = "main";
/// Most workloads in one deployment: a reconcile pass stays short and a status fits one answer.
pub const WORKLOADS_MAX: usize = 32;
/// Most published ports of one machine: each is a firewall rule.
pub const PORTS_MAX: usize = 64;
/// Most bytes of arguments and environment of one machine: well under the guest kernel's 2 MiB limit.
pub const ARGS_MAX_BYTES: usize = 128 << 10;
/// vCPUs of one machine: what the guest kernel is built for.
pub const CPUS_MAX: u8 = 32;
/// Smallest guest: kernel, init and page cache have room.
pub const MEMORY_MIN: Bytes = Bytes::mib(64);
/// Largest guest. The MMIO hole needs no care below this and no server has more.
pub const MEMORY_MAX: Bytes = Bytes::gib(4096);
/// Smallest writable layer: an ext4 with a journal.
pub const DISK_MIN: Bytes = Bytes::mib(64);
/// Largest writable layer.
pub const DISK_MAX: Bytes = Bytes::gib(16 << 10);

/// The signed payload: one step in the life of one deployment on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The node this is for, so that a statement cannot be replayed on another.
    pub node: PublicKey,
    pub name: Name,
    /// Counts up by one per (signer, name), beginning with 1. Deletion is a version too.
    pub version: u64,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Create or replace: what the deployment should be from now on. It is also started.
    Deploy(Deployment),
    /// Stop every machine; disks stay.
    Stop,
    /// Start what was stopped.
    Start,
    /// Stop, then start.
    Restart,
    /// Stop and remove, disks too. The name's version count lives on as a tombstone. Refused while the
    /// deployment has volumes.
    Delete,
    /// The same of a deployment with volumes, each of which is named: they go with their content.
    Destroy { volumes: BTreeSet<Name> },
    /// Keep what the volume holds now under a name.
    Snapshot { volume: Name, snapshot: Name },
    /// Give that up.
    DropSnapshot { volume: Name, snapshot: Name },
    /// Have the volume hold what it held then. What it holds now goes. Its machines are stopped before.
    Restore { volume: Name, snapshot: Name },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The client accepts a node that keeps nothing over a reboot (one that runs from RAM).
    #[serde(default)]
    pub accept_volatile: bool,
    pub workloads: BTreeMap<Name, Workload>,
    /// Names under which its machines are reached by HTTP and TLS. They come and go with each version, as ports do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ingress: Sites,
    /// Workloads of the version before that go now, with their disks. One that is neither here nor in
    /// `workloads` makes the node refuse the statement: leaving out is not removing. Naming one that has
    /// gone already is no error, so that a file can stay as it is.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub remove: BTreeSet<Name>,
    /// Volumes among those in `remove`: without their names here too, none goes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub destroy: BTreeSet<Name>,
}

/// The closed set of workload kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "most are machines, and a deployment has few"
)]
pub enum Workload {
    Machine(Machine),
    Volume(Volume),
    Network(Network),
    /// Of the owner.
    Pool(Pool),
}

/// A micro VM that runs one container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub image: Image,
    #[serde(default = "one")]
    pub cpus: u8,
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// Size of the writable layer above the image.
    #[serde(default = "default_disk")]
    pub disk: Bytes,
    /// Which kind of disk the layer lies on; absent: the node chooses. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<DiskClass>,
    /// Replaces the image's entry point; the image's command is then dropped, as OCI runtimes do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Added to the image's environment; same names replace.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Lead to its first network.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// A card each, in this order; by the first it reaches the outside. None: [`network::DEFAULT_NETWORK`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Card>,
    /// Of its own, from pools: it is reached at them from outside. They lead to its first network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Wanted>,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How fast it may use its disks and its card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Volumes of the same deployment, and where its program finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A content-addressed image, and where its chunks can be fetched if the client has not pushed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub flist: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Stores>,
}

/// A port of the node that leads to a port of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub node: u16,
    pub machine: u16,
    #[serde(default, skip_serializing_if = "Protocol::is_tcp")]
    pub protocol: Protocol,
}

/// Ports of one protocol are others than those of the next.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl Protocol {
    fn is_tcp(&self) -> bool {
        *self == Self::Tcp
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

impl Port {
    pub fn tcp(node: u16, machine: u16) -> Self {
        let protocol = Protocol::Tcp;
        Self {
            node,
            machine,
            protocol,
        }
    }

    /// What no other port may share.
    pub fn on_node(&self) -> (Protocol, u16) {
        (self.protocol, self.node)
    }

    /// The node needs it for itself.
    fn is_reserved(&self) -> bool {
        match self.protocol {
            Protocol::Tcp => self.node == API_PORT,
            Protocol::Udp => DHCP_PORTS.contains(&self.node),
        }
    }
}

/// As Docker writes it.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.machine)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Whatever the exit status, with backoff, for ever.
    #[default]
    Always,
    /// Unless the program exited with status 0.
    OnFailure,
    /// The exit status is final. A lost VMM is started again all the same: it was not the program's exit.
    Never,
}

fn one() -> u8 {
    1
}
fn default_memory() -> Bytes {
    Bytes::mib(256)
}
fn default_disk() -> Bytes {
    Bytes::gib(1)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("a deployment has 1 to {WORKLOADS_MAX} workloads, this one has {0}")]
    Workloads(usize),
    #[error("workload {name}: {field} is {found}, allowed is {allowed}")]
    Range {
        name: Name,
        field: &'static str,
        found: String,
        allowed: String,
    },
    #[error(
        "workload {name}: arguments and environment take {bytes} bytes, at most {ARGS_MAX_BYTES} fit"
    )]
    Args { name: Name, bytes: usize },
    #[error(
        "workload {name}: {field} contains a NUL byte, an '=' in a variable's name, or is empty"
    )]
    Text { name: Name, field: &'static str },
    #[error("a deployment removes at most {WORKLOADS_MAX} workloads at once, this one {0}")]
    Removals(usize),
    #[error("workload {0} stands in both workloads and remove: take it out of one of them")]
    Contradiction(Name),
    #[error("{0} port {1} of the node is published twice in this deployment")]
    PortTwice(Protocol, u16),
    #[error("workload {name}: {protocol} port {port} of the node is its own: choose another")]
    PortReserved {
        name: Name,
        protocol: Protocol,
        port: u16,
    },
    #[error("workload {name}: {problem}")]
    Store { name: Name, problem: StoresError },
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Ingress(#[from] IngressError),
    #[error("version 0 does not exist: the first version of a deployment is 1")]
    Version,
}

/// The TCP port of the node's API.
pub const API_PORT: u16 = 7443;
/// UDP ports of the node's DHCP clients, IPv4 and IPv6.
const DHCP_PORTS: [u16; 2] = [68, 546];

impl Statement {
    /// Checks all that can be checked without knowing the node.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.version == 0 {
            return Err(SpecError::Version);
        }
        match &self.action {
            Action::Deploy(deployment) => deployment.check(),
            Action::Destroy { volumes } if volumes.len() > WORKLOADS_MAX => {
                Err(SpecError::Removals(volumes.len()))
            }
            Action::Stop
            | Action::Start
            | Action::Restart
            | Action::Delete
            | Action::Destroy { .. }
            | Action::Snapshot { .. }
            | Action::DropSnapshot { .. }
            | Action::Restore { .. } => Ok(()),
        }
    }
}

impl Deployment {
    pub fn check(&self) -> Result<(), SpecError> {
        let count = self.workloads.len();
        if !(1..=WORKLOADS_MAX).contains(&count) {
            return Err(SpecError::Workloads(count));
        }
        let removed = self.remove.len().max(self.destroy.len());
        if removed > WORKLOADS_MAX {
            return Err(SpecError::Removals(removed));
        }
        if let Some(name) = self.remove.iter().find(|n| self.workloads.contains_key(n)) {
            return Err(SpecError::Contradiction(name.clone()));
        }
        let mut published = BTreeSet::new();
        for (name, machine) in self.machines() {
            machine.check(name)?;
            for port in &machine.ports {
                if !published.insert(port.on_node()) {
                    return Err(SpecError::PortTwice(port.protocol, port.node));
                }
            }
        }
        volume::check(self)?;
        network::check(self)?;
        address::check(self)?;
        ingress::check(self)?;
        Ok(())
    }

    pub fn machines(&self) -> impl Iterator<Item = (&Name, &Machine)> {
        self.workloads
            .iter()
            .filter_map(|(name, workload)| match workload {
                Workload::Machine(machine) => Some((name, machine)),
                Workload::Volume(_) | Workload::Network(_) | Workload::Pool(_) => None,
            })
    }

    pub fn volumes(&self) -> impl Iterator<Item = (&Name, &Volume)> {
        self.workloads
            .iter()
            .filter_map(|(name, workload)| match workload {
                Workload::Volume(volume) => Some((name, volume)),
                Workload::Machine(_) | Workload::Network(_) | Workload::Pool(_) => None,
            })
    }

    pub fn networks(&self) -> impl Iterator<Item = (&Name, &Network)> {
        self.workloads
            .iter()
            .filter_map(|(name, workload)| match workload {
                Workload::Network(network) => Some((name, network)),
                Workload::Machine(_) | Workload::Volume(_) | Workload::Pool(_) => None,
            })
    }

    pub fn pools(&self) -> impl Iterator<Item = (&Name, &Pool)> {
        self.workloads
            .iter()
            .filter_map(|(name, workload)| match workload {
                Workload::Pool(pool) => Some((name, pool)),
                Workload::Machine(_) | Workload::Volume(_) | Workload::Network(_) => None,
            })
    }

    pub fn network(&self, name: &Name) -> Option<&Network> {
        match self.workloads.get(name)? {
            Workload::Network(network) => Some(network),
            Workload::Machine(_) | Workload::Volume(_) | Workload::Pool(_) => None,
        }
    }
}

impl Machine {
    fn check(&self, name: &Name) -> Result<(), SpecError> {
        let range = |field, found: String, fine: bool, allowed: String| {
            if fine {
                Ok(())
            } else {
                Err(SpecError::Range {
                    name: name.clone(),
                    field,
                    found,
                    allowed,
                })
            }
        };
        let within = |field, found: Bytes, min: Bytes, max: Bytes| {
            range(
                field,
                found.to_string(),
                (min..=max).contains(&found),
                format!("{min} to {max}"),
            )
        };
        range(
            "cpus",
            self.cpus.to_string(),
            (1..=CPUS_MAX).contains(&self.cpus),
            format!("1 to {CPUS_MAX}"),
        )?;
        within("memory", self.memory, MEMORY_MIN, MEMORY_MAX)?;
        within("disk", self.disk, DISK_MIN, DISK_MAX)?;
        let ports = self.ports.len();
        range(
            "number of ports",
            ports.to_string(),
            ports <= PORTS_MAX,
            format!("0 to {PORTS_MAX}"),
        )?;
        for port in &self.ports {
            let fine = port.node != 0 && port.machine != 0;
            range("port", port.to_string(), fine, "1 to 65535".to_owned())?;
            if port.is_reserved() {
                return Err(SpecError::PortReserved {
                    name: name.clone(),
                    protocol: port.protocol,
                    port: port.node,
                });
            }
        }
        let rates = self.limits.unwrap_or_default().check();
        if let Err((field, found, allowed)) = rates {
            range(field, found, false, allowed)?;
        }
        self.check_text(name)?;
        let stores = self.image.store.as_ref().map(Stores::check);
        stores
            .unwrap_or(Ok(()))
            .map_err(|problem| SpecError::Store {
                name: name.clone(),
                problem,
            })
    }

    fn check_text(&self, name: &Name) -> Result<(), SpecError> {
        let text = |field, fine: bool| {
            if fine {
                Ok(())
            } else {
                Err(SpecError::Text {
                    name: name.clone(),
                    field,
                })
            }
        };
        let args = || self.entrypoint.iter().chain(&self.command).flatten();
        text("entrypoint or command", args().all(|a| !a.contains('\0')))?;
        text(
            "entrypoint",
            self.entrypoint.as_ref().is_none_or(|e| !e.is_empty()),
        )?;
        text(
            "env",
            self.env
                .iter()
                .all(|(k, v)| !k.is_empty() && !k.contains(['=', '\0']) && !v.contains('\0')),
        )?;
        text(
            "user",
            self.user
                .as_ref()
                .is_none_or(|u| !u.is_empty() && !u.contains('\0')),
        )?;
        text(
            "workdir",
            self.workdir
                .as_ref()
                .is_none_or(|w| w.starts_with('/') && !w.contains('\0')),
        )?;
        let bytes = args().map(|a| a.len() + 1).sum::<usize>()
            + self
                .env
                .iter()
                .map(|(k, v)| k.len() + v.len() + 2)
                .sum::<usize>();
        if bytes > ARGS_MAX_BYTES {
            return Err(SpecError::Args {
                name: name.clone(),
                bytes,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(json: &str) -> Result<Statement, String> {
        let statement: Statement = serde_json::from_str(json).map_err(|e| e.to_string())?;
        statement
            .check()
            .map_err(|e| e.to_string())
            .map(|()| statement)
    }

    fn with_machine(fields: &str) -> Result<Statement, String> {
        let (key, flist) = (PublicKey([1; 32]), Digest([2; 32]));
        statement(&format!(
            r#"{{"node":"{key}","name":"shop","version":1,"action":{{"deploy":{{"workloads":
               {{"web":{{"machine":{{"image":{{"flist":"{flist}"}}{fields}}}}}}}}}}}}}"#
        ))
    }

    #[test]
    fn a_machine_needs_an_image_and_nothing_else() {
        let statement = with_machine("").expect("a valid statement");
        let Action::Deploy(deployment) = &statement.action else {
            panic!("not a deploy")
        };
        let (_, machine) = deployment.machines().next().expect("one machine");
        assert_eq!(
            (machine.cpus, machine.memory, machine.disk),
            (1, Bytes::mib(256), Bytes::gib(1))
        );
        assert!(!deployment.accept_volatile);
    }

    #[test]
    fn unknown_fields_are_errors() {
        assert!(
            with_machine(r#","colour":"red""#)
                .expect_err("an unknown field")
                .contains("colour")
        );
    }

    #[test]
    fn each_limit_names_its_field_and_what_is_allowed() {
        for (fields, says) in [
            (r#","cpus":0"#, "cpus is 0, allowed is 1 to 32"),
            (r#","memory":"1Mi""#, "memory is 1Mi, allowed is 64Mi"),
            (r#","disk":"1Ki""#, "disk is 1Ki"),
            (r#","ports":[{"node":0,"machine":80}]"#, "port is 0:80"),
            (r#","ports":[{"node":7443,"machine":80}]"#, "choose another"),
            (
                r#","ports":[{"node":80,"machine":80},{"node":80,"machine":81}]"#,
                "published twice",
            ),
            (r#","env":{"A=B":"x"}"#, "env contains"),
            (r#","workdir":"relative""#, "workdir"),
            (r#","entrypoint":[]"#, "entrypoint"),
            (
                r#","limits":{"disk":{"operations_per_second":1}}"#,
                "limits.disk.operations_per_second is 1, allowed is 10 to 10000000",
            ),
        ] {
            let error = with_machine(fields).expect_err(fields);
            assert!(error.contains(says), "{fields}: {error}");
        }
    }

    #[test]
    fn a_workload_is_not_kept_and_removed_at_once() {
        let (key, flist) = (PublicKey([1; 32]), Digest([2; 32]));
        let with = |remove: &str| {
            statement(&format!(
                r#"{{"node":"{key}","name":"shop","version":1,"action":{{"deploy":{{"remove":[{remove}],"workloads":
                   {{"web":{{"machine":{{"image":{{"flist":"{flist}"}}}}}}}}}}}}}}"#
            ))
        };
        with(r#""db""#).expect("a valid statement");
        let error = with(r#""db","web""#).expect_err("both");
        assert!(error.contains("web stands in both"), "{error}");
    }

    #[test]
    fn version_zero_does_not_exist() {
        let key = PublicKey([1; 32]);
        let json = format!(r#"{{"node":"{key}","name":"shop","version":0,"action":"stop"}}"#);
        assert!(
            statement(&json)
                .expect_err("version 0")
                .contains("first version")
        );
    }
}
