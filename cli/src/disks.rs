//! `sifr disk`: what is on the disks of nodes, and the one signed plan that takes some of them.
//!
//! Owns: the list, what a person reads before anything is lost, and the plan.
//! Refuses: to sign for a disk that was not shown, and to take one of which nothing is known.

use std::io::{self, BufRead, Write};

use anyhow::{Context as _, bail};
use api::{Client, Envelope};
use serde_json::json;
use types::Name;
use types::claim::{Claim, Claimed, DiskClaim, NodeClaim};
use types::node::{Disk, DiskClass, DiskUse, Encryption, NodeDisks};

use crate::Context;
use crate::args::{ClaimDisks, DiskCommand, ReplaceDisk};
use crate::failure::Usage;
use crate::screen::{mebibytes, table};

pub(crate) async fn disk(context: &Context, command: DiskCommand) -> anyhow::Result<()> {
    match command {
        DiskCommand::List { nodes } => list(context, &nodes).await,
        DiskCommand::Health { nodes } => crate::health::show(context, &nodes).await,
        DiskCommand::Claim(options) => claim(context, &options).await,
        DiskCommand::Replace(options) => replace(context, &options).await,
        DiskCommand::Recover(options) => crate::recovery::recover(context, &options).await,
        DiskCommand::Unlock(options) => crate::recovery::unlock(context, &options).await,
    }
}

/// A node that has been asked.
struct Asked {
    name: Name,
    client: Client,
    disks: NodeDisks,
}

/// The nodes that are named, or the one that every command speaks to.
async fn ask(context: &Context, nodes: &[Name]) -> anyhow::Result<Vec<Asked>> {
    let mut asked: Vec<Asked> = Vec::new();
    for (name, client) in clients(context, nodes)? {
        let disks = client.disks().await;
        let disks = disks.with_context(|| format!("cannot ask node {name} for its disks"))?;
        asked.push(Asked {
            name,
            client,
            disks,
        });
    }
    Ok(asked)
}

/// Names and clients of the nodes that are named, each once.
pub(crate) fn clients(context: &Context, nodes: &[Name]) -> anyhow::Result<Vec<(Name, Client)>> {
    let named = nodes.iter().map(|name| Some(name.as_str()));
    let names: Vec<_> = match nodes {
        [] => vec![context.node.as_deref()],
        _ => named.collect(),
    };
    let mut clients: Vec<(Name, Client)> = Vec::new();
    for name in names {
        let (name, _, client) = context.home.client(name)?;
        if clients.iter().any(|(known, _)| *known == name) {
            return Err(Usage(format!("node {name} is named twice")).into());
        }
        clients.push((name, client));
    }
    Ok(clients)
}

/// In a word.
pub(crate) fn used(disk: &Disk) -> &'static str {
    match disk.used {
        DiskUse::Pool => "pool",
        DiskUse::Ready => "ready",
        DiskUse::OtherPool => "other pool",
        DiskUse::LeftAlone => "left alone",
    }
}

/// Whether whoever takes the disk away can read the pool on it.
fn at_rest(disk: &Disk) -> &'static str {
    match disk.encryption {
        Some(Encryption::Encrypted { .. }) => "encrypted",
        Some(Encryption::Clear {}) => "in the clear",
        None => "",
    }
}

pub(crate) fn class(class: DiskClass) -> &'static str {
    match class {
        DiskClass::Nvme => "NVMe",
        DiskClass::Ssd => "SSD",
        DiskClass::Hdd => "HDD",
    }
}

async fn list(context: &Context, nodes: &[Name]) -> anyhow::Result<()> {
    let asked = ask(context, nodes).await?;
    let value: Vec<_> = asked
        .iter()
        .map(|node| json!({ "node": node.name, "disks": node.disks.disks, "health": node.disks.health }))
        .collect();
    context.screen.show(&value, || {
        let headings = [
            "NODE", "DISK", "SERIAL", "MODEL", "CLASS", "SIZE", "USED", "AT REST", "HEALTH",
            "CONTENT",
        ];
        let all = asked
            .iter()
            .flat_map(|node| node.disks.disks.iter().map(move |disk| (node, disk)));
        let row = |(node, disk): (&Asked, &Disk)| {
            let health = node.disks.health.iter().find(|of| of.disk == disk.name);
            let why = disk.because.iter().map(|why| format!(": {why}"));
            [
                node.name.to_string(),
                disk.name.clone(),
                disk.serial.clone(),
                disk.model.clone(),
                class(disk.class).to_owned(),
                mebibytes(disk.size.0),
                used(disk).to_owned(),
                at_rest(disk).to_owned(),
                health.map_or_else(String::new, |of| of.health.verdict.to_string()),
                format!("{}{}", disk.content, why.collect::<String>()),
            ]
        };
        table(headings, &all.map(row).collect::<Vec<_>>())
    })
}

/// The disks of a plan, by the place of their node in the list.
fn select<'a>(asked: &'a [Asked], options: &ClaimDisks) -> Result<Vec<Vec<&'a Disk>>, Usage> {
    let all = |node: &'a Asked| node.disks.disks.iter();
    if options.all_foreign {
        let foreign = |disk: &&Disk| disk.used == DiskUse::LeftAlone && disk.fingerprint.is_some();
        let found: Vec<Vec<_>> = asked
            .iter()
            .map(|n| all(n).filter(foreign).collect())
            .collect();
        return match found.iter().all(Vec::is_empty) {
            true => Err(Usage("no disk holds what can be claimed".to_owned())),
            false => Ok(found),
        };
    }
    for serial in &options.serials {
        let with = asked.iter().flat_map(all).filter(|d| d.serial == *serial);
        match with.collect::<Vec<_>>().as_slice() {
            [] => return Err(Usage(format!("no disk has the serial {serial}"))),
            [disk] if disk.fingerprint.is_none() || disk.used == DiskUse::Ready => {
                let why = disk.because.clone().unwrap_or(disk.content.clone());
                return Err(Usage(format!("disk {serial} cannot be claimed: {why}")));
            }
            [_] => {}
            [_, _, ..] => {
                let text = format!("several disks have the serial {serial}: name one node");
                return Err(Usage(text));
            }
        }
    }
    let wanted = |disk: &&Disk| options.serials.contains(&disk.serial);
    Ok(asked
        .iter()
        .map(|n| all(n).filter(wanted).collect())
        .collect())
}

/// The plan that is signed: what was shown, and nothing else.
fn plan(asked: &[Asked], selected: &[Vec<&Disk>], reboot: bool) -> Claim {
    let disk = |disk: &&Disk| {
        Some(DiskClaim {
            serial: disk.serial.clone(),
            content: disk.fingerprint?,
            held: disk.content.clone(),
            replaces: None,
        })
    };
    let nodes = asked.iter().zip(selected).map(|(node, disks)| NodeClaim {
        node: node.client.node(),
        challenge: node.disks.challenge,
        disks: disks.iter().filter_map(disk).collect(),
        reboot,
    });
    Claim {
        nodes: nodes.filter(|node| !node.disks.is_empty()).collect(),
    }
}

async fn claim(context: &Context, options: &ClaimDisks) -> anyhow::Result<()> {
    let asked = ask(context, &options.nodes).await?;
    let selected = select(&asked, options)?;
    show_loss(context, &asked, &selected);
    if !options.yes {
        confirm(context, selected.iter().map(Vec::len).sum())?;
    }
    let claim = plan(&asked, &selected, options.reboot);
    let envelope = Envelope::seal_claim(&context.home.key()?, &claim)?;
    let mut done: Vec<(&Name, Claimed)> = Vec::new();
    let mut failed: Option<anyhow::Error> = None;
    for node in &asked {
        if claim.of(&node.client.node()).is_none() {
            continue;
        }
        match node.client.claim_disks(&envelope).await {
            Ok(claimed) => done.push((&node.name, claimed)),
            // The others have nothing to do with it; each failure is said, the first is how this ends.
            Err(error) => {
                let error = anyhow::Error::from(error);
                let error =
                    error.context(format!("the disks of node {} were not claimed", node.name));
                match failed {
                    None => failed = Some(error),
                    Some(_) => context.screen.note(&format!("sifr: {error:#}")),
                }
            }
        }
    }
    show_done(context, &done)?;
    failed.map_or(Ok(()), Err)
}

/// One disk of one node, in place of another.
async fn replace(context: &Context, options: &ReplaceDisk) -> anyhow::Result<()> {
    let asked = ask(context, &[]).await?;
    let new = |disk: &&Disk| disk.serial == options.new;
    let selected: Vec<Vec<&Disk>> = asked
        .iter()
        .map(|node| node.disks.disks.iter().filter(new).collect())
        .collect();
    let [node] = asked.as_slice() else {
        bail!("one node is asked");
    };
    let [disk] = selected[0].as_slice() else {
        let text = format!(
            "no disk, or several, of node {} has the serial {}",
            node.name, options.new
        );
        return Err(Usage(text).into());
    };
    if disk.fingerprint.is_none() {
        let why = disk.because.clone().unwrap_or(disk.content.clone());
        let text = format!("disk {} cannot replace another: {why}", options.new);
        return Err(Usage(text).into());
    }
    show_loss(context, &asked, &selected);
    if !options.yes {
        confirm(context, 1)?;
    }
    let mut claim = plan(&asked, &selected, false);
    let disks = claim.nodes.iter_mut().flat_map(|node| &mut node.disks);
    disks.for_each(|disk| disk.replaces = Some(options.old.clone()));
    let envelope = Envelope::seal_claim(&context.home.key()?, &claim)?;
    let done = node.client.claim_disks(&envelope).await;
    let done = done.with_context(|| format!("{} was not replaced", options.old))?;
    context.screen.show(&json!({ "node": node.name, "claimed": done }), || {
        format!(
            "{} is being filled in place of {}: `sifr disk list` shows how far it is; until then leave all others in\n",
            options.new, options.old
        )
    })
}

fn show_loss(context: &Context, asked: &[Asked], selected: &[Vec<&Disk>]) {
    let row = |node: &Asked, disk: &Disk| {
        [
            node.name.to_string(),
            disk.name.clone(),
            disk.serial.clone(),
            mebibytes(disk.size.0),
            disk.content.clone(),
        ]
    };
    let rows: Vec<_> = asked
        .iter()
        .zip(selected)
        .flat_map(|(node, disks)| disks.iter().map(|disk| row(node, disk)))
        .collect();
    let headings = ["NODE", "DISK", "SERIAL", "SIZE", "ALL OF THIS WILL BE LOST"];
    context.screen.note(table(headings, &rows).trim_end());
}

/// Only a whole word is an answer.
pub(crate) fn confirm(context: &Context, disks: usize) -> anyhow::Result<()> {
    let number = match disks {
        1 => "this disk".to_owned(),
        n => format!("these {n} disks"),
    };
    context.screen.note(&format!(
        "Take {number}, with the loss of all that is there? Type yes:"
    ));
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => bail!("not confirmed: nothing was touched"),
    }
}

fn show_done(context: &Context, done: &[(&Name, Claimed)]) -> anyhow::Result<()> {
    let value: Vec<_> = done
        .iter()
        .map(|(node, claimed)| json!({ "node": node, "claimed": claimed }))
        .collect();
    context.screen.show(&value, || {
        let rows: Vec<_> = done
            .iter()
            .flat_map(|(node, claimed)| claimed.disks.iter().map(|disk| row(node, claimed, disk)))
            .collect();
        table(["NODE", "SERIAL", "NOW"], &rows)
    })
}

fn row(node: &Name, claimed: &Claimed, serial: &str) -> [String; 3] {
    let is_pool = claimed.pool.as_deref() == Some(serial);
    let now = match (is_pool, claimed.reboots) {
        (true, true) => "the pool; the node starts again to use it",
        (true, false) => {
            "the pool, from the next boot on: until then the node runs from RAM, and what runs there is lost then"
        }
        (false, _) => "blank, ready",
    };
    [node.to_string(), serial.to_owned(), now.to_owned()]
}
