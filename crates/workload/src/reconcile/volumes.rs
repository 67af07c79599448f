//! The reconciler's volumes: what is done with them, and who waits for that.
//!
//! Owns: which machine has which volume, and that none has one before it is as it should be.
//! Refuses: the state of a single volume ([`crate::volume`] has it).

use std::collections::BTreeMap;

use types::deployment::{Action, Deployment, Machine as Spec};
use types::status::{Refusal, RefusalCode, VolumeStatus};
use types::volume::{Mount, serial};
use types::{Name, VmId, VolumeId};

use super::{Reconciler, earlier};
use crate::desired::{Key, Target, Verified};
use crate::host::{Attached, Attachment, Source, Step, User, VolumeOnPool};
use crate::machine::{self, Machine};
use crate::volume::{self, Intent, Use, Volume};

impl Reconciler {
    /// What the pool holds of volumes. To be said before the first plan.
    pub fn find_volumes(&mut self, found: impl IntoIterator<Item = (VolumeId, VolumeOnPool)>) {
        for (id, pool) in found {
            let owner = match &pool {
                VolumeOnPool::Record(record) => Some((record.key(), record.workload.clone())),
                VolumeOnPool::Unreadable(_) => {
                    let mut wanted = self.desired.volumes();
                    let wanted = wanted.find(|(wanted, _)| *wanted == id);
                    wanted.map(|(_, of)| (of.key.clone(), of.workload.clone()))
                }
            };
            // Unreadable and unknown: there is nothing to say about it and nothing to do.
            if let Some((key, workload)) = owner {
                self.volumes
                    .insert(id, Volume::new(key, workload, Some(pool)));
            }
        }
    }

    pub(super) fn add_wanted_volumes(&mut self) {
        for (id, wanted) in self.desired.volumes() {
            let new = || Volume::new(wanted.key.clone(), wanted.workload.clone(), None);
            self.volumes.entry(id).or_insert_with(new);
        }
    }

    pub(super) fn with_volume(&mut self, id: &VolumeId, act: impl FnOnce(&mut Volume)) {
        if let Some(volume) = self.volumes.get_mut(id) {
            act(volume);
        }
    }

    fn intent_of(&self, volume: &Volume) -> Intent<'_> {
        let target = self.desired.get(&volume.key);
        Intent::of(target, &volume.workload, self.draining)
    }

    /// Machines whose VM has the volume.
    fn users(&self, id: &VolumeId) -> Vec<Use> {
        let uses = |(vm, machine): (&VmId, &Machine)| {
            let attached = machine.attached().iter().find(|a| a.volume == *id)?;
            Some(self.use_by(vm, machine, attached))
        };
        self.machines.iter().filter_map(uses).collect()
    }

    /// Of every volume that is in use: machines are looked through once, not once for each volume.
    fn all_users(&self) -> BTreeMap<VolumeId, Vec<Use>> {
        let mut users: BTreeMap<VolumeId, Vec<Use>> = BTreeMap::new();
        for (vm, machine) in &self.machines {
            for attached in machine.attached() {
                let of = users.entry(attached.volume.clone()).or_default();
                of.push(self.use_by(vm, machine, attached));
            }
        }
        users
    }

    fn use_by(&self, vm: &VmId, machine: &Machine, attached: &Attached) -> Use {
        Use {
            vm: vm.clone(),
            machine: machine.workload.clone(),
            attached: attached.clone(),
            running: machine.is_running() && !self.is_to_stop(machine),
        }
    }

    /// It is about to be told to stop: its guest hears nothing else then.
    fn is_to_stop(&self, machine: &Machine) -> bool {
        let target = self.desired.get(&machine.key);
        let intent = machine::Intent::of(target, &machine.workload, self.draining);
        // Of one that runs, time makes no difference.
        machine.next(&intent, 0) == machine::Action::Stop
    }

    pub(super) fn plan_volumes(&mut self, now: u64, deadline: &mut Option<u64>) -> Vec<Step> {
        let ids: Vec<VolumeId> = self.volumes.keys().cloned().collect();
        // No step of a volume changes who has another.
        let users = self.all_users();
        let users = |id| users.get(id).map_or(&[][..], Vec::as_slice);
        let plan = |id| self.plan_volume(id, users(id), now, deadline);
        ids.iter().filter_map(plan).collect()
    }

    fn plan_volume(
        &mut self,
        id: &VolumeId,
        users: &[Use],
        now: u64,
        deadline: &mut Option<u64>,
    ) -> Option<Step> {
        let volume = self.volumes.get(id)?;
        let action = volume.next(&self.intent_of(volume), users, now);
        let step = match action {
            volume::Action::Make => match self.make(volume) {
                Ok(step) => step?,
                Err(message) => {
                    self.with_volume(id, |volume| volume.waits(&message));
                    return None;
                }
            },
            volume::Action::Change(step) => Step::Change(step),
            volume::Action::Erase => {
                self.with_volume(id, Volume::erasing);
                return Some(Step::Erase { volume: id.clone() });
            }
            volume::Action::Wait(at) => {
                at.into_iter().for_each(|at| earlier(deadline, at));
                return None;
            }
            volume::Action::Drop => {
                self.volumes.remove(id);
                return None;
            }
        };
        self.with_volume(id, Volume::changing);
        Some(step)
    }

    /// The step that makes a volume, or what it waits for.
    fn make(&self, volume: &Volume) -> Result<Option<Step>, String> {
        let Some(target) = self.desired.get(&volume.key) else {
            return Ok(None);
        };
        let Some(spec) = target.volume(&volume.workload) else {
            return Ok(None);
        };
        let from = match &spec.from {
            None => None,
            Some(origin) => Some(self.source(&volume.key, target, origin)?),
        };
        let step = volume.making(spec, target, from);
        Ok(Some(Step::Change(Box::new(step))))
    }

    fn source(
        &self,
        key: &Key,
        target: &Target,
        origin: &types::volume::Origin,
    ) -> Result<Source, String> {
        let name = &origin.volume;
        let waits = || format!("it waits for {name}, of which it is made");
        let id = VmId::new(&key.signer, &key.name, name);
        let source = self.volumes.get(&id).ok_or_else(waits)?;
        let record = source.source().ok_or_else(waits)?;
        let snapshot = match &origin.snapshot {
            None => None,
            Some(snapshot) => {
                let version = target.history(name).snapshots.get(snapshot).copied();
                let taken = version.filter(|version| record.snapshots.contains_key(version));
                Some(taken.ok_or_else(|| {
                    format!("it waits for the snapshot {name}@{snapshot}, of which it is made")
                })?)
            }
        };
        let users = self.users(&id);
        let mut writers = users.iter().filter(|user| !user.attached.read_only);
        let writer = writers.next().filter(|_| snapshot.is_none());
        if writer.is_some_and(|writer| !writer.running) {
            return Err(waits());
        }
        Ok(Source {
            volume: id,
            record: record.clone(),
            snapshot,
            writer: writer.map(|user| User {
                vm: user.vm.clone(),
                attached: user.attached.clone(),
            }),
        })
    }

    /// What a machine that is to start gets, or what it waits for.
    pub(super) fn attachments(
        &self,
        vm: &VmId,
        machine: &Machine,
        target: &Target,
        spec: &Spec,
    ) -> Result<Vec<Attachment>, String> {
        let attachment = |(place, mount): (usize, &Mount)| {
            let name = &mount.volume;
            let id = VmId::new(&machine.key.signer, &machine.key.name, name);
            let missing = || format!("it waits for its volume {name}");
            let volume = self.volumes.get(&id).ok_or_else(missing)?;
            let record = volume.ready(&self.intent_of(volume))?;
            let others = self.users(&id);
            let mut others = others.iter().filter(|user| user.vm != *vm);
            // One who has it from the version before.
            if let Some(other) = others.find(|o| !(o.attached.read_only && mount.read_only)) {
                let other = &other.machine;
                return Err(format!(
                    "it waits for its volume {name}, which {other} still has"
                ));
            }
            let limits = target.volume(name).and_then(|volume| volume.limits);
            Ok(Attachment {
                attached: Attached {
                    volume: id,
                    serial: serial(place),
                    read_only: mount.read_only,
                },
                name: name.clone(),
                path: mount.path.clone(),
                limit: limits.map(|limits| limits.limit()),
                record: record.clone(),
            })
        };
        spec.mounts.iter().enumerate().map(attachment).collect()
    }

    pub(super) fn volume_statuses(&self, key: &Key) -> BTreeMap<Name, VolumeStatus> {
        let own = self.volumes.iter().filter(|(_, volume)| volume.key == *key);
        own.map(|(id, volume)| {
            let status = volume.status(&self.intent_of(volume), &self.users(id));
            (volume.workload.clone(), status)
        })
        .collect()
    }

    pub(super) fn all_volume_statuses(&self) -> BTreeMap<&Key, BTreeMap<Name, VolumeStatus>> {
        let (users, mut out) = (self.all_users(), BTreeMap::new());
        for (id, volume) in &self.volumes {
            let users = users.get(id).map_or(&[][..], Vec::as_slice);
            let status = volume.status(&self.intent_of(volume), users);
            let of: &mut BTreeMap<_, _> = out.entry(&volume.key).or_default();
            of.insert(volume.workload.clone(), status);
        }
        out
    }

    /// Why a statement has to wait for what an earlier one has begun: a volume that is made anew must not be the one
    /// that was destroyed, and a snapshot does not go while it is being copied back.
    pub fn in_the_way(&self, verified: &Verified) -> Option<Refusal> {
        let key = verified.key();
        let message = match &verified.statement.action {
            Action::Deploy(deployment) => {
                let leaving = self.leaving(&key, deployment)?;
                format!(
                    "the volume {leaving} of before is still being removed: try again in a moment"
                )
            }
            Action::DropSnapshot { volume, snapshot } => {
                let id = VmId::new(&key.signer, &key.name, volume);
                let history = self.desired.get(&key)?.history(volume);
                let version = history.snapshots.get(snapshot)?;
                let needed = self.volumes.get(&id)?.is_needed(&history, *version);
                needed.then_some(())?;
                format!("{volume} is being restored from {snapshot}: try again when that is done")
            }
            Action::Stop
            | Action::Start
            | Action::Restart
            | Action::Delete
            | Action::Destroy { .. }
            | Action::Snapshot { .. }
            | Action::Restore { .. } => return None,
        };
        Some(Refusal {
            code: RefusalCode::Conflict,
            message,
        })
    }

    fn leaving<'d>(&self, key: &Key, deployment: &'d Deployment) -> Option<&'d Name> {
        let is_leaving = |name: &&Name| {
            let id = VmId::new(&key.signer, &key.name, name);
            let volume = self.volumes.get(&id);
            // Of a deployment that was deleted, the incarnation tells old from new.
            let living = self
                .desired
                .get(key)
                .is_some_and(|t| t.deployment().is_some());
            living && volume.is_some_and(|volume| volume.is_leaving(&self.intent_of(volume)))
        };
        deployment.volumes().map(|(name, _)| name).find(is_leaving)
    }
}
