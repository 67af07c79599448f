//! What happens to a deployment after it was deployed: get, wait, logs, stop, start, restart, delete.
//!
//! Owns: how a status reads, and which outcome a wait has.
//! Refuses: judging a status itself: `api::Until` says what is met.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::client::LogStream;
use api::{Begin, Client, ClientError, LogLine, Until, Verdict};
use serde_json::json;
use tokio::time::Instant;
use types::Name;
use types::deployment::{Action, Statement};
use types::status::{
    Ack, DeploymentStatus, Desired, Exit, RefusalCode, State, Timeline, VolumeState, VolumeStatus,
    WorkloadStatus,
};
use types::vm::Stream;

use crate::Context;
use crate::args::Target;
use crate::deploy::post;
use crate::failure::{TimedOut, Usage};
use crate::network_get::{PEERS, peers};
use crate::patience::Patience;
use crate::screen::table;
use crate::sites;
use crate::volumes;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Stop,
    Start,
    Restart,
    Delete,
    /// With its volumes.
    Destroy,
}

impl Verb {
    fn action(self, status: &DeploymentStatus) -> Action {
        match self {
            Self::Stop => Action::Stop,
            Self::Start => Action::Start,
            Self::Restart => Action::Restart,
            Self::Delete => Action::Delete,
            // What goes is signed by name; with nothing to name, it is a deletion as any.
            Self::Destroy if status.volumes.is_empty() => Action::Delete,
            Self::Destroy => Action::Destroy {
                volumes: status.volumes.keys().cloned().collect(),
            },
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Delete | Self::Destroy => "delete",
        }
    }

    /// What to wait for next.
    fn until(self) -> Until {
        match self {
            Self::Stop => Until::Stopped,
            Self::Start | Self::Restart => Until::Running,
            Self::Delete | Self::Destroy => Until::Deleted,
        }
    }
}

pub(crate) async fn act(context: &Context, name: Name, verb: Verb) -> anyhow::Result<()> {
    let clients = context.home.clients_of(context.node.as_deref(), &name)?;
    let [(node, _, client)] = &clients[..] else {
        let done = clients.iter().map(|(node, _, client)| {
            let one = async {
                match act_on(context, (node, client), &name, verb).await {
                    // Done before, while another of its nodes was away.
                    Err(error) if verb.until() == Until::Deleted && is_deleted(&error) => Ok(()),
                    done => done,
                }
            };
            (node, one)
        });
        return each(context, &name, done).await;
    };
    act_on(context, (node, client), &name, verb).await?;
    if !context.screen.is_json() {
        context
            .screen
            .note(&format!("next: sifr wait {name} --for {}", verb.until()));
    }
    Ok(())
}

/// Does it on each node, whatever becomes of one; an error says where it is not done.
async fn each<'a>(
    context: &Context,
    name: &Name,
    all: impl Iterator<Item = (&'a Name, impl Future<Output = anyhow::Result<()>>)>,
) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (node, one) in all {
        if let Err(error) = one.await {
            context.screen.note(&format!("{node}: {error:#}"));
            failed.push(node.as_str());
        }
    }
    match &failed[..] {
        [] => Ok(()),
        failed => bail!(
            "{name} on {}: not done; on its other nodes it is. Ask again, or one node with --node",
            failed.join(", ")
        ),
    }
}

async fn act_on(
    context: &Context,
    (node, client): (&Name, &Client),
    name: &Name,
    verb: Verb,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot {} {name}", verb.word());
    let status = client.deployment(name).await.with_context(cannot)?;
    if status.desired == Desired::Deleted {
        return Err(AlreadyDeleted(name.clone()).into());
    }
    let version = status.version.saturating_add(1);
    let statement = Statement {
        node: client.node(),
        name: name.clone(),
        version,
        action: verb.action(&status),
    };
    let ack = post(context, client, &statement)
        .await
        .with_context(cannot)?;
    let Ack {
        version, durable, ..
    } = ack;
    let durable = if durable { "durable" } else { "volatile" };
    let value = json!({ "node": node, "name": name, "version": version, "digest": ack.digest, "durable": ack.durable });
    context.screen.show(&value, || {
        format!(
            "{name} version {version}: {} · {node} · {durable}",
            verb.word()
        )
    })
}

pub(crate) async fn get(context: &Context, name: Option<Name>) -> anyhow::Result<()> {
    match name {
        Some(name) => {
            let clients = context.home.clients_of(context.node.as_deref(), &name)?;
            let cannot = || format!("cannot get {name}");
            let [(_, _, client)] = &clients[..] else {
                let one = async |node: &Name, client: &Client| {
                    let status = client.deployment(&name).await.with_context(cannot)?;
                    let value = json!({ "node": node, "status": status });
                    context
                        .screen
                        .show(&value, || format!("on {node}\n{}\n", detail(&status)))
                };
                let all = clients
                    .iter()
                    .map(|(node, _, client)| (node, one(node, client)));
                return each(context, &name, all).await;
            };
            let status = client.deployment(&name).await.with_context(cannot)?;
            context.screen.show(&status, || detail(&status))
        }
        None => {
            let (node, _, client) = context.home.client(context.node.as_deref())?;
            let all = client
                .deployments()
                .await
                .with_context(|| format!("cannot ask node {node}"))?;
            context.screen.show(&all, || {
                let living: Vec<_> = all.iter().filter(|status| !is_gone(status)).collect();
                match living.as_slice() {
                    [] => format!("no deployments of yours on {node}: `sifr deploy` makes one"),
                    living => statuses(living),
                }
            })
        }
    }
}

/// Only its version is left, so that it counts on.
fn is_gone(status: &DeploymentStatus) -> bool {
    status.desired == Desired::Deleted && status.workloads.is_empty()
}

pub(crate) async fn wait(
    context: &Context,
    name: Name,
    until: Until,
    limit: Duration,
) -> anyhow::Result<()> {
    let clients = context.home.clients_of(context.node.as_deref(), &name)?;
    let end = Instant::now() + limit;
    // One after the other: all have come so far when the last one has.
    for (at, (_, _, client)) in clients.iter().enumerate() {
        let left = match at {
            0 => limit,
            _ => end.saturating_duration_since(Instant::now()),
        };
        wait_on(context, client, &name, until, left).await?;
    }
    if until == Until::Deleted && context.node.is_none() {
        context.home.forget_spread(&name)?;
    }
    Ok(())
}

async fn wait_on(
    context: &Context,
    client: &Client,
    name: &Name,
    until: Until,
    limit: Duration,
) -> anyhow::Result<()> {
    let (status, verdict) = match outcome(context, client, name, until, limit).await {
        // Never deployed here, or forgotten: it is not there, which was asked for.
        Err(error) if until == Until::Deleted && is_not_found(&error) => {
            return context
                .screen
                .show(&json!({ "name": name, "desired": "deleted" }), || {
                    format!("{name} is deleted")
                });
        }
        answer => answer.with_context(|| format!("cannot wait for {name}"))?,
    };
    match verdict {
        Verdict::Met => context.screen.show(&status, || match until {
            // With what.
            Until::Exited => sketch(&status),
            Until::Running | Until::Stopped | Until::Deleted => format!("{name} is {until}"),
        }),
        Verdict::NotYet => {
            let late = format!(
                "{name} {} after {limit:?}: {}",
                not_yet(until),
                sketch(&status)
            );
            Err(TimedOut(late).into())
        }
        Verdict::Never => bail!(
            "{name} {}: {}{}",
            never(until),
            sketch(&status),
            advice(name, until, &status)
        ),
    }
}

/// How the wait ends, over absences of the node.
async fn outcome(
    context: &Context,
    client: &Client,
    name: &Name,
    until: Until,
    limit: Duration,
) -> anyhow::Result<(DeploymentStatus, Verdict)> {
    let end = Instant::now() + limit;
    let mut patience = Patience::new(context.screen);
    let mut last = String::new();
    loop {
        let seen = |status: &DeploymentStatus| {
            patience.heard();
            let line = sketch(status);
            // What ends the wait is said as its result.
            let on_the_way = until.judge(status) == Verdict::NotYet;
            if on_the_way && line != last && !context.screen.is_json() {
                context.screen.note(&line);
            }
            last = line;
        };
        let left = end.saturating_duration_since(Instant::now());
        match client.wait(name, until, left, seen).await {
            Err(error) => patience.bear(error).await?,
            Ok(answer) => return Ok(answer),
        }
        if Instant::now() >= end {
            let late = format!("the node was away when {limit:?} were over: {name} may be {until}");
            return Err(TimedOut(late).into());
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} has been deleted: `sifr deploy` makes it anew")]
struct AlreadyDeleted(Name);

fn is_deleted(error: &anyhow::Error) -> bool {
    error.is::<AlreadyDeleted>() || is_not_found(error)
}

fn is_not_found(error: &anyhow::Error) -> bool {
    let refusal = error.downcast_ref().and_then(ClientError::refusal);
    refusal.is_some_and(|refusal| refusal.code == RefusalCode::NotFound)
}

fn not_yet(until: Until) -> &'static str {
    match until {
        Until::Running => "is not running",
        Until::Stopped => "is not stopped",
        Until::Exited => "has not exited",
        Until::Deleted => "is not deleted",
    }
}

fn never(until: Until) -> &'static str {
    match until {
        Until::Running => "will not run",
        Until::Stopped => "will not stop",
        Until::Exited => "will not exit",
        Until::Deleted => "will not be deleted",
    }
}

/// Why a wait is in vain and what changes that.
fn advice(name: &Name, until: Until, status: &DeploymentStatus) -> String {
    match (until, status.desired) {
        (_, Desired::Deleted) => "\n  `sifr deploy` makes it anew.".to_owned(),
        (Until::Running | Until::Exited, Desired::Stopped) => {
            format!("\n  `sifr start {name}` starts it.")
        }
        (Until::Running | Until::Exited, Desired::Running) => {
            format!(
                "\n  `sifr logs {name}` shows what it wrote, `sifr restart {name}` starts it again."
            )
        }
        (Until::Deleted, Desired::Running | Desired::Stopped) => {
            format!("\n  `sifr delete {name}` deletes it.")
        }
        (Until::Stopped, Desired::Running | Desired::Stopped) => {
            format!("\n  `sifr stop {name}` stops it.")
        }
    }
}

pub(crate) async fn logs(
    context: &Context,
    target: Target,
    follow: bool,
    tail: Option<u64>,
) -> anyhow::Result<()> {
    let Target {
        deployment,
        workload,
    } = target;
    let of = (context.node.as_deref(), &deployment, workload.as_ref());
    let (_, _, client) = context.home.client_of(of.0, of.1, of.2)?;
    let workload = match workload {
        Some(workload) => workload,
        None => only_workload(&client, &deployment)
            .await
            .with_context(|| format!("cannot show the logs of {deployment}"))?,
    };
    let cannot = || format!("cannot show the logs of {deployment}/{workload}");
    let mut patience = Patience::new(context.screen);
    let mut begin = Begin::from(tail);
    loop {
        let lines = client.logs(&deployment, &workload, follow, begin).await;
        match copy(context, lines, &mut begin, &mut patience).await? {
            Ok(()) => break,
            Err(error) => patience.bear(error).await.with_context(cannot)?,
        }
    }
    // Nothing at all: why, stands elsewhere.
    if begin == Begin::Oldest && !context.screen.is_json() {
        context.screen.note(&format!(
            "{deployment}/{workload} has written nothing: `sifr get {deployment}` says how it is"
        ));
    }
    Ok(())
}

/// Writes what comes. `begin` follows, so that nothing is written twice or left out when the rest has to be
/// asked for on another connection. The inner result is the node's, the outer one our output's.
async fn copy(
    context: &Context,
    lines: Result<LogStream<'_>, ClientError>,
    begin: &mut Begin,
    patience: &mut Patience,
) -> io::Result<Result<(), ClientError>> {
    let mut lines = match lines {
        Ok(lines) => lines,
        Err(error) => return Ok(Err(error)),
    };
    patience.heard();
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                write_line(context, &line)?;
                let (seq, time_ms) = (line.seq, line.time_ms);
                *begin = Begin::After { seq, time_ms };
            }
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn write_line(context: &Context, line: &LogLine) -> io::Result<()> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    if context.screen.is_json() {
        out.write_all(&line.to_json_line())?;
        return out.flush();
    }
    match line.stream {
        Stream::Stdout => out.write_all(&line.data).and_then(|()| out.flush()),
        Stream::Stderr => err.write_all(&line.data),
    }
}

pub(crate) async fn only_workload(client: &Client, deployment: &Name) -> anyhow::Result<Name> {
    let status = client.deployment(deployment).await?;
    let names: Vec<&Name> = status.workloads.keys().collect();
    match names.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            bail!("{deployment} has no workloads: it has been deleted, `sifr deploy` makes it anew")
        }
        several => {
            let list = several
                .iter()
                .map(|name| format!("{deployment}/{name}"))
                .collect::<Vec<_>>()
                .join(", ");
            Err(Usage(format!(
                "{deployment} has several workloads, choose one: {list}"
            ))
            .into())
        }
    }
}

/// One deployment: its table, and how each machine came up.
fn detail(status: &DeploymentStatus) -> String {
    let mut out = statuses(&[status]);
    if !status.volumes.is_empty() {
        out.push_str(&format!("\n\n{}", volumes::rows(&[status])));
    }
    let pools = pools(status);
    if !pools.is_empty() {
        let headings = ["POOL", "RANGE", "ADDRESS", "USED BY"];
        out.push_str(&format!("\n\n{}", table(headings, &pools)));
    }
    let peers = peers(status);
    if !peers.is_empty() {
        out.push_str(&format!("\n\n{}", table(PEERS, &peers)));
    }
    let sites = sites::rows(status);
    if !sites.is_empty() {
        let headings = ["NAME", "SERVED BY", "ANSWERED", "CERTIFICATE", "SERVED"];
        out.push_str(&format!("\n\n{}", table(headings, &sites)));
    }
    for complaint in sites::complaints(status) {
        out.push_str(&format!("\n{}/{complaint}", status.name));
    }
    for condition in &status.conditions {
        let (code, message) = (condition.code, crate::screen::clean(&condition.message));
        out.push_str(&format!(
            "\n{}/{}: {code}: {message}",
            status.name, condition.workload
        ));
    }
    for (name, workload) in &status.workloads {
        if let Some(timeline) = &workload.timeline
            && let Some(drawn) = draw(timeline)
        {
            out.push_str(&format!(
                "\n{}/{name}, its newest start:\n{drawn}",
                status.name
            ));
        }
    }
    out
}

/// Columns of the longest bar.
const BAR: u64 = 40;

/// A bar for each step of a start, from the end of the step before it. `None`: nothing has been reached.
fn draw(timeline: &Timeline) -> Option<String> {
    let Timeline {
        image_ms,
        vmm_ms,
        vcpus_ms,
        guest_init_ms,
        program_ms,
    } = *timeline;
    let steps = [
        ("image open", image_ms),
        ("VMM started", vmm_ms),
        ("vCPUs run", vcpus_ms),
        ("guest init", guest_init_ms),
        ("program started", program_ms),
    ];
    let end = steps.iter().filter_map(|(_, ms)| *ms).max()?;
    let column = |ms: u64| {
        let scaled = u128::from(ms) * u128::from(BAR) / u128::from(end.max(1));
        usize::try_from(scaled).expect("at most the bar's length")
    };
    let mut before = 0;
    let mut out = String::new();
    for (step, ms) in steps {
        // An agent that was started again meanwhile has not heard of all.
        let Some(ms) = ms else { continue };
        let (from, to) = (column(before.min(ms)), column(ms));
        let bar = format!("{}{}", " ".repeat(from), "#".repeat((to - from).max(1)));
        out.push_str(&format!("  {step:<15} {ms:>7} ms  {bar}\n"));
        before = before.max(ms);
    }
    Some(out)
}

fn statuses(all: &[&DeploymentStatus]) -> String {
    let mut rows = Vec::new();
    for status in all {
        let head = |rest: [String; 6]| {
            let [state, address, ports, restarts, message, workload] = rest;
            let version = status.version.to_string();
            [
                status.name.to_string(),
                version,
                workload,
                state,
                address,
                ports,
                restarts,
                message,
            ]
        };
        if status.workloads.is_empty() {
            let none = String::new;
            rows.push(head([
                desired_word(status.desired).to_owned(),
                none(),
                none(),
                none(),
                none(),
                none(),
            ]));
        }
        for (name, workload) in &status.workloads {
            let ports: Vec<_> = workload.ports.iter().map(ToString::to_string).collect();
            rows.push(head([
                state_text(workload),
                addresses(workload),
                ports.join(" "),
                workload.restarts.to_string(),
                workload.message.clone().unwrap_or_default(),
                name.to_string(),
            ]));
        }
    }
    table(
        [
            "NAME", "VERSION", "WORKLOAD", "STATE", "ADDRESS", "PORTS", "RESTARTS", "MESSAGE",
        ],
        &rows,
    )
}

/// In its network, and of its own.
fn addresses(workload: &WorkloadStatus) -> String {
    let inside = workload.address.map(|address| address.to_string());
    let own = workload.addresses.iter().map(ToString::to_string);
    inside.into_iter().chain(own).collect::<Vec<_>>().join(" ")
}

/// The addresses of its pools, and who has them.
fn pools(status: &DeploymentStatus) -> Vec<[String; 4]> {
    let rows = status.pools.iter().flat_map(|(name, pool)| {
        let row = |address: String, who: &str| {
            [
                name.to_string(),
                pool.range.to_string(),
                address,
                who.to_owned(),
            ]
        };
        let used = pool.used.iter();
        let mut rows: Vec<_> = used.map(|(at, who)| row(at.to_string(), who)).collect();
        if rows.is_empty() {
            rows.push(row(String::new(), ""));
        }
        rows
    });
    rows.collect()
}

/// One line: every workload with its state.
fn sketch(status: &DeploymentStatus) -> String {
    if status.workloads.is_empty() && status.volumes.is_empty() {
        return format!("{} is {}", status.name, desired_word(status.desired));
    }
    let volume = |(name, volume): (&Name, &VolumeStatus)| {
        let message = volume.message.as_deref();
        let message = message.map(|m| format!(": {}", crate::screen::clean(m)));
        let state = volumes::state_word(volume.state);
        format!(
            "{}/{name} {state}{}",
            status.name,
            message.unwrap_or_default()
        )
    };
    let waited = status
        .volumes
        .iter()
        .filter(|(_, v)| v.state != VolumeState::Ready);
    let part = |(name, workload): (&Name, &WorkloadStatus)| {
        let message = workload
            .message
            .as_deref()
            .map(|m| format!(": {}", crate::screen::clean(m)))
            .unwrap_or_default();
        format!("{}/{name} {}{message}", status.name, state_text(workload))
    };
    status
        .workloads
        .iter()
        .map(part)
        .chain(waited.map(volume))
        .collect::<Vec<_>>()
        .join("; ")
}

fn state_text(workload: &WorkloadStatus) -> String {
    let ended = || {
        workload
            .exit
            .map(|exit| format!(" {}", exit_text(exit)))
            .unwrap_or_default()
    };
    match workload.state {
        State::Pending => "pending".to_owned(),
        State::Starting => "starting".to_owned(),
        State::Running => "running".to_owned(),
        State::Stopping => "stopping".to_owned(),
        State::Stopped => "stopped".to_owned(),
        State::Exited => format!("exited{}", ended()),
        State::Backoff => format!("backoff{}", ended()),
    }
}

fn exit_text(exit: Exit) -> String {
    match (exit.oom, exit.signal) {
        (true, _) => "(out of memory)".to_owned(),
        (false, Some(signal)) => format!("(signal {signal})"),
        (false, None) => format!("({})", exit.code),
    }
}

fn desired_word(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Stopped => "stopped",
        Desired::Deleted => "deleted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, exit: Option<Exit>) -> DeploymentStatus {
        let workload = WorkloadStatus {
            state,
            address: Some([10, 1, 0, 2].into()),
            addresses: Vec::new(),
            ports: vec![types::deployment::Port::tcp(80, 8080)],
            restarts: 3,
            exit,
            message: None,
            start_ms: None,
            chunks: None,
            timeline: None,
            code: None,
        };
        DeploymentStatus {
            name: "shop".parse().expect("a name"),
            version: 2,
            desired: Desired::Running,
            durable: true,
            workloads: [("web".parse().expect("a name"), workload)].into(),
            volumes: Default::default(),
            networks: Default::default(),
            pools: Default::default(),
            ingress: Default::default(),
            conditions: Vec::new(),
        }
    }

    #[test]
    fn a_status_is_one_row_per_workload() {
        let text = statuses(&[&status(State::Running, None)]);
        let row = "shop  2        web       running  10.1.0.2  80:8080  3         -";
        assert_eq!(text.lines().nth(1), Some(row), "{text}");
        let deleted = DeploymentStatus {
            desired: Desired::Deleted,
            workloads: [].into(),
            ..status(State::Running, None)
        };
        assert!(statuses(&[&deleted]).contains("deleted"));
    }

    #[test]
    fn a_start_is_drawn_step_by_step() {
        let timeline = Timeline {
            image_ms: Some(100),
            vmm_ms: Some(110),
            vcpus_ms: None,
            guest_init_ms: Some(390),
            program_ms: Some(400),
        };
        let drawn = draw(&timeline).expect("reached");
        let bars: Vec<_> = drawn.lines().map(|line| line.split_at(30).1).collect();
        assert_eq!(
            bars,
            [
                "##########",
                "          #",
                &format!("{}{}", " ".repeat(11), "#".repeat(28)),
                &format!("{}#", " ".repeat(39)),
            ],
            "{drawn}"
        );
        assert!(drawn.contains("program started     400 ms"), "{drawn}");
        assert_eq!(draw(&Timeline::default()), None);
        let late = Timeline {
            image_ms: Some(u64::MAX),
            vmm_ms: Some(1),
            ..Timeline::default()
        };
        assert!(draw(&late).is_some_and(|drawn| drawn.lines().count() == 2));
    }

    #[test]
    fn an_end_is_told_by_its_cause() {
        for (exit, text) in [
            (
                Exit {
                    code: 3,
                    signal: None,
                    oom: false,
                },
                "shop/web exited (3)",
            ),
            (
                Exit {
                    code: 137,
                    signal: Some(9),
                    oom: false,
                },
                "shop/web exited (signal 9)",
            ),
            (
                Exit {
                    code: 137,
                    signal: Some(9),
                    oom: true,
                },
                "shop/web exited (out of memory)",
            ),
        ] {
            assert_eq!(sketch(&status(State::Exited, Some(exit))), text);
        }
    }
}
