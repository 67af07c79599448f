//! Unlocking a pool that this machine cannot open, and the end of a node's disks.
//!
//! Owns: the check of both wishes against the disks that are there, and the receipt.
//! Refuses: destroying anything before the owner's signed wish lies on each of its disks: a power cut then goes on with
//! it at the next boot.

use std::path::Path;

use anyhow::Context;
use api::{Envelope, SecretKey};
use storage::disk::Disk;
use storage::probe::{Content, owner_mark};
use storage::{claim, crypt};
use types::Bytes;
use types::retire::{Destroyed, Method, PASSPHRASE_MAX, Receipt, Retirement, Unlock, Unlocked};
use types::status::{Refusal, RefusalCode};

use super::disks::{Disks, Node, blocking, changed, content, draw, internal};

impl Disks {
    /// The node must start again after this.
    pub(crate) async fn unlock(&self, unlock: Unlock) -> Result<Unlocked, Refusal> {
        let _turn = self.turn.lock().await;
        let node = self.node.clone();
        blocking(move || node.unlock(&unlock)).await
    }

    /// The signed receipt. The machine must be switched off after this.
    pub(crate) async fn decommission(&self, envelope: Vec<u8>) -> Result<Envelope, Refusal> {
        let _turn = self.turn.lock().await;
        let owner = self.node.owner;
        let wish = Envelope::parse(&envelope)?.open_retirement(|key| Some(*key) == owner)?;
        if wish.node != self.node.key {
            return Err(Refusal {
                code: RefusalCode::WrongNode,
                message: format!(
                    "the wish is for node {}, this one is {}",
                    wish.node, self.node.key
                ),
            });
        }
        if wish.challenge != self.challenge.get() {
            return Err(Refusal {
                code: RefusalCode::Replayed,
                message: "the wish was signed before this node's last start or claim: list the disks and sign another"
                    .to_owned(),
            });
        }
        // Before anything is done: no outcome lets the wish count again.
        let next = draw().map_err(|error| internal(error.into()))?;
        self.challenge.set(next);
        let synchronised = self.info.borrow().clock.synchronised;
        let node = self.node.clone();
        blocking(move || node.decommission(&wish, &envelope, synchronised)).await
    }
}

impl Node {
    fn unlock(&self, unlock: &Unlock) -> Result<Unlocked, Refusal> {
        if unlock.passphrase.len() > PASSPHRASE_MAX {
            let message = format!("a passphrase has at most {PASSPHRASE_MAX} bytes");
            return Err(refusal(RefusalCode::Malformed, message));
        }
        let disk = self.own_disk(&unlock.serial)?;
        if self.pools.used.contains(&disk.name) {
            let message = format!("the pool on {} is open already", disk.name);
            return Err(refusal(RefusalCode::Conflict, message));
        }
        crypt::unlock(&disk, &unlock.passphrase, &self.custody).map_err(|error| {
            let code = match &error {
                crypt::CryptError::Passphrase(_) | crypt::CryptError::NotEncrypted(_) => {
                    RefusalCode::Conflict
                }
                _ => RefusalCode::Internal,
            };
            refusal(code, sys::error::chain(&error))
        })?;
        log::info!(
            "the pool on {} is opened by this machine from now on",
            disk.name
        );
        Ok(Unlocked {
            serial: disk.serial,
        })
    }

    fn decommission(
        &self,
        wish: &Retirement,
        envelope: &[u8],
        synchronised: bool,
    ) -> Result<Envelope, Refusal> {
        // All of them are there, or none is touched.
        let disks = wish.disks.iter().map(|serial| self.own_disk(serial));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        for disk in &disks {
            claim::begin(disk, envelope)
                .with_context(|| format!("begin with the disk {}", disk.serial))
                .map_err(internal)?;
        }
        let mut destroyed = Vec::new();
        for disk in &disks {
            let erased = crypt::erase(disk)
                .with_context(|| format!("destroy the keys of the disk {}", disk.serial))
                .map_err(internal)?;
            log::info!("the beginning of the pool on {} is destroyed", disk.name);
            destroyed.push(Destroyed {
                serial: disk.serial.clone(),
                model: disk.model.clone(),
                size: Bytes(disk.size_bytes),
                method: match erased.encrypted {
                    true => Method::CryptoErase,
                    false => Method::BeginningOnly,
                },
                uuid: erased.uuid,
                overwritten: Bytes(erased.bytes),
                discarded: erased.discarded,
            });
        }
        let receipt = Receipt {
            node: self.key,
            challenge: wish.challenge,
            time_ms: u64::try_from(sys::clock::realtime().as_millis()).unwrap_or(u64::MAX),
            synchronised,
            disks: destroyed,
        };
        Ok(Envelope::seal_receipt(
            &SecretKey::from_seed(self.seed),
            &receipt,
        )?)
    }

    /// The one disk of this serial that has a pool of this owner.
    fn own_disk(&self, serial: &str) -> Result<Disk, Refusal> {
        let disks = storage::disk::inventory(Path::new("/sys")).map_err(|e| internal(e.into()))?;
        let mut found = disks.into_iter().filter(|disk| disk.serial == serial);
        let (Some(disk), None) = (found.next(), found.next()) else {
            return Err(changed(format!(
                "this node has no disk, or several, with the serial {serial}"
            )));
        };
        let (disk, content) = content(disk);
        let ours = self.owner.as_ref().map(owner_mark);
        match &content {
            Content::Pool { owner, .. } if Some(owner) == ours.as_ref() => Ok(disk),
            Content::Pool { .. } | Content::Blank | Content::Foreign(_) => Err(changed(format!(
                "{} holds no pool of this owner, but: {}",
                disk.name,
                content.describe(self.owner.as_ref())
            ))),
        }
    }
}

fn refusal(code: RefusalCode, message: String) -> Refusal {
    Refusal { code, message }
}
