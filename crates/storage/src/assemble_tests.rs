//! Every set of disks, with every content, cut at every write: what is acknowledged, and who the node is.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A disk of the model and what is on it; `None`: blank.
type Medium = Option<Seen>;

fn pool(id: &str) -> Seen {
    Seen {
        id: id.to_owned(),
        serial: id.to_uppercase(),
        model: String::new(),
        class: DiskClass::Ssd,
        encrypted: false,
        made: SystemTime::UNIX_EPOCH,
        identity: Trace::Nothing,
        roster: None,
        history: Some(History::new()),
        named: Vec::new(),
    }
}

fn of(id: &str, key: u8, statements: &[(&str, u64, u8)]) -> Seen {
    let said = statements
        .iter()
        .map(|(name, version, digest)| ((name.to_string(), *version), [*digest; 32]));
    Seen {
        identity: Trace::Key(PublicKey([key; 32])),
        history: Some(said.collect()),
        ..pool(id)
    }
}

fn roles(seen: &[Seen]) -> Vec<Role> {
    assemble(seen).expect("pools").roles
}

#[test]
fn a_new_pool_joins_and_a_stale_one_comes_back() {
    let (whole, stale) = (
        of("a", 1, &[("web", 1, 1), ("web", 2, 2)]),
        of("b", 1, &[("web", 1, 1)]),
    );
    let seen = [pool("c"), stale, whole];
    assert_eq!(roles(&seen), [Role::Further, Role::Further, Role::First]);
}

#[test]
fn a_pool_of_another_node_is_left_alone_whatever_the_order() {
    let mine = of("a", 1, &[("web", 1, 1)]);
    let other = Seen {
        made: SystemTime::UNIX_EPOCH + Duration::from_secs(9),
        ..of("b", 2, &[("web", 1, 1)])
    };
    let left = Role::Left(Left::OfAnotherNode);
    assert_eq!(roles(&[mine.clone(), other.clone()]), [Role::First, left]);
    assert_eq!(roles(&[other.clone(), mine.clone()]), [left, Role::First]);
    // The one that somebody counts on, although it is younger.
    let unused = of("a", 1, &[]);
    assert_eq!(roles(&[unused, other]), [left, Role::First]);
}

#[test]
fn pools_that_contradict_each_other_are_not_put_together() {
    let mut mine = of("b", 1, &[("web", 1, 1), ("web", 2, 2)]);
    let astray = of("a", 1, &[("web", 1, 1), ("web", 2, 3)]);
    let before = assemble(&[mine.clone(), of("a", 1, &[])]).expect("pools");
    mine.roster = Some(before.outline.roster(PublicKey([1; 32])));
    let diverged = Role::Left(Left::Diverged);
    assert_eq!(roles(&[astray, mine]), [diverged, Role::First]);
}

#[test]
fn pools_that_fit_the_first_and_contradict_each_other_are_not_both_taken() {
    let (one, other) = (of("b", 1, &[("web", 1, 1)]), of("c", 1, &[("web", 1, 2)]));
    let found = roles(&[of("a", 1, &[("job", 1, 3)]), one, other]);
    let diverged = found.iter().filter(|r| **r == Role::Left(Left::Diverged));
    assert_eq!(diverged.count(), 1, "{found:?}");
}

/// A disk that somebody has prepared and put in for one boot.
#[test]
fn a_pool_in_the_clear_is_never_given_the_key_of_a_node_whose_pools_are_encrypted() {
    let encrypted = |seen| Seen {
        encrypted: true,
        ..seen
    };
    let own = encrypted(of("a", 1, &[("web", 1, 1)]));
    let left = Role::Left(Left::InTheClear);
    let mut claims_to_be_a_member = pool("b");
    let outline = assemble(&[own.clone(), encrypted(pool("b"))]);
    let outline = outline.expect("pools").outline;
    claims_to_be_a_member.roster = Some(outline.roster(PublicKey([1; 32])));
    for planted in [pool("b"), claims_to_be_a_member] {
        assert_eq!(roles(&[planted.clone(), own.clone()]), [left, Role::First]);
        assert_eq!(
            roles(&[planted, encrypted(pool("a"))]),
            [left, Role::First],
            "a node that has just been made"
        );
    }
    // What has the key is no stranger, and beside pools in the clear there is nothing to keep.
    let old = of("b", 1, &[]);
    assert_eq!(roles(&[own.clone(), old]), [Role::First, Role::Further]);
    let clear = Seen {
        encrypted: false,
        ..own.clone()
    };
    assert_eq!(roles(&[clear, pool("b")]), [Role::First, Role::Further]);
    let new = encrypted(pool("b"));
    assert_eq!(roles(&[own, new]), [Role::First, Role::Further]);
}

#[test]
fn what_was_used_apart_for_other_deployments_is_put_together() {
    let (a, b) = (of("a", 1, &[("web", 1, 1)]), of("b", 1, &[("job", 1, 2)]));
    assert_eq!(roles(&[a, b]), [Role::First, Role::Further]);
}

#[test]
fn a_damaged_identity_is_the_nodes_where_its_roster_says_so_and_nobodys_otherwise() {
    let whole = of("a", 1, &[("web", 1, 1)]);
    let outline = assemble(&[whole.clone(), pool("b")])
        .expect("pools")
        .outline;
    let mut damaged = pool("b");
    damaged.identity = Trace::Damaged;
    assert_eq!(
        roles(&[damaged.clone(), whole.clone()]),
        [Role::Left(Left::Nobodys), Role::First]
    );
    damaged.roster = Some(outline.roster(PublicKey([1; 32])));
    assert_eq!(
        roles(&[damaged.clone(), whole]),
        [Role::Further, Role::First]
    );
    // Alone, or beside one that holds nothing: its keeper says what is wrong, and nothing is made anew.
    assert_eq!(roles(&[pool("c"), damaged]), [Role::Further, Role::First]);
}

#[test]
fn a_twin_is_left_alone() {
    let a = of("a", 1, &[("web", 1, 1)]);
    let left = Role::Left(Left::Twice);
    assert_eq!(roles(&[a.clone(), a]), [Role::First, left]);
}

#[test]
fn a_disk_is_of_the_class_that_it_had_when_it_joined() {
    let node = PublicKey([1; 32]);
    let mut a = of("a", 1, &[]);
    a.roster = Some(assemble(&[a.clone()]).expect("a pool").outline.roster(node));
    a.class = DiskClass::Hdd;
    let again = assemble(&[a.clone()]).expect("a pool");
    assert_eq!(again.outline.members[0].class, DiskClass::Ssd);
    assert_eq!(Some(again.outline.roster(node)), a.roster);
}

#[test]
fn flash_is_the_first_pool_and_stays_it_only_while_it_is_named_so() {
    let mut disk = of("a", 1, &[]);
    disk.class = DiskClass::Hdd;
    assert_eq!(
        roles(&[disk.clone(), of("b", 1, &[])]),
        [Role::Further, Role::First]
    );
    // A node that has lived on a slow disk goes on there when a fast one comes.
    let before = assemble(&[disk.clone()]).expect("a pool");
    disk.roster = Some(before.outline.roster(PublicKey([1; 32])));
    assert_eq!(roles(&[disk, pool("b")]), [Role::First, Role::Further]);
}

#[test]
fn a_missing_pool_is_told_until_another_is_there_and_nobody_waits_for_it() {
    let node = PublicKey([1; 32]);
    let before = assemble(&[of("a", 1, &[]), pool("b")]).expect("pools");
    let mut b = of("b", 1, &[]);
    b.roster = Some(before.outline.roster(node));
    let missing = |seen: &[Seen]| assemble(seen).expect("pools").missing.len();
    assert_eq!(missing(&[b.clone()]), 1);
    assert_eq!(missing(&[b.clone(), pool("c")]), 0);
    b.named = vec!["a".to_owned()];
    assert_eq!(missing(&[b, pool("c")]), 1);
}

/// One boot: which disks are there, which of them have been blanked before, where it is cut, what is asked for.
#[derive(Debug, Clone)]
struct Boot {
    there: [bool; 3],
    blanked: Option<usize>,
    cut: Option<usize>,
    asked: Vec<u8>,
    /// Of the last statement: how many pools get it before the power goes.
    torn: Option<usize>,
}

fn boots() -> impl Strategy<Value = Vec<Boot>> {
    let boot = (
        any::<[bool; 3]>(),
        prop::option::weighted(0.15, 0..3usize),
        prop::option::weighted(0.4, 0..12usize),
        prop::collection::vec(0..3u8, 0..4),
        prop::option::weighted(0.3, 0..3usize),
    );
    let boot = boot.prop_map(|(there, blanked, cut, asked, torn)| Boot {
        there,
        blanked,
        cut,
        asked,
        torn,
    });
    prop::collection::vec(boot, 1..10)
}

/// A statement, its digest, and the disks that it was kept on.
type Acknowledged = ((String, u64), [u8; 32], BTreeSet<usize>);

#[derive(Default)]
struct World {
    disks: [Medium; 3],
    made: u64,
    keys: u8,
    digests: u8,
    acknowledged: Vec<Acknowledged>,
    /// Disks that the last whole boot has used, and who it was.
    whole: BTreeSet<usize>,
    node: Option<PublicKey>,
}

/// What a boot came to.
struct Came {
    at: Vec<usize>,
    assembly: Assembly,
    known: History,
}

impl World {
    fn boot(&mut self, boot: &Boot) -> Option<Came> {
        let at: Vec<usize> = (0..3).filter(|at| boot.there[*at]).collect();
        for disk in &at {
            let id = format!("{disk}-{}", self.made);
            let made = SystemTime::UNIX_EPOCH + Duration::from_secs(self.made);
            self.disks[*disk].get_or_insert_with(|| Seen { made, ..pool(&id) });
            self.made += 1;
        }
        let seen = at.iter().map(|at| self.disks[*at].clone().expect("a pool"));
        let seen: Vec<_> = seen.collect();
        let assembly = assemble(&seen)?;
        let used: Vec<usize> = (0..at.len())
            .filter(|n| !matches!(assembly.roles[*n], Role::Left(_)))
            .map(|n| at[n])
            .collect();
        let first = assembly.roles.iter().position(|r| *r == Role::First);
        let first = at[first.expect("a first")];
        let mut known = History::new();
        for disk in &used {
            known.extend(self.pool(*disk).history.clone().expect("readable"));
        }
        let key = used.iter().find_map(|d| match self.pool(*d).identity {
            Trace::Key(key) => Some(key),
            Trace::Nothing | Trace::Damaged => None,
        });
        let key = key.unwrap_or_else(|| {
            self.keys += 1;
            PublicKey([self.keys; 32])
        });
        // The order of the node's own writes.
        let mut left = boot.cut.unwrap_or(usize::MAX);
        let mut cut = || {
            let over = left == 0;
            left = left.saturating_sub(1);
            over
        };
        let came = |assembly, known| {
            Some(Came {
                at: at.clone(),
                assembly,
                known,
            })
        };
        if cut() {
            return came(assembly, known);
        }
        self.pool(first).identity = Trace::Key(key);
        let roster = assembly.outline.roster(key);
        for disk in &used {
            if cut() {
                return came(assembly, known);
            }
            self.pool(*disk).roster = Some(roster.clone());
        }
        for disk in &used {
            if cut() {
                return came(assembly, known);
            }
            self.pool(*disk).identity = Trace::Key(key);
        }
        for disk in &used {
            if cut() {
                return came(assembly, known);
            }
            self.pool(*disk).history = Some(known.clone());
        }
        (self.whole, self.node) = (used.iter().copied().collect(), Some(key));
        self.ask(boot, &used, &known);
        came(assembly, known)
    }

    fn ask(&mut self, boot: &Boot, used: &[usize], known: &History) {
        let mut known = known.clone();
        for (n, name) in boot.asked.iter().enumerate() {
            let name = name.to_string();
            let last = known.keys().filter(|(of, _)| *of == name).map(|(_, v)| *v);
            let version = last.max().unwrap_or(0) + 1;
            self.digests = self.digests.wrapping_add(1);
            let (key, digest) = ((name, version), [self.digests; 32]);
            let torn = boot.torn.filter(|_| n + 1 == boot.asked.len());
            for disk in &used[..torn.unwrap_or(used.len()).min(used.len())] {
                let history = self.pool(*disk).history.as_mut();
                history.expect("readable").insert(key.clone(), digest);
            }
            if torn.is_some() {
                return;
            }
            known.insert(key.clone(), digest);
            let at = used.iter().copied().collect();
            self.acknowledged.push((key, digest, at));
        }
    }

    fn pool(&mut self, at: usize) -> &mut Seen {
        self.disks[at].as_mut().expect("a pool")
    }
}

proptest! {
    /// As long as one disk of the last whole boot is there at the next.
    #[test]
    fn the_node_stays_itself_and_knows_every_acknowledged_statement(boots in boots()) {
        let (mut world, mut unfinished) = (World::default(), [false; 3]);
        for mut boot in boots {
            let stays = world.whole.iter().next_back().copied();
            if let Some(blanked) = boot.blanked.filter(|b| Some(*b) != stays) {
                world.disks[blanked] = None;
                world.whole.remove(&blanked);
            }
            if let Some(stays) = stays {
                boot.there[stays] = true;
            }
            // A boot that was cut is tried again with the disks that it had: it has told some of them that they are the latest.
            let again = |at: usize| unfinished[at] && world.disks[at].is_some();
            (0..3).for_each(|at| boot.there[at] |= again(at));
            unfinished = match boot.cut {
                Some(_) => boot.there,
                None => [false; 3],
            };
            let (node, acknowledged) = (world.node, world.acknowledged.clone());
            let Some(came) = world.boot(&boot) else { continue };
            if !acknowledged.is_empty() {
                prop_assert_eq!(world.node, node);
            }
            for (key, digest, _) in acknowledged {
                prop_assert_eq!(came.known.get(&key), Some(&digest), "{:?}", key);
            }
        }
    }

    /// Whatever is put into the machine and taken out of it.
    #[test]
    fn no_acknowledged_statement_of_a_disk_that_is_there_is_lost_without_a_word(boots in boots()) {
        let mut world = World::default();
        for boot in boots {
            if let Some(blanked) = boot.blanked {
                world.disks[blanked] = None;
                world.acknowledged.iter_mut().for_each(|(.., at)| { at.remove(&blanked); });
            }
            let acknowledged = world.acknowledged.clone();
            let before = world.disks.clone();
            let Some(came) = world.boot(&boot) else { continue };
            for (n, at) in came.at.iter().enumerate() {
                let holds = acknowledged.iter().filter(|(.., kept)| kept.contains(at));
                match came.assembly.roles[n] {
                    // Left as it is.
                    Role::Left(_) => prop_assert_eq!(&world.disks[*at], &before[*at]),
                    Role::First | Role::Further => for (key, digest, _) in holds {
                        prop_assert_eq!(came.known.get(key), Some(digest));
                    }
                }
            }
            let keyed = |medium: &Medium| matches!(medium, Some(Seen { identity: Trace::Key(_), .. }));
            if came.at.iter().any(|at| keyed(&before[*at])) {
                let first = came.assembly.roles.iter().position(|r| *r == Role::First);
                let first = came.at[first.expect("a first")];
                let Trace::Key(now) = world.pool(first).identity else { continue };
                let was = |at: &usize| before[*at].as_ref().is_some_and(|s| s.identity == Trace::Key(now));
                prop_assert!(came.at.iter().any(was), "a new identity beside an old one");
            }
        }
    }

    /// The order in which the kernel finds disks decides nothing.
    #[test]
    fn the_order_of_the_disks_decides_nothing(boots in boots(), turn in 0..3usize) {
        let mut world = World::default();
        for boot in boots {
            world.boot(&boot);
        }
        let mut seen: Vec<_> = world.disks.into_iter().flatten().collect();
        let Some(before) = assemble(&seen) else { return Ok(()) };
        let by_id = |seen: &[Seen], roles: &[Role]| -> BTreeMap<String, String> {
            let both = seen.iter().zip(roles);
            both.map(|(s, role)| (s.id.clone(), format!("{role:?}"))).collect()
        };
        let roles = by_id(&seen, &before.roles);
        let turn = turn % seen.len();
        seen.rotate_left(turn);
        let after = assemble(&seen).expect("pools");
        prop_assert_eq!(by_id(&seen, &after.roles), roles);
        prop_assert_eq!(after.outline, before.outline);
    }
}
