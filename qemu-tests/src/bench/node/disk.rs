//! Disks: random and sequential requests past the guest's page cache, one at a time and many.
//!
//! Owns: the backing file, on XFS as a node's pool is and in its page cache so that no device waits, and the order of
//! requests. Of a file on a tmpfs no result of io_uring is there when its call returns, so it would tell nothing of it.
//! Refuses: requests of one kind that tell about another: each is warmed up and timed alone.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::mount::{MsFlags, mount};

use super::monitor::{Monitor, Path, Peer, Running, Wanted};
use super::{Figures, ROUNDS, figure, rate};
use crate::bench::report::{Role, Sample};
use crate::inside::mount_at;
use crate::nested::toolkit::Node;

/// The node's disk, and where its file system is.
const DEVICE: &str = "/dev/vda";
const POOL: &str = "/run/pool";
const IMAGE: &str = "/run/pool/bench.img";
/// Far more than any cache of a processor holds of it, and little of the node's memory.
const IMAGE_BYTES: u64 = 64 << 20;
const DEEP: u64 = 32;
/// Memory that a disk writes to directly begins here (O_DIRECT).
const ALIGNMENT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

/// One kind of work.
#[derive(Debug, Clone, Copy)]
struct Work {
    name: &'static str,
    way: Way,
    block: usize,
    /// Threads, each with one request in flight.
    depth: u64,
    /// Requests of all threads that are counted, many against what their threads' begin and end cost; and before
    /// them, that are not: as many as io_uring is begun by.
    requests: u64,
    warm_up: u64,
}

/// Random ones are small; large ones follow each other.
const WORKS: [Work; 6] = [
    Work::new(
        "4 KiB random reads, one at a time",
        Way::Read,
        4096,
        [1, 8, 256],
    ),
    Work::new(
        "4 KiB random writes, one at a time",
        Way::Write,
        4096,
        [1, 8, 256],
    ),
    Work::new(
        "4 KiB random reads, 32 at once",
        Way::Read,
        4096,
        [DEEP, 10 * DEEP, 128 * DEEP],
    ),
    Work::new(
        "4 KiB random writes, 32 at once",
        Way::Write,
        4096,
        [DEEP, 10 * DEEP, 128 * DEEP],
    ),
    Work::new(
        "128 KiB sequential reads",
        Way::Read,
        128 << 10,
        [1, 4, 128],
    ),
    Work::new(
        "128 KiB sequential writes",
        Way::Write,
        128 << 10,
        [1, 4, 128],
    ),
];

impl Work {
    const fn new(
        name: &'static str,
        way: Way,
        block: usize,
        [depth, warm_up, requests]: [u64; 3],
    ) -> Self {
        Self {
            name,
            way,
            block,
            depth,
            requests,
            warm_up,
        }
    }

    /// Where the `n`th request of a thread goes.
    fn place(self, thread: u64, n: u64) -> u64 {
        let blocks = IMAGE_BYTES / self.block as u64;
        let index = match self.block {
            // Knuth's multiplier, odd: each block once in a turn of all, in no order that readahead knows.
            4096 => (n * self.depth + thread).wrapping_mul(2_654_435_761) % blocks,
            _ => (n * self.depth + thread) % blocks,
        };
        index * self.block as u64
    }

    /// From the first request of any thread to the end of the last.
    fn run(self, disk: &File, requests: u64) -> Result<Duration> {
        let barrier = Barrier::new(usize::try_from(self.depth)?);
        let one = |thread| self.thread(disk, &barrier, thread, requests / self.depth);
        let times = std::thread::scope(|scope| {
            let one = &one;
            let threads = (0..self.depth).map(|thread| scope.spawn(move || one(thread)));
            let threads: Vec<_> = threads.collect();
            let times = threads.into_iter().map(|t| t.join().expect("no panic"));
            times.collect::<Result<Vec<_>>>()
        });
        let (begins, ends): (Vec<_>, Vec<_>) = times.context(self.name)?.into_iter().unzip();
        let begin = begins.into_iter().min().context("no thread")?;
        let end = ends.into_iter().max().context("no thread")?;
        Ok(end - begin)
    }

    fn thread(
        self,
        disk: &File,
        barrier: &Barrier,
        thread: u64,
        requests: u64,
    ) -> Result<(Instant, Instant)> {
        let mut memory = vec![0xa5_u8; self.block + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let block = &mut memory[start..start + self.block];
        barrier.wait();
        let begin = Instant::now();
        for n in 0..requests {
            let place = self.place(thread, n);
            match self.way {
                Way::Read => disk.read_exact_at(block, place)?,
                Way::Write => disk.write_all_at(block, place)?,
            }
        }
        Ok((begin, Instant::now()))
    }
}

pub(super) fn guest() -> Result<()> {
    mount_at("devtmpfs", "/dev")?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let disk = options.custom_flags(libc::O_DIRECT).open("/dev/vda");
    let disk = disk.context("open the disk")?;
    for work in WORKS {
        work.run(&disk, work.warm_up).context("warm up")?;
        figure(
            work.name,
            rate(work.requests, work.run(&disk, work.requests)?),
        );
    }
    Ok(())
}

pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let made = Command::new("/sbin/mkfs.xfs").args(["-q", DEVICE]).status();
    ensure!(made.context("start mkfs.xfs")?.success(), "mkfs.xfs fails");
    fs::create_dir(POOL).context("make a directory")?;
    let (kind, none) = (Some("xfs"), None::<&str>);
    mount(Some(DEVICE), POOL, kind, MsFlags::empty(), none).context("mount the disk")?;
    let image = File::create_new(IMAGE).context("make a disk")?;
    let piece = vec![0x5a; 1 << 20];
    for at in (0..IMAGE_BYTES).step_by(piece.len()) {
        image.write_all_at(&piece, at).context("fill a disk")?;
    }
    image.sync_all().context("write a disk")?;
    let (able, unable): (Vec<_>, Vec<_>) = Monitor::all()
        .into_iter()
        .partition(|monitor| *monitor != Monitor::Peer(Peer::CloudHypervisor));
    let mut figures = Figures::default();
    for _ in 0..ROUNDS {
        for monitor in &able {
            for way in [Path::Plain, Path::Ring] {
                let mut wanted = Wanted::new(Role::UseDisk);
                wanted.disk = Some((IMAGE.to_owned(), way));
                let who = match way {
                    Path::Plain => monitor.name().to_owned(),
                    Path::Ring => format!("{}, io_uring", monitor.name()),
                };
                let machine = Running::start(*monitor, node, wanted);
                let mut machine = machine.with_context(|| format!("start {who}"))?;
                let seen = machine.figures().with_context(|| format!("in {who}"))?;
                machine.finish()?;
                figures.add(&who, seen);
            }
        }
    }
    let mut samples = figures.samples();
    for monitor in unable {
        let why = "its disks are on PCI, which the guest's kernel has not";
        samples.extend(WORKS.map(|work| Sample::cannot(work.name, monitor.name(), why)));
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn requests_stay_on_the_disk_and_a_run_goes_to_no_place_twice() {
        for work in WORKS {
            let all = (0..work.depth).flat_map(|thread| {
                (0..work.requests / work.depth).map(move |n| work.place(thread, n))
            });
            let all: Vec<_> = all.collect();
            assert!(all.iter().all(|p| p + work.block as u64 <= IMAGE_BYTES));
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }
}
