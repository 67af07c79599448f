//! `sifr deploy`: check, push, sign, post, say what happened.
//!
//! Owns: the order, and that nothing is sent before the whole deployment is known to be well formed.
//! Refuses: to post a statement twice, and to pick a version that it has not asked the node for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::{Client, ClientError, Envelope};
use serde::Serialize;
use types::deployment::{
    Action, Deployment, Image, Machine, ONLY_WORKLOAD, Protocol, Statement, Workload,
};
use types::status::{Ack, DeploymentStatus, RefusalCode};
use types::{Bytes, Digest, Name, Stores};

use crate::Context;
use crate::across;
use crate::args::Deploy;
use crate::depot;
use crate::failure::Usage;
use crate::fleet::Fleet;
use crate::home::Pin;
use crate::push::{Images, LocalImage, Pushed};
use crate::salt;
use crate::screen::Screen;
use crate::sites;
use crate::source::Source;
use crate::spec::{self, Draft};

/// Defaults of a machine from options, the same as `types::deployment` gives a file.
const MEMORY: Bytes = Bytes::mib(256);
const DISK: Bytes = Bytes::gib(1);

/// What `--output json` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) node: &'a Name,
    #[serde(flatten)]
    pub(crate) ack: &'a Ack,
    #[serde(flatten)]
    pub(crate) pushed: Pushed,
}

pub(crate) async fn deploy(context: &Context, options: Deploy) -> anyhow::Result<()> {
    let accept_volatile = options.accept_volatile;
    let remove = options.remove.clone();
    let destroy = options.destroy.clone();
    let text = options.file.as_deref().map(read).transpose()?;
    // Before an image is packed, which takes its time.
    let spans = text.as_deref().is_some_and(names_nodes);
    let one = match (spans, &context.node) {
        (false, node) => Some(context.home.client(node.as_deref())?),
        (true, None) => None,
        (true, Some(_)) => {
            let both = "the file says on which nodes its workloads are: leave out --node";
            return Err(Usage(both.to_owned()).into());
        }
    };
    let (encrypt, salt_file) = (options.encrypt, options.salt_file.as_deref());
    let salt = encrypt.then(|| salt::salt(&context.home, &context.screen, salt_file));
    let mut images = Images::signed_by(context.policy()?).encrypted_with(salt.transpose()?);
    let (name, mut deployment, fleet) = wanted(options, text, &mut images, &context.screen)?;
    deployment.accept_volatile |= accept_volatile;
    deployment.remove.extend(remove);
    // Who says that the content goes says that the volume does.
    deployment.remove.extend(destroy.iter().cloned());
    deployment.destroy.extend(destroy);
    depot::spell_out(&mut deployment)?;
    if one.is_some() {
        check(&deployment)?;
    }
    has_programs(&deployment, &images)?;
    if encrypt {
        are_encrypted(&deployment, &images)?;
    }
    let Some((node, pin, client)) = one else {
        return across::deploy(context, &name, (&deployment, &fleet), &images).await;
    };
    let version = next_version(&client, &name).await?;
    let whole = (&name, version, &deployment);
    let (ack, pushed) = send(context, &client, whole, &images).await?;
    let report = Report {
        node: &node,
        ack: &ack,
        pushed,
    };
    context
        .screen
        .show(&report, || acknowledged(&ack, &node, &deployment, &pin))?;
    no_more_across(context, &name, &node)?;
    if !context.screen.is_json() {
        context
            .screen
            .note(&format!("next: sifr wait {name}, sifr logs {name}"));
    }
    Ok(())
}

/// A file for one node was deployed on it: what an earlier one put on others stands there until it is deleted.
fn no_more_across(context: &Context, name: &Name, node: &Name) -> anyhow::Result<()> {
    let spread = context.home.spread()?;
    let Some(spots) = spread.deployments.get(name) else {
        return Ok(());
    };
    for other in spots.nodes.iter().filter(|other| *other != node) {
        context.screen.note(&format!(
            "{name} was deployed on {other} too, and stands there still: `sifr --node {other} delete {name}` takes it away"
        ));
    }
    context.home.forget_spread(name)
}

/// What any node would refuse.
pub(crate) fn check(deployment: &Deployment) -> Result<(), Usage> {
    deployment.check().map_err(|error| Usage(error.to_string()))
}

/// Whether it is a file for several nodes. One that cannot be read is told so where it is read with its images.
fn names_nodes(text: &str) -> bool {
    let draft = spec::parse(text, &mut |_| Ok(Digest([0; 32])));
    draft.is_ok_and(|draft| !draft.fleet.is_empty())
}

/// One node's statement: its images first, then what it says.
pub(crate) async fn send(
    context: &Context,
    client: &Client,
    (name, version, deployment): (&Name, u64, &Deployment),
    images: &Images,
) -> anyhow::Result<(Ack, Pushed)> {
    let statement = Statement {
        node: client.node(),
        name: name.clone(),
        version,
        action: Action::Deploy(sites::sealed_to(&client.node(), deployment)?),
    };
    let envelope = sealed(context, &statement)?;
    let mut pushed = Pushed::default();
    let runs = |image: &LocalImage| {
        let mut machines = deployment.machines();
        machines.any(|(_, machine)| machine.image.flist == image.digest)
    };
    for image in images.iter().filter(|image| runs(image)) {
        let sent = match comes_from_stores(deployment, image) {
            true => image.push_flist(client, &context.screen).await,
            false => image.push(client, &context.screen).await,
        };
        let this = sent.context("cannot push the image")?;
        pushed.pushed_bytes += this.pushed_bytes;
        pushed.image_bytes += this.image_bytes;
    }
    let ack = client
        .post_statement(&envelope)
        .await
        .with_context(|| format!("cannot deploy {name}"))?;
    Ok((ack, pushed))
}

/// Whether the node fetches an image's chunks by itself: whoever runs it names stores, and it was not packed just now.
fn comes_from_stores(deployment: &Deployment, image: &LocalImage) -> bool {
    let mut machines = deployment.machines();
    let has_stores = |machine: &Machine| machine.image.store.is_some();
    image.is_kept() && machines.all(|(_, m)| m.image.flist != image.digest || has_stores(m))
}

/// Signs and posts.
pub(crate) async fn post(
    context: &Context,
    client: &Client,
    statement: &Statement,
) -> anyhow::Result<Ack> {
    let envelope = sealed(context, statement)?;
    Ok(client.post_statement(&envelope).await?)
}

fn sealed(context: &Context, statement: &Statement) -> anyhow::Result<Envelope> {
    Ok(Envelope::seal_statement(&context.home.key()?, statement)
        .map_err(|error| Usage(error.to_string()))?)
}

/// One more than what the node knows; a tombstone counts on, an unknown name begins with 1.
pub(crate) async fn next_version(client: &Client, name: &Name) -> anyhow::Result<u64> {
    Ok(after(stands(client, name).await?.as_ref()))
}

pub(crate) fn after(stands: Option<&DeploymentStatus>) -> u64 {
    stands.map_or(1, |status| status.version.saturating_add(1))
}

/// What the node knows of it.
pub(crate) async fn stands(
    client: &Client,
    name: &Name,
) -> anyhow::Result<Option<DeploymentStatus>> {
    match client.deployment(name).await {
        Ok(status) => Ok(Some(status)),
        Err(ClientError::Refused { refusal }) if refusal.code == RefusalCode::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn wanted(
    options: Deploy,
    text: Option<String>,
    images: &mut Images,
    screen: &Screen,
) -> anyhow::Result<(Name, Deployment, Fleet)> {
    let (Some(file), Some(text)) = (&options.file, text) else {
        let (name, deployment) = from_options(options, images, screen)?;
        return Ok((name, deployment, Fleet::default()));
    };
    let base = if file == Path::new("-") {
        Path::new("")
    } else {
        file.parent().unwrap_or(Path::new(""))
    };
    let mut resolve = |text: &str| resolve(text, base, images, screen);
    let draft = spec::parse(&text, &mut resolve)
        .map_err(|error| Usage(format!("{}: {error}", file.display())))?;
    let Draft {
        name,
        deployment,
        fleet,
    } = draft;
    let mut deployment = deployment;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    sites::bring(&mut deployment, base, now.unwrap_or_default().as_secs())?;
    let name = options.name.or(name).ok_or_else(|| {
        Usage(format!(
            "{} gives the deployment no name: add `name:` to it, or use --name",
            file.display()
        ))
    })?;
    Ok((name, deployment, fleet))
}

fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let cannot = || format!("cannot read the deployment file {}", file.display());
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).with_context(cannot)?)
    };
    source
        .take(spec::FILE_MAX + 1)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    if text.len() as u64 > spec::FILE_MAX {
        return Err(Usage(format!(
            "{} is longer than {} bytes",
            file.display(),
            spec::FILE_MAX
        ))
        .into());
    }
    Ok(text)
}

fn resolve(
    text: &str,
    base: &Path,
    images: &mut Images,
    screen: &Screen,
) -> Result<Digest, String> {
    let source = Source::read(Path::new(text), base).map_err(|error| error.to_string())?;
    images
        .find(&source, screen)
        .map_err(|error| format!("{error:#}"))
}

fn from_options(
    options: Deploy,
    images: &mut Images,
    screen: &Screen,
) -> anyhow::Result<(Name, Deployment)> {
    let (Some(image), Some(name)) = (options.image, options.name) else {
        return Err(Usage("give a file, or --image with --name".to_owned()).into());
    };
    let mut resolve = |text: &str| resolve(text, Path::new(""), images, screen);
    let flist = spec::image_digest(&image, &mut resolve).map_err(Usage)?;
    let authority = options
        .store_ca
        .as_deref()
        .map(depot::authority)
        .transpose()?;
    let store = (!options.store.is_empty()).then_some(Stores {
        urls: options.store,
        authority,
    });
    let machine = Machine {
        image: Image { flist, store },
        cpus: options.cpus.unwrap_or(1),
        memory: options.memory.unwrap_or(MEMORY),
        disk: options.disk.unwrap_or(DISK),
        class: None,
        entrypoint: None,
        command: Some(options.command).filter(|command| !command.is_empty()),
        env: options.env.into_iter().collect(),
        user: options.user,
        workdir: options.workdir,
        ports: options.ports,
        restart: options.restart.unwrap_or_default(),
        limits: None,
        mounts: Vec::new(),
        networks: Vec::new(),
        addresses: Vec::new(),
    };
    let only = ONLY_WORKLOAD.parse().expect("the constant is a name");
    let workloads = [(only, Workload::Machine(machine))].into();
    Ok((
        name,
        Deployment {
            accept_volatile: false,
            workloads,
            ingress: Default::default(),
            remove: Default::default(),
            destroy: Default::default(),
        },
    ))
}

/// A node could only say so after all has been pushed.
fn has_programs(deployment: &Deployment, images: &Images) -> Result<(), Usage> {
    for (workload, machine) in deployment.machines() {
        let given = |words: &Option<Vec<String>>| words.as_ref().is_some_and(|w| !w.is_empty());
        let Some(image) = images.get(&machine.image.flist) else {
            continue;
        };
        let config = image.flist.config();
        let of_image =
            !config.entrypoint.is_empty() || machine.command.is_none() && !config.cmd.is_empty();
        if !given(&machine.entrypoint) && !given(&machine.command) && !of_image {
            if image.flist.is_disk() {
                return Err(Usage(format!(
                    "workload {workload}: a disk image's own kernel and init are not started: its file system runs below the \
                     node's guest kernel. Name the program to run after --, as `command` in the file, or with \
                     `sifr flist pack --entrypoint`"
                )));
            }
            return Err(Usage(format!(
                "workload {workload}: its image names no program: give one after --, as `command` in the file, \
                 or with `sifr flist pack --entrypoint`"
            )));
        }
    }
    Ok(())
}

/// What is named by its digest is not here to be looked at.
fn are_encrypted(deployment: &Deployment, images: &Images) -> Result<(), Usage> {
    for (workload, machine) in deployment.machines() {
        let why = match images.get(&machine.image.flist) {
            Some(image) if image.flist.is_encrypted() => continue,
            Some(_) => "is packed already, and not encrypted: pack it again with --encrypt",
            None => {
                "is named by its digest, which does not say whether it is encrypted: name its .flist file, or leave \
                 out --encrypt"
            }
        };
        return Err(Usage(format!("workload {workload}: its image {why}")));
    }
    Ok(())
}

pub(crate) fn acknowledged(ack: &Ack, node: &Name, deployment: &Deployment, pin: &Pin) -> String {
    let durable = if ack.durable {
        "durable"
    } else {
        "volatile: it is gone after a reboot"
    };
    let mut text = format!(
        "{} version {} · {node} · {durable}\n",
        ack.name, ack.version
    );
    let host = host(&pin.address);
    for (workload, machine) in deployment.machines() {
        for port in &machine.ports {
            let protocol = match port.protocol {
                Protocol::Tcp => "",
                Protocol::Udp => "/udp",
            };
            text.push_str(&format!(
                "{host}:{} → {workload}:{}{protocol}\n",
                port.node, port.machine
            ));
        }
    }
    for (host, site) in &deployment.ingress {
        let scheme = if site.tls.is_some() { "https" } else { "http" };
        text.push_str(&format!("{scheme}://{host}/\n"));
    }
    text
}

/// The address without its port, ready for another one.
fn host(address: &str) -> String {
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{address}]");
    }
    let port = |(host, port): &(&str, &str)| port.parse::<u16>().is_ok() && !host.is_empty();
    address
        .rsplit_once(':')
        .filter(port)
        .map_or(address, |(host, _)| host)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_options_and_of_files_are_the_same() {
        let digest = Digest([1; 32]);
        let yaml = format!("name: shop\nimage: {digest}");
        let mut resolve = |_: &str| Err("no file is named".to_owned());
        let draft = spec::parse(&yaml, &mut resolve).expect("a good file");
        let cli = <crate::args::Cli as clap::Parser>::try_parse_from([
            "sifr",
            "deploy",
            "--name",
            "shop",
            "--image",
            &digest.to_string(),
        ]);
        let crate::args::Command::Deploy(options) = cli.expect("parses").command else {
            panic!("a deploy")
        };
        let screen = Screen::new(crate::args::Output::Table);
        let (name, deployment) =
            from_options(*options, &mut Images::default(), &screen).expect("is complete");
        assert_eq!((Some(name), deployment), (draft.name, draft.deployment));
    }

    #[test]
    fn the_host_of_an_address_is_without_its_port() {
        for (address, wanted) in [
            ("10.0.0.1", "10.0.0.1"),
            ("n1:7443", "n1"),
            ("fe80::1", "[fe80::1]"),
            ("[fe80::1]:80", "[fe80::1]"),
        ] {
            assert_eq!(host(address), wanted);
        }
    }
}
