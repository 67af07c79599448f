//! What a tenant is told of the networks of its own machines: frames, and why somebody is not reached.
//!
//! Owns: whose machine it is, and that it has a card. Refuses: machines of others, by not knowing them.

use std::net::Ipv4Addr;

use api::Answer;
use api::route::Frames;
use types::status::{DeploymentStatus, Refusal, RefusalCode};
use types::trace::Question;
use types::{Name, VmId};
use workload::desired::Key;

use super::super::engine::Request;
use super::super::network;
use super::{Server, refusal};

impl Server {
    pub(super) async fn capture(
        &self,
        key: &Key,
        workload: &Name,
        frames: Frames,
    ) -> Result<Answer, Refusal> {
        let first = self.workload(key, workload).await?.address;
        let address = match &frames.network {
            None => first,
            Some(network) => Some(card_in(&self.status(key).await?, workload, network)?),
        };
        let card = address.and_then(network::card).ok_or_else(|| {
            let message = format!(
                "{}/{workload} has no card yet: `sifr get` says how it is",
                key.name
            );
            refusal(RefusalCode::NotFound, message)
        })?;
        self.captures.begin(card, workload, frames.snap).await
    }

    /// Whether a packet gets from or to a machine of the caller's, by what its network is to be now.
    pub(super) async fn network_trace(
        &self,
        key: &Key,
        workload: &Name,
        question: &Question,
    ) -> Result<Answer, Refusal> {
        self.workload(key, workload).await?;
        let places = self.ask(|reply| Request::Places { reply }).await?;
        let of = places
            .machines
            .get(&VmId::new(&key.signer, &key.name, workload));
        let of = of.ok_or_else(|| {
            let name = &key.name;
            let message = format!(
                "{name}/{workload} is on no network now: start it first, `sifr get {name}` says how it is"
            );
            refusal(RefusalCode::NotFound, message)
        })?;
        let scene = network::trace::Scene {
            places: &places,
            uplink: &self.uplink.borrow(),
            ula: self.ula,
            keys: &self.member.keys,
        };
        let trace = network::trace::trace(&scene, of, question);
        Ok(Answer::json(&trace))
    }
}

/// A machine's address in one of its deployment's own networks.
fn card_in(
    status: &DeploymentStatus,
    workload: &Name,
    network: &Name,
) -> Result<Ipv4Addr, Refusal> {
    let of = status.networks.get(network);
    let address = of.and_then(|of| of.machines.get(workload));
    address.copied().ok_or_else(|| {
        let on = status.networks.iter();
        let on = on.filter(|(_, of)| of.machines.contains_key(workload));
        let on: Vec<_> = on.map(|(name, _)| name.as_str()).collect();
        let on = match on.is_empty() {
            true => {
                "it is on none of the deployment's own networks: leave --network out".to_owned()
            }
            false => format!("it is on {}", on.join(", ")),
        };
        let name = &status.name;
        let message = format!("{name}/{workload} has no card in a network {network}: {on}");
        refusal(RefusalCode::NotFound, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_network_and_who_has_none_there_is_told_where_it_is() {
        let json = r#"{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{},
            "networks":{"back":{"subnet":null,"machines":{"db":"10.128.2.2"}},
            "front":{"subnet":null,"machines":{"db":"10.128.3.2","web":"10.128.3.3"}}}}"#;
        let status: DeploymentStatus = serde_json::from_str(json).expect("a status");
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let found = card_in(&status, &name("db"), &name("back"));
        assert_eq!(found, Ok(Ipv4Addr::new(10, 128, 2, 2)));
        for (workload, network, says) in [
            ("web", "back", "it is on front"),
            ("db", "side", "it is on back, front"),
            ("other", "front", "leave --network out"),
        ] {
            let refused = card_in(&status, &name(workload), &name(network)).expect_err("none");
            assert!(refused.message.contains(says), "{refused:?}");
        }
    }
}
