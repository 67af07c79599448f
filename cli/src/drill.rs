//! `sifr node drill`: kills a process of a node as a crash would.
//!
//! Owns: what a person reads about it, and for the node agent the wait until another one answers.
//! Refuses: judging what came of it: `sifr get`, `sifr wait` and the tenant's own page do.

use anyhow::{Context as _, bail};
use api::Client;
use serde_json::json;
use tokio::time::Instant;
use types::Name;
use types::node::{Drill, Drilled};

use crate::Context;
use crate::args::DrillTarget;
use crate::lifecycle::only_workload;
use crate::patience::{AWAY_MAX, PAUSE};
use crate::screen::{Screen, time};

pub(crate) async fn drill(context: &Context, target: DrillTarget) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let drill = match target {
        DrillTarget::Node => Drill::Node {},
        DrillTarget::Chunks => Drill::Chunks {},
        DrillTarget::Ingress => Drill::Ingress {},
        DrillTarget::Machine(target) => {
            let deployment = target.deployment;
            let workload = match target.workload {
                Some(workload) => workload,
                None => only_workload(&client, &deployment)
                    .await
                    .with_context(|| format!("cannot drill {deployment}"))?,
            };
            Drill::Machine {
                deployment,
                workload,
            }
        }
    };
    let asked = Instant::now();
    let Drilled { pid } = client
        .drill(&drill)
        .await
        .with_context(|| format!("cannot drill on node {node}"))?;
    let screen = &context.screen;
    match drill {
        Drill::Node {} => {
            screen.note(&format!(
                "the node agent (process {pid}) of {node} was killed as by a crash; its machines run on"
            ));
            let successor = successor(&client, pid).await?;
            let back_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
            let value = json!({ "node": node, "killed": "node", "pid": pid, "successor": successor, "back_ms": back_ms });
            screen.show(&value, || {
                format!(
                    "another node agent (process {successor}) answers after {}\n\
                     look: `sifr get` still shows every machine, with the same RESTARTS",
                    time(back_ms)
                )
            })
        }
        Drill::Chunks {} => daemon(
            screen,
            &node,
            ("chunks", "the chunk daemon", pid),
            "machines run on; what they read of their image meanwhile comes a little later",
        ),
        Drill::Ingress {} => daemon(
            screen,
            &node,
            ("ingress", "the ingress process", pid),
            "connections under names are cut, and new ones are served a moment later",
        ),
        Drill::Machine {
            deployment,
            workload,
        } => {
            let value = json!({
                "node": node, "killed": "machine", "deployment": deployment, "workload": workload, "pid": pid,
            });
            screen.show(&value, || {
                format!(
                    "the VMM (process {pid}) of {deployment}/{workload} on {node} was killed: a power cut for its guest\n\
                     look: `sifr get {deployment}` says why it ended, `sifr wait {deployment}` when it runs again"
                )
            })
        }
    }
}

/// One of those that pid1 starts again at once: its word, what it is called, its process.
fn daemon(
    screen: &Screen,
    node: &Name,
    (word, called, pid): (&str, &str, u32),
    look: &str,
) -> anyhow::Result<()> {
    let value = json!({ "node": node, "killed": word, "pid": pid });
    screen.show(&value, || {
        format!(
            "{called} (process {pid}) of {node} was killed as by a crash; another is started at once\n\
             look: {look}"
        )
    })
}

/// The process of another node agent, once one answers.
async fn successor(client: &Client, killed: u32) -> anyhow::Result<u32> {
    let end = Instant::now() + AWAY_MAX;
    loop {
        let error = match client.node_info().await {
            Ok(info) if info.agent_pid != killed => return Ok(info.agent_pid),
            // Its last moment.
            Ok(_) => None,
            Err(error) if error.absence().is_some() => Some(error),
            Err(error) => return Err(error).context("cannot ask the node after the drill"),
        };
        if Instant::now() >= end {
            let limit = AWAY_MAX.as_secs();
            let late = format!(
                "no other node agent answers after {limit} s: the node's console shows why it does not start"
            );
            match error {
                Some(error) => return Err(anyhow::Error::from(error).context(late)),
                None => bail!("{late}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
