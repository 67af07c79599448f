//! Machines behind names that are on other nodes: where each is, as the gateway of its node says.
//!
//! Owns: when that is asked, and what counts until it is asked again. Refuses: addresses in files or from anybody else than that gateway
//! (`net::dns::ask`), and judging who answers: a silent node's machines keep their addresses, and fail their health checks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use net::dns::{OWN_SUFFIX, Said};
use tokio::task::JoinSet;
use types::ingress::{Backend, Host};
use types::{Cidr, Name};
use workload::host::PlacedSite;

use super::super::network;

/// Between two questions after a machine whose address is known: as long as a guest keeps the answer. A machine keeps its address over
/// restarts, updates and reboots, so that this finds the rare change.
const EVERY: Duration = Duration::from_secs(5);
/// The same where an address is missing or a node is silent. Nothing tells when a machine starts there or the node comes back.
const SOON: Duration = Duration::from_secs(1);

/// What is asked: of which gateway, and by which network here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    /// The name of the network's namespace.
    pub(super) network: String,
    pub(super) there: Cidr,
    /// As that gateway knows it.
    name: String,
}

/// After a machine of a name. `None`: it is on this node, or nowhere.
pub(super) fn question(placed: &PlacedSite, machine: &Name) -> Option<Question> {
    let elsewhere = placed.elsewhere.get(machine)?;
    Some(Question {
        network: network::network_of(elsewhere.here.address)?.name,
        there: elsewhere.there,
        name: format!("{machine}.{}.{OWN_SUFFIX}", placed.key.name),
    })
}

/// All that has to be known for these names.
pub(super) fn questions(sites: &BTreeMap<Host, PlacedSite>) -> BTreeSet<Question> {
    let of = |placed: &PlacedSite| -> Vec<Question> {
        let machines = placed.elsewhere.keys();
        machines.filter_map(|name| question(placed, name)).collect()
    };
    sites.values().flat_map(of).collect()
}

/// Of the back ends of a name those on other nodes, with these.
pub(super) fn nodes(placed: &PlacedSite) -> impl Iterator<Item = (&Backend, &Name)> {
    placed.site.backends().filter_map(|backend| {
        let elsewhere = placed.elsewhere.get(&backend.machine)?;
        Some((backend, &elsewhere.node))
    })
}

/// What is known of machines on other nodes.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// `None`: it has no address, or its node was silent from the first question on.
    at: BTreeMap<Question, Option<Ipv4Addr>>,
    /// Those whose last answer was no address.
    open: BTreeSet<Question>,
}

impl Known {
    pub(super) fn address(&self, question: &Question) -> Option<Ipv4Addr> {
        self.at.get(question).copied().flatten()
    }

    /// Whether each of these has been asked at least once.
    pub(super) fn has_asked(&self, questions: &BTreeSet<Question>) -> bool {
        questions
            .iter()
            .all(|question| self.at.contains_key(question))
    }

    /// Takes what was said, and forgets what nobody wants to know any more. Whether an address has changed.
    pub(super) fn learn(
        &mut self,
        wanted: &BTreeSet<Question>,
        said: BTreeMap<Question, Said>,
    ) -> bool {
        let before = std::mem::take(&mut self.at);
        self.open.clear();
        for question in wanted {
            let held = before.get(question).copied();
            let now = match said.get(question) {
                Some(Said::At(address)) => Some(Some(*address)),
                Some(Said::Nobody) => Some(None),
                Some(Said::Nothing) => Some(held.flatten()),
                // It came while the others were asked.
                None => held,
            };
            if !matches!(said.get(question), Some(Said::At(_))) {
                self.open.insert(question.clone());
            }
            if let Some(now) = now {
                self.at.insert(question.clone(), now);
            }
        }
        let address =
            |(question, at): (&Question, &Option<Ipv4Addr>)| Some((question.clone(), (*at)?));
        let addresses = |of: &BTreeMap<_, _>| -> BTreeMap<Question, Ipv4Addr> {
            of.iter().filter_map(address).collect()
        };
        addresses(&before) != addresses(&self.at)
    }

    /// Until they are to be asked again.
    pub(super) fn pause(&self) -> Duration {
        match self.open.is_empty() {
            true => EVERY,
            false => SOON,
        }
    }
}

/// Asks all gateways, all at once.
pub(super) async fn ask(questions: &BTreeSet<Question>) -> BTreeMap<Question, Said> {
    let mut of: BTreeMap<(String, Cidr), BTreeSet<String>> = BTreeMap::new();
    for Question {
        network,
        there,
        name,
    } in questions.iter().cloned()
    {
        of.entry((network, there)).or_default().insert(name);
    }
    let mut asked = JoinSet::new();
    for ((network, there), names) in of {
        asked.spawn(async move {
            let said = ask_one(&network, there, &names).await;
            (network, there, said)
        });
    }
    let mut all = BTreeMap::new();
    for (network, there, said) in asked.join_all().await {
        match said {
            Ok(said) => all.extend(said.into_iter().map(|(name, said)| {
                let network = network.clone();
                (
                    Question {
                        network,
                        there,
                        name,
                    },
                    said,
                )
            })),
            Err(error) => log::debug!("ask for machines on another node: {error}"),
        }
    }
    // Where nobody could be asked, that is as silence.
    let silent = questions
        .iter()
        .filter(|question| !all.contains_key(*question));
    let silent: Vec<Question> = silent.cloned().collect();
    all.extend(silent.into_iter().map(|question| (question, Said::Nothing)));
    all
}

async fn ask_one(
    network: &str,
    there: Cidr,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, Said>, String> {
    let name = network.to_owned();
    let made = move || network::to_gateway(&name, there);
    let socket = tokio::task::spawn_blocking(made).await;
    let socket = socket.map_err(|error| error.to_string())??;
    let said = net::dns::ask(socket, there, names).await;
    said.map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "elsewhere_tests.rs"]
mod tests;
