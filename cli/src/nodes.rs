//! `sifr key` and `sifr node`.
//!
//! Owns: making and showing the key, the list of known nodes, and a node's report.
//! Refuses: to learn a node's key from the network: it is read from the console.

use std::io::{self, Write};

use anyhow::Context as _;
use api::{Client, SecretKey};
use serde_json::json;
use tokio::task::JoinSet;
use types::Name;
use types::node::{NodeInfo, Pool, PoolState};

use crate::Context;
use crate::args::{KeyCommand, NodeCommand};
use crate::home::Pin;
use crate::screen::{fields, mebibytes, table, time};

/// Digits of a pool's id that are shown: among the pools of a node they are its own.
const ID_SHOWN: usize = 8;

pub(crate) fn key(context: &Context, command: KeyCommand) -> anyhow::Result<()> {
    let (home, screen) = (&context.home, &context.screen);
    match command {
        KeyCommand::New => {
            home.make_directory()?;
            let key = SecretKey::generate()?;
            key.save(home.key_file())?;
            let file = home.key_file().display();
            screen.note(&format!(
                "secret key in {file}: keep a copy where nobody else reads it"
            ));
            screen.show(
                &json!({ "key": key.public(), "file": home.key_file() }),
                || key.public().to_string(),
            )
        }
        KeyCommand::Recovery(options) => crate::recovery::new(context, &options),
        KeyCommand::Show { pem: false } => {
            let public = home.key()?.public();
            screen.show(&json!({ "key": public, "file": home.key_file() }), || {
                public.to_string()
            })
        }
        KeyCommand::Show { pem: true } => {
            let pem = api::tls::pem(&home.key()?)?;
            let value = json!({ "certificate": &pem.certificate, "key": &pem.key });
            screen.show(&value, || format!("{}{}", pem.certificate, pem.key))
        }
    }
}

pub(crate) async fn node(context: &Context, command: NodeCommand) -> anyhow::Result<()> {
    let (home, screen) = (&context.home, &context.screen);
    match command {
        NodeCommand::Add {
            name,
            address,
            key,
            replace,
        } => {
            let mut nodes = home.nodes()?;
            let pin = Pin { address, key };
            nodes.add(name.clone(), pin.clone(), replace)?;
            home.save_nodes(&nodes)?;
            screen.show(
                &json!({ "name": name, "address": pin.address, "key": pin.key }),
                || format!("{name} is {} at {}", pin.key, pin.address),
            )
        }
        NodeCommand::Remove { name } => {
            let mut nodes = home.nodes()?;
            nodes.remove(&name)?;
            home.save_nodes(&nodes)?;
            screen.show(&json!({ "removed": name }), || {
                format!("{name} is forgotten; it goes on running")
            })
        }
        NodeCommand::Use { name } => {
            let mut nodes = home.nodes()?;
            nodes.choose(Some(name.as_str()))?;
            nodes.default = Some(name.clone());
            home.save_nodes(&nodes)?;
            screen.show(&json!({ "default": name }), || {
                format!("{name} is used where --node is not given")
            })
        }
        NodeCommand::List => list(context).await,
        NodeCommand::Info => {
            let (name, pin, client) = home.client(context.node.as_deref())?;
            let info = client
                .node_info()
                .await
                .with_context(|| format!("cannot ask node {name}"))?;
            screen.show(&info, || report(&name, &pin, &info))
        }
        NodeCommand::Decommission(options) => {
            crate::recovery::decommission(context, &options).await
        }
        NodeCommand::Network(command) => crate::site::site(context, command).await,
        NodeCommand::Drill { target } => crate::drill::drill(context, target).await,
        NodeCommand::Metrics => metrics(context, None).await,
        NodeCommand::Links => crate::links::links(context).await,
        NodeCommand::Routes => crate::links::routes(context).await,
        NodeCommand::Refused => crate::refused::show(context).await,
        NodeCommand::Dmesg => {
            let (name, _, client) = home.client(context.node.as_deref())?;
            let text = client
                .dmesg()
                .await
                .with_context(|| format!("cannot ask node {name}"))?;
            copy(context, "dmesg", &text)
        }
    }
}

/// What a node, or with a name a deployment, has counted.
pub(crate) async fn metrics(context: &Context, deployment: Option<Name>) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let text = client.metrics(deployment.as_ref()).await;
    let text = text.with_context(|| match deployment {
        None => format!("cannot ask node {node}"),
        Some(name) => format!("cannot show the metrics of {name}"),
    })?;
    copy(context, "metrics", &text)
}

/// A text of a node as it is, but for control characters.
fn copy(context: &Context, what: &str, text: &[u8]) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(text);
    if context.screen.is_json() {
        return context.screen.show(&json!({ what: text }), String::new);
    }
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect();
    Ok(io::stdout().lock().write_all(clean.as_bytes())?)
}

/// Asks all at once: one that is off does not hold up the others.
async fn list(context: &Context) -> anyhow::Result<()> {
    let nodes = context.home.nodes()?;
    let mut asked = JoinSet::new();
    for (name, pin) in nodes.nodes.clone() {
        let client = context
            .home
            .key()
            .and_then(|key| Ok(Client::new(&pin.address, pin.key, &key)?));
        asked.spawn(async move {
            let answer = match client {
                Ok(client) => client.node_info().await.map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            (name, pin, answer)
        });
    }
    let mut answers: Vec<(Name, Pin, anyhow::Result<NodeInfo>)> = asked.join_all().await;
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    let value: Vec<_> = answers
        .iter()
        .map(|(name, pin, answer)| {
            let error = answer.as_ref().err().map(|error| format!("{error:#}"));
            let default = nodes.default.as_ref() == Some(name);
            json!({ "name": name, "address": pin.address, "key": pin.key, "default": default, "info": answer.as_ref().ok(), "error": error })
        })
        .collect();
    let row = |(name, pin, answer): &(Name, Pin, anyhow::Result<NodeInfo>)| {
        let mut key = pin.key.to_string();
        key.truncate("ed25519:".len() + 12);
        let [cpus, memory, disk, state] = match answer {
            Ok(info) => summary(info),
            Err(error) => [
                String::new(),
                String::new(),
                String::new(),
                first_line(&error.to_string()),
            ],
        };
        [
            name.to_string(),
            pin.address.clone(),
            format!("{key}…"),
            cpus,
            memory,
            disk,
            state,
        ]
    };
    let rows: Vec<_> = answers.iter().map(row).collect();
    let headings = ["NAME", "ADDRESS", "KEY", "CPUS", "MEMORY", "DISK", "STATE"];
    context.screen.show(&value, || table(headings, &rows))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn summary(info: &NodeInfo) -> [String; 4] {
    let state = match (&info.virtualisation_problem, info.owner, info.durable) {
        (Some(problem), _, _) => format!("no machines: {problem}"),
        (None, None, _) => "no owner key: it accepts nothing".to_owned(),
        (None, Some(_), true) => "ready".to_owned(),
        (None, Some(_), false) => "ready, volatile".to_owned(),
    };
    let [cpus, memory, disk] = shares(info);
    [cpus, memory, disk, state]
}

/// Used of all: vCPUs, memory, disk.
fn shares(info: &NodeInfo) -> [String; 3] {
    let c = &info.capacity;
    let bytes = |used: types::Bytes, all: types::Bytes| {
        format!("{}/{}", mebibytes(used.0), mebibytes(all.0))
    };
    [
        format!("{}/{}", c.cpus_used, c.cpus),
        bytes(c.memory_used, c.memory),
        bytes(c.disk_used, c.disk),
    ]
}

fn report(name: &Name, pin: &Pin, info: &NodeInfo) -> String {
    let [cpus, memory, disk] = shares(info);
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let last_end = info.last_end.as_ref().map(ToString::to_string);
    let mut text = fields(&[
        ("name", name.to_string()),
        ("address", pin.address.clone()),
        ("key", info.key.to_string()),
        (
            "owner",
            info.owner
                .map_or("none: it accepts nothing".to_owned(), |owner| {
                    owner.to_string()
                }),
        ),
        ("build", info.build.clone()),
        ("up", time(info.uptime_ms)),
        ("agent", format!("process {}", info.agent_pid)),
        (
            "durable",
            if info.durable {
                "yes".to_owned()
            } else {
                let why = info.volatile_because.iter();
                let why: String = why.map(|why| format!(": {why}")).collect();
                format!("no: it runs from RAM{why}")
            },
        ),
        (
            "virtualisation",
            info.virtualisation_problem
                .clone()
                .unwrap_or("works".to_owned()),
        ),
        (
            "encryption",
            match &info.encryption_problem {
                None => "the TPM keeps the keys of pools that are made".to_owned(),
                Some(why) => format!("no: {why}"),
            },
        ),
        ("clock heard", yes_no(info.clock.synchronised)),
        ("cpus used", cpus),
        ("memory used", memory),
        ("disk used", disk),
        ("last boot ended", last_end.unwrap_or_default()),
        ("last error", info.last_error.clone().unwrap_or_default()),
    ]);
    for trouble in &info.troubles {
        let line = format!("trouble {trouble} ({})", trouble.code.remedy());
        text.push_str(&crate::screen::clean(&line));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&crate::site::shown(&info.network));
    for part in tables(info) {
        text.push('\n');
        text.push_str(&part);
    }
    text
}

fn listed<T: ToString>(all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Links, disks, pools and the phases of the boot.
fn tables(info: &NodeInfo) -> [String; 4] {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let links: Vec<_> = info
        .links
        .iter()
        .map(|link| {
            [
                link.name.clone(),
                link.mac.to_string(),
                yes_no(link.up),
                listed(&link.addresses),
                listed(&link.gateways),
            ]
        })
        .collect();
    let disks: Vec<_> = info
        .disks
        .iter()
        .map(|disk| {
            [
                disk.name.clone(),
                disk.serial.clone(),
                mebibytes(disk.size.0),
                crate::disks::used(disk).to_owned(),
                disk.content.clone(),
            ]
        })
        .collect();
    let boot: Vec<_> = info
        .boot
        .iter()
        .map(|phase| {
            let result = phase.error.clone().unwrap_or("done".to_owned());
            [phase.name.clone(), format!("{} ms", phase.ms), result]
        })
        .collect();
    [
        table(["LINK", "MAC", "UP", "ADDRESS", "GATEWAY"], &links),
        table(["DISK", "SERIAL", "SIZE", "USED", "CONTENT"], &disks),
        pools(info),
        table(["BOOT", "TIME", "RESULT"], &boot),
    ]
}

/// The first is where images go.
fn pools(info: &NodeInfo) -> String {
    let row = |pool: &Pool| {
        let state = match pool.state {
            PoolState::InUse => "in use",
            PoolState::Failed => "FAILED",
            PoolState::Missing => "MISSING",
        };
        [
            pool.id.chars().take(ID_SHOWN).collect(),
            pool.disk.clone().unwrap_or_default(),
            pool.serial.clone(),
            crate::disks::class(pool.class).to_owned(),
            mebibytes(pool.size.0),
            mebibytes(pool.size.0.saturating_sub(pool.free.0)),
            state.to_owned(),
        ]
    };
    let rows: Vec<_> = info.pools.iter().map(row).collect();
    table(
        ["POOL", "DISK", "SERIAL", "CLASS", "SIZE", "USED", "STATE"],
        &rows,
    )
}
