//! Many deployments on one node: what an acknowledgement, a start and a quiet minute cost as their number grows.
//!
//! Owns: the curve, a node with as many processors as its promises need, statements that change nothing but the ledger.
//! Refuses: seconds of an emulated node as figures. Times stand beside another time of the same run: an acknowledgement
//! beside a question over a new connection of its own, a start beside the first one.

use std::future::Future;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use api::client::Client;
use api::envelope::Envelope;
use api::route::{Until, Verdict};
use api::sign::SecretKey;
use image::assemble::Image;
use image::paths::Paths;
use image::qemu::{Bus, Disk, blank_disk};
use serde_json::json;
use tokio::runtime::Runtime;
use types::deployment::{Action, Statement};
use types::status::DeploymentStatus;
use types::{Bytes, Name};

use super::images::median;
use super::measure::{MIB, PATIENCE, float};
use super::table::Row;
use crate::watch::Watch;
use crate::{Lab, Setup, busybox};

/// Numbers of machines at which is measured.
const POINTS: [usize; 4] = [1, 10, 30, 100];
/// As many as there are where nobody asks for fewer.
pub(super) const MACHINES: u16 = 100;
/// Acknowledgements, and questions beside them, at each point.
const ROUNDS: u64 = 15;
/// The newest machines of a point whose starts count.
const NEWEST: usize = 9;
/// Each processor of a node is promised so many times.
const PROMISED: u16 = 4;
/// A machine and its monitor, of the node's memory, and what the node keeps for itself.
const MEMORY_EACH: Bytes = Bytes::mib(96);
const MEMORY_KEPT: Bytes = Bytes::gib(2);
const POOL: Bytes = Bytes::gib(24);
/// An emulated node would count loops between ticks, for each of 26 processors, and lose minutes: it is told.
const LOOPS: &str = "lpj=4000000";
/// Seconds of the node's own clock in which it is left alone.
const QUIET_SECONDS: f64 = 8.0;
/// Targets of our own: what one costs among a hundred, as a multiple of what one costs alone.
const GROWTH: f64 = 2.0;
/// Of one processor, for all hundred machines of which none does anything.
const QUIET_PERCENT: f64 = 5.0;

/// A node and its owner's connection.
pub(super) struct Owner<'a> {
    runtime: Runtime,
    key: SecretKey,
    address: String,
    node: types::PublicKey,
    flist: String,
    _lab: &'a Lab,
}

impl<'a> Owner<'a> {
    /// The image comes to the node with a first deployment, which goes again.
    pub(super) fn of(lab: &'a Lab) -> Result<Self> {
        let flist = busybox(lab.command(), lab.directory())?;
        let stem = flist.file_stem().context("a name")?.to_string_lossy();
        let deploy = lab.deploy(&format!(
            "name: first\nimage: {}\nmemory: 64Mi\ndisk: 64Mi\nrestart: never\ncommand: [\"true\"]\n",
            flist.display()
        ))?;
        deploy.must()?;
        lab.wait("first", "exited")?.must()?;
        lab.delete("first")?;
        Ok(Self {
            runtime: crate::runtime(),
            key: SecretKey::load(&lab.directory().join("home/key"))?,
            address: format!("127.0.0.1:{}", lab.api),
            node: lab.key()?.parse().map_err(anyhow::Error::msg)?,
            flist: format!("blake3:{stem}"),
            _lab: lab,
        })
    }

    pub(super) fn public(&self) -> types::PublicKey {
        self.key.public()
    }

    pub(super) fn block<T>(
        &self,
        work: impl Future<Output = Result<T, api::client::ClientError>>,
    ) -> Result<T> {
        Ok(self.runtime.block_on(work)?)
    }

    pub(super) fn client(&self) -> Result<Client> {
        Ok(Client::new(&self.address, self.node, &self.key)?)
    }

    pub(super) fn sealed(&self, name: &str, version: u64, action: Action) -> Result<Envelope> {
        let statement = Statement {
            node: self.node,
            name: name.parse()?,
            version,
            action,
        };
        Ok(Envelope::seal_statement(&self.key, &statement)?)
    }

    /// Milliseconds until it was acknowledged, the connection made for it included.
    pub(super) fn state(&self, name: &str, version: u64, action: Action) -> Result<f64> {
        let envelope = self.sealed(name, version, action)?;
        let client = self.client()?;
        let since = Instant::now();
        self.block(client.post_statement(&envelope))?;
        Ok(since.elapsed().as_secs_f64() * 1e3)
    }

    /// Milliseconds of a question about a deployment, likewise.
    fn question(&self, name: &str) -> Result<f64> {
        let (name, client): (Name, _) = (name.parse()?, self.client()?);
        let since = Instant::now();
        self.block(client.deployment(&name))?;
        Ok(since.elapsed().as_secs_f64() * 1e3)
    }

    pub(super) fn until(&self, name: &str, until: Until) -> Result<DeploymentStatus> {
        let (name, client): (Name, _) = (name.parse()?, self.client()?);
        let waited = client.wait(&name, until, PATIENCE, |_| ());
        let (status, verdict) = self.block(waited)?;
        ensure!(verdict == Verdict::Met, "{name} is not there: {status:?}");
        Ok(status)
    }

    /// A machine as small as they are, with what more the document says of it.
    pub(super) fn small(&self, more: &[(&str, serde_json::Value)]) -> serde_json::Value {
        let mut machine = json!({
            "image": {"flist": self.flist}, "memory": "64Mi", "disk": "64Mi", "command": ["sleep", "100000"],
        });
        more.iter()
            .for_each(|(field, value)| machine[*field] = value.clone());
        json!({"machine": machine})
    }

    fn alone(&self) -> Result<Action> {
        deployment(json!({"workloads": {"main": self.small(&[])}}))
    }

    /// By the node's own clock.
    fn uptime_seconds(&self) -> Result<f64> {
        let client = self.client()?;
        let info = self.block(client.node_info())?;
        Ok(float(info.uptime_ms) / 1e3)
    }
}

pub(super) fn deployment(document: serde_json::Value) -> Result<Action> {
    Ok(Action::Deploy(serde_json::from_value(document)?))
}

/// What the node has spent so far, by its kernel.
struct Spent {
    /// Of the node agent, seconds.
    cpu: f64,
    /// Writes and flushes that each disk was asked for.
    writes: u64,
    flushes: u64,
}

impl Spent {
    fn now(watch: &mut Watch, disks: &[&str]) -> Result<Self> {
        let stat = watch.read("/sys/fs/cgroup/node/cpu.stat")?;
        let (mut writes, mut flushes) = (0, 0);
        for disk in disks {
            let text = watch.read(&format!("/sys/block/{disk}/stat"))?;
            let numbers: Vec<u64> = text
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            // Kernel document `block/stat`.
            writes += numbers.get(4).context("no writes")?;
            flushes += numbers.get(15).context("no flushes")?;
        }
        Ok(Self {
            cpu: float(crate::inside::kib_of(&stat, "usage_usec").context("no usage")?) / 1e6,
            writes,
            flushes,
        })
    }
}

/// Statements that lead to nothing but their record.
struct Acknowledged {
    /// Milliseconds, and as a multiple of a question's.
    median_ms: f64,
    of_question: f64,
    /// Milliseconds of the node's processor for one.
    cpu_ms: f64,
    writes: f64,
    flushes: f64,
}

fn acknowledge(
    owner: &Owner<'_>,
    watch: &mut Watch,
    version: &mut u64,
    disks: &[&str],
) -> Result<Acknowledged> {
    let (mut statements, mut questions) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        questions.push(owner.question("still")?);
    }
    let before = Spent::now(watch, disks)?;
    for _ in 0..ROUNDS {
        *version += 1;
        statements.push(owner.state("still", *version, Action::Stop)?);
    }
    let after = Spent::now(watch, disks)?;
    let each = |number: u64| float(number) / float(ROUNDS);
    let median_ms = median(statements);
    Ok(Acknowledged {
        median_ms,
        of_question: median_ms / median(questions),
        cpu_ms: (after.cpu - before.cpu) * 1e3 / float(ROUNDS),
        writes: each(after.writes - before.writes),
        flushes: each(after.flushes - before.flushes),
    })
}

/// A deployment that is stopped and stays so.
fn still(owner: &Owner<'_>) -> Result<u64> {
    owner.state("still", 1, owner.alone()?)?;
    owner.state("still", 2, Action::Stop)?;
    owner.until("still", Until::Stopped)?;
    Ok(2)
}

/// What was measured at one number of machines.
struct Point {
    machines: usize,
    acknowledged: Acknowledged,
    /// From the acknowledgement to the monitor's process and to the program, milliseconds, of the newest machines.
    to_process: f64,
    to_program: f64,
    /// Milliseconds of the node's processor for each machine that came since the last point.
    cpu_ms: f64,
    quiet_percent: f64,
    /// The agent's own memory, MiB.
    agent_mib: f64,
    /// All of the node's that is not its machines', MiB.
    node_mib: f64,
}

impl Point {
    /// For who waits for the others.
    fn line(&self) -> String {
        let Acknowledged {
            of_question,
            cpu_ms,
            ..
        } = self.acknowledged;
        format!(
            "{} machines: acknowledgement {of_question:.2} of a question, {cpu_ms:.1} ms; process after {:.0} ms, program after {:.0} ms; \
             {:.0} ms a machine; {:.2} % at rest; {:.1} MiB, {:.1} MiB",
            self.machines,
            self.to_process,
            self.to_program,
            self.cpu_ms,
            self.quiet_percent,
            self.agent_mib,
            self.node_mib
        )
    }
}

/// Up to `machines` of them.
pub(super) fn grown(machines: u16) -> Result<Vec<Row>> {
    // One more is stopped all the while, and is promised its processor.
    let cpus = u8::try_from((machines + 1).div_ceil(PROMISED).max(2))?;
    let memory = MEMORY_KEPT.0 + MEMORY_EACH.0 * u64::from(machines + 1);
    let directory = tempfile::TempDir::with_prefix("sifr-crowd-")?;
    let file = directory.path().join("pool.raw");
    blank_disk(&file, POOL)?;
    let setup = Setup {
        disk: false,
        cpus,
        memory: Bytes(memory),
        arguments: LOOPS.to_owned(),
        watched: true,
        ..Setup::default()
    };
    let mut lab = Lab::with(&setup, |machine| {
        // QEMU 7.2 fails an assertion of its own (msix.c) now and then, where a virtio disk has a queue for each of 26.
        let (bus, serial) = (Bus::Ahci, "CROWD0".to_owned());
        machine.disks.push(Disk { file, bus, serial });
        // What it said stays where it does not come to its end.
        let log = Image::find(&Paths::find()?)?.dist;
        machine.console_log = Some(log.with_file_name("target/bench-crowd.log"));
        Ok(())
    })?;
    let mut points = Vec::new();
    let alone;
    {
        let owner = Owner::of(&lab)?;
        let mut watch = lab.watch()?;
        let mut version = still(&owner)?;
        let mut there = 0;
        let all = usize::from(machines);
        let before = POINTS.into_iter().filter(|machines| *machines < all);
        for machines in before.chain([all]) {
            points.push(point(
                &owner,
                &mut watch,
                &mut version,
                &mut there,
                machines,
            )?);
            eprintln!("bench:     {}", points[points.len() - 1].line());
        }
        alone = points[0].to_program / 1e3;
    }
    lab.power_cut()?;
    lab.power_on()?;
    lab.node()
        .wait_for_line(&format!(" {machines} running"), PATIENCE)?;
    let rebooted = Owner::of_again(&lab)?.uptime_seconds()?;
    Ok(rows(&points, rebooted, alone))
}

impl<'a> Owner<'a> {
    /// Of a node that has the image and goes on after a power cut.
    fn of_again(lab: &'a Lab) -> Result<Self> {
        Ok(Self {
            runtime: crate::runtime(),
            key: SecretKey::load(&lab.directory().join("home/key"))?,
            address: format!("127.0.0.1:{}", lab.api),
            node: lab.key()?.parse().map_err(anyhow::Error::msg)?,
            flist: String::new(),
            _lab: lab,
        })
    }
}

fn point(
    owner: &Owner<'_>,
    watch: &mut Watch,
    version: &mut u64,
    there: &mut usize,
    machines: usize,
) -> Result<Point> {
    let (before, first) = (Spent::now(watch, &[])?, *there + 1);
    let (mut to_process, mut to_program) = (Vec::new(), Vec::new());
    for number in first..=machines {
        let name = format!("m{number:03}");
        owner.state(&name, 1, owner.alone()?)?;
        let status = owner.until(&name, Until::Running)?;
        let timeline = status
            .workloads
            .values()
            .next()
            .context("no machine")?
            .timeline
            .context("it never started")?;
        if number + NEWEST > machines {
            to_process.push(float(timeline.vmm_ms.context("no process")?));
            to_program.push(float(timeline.program_ms.context("no program")?));
        }
    }
    let added = u32::try_from(machines - *there)?;
    *there = machines;
    let after = Spent::now(watch, &[])?;
    let acknowledged = acknowledge(owner, watch, version, &["sda"])?;
    let (began, from) = (owner.uptime_seconds()?, Spent::now(watch, &[])?);
    // Nothing tells that nothing happened.
    std::thread::sleep(std::time::Duration::from_secs_f64(QUIET_SECONDS));
    let (to, ended) = (Spent::now(watch, &[])?, owner.uptime_seconds()?);
    let number = |text: &str, key: &str| crate::inside::kib_of(text, key).map(float);
    let agent = watch.read("/sys/fs/cgroup/node/memory.stat")?;
    let meminfo = watch.read("/proc/meminfo")?;
    let vms: f64 = watch
        .read("/sys/fs/cgroup/vms/memory.current")?
        .trim()
        .parse()?;
    let total = number(&meminfo, "MemTotal:").context("no memory")?;
    let free = number(&meminfo, "MemAvailable:").context("no memory")?;
    Ok(Point {
        machines,
        acknowledged,
        to_process: median(to_process),
        to_program: median(to_program),
        cpu_ms: (after.cpu - before.cpu) * 1e3 / f64::from(added),
        quiet_percent: 100.0 * (to.cpu - from.cpu) / (ended - began),
        agent_mib: number(&agent, "anon ").context("no memory")? / MIB,
        node_mib: (total - free) / 1024.0 - vms / MIB,
    })
}

fn rows(points: &[Point], rebooted: f64, alone: f64) -> Vec<Row> {
    let mut rows = Vec::new();
    let (one, all) = (&points[0], &points[points.len() - 1]);
    let grows = |what: &str, of: fn(&Point) -> f64, unit: &'static str, rows: &mut Vec<Row>| {
        let name = format!(
            "{what} among {}, as a multiple of with {}",
            all.machines, one.machines
        );
        rows.push(Row::target(name, of(all) / of(one), "", GROWTH));
        for point in points {
            rows.push(Row::part(
                format!("… with {}", point.machines),
                of(point),
                unit,
            ));
        }
    };
    grows(
        "an acknowledgement, as a multiple of a question,",
        |p| p.acknowledged.of_question,
        "",
        &mut rows,
    );
    grows(
        "the node's processor for an acknowledgement",
        |p| p.acknowledged.cpu_ms,
        "ms",
        &mut rows,
    );
    grows(
        "from the acknowledgement to the monitor's process",
        |p| p.to_process,
        "ms",
        &mut rows,
    );
    grows(
        "from the acknowledgement to the program",
        |p| p.to_program,
        "ms",
        &mut rows,
    );
    grows(
        "the node's processor for a new machine",
        |p| p.cpu_ms,
        "ms",
        &mut rows,
    );
    let quiet = format!(
        "the node's processor with {} machines that rest",
        all.machines
    );
    rows.push(Row::target(quiet, all.quiet_percent, "%", QUIET_PERCENT));
    for point in points {
        let with = |what: &str| format!("… {what} with {}", point.machines);
        rows.push(Row::part(
            with("processor at rest"),
            point.quiet_percent,
            "%",
        ));
        rows.push(Row::part(
            with("memory of the agent"),
            point.agent_mib,
            "MiB",
        ));
        rows.push(Row::part(
            with("memory that is no machine's"),
            point.node_mib,
            "MiB",
        ));
        rows.push(Row::part(
            with("an acknowledgement, by the clock,"),
            point.acknowledged.median_ms,
            "ms",
        ));
        rows.push(Row::part(
            with("writes for an acknowledgement"),
            point.acknowledged.writes,
            "",
        ));
        rows.push(Row::part(
            with("flushes for an acknowledgement"),
            point.acknowledged.flushes,
            "",
        ));
    }
    let machines = float(u64::try_from(all.machines).unwrap_or(u64::MAX));
    let name = format!(
        "power-on until {} machines run again, as a multiple of their starts one by one",
        all.machines
    );
    rows.push(Row::target(name, rebooted / (alone * machines), "", 1.0));
    rows.push(Row::part("… by the node's clock", rebooted, "s"));
    rows
}

/// The same statements on a node with one disk and on one with two: each copy of the ledger is synced before the word.
pub(super) fn pools() -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for disks in [&["vda"][..], &["vda", "vdb"]] {
        let setup = Setup {
            watched: true,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            for number in 1..disks.len() {
                let mut more = machine.disks[0].clone();
                more.file = more.file.with_file_name(format!("pool-{number}.raw"));
                more.serial = format!("LAB{number}");
                blank_disk(&more.file, Bytes::gib(4))?;
                machine.disks.push(more);
            }
            Ok(())
        })?;
        let owner = Owner::of(&lab)?;
        let mut version = still(&owner)?;
        found.push(acknowledge(&owner, &mut lab.watch()?, &mut version, disks)?);
    }
    let [one, two] = &found[..] else {
        unreachable!("two were made")
    };
    let ratio = two.of_question / one.of_question;
    let mut rows = vec![Row::target(
        "an acknowledgement on two pools, as a multiple of on one",
        ratio,
        "",
        GROWTH,
    )];
    for (what, of) in [("one pool", one), ("two pools", two)] {
        rows.push(Row::part(
            format!("… {what}: as a multiple of a question"),
            of.of_question,
            "",
        ));
        rows.push(Row::part(format!("… {what}: flushes"), of.flushes, ""));
        rows.push(Row::part(format!("… {what}: writes"), of.writes, ""));
    }
    Ok(rows)
}
