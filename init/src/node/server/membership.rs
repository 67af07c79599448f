//! What a node says of itself to who joins it with others.
//!
//! Owns: the keys that are needed for it. Refuses: choosing what it offers (the loop does).

use api::{Answer, SecretKey};
use types::status::Refusal;
use types::{Name, PublicKey};
use workload::desired::Key;

use super::super::context::NodeContext;
use super::super::engine::Request;
use super::super::mesh::{self, Keys};
use super::Server;

pub(super) struct Member {
    own: SecretKey,
    pub(super) keys: Keys,
}

impl Member {
    pub(super) fn of(context: &NodeContext) -> Self {
        Self {
            own: SecretKey::from_seed(context.seed),
            keys: Keys::of(&context.seed),
        }
    }
}

impl Server {
    pub(super) async fn membership(
        &self,
        signer: PublicKey,
        name: Name,
        network: Name,
    ) -> Result<Answer, Refusal> {
        let key = Key { signer, name };
        let (of, called) = (key.clone(), network.clone());
        let offer = self.ask(|reply| Request::Offer {
            key,
            network,
            reply,
        });
        let offer = offer.await?;
        let Member { own, keys } = &self.member;
        let info = self.info.borrow();
        let membership = mesh::membership((own, keys), (&of, &called), offer, &info)?;
        Ok(Answer::json(&membership))
    }
}
