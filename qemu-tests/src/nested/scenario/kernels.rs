//! Kernels by both boot protocols, and processors in groups.
//!
//! Owns: what a guest's kernel makes of where it was put and of what CPUID says.
//! Refuses: speed; two emulated cores run thirty-two vCPUs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sys::process::Ended;
use types::vm::{HugePages, StopReason, Topology};

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{Node, PATIENCE};
use crate::nested::{BZIMAGE, INITRAMFS};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bzimage-boots-to-its-initramfs",
        run: bzimage,
    },
    Scenario {
        name: "what-is-no-kernel-is-refused",
        run: no_kernel,
    },
    Scenario {
        name: "four-processors-in-a-socket",
        run: |node| topology(node, 4, None),
    },
    Scenario {
        name: "two-sockets-of-three-cores-of-two-threads",
        run: |node| topology(node, 12, Some((2, 3, 2))),
    },
    Scenario {
        name: "thirty-two-processors",
        run: |node| topology(node, 32, None),
    },
    Scenario {
        name: "groups-that-do-not-add-up-are-refused",
        run: bad_topology,
    },
    Scenario {
        name: "small-pages-are-small",
        run: |node| pages(node, HugePages::None),
    },
    Scenario {
        name: "transparent-pages-are-huge",
        run: |node| pages(node, HugePages::Transparent),
    },
    Scenario {
        name: "reserved-pages-that-are-not-there-are-refused",
        run: no_reserved_pages,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("topology", show_topology)];

/// The node's own kernel as a guest's.
fn bzimage(node: &Node) -> Result<String> {
    let open = |path| fs::File::open(path).with_context(|| format!("open {path}"));
    let mut plan = node.bare("bzimage", open(BZIMAGE)?)?;
    let initramfs = plan.pass(open(INITRAMFS)?);
    plan.spec.initramfs.push(initramfs);
    plan.spec.memory_mib = 256;
    plan.spec.cmdline = "console=ttyS0 guest=hello".to_owned();
    let mut machine = plan.start()?;
    machine.line("hello", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let (reason, exits) = life.stopped()?;
    ensure!(*reason == StopReason::GuestReset, "{reason:?}");
    Ok(format!("{exits:?}"))
}

fn no_kernel(node: &Node) -> Result<String> {
    let initramfs = fs::File::open(INITRAMFS).context("open the initramfs")?;
    let life = node.bare("none", initramfs)?.start()?.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(1), "{life:?}");
    ensure!(
        life.output.contains("neither an ELF nor a bzImage"),
        "{life:?}"
    );
    Ok(life.output.trim().to_owned())
}

/// What the guest says about each of its processors, in order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    package: String,
    core: String,
    siblings: String,
}

fn topology(node: &Node, cpus: u8, groups: Option<(u8, u8, u8)>) -> Result<String> {
    let mut plan = node.plan("topology", "topology")?;
    plan.spec.cpus = cpus;
    plan.spec.topology = groups.map(|(sockets, cores, threads)| Topology {
        sockets,
        cores,
        threads,
    });
    let (sockets, cores, threads) = groups.unwrap_or((1, cpus, 1));
    let mut machine = plan.start()?;
    let mut places = Vec::new();
    for _ in 0..cpus {
        let line = machine.line("place ", PATIENCE)?;
        let mut words = line.split(' ').skip(1).map(str::to_owned);
        let mut word = || words.next().with_context(|| format!("{line:?}"));
        places.push(Place {
            package: word()?,
            core: word()?,
            siblings: word()?,
        });
    }
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let packages: BTreeSet<_> = places.iter().map(|p| &p.package).collect();
    let all_cores: BTreeSet<_> = places.iter().map(|p| (&p.package, &p.core)).collect();
    let siblings: BTreeSet<_> = places.iter().map(|p| &p.siblings).collect();
    ensure!(packages.len() == usize::from(sockets), "{places:?}");
    let of_machine = usize::from(sockets) * usize::from(cores);
    ensure!(all_cores.len() == of_machine, "{places:?}");
    ensure!(siblings.len() == of_machine, "{places:?}");
    // A list such as "4-5", or "4" alone.
    let several = siblings.iter().all(|list| list.contains(['-', ',']));
    ensure!(several == (threads > 1), "{places:?}");
    Ok(format!("{cpus} vCPUs, last {:?}", places.last()))
}

fn show_topology() -> Result<()> {
    mount("sysfs", "/sys")?;
    let root = Path::new("/sys/devices/system/cpu");
    let online = fs::read_to_string(root.join("online"))?;
    let last: u32 = match online.trim().rsplit(['-', ',']).next() {
        Some(last) => last.parse()?,
        None => 0,
    };
    for cpu in 0..=last {
        let directory = root.join(format!("cpu{cpu}/topology"));
        let word = |name: &str| {
            let text = fs::read_to_string(directory.join(name));
            text.map(|t| t.trim().to_owned())
                .with_context(|| format!("read {name} of processor {cpu}"))
        };
        let (package, core) = (word("physical_package_id")?, word("core_id")?);
        let siblings = word("thread_siblings_list")?;
        say(&format!("place {package} {core} {siblings}"));
    }
    Ok(())
}

fn bad_topology(node: &Node) -> Result<String> {
    let mut plan = node.plan("topology", "topology")?;
    plan.spec.cpus = 4;
    plan.spec.topology = Some(Topology {
        sockets: 1,
        cores: 3,
        threads: 1,
    });
    let life = plan.start()?.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(1), "{life:?}");
    ensure!(life.output.contains("is not 4 vCPUs"), "{life:?}");
    Ok(life.output.trim().to_owned())
}

/// What the node's kernel says of the pages behind a guest that has booted.
fn pages(node: &Node, pages: HugePages) -> Result<String> {
    let mut plan = node.plan("pages", "rests")?;
    plan.spec.huge_pages = pages;
    let mut machine = plan.start()?;
    machine.line("rests", PATIENCE)?;
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", machine.pid()))?;
    let lines = smaps
        .lines()
        .filter_map(|l| l.strip_prefix("AnonHugePages:"));
    let sizes = lines.filter_map(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let kib: u64 = sizes.sum();
    ensure!(
        (kib > 0) == (pages == HugePages::Transparent),
        "{pages:?}: {kib} KiB in huge pages"
    );
    machine.kill()?;
    Ok(format!("{} MiB in huge pages", kib >> 10))
}

/// The node's kernel has none to reserve.
fn no_reserved_pages(node: &Node) -> Result<String> {
    let mut plan = node.plan("pages", "hello")?;
    plan.spec.huge_pages = HugePages::Reserved2Mi;
    let life = plan.start()?.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(1), "{life:?}");
    ensure!(life.output.contains("vm.nr_hugepages"), "{life:?}");
    Ok(life.output.trim().to_owned())
}
