//! `sifr network`: looking at what a machine's card sends and hears.
//!
//! Owns: where a capture goes, and when it ends. Refuses: a terminal, and reading what is in a frame.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::client::ByteStream;
use tokio::time::timeout;

use crate::Context;
use crate::args::{NetworkCommand, Target};
use crate::lifecycle::only_workload;

pub(crate) async fn network(context: &Context, command: NetworkCommand) -> anyhow::Result<()> {
    let NetworkCommand::Capture {
        target,
        write,
        snap,
        limit,
    } = command;
    capture(context, target, write.as_deref(), snap, limit).await
}

async fn capture(
    context: &Context,
    target: Target,
    file: Option<&Path>,
    snap: u32,
    limit: Option<Duration>,
) -> anyhow::Result<()> {
    if file.is_none() && io::stdout().is_terminal() {
        bail!("a capture is no text: add -w FILE, or | tcpdump -nr -");
    }
    let (_, _, client) = context.home.client(context.node.as_deref())?;
    let deployment = target.deployment;
    let cannot = || format!("cannot capture what {deployment} sends and hears");
    let workload = match target.workload {
        Some(workload) => workload,
        None => only_workload(&client, &deployment)
            .await
            .with_context(cannot)?,
    };
    let mut bytes = client
        .capture(&deployment, &workload, snap)
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
