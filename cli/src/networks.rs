//! `sifr network`: what a machine's card sends and hears, and why it does not reach somebody.
//!
//! Owns: its words, where a capture goes, and when it ends. Refuses: a terminal, and reading what is in a frame.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::client::ByteStream;
use api::route::Frames;
use clap::Subcommand;
use serde_json::json;
use tokio::time::timeout;
use types::Name;
use types::deployment::Protocol;
use types::trace::{Destination, Outcome, Question, Step, Trace, Way};

use crate::Context;
use crate::args::{Target, duration};
use crate::failure::Usage;
use crate::lifecycle::only_workload;
use crate::screen::{clean, table};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// The networks of one deployment, or of all of yours: subnets, who is on them, and whether other nodes are heard
    Get { name: Option<Name> },
    /// Write down what a machine's card sends and hears, as tcpdump and Wireshark read it
    Capture {
        /// Deployment, or deployment/workload
        target: Target,
        /// The card in this network [default: in its first]
        #[arg(long, value_name = "NAME")]
        network: Option<Name>,
        /// Where to; to standard output where there is none
        #[arg(short, long, value_name = "FILE")]
        write: Option<PathBuf>,
        /// Of each frame at most so many bytes
        #[arg(long, value_name = "BYTES", default_value_t = api::route::SNAP_MAX,
              value_parser = clap::value_parser!(u32).range(1..=i64::from(api::route::SNAP_MAX)))]
        snap: u32,
        /// End after a time, for example 90s or 5m; a node ends it after an hour
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        limit: Option<Duration>,
    },
    /// Say whether a first packet gets from a machine to somebody, which rule decides, and what to do. Nothing is sent
    Trace {
        /// Deployment, or deployment/workload; or `outside`, to the machine's published port
        #[arg(value_name = "FROM")]
        from: String,
        /// Address, or name as the machine would ask for it; from outside: deployment, or deployment/workload
        #[arg(value_name = "TO")]
        to: String,
        /// To this TCP port; without it and --udp a ping
        #[arg(long, value_name = "PORT", conflicts_with = "udp")]
        tcp: Option<u16>,
        /// To this UDP port
        #[arg(long, value_name = "PORT")]
        udp: Option<u16>,
    },
}

pub(crate) async fn network(context: &Context, command: NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Get { name } => crate::network_get::get(context, name).await,
        NetworkCommand::Capture {
            target,
            network,
            write,
            snap,
            limit,
        } => {
            let frames = Frames { network, snap };
            capture(context, target, &frames, write.as_deref(), limit).await
        }
        NetworkCommand::Trace { from, to, tcp, udp } => {
            let tcp = tcp.map(|port| (Protocol::Tcp, port));
            let port = tcp.or(udp.map(|port| (Protocol::Udp, port)));
            trace(context, &from, &to, port).await
        }
    }
}

/// What stands for everybody who is not on the node. A deployment of that name is `outside/main`.
const OUTSIDE: &str = "outside";

async fn trace(
    context: &Context,
    from: &str,
    to: &str,
    port: Option<(Protocol, u16)>,
) -> anyhow::Result<()> {
    let usage = |error: String| anyhow::Error::from(Usage(error));
    let (target, way) = match from == OUTSIDE {
        true => (to, Way::FromOutside),
        false => {
            let destination = to.parse::<Destination>();
            let destination = destination.map_err(|error| usage(error.to_string()))?;
            (from, Way::To(destination))
        }
    };
    let target = target.parse::<Target>();
    let target = target.map_err(|error| usage(error.to_string()))?;
    let (_, _, client) = context.home.client(context.node.as_deref())?;
    let deployment = target.deployment;
    let cannot = || format!("cannot say how {from} reaches {to}");
    let workload = match target.workload {
        Some(workload) => workload,
        None => only_workload(&client, &deployment)
            .await
            .with_context(cannot)?,
    };
    let question = Question { way, port };
    let trace = client
        .network_trace(&deployment, &workload, question)
        .await
        .with_context(cannot)?;
    context.screen.show(&json!(trace), || shown(&trace))
}

/// A line for each place, and what comes of it.
fn shown(trace: &Trace) -> String {
    let row = |step: &Step| {
        let chains = step.chains.join(" > ");
        [
            step.place.to_string(),
            step.verdict.clone(),
            chains,
            step.rule.clone(),
        ]
    };
    let rows: Vec<[String; 4]> = trace.steps.iter().map(row).collect();
    let end = match trace.outcome {
        Outcome::Delivered => "delivered",
        Outcome::Leaves => "leaves the node",
        Outcome::Refused => "refused, and the sender is told",
        Outcome::Dropped => "dropped without a word",
        Outcome::Nowhere => "leads nowhere",
    };
    let end = format!("{end}: {}", clean(&trace.message));
    match rows.is_empty() {
        true => end,
        false => format!(
            "{}{end}",
            table(["PLACE", "VERDICT", "CHAIN", "RULE"], &rows)
        ),
    }
}

async fn capture(
    context: &Context,
    target: Target,
    frames: &Frames,
    file: Option<&Path>,
    limit: Option<Duration>,
) -> anyhow::Result<()> {
    if file.is_none() && io::stdout().is_terminal() {
        bail!("a capture is no text: add -w FILE, or | tcpdump -nr -");
    }
    let (of, workload) = (&target.deployment, target.workload.as_ref());
    let node = context.node.as_deref();
    let (_, _, client) = context.home.client_of(node, of, workload)?;
    let deployment = target.deployment;
    let cannot = || format!("cannot capture what {deployment} sends and hears");
    let workload = match target.workload {
        Some(workload) => workload,
        None => only_workload(&client, &deployment)
            .await
            .with_context(cannot)?,
    };
    let mut bytes = client
        .capture(&deployment, &workload, frames)
        .await
        .with_context(cannot)?;
    let mut to: Box<dyn Write> = match file {
        None => Box::new(io::stdout()),
        Some(path) => {
            let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
            Box::new(file)
        }
    };
    let mut written = 0;
    let copied = copy(context, &mut bytes, &mut *to, &mut written);
    match limit {
        None => copied.await.with_context(cannot)?,
        // That time is up is what was asked for.
        Some(limit) => timeout(limit, copied)
            .await
            .unwrap_or(Ok(()))
            .with_context(cannot)?,
    }
    context.screen.note(&format!(
        "{written} bytes about {deployment}/{workload} are written down"
    ));
    Ok(())
}

/// Whole blocks come and are written at once, so that a file whose writer was stopped can be read.
async fn copy(
    context: &Context,
    bytes: &mut ByteStream<'_>,
    to: &mut dyn Write,
    written: &mut u64,
) -> anyhow::Result<()> {
    let mut is_begun = false;
    while let Some(piece) = bytes.next().await? {
        to.write_all(&piece).and_then(|()| to.flush())?;
        *written += piece.len() as u64;
        if !std::mem::replace(&mut is_begun, true) {
            context.screen.note("capturing: end it with Ctrl-C");
        }
    }
    Ok(())
}
