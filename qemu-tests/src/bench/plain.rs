//! Volumes beside the plain file system that they lie on.
//!
//! Owns: how long the node takes for a volume, a snapshot, a copy and a growth, from the signed statement until it says that it is
//! done, less what a statement takes that changes nothing, as a multiple of what its file system takes for the same bytes, in the same
//! run and on the same disk.
//! Refuses: volumes that machines have: what a guest adds is the guest's.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use api::client::Client;
use image::qemu::blank_disk;
use serde_json::json;
use types::deployment::Action;
use types::status::{DeploymentStatus, VolumeState};
use types::{Bytes, VmId};

use super::crowd::{Owner, deployment};
use super::images::median;
use super::measure::{PATIENCE, float};
use super::table::Row;
use crate::{Lab, Setup};

const ROUNDS: u32 = 5;
/// Of the volume, and what of it is written.
const SIZE_MIB: u64 = 256;
const FILL_MIB: u64 = 192;
/// Each snapshot, and each copy, is promised as much as the volume has come to.
const POOL: Bytes = Bytes::gib(16);
const FILL: &str = "dd if=/dev/zero of=/data/all bs=1M count=193; sync; sleep 100000";
/// The node keeps what it says: a record of the volume, and the file itself. What any statement costs, two copies of the ledger, a
/// signature and a question, is counted by one that changes nothing.
const OF_PLAIN: f64 = 10.0;

pub(super) fn volumes() -> Result<Vec<Row>> {
    let setup = Setup {
        watched: true,
        ..Setup::default()
    };
    let lab = Lab::with(&setup, |machine| {
        let pool = &machine.disks.first().context("the node has no disk")?.file;
        fs::remove_file(pool)?;
        blank_disk(pool, POOL)
    })?;
    let owner = Owner::of(&lab)?;
    let client = owner.client()?;
    let mut times = [const { Vec::new() }; 4];
    let mut bench = Bench {
        owner,
        client,
        version: 0,
    };
    let mut nothing = Vec::new();
    bench.fill()?;
    let mut size = SIZE_MIB;
    for round in 0..ROUNDS {
        let (name, volume) = (format!("s{round}"), "data".parse()?);
        let same = bench.document(size, &[])?;
        nothing.push(bench.until(same, ready("data", size))?);
        let snapshot = Action::Snapshot {
            volume,
            snapshot: name.parse()?,
        };
        let taken = move |status: &DeploymentStatus| {
            status.volumes.values().any(|v| {
                v.snapshots
                    .iter()
                    .any(|(n, s)| n.as_str() == name && s.taken)
            })
        };
        times[1].push(bench.until(snapshot, taken)?);
        size += 64;
        let grown = bench.document(size, &[])?;
        times[3].push(bench.until(grown, ready("data", size))?);
        let blank = bench.document(size, &[("blank", json!({"size": format!("{SIZE_MIB}Mi")}))])?;
        times[0].push(bench.until(blank, ready("blank", SIZE_MIB))?);
        bench.gone(size, "blank")?;
        let copy = bench.document(
            size,
            &[(
                "copy",
                json!({"size": format!("{size}Mi"), "from": {"volume": "data"}}),
            )],
        )?;
        times[2].push(bench.until(copy, ready("copy", size))?);
        bench.gone(size, "copy")?;
    }
    let id = VmId::new(&bench.owner.public(), &"box".parse()?, &"data".parse()?);
    let [reserve, reflink, longer] = lab
        .watch()?
        .plain(&format!("/pool/volumes/{}", id.as_str()))?;
    let plain = [
        ("making a volume", reserve),
        ("a snapshot", reflink),
        ("a copy", reflink),
        ("growth", longer),
    ];
    let nothing = median(nothing);
    let mut rows = vec![Row::part(
        "a statement that changes nothing, and a question",
        nothing,
        "ms",
    )];
    for ((what, plain), times) in plain.into_iter().zip(times) {
        let (ours, plain) = (median(times), float(plain) / 1e3);
        let own = (ours - nothing).max(0.0);
        let name =
            format!("{what}, beyond such a statement, as a multiple of the plain file system's");
        rows.push(Row::target(name, own / plain, "", OF_PLAIN));
        rows.push(Row::part("… by the clock, all of it", ours, "ms"));
        rows.push(Row::part("… the plain file system's", plain, "ms"));
        rows.push(Row::part("… all of it, as a multiple", ours / plain, ""));
    }
    Ok(rows)
}

struct Bench<'a> {
    owner: Owner<'a>,
    /// Stays connected: an emulated processor takes longer for a handshake than for a volume.
    client: Client,
    version: u64,
}

fn ready(volume: &'static str, mib: u64) -> impl Fn(&DeploymentStatus) -> bool {
    move |status| {
        let of = status
            .volumes
            .iter()
            .find(|(name, _)| name.as_str() == volume);
        of.is_some_and(|(_, volume)| {
            volume.state == VolumeState::Ready && volume.size == Bytes::mib(mib)
        })
    }
}

impl Bench<'_> {
    /// Volumes alone.
    fn document(&self, size: u64, more: &[(&str, serde_json::Value)]) -> Result<Action> {
        let mut volumes = json!({"data": {"volume": {"size": format!("{size}Mi")}}});
        more.iter()
            .for_each(|(name, volume)| volumes[*name] = json!({"volume": volume}));
        deployment(json!({"workloads": volumes, "remove": ["main"]}))
    }

    /// A machine writes, and goes: from here on nobody has the volume.
    fn fill(&mut self) -> Result<()> {
        let mounts = json!([{"volume": "data", "path": "/data"}]);
        let machine = [("mounts", mounts), ("command", json!(["sh", "-c", FILL]))];
        let document = json!({"workloads": {
            "main": self.owner.small(&machine), "data": {"volume": {"size": format!("{SIZE_MIB}Mi")}},
        }});
        self.state(deployment(document)?)?;
        let written = |status: &DeploymentStatus| {
            let used = status.volumes.values().filter_map(|volume| volume.used);
            used.map(Bytes::as_mib).any(|mib| mib >= FILL_MIB)
        };
        self.comes(written)?;
        let document = self.document(SIZE_MIB, &[])?;
        self.state(document)?;
        self.comes(|status| status.workloads.is_empty())
    }

    fn state(&mut self, action: Action) -> Result<()> {
        self.version += 1;
        let envelope = self.owner.sealed("box", self.version, action)?;
        let stated = self.client.post_statement(&envelope);
        self.owner.block(stated).map(drop)
    }

    /// Milliseconds from the statement on.
    fn until(&mut self, action: Action, done: impl Fn(&DeploymentStatus) -> bool) -> Result<f64> {
        let since = Instant::now();
        self.state(action)?;
        self.comes(done)?;
        Ok(since.elapsed().as_secs_f64() * 1e3)
    }

    /// Asks over and over: nothing tells from outside when a volume is ready.
    fn comes(&self, done: impl Fn(&DeploymentStatus) -> bool) -> Result<()> {
        let name = "box".parse()?;
        let since = Instant::now();
        loop {
            let status = self.owner.block(self.client.deployment(&name))?;
            if done(&status) {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "it does not come: {status:?}");
        }
    }

    fn gone(&mut self, size: u64, volume: &str) -> Result<()> {
        let mut action = self.document(size, &[])?;
        let name: types::Name = volume.parse()?;
        if let Action::Deploy(deployment) = &mut action {
            deployment.remove.insert(name.clone());
            deployment.destroy.insert(name.clone());
        }
        self.state(action)?;
        self.comes(|status| !status.volumes.contains_key(&name))
    }
}
