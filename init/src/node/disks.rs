//! The node's disks over the API: what is on them now, and taking those that the owner's signed plan names.
//!
//! Owns: looking at all disks, the check of a plan against them, and that a plan counts once.
//! Refuses: to touch any disk of a plan before each of them has been found to hold what the plan says.
//!
//! A node that runs from RAM goes on doing so: what runs there has its files in memory, and no file system can be put
//! beneath a running machine. Its pool is made at once, with the node's identity in it, and used from the next boot on.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use api::Envelope;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use storage::claim::{self, Taken};
use storage::disk::Disk;
use storage::mirrors;
use storage::plan::{POOL_MIN_BYTES, Standing, standing, unclaimable};
use storage::pools::Places;
use storage::probe::{Content, probe};
use storage::recognise::Foreign;
use tokio::sync::{Mutex, watch};
use types::claim::{Claimed, DiskClaim, NodeClaim};
use types::node::{DiskUse, Encryption, NodeDisks, NodeInfo, Partition, Pool};
use types::retire::Retirement;
use types::status::{Refusal, RefusalCode};
use types::{Bytes, Digest, PublicKey};

use super::custody::Custody;
use super::given_up::{self, GivenUp, Ill, Mark};
use super::{identity, mirror, patient, vigil};

/// Where a pool is mounted while it is being made beside the one in use.
const NEW_POOL: &str = "/run/sifr/new-pool";

/// Longest wait for a disk by an agent that is not the first of its boot: it need not spin up, and drivers try again after half a
/// minute. Who is given up wrongly costs its machines a start.
const START_WAIT: Duration = Duration::from_secs(60);
/// The same for who asks what is on the disks, and waits no longer than a minute himself.
pub(super) const LIST_WAIT: Duration = Duration::from_secs(20);
/// What is on a disk that has not answered in that time.
const SILENT: &str = "silent";

/// A disk and what is on it.
pub(crate) type Found = (Disk, Content);

/// What this agent has found, with wipes ended that a power cut had interrupted.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) found: Vec<Found>,
    /// Of those wipes.
    pub(crate) said: Vec<String>,
    /// Kernel names of disks that are in use and that the owner has had destroyed: an agent of this boot did not live to switch
    /// the machine off.
    pub(crate) retired: Vec<String>,
}

pub(crate) fn boot(owner: Option<&PublicKey>) -> anyhow::Result<Looked> {
    let disks = storage::disk::inventory(Path::new("/sys"))?;
    let (said, retired) = resume_all(&disks, owner);
    let found = disks.into_iter().map(content).collect();
    Ok(Looked {
        found,
        said,
        retired,
    })
}

/// The same in an agent that is not the first of its boot: a disk that does not answer is given up.
pub(crate) fn again(owner: Option<&PublicKey>) -> anyhow::Result<Looked> {
    let disks = storage::disk::inventory(Path::new("/sys"))?;
    let found = contents("boot", START_WAIT, disks);
    let (silent, answer): (Vec<&Found>, Vec<&Found>) =
        found.iter().partition(|(_, content)| is_silent(content));
    for (disk, _) in silent {
        given_up::add(Mark::of(disk), Ill::Hangs);
    }
    let answer: Vec<Disk> = answer.into_iter().map(|(disk, _)| disk.clone()).collect();
    let (said, retired) = resume_all(&answer, owner);
    // A wipe that has just ended has changed what is there.
    let found = match said.is_empty() {
        true => found,
        false => contents(
            "boot",
            START_WAIT,
            found.into_iter().map(|(disk, _)| disk).collect(),
        ),
    };
    Ok(Looked {
        found,
        said,
        retired,
    })
}

/// Disks beneath pools that are mounted, and do not answer: nobody is to touch those pools any more.
pub(crate) fn give_up_on_hanging(places: Places<'_>) -> anyhow::Result<()> {
    let disks = storage::disk::inventory(Path::new("/sys"))?;
    let end = Instant::now() + START_WAIT;
    let ask = |(disk, place): (&Disk, PathBuf)| {
        let (name, at) = (format!("flush {}", disk.name), place.clone());
        let asked = patient::begin(&name, move || drop(vigil::flush(&at)));
        (disk.clone(), place, asked)
    };
    let there = storage::pools::there(&disks, places);
    let asked: Vec<_> = there.into_iter().map(ask).collect();
    for (disk, place, asked) in asked {
        if asked.until(end).is_none() {
            given_up::add(Mark::of(&disk), Ill::Hangs);
            given_up::let_go(&place);
        }
    }
    Ok(())
}

fn is_silent(content: &Content) -> bool {
    *content == Content::Foreign(Foreign::named(SILENT))
}

/// What is on each, read at the same time. One that does not answer, or is given up because it hangs, is said to be silent.
/// `why` tells those apart who may ask at the same time: a disk that hangs keeps one thread of each.
pub(super) fn contents(why: &str, wait: Duration, disks: Vec<Disk>) -> Vec<Found> {
    let given_up = GivenUp::read();
    let end = Instant::now() + wait;
    let ask = |disk: Disk| {
        let (name, asked) = (format!("{why}: read {}", disk.name), disk.clone());
        let hangs = given_up.ill(&Mark::of(&disk)) == Some(Ill::Hangs);
        let begun = (!hangs).then(|| patient::begin(&name, move || content(asked)));
        (disk, begun)
    };
    let asked: Vec<_> = disks.into_iter().map(ask).collect();
    let silent = |disk: Disk| (disk, Content::Foreign(Foreign::named(SILENT)));
    let hear = |(disk, begun): (Disk, Option<patient::Begun<Found>>)| {
        let heard = begun.and_then(|begun| begun.until(end));
        heard.unwrap_or_else(|| silent(disk))
    };
    asked.into_iter().map(hear).collect()
}

/// Ends wipes that were interrupted. What is said of them, and the disks that are in use and destroyed.
fn resume_all(disks: &[Disk], owner: Option<&PublicKey>) -> (Vec<String>, Vec<String>) {
    let (mut said, mut retired) = (Vec::new(), Vec::new());
    for disk in disks {
        match resume(disk, owner) {
            Ok(Resumed::Nothing) => {}
            Ok(Resumed::Ended) => said.push(format!("the claim of {} was ended", disk.name)),
            Ok(Resumed::Retired) => retired.push(disk.name.clone()),
            Err(error) => said.push(format!(
                "the claim of {} goes on later: {error:#}",
                disk.name
            )),
        }
    }
    (said, retired)
}

pub(super) fn content(disk: Disk) -> Found {
    let opened = File::open(disk.device());
    let content = opened.and_then(|file| probe(&file, disk.size_bytes, disk.block_bytes));
    // A disk that cannot be read is somebody's until proven otherwise.
    let unreadable = |_| Content::Foreign(Foreign::named("unreadable"));
    let content = content.unwrap_or_else(unreadable);
    (disk, content)
}

/// What came of a wipe that was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resumed {
    /// There was none.
    Nothing,
    Ended,
    /// It is a decommission's, and the disk is in use still: the next boot ends it.
    Retired,
}

/// Ends a wipe that this owner has signed.
fn resume(disk: &Disk, owner: Option<&PublicKey>) -> anyhow::Result<Resumed> {
    // One that cannot be opened or read says so where it is looked at.
    let Ok(file) = File::open(disk.device()) else {
        return Ok(Resumed::Nothing);
    };
    let envelope = claim::unfinished(&file, disk.size_bytes).unwrap_or(None);
    let Some(consent) = envelope.and_then(|bytes| consent(&bytes, owner, &disk.serial)) else {
        return Ok(Resumed::Nothing);
    };
    match (Taken::open(disk), consent) {
        (Ok(taken), _) => taken.resume()?,
        (Err(error), Consent::Retirement) if error.is_in_use() => return Ok(Resumed::Retired),
        (Err(error), _) => return Err(error.into()),
    }
    Ok(Resumed::Ended)
}

/// What a wipe is done for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consent {
    Claim,
    Retirement,
}

/// A claim or a decommission of this owner that names the disk. Which node it named does not matter: one in RAM has another key now.
fn consent(envelope: &[u8], owner: Option<&PublicKey>, serial: &str) -> Option<Consent> {
    let envelope = Envelope::parse(envelope).ok()?;
    let is_owner = |key: &PublicKey| Some(key) == owner;
    let claimed = envelope.open_claim(is_owner);
    let retired = envelope.open_retirement(is_owner);
    if claimed.is_ok_and(|claim| claim.names(serial)) {
        return Some(Consent::Claim);
    }
    let names = |wish: Retirement| wish.disks.iter().any(|named| named == serial);
    retired.is_ok_and(names).then_some(Consent::Retirement)
}

/// [`report`] of each.
pub(crate) fn reports(
    found: &[Found],
    owner: Option<&PublicKey>,
    pools: &Standing,
) -> Vec<types::node::Disk> {
    let report = |found| report(found, owner, pools);
    found.iter().map(report).collect()
}

/// What the API says of a disk, but for its fingerprint.
pub(crate) fn report(
    (disk, content): &Found,
    owner: Option<&PublicKey>,
    pools: &Standing,
) -> types::node::Disk {
    let (used, because) = standing(disk, content, owner, pools);
    let partitions = match content {
        Content::Foreign(foreign) => foreign.partitions.as_slice(),
        Content::Blank | Content::Pool { .. } => &[],
    };
    let partition = |p: &storage::recognise::Partition| Partition {
        number: p.number,
        start: Bytes(p.start),
        size: Bytes(p.bytes),
        name: p.name.clone(),
        content: p.content(),
    };
    types::node::Disk {
        name: disk.name.clone(),
        serial: disk.serial.clone(),
        model: disk.model.clone(),
        class: disk.class,
        size: Bytes(disk.size_bytes),
        content: match used {
            DiskUse::Pool => "pool".to_owned(),
            DiskUse::Ready | DiskUse::OtherPool | DiskUse::LeftAlone => content.describe(owner),
        },
        partitions: partitions.iter().map(partition).collect(),
        used,
        because,
        encryption: encryption(disk, content),
        fingerprint: None,
    }
}

fn encryption(disk: &Disk, content: &Content) -> Option<Encryption> {
    match content {
        Content::Pool { .. } => {}
        Content::Blank | Content::Foreign(_) => return None,
    }
    let Some(outside) = storage::crypt::outside(disk) else {
        return Some(Encryption::Clear {});
    };
    let recovery = outside.recovery;
    Some(Encryption::Encrypted {
        uuid: outside.uuid,
        recovery: recovery.as_ref().map(|r| r.recipient.to_string()),
        sealed: recovery.map(|r| STANDARD.encode(r.sealed)),
    })
}

/// What a request needs to know of the node.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) key: PublicKey,
    pub(super) owner: Option<PublicKey>,
    pub(super) seed: [u8; 32],
    pub(super) custody: Custody,
    /// Without any in use the node runs from RAM.
    pub(super) pools: Standing,
}

pub(crate) struct Disks {
    pub(super) node: Node,
    pub(super) info: watch::Sender<NodeInfo>,
    pub(super) challenge: Cell<Digest>,
    /// Disks are read and wiped by one request at a time: who waits learns what is there then.
    pub(super) turn: Mutex<()>,
}

impl Disks {
    pub(crate) fn new(context: &super::context::NodeContext) -> anyhow::Result<Self> {
        let node = Node {
            key: context.key,
            owner: context.owner,
            seed: context.seed,
            pools: context.standing.clone(),
            custody: context.custody.clone(),
        };
        Ok(Self {
            node,
            info: context.info.clone(),
            challenge: Cell::new(draw().context("draw a challenge")?),
            turn: Mutex::new(()),
        })
    }

    pub(crate) async fn list(&self) -> Result<NodeDisks, Refusal> {
        let _turn = self.turn.lock().await;
        let node = self.node.clone();
        let mut disks = blocking(move || node.list().map_err(internal)).await?;
        // Whatever they call themselves today.
        for pool in &self.info.borrow().pools {
            let of_it = disks
                .iter_mut()
                .find(|d| pool.disk.as_ref() == Some(&d.name));
            of_it.into_iter().for_each(|disk| disk.class = pool.class);
        }
        for disk in &mut disks {
            let why = mirror::because(&self.info.borrow().pools, &disk.name);
            disk.because = why.or(disk.because.take());
        }
        Ok(NodeDisks {
            challenge: self.challenge.get(),
            disks,
            health: self.info.borrow().health.clone(),
        })
    }

    pub(crate) async fn claim(&self, envelope: Vec<u8>) -> Result<Claimed, Refusal> {
        let _turn = self.turn.lock().await;
        let owner = self.node.owner;
        let claim = Envelope::parse(&envelope)?.open_claim(|key| Some(*key) == owner)?;
        let part = claim.of(&self.node.key).ok_or_else(|| Refusal {
            code: RefusalCode::WrongNode,
            message: format!(
                "the claim names no disk of this node, whose key is {}",
                self.node.key
            ),
        })?;
        if part.challenge != self.challenge.get() {
            return Err(Refusal {
                code: RefusalCode::Replayed,
                message: "the plan was made before this node's last start or claim: list the disks and sign another"
                    .to_owned(),
            });
        }
        // Before anything is done: no outcome lets the plan count again.
        let next = draw().map_err(|error| internal(error.into()))?;
        let (node, part) = (self.node.clone(), part.clone());
        let pools = self.info.borrow().pools.clone();
        let (taken, disks) = blocking(move || {
            let taken = node.check(&part, &pools)?;
            let claimed = node.take(taken, &part, (&envelope, &pools));
            let mut disks = node.list().unwrap_or_default();
            disks.iter_mut().for_each(|disk| disk.fingerprint = None);
            Ok((claimed, disks))
        })
        .await?;
        self.challenge.set(next);
        self.info.send_modify(|info| info.disks = disks);
        taken
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| internal(error.into()))?
}

pub(super) fn draw() -> Result<Digest, sys::error::Error> {
    let mut bytes = [0; 32];
    sys::random::fill(&mut bytes)?;
    Ok(Digest(bytes))
}

pub(super) fn internal(error: anyhow::Error) -> Refusal {
    Refusal {
        code: RefusalCode::Internal,
        message: format!("{error:#}"),
    }
}

pub(super) fn changed(message: String) -> Refusal {
    Refusal {
        code: RefusalCode::DiskChanged,
        message: format!("{message}. Nothing was touched on any disk"),
    }
}

impl Node {
    fn list(&self) -> anyhow::Result<Vec<types::node::Disk>> {
        let disks = storage::disk::inventory(Path::new("/sys"))?;
        let (owner, pools) = (self.owner.as_ref(), &mirrors::amend(&self.pools, &disks));
        let row = |found: Found| {
            let mut row = report(&found, owner, pools);
            let (disk, content) = &found;
            if is_silent(content) {
                return row;
            }
            if unclaimable(disk, content, pools).is_none() || replaces(disk, content) {
                let file = File::open(disk.device());
                row.fingerprint = file.and_then(|file| print(&file, disk, content)).ok();
            }
            row
        };
        Ok(contents("list", LIST_WAIT, disks)
            .into_iter()
            .map(row)
            .collect())
    }

    /// All disks of a plan, each of which holds what the plan says. They stay ours until they are dropped.
    fn check(&self, part: &NodeClaim, pools: &[Pool]) -> Result<Vec<Taken>, Refusal> {
        let disks = storage::disk::inventory(Path::new("/sys")).map_err(|e| internal(e.into()))?;
        let old = part
            .disks
            .iter()
            .filter_map(|claim| claim.replaces.as_ref());
        for old in old {
            mirror::place_of(pools, old).map_err(changed)?;
        }
        let taken = part.disks.iter().map(|claim| self.check_one(claim, &disks));
        taken.collect()
    }

    fn check_one(&self, claim: &DiskClaim, disks: &[Disk]) -> Result<Taken, Refusal> {
        let disk = disks.iter().find(|disk| disk.serial == claim.serial);
        let disk = disk.ok_or_else(|| {
            changed(format!(
                "this node has no disk with the serial {}",
                claim.serial
            ))
        })?;
        // Of what is in use nothing can be taken, and it need not be read.
        let pools = mirrors::amend(&self.pools, disks);
        if pools.used.contains(&disk.name) {
            return Err(changed(format!("{} is a pool in use", disk.name)));
        }
        mirrors::release(disk);
        let taken = Taken::open(disk).map_err(|error| changed(sys::error::chain(&error)))?;
        let found = probe(taken.file(), disk.size_bytes, disk.block_bytes);
        let content = found.map_err(|error| changed(format!("read {}: {error}", disk.name)))?;
        let comes = claim.replaces.is_some() && replaces(disk, &content);
        if let (false, Some(why)) = (comes, unclaimable(disk, &content, &pools)) {
            return Err(changed(why));
        }
        let now = print(taken.file(), disk, &content);
        let now = now.map_err(|error| changed(format!("read {}: {error}", disk.name)))?;
        if now != claim.content {
            let (name, serial) = (&disk.name, &disk.serial);
            let (held, holds) = (&claim.held, content.describe(self.owner.as_ref()));
            return Err(changed(format!(
                "{name} (serial {serial}) has changed since the plan was made: it held {held}, and holds {holds} now"
            )));
        }
        Ok(taken)
    }

    /// From here on disks change. Where one fails, those before it are done.
    fn take(
        &self,
        taken: Vec<Taken>,
        part: &NodeClaim,
        (envelope, pools): (&[u8], &[Pool]),
    ) -> Result<Claimed, Refusal> {
        for disk in &taken {
            disk.wipe(envelope)
                .with_context(|| format!("claim the disk {}", disk.disk().serial))
                .map_err(internal)?;
            log::info!("{} was claimed and is blank", disk.disk().name);
        }
        let disks: Vec<Disk> = taken.iter().map(|taken| taken.disk().clone()).collect();
        // The file system is made by a program that wants the disk for itself.
        drop(taken);
        let mut free = disks.clone();
        for claim in &part.disks {
            let new = disks.iter().find(|disk| disk.serial == claim.serial);
            let (Some(old), Some(new)) = (&claim.replaces, new) else {
                continue;
            };
            free.retain(|disk| disk.name != new.name);
            self.replace(old, new, pools)?;
        }
        Ok(Claimed {
            disks: disks.iter().map(|disk| disk.serial.clone()).collect(),
            pool: self.make_pool(free),
            reboots: part.reboot,
        })
    }

    /// A disk that is blank by now comes into a mirror.
    fn replace(&self, old: &str, new: &Disk, pools: &[Pool]) -> Result<(), Refusal> {
        let disks = storage::disk::inventory(Path::new("/sys")).map_err(|e| internal(e.into()))?;
        let array = mirror::place_of(pools, old).map_err(changed)?;
        let owner = self.owner.as_ref();
        let owner = owner.ok_or_else(|| internal(anyhow!("no owner key")))?;
        let old = disks.iter().find(|disk| disk.serial == old);
        mirrors::replace(array, old, new, &disks, owner).map_err(|error| internal(error.into()))?;
        log::info!("{} comes into the mirror {array}", new.name);
        Ok(())
    }

    /// On a node without a pool. Serial of its disk.
    fn make_pool(&self, mut disks: Vec<Disk>) -> Option<String> {
        if !self.pools.used.is_empty() {
            return None;
        }
        disks.retain(|disk| disk.size_bytes >= POOL_MIN_BYTES);
        disks.sort_by(|a, b| a.serial.cmp(&b.serial));
        let disk = disks.first()?;
        match self.make_pool_on(disk) {
            Ok(()) => Some(disk.serial.clone()),
            // The disk is blank or marked: the next boot makes the pool.
            Err(error) => {
                log::error!("make the pool on {}: {error:#}", disk.name);
                None
            }
        }
    }

    fn make_pool_on(&self, disk: &Disk) -> anyhow::Result<()> {
        let mountpoint = Path::new(NEW_POOL);
        fs::create_dir_all(mountpoint)?;
        let owner = self.owner.as_ref().ok_or_else(|| anyhow!("no owner key"))?;
        // Whoever has pinned this node's key finds the same node after the reboot: there is no moment at which the pool
        // is one and has no key, or the next boot would draw another.
        let key = |pool: &Path| Ok(identity::keep(pool, &self.seed)?);
        storage::pool::make_with(disk, owner, &self.custody, mountpoint, &key)?;
        sys::mount::unmount(mountpoint)?;
        storage::crypt::close(disk);
        Ok(())
    }
}

/// Whether a disk without content can come in place of another.
fn replaces(disk: &Disk, content: &Content) -> bool {
    let named = types::claim::is_serial(&disk.serial) && disk.objection().is_none();
    named && *content == Content::Blank
}

fn print(file: &File, disk: &Disk, content: &Content) -> std::io::Result<Digest> {
    // The owner's own pools are told apart by their bytes.
    let words = content.describe(None);
    claim::fingerprint(file, disk.size_bytes, disk.block_bytes, &words)
}

/// Any disk, for tests.
#[cfg(test)]
pub(crate) fn a_disk(name: &str, serial: &str) -> Disk {
    Disk {
        name: name.to_owned(),
        serial: serial.to_owned(),
        model: String::new(),
        class: types::node::DiskClass::Ssd,
        size_bytes: 1 << 30,
        removable: false,
        read_only: false,
        block_bytes: 512,
        sharing: storage::disk::Sharing::None,
    }
}

#[cfg(test)]
mod tests {
    use api::SecretKey;
    use types::claim::Claim;

    use super::*;

    fn envelope(key: &SecretKey, serial: &str) -> Vec<u8> {
        let disk = DiskClaim {
            serial: serial.to_owned(),
            content: Digest([1; 32]),
            held: "ext4 file system".to_owned(),
            replaces: None,
        };
        let node = NodeClaim {
            node: PublicKey([9; 32]),
            challenge: Digest([2; 32]),
            disks: vec![disk],
            reboot: false,
        };
        let claim = Claim { nodes: vec![node] };
        let sealed = Envelope::seal_claim(key, &claim).expect("sealed");
        sealed.to_json()
    }

    fn wish(key: &SecretKey, serial: &str) -> Vec<u8> {
        let wish = Retirement {
            node: PublicKey([9; 32]),
            challenge: Digest([2; 32]),
            disks: vec![serial.to_owned()],
        };
        let sealed = Envelope::seal_retirement(key, &wish).expect("sealed");
        sealed.to_json()
    }

    #[test]
    fn a_wipe_goes_on_only_with_the_owners_signature_over_this_very_disk() {
        let (owner, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let public = owner.public();
        let signed = envelope(&owner, "A");
        for (signed, of_other, kind) in [
            (signed, envelope(&other, "A"), Consent::Claim),
            (wish(&owner, "A"), wish(&other, "A"), Consent::Retirement),
        ] {
            assert_eq!(consent(&signed, Some(&public), "A"), Some(kind));
            assert_eq!(consent(&signed, Some(&public), "B"), None);
            assert_eq!(consent(&signed, Some(&other.public()), "A"), None);
            assert_eq!(consent(&signed, None, "A"), None);
            assert_eq!(consent(&of_other, Some(&public), "A"), None);
            for cut in [0, 1, signed.len() / 2, signed.len() - 1] {
                assert_eq!(consent(&signed[..cut], Some(&public), "A"), None);
            }
        }
    }
}
