//! The node and its machines in numbers, for Prometheus.
//!
//! Owns: the names, units and labels of all metrics (docs/metrics.md lists them), and how long and how much is
//! waited for. Refuses: rates and percentages; who scrapes twice has both.

use flist::wire::Counts;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use types::metrics::{Boot, Device, LATENCY_BORDERS_US, Machine, Queue};
use types::node::Capacity;
use types::status::State;
use types::{Bytes, Name, VmId};

use super::exposition::{Family, Type, Value, text};

/// Longest wait for the answers of all machines together. A VMM answers between two turns of its devices; one that
/// hangs on its disk is shown as not up, and scrapers give up after ten seconds.
const ANSWERS_WAIT: Duration = Duration::from_secs(1);
/// Most samples of all queues in one text, of 150 bytes each: 15 MB. Two thousand machines of the usual kind.
const SAMPLES_MAX: usize = 100_000;
/// Samples of a machine beside those of its queues; and of a queue without and with its histogram.
const MACHINE_SAMPLES: usize = 24;
const QUEUE_SAMPLES: usize = 6;
const LATENCY_SAMPLES: usize = 14;
/// Longest file of a control group that is read.
const GROUP_FILE_MAX: u64 = 4096;

pub(crate) mod disks;
pub(crate) mod health;
pub(crate) mod links;
pub(crate) mod peers;
pub(crate) mod refusals;
pub(crate) mod sites;
pub(crate) mod troubles;
pub(crate) mod volumes;

/// A workload whose VMM has been asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) deployment: Name,
    pub(crate) workload: Name,
    pub(crate) vm: VmId,
    pub(crate) state: State,
    pub(crate) restarts: u64,
    /// `None`: there is no VMM, or it cannot be asked now.
    pub(crate) answer: Option<oneshot::Receiver<Machine>>,
}

/// What is known of a workload by now.
#[derive(Debug)]
pub(crate) struct Figures {
    deployment: String,
    workload: String,
    machine: String,
    state: State,
    restarts: u64,
    /// `None`: its VMM has not answered.
    answer: Option<Machine>,
    group: Group,
}

/// What the kernel counts for all of a VMM, guest memory included.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    memory_bytes: Option<u64>,
    cpu_us: Option<u64>,
}

/// The node's own numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) uptime: Duration,
    pub(crate) memory: Bytes,
    pub(crate) memory_available: Bytes,
    pub(crate) pool: Bytes,
    pub(crate) pool_available: Bytes,
    pub(crate) capacity: Capacity,
    pub(crate) chunks: Counts,
}

/// Waits for all answers, together no longer than [`ANSWERS_WAIT`].
pub(crate) async fn collect(asked: Vec<Asked>) -> Vec<Figures> {
    let end = tokio::time::Instant::now() + ANSWERS_WAIT;
    let mut all = Vec::with_capacity(asked.len());
    for one in asked {
        let answer = match one.answer {
            Some(answer) => tokio::time::timeout_at(end, answer).await.ok(),
            None => None,
        };
        all.push(Figures {
            deployment: one.deployment.to_string(),
            workload: one.workload.to_string(),
            machine: one.vm.to_string(),
            state: one.state,
            restarts: one.restarts,
            answer: answer.and_then(Result::ok),
            group: Group::read(&one.vm),
        });
    }
    all
}

impl Group {
    fn read(vm: &VmId) -> Self {
        let group = Path::new("/sys/fs/cgroup/vms").join(vm.as_str());
        let read = |name: &str| {
            use std::io::Read;
            let mut text = String::new();
            let file = std::fs::File::open(group.join(name)).ok()?;
            file.take(GROUP_FILE_MAX).read_to_string(&mut text).ok()?;
            Some(text)
        };
        Self {
            memory_bytes: read("memory.current").and_then(|text| text.trim().parse().ok()),
            cpu_us: read("cpu.stat").and_then(|text| field(&text, "usage_usec")),
        }
    }
}

/// A number of a flat-keyed file of cgroup v2.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.parse().ok()
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::Exited => "exited",
        State::Backoff => "backoff",
    }
}

const STATES: [State; 7] = [
    State::Pending,
    State::Starting,
    State::Running,
    State::Stopping,
    State::Stopped,
    State::Exited,
    State::Backoff,
];

fn samples(figures: &Figures) -> usize {
    let queue = |queue: &Queue| match queue.latency {
        Some(_) => QUEUE_SAMPLES + LATENCY_SAMPLES,
        None => QUEUE_SAMPLES,
    };
    let devices = figures.answer.iter().flat_map(|machine| &machine.devices);
    MACHINE_SAMPLES + devices.flat_map(|d| &d.queues).map(queue).sum::<usize>()
}

/// The text. `node`: its numbers, where who asks may see them. Machines beyond [`SAMPLES_MAX`] are left out, and
/// their number is said.
pub(crate) fn render(node: Option<&Node>, all: &[Figures]) -> String {
    let mut left = SAMPLES_MAX;
    let fits = |figures: &&Figures| {
        let fits = samples(figures) <= left;
        left = left.saturating_sub(samples(figures));
        fits
    };
    let shown: Vec<&Figures> = all.iter().take_while(fits).collect();
    let mut families = Vec::new();
    if let Some(node) = node {
        families.extend(of_node(node, all, all.len() - shown.len()));
    }
    families.extend(of_machines(&shown));
    families.extend(of_lives(&shown));
    families.extend(of_queues(&shown));
    text(&families)
}

/// Name, help and value of a gauge without labels.
type Gauge = (&'static str, &'static str, Value);

fn measured(node: &Node) -> [Gauge; 5] {
    let us = u64::try_from(node.uptime.as_micros()).unwrap_or(u64::MAX);
    [
        (
            "sifr_node_uptime_seconds",
            "Time since the kernel's start.",
            Value::Micros(us),
        ),
        (
            "sifr_node_memory_bytes",
            "Memory of the machine.",
            Value::Count(node.memory.0),
        ),
        (
            "sifr_node_memory_available_bytes",
            "Memory that new programs could have, by the kernel's estimate.",
            Value::Count(node.memory_available.0),
        ),
        (
            "sifr_node_pool_bytes",
            "Size of the pool's file system.",
            Value::Count(node.pool.0),
        ),
        (
            "sifr_node_pool_available_bytes",
            "Bytes of the pool that nothing is written to.",
            Value::Count(node.pool_available.0),
        ),
    ]
}

fn promised(capacity: &Capacity) -> [Gauge; 6] {
    let Capacity {
        cpus,
        cpus_used,
        memory,
        memory_used,
        disk,
        disk_used,
    } = *capacity;
    [
        (
            "sifr_node_capacity_cpus",
            "Virtual processors that deployments may have.",
            Value::Count(cpus),
        ),
        (
            "sifr_node_promised_cpus",
            "Virtual processors promised to deployments.",
            Value::Count(cpus_used),
        ),
        (
            "sifr_node_capacity_memory_bytes",
            "Memory that deployments may have.",
            Value::Count(memory.0),
        ),
        (
            "sifr_node_promised_memory_bytes",
            "Memory promised to deployments.",
            Value::Count(memory_used.0),
        ),
        (
            "sifr_node_capacity_disk_bytes",
            "Disk that deployments may have.",
            Value::Count(disk.0),
        ),
        (
            "sifr_node_promised_disk_bytes",
            "Disk promised to deployments.",
            Value::Count(disk_used.0),
        ),
    ]
}

fn of_chunks(counts: &Counts) -> Vec<Family> {
    let Counts {
        wanted,
        guessed,
        fetched,
        fetched_bytes,
        scrubbed_bytes,
        damaged,
    } = *counts;
    let counters = [
        (
            "sifr_chunks_wanted_total",
            "Chunks of images that machines have waited for.",
            wanted,
        ),
        (
            "sifr_chunks_guessed_total",
            "Chunks of images that were got before a machine waited for them.",
            guessed,
        ),
        (
            "sifr_chunks_fetched_total",
            "Chunks that came from stores.",
            fetched,
        ),
        (
            "sifr_chunks_fetched_bytes_total",
            "Bytes of chunks that came from stores.",
            fetched_bytes,
        ),
        (
            "sifr_chunks_scrubbed_bytes_total",
            "Bytes of the cache that were read again.",
            scrubbed_bytes,
        ),
        (
            "sifr_chunks_damaged_total",
            "Chunks of the cache that were not what their names say, and are no more.",
            damaged,
        ),
    ];
    let family = |(name, help, count)| {
        let mut family = Family::new(name, Type::Counter, help);
        family.sample(&[], Value::Count(count));
        family
    };
    counters.into_iter().map(family).collect()
}

fn of_node(node: &Node, all: &[Figures], left_out: usize) -> Vec<Family> {
    let mut out = Vec::new();
    let mut gauge = |name, help, value| {
        let mut family = Family::new(name, Type::Gauge, help);
        family.sample(&[], value);
        out.push(family);
    };
    let left_out = (
        "sifr_node_machines_left_out",
        "Machines that this text has no room for.",
        Value::Count(left_out as u64),
    );
    let gauges = measured(node).into_iter().chain(promised(&node.capacity));
    for (name, help, value) in gauges.chain([left_out]) {
        gauge(name, help, value);
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for figures in all {
        *counts.entry(state_word(figures.state)).or_default() += 1;
    }
    let mut workloads = Family::new("sifr_node_workloads", Type::Gauge, "Workloads by state.");
    for word in STATES.map(state_word) {
        let count = counts.get(word).copied().unwrap_or(0);
        workloads.sample(&[("state", word)], Value::Count(count));
    }
    out.push(workloads);
    out.extend(of_chunks(&node.chunks));
    out
}

type Label<'a> = (&'a str, &'a str);

fn labels(figures: &Figures) -> [Label<'_>; 3] {
    [
        ("machine", &figures.machine),
        ("deployment", &figures.deployment),
        ("workload", &figures.workload),
    ]
}

/// One sample of each machine that has the value.
fn each(
    name: &'static str,
    kind: Type,
    help: &str,
    all: &[&Figures],
    value: impl Fn(&Figures) -> Option<Value>,
) -> Family {
    let mut family = Family::new(name, kind, help);
    for figures in all {
        if let Some(value) = value(figures) {
            family.sample(&labels(figures), value);
        }
    }
    family
}

fn of_machines(all: &[&Figures]) -> Vec<Family> {
    use Type::{Counter, Gauge};
    let count = |value: u64| Some(Value::Count(value));
    let of = |figures: &Figures, value: fn(&Machine) -> u64| {
        figures.answer.as_ref().map(|m| Value::Count(value(m)))
    };
    vec![
        each(
            "sifr_machine_up",
            Gauge,
            "1 where the VMM has answered.",
            all,
            |f| count(f.answer.is_some().into()),
        ),
        each(
            "sifr_machine_restarts_total",
            Counter,
            "Starts after the first.",
            all,
            |f| count(f.restarts),
        ),
        each(
            "sifr_machine_used_memory_bytes",
            Gauge,
            "Memory of the VMM's control group, the guest's included.",
            all,
            |f| f.group.memory_bytes.map(Value::Count),
        ),
        each(
            "sifr_machine_cpu_seconds_total",
            Counter,
            "Time on processors.",
            all,
            |f| f.group.cpu_us.map(Value::Micros),
        ),
        each(
            "sifr_machine_memory_bytes",
            Gauge,
            "Memory of the guest.",
            all,
            |f| of(f, |m| m.memory.guest_bytes),
        ),
        each(
            "sifr_machine_balloon_bytes",
            Gauge,
            "Memory that the guest has given back.",
            all,
            |f| f.answer.as_ref()?.memory.balloon_bytes.map(Value::Count),
        ),
        each(
            "sifr_machine_resident_max_bytes",
            Gauge,
            "The most memory that the VMM has had resident, the guest's included.",
            all,
            |f| of(f, |m| m.memory.resident_max_bytes),
        ),
    ]
}

fn of_lives(all: &[&Figures]) -> Vec<Family> {
    use Type::{Counter, Gauge};
    let of = |figures: &Figures, value: fn(&Machine) -> u64| {
        figures.answer.as_ref().map(|m| Value::Count(value(m)))
    };
    vec![
        boot(all),
        exits(all),
        each(
            "sifr_machine_vsock_connections",
            Gauge,
            "Open vsock connections.",
            all,
            |f| of(f, |m| m.vsock.open),
        ),
        each(
            "sifr_machine_vsock_connections_total",
            Counter,
            "Vsock connections opened.",
            all,
            |f| of(f, |m| m.vsock.opened),
        ),
        each(
            "sifr_machine_vsock_refused_connections_total",
            Counter,
            "Vsock connections refused.",
            all,
            |f| of(f, |m| m.vsock.refused),
        ),
    ]
}

fn boot(all: &[&Figures]) -> Family {
    let mut family = Family::new(
        "sifr_machine_boot_seconds",
        Type::Gauge,
        "Time from the VMM's entry to a milestone of the boot.",
    );
    for figures in all {
        let Some(Machine { boot, .. }) = &figures.answer else {
            continue;
        };
        let Boot {
            entry_boottime_us: _,
            running_us,
            guest_init_us,
            program_us,
        } = *boot;
        let milestones = [
            ("vcpus_running", running_us),
            ("guest_init", guest_init_us),
            ("program_started", program_us),
        ];
        for (milestone, us) in milestones {
            let [machine, deployment, workload] = labels(figures);
            if let Some(us) = us {
                let labels = [machine, deployment, workload, ("milestone", milestone)];
                family.sample(&labels, Value::Micros(us));
            }
        }
    }
    family
}

fn exits(all: &[&Figures]) -> Family {
    let mut family = Family::new(
        "sifr_machine_exits_total",
        Type::Counter,
        "Exits of all vCPUs to the VMM.",
    );
    for figures in all {
        let Some(Machine { exits, .. }) = &figures.answer else {
            continue;
        };
        let types::vm::Exits {
            pio_in,
            pio_out,
            mmio_read,
            mmio_write,
            other,
        } = *exits;
        for (kind, count) in [
            ("pio_in", pio_in),
            ("pio_out", pio_out),
            ("mmio_read", mmio_read),
            ("mmio_write", mmio_write),
            ("other", other),
        ] {
            let [machine, deployment, workload] = labels(figures);
            let labels = [machine, deployment, workload, ("kind", kind)];
            family.sample(&labels, Value::Count(count));
        }
    }
    family
}

/// Labels of a queue.
fn queue_labels<'a>(figures: &'a Figures, device: &'a Device, queue: &'a str) -> [Label<'a>; 6] {
    let [machine, deployment, workload] = labels(figures);
    let kind = ("device", device.kind.word());
    [
        machine,
        deployment,
        workload,
        kind,
        ("name", &device.name),
        ("queue", queue),
    ]
}

/// Name, type and help of a family, and its number of a queue.
type QueueFamily = (&'static str, Type, &'static str, fn(&Queue) -> u64);

/// What each queue has one number of.
const QUEUE_FAMILIES: [QueueFamily; 6] = [
    (
        "sifr_machine_queue_depth",
        Type::Gauge,
        "Chains offered and not given back.",
        |q| q.depth as u64,
    ),
    (
        "sifr_machine_queue_depth_max",
        Type::Gauge,
        "The most of them ever.",
        |q| q.depth_max as u64,
    ),
    (
        "sifr_machine_queue_requests_total",
        Type::Counter,
        "Chains taken.",
        |q| q.requests,
    ),
    (
        "sifr_machine_queue_from_guest_bytes_total",
        Type::Counter,
        "Bytes that the guest offered to its device.",
        |q| q.from_guest_bytes,
    ),
    (
        "sifr_machine_queue_to_guest_bytes_total",
        Type::Counter,
        "Bytes that the device wrote for the guest.",
        |q| q.to_guest_bytes,
    ),
    (
        "sifr_machine_queue_errors_total",
        Type::Counter,
        "Requests answered with an error, packets not taken.",
        |q| q.errors,
    ),
];

fn of_queues(all: &[&Figures]) -> Vec<Family> {
    use Type::{Counter, Histogram};
    let mut stops = Family::new(
        "sifr_machine_device_stops_total",
        Counter,
        "Devices stopped because their driver broke the rules.",
    );
    let simple = QUEUE_FAMILIES;
    let mut simple = simple.map(|(name, kind, help, get)| (Family::new(name, kind, help), get));
    let mut latency = Family::new(
        "sifr_machine_request_seconds",
        Histogram,
        "From taking a request to answering it.",
    );
    for figures in all {
        for device in figures.answer.iter().flat_map(|machine| &machine.devices) {
            let [machine, deployment, workload, kind, name, _] = queue_labels(figures, device, "");
            let of_device = [machine, deployment, workload, kind, name];
            stops.sample(&of_device, Value::Count(device.stops));
            for (index, queue) in device.queues.iter().enumerate() {
                let index = index.to_string();
                let labels = queue_labels(figures, device, &index);
                for (family, get) in &mut simple {
                    family.sample(&labels, Value::Count(get(queue)));
                }
                if let Some(times) = &queue.latency {
                    latency.histogram(&labels, &LATENCY_BORDERS_US, &times.buckets, times.sum_us);
                }
            }
        }
    }
    let mut out = vec![stops];
    out.extend(simple.map(|(family, _)| family));
    out.push(latency);
    out
}

#[cfg(test)]
mod tests {
    use types::metrics::{Kind, LATENCY_BUCKETS, Latency};

    use super::super::exposition::tests::parse;
    use super::*;

    fn figures(name: &str, answer: Option<Machine>) -> Figures {
        Figures {
            deployment: "shop".to_owned(),
            workload: name.to_owned(),
            machine: format!("{name}-shop-01010101"),
            state: State::Running,
            restarts: 2,
            answer,
            group: Group {
                memory_bytes: Some(7),
                cpu_us: None,
            },
        }
    }

    fn machine(queues: usize) -> Machine {
        let queue = Queue {
            depth: 1,
            depth_max: 3,
            requests: 5,
            from_guest_bytes: 80,
            to_guest_bytes: 5,
            errors: 1,
            latency: Some(Latency {
                buckets: [1; LATENCY_BUCKETS],
                sum_us: 17,
            }),
        };
        Machine {
            boot: Boot {
                running_us: Some(11_000),
                ..Boot::default()
            },
            devices: vec![Device {
                kind: Kind::Blk,
                name: "up\"per".to_owned(),
                stops: 0,
                queues: vec![queue; queues],
            }],
            ..Machine::default()
        }
    }

    fn node() -> Node {
        Node {
            uptime: Duration::from_millis(1500),
            memory: Bytes::gib(1),
            memory_available: Bytes::mib(900),
            pool: Bytes::gib(9),
            pool_available: Bytes::gib(8),
            capacity: Capacity::default(),
            chunks: Counts::default(),
        }
    }

    #[test]
    fn the_text_is_what_the_format_says_and_has_every_machine() {
        let all = [figures("web", Some(machine(2))), figures("db", None)];
        let read = parse(&render(Some(&node()), &all));
        let find = |name: &str, label: (&str, &str)| {
            let found = read.iter().find(|(of, labels, _)| {
                of == name
                    && (label.0.is_empty() || labels.get(label.0).is_some_and(|v| v == label.1))
            });
            found.unwrap_or_else(|| panic!("{name}")).2
        };
        assert_eq!(find("sifr_node_uptime_seconds", ("", "")), 1.5);
        assert_eq!(find("sifr_node_workloads", ("state", "running")), 2.0);
        assert_eq!(find("sifr_machine_up", ("workload", "web")), 1.0);
        assert_eq!(find("sifr_machine_up", ("workload", "db")), 0.0);
        assert_eq!(
            find("sifr_machine_boot_seconds", ("milestone", "vcpus_running")),
            0.011
        );
        assert_eq!(find("sifr_machine_queue_errors_total", ("queue", "1")), 1.0);
        assert_eq!(
            find("sifr_machine_request_seconds_count", ("name", "up\"per")),
            12.0
        );
        assert!(
            !read
                .iter()
                .any(|(name, ..)| name == "sifr_machine_cpu_seconds_total")
        );
    }

    #[test]
    fn what_is_seen_of_a_deployment_has_nothing_of_the_node() {
        let text = render(None, &[figures("web", Some(machine(1)))]);
        assert!(!text.contains("sifr_node") && text.contains("sifr_machine_up"));
    }

    #[test]
    fn what_has_no_room_is_left_out_and_counted() {
        let large = || figures("web", Some(machine(250)));
        let all: Vec<Figures> = (0..40).map(|_| large()).collect();
        let text = render(Some(&node()), &all);
        let shown = SAMPLES_MAX / samples(&large());
        let line = format!("sifr_node_machines_left_out {}\n", all.len() - shown);
        assert!(
            text.contains(&line) && text.len() < 40 << 20,
            "{}",
            text.len()
        );
    }

    #[tokio::test]
    async fn a_machine_that_never_answers_holds_nobody_up() {
        let asked = |answer| Asked {
            deployment: "shop".parse().expect("a name"),
            workload: "web".parse().expect("a name"),
            vm: "web-shop-01010101".parse().expect("an id"),
            state: State::Running,
            restarts: 0,
            answer,
        };
        let (answers, answer) = oneshot::channel();
        let (_silent, silence) = oneshot::channel();
        let (gone, lost) = oneshot::channel::<Machine>();
        drop(gone);
        answers.send(Machine::default()).expect("waits");
        let begun = tokio::time::Instant::now();
        let all = collect(vec![
            asked(Some(silence)),
            asked(None),
            asked(Some(lost)),
            asked(Some(answer)),
        ]);
        let up: Vec<bool> = all.await.iter().map(|f| f.answer.is_some()).collect();
        assert_eq!(up, [false, false, false, true]);
        assert!(
            begun.elapsed() >= ANSWERS_WAIT,
            "the silent one was waited for"
        );
    }

    #[test]
    fn a_number_of_a_control_group_is_found_by_its_name() {
        let text = "usage_usec 12\nuser_usec 7\n";
        assert_eq!(field(text, "usage_usec"), Some(12));
        assert_eq!(field(text, "usec"), None);
    }
}
