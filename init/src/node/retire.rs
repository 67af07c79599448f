//! Unlocking a pool that this machine cannot open, and the end of a node's disks.
//!
//! Owns: the check of both wishes against the disks that are there, and the receipt.
//! Refuses: destroying anything before the owner's signed wish lies on each of its disks: a power cut then goes on with
//! it at the next boot. And taking anything from then on, in this agent or, by the wish on the disks, in the next one of this
//! boot, which switches the machine off in its place.

use std::path::Path;

use api::{Envelope, SecretKey};
use storage::claim;
use storage::crypt::{self, Erased};
use storage::disk::Disk;
use storage::probe::{Content, owner_mark};
use tokio::sync::watch;
use types::Bytes;
use types::node::{DiskUse, NodeInfo, PoolState};
use types::retire::{
    Destroyed, Method, PASSPHRASE_MAX, Receipt, Remaining, Retirement, Unlock, Unlocked,
};
use types::status::{Refusal, RefusalCode};
use types::trouble::Code;
use zeroize::Zeroizing;

use super::disks::{Disks, Node, blocking, changed, content, draw, internal};
use super::server::refusal;
use super::troubles;

/// Nothing that is taken from now on would be there after this boot.
pub(crate) fn says(info: &watch::Sender<NodeInfo>, disks: &[String]) {
    let message = format!(
        "the owner has had this node's disks destroyed ({}): it takes nothing more and switches itself off",
        disks.join(", ")
    );
    log::warn!("{message}");
    troubles::say(info, Code::Decommissioned, message);
}

/// Whether what is taken now stands after this boot.
pub(crate) fn stands(info: &NodeInfo) -> Result<(), Refusal> {
    let mut all = info.troubles.iter();
    match all.find(|trouble| trouble.code == Code::Decommissioned) {
        None => Ok(()),
        Some(trouble) => Err(refusal(
            RefusalCode::Decommissioned,
            trouble.message.clone(),
        )),
    }
}

impl Disks {
    /// The node must start again after this.
    pub(crate) async fn unlock(&self, unlock: Unlock) -> Result<Unlocked, Refusal> {
        let Unlock { serial, passphrase } = unlock;
        let passphrase = Zeroizing::new(passphrase);
        let _turn = self.turn.lock().await;
        let node = self.node.clone();
        blocking(move || node.unlock(&serial, &passphrase)).await
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
        let mut receipt = {
            let info = self.info.borrow();
            Receipt {
                node: self.node.key,
                challenge: wish.challenge,
                time_ms: 0,
                synchronised: info.clock.synchronised,
                disks: Vec::new(),
                remaining: remaining(&info, &wish),
            }
        };
        let (node, info) = (self.node.clone(), self.info.clone());
        blocking(move || {
            node.decommission((&wish, &envelope), &mut receipt, &info)?;
            let key = SecretKey::from_seed(node.seed);
            Ok(Envelope::seal_receipt(&key, &receipt)?)
        })
        .await
    }
}

impl Node {
    fn unlock(&self, serial: &str, passphrase: &str) -> Result<Unlocked, Refusal> {
        if passphrase.len() > PASSPHRASE_MAX {
            let message = format!("a passphrase has at most {PASSPHRASE_MAX} bytes");
            return Err(refusal(RefusalCode::Malformed, message));
        }
        let disk = self.own_disk(serial)?;
        if self.pools.used.contains(&disk.name) {
            let message = format!("the pool on {} is open already", disk.name);
            return Err(refusal(RefusalCode::Conflict, message));
        }
        crypt::unlock(&disk, passphrase, &self.custody).map_err(|error| {
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

    /// From here on disks change. Where one fails, the others are destroyed none the less, and the receipt says so.
    fn decommission(
        &self,
        (wish, envelope): (&Retirement, &[u8]),
        receipt: &mut Receipt,
        info: &watch::Sender<NodeInfo>,
    ) -> Result<(), Refusal> {
        // All of them are there, or none is touched.
        let disks = wish.disks.iter().map(|serial| self.own_disk(serial));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let begun = |disk: &Disk| claim::begin(disk, envelope).map_err(|e| sys::error::chain(&e));
        says(info, &wish.disks);
        let begun: Vec<_> = disks.iter().map(begun).collect();
        if begun.iter().all(Result::is_err) {
            troubles::over(info, Code::Decommissioned);
        }
        for (disk, begun) in disks.iter().zip(begun) {
            let erased = begun.and_then(|()| {
                let next = "; the next boot of this node wipes it";
                crypt::erase(disk).map_err(|error| sys::error::chain(&error) + next)
            });
            match erased {
                Ok(erased) => {
                    log::info!("the beginning of the pool on {} is destroyed", disk.name);
                    receipt.disks.push(destroyed(disk, erased));
                }
                Err(why) => {
                    log::error!("the pool on {} is not destroyed: {why}", disk.name);
                    let serial = disk.serial.clone();
                    receipt.remaining.push(Remaining { serial, why });
                }
            }
        }
        receipt.time_ms = u64::try_from(sys::clock::realtime().as_millis()).unwrap_or(u64::MAX);
        match (receipt.disks.as_slice(), receipt.remaining.last()) {
            ([], Some(failed)) => Err(refusal(RefusalCode::Internal, failed.why.clone())),
            _ => Ok(()),
        }
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

fn destroyed(disk: &Disk, erased: Erased) -> Destroyed {
    Destroyed {
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
    }
}

/// What the wish leaves: pools that it does not name, and those whose disks are not there.
fn remaining(info: &NodeInfo, wish: &Retirement) -> Vec<Remaining> {
    let away = info.pools.iter().filter(|pool| match pool.state {
        PoolState::Missing => true,
        PoolState::InUse | PoolState::Failed => false,
    });
    let away = away.map(|pool| Remaining {
        serial: pool.serial.clone(),
        why: pool.because.clone().unwrap_or_default(),
    });
    let there = info.disks.iter().filter(|disk| match disk.used {
        DiskUse::Pool | DiskUse::OtherPool => disk.encryption.is_some(),
        DiskUse::Ready | DiskUse::LeftAlone => false,
    });
    let there = there.filter(|disk| !wish.disks.contains(&disk.serial));
    let there = there.map(|disk| Remaining {
        serial: disk.serial.clone(),
        why: "the wish does not name it".to_owned(),
    });
    away.chain(there).collect()
}

#[cfg(test)]
mod tests {
    use types::node::{DiskClass, Encryption, Pool};
    use types::{Digest, PublicKey};

    use super::*;

    /// Whoever reads it must not take a node for empty of which a disk lies in a drawer.
    #[test]
    fn a_receipt_names_the_pools_that_it_says_nothing_of() {
        let mut info = crate::node::dashboard::tests::info();
        let disk = |serial: &str, used, encryption: Option<Encryption>| types::node::Disk {
            name: serial.to_lowercase(),
            serial: serial.to_owned(),
            model: String::new(),
            class: DiskClass::Ssd,
            size: Bytes::gib(1),
            content: "pool".to_owned(),
            partitions: Vec::new(),
            used,
            because: None,
            encryption,
            fingerprint: None,
        };
        let pool = Some(Encryption::Clear {});
        info.disks = vec![
            disk("NAMED", DiskUse::Pool, pool.clone()),
            disk("LEFT", DiskUse::OtherPool, pool.clone()),
            disk("BLANK", DiskUse::OtherPool, None),
            disk("FOREIGN", DiskUse::LeftAlone, None),
        ];
        info.pools = vec![Pool {
            id: "0".to_owned(),
            disk: None,
            serial: "AWAY".to_owned(),
            class: DiskClass::Ssd,
            state: PoolState::Missing,
            size: Bytes(0),
            free: Bytes(0),
            because: Some("it is not there".to_owned()),
            mirror: None,
        }];
        let wish = Retirement {
            node: PublicKey([1; 32]),
            challenge: Digest([2; 32]),
            disks: vec!["NAMED".to_owned()],
        };
        let remaining = remaining(&info, &wish);
        let serials: Vec<_> = remaining.iter().map(|r| r.serial.as_str()).collect();
        assert_eq!(serials, ["AWAY", "LEFT"]);
        assert_eq!(remaining[0].why, "it is not there");
    }
}
