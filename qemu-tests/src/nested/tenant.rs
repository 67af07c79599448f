//! Machines as the node makes them: our own init in the guest, and in its container a program of a scenario.
//!
//! Owns: both sides: the node's [`plan`] of such a machine, and the program's [`main`], which is `vmm-node`
//! once more, with what it says of itself.
//! Refuses: what a node does around a machine: no agent, no log, no flist.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use types::cpio::Archive;
use types::guest::{GENERATION_PATH, Link, RUN_SPEC_PATH, RunSpec};
use types::vm::{Disk, Net};
use types::{Mac, Name};

use super::guest::FAILED;
use super::toolkit::{Node, Plan, open};
use super::{CONTAINER_INITRAMFS, IMAGE, KERNEL, PROGRAM, TENANT, link, scenario};

const IMAGE_SERIAL: &str = "image";
const MTU: u16 = 1500;
const STOP_GRACE_MS: u64 = 10_000;

/// The card of a machine in a network of its own, in which the node has the first address.
pub fn card(network: u8) -> Link {
    let node = gateway(network);
    Link {
        mac: Mac([2, 0, 0, 20, network, 2]),
        address: format!("10.20.{network}.2/24").parse().expect("an address"),
        gateway: node,
        dns: node,
        mtu: MTU,
        address6: None,
    }
}

pub fn gateway(network: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, network, 1)
}

/// A machine whose container runs the tenant's program `word`, on a TAP of its own in `network`. It is told
/// of the card `told`: one that is restored takes that of its snapshot for its own until it hears otherwise.
pub fn plan<'a>(node: &'a Node, word: &str, network: u8, told: &Link) -> Result<Plan<'a>> {
    let mut plan = node.bare(word, open(KERNEL)?)?;
    plan.spec.cmdline = "console=ttyS0".to_owned();
    let run = RunSpec {
        hostname: word.parse().context("name the container")?,
        image_serial: IMAGE_SERIAL.to_owned(),
        upper_serial: None,
        argv: vec![PROGRAM.to_owned()],
        env: vec![format!("{TENANT}={word}")],
        user: String::new(),
        workdir: "/".to_owned(),
        stop_signal: nix::libc::SIGTERM,
        stop_grace_ms: STOP_GRACE_MS,
        link: Some(told.clone()),
        further: Vec::new(),
        volumes: Vec::new(),
    };
    let mut archive = Archive::default();
    archive.file(RUN_SPEC_PATH, 0o600, serde_json::to_vec(&run)?)?;
    let specification = sys::fs::sealed_memory("run", &archive.encode())?;
    let init = plan.pass(open(CONTAINER_INITRAMFS)?);
    let specification = plan.pass(specification);
    plan.spec.initramfs = vec![init, specification];
    let image = plan.pass(open(IMAGE)?);
    plan.spec.disks.push(Disk::new(IMAGE_SERIAL, image, true));
    let tap = format!("tap{network}");
    let queue = sys::tap::open(&tap)?;
    link::set_up(&tap, gateway(network))?;
    let queue = plan.pass(queue);
    let mac = card(network).mac;
    plan.spec.nets.push(Net::new(queue, mac, MTU));
    Ok(plan)
}

/// What a tenant's program sees of its machine: one line of words, each after its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    pub generation: String,
    pub random: u64,
    /// Since 1970.
    pub time_ms: u64,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub hostname: Name,
}

impl Sight {
    /// In the container.
    pub fn now() -> Result<Self> {
        let read = |path: &str| {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"));
            text.map(|text| text.trim_end().to_owned())
        };
        // Before the number: who reads the file once more and finds the same knows that both belong together.
        let generation = read(GENERATION_PATH)?;
        let mut random = [0; 8];
        sys::random::fill(&mut random)?;
        let hostname: Name = read("/proc/sys/kernel/hostname")?.parse()?;
        let hosts = read("/etc/hosts")?;
        let own = hosts
            .lines()
            .find_map(|line| line.strip_suffix(&format!("\t{hostname}")));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(Self {
            generation,
            random: u64::from_le_bytes(random),
            time_ms: u64::try_from(now.as_millis())?,
            mac: read("/sys/class/net/eth0/address")?.parse()?,
            address: own.context("no line of its own in /etc/hosts")?.parse()?,
            hostname,
        })
    }

    pub fn line(&self) -> String {
        let Self {
            generation,
            random,
            time_ms,
            mac,
            address,
            hostname,
        } = self;
        format!("sees {generation} {random} {time_ms} {mac} {address} {hostname}")
    }

    /// From a line that has it behind whatever else.
    pub fn parse(line: &str) -> Result<Self> {
        let (_, words) = line.split_once("sees ").context("it says nothing")?;
        let words: Vec<_> = words.split_whitespace().collect();
        let [generation, random, time_ms, mac, address, hostname] = words[..] else {
            anyhow::bail!("it says {words:?}");
        };
        Ok(Self {
            generation: generation.to_owned(),
            random: random.parse()?,
            time_ms: time_ms.parse()?,
            mac: mac.parse()?,
            address: address.parse()?,
            hostname: hostname.parse()?,
        })
    }
}

/// The program in the container: runs what is called `word`.
pub fn main(word: &str) {
    let outcome = scenario::tenant(word).and_then(|program| program());
    if let Err(error) = outcome {
        say(&format!("{FAILED}: {error:#}"));
        std::process::exit(1);
    }
}

/// Says a line on the machine's console, whose other end the scenario has; returns when it is out.
pub fn say(line: &str) {
    // A tenant has nobody else to tell.
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "{line}");
        let _ = nix::sys::termios::tcdrain(&console);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_sees_is_read_as_it_was_said() {
        let sight = Sight {
            generation: "0".repeat(32),
            random: 7,
            time_ms: 8,
            mac: card(3).mac,
            address: card(3).address.address,
            hostname: "web".parse().expect("a name"),
        };
        let line = format!("noise before {}", sight.line());
        assert_eq!(Sight::parse(&line).expect("its own words"), sight);
        assert!(Sight::parse("sees nothing").is_err());
    }
}
