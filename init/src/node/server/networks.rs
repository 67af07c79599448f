//! What a tenant is told of the networks of its own machines: frames, and why somebody is not reached.
//!
//! Owns: whose machine it is, and that it has a card. Refuses: machines of others, by not knowing them.

use api::Answer;
use types::status::{Refusal, RefusalCode};
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
        snap: u32,
    ) -> Result<Answer, Refusal> {
        let address = self.workload(key, workload).await?.address;
        let card = address.and_then(network::card).ok_or_else(|| {
            let message = format!(
                "{}/{workload} has no card yet: `sifr get` says how it is",
                key.name
            );
            refusal(RefusalCode::NotFound, message)
        })?;
        self.captures.begin(card, workload, snap).await
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
