//! `sifr node network`: the options of a node's own network, from afar.
//!
//! Owns: the signed change, and its confirmation: the node is looked for at its old address and at those that the change names.
//! Refuses: what the options mean (the node judges them), and confirming what has not been reached.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::{Client, Envelope, SecretKey};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::deployment::API_PORT;
use types::node::NodeInfo;
use types::site::{
    CONFIRM_DEFAULT_S, CONFIRM_MAX_S, CONFIRM_MIN_S, Confirmed, NodeNetwork, SiteChange, Trial,
};
use types::{Name, PublicKey};

use crate::Context;
use crate::failure::{TimedOut, Usage};
use crate::home::Pin;
use crate::patience::PAUSE;
use crate::screen::{clean, fields, table};

/// Longest file of options: as long as the one that a node reads at its boot.
const FILE_MAX: u64 = 64 << 10;
/// Longest try at one address: a line that is slower would not do for more than this.
const TRY_MAX: Duration = Duration::from_secs(5);
/// Between two words about a node that has not been reached.
const NEWS_EVERY: Duration = Duration::from_secs(10);
/// How long a node that takes a change back is looked for: its links are up again at once, a switch's port within 30 s.
const BACK_MAX: Duration = Duration::from_secs(40);
/// How long it is looked for after its time: it counts from when the answer was read.
const AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Which options count, where each stands, and what is being tried
    Show,
    /// Use these options in place of all that the node was booted with; it goes back by itself unless it is reached so
    Set(Set),
    /// Take back what is being tried; where nothing is, go back to what the node was booted with
    Revert(Revert),
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Lines with options, as in docs/site.md; - for standard input
    file: PathBuf,
    #[command(flatten)]
    how: Revert,
}

#[derive(Debug, Args)]
pub(crate) struct Revert {
    /// Seconds within which the node must be reached
    #[arg(long, value_name = "SECONDS", default_value_t = CONFIRM_DEFAULT_S,
        value_parser = clap::value_parser!(u32).range(i64::from(CONFIRM_MIN_S)..=i64::from(CONFIRM_MAX_S)))]
    confirm_within: u32,
    /// Where the node may be then, beside its old address and those in the file; repeat it
    #[arg(long, value_name = "ADDRESS")]
    at: Vec<String>,
}

pub(crate) async fn site(context: &Context, command: SiteCommand) -> anyhow::Result<()> {
    match command {
        SiteCommand::Show => {
            let (name, _, client) = context.home.client(context.node.as_deref())?;
            let info = ask(&client, &name).await?;
            let network = &info.network;
            context.screen.show(network, || shown(network))
        }
        SiteCommand::Set(Set { file, how }) => {
            let words = words(&read(&file)?);
            if words.is_empty() {
                let revert = "no option is in it: `sifr node network revert` takes all back";
                return Err(Usage(format!("{}: {revert}", file.display())).into());
            }
            change(context, words, &how).await
        }
        SiteCommand::Revert(how) => revert(context, &how).await,
    }
}

async fn ask(client: &Client, name: &Name) -> anyhow::Result<NodeInfo> {
    let info = client.node_info().await;
    info.with_context(|| format!("cannot ask node {name}"))
}

/// For people, in `sifr node info` too: each option and where it stands, then what was set over the API.
pub(crate) fn shown(network: &NodeNetwork) -> String {
    let row = |stated: &types::site::Stated| [stated.option.clone(), stated.from.to_string()];
    let rows: Vec<_> = network.options.iter().map(row).collect();
    let none = "none: each port asks DHCP and listens to routers".to_owned();
    let rows = match rows.is_empty() {
        true => vec![[none, String::new()]],
        false => rows,
    };
    let set = match (network.version, &network.trial) {
        (_, Some(trial)) => trying(trial),
        (0, None) => "never".to_owned(),
        (version, None) => format!("version {version}"),
    };
    let mut text = table(["NETWORK OPTION", "FROM"], &rows);
    text.push_str(&fields(&[("set by you", set)]));
    if let Some(note) = &network.note {
        text.push_str(&clean(note));
        text.push('\n');
    }
    text
}

fn trying(trial: &Trial) -> String {
    let Trial {
        version, confirm_s, ..
    } = trial;
    format!("version {version} is tried: confirmed within {confirm_s} s, or taken back")
}

fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin()
            .take(FILE_MAX + 1)
            .read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(FILE_MAX + 1).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    if text.len() as u64 > FILE_MAX {
        bail!("{} is longer than {FILE_MAX} bytes", file.display());
    }
    Ok(text)
}

/// As a node reads them from a file.
fn words(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|l| l.split('#').next().unwrap_or_default());
    let words = lines.flat_map(str::split_ascii_whitespace);
    words.map(str::to_owned).collect()
}

async fn revert(context: &Context, how: &Revert) -> anyhow::Result<()> {
    let (name, _, client) = context.home.client(context.node.as_deref())?;
    let network = ask(&client, &name).await?.network;
    if let Some(trial) = network.trial {
        let back = client.revert_network(trial.version).await;
        let back = back.with_context(|| format!("node {name} does not take its change back"))?;
        let version = back.version;
        taken_back(&client, &name, version).await?;
        return context.screen.show(&back, || {
            format!("node {name} has taken version {version} back and uses what it used before")
        });
    }
    if network.version == 0 {
        let nothing = "its network was never set over the API: there is nothing to take back";
        return Err(Usage(format!("node {name}: {nothing}")).into());
    }
    change(context, Vec::new(), how).await
}

/// The node does it when its answer has been read, which may be the last over that network: until it is seen, it is not done.
async fn taken_back(client: &Client, name: &Name, version: u64) -> anyhow::Result<()> {
    let end = Instant::now() + BACK_MAX;
    loop {
        let info = tokio::time::timeout(TRY_MAX, client.node_info()).await;
        let trial = info.map(|info| info.map(|info| info.network.trial));
        if let Ok(Ok(trial)) = trial
            && trial.is_none_or(|trial| trial.version != version)
        {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(TimedOut(format!(
                "node {name} takes version {version} back, and was not reached since: `sifr node network show`, at its old address"
            ))
            .into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Signs it, sends it, looks for the node, and confirms.
async fn change(context: &Context, options: Vec<String>, how: &Revert) -> anyhow::Result<()> {
    let (name, pin, client) = context.home.client(context.node.as_deref())?;
    let key = context.home.key()?;
    let version = ask(&client, &name).await?.network.version.saturating_add(1);
    let change = SiteChange {
        node: pin.key,
        version,
        options,
        confirm_s: how.confirm_within,
    };
    let envelope = Envelope::seal_site(&key, &change)?;
    let trial = client.set_network(&envelope).await;
    trial.with_context(|| format!("node {name} does not take the change"))?;
    let addresses = addresses(&pin.address, &change.options, &how.at);
    context.screen.note(&format!(
        "node {name} tries version {version}: looking for it at {} for {} s, or it goes back",
        addresses.join(", "),
        how.confirm_within
    ));
    let look = Look {
        context,
        name: &name,
        node: pin.key,
        version,
    };
    let patience = Duration::from_secs(how.confirm_within.into()) + AFTER;
    let (address, confirmed) = look
        .until(Instant::now() + patience, &addresses, &key)
        .await?;
    if address != pin.address {
        let mut nodes = context.home.nodes()?;
        let pin = Pin {
            address: address.clone(),
            key: pin.key,
        };
        nodes.add(name.clone(), pin, true)?;
        context.home.save_nodes(&nodes)?;
    }
    if !confirmed.durable {
        let note = "it runs from RAM: at its next boot it is as it was booted";
        context.screen.note(&format!("node {name}: {note}"));
    }
    let value = json!({ "node": name, "address": address, "version": confirmed.version, "durable": confirmed.durable });
    context.screen.show(&value, || {
        format!("node {name} keeps version {version} of its network; it is at {address}")
    })
}

/// Where the node may be: the old address first.
fn addresses(old: &str, options: &[String], more: &[String]) -> Vec<String> {
    let port = old.parse::<SocketAddr>().map_or(API_PORT, |old| old.port());
    let stated = options.iter().filter_map(|option| {
        let (name, value) = option.split_once('=')?;
        let named = name.starts_with("sifr.net.") && name.ends_with(".address");
        named.then_some(value)
    });
    let stated = stated.flat_map(|value| value.split(','));
    let stated = stated.filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok());
    let stated = stated.map(|address| SocketAddr::new(address, port).to_string());
    let mut all = vec![old.to_owned()];
    for address in more.iter().cloned().chain(stated) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// The search for a node that tries a change.
struct Look<'a> {
    context: &'a Context,
    name: &'a Name,
    node: PublicKey,
    version: u64,
}

/// What came of one try at one address.
enum Seen {
    Confirmed(String, Confirmed),
    /// The node is there, and does not try it any more.
    TakenBack(String),
    NotYet(String),
}

impl Look<'_> {
    /// Where it was found and confirmed.
    async fn until(
        &self,
        end: Instant,
        addresses: &[String],
        key: &SecretKey,
    ) -> anyhow::Result<(String, Confirmed)> {
        let mut news = Instant::now() + NEWS_EVERY;
        loop {
            let mut tries = JoinSet::new();
            for address in addresses {
                // A connection that is made now is what the confirmation proves.
                let client = Client::new(address, self.node, key)?;
                tries.spawn(attempt(client, address.clone(), self.version));
            }
            let mut last = String::new();
            while let Some(seen) = tries.join_next().await {
                match seen? {
                    Seen::Confirmed(address, confirmed) => return Ok((address, confirmed)),
                    Seen::TakenBack(why) => {
                        let back = format!("node {} uses what it used before: {why}", self.name);
                        return Err(TimedOut(back).into());
                    }
                    Seen::NotYet(why) => last = why,
                }
            }
            let now = Instant::now();
            if now >= end {
                let (name, version) = (self.name, self.version);
                return Err(TimedOut(format!(
                    "node {name} was not reached with version {version} of its network ({last}): it goes back to what it was by itself"
                ))
                .into());
            }
            if now >= news {
                let left = end.duration_since(now).as_secs();
                let line = format!("not reached yet ({last}): {left} s are left");
                self.context.screen.note(&clean(&line));
                news = now + NEWS_EVERY;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn attempt(client: Client, address: String, version: u64) -> Seen {
    let tried = tokio::time::timeout(TRY_MAX, confirm(&client, version)).await;
    match tried {
        Ok(Ok(confirmed)) => Seen::Confirmed(address, confirmed),
        Ok(Err(seen)) => seen,
        Err(_) => Seen::NotYet(format!("{address} does not answer")),
    }
}

async fn confirm(client: &Client, version: u64) -> Result<Confirmed, Seen> {
    let error = match client.confirm_network(version).await {
        Ok(confirmed) => return Ok(confirmed),
        Err(error) => error,
    };
    let not_yet = Seen::NotYet(first_line(&error.to_string()));
    if error.refusal().is_none() {
        return Err(not_yet);
    }
    // It is there, and says no: perhaps it is about to begin, perhaps its time was over.
    match client.node_info().await {
        Ok(info) => Err(match (&info.network.trial, &info.network.note) {
            (Some(trial), _) if trial.version == version => not_yet,
            (_, Some(note)) => Seen::TakenBack(note.clone()),
            (_, None) => Seen::TakenBack(error.to_string()),
        }),
        Err(_) => Err(not_yet),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_looked_for_where_it_was_and_where_its_options_say() {
        let options = words(
            "sifr.net.eth0.address=192.0.2.7/24,2001:db8::7/64 # static\n# all\nsifr.net.eth0.gateway=192.0.2.1\n",
        );
        assert_eq!(options.len(), 2);
        let more = ["n01.example".to_owned()];
        let all = addresses("10.0.0.1:17443", &options, &more);
        let expected = [
            "10.0.0.1:17443",
            "n01.example",
            "192.0.2.7:17443",
            "[2001:db8::7]:17443",
        ];
        assert_eq!(all, expected);
        let all = addresses("192.0.2.7", &options, &[]);
        assert_eq!(all, ["192.0.2.7", "192.0.2.7:7443", "[2001:db8::7]:7443"]);
    }
}
