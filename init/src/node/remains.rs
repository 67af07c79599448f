//! What one boot remembers of a VM over a restart of the agent.
//!
//! Owns: the tag that pid1 keeps, and `/run/sifr/vms/<vm id>.json`, in memory: what the guest has said
//! already. Refuses: surviving a reboot; VMs do not either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::status::{Exit, Timeline};
use types::{Digest, Name, PublicKey, VmId};
use workload::desired::Key;
use workload::host::{Attached, Launch, Start};

const DIRECTORY: &str = "/run/sifr/vms";

/// What pid1 keeps with a VM and gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) signer: PublicKey,
    pub(crate) deployment: Name,
    pub(crate) workload: Name,
    pub(crate) launch: Launch,
    pub(crate) flist: Digest,
    pub(crate) restarts: u64,
    #[serde(default)]
    pub(crate) volumes: Vec<Attached>,
}

impl Tag {
    pub(crate) fn new(start: &Start) -> Self {
        Self {
            signer: start.record.signer,
            deployment: start.record.deployment.clone(),
            workload: start.record.workload.clone(),
            launch: start.launch,
            flist: start.record.image,
            restarts: start.restarts,
            volumes: start.volumes.iter().map(|v| v.attached.clone()).collect(),
        }
    }

    pub(crate) fn key(&self) -> Key {
        Key {
            signer: self.signer,
            name: self.deployment.clone(),
        }
    }
}

/// What the guest and its VMM have said and will not say again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Remains {
    /// Set when the program has started.
    pub(crate) start_ms: Option<u64>,
    /// The program has ended; the guest writes to its disk.
    pub(crate) settling: bool,
    pub(crate) exit: Option<Exit>,
    pub(crate) trouble: Option<String>,
    /// How its start went.
    #[serde(default)]
    pub(crate) began: Option<Began>,
}

/// A start, from when on and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Began {
    /// CLOCK_BOOTTIME.
    pub(crate) at: Duration,
    pub(crate) timeline: Timeline,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self {
            at: sys::clock::since_boot(),
            timeline: Timeline::default(),
        }
    }
}

fn path(vm: &VmId) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{vm}.json"))
}

impl Remains {
    /// Nothing, where nothing was said.
    pub(crate) fn load(vm: &VmId) -> Self {
        let bytes = std::fs::read(path(vm)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(crate) fn save(&self, vm: &VmId) {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(DIRECTORY)?;
            let (path, new) = (path(vm), path(vm).with_extension("new"));
            std::fs::write(&new, serde_json::to_vec(self)?)?;
            std::fs::rename(new, path)
        };
        if let Err(error) = write() {
            log::warn!("remember what {vm} said: {error}");
        }
    }

    pub(crate) fn remove(vm: &VmId) {
        if let Err(error) = std::fs::remove_file(path(vm))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("forget what {vm} said: {error}");
        }
    }
}
