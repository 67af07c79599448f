//! Which of this owner's pools are the node, and what each of them is to it: pure decisions.
//!
//! Owns: who is the node, which pool is the first, who joins, who is left alone and why. Refuses: reading or writing a disk.
//!
//! Pools with one identity are one node. Each of them has the identity and the ledger, so that any one of them alone is the
//! node. Their ledgers are only ever put together where none contradicts another: a pool that was away knows less, and
//! learns the rest. Two pools that were each used without the other, for the same deployment, contradict each other: one
//! of them is the node, the other is left alone as it is, and that is said.

use std::collections::BTreeMap;
use std::time::SystemTime;

use types::PublicKey;
use types::node::DiskClass;

use crate::roster::{MEMBERS_MAX, Member, PoolId, Roster};

/// Of each statement that a pool's ledger holds (whose it is, its version) the digest.
pub type History = BTreeMap<(String, u64), [u8; 32]>;

/// What a pool has of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Nothing,
    /// Something, and nothing that can be used.
    Damaged,
    Key(PublicKey),
}

/// A pool of this owner that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: PoolId,
    pub serial: String,
    pub model: String,
    /// As the disk says now.
    pub class: DiskClass,
    /// Whoever takes its disk away cannot read it.
    pub encrypted: bool,
    /// When it was made, as far as the clock was right.
    pub made: SystemTime,
    pub identity: Trace,
    pub roster: Option<Roster>,
    /// `None`: its ledger cannot be read. What it held is told by the others, if by any.
    pub history: Option<History>,
    /// Pools that machines' data lies on, as far as this one knows.
    pub named: Vec<PoolId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Images and new machines go here.
    First,
    /// Identity and ledger are here too, and what machines have here.
    Further,
    Left(Left),
}

/// Why a pool of this owner is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Another node made it.
    OfAnotherNode,
    /// It was used without the others, and says other things of a deployment than they.
    Diverged,
    /// Its identity is damaged and nothing tells whose it is.
    Nobodys,
    /// Its twin is here.
    Twice,
    /// It would be given what the node's own pools keep encrypted.
    InTheClear,
}

impl Left {
    /// For people.
    pub fn because(self) -> &'static str {
        match self {
            Self::OfAnotherNode => {
                "pool of another node: it is left alone; boot it in a machine of its own, or `sifr disk claim` takes it"
            }
            Self::Diverged => {
                "pool of this node that was used without the others, and contradicts them: it is left alone; boot it alone to see what it has, or `sifr disk claim` takes it"
            }
            Self::Nobodys => {
                "pool whose identity is damaged: it is left alone; `sifr disk claim` takes it"
            }
            Self::Twice => {
                "copy of a pool that is in use: it is left alone; `sifr disk claim` takes it"
            }
            Self::InTheClear => {
                "pool in the clear beside encrypted ones, without this node's key: it is left alone, or the key would be on \
                 it; `sifr disk claim` takes it"
            }
        }
    }
}

/// The node's pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembly {
    /// In the order of what was seen; exactly one is the first.
    pub roles: Vec<Role>,
    /// What the roster says but for the node's key, which a node that has just been made does not have yet.
    pub outline: Outline,
    /// Members that were not seen.
    pub missing: Vec<Member>,
}

/// A roster without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    pub sequence: u64,
    pub primary: PoolId,
    pub members: Vec<Member>,
    pub present: Vec<PoolId>,
}

impl Outline {
    pub fn roster(&self, node: PublicKey) -> Roster {
        Roster {
            sequence: self.sequence,
            node,
            primary: self.primary.clone(),
            members: self.members.clone(),
            present: self.present.clone(),
        }
    }
}

/// `None` where nothing was seen.
pub fn assemble(seen: &[Seen]) -> Option<Assembly> {
    let mut roles: Vec<Role> = vec![Role::Further; seen.len()];
    for at in 0..seen.len() {
        if seen[..at].iter().any(|earlier| earlier.id == seen[at].id) {
            roles[at] = Role::Left(Left::Twice);
        }
    }
    let open = |roles: &[Role]| -> Vec<usize> {
        let open = |at: &usize| roles[*at] == Role::Further;
        (0..seen.len()).filter(open).collect()
    };
    let node = node_of(seen, &open(&roles));
    for at in open(&roles) {
        if let Some(left) = stranger(&seen[at], node, seen.len()) {
            roles[at] = Role::Left(left);
        }
    }
    if open(&roles).iter().any(|at| seen[*at].encrypted) {
        let known = |at: &usize| node.is_some_and(|n| seen[*at].identity == Trace::Key(n));
        // One that has the node's key, from before, is told nothing new by it.
        for at in open(&roles) {
            if !seen[at].encrypted && !known(&at) {
                roles[at] = Role::Left(Left::InTheClear);
            }
        }
    }
    let mut order = open(&roles);
    order.sort_by_key(|at| standing(&seen[*at], node));
    let base = *order.first()?;
    let roster = seen[base].roster.clone().filter(|r| Some(r.node) == node);
    // Two that fit the first may still contradict each other.
    let mut joined = vec![base];
    for at in &order[1..] {
        if joined
            .iter()
            .any(|other| contradict(&seen[*other], &seen[*at]))
        {
            roles[*at] = Role::Left(Left::Diverged);
        } else {
            joined.push(*at);
        }
    }
    let used = open(&roles);
    let wanted = roster.as_ref().map(|roster| &roster.primary);
    let first = used
        .iter()
        .copied()
        .find(|at| Some(&seen[*at].id) == wanted);
    let first = first.or_else(|| {
        used.iter()
            .copied()
            .min_by_key(|at| preference(seen, *at, node))
    })?;
    roles[first] = Role::First;
    let outline = outline(seen, &used, first, roster.as_ref());
    let missing = outline.members.iter();
    let missing = missing.filter(|member| seen.iter().all(|s| s.id != member.pool));
    Some(Assembly {
        missing: missing.cloned().collect(),
        roles,
        outline,
    })
}

/// Whose identity is the node's: of several the one that somebody counts on, then the older one, whose key may be known. The
/// order of the list decides nothing.
fn node_of(seen: &[Seen], among: &[usize]) -> Option<PublicKey> {
    let mut nodes: BTreeMap<PublicKey, (bool, SystemTime)> = BTreeMap::new();
    for at in among {
        let Seen {
            identity: Trace::Key(key),
            made,
            history,
            ..
        } = &seen[*at]
        else {
            continue;
        };
        let empty = history.as_ref().is_some_and(BTreeMap::is_empty);
        let node = nodes.entry(*key).or_insert((true, *made));
        *node = (node.0 && empty, node.1.min(*made));
    }
    let first = nodes.into_iter().min_by_key(|(key, held)| (*held, *key));
    first.map(|(key, _)| key)
}

/// Why this pool is none of the node's.
fn stranger(pool: &Seen, node: Option<PublicKey>, count: usize) -> Option<Left> {
    let said = pool.roster.as_ref().map(|roster| roster.node);
    let is_empty = pool.history.as_ref().is_some_and(BTreeMap::is_empty);
    match pool.identity {
        Trace::Key(key) => (Some(key) != node).then_some(Left::OfAnotherNode),
        // It was on its way to become one of a node's.
        Trace::Nothing | Trace::Damaged if said.is_some() => match node {
            Some(_) if said == node => None,
            Some(_) => Some(Left::OfAnotherNode),
            None => None,
        },
        Trace::Nothing if is_empty => None,
        // Alone it is looked at, and the identity's keeper says what is wrong.
        Trace::Nothing | Trace::Damaged if count == 1 || node.is_none() => None,
        Trace::Nothing | Trace::Damaged => Some(Left::Nobodys),
    }
}

/// Who is asked first: the whole ones, the one that knows more, the one that it calls the first.
fn standing(pool: &Seen, node: Option<PublicKey>) -> impl Ord {
    let roster = pool.roster.as_ref().filter(|r| Some(r.node) == node);
    let sequence = roster.map_or(0, |roster| roster.sequence);
    let is_first = roster.is_some_and(|roster| roster.primary == pool.id);
    (
        wholeness(pool),
        std::cmp::Reverse(sequence),
        !is_first,
        pool.made,
        pool.id.clone(),
    )
}

/// Traces of an identity come before none: nothing is made anew over them.
fn wholeness(pool: &Seen) -> u8 {
    match pool.identity {
        Trace::Key(_) => 0,
        Trace::Damaged => 1,
        Trace::Nothing => 2,
    }
}

/// Which pool is the first where none is named, or the one that is named is away.
fn preference(seen: &[Seen], at: usize, node: Option<PublicKey>) -> impl Ord {
    let pool = &seen[at];
    let known = seen.iter().filter_map(|s| s.roster.as_ref());
    let known = known.filter(|roster| Some(roster.node) == node);
    let known = known.filter_map(|roster| Some((roster.sequence, roster.member(&pool.id)?.class)));
    let class = known.max_by_key(|(sequence, _)| *sequence);
    let class = class.map_or(pool.class, |(_, class)| class);
    (
        wholeness(pool),
        class,
        pool.made,
        pool.serial.clone(),
        pool.id.clone(),
    )
}

/// Whether both say something of one version, and not the same.
fn contradict(a: &Seen, b: &Seen) -> bool {
    let (Some(a), Some(b)) = (&a.history, &b.history) else {
        return false;
    };
    let other = |(statement, digest): (&(String, u64), &[u8; 32])| {
        b.get(statement).is_some_and(|theirs| theirs != digest)
    };
    a.iter().any(other)
}

fn outline(seen: &[Seen], used: &[usize], first: usize, before: Option<&Roster>) -> Outline {
    let known = before.map_or(&[][..], |roster| &roster.members);
    // One that is away, that no machine waits for, and in whose place there is another, is forgotten. Should it come back, it
    // is one of the node's again: its identity says so.
    let waited_for = |member: &&Member| {
        let named = |at: &usize| seen[*at].named.contains(&member.pool);
        used.len() < 2 || seen.iter().any(|s| s.id == member.pool) || used.iter().any(named)
    };
    let known = known.iter().filter(waited_for);
    let mut members: BTreeMap<PoolId, Member> =
        known.map(|m| (m.pool.clone(), m.clone())).collect();
    let mut present = Vec::new();
    for pool in used.iter().map(|at| &seen[*at]) {
        present.push(pool.id.clone());
        let class = members
            .get(&pool.id)
            .map_or(pool.class, |known| known.class);
        let member = Member {
            pool: pool.id.clone(),
            serial: pool.serial.clone(),
            model: pool.model.clone(),
            class,
        };
        if members.len() < MEMBERS_MAX || members.contains_key(&pool.id) {
            members.insert(pool.id.clone(), member);
        }
    }
    present.sort();
    let primary = before.map(|roster| &roster.primary);
    let primary = primary.filter(|primary| members.contains_key(*primary));
    let primary = primary.unwrap_or(&seen[first].id);
    let outline = Outline {
        sequence: before.map_or(0, |roster| roster.sequence),
        primary: primary.clone(),
        members: members.into_values().collect(),
        present,
    };
    match before {
        Some(before) if outline.roster(before.node) == *before => outline,
        _ => Outline {
            sequence: outline.sequence + 1,
            ..outline
        },
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
