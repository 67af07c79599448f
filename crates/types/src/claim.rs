//! The owner's consent to lose what is on disks.
//!
//! Owns: the plan that is signed: which disks of which nodes, by serial and present content; and what came of it.
//! Refuses: a disk without a serial, and what nobody has looked at: the content's fingerprint is part of the plan.

use serde::{Deserialize, Serialize};

use crate::{Digest, PublicKey};

/// DSSE payload type of a signed [`Claim`].
pub const CLAIM_PAYLOAD_TYPE: &str = "application/vnd.sifr.disk-claim.v1+json";
/// Nodes of one plan: a few racks; more are two plans.
pub const NODES_MAX: usize = 256;
/// Disks of one node: as many as a node looks at.
pub const DISKS_MAX: usize = 256;
/// Longest serial: SCSI's designators have at most 255 bytes.
const SERIAL_MAX: usize = 255;

/// One plan, over one node or many. Each node gets the whole of it and does its own part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub nodes: Vec<NodeClaim>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeClaim {
    pub node: PublicKey,
    /// What the node gave with the list of its disks.
    pub challenge: Digest,
    pub disks: Vec<DiskClaim>,
    /// The node starts again when it is done, so that a node that runs from RAM has its pool.
    pub reboot: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskClaim {
    pub serial: String,
    /// Fingerprint of what was on the disk when the plan was made.
    pub content: Digest,
    /// The same in words, as whoever signed has read it.
    pub held: String,
    /// Serial of the half of a mirror in whose place the disk comes. The disk may be blank, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// Answer to `POST /v1/node/disks/claim`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claimed {
    /// Serials, in the plan's order: each disk is blank, but for the pool's.
    pub disks: Vec<String>,
    /// Serial of the one on which a pool was made. It is used from the next boot on, and keeps the node's key.
    pub pool: Option<String>,
    /// The node starts again now.
    pub reboots: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error("a claim names 1 to {NODES_MAX} nodes, this one {0}")]
    Nodes(usize),
    #[error("node {0} stands twice in the claim")]
    NodeTwice(PublicKey),
    #[error("a claim names 1 to {DISKS_MAX} disks of a node, this one {0}")]
    Disks(usize),
    #[error(
        "serial {0:?} cannot be claimed: a disk is known by 1 to {SERIAL_MAX} printable characters"
    )]
    Serial(String),
    #[error("disk {0:?} cannot replace itself")]
    Itself(String),
    #[error("disk {0:?} stands twice in the claim of one node")]
    DiskTwice(String),
}

impl Claim {
    /// What of it any node may rely on.
    pub fn check(&self) -> Result<(), ClaimError> {
        if !(1..=NODES_MAX).contains(&self.nodes.len()) {
            return Err(ClaimError::Nodes(self.nodes.len()));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            if self.nodes[..at].iter().any(|other| other.node == node.node) {
                return Err(ClaimError::NodeTwice(node.node));
            }
            node.check()?;
        }
        Ok(())
    }

    /// The part of one node.
    pub fn of(&self, node: &PublicKey) -> Option<&NodeClaim> {
        self.nodes.iter().find(|claim| claim.node == *node)
    }

    /// Whether any node's disk with this serial is named: which node, a disk alone cannot tell.
    pub fn names(&self, serial: &str) -> bool {
        let mut disks = self.nodes.iter().flat_map(|node| &node.disks);
        disks.any(|disk| disk.serial == serial)
    }
}

impl NodeClaim {
    fn check(&self) -> Result<(), ClaimError> {
        if !(1..=DISKS_MAX).contains(&self.disks.len()) {
            return Err(ClaimError::Disks(self.disks.len()));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if !is_serial(&disk.serial) {
                return Err(ClaimError::Serial(disk.serial.clone()));
            }
            if let Some(old) = &disk.replaces {
                if !is_serial(old) {
                    return Err(ClaimError::Serial(old.clone()));
                }
                if *old == disk.serial {
                    return Err(ClaimError::Itself(old.clone()));
                }
            }
            if self.disks[..at]
                .iter()
                .any(|other| other.serial == disk.serial)
            {
                return Err(ClaimError::DiskTwice(disk.serial.clone()));
            }
        }
        Ok(())
    }
}

/// Whether a disk can be named by it.
pub fn is_serial(text: &str) -> bool {
    (1..=SERIAL_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(serial: &str) -> DiskClaim {
        DiskClaim {
            serial: serial.to_owned(),
            content: Digest([1; 32]),
            held: "ext4 file system".to_owned(),
            replaces: None,
        }
    }

    fn node(key: u8, serials: &[&str]) -> NodeClaim {
        NodeClaim {
            node: PublicKey([key; 32]),
            challenge: Digest([2; 32]),
            disks: serials.iter().map(|serial| disk(serial)).collect(),
            reboot: false,
        }
    }

    #[test]
    fn a_plan_names_each_disk_of_each_node_once() {
        let plan = |nodes| Claim { nodes };
        let good = plan(vec![node(1, &["A", "B"]), node(2, &["A"])]);
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.of(&PublicKey([2; 32])), Some(&node(2, &["A"])));
        assert_eq!(good.of(&PublicKey([3; 32])), None);
        assert!(good.names("B") && !good.names("C"));
        for bad in [
            plan(vec![]),
            plan(vec![node(1, &[])]),
            plan(vec![node(1, &["A"]), node(1, &["B"])]),
            plan(vec![node(1, &["A", "A"])]),
            plan(vec![node(1, &[""])]),
            plan(vec![node(1, &["a\x1b"])]),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_plan_with_a_field_that_nobody_knows_is_no_plan() {
        let json = serde_json::to_string(&Claim {
            nodes: vec![node(1, &["A"])],
        });
        let json = json.expect("JSON");
        assert!(serde_json::from_str::<Claim>(&json).is_ok());
        let more = json.replacen("\"serial\"", "\"force\":true,\"serial\"", 1);
        assert!(serde_json::from_str::<Claim>(&more).is_err(), "{more}");
    }
}
