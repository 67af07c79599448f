//! The scenarios, by group. One module a subject: what happens in the node, and beside it what its guests do.
//!
//! Owns: the tables that find a scenario or a guest's program by its name. A new module stands in both.
//! Refuses: two of one name.

mod alone;
mod alone_devices;
mod confined;
mod devices;
mod disk;
mod hostile;
mod kept;
mod kernels;
mod load;
mod net;
pub(super) mod pmem;
mod restore;
mod smoke;
mod snapshot;

use anyhow::{Context, Result, ensure};

use super::guest::Program;
use super::toolkit::Node;

/// What runs in the node. Gives the figures that it saw, as text for people.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Lower case, with hyphens.
    pub name: &'static str,
    pub run: fn(&Node) -> Result<String>,
}

/// The group whose node has a terminal: a second serial port.
pub const TERMINAL_GROUP: &str = "alone-devices";

/// Scenarios that share one boot of a node. Each has its test in `tests/vmm.rs`.
pub const GROUPS: &[(&str, &[Scenario])] = &[
    ("alone", alone::SCENARIOS),
    (TERMINAL_GROUP, alone_devices::SCENARIOS),
    ("confined", confined::SCENARIOS),
    ("devices", devices::SCENARIOS),
    ("disk", disk::SCENARIOS),
    ("hostile", hostile::SCENARIOS),
    ("kept", kept::SCENARIOS),
    ("kernels", kernels::SCENARIOS),
    ("load", load::SCENARIOS),
    ("net", net::SCENARIOS),
    ("pmem", pmem::SCENARIOS),
    ("restore", restore::SCENARIOS),
    ("smoke", smoke::SCENARIOS),
    ("snapshot", snapshot::SCENARIOS),
];

/// Programs of guests, by the word on their command line.
const GUESTS: &[&[(&str, Program)]] = &[
    alone::GUESTS,
    alone_devices::GUESTS,
    confined::GUESTS,
    devices::GUESTS,
    disk::GUESTS,
    hostile::GUESTS,
    kept::GUESTS,
    kernels::GUESTS,
    load::GUESTS,
    net::GUESTS,
    pmem::GUESTS,
    smoke::GUESTS,
    snapshot::GUESTS,
];

/// The scenarios of `group`, or the one of `group/name`.
pub fn named(what: &str) -> Result<Vec<&'static Scenario>> {
    let (group, only) = match what.split_once('/') {
        Some((group, name)) => (group, Some(name)),
        None => (what, None),
    };
    let found = GROUPS.iter().find(|(name, _)| *name == group);
    let (_, scenarios) = found.with_context(|| format!("there is no group {group:?}"))?;
    let wanted = |s: &&Scenario| only.is_none_or(|name| s.name == name);
    let scenarios: Vec<_> = scenarios.iter().filter(wanted).collect();
    ensure!(!scenarios.is_empty(), "there is no scenario {what:?}");
    Ok(scenarios)
}

/// The guest's program of that name.
pub fn guest(word: &str) -> Result<Program> {
    let mut all = GUESTS.iter().flat_map(|table| table.iter());
    let found = all.find(|(name, _)| *name == word);
    let (_, program) = found.with_context(|| format!("no guest is called {word:?}"))?;
    Ok(*program)
}

/// The tenant's program of that name.
pub fn tenant(word: &str) -> Result<Program> {
    let found = restore::TENANTS.iter().find(|(name, _)| *name == word);
    let (_, program) = found.with_context(|| format!("no tenant is called {word:?}"))?;
    Ok(*program)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_and_every_guest_is_found_by_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for (group, scenarios) in GROUPS {
            assert_eq!(named(group).expect("a group").len(), scenarios.len());
            for scenario in *scenarios {
                let path = format!("{group}/{}", scenario.name);
                assert_eq!(named(&path).expect("a scenario").len(), 1);
                assert!(names.insert(path));
            }
        }
        let words: Vec<_> = GUESTS.iter().flat_map(|t| t.iter().map(|g| g.0)).collect();
        let distinct: BTreeSet<_> = words.iter().collect();
        assert_eq!(words.len(), distinct.len());
        assert!(named("smoke/none").is_err() && named("none").is_err() && guest("none").is_err());
    }
}
