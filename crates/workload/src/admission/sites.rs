//! Names of ingress: each leads to one deployment, and their ports are nobody's.
//!
//! Owns: who has a name first. Refuses: knowing whose a name is on the internet: that is for the certificate's issuer.

use types::deployment::{Deployment, Protocol};
use types::ingress::ports;
use types::status::{Refusal, RefusalCode};

use super::refuse;
use crate::desired::{Desired, Key};

/// Who was acknowledged first has the name, until it leaves it out or is deleted.
pub(super) fn check(key: &Key, deployment: &Deployment, desired: &Desired) -> Result<(), Refusal> {
    let own = ports(&deployment.ingress);
    let published = |of: &Deployment| -> Vec<u16> {
        let ports = of.machines().flat_map(|(_, machine)| &machine.ports);
        let tcp = ports.filter(|port| port.protocol == Protocol::Tcp);
        tcp.map(|port| port.node).collect()
    };
    let wanted = published(deployment);
    let others = desired.iter().filter(|(other, _)| *other != key);
    for (other, of) in others.filter_map(|(key, target)| Some((key, target.deployment()?))) {
        // Another tenant's names are nobody's business.
        let by = || match other.signer == key.signer {
            true => other.name.to_string(),
            false => "another tenant".to_owned(),
        };
        let twice = deployment
            .ingress
            .keys()
            .find(|host| of.ingress.contains_key(host));
        if let Some(host) = twice {
            return refuse(
                RefusalCode::Conflict,
                format!(
                    "the name {host} is served for {} on this node: choose another, or take it out of that deployment first",
                    by()
                ),
            );
        }
        let theirs = published(of);
        let port = own.iter().find(|port| theirs.contains(port));
        if let Some(port) = port {
            return refuse(
                RefusalCode::PortTaken,
                format!(
                    "TCP port {port} of the node is published by {}, and names of ingress are served there: publish that at another port first",
                    by()
                ),
            );
        }
        let served = ports(&of.ingress);
        if let Some(port) = wanted.iter().find(|port| served.contains(port)) {
            return refuse(
                RefusalCode::PortTaken,
                format!(
                    "at TCP port {port} of the node names of ingress are served, for {}: publish at another port",
                    by()
                ),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use types::deployment::Action;
    use types::{Digest, PublicKey};

    use super::*;
    use crate::desired::Verified;
    use crate::desired::tests::verified;

    fn deployment(more: &str, machine: &str) -> Deployment {
        let flist = Digest([1; 32]);
        let json = format!(
            r#"{{"workloads":{{"web":{{"machine":{{"image":{{"flist":"{flist}"}}{machine}}}}}}}{more}}}"#
        );
        serde_json::from_str(&json).expect("a deployment")
    }

    fn names(host: &str) -> String {
        format!(r#","ingress":{{"{host}":{{"routes":[{{"to":["web:80"]}}]}}}}"#)
    }

    fn said(signer: u8, name: &str, version: u64, action: Action) -> Verified {
        let mut said = verified(version, action);
        said.signer = PublicKey([signer; 32]);
        said.statement.name = name.parse().expect("a name");
        said
    }

    #[test]
    fn the_first_has_a_name_until_it_gives_it_up() {
        let mut desired = Desired::default();
        let shop = |version, action| said(1, "shop", version, action);
        let first = shop(1, Action::Deploy(deployment(&names("a.test"), "")));
        desired.apply(&first);
        let again = deployment(&names("a.test"), "");
        let other = said(1, "blog", 1, Action::Stop).key();
        let stranger = said(2, "blog", 1, Action::Stop).key();
        check(&first.key(), &again, &desired).expect("it is its own");
        let refusal = check(&other, &again, &desired).expect_err("it is taken");
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(
            refusal.message.contains("a.test is served for shop"),
            "{}",
            refusal.message
        );
        let refusal = check(&stranger, &again, &desired).expect_err("it is taken");
        assert!(
            refusal.message.contains("another tenant"),
            "{}",
            refusal.message
        );
        check(&other, &deployment(&names("b.test"), ""), &desired).expect("another name");
        desired.apply(&shop(2, Action::Stop));
        check(&other, &again, &desired).expect_err("one that is stopped has it still");
        desired.apply(&shop(3, Action::Delete));
        check(&other, &again, &desired).expect("nobody has it");
    }

    #[test]
    fn a_port_is_published_or_has_names_and_not_both() {
        let port = |node: u16, more: &str| {
            deployment(
                "",
                &format!(r#","ports":[{{"node":{node},"machine":80{more}}}]"#),
            )
        };
        let other = said(1, "blog", 1, Action::Stop).key();
        let mut named = Desired::default();
        named.apply(&said(
            1,
            "shop",
            1,
            Action::Deploy(deployment(&names("a.test"), "")),
        ));
        let refusal = check(&other, &port(80, ""), &named).expect_err("names are there");
        assert_eq!(refusal.code, RefusalCode::PortTaken);
        check(&other, &port(443, ""), &named).expect("nothing is served by TLS");
        check(&other, &port(80, r#","protocol":"udp""#), &named).expect("another protocol");
        let mut published = Desired::default();
        published.apply(&said(1, "shop", 1, Action::Deploy(port(80, ""))));
        let refusal = check(&other, &deployment(&names("a.test"), ""), &published);
        assert_eq!(
            refusal.expect_err("it is published").code,
            RefusalCode::PortTaken
        );
    }
}
