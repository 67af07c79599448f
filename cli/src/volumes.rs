//! `sifr volume`: what there is, snapshots, restorations.
//!
//! Owns: how a volume reads. What is changed is a signed statement as any other.
//! Refuses: making and destroying volumes: `sifr deploy` and `sifr delete` do.

use std::time::Duration;

use anyhow::{Context as _, bail};
use api::{Client, Until};
use serde_json::json;
use types::Name;
use types::deployment::{Action, Statement};
use types::status::{DeploymentStatus, Desired, VolumeState, VolumeStatus};

use crate::Context;
use crate::args::{SnapshotTarget, VolumeCommand};
use crate::deploy::post;
use crate::screen::table;

/// Longest wait for what was signed to be done; it is done later all the same.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) async fn volume(context: &Context, command: VolumeCommand) -> anyhow::Result<()> {
    match command {
        VolumeCommand::List { name } => list(context, name).await,
        VolumeCommand::Snapshot { target } => act(context, target, Deed::Take).await,
        VolumeCommand::Restore { target } => act(context, target, Deed::Restore).await,
        VolumeCommand::Delete { target } => act(context, target, Deed::Drop).await,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Take,
    Restore,
    Drop,
}

impl Deed {
    fn action(self, volume: Name, snapshot: Name) -> Action {
        match self {
            Self::Take => Action::Snapshot { volume, snapshot },
            Self::Restore => Action::Restore { volume, snapshot },
            Self::Drop => Action::DropSnapshot { volume, snapshot },
        }
    }
}

async fn list(context: &Context, name: Option<Name>) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let all = match &name {
        Some(name) => vec![
            client
                .deployment(name)
                .await
                .with_context(|| format!("cannot get {name}"))?,
        ],
        None => client
            .deployments()
            .await
            .with_context(|| format!("cannot ask node {node}"))?,
    };
    let value: Vec<_> = all
        .iter()
        .flat_map(|status| {
            let of =
                |(volume, is)| json!({ "deployment": status.name, "name": volume, "volume": is });
            status.volumes.iter().map(of)
        })
        .collect();
    context.screen.show(&value, || {
        let with: Vec<_> = all.iter().filter(|s| !s.volumes.is_empty()).collect();
        match with.as_slice() {
            [] => format!("no volumes on {node}: a deployment file makes one"),
            with => rows(with),
        }
    })
}

/// A table of the volumes of deployments.
pub(crate) fn rows(all: &[&DeploymentStatus]) -> String {
    let mut rows = Vec::new();
    for status in all {
        for (name, volume) in &status.volumes {
            rows.push(row(&status.name, name, volume));
        }
    }
    table(
        [
            "NAME",
            "VOLUME",
            "STATE",
            "SIZE",
            "USED",
            "ATTACHED",
            "SNAPSHOTS",
            "MESSAGE",
        ],
        &rows,
    )
}

fn row(deployment: &Name, name: &Name, volume: &VolumeStatus) -> [String; 8] {
    let names = |names: Vec<String>| names.join(" ");
    let snapshot = |(name, snapshot): (&Name, &types::status::SnapshotStatus)| match snapshot.taken
    {
        true => name.to_string(),
        false => format!("{name} (pending)"),
    };
    [
        deployment.to_string(),
        name.to_string(),
        state_word(volume.state).to_owned(),
        volume.size.to_string(),
        volume
            .used
            .map(|used| format!("{}Mi", used.as_mib()))
            .unwrap_or_default(),
        names(volume.attached.iter().map(Name::to_string).collect()),
        names(volume.snapshots.iter().map(snapshot).collect()),
        volume.message.clone().unwrap_or_default(),
    ]
}

pub(crate) fn state_word(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Pending => "pending",
        VolumeState::Ready => "ready",
        VolumeState::Changing => "changing",
        VolumeState::Removing => "removing",
        VolumeState::Failed => "failed",
    }
}

async fn act(context: &Context, target: SnapshotTarget, deed: Deed) -> anyhow::Result<()> {
    let SnapshotTarget {
        deployment: name,
        volume,
        snapshot,
    } = target;
    let what = format!("{name}/{volume}@{snapshot}");
    let cannot = || match deed {
        Deed::Take => format!("cannot take the snapshot {what}"),
        Deed::Restore => format!("cannot restore {name}/{volume} from {snapshot}"),
        Deed::Drop => format!("cannot delete the snapshot {what}"),
    };
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let status = client.deployment(&name).await.with_context(cannot)?;
    let statement = Statement {
        node: client.node(),
        name: name.clone(),
        version: status.version.saturating_add(1),
        action: deed.action(volume.clone(), snapshot.clone()),
    };
    let ack = post(context, &client, &statement)
        .await
        .with_context(cannot)?;
    let is = settled(&client, &name, &volume, status.desired)
        .await
        .with_context(cannot)?;
    let taken = is.snapshots.get(&snapshot).copied();
    let outcome = match (deed, taken) {
        _ if is.state == VolumeState::Failed => {
            let message = is.message.clone().unwrap_or_default();
            bail!("{what} is signed and not done yet: {message}");
        }
        (Deed::Take, Some(snapshot)) if snapshot.taken && snapshot.settled => {
            "taken, as after a sync"
        }
        (Deed::Take, Some(snapshot)) if snapshot.taken => "taken, as after a power cut",
        (Deed::Restore, _) if is.state == VolumeState::Ready => "restored",
        (Deed::Drop, None) if is.state == VolumeState::Ready => "deleted",
        _ => bail!(
            "{what} is signed and not done after {} s: `sifr volume list {name}` shows how far it is",
            WAIT_MAX.as_secs()
        ),
    };
    let value = json!({ "node": node, "name": name, "version": ack.version, "volume": is });
    context.screen.show(&value, || {
        format!("{what} version {}: {outcome}", ack.version)
    })
}

/// The volume once nothing is left to do with it, or as it is when time is up.
async fn settled(
    client: &Client,
    name: &Name,
    volume: &Name,
    desired: Desired,
) -> anyhow::Result<VolumeStatus> {
    let until = match desired {
        Desired::Running => Until::Running,
        Desired::Stopped | Desired::Deleted => Until::Stopped,
    };
    let (mut status, _) = client.wait(name, until, WAIT_MAX, |_| ()).await?;
    status
        .volumes
        .remove(volume)
        .with_context(|| format!("{name} has no volume {volume} any more"))
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::status::SnapshotStatus;

    use super::*;

    #[test]
    fn a_volume_is_a_row_with_what_there_is_of_it() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let snapshot = |taken| SnapshotStatus {
            version: 2,
            taken,
            settled: taken,
        };
        let volume = VolumeStatus {
            state: VolumeState::Ready,
            size: Bytes::gib(2),
            used: Some(Bytes::mib(70)),
            attached: vec![name("db")],
            snapshots: [(name("a"), snapshot(true)), (name("b"), snapshot(false))].into(),
            message: None,
        };
        let row = row(&name("shop"), &name("data"), &volume).join(" | ");
        assert_eq!(
            row,
            "shop | data | ready | 2Gi | 70Mi | db | a b (pending) | "
        );
    }
}
