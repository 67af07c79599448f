//! What machines of several monitors do, side by side in one boot of one node.
//!
//! Owns: that boot, other monitors by their path, and how samples become rows: ours as a multiple of the best
//! that QEMU does, then everybody's own figure.
//! Refuses: figures of two boots in one row.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use image::assemble::Image;
use image::qemu::{Bus, Disk, Machine, Node, Time};
use types::Bytes;

use super::archive;
use super::measure::instead;
use super::node::monitor::Peer;
use super::report::{BY_HAND, END, FAILED, OURS as OURS_LAID, Outcome, PEERS_WORD, Role, Sample};
use super::table::Row;

/// Far longer than any comparison takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(420);
/// A thousand networks are made one by one, each among those that there are.
const PATIENCE_FOR_NETWORKS: Duration = Duration::from_secs(1800);
/// QEMU 7.2, when it counts instructions, now and then gives a guest's guest its timer interrupt a second time
/// while the first is being handled: that guest then waits for a lock that it holds itself, and nothing
/// goes on. It is seen in one boot in ten or fifteen; three in a row are another fault.
const BOOTS: usize = 3;
/// Of the node's disk, where there is one: more than mkfs.xfs asks for (300 MiB), and sparse.
const DISK_BYTES: u64 = 512 << 20;
const OURS: &str = "sifr-vmm";
const QEMU: &str = "QEMU";

/// Monitors of others, by the path of their program on this machine; and ours, where it is not the image's.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    others: Vec<(Peer, PathBuf)>,
    ours: Option<PathBuf>,
}

impl Peers {
    /// Takes one more, `NAME=PATH`.
    pub fn add(&mut self, word: &str) -> Result<()> {
        let names = Peer::ALL.map(Peer::name).join(", ");
        let (name, path) = word
            .split_once('=')
            .with_context(|| format!("--peer {word}: NAME=PATH is expected"))?;
        if name == OURS {
            self.ours = Some(PathBuf::from(path));
            return Ok(());
        }
        let peer = Peer::ALL.into_iter().find(|peer| peer.name() == name);
        let peer = peer.with_context(|| {
            format!("--peer {word}: its command line is not known; these are: {names}")
        })?;
        self.others.push((peer, PathBuf::from(path)));
        Ok(())
    }

    /// What is measured in the place of the image's.
    pub(super) fn ours(&self) -> Option<&Path> {
        self.ours.as_deref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        self.others.iter().map(|(peer, path)| (peer.name(), path))
    }
}

/// Boots a node whose program has this role, and gives its console once the program has ended. It is also in
/// `target/bench-<role>.log`, as it comes.
pub(super) fn console(image: &Image, program: &[u8], peers: &Peers, role: Role) -> Result<String> {
    let initramfs = archive::large(image, program, peers)?;
    let names: Vec<_> = peers.iter().map(|(name, _)| name).collect();
    let extra = format!(" loglevel=1 {PEERS_WORD}={}", names.join(","));
    let console = (0..BOOTS).find_map(|_| once(image, &initramfs, role, &extra).transpose());
    let console = console.context("the node did not come to its end")??;
    if let Some((_, why)) = console.lines().find_map(|line| line.split_once(FAILED)) {
        bail!("inside the node: {why}");
    }
    Ok(console)
}

/// `None`: the node stood still.
fn once(image: &Image, initramfs: &[u8], role: Role, extra: &str) -> Result<Option<String>> {
    let mut machine = Machine::new(image, "");
    // The guests, QEMU and both archives, packed and unpacked.
    machine.memory = Bytes::gib(2);
    let log = format!("target/bench-{}.log", role.word());
    machine.console_log = Some(image.dist.with_file_name(log));
    let _file = instead(&mut machine, initramfs, role, extra)?;
    let disk = tempfile::NamedTempFile::new().context("make a disk")?;
    if role == Role::Disks {
        disk.as_file().set_len(DISK_BYTES).context("make a disk")?;
        machine.disks.push(Disk {
            file: disk.path().to_owned(),
            bus: Bus::Virtio,
            serial: "bench".to_owned(),
        });
    }
    // Several vCPUs that wait for each other do not come up where one processor's instructions are counted.
    if role == Role::Scale {
        (machine.time, machine.cpus) = (Time::Real, 2);
    }
    let node = Node::spawn(&machine)?;
    let patience = match role {
        Role::Networks => PATIENCE_FOR_NETWORKS,
        _ => PATIENCE,
    };
    match node.wait_for_line(END, patience) {
        Ok(_) => Ok(Some(node.console())),
        Err(error) => {
            eprintln!("bench: {error:#}");
            Ok(None)
        }
    }
}

fn samples(image: &Image, program: &[u8], peers: &Peers, role: Role) -> Result<Vec<Sample>> {
    let console = console(image, program, peers, role)?;
    let samples: Vec<_> = console.lines().filter_map(Sample::parse).collect();
    anyhow::ensure!(!samples.is_empty(), "the node has measured nothing");
    Ok(samples)
}

pub(super) fn disks(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let samples = samples(image, program, peers, Role::Disks)?;
    Ok(by_work(&samples, |what| match what.starts_with("4 KiB") {
        true => Some(Better::More("/s")),
        false => Some(Better::More("requests/s")),
    }))
}

pub(super) fn nets(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let samples = samples(image, program, peers, Role::Nets)?;
    Ok(by_work(&samples, |what| {
        match what.contains("round trips") {
            true => Some(Better::More("/s")),
            false => Some(Better::More("MiB/s")),
        }
    }))
}

/// The design's, for a machine with one vCPU; more vCPUs have no target.
const OVERHEAD_MIB: f64 = 3.0;

pub(super) fn scale(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let samples = samples(image, program, peers, Role::Scale)?;
    Ok(by_work(&samples, |what| {
        if what.starts_with("memory") {
            Some(Better::Less("MiB", OVERHEAD_MIB))
        } else if what.starts_with("machines") {
            Some(Better::More("/s"))
        } else {
            None
        }
    }))
}

/// A restore as a part of a boot.
const RESTORE: f64 = 0.1;

pub(super) fn snapshots(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let samples = samples(image, program, peers, Role::Snapshots)?;
    let of = |what: &str| {
        samples
            .iter()
            .find(|s| s.what.starts_with(what))
            .and_then(runs)
    };
    let (boot, restore) = (of("boot, "), of("restore, process start to the guest"));
    let (boot, restore) = boot.zip(restore).context("no boot or no restore")?;
    let ratios: Vec<_> = restore.iter().zip(boot).map(|(r, b)| r / b).collect();
    let (value, part) = median(&ratios).zip(spread(&ratios)).context("no restore")?;
    let mut rows =
        vec![Row::target("restore, as a part of a boot", value, "", RESTORE).spread(part)];
    for sample in &samples {
        let unit = match sample.what.contains(": ") {
            true => "MiB",
            false => "ms",
        };
        let (Some(value), Some(part)) = (middle(sample), runs(sample).and_then(spread)) else {
            continue;
        };
        rows.push(Row::part(&*sample.what, value, unit).spread(part));
    }
    Ok(rows)
}

/// What a target says of one kind of work, and its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Better {
    /// At least the best that QEMU does.
    More(&'static str),
    /// At most so much.
    Less(&'static str, f64),
}

/// Rows of each kind of work; kinds without a [`Better`] are in MiB and only explain.
fn by_work(samples: &[Sample], better: impl Fn(&str) -> Option<Better>) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    let kinds = samples.iter().map(|sample| &*sample.what);
    let kinds: Vec<_> = kinds.filter(|what| seen.insert(*what)).collect();
    let mut rows = Vec::new();
    for what in kinds {
        let of: Vec<_> = samples.iter().filter(|s| s.what == what).collect();
        match better(what) {
            Some(Better::More(unit)) => {
                rows.extend(ratio(what, &of, (OURS, QEMU), 1.0));
                rows.extend(of.iter().map(|sample| own(sample, unit)));
            }
            Some(Better::Less(unit, most)) => {
                let (ours, others): (Vec<_>, Vec<_>) = of.iter().partition(|s| s.who == OURS);
                for sample in ours {
                    rows.extend(middle(sample).map(|v| Row::target(what, v, unit, most)));
                }
                rows.extend(others.iter().map(|sample| own(sample, unit)));
            }
            None => rows.extend(of.iter().map(|sample| {
                let mut named = (**sample).clone();
                named.who = format!("{what}: {}", sample.who);
                own(&named, "MiB")
            })),
        }
    }
    rows
}

/// A part of what the same way laid by hand does: the rules of a tenant's network may take the rest.
const OF_BY_HAND: f64 = 0.9;

pub(super) fn networks(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let samples = samples(image, program, peers, Role::Networks)?;
    let mut seen = BTreeSet::new();
    let kinds = samples.iter().map(|sample| &*sample.what);
    let mut rows = Vec::new();
    for what in kinds.filter(|what| seen.insert(*what)) {
        let of: Vec<_> = samples.iter().filter(|s| s.what == what).collect();
        if what.contains("TCP") {
            let by = (OURS_LAID, BY_HAND);
            rows.extend(ratio(what, &of, by, OF_BY_HAND));
            let unit = match what.contains("round trips") {
                true => "/s",
                false => "MiB/s",
            };
            rows.extend(of.iter().map(|sample| own(sample, unit)));
        } else {
            rows.extend(of.iter().filter_map(|sample| {
                let value = middle(sample)?;
                Some(Row::part(format!("{what}: {}", sample.who), value, ""))
            }));
        }
    }
    Ok(rows)
}

/// The best of ours against the best of another's, run by run.
fn ratio(what: &str, samples: &[&Sample], (us, them): (&str, &str), floor: f64) -> Option<Row> {
    let best = |who: &str| {
        let of = samples.iter().filter(|s| s.who.starts_with(who));
        of.filter_map(|s| runs(s).zip(middle(s)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(runs, _)| runs)
    };
    let (ours, theirs) = (best(us)?, best(them)?);
    let ratios: Vec<_> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    let value = median(&ratios)?;
    let name = match them {
        QEMU => format!("{what}, as a multiple of QEMU's"),
        other => format!("{what}, as a part of that {other}"),
    };
    Some(Row::floor(name, value, "", floor).spread(spread(&ratios)?))
}

fn own(sample: &Sample, unit: &'static str) -> Row {
    let who = format!("in {}", sample.who);
    match &sample.outcome {
        Outcome::Runs(runs) => match (median(runs), spread(runs)) {
            (Some(value), Some(part)) if runs.len() > 1 => Row::part(who, value, unit).spread(part),
            (Some(value), _) => Row::part(who, value, unit),
            (None, _) => Row::cannot(who, "no run came to its end"),
        },
        Outcome::Cannot(why) => Row::cannot(who, why),
    }
}

fn runs(sample: &Sample) -> Option<&[f64]> {
    match &sample.outcome {
        Outcome::Runs(runs) => Some(runs),
        Outcome::Cannot(_) => None,
    }
}

fn middle(sample: &Sample) -> Option<f64> {
    runs(sample).and_then(median)
}

/// A run that happened.
fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Half of what lies between the least and the most, as a part of the middle.
fn spread(runs: &[f64]) -> Option<f64> {
    let least = runs.iter().copied().min_by(f64::total_cmp)?;
    let most = runs.iter().copied().max_by(f64::total_cmp)?;
    Some((most - least) / 2.0 / median(runs)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::table;

    #[test]
    fn ours_is_compared_with_the_best_that_qemu_does() {
        let samples = [
            Sample::new("read", "sifr-vmm", vec![20.0, 20.0, 22.0]),
            Sample::new("read", "QEMU microvm", vec![5.0, 5.0, 5.0]),
            Sample::new("read", "QEMU microvm, io_uring", vec![10.0, 10.0, 10.0]),
            Sample::cannot("read", "cloud-hypervisor", "no PCI"),
        ];
        let rows = by_work(&samples, |_| Some(Better::More("/s")));
        let text = table(&rows);
        let first = text.lines().nth(1).expect("a row");
        let wanted = ["read, as a multiple of QEMU's ", " 2.00 +-5 % "];
        assert!(wanted.iter().all(|part| first.contains(part)), "{first}");
        assert!(text.contains("in cloud-hypervisor"), "{text}");
        assert_eq!(rows[0].met(), Some(true));
        assert_eq!(rows.len(), 5);
    }

    #[test]
    fn a_kind_of_work_that_qemu_cannot_do_has_no_verdict() {
        let samples = [
            Sample::new("vsock", "sifr-vmm", vec![20.0]),
            Sample::cannot("vsock", "QEMU microvm", "no vhost-vsock"),
        ];
        let rows = by_work(&samples, |_| Some(Better::More("/s")));
        assert!(rows.iter().all(|row| row.met().is_none()));
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn a_peer_is_known_by_its_name() {
        let mut peers = Peers::default();
        peers.add("firecracker=/opt/fc").expect("it is known");
        assert!(peers.add("vm=/opt/vm").is_err());
        assert!(peers.add("firecracker").is_err());
        assert_eq!(peers.ours(), None);
        peers.add("sifr-vmm=/opt/vmm").expect("it is known");
        assert_eq!(peers.ours(), Some(Path::new("/opt/vmm")));
        let all: Vec<_> = peers.iter().collect();
        assert_eq!(all, [("firecracker", &PathBuf::from("/opt/fc"))]);
    }
}
