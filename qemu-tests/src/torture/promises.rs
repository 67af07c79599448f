//! What a node has promised, and what it may say after its power was cut.
//!
//! Owns: the versions of each name that were acknowledged, and the one statement that was under way. Pure.
//! Refuses: guessing. A statement without an answer may stand or not; every other must be as acknowledged.

use std::collections::BTreeMap;

use super::random::Random;

/// As the API says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Desired {
    Running,
    Stopped,
    Deleted,
}

impl Desired {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "running" => Some(Self::Running),
            "stopped" => Some(Self::Stopped),
            "deleted" => Some(Self::Deleted),
            _ => None,
        }
    }
}

/// What stands for a name: the number of its newest statement, and what that says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub version: u64,
    pub desired: Desired,
}

/// Something that the owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// A first deployment, one after a deletion, or a new version.
    Deploy,
    Stop,
    Start,
    Delete,
}

impl Deed {
    pub(super) fn makes(self) -> Desired {
        match self {
            Self::Deploy | Self::Start => Desired::Running,
            Self::Stop => Desired::Stopped,
            Self::Delete => Desired::Deleted,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    acknowledged: Option<Standing>,
    asked: Option<Standing>,
}

/// All names of an owner on one node.
#[derive(Debug, Default)]
pub(super) struct Promises(BTreeMap<String, Record>);

impl Promises {
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What may be done next with `name`.
    pub(super) fn choose(&self, name: &str, random: &mut Random) -> Deed {
        let standing = self.0.get(name).and_then(|record| record.acknowledged);
        let choices: &[Deed] = match standing.map(|s| s.desired) {
            None | Some(Desired::Deleted) => &[Deed::Deploy],
            Some(Desired::Running) => &[Deed::Deploy, Deed::Stop, Deed::Delete],
            Some(Desired::Stopped) => &[Deed::Start, Deed::Delete],
        };
        random.one_of(choices).unwrap_or(Deed::Deploy)
    }

    /// A statement is on its way: from now on it may stand.
    pub(super) fn ask(&mut self, name: &str, deed: Deed) {
        self.ask_for(name, deed.makes());
    }

    /// The same of any statement, by what it makes of the name.
    pub(super) fn ask_for(&mut self, name: &str, desired: Desired) {
        let record = self.0.entry(name.to_owned()).or_default();
        record.asked = Some(Standing {
            version: record.acknowledged.map_or(1, |s| s.version + 1),
            desired,
        });
    }

    /// The node has acknowledged what was asked: from now on it must stand.
    pub(super) fn acknowledge(&mut self, name: &str) {
        if let Some(record) = self.0.get_mut(name)
            && let Some(asked) = record.asked.take()
        {
            record.acknowledged = Some(asked);
        }
    }

    /// What stands, as far as was acknowledged.
    pub(super) fn desired(&self, name: &str) -> Option<Desired> {
        Some(self.0.get(name)?.acknowledged?.desired)
    }

    /// Whether the node says what was under way without an answer.
    pub(super) fn was_asked(&self, name: &str, said: Option<Standing>) -> bool {
        let asked = self.0.get(name).and_then(|record| record.asked);
        asked.is_some() && asked == said
    }

    /// What a node says of `name` that does not have all its disks: another may yet bring what was under way.
    ///
    /// # Errors
    /// As of [`Promises::confirm`].
    pub(super) fn allow(&self, name: &str, said: Option<Standing>) -> Result<(), String> {
        let record = self.0.get(name).copied().unwrap_or_default();
        Self(BTreeMap::from([(name.to_owned(), record)])).confirm(name, said)
    }

    /// What the node says of `name` after a cut. From then on that is what stands.
    ///
    /// # Errors
    /// Says what was promised, where it is anything else.
    pub(super) fn confirm(&mut self, name: &str, said: Option<Standing>) -> Result<(), String> {
        let record = self.0.entry(name.to_owned()).or_default();
        let Record {
            acknowledged,
            asked,
        } = *record;
        if said != acknowledged && (asked.is_none() || said != asked) {
            return Err(format!(
                "{name}: the node says {said:?}; acknowledged was {acknowledged:?}, under way {asked:?}"
            ));
        }
        *record = Record {
            acknowledged: said,
            asked: None,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(version: u64, desired: Desired) -> Option<Standing> {
        Some(Standing { version, desired })
    }

    fn deployed() -> Promises {
        let mut promises = Promises::default();
        promises.ask("a", Deed::Deploy);
        promises.acknowledge("a");
        promises
    }

    #[test]
    fn what_was_acknowledged_must_stand() {
        assert!(deployed().confirm("a", None).is_err());
        assert!(
            deployed()
                .confirm("a", standing(2, Desired::Running))
                .is_err()
        );
        assert!(
            deployed()
                .confirm("a", standing(1, Desired::Running))
                .is_ok()
        );
    }

    #[test]
    fn what_was_under_way_may_stand_or_not_and_is_then_settled() {
        let mut promises = deployed();
        promises.ask("a", Deed::Delete);
        assert!(promises.confirm("a", standing(1, Desired::Running)).is_ok());
        assert!(
            promises
                .confirm("a", standing(2, Desired::Deleted))
                .is_err(),
            "it had not been done"
        );
        let mut promises = deployed();
        promises.ask("a", Deed::Delete);
        assert!(promises.confirm("a", standing(2, Desired::Deleted)).is_ok());
        assert!(
            promises
                .confirm("a", standing(1, Desired::Running))
                .is_err(),
            "it returned"
        );
    }

    #[test]
    fn a_name_that_was_never_acknowledged_may_be_unknown() {
        let mut promises = Promises::default();
        promises.ask("a", Deed::Deploy);
        assert!(promises.confirm("a", None).is_ok());
        assert!(
            promises
                .confirm("a", standing(1, Desired::Running))
                .is_err()
        );
    }
}
