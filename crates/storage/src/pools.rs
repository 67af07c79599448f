//! All pools of the node: found, made, mounted, and each put in its place.
//!
//! Owns: the mount points, and the order in which disks are made pools. Refuses: deciding which pool is what
//! ([`crate::assemble`] does), what is in them (the caller says), and to become another node where a pool of this owner is
//! there and cannot be used.
//!
//! The first pool lies where a node's only one does. Every other is mounted beside, under the name of its disk.

use std::fs;
use std::path::{Path, PathBuf};

use types::PublicKey;

use crate::assemble::{Assembly, History, Outline, Role, Seen, Trace, assemble};
use crate::crypt::{self, CryptError, Keys};
use crate::disk::Disk;
use crate::marker;
use crate::mirrors::{self, Layout, Mirrored};
use crate::plan::{Addition, Choice, LeftAlone, Place, Standing, additions, choose};
use crate::pool::{self, Pool, PoolError};
use crate::probe::{Content, Stage, owner_mark};
use crate::roster::{Member, PoolId, Roster};

/// What is in a pool. The caller knows how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    pub identity: Trace,
    /// `None`: the ledger cannot be read, or need not be.
    pub history: Option<History>,
    /// Pools that machines' data lies on, as far as this one knows.
    pub named: Vec<PoolId>,
}

/// How much of a pool is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It is the only one: its ledger need not be compared with another.
    Alone,
    Beside,
}

pub type Inspect<'a> = &'a dyn Fn(&Path, Depth) -> Inside;

/// Where pools are mounted.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    pub first: &'a Path,
    /// A directory; each further pool has one in it.
    pub beside: &'a Path,
}

/// A pool of the node beside the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Further {
    pub id: PoolId,
    /// Kernel name of its disk.
    pub disk: String,
    pub mountpoint: PathBuf,
    /// What was done to it on the way, which is nothing wrong.
    pub remark: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    /// Its problems are those of all.
    pub first: Pool,
    /// It lay there already: an earlier agent has mounted it.
    pub adopted: bool,
    pub further: Vec<Further>,
    pub left: Vec<LeftAlone>,
    /// Pools of the node that are not there.
    pub missing: Vec<Member>,
    /// Kernel names of disks that have a pool in common with one in use.
    pub mates: Vec<String>,
    /// What every pool is to say of the others. `None` in memory, and where an earlier agent has seen to it.
    pub outline: Option<Outline>,
}

impl Pools {
    fn only(first: Pool) -> Self {
        Self {
            first,
            adopted: false,
            further: Vec::new(),
            left: Vec::new(),
            missing: Vec::new(),
            mates: Vec::new(),
            outline: None,
        }
    }

    pub fn standing(&self) -> Standing {
        let first = self.first.disk.iter();
        let further = self.further.iter().map(|further| &further.disk);
        Standing {
            used: first.chain(further).chain(&self.mates).cloned().collect(),
            left: self.left.clone(),
        }
    }
}

/// Opens or makes the node's pools. Called again after a restart of the node agent it finds its own mounts and keeps them
/// whatever would be chosen now: VMs run from them. Disks that came since then join them by the rules of a boot, and
/// where the first pool's disk has gone, another becomes the first. Where nothing was mounted before, nothing is after an
/// error.
pub fn open(
    found: &[(Disk, Content)],
    owner: Option<&PublicKey>,
    (keys, layout): (&dyn Keys, Layout),
    places: Places<'_>,
    inspect: Inspect<'_>,
) -> Result<Pools, PoolError> {
    let all: Vec<Disk> = found.iter().map(|(disk, _)| disk.clone()).collect();
    let mut pools = open_all(found, owner, (keys, layout), places, inspect)?;
    pools.mates = mates(&pools, &all);
    Ok(pools)
}

/// Other disks of the mirrors that pools in use lie on.
fn mates(pools: &Pools, disks: &[Disk]) -> Vec<String> {
    let first = std::iter::once(&pools.first.mountpoint);
    let places = first.chain(pools.further.iter().map(|further| &further.mountpoint));
    let arrays: Vec<_> = places.filter_map(|at| mirrors::array_of(at)).collect();
    let used = pools.standing().used;
    let halves = arrays
        .iter()
        .filter_map(|array| mirrors::look(array, disks));
    let halves = halves.flat_map(|mirror| mirror.members);
    let halves = halves.map(|(name, _)| name);
    halves
        .filter(|name| disks.iter().any(|disk| disk.name == *name) && !used.contains(name))
        .collect()
}

fn open_all(
    found: &[(Disk, Content)],
    owner: Option<&PublicKey>,
    (keys, layout): (&dyn Keys, Layout),
    places: Places<'_>,
    inspect: Inspect<'_>,
) -> Result<Pools, PoolError> {
    let disks: Vec<Disk> = found.iter().map(|(disk, _)| disk.clone()).collect();
    let mounted = sys::mount::mounted(places.first).map_err(|source| PoolError::Mounts {
        path: places.first.to_owned(),
        source,
    })?;
    let beside = let_go_of_gone(&disks, places);
    // One whose disk has gone is none any more, where another can take its place.
    let mounted = mounted.filter(|mounted| !(beside && is_gone(mounted, &disks)));
    if let Some(mounted) = mounted {
        let first = pool::adopt(&mounted, &disks, owner, places.first)?;
        let pools = adopt_further(first, &disks, owner, places);
        let (true, Some(owner)) = (pools.first.durable, owner) else {
            return Ok(pools);
        };
        let found = mirrors::others(found, &pools.standing().used);
        let disks: Vec<Disk> = found.iter().map(|(disk, _)| disk.clone()).collect();
        let opening = Opening::new(&disks, owner, keys, places);
        return Ok(opening.join(&found, pools, inspect));
    }
    // Nothing is there, or what is there is dead: it must not hide what comes.
    let _ = sys::mount::detach(places.first);
    let Some(owner) = owner else {
        return pool::memory("no owner key", places.first).map(Pools::only);
    };
    let Mirrored {
        found,
        left,
        problems,
        begun,
    } = mirrors::start(found, owner, layout);
    let disks: Vec<Disk> = found.iter().map(|(disk, _)| disk.clone()).collect();
    let choice = choose(&found, Some(owner));
    if let Some(why) = runs_in_memory(&choice, &left) {
        let mut pools = pool::memory(&why, places.first).map(Pools::only)?;
        pools.first.problems = problems;
        pools.left = left;
        return Ok(pools);
    }
    let mut node = Opening::new(&disks, owner, keys, places);
    node.left = left;
    let mut pools = node.open(&found, &choice, inspect)?;
    pools.first.problems.extend(problems);
    let used = pools.standing().used;
    // Their pool is made by now, and nothing is kept in it yet.
    for (disk, of) in begun {
        if used.contains(&of)
            && let Err(error) = pool::end_making(&disk)
        {
            pools.first.problems.push(sys::error::chain(&error));
        }
    }
    Ok(pools)
}

/// Why no pool on a disk is opened or made. Where pools of this owner are there and none can be used, none is made: it would be
/// another node.
fn runs_in_memory(choice: &Choice, left: &[LeftAlone]) -> Option<String> {
    match (choice, left) {
        (Choice::Use { .. }, _) | (Choice::Finish { .. } | Choice::Provision { .. }, []) => None,
        (Choice::Memory { why }, []) => Some(why.clone()),
        (Choice::Finish { .. } | Choice::Provision { .. } | Choice::Memory { .. }, left) => {
            let told = left.iter().map(LeftAlone::told);
            let told = told.collect::<Vec<_>>().join("; ");
            Some(format!("no pool of this owner can be used: {told}"))
        }
    }
}

/// The pool in memory of a node whose pools cannot be used.
pub fn in_memory(why: &str, places: Places<'_>) -> Result<Pools, PoolError> {
    pool::memory(why, places.first).map(Pools::only)
}

/// A pool with its disk, an index.
type Mounted = (usize, Pool);

struct Opening<'a> {
    disks: &'a [Disk],
    owner: &'a PublicKey,
    keys: &'a dyn Keys,
    places: Places<'a>,
    mounted: Vec<Mounted>,
    left: Vec<LeftAlone>,
    /// Pools that were in use before this began are encrypted.
    encrypted: bool,
}

impl<'a> Opening<'a> {
    fn new(
        disks: &'a [Disk],
        owner: &'a PublicKey,
        keys: &'a dyn Keys,
        places: Places<'a>,
    ) -> Self {
        Self {
            disks,
            owner,
            keys,
            places,
            mounted: Vec::new(),
            left: Vec::new(),
            encrypted: false,
        }
    }
}

impl Opening<'_> {
    /// What is there beside pools in use joins them. Whatever it says, those stay, and the first stays the first.
    fn join(mut self, found: &[(Disk, Content)], mut pools: Pools, inspect: Inspect<'_>) -> Pools {
        let standing = pools.standing();
        let at = |name: &String| self.disks.iter().position(|disk| disk.name == *name);
        let used: Vec<usize> = standing.used.iter().filter_map(at).collect();
        if used.len() != standing.used.len() {
            // One that is in use has gone just now: that is seen to first.
            return pools;
        }
        let further = pools.further.iter().map(|further| &further.mountpoint);
        let mut in_use = std::iter::once(&pools.first.mountpoint).chain(further);
        self.encrypted = in_use.any(|at| crypt::is_beneath(at));
        let known: Vec<usize> = standing
            .left
            .iter()
            .filter_map(|left| at(&left.disk))
            .collect();
        let others = found.iter().enumerate();
        let others = others.filter(|(at, _)| !used.contains(at) && !known.contains(at));
        for (disk, (_, content)) in others {
            if let Some(partition) = live_partition(content, self.owner) {
                let opened = self.enter(Place { disk, partition });
                // It is told.
                let _ = self.take(disk, opened);
            }
        }
        let all = used.iter().chain(&known).map(|disk| Place {
            disk: *disk,
            partition: 0,
        });
        let choice = Choice::Use {
            pools: all.collect(),
        };
        self.add(found, &choice);
        let new = std::mem::take(&mut self.mounted);
        if !new.is_empty() {
            self.settle_beside(&mut pools, &used, new, inspect);
        }
        pools.left.append(&mut self.left);
        pools
    }

    fn settle_beside(
        &mut self,
        pools: &mut Pools,
        used: &[usize],
        new: Vec<Mounted>,
        inspect: Inspect<'_>,
    ) {
        let further = pools.further.iter().map(|further| Pool {
            id: Some(further.id.clone()),
            mountpoint: further.mountpoint.clone(),
            durable: true,
            disk: Some(further.disk.clone()),
            remark: None,
            problems: Vec::new(),
        });
        let mounted = std::iter::once(pools.first.clone()).chain(further);
        let mounted: Vec<Mounted> = used.iter().copied().zip(mounted).collect();
        let inspect = |pool: &Path| inspect(pool, Depth::Beside);
        let seen = mounted.iter().chain(&new).map(|m| self.see(m, &inspect));
        let seen: Vec<Seen> = seen.collect();
        let Some(assembly) = assemble(&seen) else {
            return;
        };
        let (old, roles) = assembly.roles.split_at(mounted.len());
        // Nothing is taken from under what runs.
        let stay = old.iter().all(|role| !matches!(role, Role::Left(_)));
        for ((disk, pool), role) in new.into_iter().zip(roles) {
            let name = self.disks[disk].name.clone();
            let why = match role {
                Role::Left(left) => Some(left.because().to_owned()),
                Role::First | Role::Further if stay => None,
                Role::First | Role::Further => Some(
                    "it contradicts the pools in use: which counts is decided at the next boot"
                        .to_owned(),
                ),
            };
            match why {
                None => pools.further.push(Further {
                    id: pool.id.unwrap_or_default(),
                    mountpoint: pool.mountpoint,
                    disk: name,
                    remark: pool.remark,
                }),
                Some(why) => {
                    let _ = sys::mount::unmount(&pool.mountpoint);
                    crypt::close(&self.disks[disk]);
                    self.left.push(LeftAlone { disk: name, why });
                }
            }
        }
        if stay {
            pools.missing = assembly.missing;
            pools.outline = Some(assembly.outline);
        }
    }

    fn add(&mut self, found: &[(Disk, Content)], choice: &Choice) {
        for addition in additions(found, self.owner, choice) {
            let (disk, opened) = match addition {
                Addition::Finish(place) => (place.disk, self.go_on(place)),
                Addition::Provision { disk } => (disk, self.make(disk)),
            };
            // It is told, and the others are enough.
            let _ = self.take(disk, opened);
        }
    }

    fn open(
        mut self,
        found: &[(Disk, Content)],
        choice: &Choice,
        inspect: Inspect<'_>,
    ) -> Result<Pools, PoolError> {
        let mut first_error = None;
        let mut count = 0;
        let mut begin = |node: &mut Self, disk: usize, opened: Result<Pool, PoolError>| {
            count += 1;
            if let Err(error) = node.take(disk, opened) {
                first_error.get_or_insert(error);
            }
        };
        match choice {
            Choice::Use { pools } => {
                for place in pools {
                    let opened = self.enter(*place);
                    begin(&mut self, place.disk, opened);
                }
            }
            Choice::Finish { disk, partition } => {
                let place = Place {
                    disk: *disk,
                    partition: *partition,
                };
                let opened = self.go_on(place);
                begin(&mut self, *disk, opened);
            }
            Choice::Provision { disk } => {
                let opened = self.make(*disk);
                begin(&mut self, *disk, opened);
            }
            Choice::Memory { .. } => {}
        }
        // Nothing is made beside pools of which none can be used: it would be another node.
        if let (true, Some(error)) = (self.mounted.is_empty(), first_error) {
            return Err(match count {
                1 => error,
                count => PoolError::NoneUsable {
                    count,
                    source: Box::new(error),
                },
            });
        }
        self.add(found, choice);
        self.settle(inspect)
    }

    fn take(&mut self, disk: usize, opened: Result<Pool, PoolError>) -> Result<(), PoolError> {
        match opened {
            Ok(pool) => self.mounted.push((disk, pool)),
            Err(error) => {
                let name = self.disks[disk].name.clone();
                // What failed may be mounted: nothing of this boot goes there. It fails where nothing is.
                let _ = sys::mount::detach(&self.beside(disk));
                crypt::close(&self.disks[disk]);
                self.left.push(LeftAlone {
                    why: format!("its pool cannot be used: {}", sys::error::chain(&error)),
                    disk: name,
                });
                return Err(error);
            }
        }
        Ok(())
    }

    fn beside(&self, disk: usize) -> PathBuf {
        self.places.beside.join(&self.disks[disk].name)
    }

    /// Where a pool is mounted until it is known what it is.
    fn room(&self, disk: usize) -> Result<PathBuf, PoolError> {
        let path = self.beside(disk);
        fs::create_dir_all(&path).map_err(|source| PoolError::Place {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    fn enter(&self, place: Place) -> Result<Pool, PoolError> {
        let room = self.room(place.disk)?;
        // It was beside the first, whose disk has gone.
        if let Ok(Some(mounted)) = sys::mount::mounted(&room) {
            return pool::adopt(&mounted, self.disks, Some(self.owner), &room);
        }
        pool::enter(place, self.disks, self.owner, self.keys, &room)
    }

    fn go_on(&self, place: Place) -> Result<Pool, PoolError> {
        self.keeps_the_secret(place.disk)?;
        let room = self.room(place.disk)?;
        pool::go_on(place, self.disks, self.owner, self.keys, &room)
    }

    /// Nothing in the clear is made beside encrypted pools.
    fn keeps_the_secret(&self, disk: usize) -> Result<(), PoolError> {
        let encrypted = |(_, pool): &Mounted| crypt::is_beneath(&pool.mountpoint);
        let encrypted = self.encrypted || self.mounted.iter().any(encrypted);
        let made = crypt::beside(encrypted, self.keys);
        made.map_err(|source: CryptError| PoolError::Crypt {
            disk: self.disks[disk].name.clone(),
            source: Box::new(source),
        })
    }

    fn make(&self, disk: usize) -> Result<Pool, PoolError> {
        self.keeps_the_secret(disk)?;
        let room = self.room(disk)?;
        pool::make(&self.disks[disk], self.owner, self.keys, &room)
    }

    /// Every pool to the place that is decided for it.
    fn settle(mut self, inspect: Inspect<'_>) -> Result<Pools, PoolError> {
        let mounted = std::mem::take(&mut self.mounted);
        let depth = match mounted.len() {
            1 => Depth::Alone,
            _ => Depth::Beside,
        };
        let inspect = |pool: &Path| inspect(pool, depth);
        let seen: Vec<Seen> = mounted.iter().map(|m| self.see(m, &inspect)).collect();
        let Assembly {
            roles,
            outline,
            missing,
        } = assemble(&seen).expect("a pool is mounted, or there was an error");
        let (mut first, mut further, mut problems) = (None, Vec::new(), Vec::new());
        for ((disk, mut pool), role) in mounted.into_iter().zip(roles) {
            let name = self.disks[disk].name.clone();
            problems.append(&mut pool.problems);
            match role {
                Role::First => first = Some((disk, pool)),
                Role::Further => {
                    further.push(Further {
                        id: pool.id.unwrap_or_default(),
                        mountpoint: pool.mountpoint,
                        disk: name,
                        remark: pool.remark,
                    });
                }
                Role::Left(left) => {
                    let _ = sys::mount::unmount(&pool.mountpoint);
                    crypt::close(&self.disks[disk]);
                    mirrors::release(&self.disks[disk]);
                    let why = left.because().to_owned();
                    self.left.push(LeftAlone { disk: name, why });
                }
            }
        }
        let (disk, mut first) = first.expect("exactly one is the first");
        sys::mount::relocate(&first.mountpoint, self.places.first).map_err(|source| {
            PoolError::Move {
                disk: self.disks[disk].name.clone(),
                path: self.places.first.to_owned(),
                source,
            }
        })?;
        first.mountpoint = self.places.first.to_owned();
        problems.extend(self.left.iter().map(LeftAlone::told));
        problems.extend(missing.iter().map(away));
        first.problems = problems;
        Ok(Pools {
            first,
            adopted: false,
            further,
            left: self.left,
            missing,
            mates: Vec::new(),
            outline: Some(outline),
        })
    }

    fn see(&self, (disk, pool): &Mounted, inspect: &dyn Fn(&Path) -> Inside) -> Seen {
        let Inside {
            identity,
            history,
            named,
        } = inspect(&pool.mountpoint);
        let disk = &self.disks[*disk];
        Seen {
            id: pool.id.clone().unwrap_or_default(),
            serial: disk.serial.clone(),
            model: disk.model.clone(),
            class: disk.class,
            encrypted: crypt::is_beneath(&pool.mountpoint),
            made: marker::made(&pool.mountpoint),
            identity,
            roster: Roster::read(&pool.mountpoint),
            history,
            named,
        }
    }
}

/// Of a pool of this owner that has been in use.
fn live_partition(content: &Content, owner: &PublicKey) -> Option<u32> {
    match content {
        Content::Pool {
            owner: theirs,
            stage: Stage::Live,
            partition,
        } if *theirs == owner_mark(owner) => Some(*partition),
        Content::Pool { .. } | Content::Blank | Content::Foreign(_) => None,
    }
}

/// Its disk is not there any more.
fn is_gone(mounted: &sys::mount::Mounted, disks: &[Disk]) -> bool {
    mounted.fstype != "tmpfs" && pool::disk_of(&mounted.source, disks).is_none()
}

/// Ends mounts beside the first whose disks have gone. Whether others are there.
fn let_go_of_gone(disks: &[Disk], places: Places<'_>) -> bool {
    let mut others = false;
    for entry in fs::read_dir(places.beside).into_iter().flatten().flatten() {
        let Ok(Some(mounted)) = sys::mount::mounted(&entry.path()) else {
            continue;
        };
        if is_gone(&mounted, disks) {
            let_go(&entry.path());
        } else {
            others = true;
        }
    }
    others
}

/// Takes a pool that has failed out of the tree, and ends what decrypts it. Its last user ends it for good.
pub fn let_go(mountpoint: &Path) {
    let Ok(Some(mounted)) = sys::mount::mounted(mountpoint) else {
        return;
    };
    let under = crypt::partition_of(Path::new(&mounted.source));
    let _ = sys::mount::detach(mountpoint);
    crypt::close_over(&under);
    mirrors::stop_over(&under);
}

/// Pools that are mounted, with those of these disks that they lie on.
pub fn there<'a>(disks: &'a [Disk], places: Places<'_>) -> Vec<(&'a Disk, PathBuf)> {
    let beside = fs::read_dir(places.beside).into_iter().flatten().flatten();
    let all = std::iter::once(places.first.to_owned()).chain(beside.map(|entry| entry.path()));
    let on_disk = |place: PathBuf| {
        let mounted = sys::mount::mounted(&place).ok()??;
        let disk = pool::disk_of(&mounted.source, disks)?;
        Some((disk, place))
    };
    all.filter_map(on_disk).collect()
}

/// For people.
pub fn away(member: &Member) -> String {
    let Member { pool, serial, .. } = member;
    format!(
        "a disk of this node is not there: serial {serial:?}, pool {pool}; what lies on it waits for it"
    )
}

/// What an earlier agent has mounted beside the first pool.
fn adopt_further(
    first: Pool,
    disks: &[Disk],
    owner: Option<&PublicKey>,
    places: Places<'_>,
) -> Pools {
    let mut pools = Pools::only(first);
    pools.adopted = true;
    // A mirror may have lost the disk that its place is named after.
    for name in mirrors::directories(places.beside) {
        let mountpoint = places.beside.join(&name);
        let Ok(Some(mounted)) = sys::mount::mounted(&mountpoint) else {
            continue;
        };
        match pool::adopt(&mounted, disks, owner, &mountpoint) {
            Ok(pool) => {
                pools.first.problems.extend(pool.problems);
                pools.further.push(Further {
                    id: pool.id.unwrap_or_default(),
                    disk: pool.disk.unwrap_or(name),
                    mountpoint,
                    remark: None,
                });
            }
            Err(error) => pools.left.push(LeftAlone {
                disk: name,
                why: sys::error::chain(&error),
            }),
        }
    }
    let roster = Roster::read(&pools.first.mountpoint);
    let used = |id: &PoolId| {
        pools.first.id.as_ref() == Some(id) || pools.further.iter().any(|f| f.id == *id)
    };
    let members = roster.map_or_else(Vec::new, |roster| roster.members);
    pools.missing = members.into_iter().filter(|m| !used(&m.pool)).collect();
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_a_pool_that_cannot_be_used_no_other_node_is_made_of_a_blank_disk() {
        let left = LeftAlone {
            disk: "vda".to_owned(),
            why: "is half of nothing".to_owned(),
        };
        let place = Place {
            disk: 1,
            partition: 1,
        };
        let pools = vec![place];
        let finish = Choice::Finish {
            disk: 1,
            partition: 1,
        };
        let nothing = Choice::Memory {
            why: "no disk found".to_owned(),
        };
        let made = Choice::Provision { disk: 1 };
        let in_use = Choice::Use { pools };
        let with = std::slice::from_ref(&left);
        for choice in [&finish, &made, &nothing] {
            let why = runs_in_memory(choice, with).expect("in memory");
            assert!(why.contains("vda: is half of nothing"), "{why}");
        }
        assert_eq!(runs_in_memory(&in_use, with), None);
        assert_eq!(runs_in_memory(&made, &[]), None);
        assert_eq!(runs_in_memory(&finish, &[]), None);
        assert_eq!(
            runs_in_memory(&nothing, &[]).as_deref(),
            Some("no disk found")
        );
    }

    /// The same door as at a boot: a blank disk that is plugged in gets no key of an encrypted node in the clear.
    #[test]
    fn no_pool_in_the_clear_is_made_beside_encrypted_ones_that_are_in_use() {
        let places = tempfile::tempdir().expect("a directory");
        let beside = places.path().join("beside");
        let places = Places {
            first: &places.path().join("first"),
            beside: &beside,
        };
        let disks = [crate::disk::any("none0", "")];
        let owner = PublicKey([1; 32]);
        let mut opening = Opening::new(&disks, &owner, &crypt::Without, places);
        opening.encrypted = true;
        let place = Place {
            disk: 0,
            partition: 1,
        };
        for refused in [opening.make(0), opening.go_on(place)] {
            let Err(PoolError::Crypt { source, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert!(matches!(*source, CryptError::Beside(_)), "{source:?}");
        }
        assert!(!beside.exists(), "nothing was begun");
    }
}
