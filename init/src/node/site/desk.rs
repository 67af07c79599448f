//! Requests about the node's own network, and their answers.
//!
//! Owns: that what changes the network begins when its answer has been read: it may end the connection.
//! Refuses: judging a change.

use api::{Answer, Body};
use tokio::sync::{mpsc, oneshot};
use types::site::Confirm;
use types::status::{Refusal, RefusalCode};

use super::Ask;
use crate::node::server::{refusal, restarting};

/// Where requests are taken down.
#[derive(Debug, Clone)]
pub(crate) struct Desk(mpsc::Sender<Ask>);

impl Desk {
    pub(crate) fn new(asked: mpsc::Sender<Ask>) -> Self {
        Self(asked)
    }

    /// `POST /v1/node/network`
    pub(crate) async fn set(&self, body: Body) -> Result<Answer, Refusal> {
        let envelope = body.collect().await?;
        let proposed = self.ask(|reply| Ask::Propose { envelope, reply });
        let (trial, turn) = proposed.await?;
        Ok(self.after(Answer::json(&trial), Ask::Begin { turn }))
    }

    /// `POST /v1/node/network/confirm`
    pub(crate) async fn confirm(&self, body: Body) -> Result<Answer, Refusal> {
        let connected = body.connected();
        let Confirm { version } = read(body).await?;
        let confirmed = self.ask(|reply| Ask::Confirm {
            version,
            connected,
            reply,
        });
        Ok(Answer::json(&confirmed.await?))
    }

    /// `POST /v1/node/network/revert`. Its answer says that it will be done: it may be the last that comes over this network.
    pub(crate) async fn revert(&self, body: Body) -> Result<Answer, Refusal> {
        let confirm = read(body).await?;
        let version = confirm.version;
        let turn = self.ask(|reply| Ask::Find { version, reply }).await?;
        Ok(self.after(Answer::json(&confirm), Ask::End { turn }))
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Ask,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(request(reply)).await;
        sent.map_err(|_| restarting())?;
        answer.await.map_err(|_| restarting())?
    }

    fn after(&self, answer: Answer, ask: Ask) -> Answer {
        let (answer, over) = answer.last();
        let asked = self.0.clone();
        tokio::task::spawn_local(async move {
            // It ends with the connection; nothing is ever sent.
            let _ = over.await;
            // Fails only when the loop has ended, and this process with it.
            let _ = asked.send(ask).await;
        });
        answer
    }
}

async fn read(body: Body) -> Result<Confirm, Refusal> {
    serde_json::from_slice(&body.collect().await?).map_err(|error| {
        let message = format!("{error}: it is the version of a change, as {{\"version\":1}}");
        refusal(RefusalCode::Malformed, message)
    })
}
