//! What a machine counts about itself: relaxed atomics where things happen, read by whoever asks.
//!
//! Owns: the counters of queues and of the machine, and the moment of the process's entry.
//! Refuses: locks, allocation and system calls where something is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use types::metrics;
use types::metrics::{
    Boot, Device, Kind, LATENCY_BORDERS_US, LATENCY_BUCKETS, Latency, Queue, Vsock,
};
use virtio_bindings::virtio_ids;

use crate::control::{Outbox, SharedBalloon};
use crate::cpu::vcpu::Shared;
use crate::memory::missing::Missing;
use crate::virtio::balloon::Balloon;
use crate::virtio::worker::Wired;

/// When this process entered `main`: the zero of its milestones.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Instant,
    /// On the clock that the node's other processes read too.
    boottime_us: u64,
}

static ENTRY: OnceLock<Entry> = OnceLock::new();

fn entry() -> Entry {
    *ENTRY.get_or_init(|| Entry {
        at: Instant::now(),
        boottime_us: boottime_us(),
    })
}

fn boottime_us() -> u64 {
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        part(time.tv_sec()) * 1_000_000 + part(time.tv_nsec()) / 1000
    })
}

/// To be called first of all in `main`.
pub(crate) fn enter() {
    entry();
}

/// Microseconds since [`enter`].
pub(crate) fn since_entry_us() -> u64 {
    u64::try_from(entry().at.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

/// A moment that comes once. Zero: it has not come.
#[derive(Debug, Default)]
struct Milestone(AtomicU64);

impl Milestone {
    /// Notes that it is now, and says when that is. `None`: it has been before.
    fn reach(&self) -> Option<u64> {
        let now = since_entry_us().max(1);
        let relaxed = Ordering::Relaxed;
        let first = self.0.compare_exchange(0, now, relaxed, relaxed);
        first.is_ok().then_some(now)
    }

    fn read(&self) -> Option<u64> {
        Some(load(&self.0)).filter(|us| *us != 0)
    }
}

/// The life of the machine, beside its devices.
#[derive(Debug, Default)]
pub(crate) struct Life {
    running: Milestone,
    guest_init: Milestone,
    program: Milestone,
    opened: AtomicU64,
    refused: AtomicU64,
    open: AtomicU64,
}

impl Life {
    /// The vCPUs run.
    pub(crate) fn running(&self) -> u64 {
        self.running.reach().unwrap_or_else(since_entry_us)
    }

    /// Guest init has connected. Gives the time at the first time.
    pub(crate) fn guest_init(&self) -> Option<u64> {
        self.guest_init.reach()
    }

    pub(crate) fn program(&self) {
        self.program.reach();
    }

    pub(crate) fn connected(&self) {
        add(&self.opened, 1);
    }

    pub(crate) fn refused(&self) {
        add(&self.refused, 1);
    }

    /// Connections that are open now.
    pub(crate) fn open(&self, count: usize) {
        self.open.store(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn boot(&self) -> Boot {
        Boot {
            entry_boottime_us: entry().boottime_us,
            running_us: self.running.read(),
            guest_init_us: self.guest_init.read(),
            program_us: self.program.read(),
        }
    }

    pub(crate) fn vsock(&self) -> Vsock {
        Vsock {
            open: load(&self.open),
            opened: load(&self.opened),
            refused: load(&self.refused),
        }
    }
}

/// How long requests take.
#[derive(Debug)]
struct Timing {
    /// When the request of each head was taken, in microseconds since [`enter`].
    taken: Box<[AtomicU64]>,
    buckets: [AtomicU64; LATENCY_BUCKETS],
    sum_us: AtomicU64,
}

/// Counters of one virtqueue.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    depth: AtomicU32,
    depth_max: AtomicU32,
    requests: AtomicU64,
    from_guest: AtomicU64,
    to_guest: AtomicU64,
    errors: AtomicU64,
    timing: Option<Timing>,
}

impl Counters {
    /// Of a queue of requests, each of which is timed. `size`: the most entries that it can have.
    pub(crate) fn timed(size: u16) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0));
        Self {
            timing: Some(Timing {
                taken: zeros(size.into()).collect(),
                buckets: Default::default(),
                sum_us: AtomicU64::new(0),
            }),
            ..Self::default()
        }
    }

    /// A chain has been taken, one of `depth` that the driver waits for.
    pub(crate) fn taken(&self, head: u16, depth: u16, bytes: u64) {
        add(&self.requests, 1);
        add(&self.from_guest, bytes);
        self.depth.store(depth.into(), Ordering::Relaxed);
        self.depth_max.fetch_max(depth.into(), Ordering::Relaxed);
        let place = self
            .timing
            .as_ref()
            .and_then(|t| t.taken.get(usize::from(head)));
        if let Some(place) = place {
            place.store(since_entry_us(), Ordering::Relaxed);
        }
    }

    /// The chain taken last was not done, and will be taken again.
    pub(crate) fn put_back(&self, bytes: u64) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.from_guest.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A chain has been given back, `bytes` of it written; `depth` are left.
    pub(crate) fn answered(&self, head: u16, depth: u16, bytes: u32) {
        add(&self.to_guest, bytes.into());
        self.depth.store(depth.into(), Ordering::Relaxed);
        let Some(timing) = &self.timing else { return };
        if let Some(taken) = timing.taken.get(usize::from(head)) {
            let took = since_entry_us().saturating_sub(load(taken));
            add(&timing.buckets[bucket(took)], 1);
            add(&timing.sum_us, took);
        }
    }

    /// A chain of several that are given back together, the last of them by [`Counters::answered`].
    pub(crate) fn wrote(&self, bytes: u32) {
        add(&self.to_guest, bytes.into());
    }

    /// A request has been answered with an error, or a packet was not taken.
    pub(crate) fn failed(&self) {
        add(&self.errors, 1);
    }

    /// The driver has reset the device: it waits for nothing.
    pub(crate) fn reset(&self) {
        self.depth.store(0, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Queue {
        Queue {
            depth: self.depth.load(Ordering::Relaxed),
            depth_max: self.depth_max.load(Ordering::Relaxed),
            requests: load(&self.requests),
            from_guest_bytes: load(&self.from_guest),
            to_guest_bytes: load(&self.to_guest),
            errors: load(&self.errors),
            latency: self.timing.as_ref().map(|timing| Latency {
                buckets: std::array::from_fn(|index| load(&timing.buckets[index])),
                sum_us: load(&timing.sum_us),
            }),
        }
    }
}

/// All that is counted in one machine.
pub(crate) struct Registry {
    devices: Vec<Arc<dyn Wired>>,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    balloon: Option<SharedBalloon>,
    guest_bytes: u64,
    /// Where the guest's memory comes page by page.
    missing: Option<Arc<Missing>>,
}

impl Registry {
    /// `memory_mib`: the guest's memory.
    pub(crate) fn new(
        devices: Vec<Arc<dyn Wired>>,
        shared: &Arc<Shared>,
        outbox: &Arc<Outbox>,
        balloon: Option<SharedBalloon>,
        memory_mib: u64,
        missing: Option<Arc<Missing>>,
    ) -> Self {
        Self {
            missing,
            devices,
            shared: Arc::clone(shared),
            outbox: Arc::clone(outbox),
            balloon,
            guest_bytes: memory_mib << 20,
        }
    }

    /// What has been counted by now. Takes no device's lock but the balloon's, which the same thread serves: the
    /// answer waits for none that is busy. The guest is asked for newer statistics.
    pub(crate) fn read(&self) -> metrics::Machine {
        let balloon = self.balloon.as_ref().map(|b| b.ask(Balloon::standing));
        metrics::Machine {
            boot: self.outbox.life.boot(),
            exits: self.shared.exits.read(),
            devices: named(self.devices.iter().filter_map(|device| device.metrics())),
            vsock: self.outbox.life.vsock(),
            memory: metrics::Memory {
                guest_bytes: self.guest_bytes,
                balloon_bytes: balloon.map(|balloon| balloon.actual_bytes),
                resident_max_bytes: resident_max_bytes(),
                restored: self.missing.as_ref().map(|missing| missing.pages()),
            },
            balloon,
        }
    }
}

fn resident_max_bytes() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let kib = usage.map_or(0, |usage| usage.max_rss());
    u64::try_from(kib).unwrap_or(0) * 1024
}

/// Numbers devices among those of their kind, where they have no name of their own.
pub(crate) fn named(devices: impl Iterator<Item = Device>) -> Vec<Device> {
    let mut counts = BTreeMap::new();
    let name = |mut device: Device| {
        let count: &mut u32 = counts.entry(device.kind).or_default();
        if device.name.is_empty() {
            device.name = count.to_string();
        }
        *count += 1;
        device
    };
    devices.map(name).collect()
}

/// Which bucket a duration falls into.
fn bucket(us: u64) -> usize {
    LATENCY_BORDERS_US.partition_point(|border| *border < us)
}

/// What a device of this virtio id is called; `None`: it has no counters to show.
pub(crate) fn kind(id: u32) -> Option<Kind> {
    Some(match id {
        virtio_ids::VIRTIO_ID_BLOCK => Kind::Blk,
        virtio_ids::VIRTIO_ID_NET => Kind::Net,
        virtio_ids::VIRTIO_ID_CONSOLE => Kind::Console,
        virtio_ids::VIRTIO_ID_RNG => Kind::Rng,
        virtio_ids::VIRTIO_ID_BALLOON => Kind::Balloon,
        virtio_ids::VIRTIO_ID_VSOCK => Kind::Vsock,
        virtio_ids::VIRTIO_ID_PMEM => Kind::Pmem,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_whose_border_it_does_not_pass() {
        for (us, index) in [
            (0, 0),
            (10, 0),
            (11, 1),
            (25, 1),
            (1_000_000, 9),
            (10_000_000, 10),
        ] {
            assert_eq!(bucket(us), index, "{us}");
        }
        assert_eq!(bucket(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn a_request_is_counted_when_it_is_taken_and_timed_when_it_is_answered() {
        let counters = Counters::timed(4);
        counters.taken(3, 2, 16);
        counters.taken(1, 1, 16);
        let before = counters.read();
        assert_eq!((before.requests, before.from_guest_bytes), (2, 32));
        assert_eq!((before.depth, before.depth_max), (1, 2));
        assert_eq!(before.latency.expect("timed").buckets, [0; LATENCY_BUCKETS]);
        counters.answered(3, 0, 513);
        counters.failed();
        let after = counters.read();
        let latency = after.latency.expect("timed");
        assert_eq!(latency.buckets.iter().sum::<u64>(), 1);
        assert_eq!(
            (after.to_guest_bytes, after.errors, after.depth),
            (513, 1, 0)
        );
        assert_eq!(after.depth_max, 2, "the most stays");
    }

    #[test]
    fn a_head_beyond_the_queue_is_counted_and_not_timed() {
        let counters = Counters::timed(4);
        counters.taken(4, 1, 1);
        counters.answered(u16::MAX, 0, 1);
        let read = counters.read();
        assert_eq!(read.requests, 1);
        assert_eq!(read.latency.expect("timed").sum_us, 0);
    }

    #[test]
    fn devices_without_a_name_are_numbered_by_kind() {
        let device = |kind, name: &str| Device {
            kind,
            name: name.to_owned(),
            stops: 0,
            queues: Vec::new(),
        };
        let devices = [
            device(Kind::Blk, "image"),
            device(Kind::Net, ""),
            device(Kind::Net, ""),
            device(Kind::Rng, ""),
        ];
        let names: Vec<_> = named(devices.into_iter())
            .into_iter()
            .map(|d| d.name)
            .collect();
        assert_eq!(names, ["image", "0", "1", "0"]);
    }

    #[test]
    fn a_milestone_comes_once() {
        let life = Life::default();
        assert_eq!(life.boot().guest_init_us, None);
        let first = life.guest_init();
        assert!(first.is_some() && life.guest_init().is_none());
        assert_eq!(life.boot().guest_init_us, first);
    }
}
