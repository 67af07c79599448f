//! Networks as this process has made them last.
//!
//! Owns: which of them need no look. Refuses: what somebody else has made of them since; nobody else changes them, and a process that begins
//! anew knows of none and looks at all.

use std::collections::BTreeMap;

use net::firewall::policy;
use net::network::Network;

use super::Tenant;

/// One whose plan has not changed is left as it is: each look at a network costs milliseconds, and a node with a hundred tenants
/// would look at all of them for each machine that starts.
#[derive(Debug, Default)]
pub(crate) struct Laid {
    /// Whose rules stand, with no connection that they would not let begin.
    node: Option<policy::Node>,
    tenants: BTreeMap<String, (Network, policy::Tenant)>,
}

impl Laid {
    pub(super) fn stands(&self, name: &str, tenant: &Tenant) -> bool {
        let laid = self.tenants.get(name);
        laid.is_some_and(|(network, policy)| (network, policy) == (&tenant.network, &tenant.policy))
    }

    pub(super) fn note(&mut self, name: &str, tenant: &Tenant) {
        let made = (tenant.network.clone(), tenant.policy.clone());
        self.tenants.insert(name.to_owned(), made);
    }

    /// It is about to be changed, and may fail half way. Gives what it let in and out.
    pub(super) fn forget(&mut self, name: &str) -> Option<policy::Tenant> {
        self.tenants.remove(name).map(|(_, policy)| policy)
    }

    /// The same of the node's own rules.
    pub(super) fn note_node(&mut self, node: &policy::Node) {
        self.node = Some(node.clone());
    }

    pub(super) fn forget_node(&mut self) -> Option<policy::Node> {
        self.node.take()
    }
}

#[cfg(test)]
mod tests {
    use types::VmId;
    use workload::host::{Placed, Places};

    use super::super::tests::{keys, place};
    use super::super::{Uplink, plan};
    use super::*;

    #[test]
    fn a_network_whose_plan_is_as_it_was_is_left_alone_and_one_that_failed_is_not() {
        let of = |machines: &[(VmId, Placed)]| {
            let machines = machines.iter().cloned().collect();
            let places = Places {
                machines,
                ..Places::default()
            };
            let plan = plan(&places, &Uplink::default(), [1, 2, 3, 4, 5], &keys());
            plan.tenants.into_iter().next().expect("a network")
        };
        let web = place("shop", "web", [10, 130, 1, 2], &[]);
        let db = place("shop", "db", [10, 130, 1, 3], &[]);
        let (name, one) = of(std::slice::from_ref(&web));
        let (_, two) = of(&[web, db]);
        let mut laid = Laid::default();
        assert!(!laid.stands(&name, &one), "nothing is known at first");
        laid.note(&name, &one);
        assert!(laid.stands(&name, &one) && !laid.stands(&name, &two));
        laid.forget(&name);
        assert!(
            !laid.stands(&name, &one),
            "it was begun and did not come to its end"
        );
    }
}
