//! The host's part in volumes, and what a VMM may take of the node with them.
//!
//! Owns: finding the VMs that have a volume which is to change. Refuses: changing it (`alter` does).

use types::{Bytes, VolumeId};
use workload::admission::{LOG_FILE_MAX, Storage, memory_limit};
use workload::host::{Change, Event, Start, User, VolumeStep};

use super::super::alter::Alteration;
use super::super::errands::Line;
use super::{DEVICE_CPUS, Message, NodeHost, VMM_THREADS, WEIGHT_PER_CPU};
use crate::wire::Limits;

/// The same of a volume: its thread, and five workers of its ring.
const VOLUME_THREADS: u64 = 6;

impl NodeHost {
    pub(super) fn alter(&self, step: VolumeStep) {
        let users: Vec<&User> = match &step.change {
            Change::Make { from } => {
                let writer = from.as_ref().and_then(|source| source.writer.as_ref());
                writer.into_iter().collect()
            }
            Change::Grow { users } => users.iter().collect(),
            Change::Snapshot { writer, .. } => writer.iter().collect(),
            Change::DropSnapshot { .. } | Change::Restore { .. } => Vec::new(),
        };
        let line = |user: &User| {
            let held = self
                .vms
                .get(&user.vm)
                .filter(|held| held.status.is_none())?;
            let line = Line {
                control: held.control.clone(),
                errands: held.errands.clone(),
                pid: held.pid,
            };
            Some((user.vm.clone(), line))
        };
        let lines = users.into_iter().filter_map(line).collect();
        let (volumes, messages) = (self.means.volumes.clone(), self.messages.clone());
        let alteration = Alteration {
            volumes,
            lines,
            at: self.pool_for(&step.volume),
            step,
        };
        tokio::task::spawn_local(async move {
            // Fails only when the loop has ended.
            let _ = messages.send(Message::Volume(alteration.run().await)).await;
        });
    }

    pub(super) fn erase(&self, volume: VolumeId) {
        let (volumes, messages) = (self.means.volumes.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let of = volume.clone();
            let erased = tokio::task::spawn_blocking(move || volumes.erase(&of)).await;
            let event = match erased {
                Ok(Ok(())) => Event::VolumeErased { volume },
                Ok(Err(error)) => Event::VolumeFailed {
                    volume,
                    message: format!("{error:#}"),
                },
                Err(error) => Event::VolumeFailed {
                    volume,
                    message: error.to_string(),
                },
            };
            let _ = messages.send(Message::Volume(event)).await;
        });
    }
}

/// What a machine's VMM may take of the node.
pub(super) fn limits(start: &Start, storage: Storage) -> Limits {
    let machine = &start.machine;
    let cpus = u64::from(machine.cpus);
    let written = start.volumes.iter().filter(|v| !v.attached.read_only);
    let sizes = written.map(|volume| volume.record.size);
    let all = sizes
        .clone()
        .fold(0, |sum: u64, size| sum.saturating_add(size.0));
    let volumes = u64::try_from(start.volumes.len()).unwrap_or(u64::MAX);
    Limits {
        memory_bytes: memory_limit(machine, Bytes(all), storage).0,
        pids: cpus + VMM_THREADS + volumes.saturating_mul(VOLUME_THREADS),
        cpus: cpus + DEVICE_CPUS,
        cpu_weight: cpus * WEIGHT_PER_CPU,
        // It writes the layer and volumes, which have their length from the beginning, and the log. A volume that grows
        // takes the limit along.
        file_bytes: sizes.fold(machine.disk.max(LOG_FILE_MAX), Ord::max).0,
    }
}
