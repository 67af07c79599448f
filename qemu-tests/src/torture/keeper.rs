//! A machine that counts on a volume, and what its owner was promised of the volume, its snapshots and its copy.
//!
//! Owns: the guest's program, its document, what may be done next, and what may be found after a cut. Pure but for the program.
//! Refuses: guessing. A count is bounded from below by what the guest had said to have flushed; from above only where nobody
//! else can have counted meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::promises::{Deed, Desired};
use super::random::Random;

/// Its deployment's name.
pub(super) const NAME: &str = "keeper";
const FIRST_MIB: u64 = 64;
const GROWTH_MIB: u64 = 64;
const LARGEST_MIB: u64 = 256;
const SNAPSHOTS_MAX: usize = 2;
/// The guest counts on while a command returns, and what it says comes late: three numbers a second, on a machine whose
/// every word is emulated.
const SLACK: u64 = 30;

/// Says what it finds on the volume, and on its copy if there is one; then counts: each number is appended, flushed, and only
/// then said, with the boot that says it.
const PROGRAM: &str = "b=$(cat /proc/sys/kernel/random/boot_id); touch /data/notes; n=0; \
    while read l; do n=$l; done </data/notes; c=none; \
    if test -e /copy/notes; then while read l; do c=$l; done </copy/notes; fi; \
    echo have $n $b $c; while :; do n=$((n+1)); echo $n >>/data/notes; sync; echo done $n $b; sleep 0.3; done";

/// What the owner does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Deploys it, as its volumes are to be from then on.
    Make,
    Grow,
    Copy(String),
    Uncopy,
    Take(String),
    Drop(String),
    Restore(String),
    Stop,
    Start,
    Destroy,
}

impl Act {
    /// What it makes of a deployment that is as said.
    pub(super) fn makes(&self, before: Option<Desired>) -> Desired {
        match self {
            Self::Make | Self::Grow | Self::Copy(_) | Self::Uncopy | Self::Start => {
                Deed::Start.makes()
            }
            Self::Stop => Desired::Stopped,
            Self::Destroy => Desired::Deleted,
            Self::Take(_) | Self::Drop(_) | Self::Restore(_) => before.unwrap_or(Desired::Running),
        }
    }
}

/// Numbers that may be the last of a content that nobody writes to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    low: u64,
    high: u64,
}

impl Range {
    fn has(self, number: u64) -> bool {
        (self.low..=self.high).contains(&number)
    }
}

/// What was acknowledged, and what was heard.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    mib: u64,
    snapshots: BTreeMap<String, Range>,
    /// The volume that was made from a snapshot.
    copy: Option<Range>,
    /// Every snapshot has a name of its own.
    names: u64,
    asked: Option<(Act, u64)>,
    boots: BTreeSet<String>,
    newest: String,
    done: u64,
    /// What the next boot may find at most, where nobody has counted since it was decided.
    most: Option<u64>,
    pub(super) heard: u64,
    pub(super) acts: u64,
}

impl Keeper {
    pub(super) fn choose(&mut self, desired: Option<Desired>, random: &mut Random) -> Act {
        let some = |random: &mut Random, snapshots: &BTreeMap<String, Range>| {
            let names: Vec<&String> = snapshots.keys().collect();
            random.one_of(&names).cloned()
        };
        match desired {
            None | Some(Desired::Deleted) => Act::Make,
            Some(Desired::Stopped) => match (random.below(4), some(random, &self.snapshots)) {
                (0, _) => Act::Destroy,
                (1 | 2, Some(snapshot)) => Act::Restore(snapshot),
                _ => Act::Start,
            },
            Some(Desired::Running) => match (random.below(9), some(random, &self.snapshots)) {
                (0, _) => Act::Destroy,
                (1 | 2, _) => Act::Stop,
                (3, _) if self.copy.is_some() => Act::Uncopy,
                (3 | 4, Some(snapshot)) if self.copy.is_none() => Act::Copy(snapshot),
                (5, Some(snapshot)) => Act::Drop(snapshot),
                (6, _) if self.mib < LARGEST_MIB => Act::Grow,
                _ if self.snapshots.len() < SNAPSHOTS_MAX => {
                    self.names += 1;
                    Act::Take(format!("s{}", self.names))
                }
                _ => Act::Stop,
            },
        }
    }

    /// The words of the command, and the document that it reads.
    pub(super) fn command(&self, act: &Act, image: &str) -> (Vec<String>, String) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let of = |snapshot: &str| format!("{NAME}/data@{snapshot}");
        match act {
            Act::Make => (
                words(&["deploy", "-"]),
                document(FIRST_MIB, Copied::No, image),
            ),
            Act::Grow => {
                let copied = if self.copy.is_some() {
                    Copied::Kept
                } else {
                    Copied::No
                };
                let document = document(self.mib + GROWTH_MIB, copied, image);
                (words(&["deploy", "-"]), document)
            }
            Act::Copy(snapshot) => {
                let document = document(self.mib, Copied::From(snapshot), image);
                (words(&["deploy", "-"]), document)
            }
            Act::Uncopy => (
                words(&["deploy", "-"]),
                document(self.mib, Copied::Gone, image),
            ),
            Act::Take(name) => (words(&["volume", "snapshot", &of(name)]), String::new()),
            Act::Drop(name) => (words(&["volume", "delete", &of(name)]), String::new()),
            Act::Restore(name) => (words(&["volume", "restore", &of(name)]), String::new()),
            Act::Stop => (words(&["stop", NAME]), String::new()),
            Act::Start => (words(&["start", NAME]), String::new()),
            Act::Destroy => (words(&["delete", NAME, "--with-volumes"]), String::new()),
        }
    }

    /// A statement is on its way. What was flushed before it is in every snapshot that it asks for.
    pub(super) fn ask(&mut self, act: &Act) {
        self.acts += 1;
        self.asked = Some((act.clone(), self.done));
    }

    /// It stands: acknowledged, or found so after a cut.
    pub(super) fn stands(&mut self) {
        let Some((act, low)) = self.asked.take() else {
            return;
        };
        match act {
            Act::Make => {
                (self.mib, self.done, self.most) = (FIRST_MIB, 0, Some(0));
                self.newest.clear();
            }
            Act::Grow => self.mib += GROWTH_MIB,
            Act::Copy(snapshot) => self.copy = self.snapshots.get(&snapshot).copied(),
            Act::Uncopy => self.copy = None,
            Act::Take(name) => {
                let high = u64::MAX;
                self.snapshots.insert(name, Range { low, high });
            }
            Act::Drop(name) => {
                self.snapshots.remove(&name);
            }
            Act::Restore(name) => {
                if let Some(range) = self.snapshots.get(&name) {
                    (self.done, self.most) = (range.low, Some(range.high));
                    self.newest.clear();
                }
            }
            Act::Stop | Act::Start => {}
            Act::Destroy => {
                (self.mib, self.copy, self.done) = (0, None, 0);
                self.snapshots.clear();
                self.newest.clear();
            }
        }
    }

    /// It does not: nobody has heard of it.
    pub(super) fn falls(&mut self) {
        self.asked = None;
    }

    /// The command has come back: the snapshot is there, and holds no more than can have been counted by now.
    pub(super) fn taken(&mut self, name: &str) {
        if let Some(range) = self.snapshots.get_mut(name) {
            range.high = self.done + SLACK;
        }
    }

    /// A new life, of which not every boot may be heard.
    pub(super) fn wakes(&mut self) {
        self.most = None;
    }

    /// Hears a line of its log, old ones again at each reading. True where it is the first word of a new boot.
    ///
    /// # Errors
    /// Says what was promised, where it is anything else.
    pub(super) fn hear(&mut self, line: &str) -> Result<bool, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.get(1).and_then(|n| n.parse::<u64>().ok());
        match (words.as_slice(), number) {
            (["done", _, boot], Some(number)) if *boot == self.newest => {
                self.heard += u64::from(number > self.done);
                self.done = self.done.max(number);
            }
            (["have", _, boot, copied], Some(number)) if self.boots.insert((*boot).to_owned()) => {
                let (done, most) = (self.done, self.most.take());
                if number < done || most.is_some_and(|most| number > most) {
                    return Err(format!(
                        "{NAME}: {number} are on its volume, of {done} at least and {most:?} at most"
                    ));
                }
                if let Some(range) = self.copy {
                    // Nobody had counted yet: there was no file, or an empty one.
                    let copied = copied.parse().unwrap_or(0);
                    if !range.has(copied) {
                        return Err(format!("{NAME}: {copied} are on the copy of {range:?}"));
                    }
                }
                (self.done, self.newest) = (number, (*boot).to_owned());
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Compares what the node says of the volumes: none is missing, none has returned. False where something is on its way.
    ///
    /// # Errors
    /// Says what was promised, where it is anything else.
    pub(super) fn compare(&self, status: &Value) -> Result<bool, String> {
        let found = status["volumes"].as_object();
        let found: BTreeSet<&str> = found
            .into_iter()
            .flat_map(|v| v.keys())
            .map(String::as_str)
            .collect();
        let mut expected = BTreeSet::new();
        if self.mib > 0 {
            expected.insert("data");
            expected.extend(self.copy.map(|_| "copy"));
        }
        // What was given up goes when its machine has let go of it: more may be there yet.
        if !expected.is_subset(&found) {
            return Err(format!("{NAME} has {found:?}, of {expected:?}"));
        }
        let data = &status["volumes"]["data"];
        let snapshots = data["snapshots"].as_object();
        let snapshots = snapshots.into_iter().flat_map(|s| s.iter());
        let (names, taken): (BTreeSet<&str>, Vec<bool>) = snapshots
            .map(|(name, is)| (name.as_str(), is["taken"] == true))
            .unzip();
        let wanted: BTreeSet<&str> = self.snapshots.keys().map(String::as_str).collect();
        if !wanted.is_subset(&names) {
            return Err(format!("{NAME} has the snapshots {names:?}, of {wanted:?}"));
        }
        let sized = self.mib == 0 || data["size"] == format!("{}Mi", self.mib);
        Ok(found == expected && names == wanted && taken.iter().all(|t| *t) && sized)
    }
}

enum Copied<'a> {
    No,
    /// A new volume, of a snapshot.
    From(&'a str),
    Kept,
    Gone,
}

fn document(mib: u64, copied: Copied<'_>, image: &str) -> String {
    // What it was made from counts once, and stays in the document.
    let copy = |from: &str| format!("  copy: {{volume: {{size: {LARGEST_MIB}Mi{from}}}}}\n");
    let (copy, mount, gone) = match copied {
        Copied::No => (String::new(), "", ""),
        Copied::From(snapshot) => (
            copy(&format!(", from: data@{snapshot}")),
            ", \"copy:/copy\"",
            "",
        ),
        Copied::Kept => (copy(""), ", \"copy:/copy\"", ""),
        Copied::Gone => (String::new(), "", "remove: [copy]\ndestroy: [copy]\n"),
    };
    format!(
        "name: {NAME}\n{gone}workloads:\n  data: {{volume: {{size: {mib}Mi}}}}\n{copy}  main:\n    {image}    memory: 64Mi\n    \
         disk: 64Mi\n    mounts: [\"data:/data\"{mount}]\n    command: [sh, -c, '{PROGRAM}']\n"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keeper(lines: &[&str]) -> Keeper {
        let mut keeper = Keeper::default();
        does(&mut keeper, Act::Make);
        for line in lines {
            keeper.hear(line).expect("as promised");
        }
        keeper
    }

    fn does(keeper: &mut Keeper, act: Act) {
        keeper.ask(&act);
        keeper.stands();
    }

    #[test]
    fn a_volume_that_lost_what_was_flushed_is_found() {
        let mut kept = keeper(&["have 0 a none", "done 1 a", "done 2 a"]);
        kept.wakes();
        assert_eq!(kept.hear("have 0 a none"), Ok(false), "heard before");
        assert!(kept.hear("have 1 b none").is_err());
        let mut kept = keeper(&["have 0 a none", "done 2 a"]);
        assert_eq!(kept.hear("have 3 b none"), Ok(true), "more than was said");
    }

    #[test]
    fn a_new_volume_that_holds_what_was_destroyed_is_found() {
        let mut kept = keeper(&["have 0 a none", "done 2 a"]);
        does(&mut kept, Act::Destroy);
        does(&mut kept, Act::Make);
        assert!(kept.hear("have 2 b none").is_err());
    }

    #[test]
    fn a_restoration_to_anything_but_the_snapshot_is_found() {
        let restored = || {
            let mut kept = keeper(&["have 0 a none", "done 2 a"]);
            does(&mut kept, Act::Take("s1".to_owned()));
            kept.taken("s1");
            kept.hear("done 90 a").expect("it counts on");
            does(&mut kept, Act::Stop);
            does(&mut kept, Act::Restore("s1".to_owned()));
            kept
        };
        assert_eq!(restored().hear("have 4 b none"), Ok(true));
        assert!(restored().hear("have 1 b none").is_err());
        assert!(restored().hear("have 90 b none").is_err());
        let mut cut = restored();
        cut.wakes();
        assert_eq!(cut.hear("have 90 b none"), Ok(true), "it may have counted");
    }

    #[test]
    fn a_copy_that_is_not_as_its_snapshot_is_found() {
        let mut kept = keeper(&["have 0 a none", "done 50 a"]);
        does(&mut kept, Act::Take("s1".to_owned()));
        does(&mut kept, Act::Copy("s1".to_owned()));
        assert!(kept.hear("have 60 b 49").is_err());
        assert_eq!(kept.hear("have 60 c 51"), Ok(true));
    }

    #[test]
    fn a_snapshot_that_is_missing_is_found_and_one_that_is_on_its_way_is_waited_for() {
        let mut kept = keeper(&[]);
        does(&mut kept, Act::Take("s1".to_owned()));
        let status = |snapshots: Value| json!({"volumes": {"data": {"size": "64Mi", "snapshots": snapshots}}});
        assert!(kept.compare(&status(json!({}))).is_err());
        assert!(kept.compare(&json!({})).is_err());
        assert_eq!(
            kept.compare(&status(json!({"s1": {"taken": false}}))),
            Ok(false)
        );
        assert_eq!(
            kept.compare(&status(json!({"s1": {"taken": true}}))),
            Ok(true)
        );
        does(&mut kept, Act::Drop("s1".to_owned()));
        assert_eq!(
            kept.compare(&status(json!({"s1": {"taken": true}}))),
            Ok(false)
        );
    }
}
