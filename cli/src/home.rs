//! The configuration directory: `$SIFR_HOME`, or `sifr` under `$XDG_CONFIG_HOME` or `~/.config`.
//!
//! Owns: `key` (the secret key), `nodes.json` (known nodes with their pinned keys), `spread.json` (which deployments lie on several), and where `salt` is (of encrypted
//! images).
//! Refuses: to guess between several nodes, and to change a pin without being told.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::{Client, SecretKey};
use serde::{Deserialize, Serialize};
use types::{Name, PublicKey};

use crate::failure::Usage;

#[derive(Debug)]
pub(crate) struct Home {
    directory: PathBuf,
    key_file: PathBuf,
}

/// Known nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nodes {
    /// Where `--node` is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default: Option<Name>,
    #[serde(default)]
    pub(crate) nodes: BTreeMap<Name, Pin>,
}

/// Where deployments lie that were deployed on several nodes: what to ask, not what is true. `--node` counts more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    pub(crate) deployments: BTreeMap<Name, Spots>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spots {
    pub(crate) nodes: BTreeSet<Name>,
    pub(crate) machines: BTreeMap<Name, Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pin {
    pub(crate) address: String,
    pub(crate) key: PublicKey,
}

impl Home {
    pub(crate) fn find(identity: Option<PathBuf>) -> anyhow::Result<Self> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let directory = set("SIFR_HOME")
            .or_else(|| set("XDG_CONFIG_HOME").map(|d| d.join("sifr")))
            .or_else(|| set("HOME").map(|d| d.join(".config/sifr")))
            .ok_or_else(|| {
                Usage(
                    "neither SIFR_HOME nor HOME is set: set one to a directory of yours".to_owned(),
                )
            })?;
        let key_file = identity.unwrap_or_else(|| directory.join("key"));
        Ok(Self {
            directory,
            key_file,
        })
    }

    pub(crate) fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Which images must be signed, and by whom.
    pub(crate) fn signatures_file(&self) -> PathBuf {
        self.directory.join("signatures.json")
    }

    pub(crate) fn key(&self) -> anyhow::Result<SecretKey> {
        Ok(SecretKey::load(&self.key_file)?)
    }

    pub(crate) fn make_directory(&self) -> anyhow::Result<()> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        made.with_context(|| format!("cannot make the directory {}", self.directory.display()))
    }

    /// Of encrypted images.
    pub(crate) fn salt_file(&self) -> PathBuf {
        self.directory.join("salt")
    }

    fn nodes_file(&self) -> PathBuf {
        self.directory.join("nodes.json")
    }

    pub(crate) fn nodes(&self) -> anyhow::Result<Nodes> {
        let path = self.nodes_file();
        let json = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Nodes::default()),
            json => json.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let damaged = || {
            format!(
                "{} is damaged: mend it, or move it away and add the nodes again",
                path.display()
            )
        };
        serde_json::from_slice(&json).with_context(damaged)
    }

    pub(crate) fn save_nodes(&self, nodes: &Nodes) -> anyhow::Result<()> {
        self.save(&self.nodes_file(), nodes)
    }

    /// Written beside and renamed, so that a crash leaves the old or the new list.
    fn save(&self, path: &Path, list: &impl Serialize) -> anyhow::Result<()> {
        self.make_directory()?;
        let beside = self
            .directory
            .join(format!(".sifr-{}.new", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            serde_json::to_writer_pretty(&mut file, list)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            // A pin that was acknowledged is there after a power cut.
            fs::File::open(&self.directory)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    fn spread_file(&self) -> PathBuf {
        self.directory.join("spread.json")
    }

    /// Which deployments lie on several nodes, and where.
    pub(crate) fn spread(&self) -> anyhow::Result<Spread> {
        let path = self.spread_file();
        let json = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Spread::default()),
            json => json.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let damaged = || {
            format!(
                "{} is damaged: move it away, and name nodes with --node until you deploy again",
                path.display()
            )
        };
        serde_json::from_slice(&json).with_context(damaged)
    }

    pub(crate) fn save_spread(&self, spread: &Spread) -> anyhow::Result<()> {
        self.save(&self.spread_file(), spread)
    }

    /// It lies nowhere any more, or on one node alone.
    pub(crate) fn forget_spread(&self, deployment: &Name) -> anyhow::Result<()> {
        let mut spread = self.spread()?;
        match spread.deployments.remove(deployment) {
            Some(_) => self.save_spread(&spread),
            None => Ok(()),
        }
    }

    /// The nodes that a deployment lies on, with a client for each: those of its last `sifr deploy`, unless one is named.
    pub(crate) fn clients_of(
        &self,
        node: Option<&str>,
        deployment: &Name,
    ) -> anyhow::Result<Vec<(Name, Pin, Client)>> {
        let spread = self.spread()?;
        match (node, spread.deployments.get(deployment)) {
            (None, Some(spots)) => {
                let nodes = spots.nodes.iter();
                nodes.map(|node| self.client(Some(node.as_str()))).collect()
            }
            (node, _) => Ok(vec![self.client(node)?]),
        }
    }

    /// The node that a machine lies on. Without its name, the deployment must have one machine.
    pub(crate) fn client_of(
        &self,
        node: Option<&str>,
        deployment: &Name,
        workload: Option<&Name>,
    ) -> anyhow::Result<(Name, Pin, Client)> {
        let spread = self.spread()?;
        let (None, Some(spots)) = (node, spread.deployments.get(deployment)) else {
            return self.client(node);
        };
        let known = || {
            let machines = spots.machines.keys();
            let machines: Vec<String> = machines.map(|m| format!("{deployment}/{m}")).collect();
            Usage(format!("choose one: {}", machines.join(", ")))
        };
        let at = match workload {
            Some(workload) => spots.machines.get(workload),
            None => spots
                .machines
                .values()
                .next()
                .filter(|_| spots.machines.len() == 1),
        };
        self.client(Some(at.ok_or_else(known)?.as_str()))
    }

    /// The node to speak to, and a client for it. Nothing is sent yet.
    pub(crate) fn client(&self, node: Option<&str>) -> anyhow::Result<(Name, Pin, Client)> {
        let (name, pin) = self.nodes()?.choose(node)?;
        let client = Client::new(&pin.address, pin.key, &self.key()?)?;
        Ok((name, pin, client))
    }
}

impl Nodes {
    pub(crate) fn choose(&self, wanted: Option<&str>) -> Result<(Name, Pin), Usage> {
        let names = || {
            self.nodes
                .keys()
                .map(Name::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let name = match (wanted, &self.default) {
            (Some(wanted), _) => self
                .nodes
                .keys()
                .find(|name| name.as_str() == wanted)
                .ok_or_else(|| {
                    Usage(format!(
                        "node {wanted:?} is not known: known are [{}], add it with `sifr node add`",
                        names()
                    ))
                })?,
            (None, Some(default)) => default,
            (None, None) => match self.nodes.keys().collect::<Vec<_>>().as_slice() {
                [] => {
                    let add = "no node is known: add one with `sifr node add NAME ADDRESS --key ed25519:…`, \
                               its console shows address and key";
                    return Err(Usage(add.to_owned()));
                }
                [only] => only,
                _ => {
                    let choose =
                        "several nodes are known: choose with --node, or once with `sifr node use`";
                    return Err(Usage(format!("{choose} ({})", names())));
                }
            },
        };
        let pin = self.nodes.get(name).ok_or_else(|| {
            Usage(format!(
                "the default node {name} is not known any more: choose one with `sifr node use`"
            ))
        })?;
        Ok((name.clone(), pin.clone()))
    }

    /// Pins a node. Another key or address under a known name needs `replace`.
    pub(crate) fn add(&mut self, name: Name, pin: Pin, replace: bool) -> Result<(), Usage> {
        match self.nodes.get(&name) {
            Some(known) if *known != pin && !replace => Err(Usage(format!(
                "node {name} is already pinned to {} at {}: use another name, or --replace if its console shows the new key",
                known.key, known.address
            ))),
            _ => {
                self.nodes.insert(name, pin);
                Ok(())
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &Name) -> Result<(), Usage> {
        self.choose(Some(name.as_str()))?;
        self.nodes.remove(name);
        self.default.take_if(|default| default == name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn pin(seed: u8) -> Pin {
        Pin {
            address: "10.0.0.1".to_owned(),
            key: PublicKey([seed; 32]),
        }
    }

    #[test]
    fn one_node_needs_no_choice_and_several_do() {
        let mut nodes = Nodes::default();
        assert!(
            nodes
                .choose(None)
                .expect_err("none")
                .0
                .contains("sifr node add")
        );
        nodes.add(name("a"), pin(1), false).expect("is new");
        assert_eq!(nodes.choose(None).expect("the only one").0, name("a"));
        nodes.add(name("b"), pin(2), false).expect("is new");
        assert!(nodes.choose(None).expect_err("two").0.contains("a, b"));
        assert_eq!(nodes.choose(Some("b")).expect("named").1, pin(2));
        assert!(
            nodes
                .choose(Some("c"))
                .expect_err("unknown")
                .0
                .contains("\"c\" is not known")
        );
        nodes.default = Some(name("b"));
        assert_eq!(nodes.choose(None).expect("the default").0, name("b"));
        nodes.remove(&name("b")).expect("is known");
        assert_eq!(nodes.choose(None).expect("the only one again").0, name("a"));
    }

    #[test]
    fn a_pin_changes_only_when_told() {
        let mut nodes = Nodes::default();
        nodes.add(name("a"), pin(1), false).expect("is new");
        nodes.add(name("a"), pin(1), false).expect("is the same");
        let error = nodes
            .add(name("a"), pin(2), false)
            .expect_err("another key");
        assert!(
            error.0.contains("--replace") && error.0.contains(&pin(1).key.to_string()),
            "{}",
            error.0
        );
        nodes.add(name("a"), pin(2), true).expect("is told");
        assert_eq!(nodes.nodes[&name("a")], pin(2));
    }
}
