//! The reconciler's names of ingress: where the machines are that requests go to.
//!
//! Owns: what follows from the addresses that machines have, and from the peers in the statement. Refuses: serving, judging who answers,
//! and the addresses of machines on other nodes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use types::elsewhere::Way;
use types::ingress::{Host, Site};
use types::{Name, VmId};

use super::Reconciler;
use crate::desired::{Key, Phase, Target};
use crate::host::{Placed, PlacedElsewhere, PlacedSite};

impl Reconciler {
    /// Names of all deployments; of one that is stopped too, so that who asks is told that nobody answers.
    pub(super) fn sites(&self, machines: &BTreeMap<VmId, Placed>) -> BTreeMap<Host, PlacedSite> {
        let all = self.desired.iter().flat_map(|(key, target)| {
            let sites = target.sites.iter();
            sites.map(move |(host, site)| (host, key, target, site))
        });
        let place = |(host, key, target, site): (&Host, &Key, &Target, &Arc<Site>)| {
            let placed = PlacedSite {
                key: key.clone(),
                site: site.clone(),
                machines: placed(key, target, machines),
                elsewhere: elsewhere(target, site),
            };
            (host.clone(), placed)
        };
        all.map(place).collect()
    }
}

/// The machines of a deployment in the first of their networks.
fn placed(
    key: &Key,
    target: &Target,
    machines: &BTreeMap<VmId, Placed>,
) -> BTreeMap<Name, Ipv4Addr> {
    let deployment = target.deployment().into_iter();
    let names = deployment.flat_map(|deployment| deployment.machines());
    let address = |name: &Name| {
        let place = machines.get(&VmId::new(&key.signer, &key.name, name))?;
        // A long name's id may be another machine's for a while.
        let first = place
            .cards
            .first()
            .filter(|_| place.key == *key && place.workload == *name)?;
        Some((name.clone(), first.address))
    };
    names.filter_map(|(name, _)| address(name)).collect()
}

/// The machines behind a name that are on other nodes. Of a deployment that is stopped here nobody answers, wherever.
fn elsewhere(target: &Target, site: &Site) -> BTreeMap<Name, PlacedElsewhere> {
    let Phase::Running(deployment) = &target.phase else {
        return BTreeMap::new();
    };
    let way = |name: &Name| match deployment.way_to(name) {
        Way::By(way) => Some(PlacedElsewhere {
            node: way.node.clone(),
            here: way.here,
            there: way.there,
        }),
        Way::Nowhere | Way::Internal | Way::Several(..) => None,
    };
    let machines = site.backends().map(|backend| &backend.machine);
    machines
        .filter_map(|name| Some((name.clone(), way(name)?)))
        .collect()
}
