//! What the node shows of itself on its console.
//!
//! Owns: the words of the block, and when it is shown: all of it once, then what has changed of it, not more often
//! than [`PAUSE`]. A serial line stays a log that way; a screen has the whole block at its top.
//! Refuses: finding anything out, and reading what anybody types.
//!
//! The node agent owns this text. pid1 writes lines of its own (its phases, the ends of processes), and knows nothing
//! of the block.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use types::health::{DiskHealth, Verdict};
use types::node::{Disk, NodeInfo};
use types::site::{NodeNetwork, Stated, Trial};
use types::status::State;
use types::trouble::Trouble;

use super::context::Uplink;
use crate::console::Console;

/// Between two blocks: a node on which much happens must not spend its time on a serial line, and nobody reads faster.
const PAUSE: Duration = Duration::from_secs(2);
/// Troubles that are shown, the newest: a screen has 25 lines.
const TROUBLES_MAX: usize = 6;
/// Options of the network that are shown: those of a bond and a VLAN on it.
const OPTIONS_MAX: usize = 8;
/// Longest message of a trouble that is shown; the API has all of it.
const MESSAGE_MAX: usize = 200;

/// Shows the block now and what changes of it, for ever.
pub(crate) async fn show(
    console: Rc<RefCell<Console>>,
    mut info: watch::Receiver<NodeInfo>,
    mut uplink: watch::Receiver<Uplink>,
) {
    let mut shown = Vec::new();
    loop {
        let lines = block(&info.borrow_and_update(), &uplink.borrow_and_update());
        let mut news = changed(&shown, &lines);
        if !news.is_empty() {
            let ms = sys::clock::since_boot().as_millis();
            news.push(format!(
                "sifr: status as of {ms} ms since the kernel started"
            ));
            console.borrow_mut().block(&lines, &news);
            shown = lines;
            tokio::time::sleep(PAUSE).await;
        }
        // Both are safe to drop: a watch loses nothing.
        let ended = tokio::select! {
            changed = info.changed() => changed.is_err(),
            changed = uplink.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// What a log has to say of a new block: lines that were not there, and what is there no more.
fn changed(before: &[String], now: &[String]) -> Vec<String> {
    let new = now.iter().filter(|line| !before.contains(line)).cloned();
    let gone = before.iter().filter(|line| {
        let trouble = line
            .strip_prefix(TROUBLE)
            .and_then(|rest| rest.split(": ").next());
        let again = |other: &&String| {
            other
                .strip_prefix(TROUBLE)
                .and_then(|rest| rest.split(": ").next())
                == trouble
        };
        trouble.is_some() && !now.iter().any(|line| again(&line))
    });
    let over = gone.map(|line| line.replacen(TROUBLE, "sifr: no more trouble ", 1));
    new.chain(over).collect()
}

/// Before each trouble.
const TROUBLE: &str = "sifr: trouble ";

/// The block. Programs read it too: the words before the values never change.
pub(crate) fn block(info: &NodeInfo, uplink: &Uplink) -> Vec<String> {
    let mut lines = vec![
        format!("sifr: build {}", info.build),
        format!("sifr: key {}", info.key),
    ];
    lines.push(match info.owner {
        Some(owner) => format!("sifr: owner {owner}"),
        None => "sifr: owner none: nothing is accepted; boot with sifr.owner=ed25519:…".to_owned(),
    });
    lines.extend(info.disks.iter().map(|of| disk(of, &info.health)));
    lines.push(match (info.durable, &info.volatile_because) {
        (true, _) => "sifr: durable yes".to_owned(),
        (false, None) => "sifr: durable no: this node runs from memory".to_owned(),
        (false, Some(why)) => format!("sifr: durable no: this node runs from memory: {why}"),
    });
    let virtualisation = info.virtualisation_problem.as_deref();
    lines.push(format!(
        "sifr: virtualisation {}",
        virtualisation.unwrap_or("yes")
    ));
    lines.push(format!(
        "sifr: tpm {}",
        info.tpm.as_deref().unwrap_or("none in this machine")
    ));
    lines.push(match &info.encryption_problem {
        None => "sifr: encryption yes: the TPM keeps the keys of pools that are made".to_owned(),
        Some(why) => format!("sifr: encryption no: {why}"),
    });
    lines.push(format!(
        "sifr: time {}",
        if info.clock.synchronised {
            "synchronised"
        } else {
            "of this machine's own clock: no time server has answered"
        }
    ));
    lines.push(format!("sifr: address {}", address(uplink)));
    network(&info.network, &mut lines);
    lines.push(format!("sifr: workloads {}", workloads(info)));
    if let Some(end) = &info.last_end {
        lines.push(format!("sifr: last boot ended {end}"));
    }
    if let Some(error) = &info.last_error {
        lines.push(format!("sifr: last error {error}"));
    }
    let newest = info.troubles.len().saturating_sub(TROUBLES_MAX);
    lines.extend(info.troubles[newest..].iter().map(trouble));
    let port = types::deployment::API_PORT;
    lines.push(match uplink.addresses.first() {
        Some(address) => {
            let at = SocketAddr::new(address.address, port);
            format!("sifr: ready https://{at}")
        }
        None => "sifr: ready, waiting for an address".to_owned(),
    });
    lines
}

/// Which options count, and what is being tried.
fn network(network: &NodeNetwork, lines: &mut Vec<String>) {
    let all = network.options.len();
    for Stated { option, from } in network.options.iter().take(OPTIONS_MAX) {
        lines.push(format!("sifr: option {option} ({from})"));
    }
    if all > OPTIONS_MAX {
        let more = all - OPTIONS_MAX;
        lines.push(format!(
            "sifr: option and {more} more of the network: `sifr node network show`"
        ));
    }
    if let Some(Trial {
        version, confirm_s, ..
    }) = &network.trial
    {
        lines.push(format!(
            "sifr: network version {version} is tried: confirmed within {confirm_s} s, or taken back"
        ));
    } else if network.version > 0 {
        lines.push(format!(
            "sifr: network version {} was set by the owner",
            network.version
        ));
    }
    if let Some(note) = &network.note {
        lines.push(format!("sifr: network {note}"));
    }
}

fn disk(disk: &Disk, health: &[DiskHealth]) -> String {
    let (name, mib, content) = (&disk.name, disk.size.as_mib(), &disk.content);
    let because = disk.because.iter().map(|why| format!(" ({why})"));
    // What is well, or says nothing, needs no word here.
    let health = health.iter().find(|of| of.disk == *name);
    let ill = health.and_then(|of| match of.health.verdict {
        Verdict::Passed | Verdict::NotOffered | Verdict::Unknown => None,
        verdict @ (Verdict::Worn | Verdict::Failing | Verdict::Silent) => {
            Some(format!(", health {verdict}"))
        }
    });
    format!(
        "sifr: disk {name} {mib} MiB {content}{}{}",
        ill.unwrap_or_default(),
        because.collect::<String>()
    )
}

pub(crate) fn address(uplink: &Uplink) -> String {
    match (&uplink.link, uplink.addresses.as_slice()) {
        (Some(link), [_, ..]) => {
            let all: Vec<String> = uplink.addresses.iter().map(ToString::to_string).collect();
            format!("{} {link}", all.join(" "))
        }
        (None, _) | (_, []) => "none".to_owned(),
    }
}

/// Promised, and in which states.
fn workloads(info: &NodeInfo) -> String {
    let all: u64 = info.workloads.values().sum();
    if all == 0 {
        return "none".to_owned();
    }
    let word = |state: State| match state {
        State::Pending => "pending",
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::Exited => "exited",
        State::Backoff => "waiting to be tried again",
    };
    let mut out = format!("{all}:");
    for (at, (state, count)) in info.workloads.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(out, "{comma} {count} {}", word(*state));
    }
    let c = &info.capacity;
    let (used, all) = (c.memory_used.as_mib(), c.memory.as_mib());
    let _ = write!(out, "; {used} of {all} MiB memory promised");
    out
}

/// Its code, what it is, and what to do.
fn trouble(trouble: &Trouble) -> String {
    let text = trouble.to_string();
    let short: String = text.chars().take(MESSAGE_MAX).collect();
    format!("{TROUBLE}{short} ({})", trouble.code.remedy())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use types::PublicKey;
    use types::node::{Capacity, Clock};
    use types::trouble::Code;

    use super::*;

    pub(crate) fn info() -> NodeInfo {
        NodeInfo {
            key: PublicKey([7; 32]),
            owner: None,
            build: "sifr 0.0.0".to_owned(),
            uptime_ms: 0,
            agent_pid: 7,
            durable: false,
            volatile_because: None,
            virtualisation_problem: None,
            encryption_problem: None,
            clock: Clock {
                realtime_ms: 0,
                synchronised: false,
            },
            capacity: Capacity::default(),
            links: Vec::new(),
            network: Default::default(),
            disks: Vec::new(),
            pools: Vec::new(),
            boot: Vec::new(),
            last_error: None,
            last_end: None,
            troubles: Vec::new(),
            workloads: BTreeMap::new(),
            tpm: None,
            health: Vec::new(),
        }
    }

    #[test]
    fn the_block_shows_the_whole_key_and_what_is_missing() {
        let text = block(&info(), &Uplink::default()).join("\n");
        assert!(text.contains(&format!("sifr: key {}", PublicKey([7; 32]))));
        for says in [
            "nothing is accepted",
            "runs from memory",
            "waiting for an address",
            "tpm none",
            "workloads none",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn a_node_with_an_address_says_where_its_api_is() {
        let uplink = Uplink {
            link: Some("eth0".to_owned()),
            addresses: ["10.0.2.15/24", "2001:db8::7/64"]
                .map(|a| a.parse().expect("one"))
                .to_vec(),
            ..Uplink::default()
        };
        let lines = block(&info(), &uplink);
        assert!(lines.contains(&"sifr: address 10.0.2.15/24 2001:db8::7/64 eth0".to_owned()));
        let last = lines.last().expect("a line");
        assert_eq!(last, "sifr: ready https://10.0.2.15:7443");
        let six = Uplink {
            addresses: uplink.addresses[1..].to_vec(),
            ..uplink
        };
        let lines = block(&info(), &six);
        assert_eq!(
            lines.last().expect("a line"),
            "sifr: ready https://[2001:db8::7]:7443"
        );
    }

    #[test]
    fn each_trouble_stands_with_its_code_and_what_to_do() {
        let mut info = info();
        info.workloads = BTreeMap::from([(State::Running, 3), (State::Backoff, 1)]);
        info.troubles.push(Trouble {
            code: Code::StartFailed,
            about: Some("shop/web".to_owned()),
            message: "no kernel".to_owned(),
            uptime_ms: 1,
        });
        let lines = block(&info, &Uplink::default());
        let remedy = Code::StartFailed.remedy();
        let expected = format!("sifr: trouble start_failed: shop/web: no kernel ({remedy})");
        assert!(lines.contains(&expected), "{lines:?}");
        let says = "sifr: workloads 4: 3 running, 1 waiting to be tried again";
        assert!(lines.iter().any(|line| line.starts_with(says)), "{lines:?}");
    }

    #[test]
    fn a_log_has_what_is_new_and_what_is_over_and_nothing_twice() {
        let (uplink, mut info) = (Uplink::default(), info());
        let first = block(&info, &uplink);
        assert_eq!(changed(&[], &first), first);
        assert_eq!(changed(&first, &first), [""; 0]);
        info.troubles.push(Trouble {
            code: Code::PoolFull,
            about: None,
            message: "3 MiB are free".to_owned(),
            uptime_ms: 1,
        });
        let full = block(&info, &uplink);
        let news = changed(&first, &full);
        assert_eq!(news.len(), 1);
        assert!(news[0].starts_with("sifr: trouble pool_full: 3 MiB"));
        info.troubles[0].message = "2 MiB are free".to_owned();
        let fuller = block(&info, &uplink);
        assert_eq!(changed(&full, &fuller).len(), 1, "it is not over");
        let news = changed(&fuller, &first);
        assert_eq!(news.len(), 1);
        assert!(news[0].starts_with("sifr: no more trouble pool_full: "));
    }

    #[test]
    fn a_node_with_a_thousand_troubles_fills_no_screen() {
        let mut info = info();
        for n in 0..1000 {
            info.troubles.push(Trouble {
                code: Code::MachineLost,
                about: Some(format!("shop/w{n}")),
                message: "x".repeat(5000),
                uptime_ms: n,
            });
        }
        let lines = block(&info, &Uplink::default());
        assert!(lines.len() < 20, "{}", lines.len());
        assert!(lines.iter().all(|line| line.len() < 400));
    }
}
