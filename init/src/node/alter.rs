//! Changing a volume: its files, and the VMs that have it.
//!
//! Owns: the order of both. Files come first and count; what a VM then does not follow, it does at its next start.
//! Refuses: deciding what is to change (`workload` does).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use types::VmId;
use types::guest::HOLD_MAX_MS;
use workload::host::{Change, Event, Source, User, VolumeRecord, VolumeStep};

use super::errands::Line;
use super::volumes::{Copy, Volumes};

/// Everything that a change needs.
pub(crate) struct Alteration {
    pub(crate) volumes: Volumes,
    /// Of those who have the volume.
    pub(crate) lines: BTreeMap<VmId, Line>,
    pub(crate) step: VolumeStep,
    /// The pool of a new volume, or why there is none.
    pub(crate) at: Result<usize, String>,
}

/// On a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    }
}

impl Alteration {
    /// Does it, and says what came of it.
    pub(crate) async fn run(self) -> Event {
        let volume = self.step.volume.clone();
        match self.change().await {
            Ok((record, trouble)) => Event::VolumeChanged {
                volume,
                record: Box::new(record),
                trouble,
            },
            Err(message) => Event::VolumeFailed { volume, message },
        }
    }

    async fn change(self) -> Result<(VolumeRecord, Option<String>), String> {
        let Self {
            volumes,
            lines,
            step,
            at: pool,
        } = self;
        let VolumeStep {
            volume,
            mut record,
            change,
        } = step;
        let (id, at) = (volume.clone(), volumes.clone());
        let trouble = match change {
            Change::Make { from: None } => {
                let (made, pool) = (record.clone(), pool?);
                blocking(move || at.make(&id, &made, pool)).await?;
                None
            }
            Change::Make { from: Some(source) } => {
                let (begun, place, beside) = (at.clone(), id.clone(), source.volume.clone());
                blocking(move || begun.begin_beside(&place, &beside)).await?;
                let (copy, settled) = copy(&volumes, &lines, source, &volume).await?;
                record.shared = Volumes::blocks(&copy);
                let kept = record.clone();
                blocking(move || at.keep(copy, &id, &kept, None)).await?;
                settled.err()
            }
            Change::Grow { users } => {
                let grown = record.clone();
                blocking(move || at.grow(&id, &grown)).await?;
                tell_growth(&lines, &users, record.size.0).await
            }
            Change::Snapshot { version, writer } => {
                let idle = writer.is_none();
                let source = Source {
                    volume: volume.clone(),
                    record: record.clone(),
                    snapshot: None,
                    writer,
                };
                let (copy, settled) = copy(&volumes, &lines, source, &volume).await?;
                if let Some(snapshot) = record.snapshots.get_mut(&version) {
                    snapshot.settled = idle || settled.is_ok();
                }
                let kept = record.clone();
                blocking(move || at.keep(copy, &id, &kept, Some(version))).await?;
                settled.err()
            }
            Change::DropSnapshot { .. } => {
                let kept = record.clone();
                blocking(move || at.let_go(&id, &kept)).await?;
                None
            }
            Change::Restore { from, before: _ } => {
                let source = Source {
                    volume: volume.clone(),
                    record: record.clone(),
                    snapshot: Some(from),
                    writer: None,
                };
                let (copy, _) = copy(&volumes, &lines, source, &volume).await?;
                let kept = record.clone();
                blocking(move || at.replace(copy, &id, &kept)).await?;
                None
            }
        };
        Ok((record, trouble))
    }
}

/// A copy of one moment. The second part says whether who writes to the source stood still for it.
async fn copy(
    volumes: &Volumes,
    lines: &BTreeMap<VmId, Line>,
    source: Source,
    into: &VmId,
) -> Result<(Copy, Result<(), String>), String> {
    let writer = source.writer.clone();
    let line = writer.as_ref().and_then(|user| lines.get(&user.vm));
    let serial = writer.as_ref().map(|user| user.attached.serial.clone());
    let began = Instant::now();
    let held = match (line, &serial) {
        (Some(line), Some(serial)) => line.hold(serial).await,
        _ => Ok(()),
    };
    let (at, into) = (volumes.clone(), into.clone());
    let copied = blocking(move || at.copy(&source, &into)).await;
    if let (Some(line), Some(serial)) = (line, &serial) {
        line.release(serial);
    }
    // After that it may have gone on by itself.
    let late = began.elapsed() >= Duration::from_millis(HOLD_MAX_MS);
    let held = match held {
        Ok(()) if late => Err("the copy took longer than a guest stands still".to_owned()),
        other => other,
    };
    let settled =
        held.map_err(|why| format!("the copy is as after a power cut, not as after a sync: {why}"));
    Ok((copied?, settled))
}

/// What is left for the machines' next start, if anything.
async fn tell_growth(lines: &BTreeMap<VmId, Line>, users: &[User], bytes: u64) -> Option<String> {
    let mut trouble = None;
    for User { vm, attached } in users {
        // One that has ended meanwhile sees it when it starts.
        let Some(line) = lines.get(vm) else { continue };
        let mut told = line.resize(&attached.serial, bytes).await;
        if told.is_ok() && !attached.read_only {
            told = line.grow(&attached.serial, bytes).await;
        }
        if let Err(why) = told {
            trouble.get_or_insert(format!(
                "the volume has grown, and its machine sees that at its next start: {why}"
            ));
        }
    }
    trouble
}
