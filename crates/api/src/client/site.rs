//! The calls about a node's own network.
//!
//! Owns: that each is asked once, and on a connection of its own: that is what a confirmation proves.
//! Refuses: asking again (the caller knows where).

use types::site::{Confirm, Confirmed, Trial};

use super::{Client, ClientError};
use crate::envelope::Envelope;
use crate::route::Route;

impl Client {
    /// Another set of options, which the node uses once this has returned.
    pub async fn set_network(&self, envelope: &Envelope) -> Result<Trial, ClientError> {
        let route = Route::SetNetwork;
        let connection = self.open().await?;
        let answer = self
            .send(connection, &route, envelope.to_json().into())
            .await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    pub async fn confirm_network(&self, version: u64) -> Result<Confirmed, ClientError> {
        self.of_version(Route::ConfirmNetwork, version).await
    }

    /// What is tried is taken back once this has returned.
    pub async fn revert_network(&self, version: u64) -> Result<Confirm, ClientError> {
        self.of_version(Route::RevertNetwork, version).await
    }

    async fn of_version<T: serde::de::DeserializeOwned>(
        &self,
        route: Route,
        version: u64,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(&Confirm { version }).expect("a number");
        let connection = self.open().await?;
        let answer = self.send(connection, &route, body.into()).await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }
}
