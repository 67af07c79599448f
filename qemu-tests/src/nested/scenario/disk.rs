//! Disks as their guests use them: many requests at once on several queues, with and without io_uring, given
//! back, limited.
//!
//! Owns: a disk whose every block says where it is and who wrote it; threads of a guest that read, write and
//! read again in an order of their own, past the page cache.
//! Refuses: times as a verdict. What a limit lets through is counted in bytes.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use sys::process::Ended;
use types::vm::{Disk, Engine, Limit, Rate};

use super::Scenario;
use crate::nested::guest::{Program, argument, mount, say};
use crate::nested::toolkit::{FILES, Machine, Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "deep-in-a-ring",
        run: |node| deep(node, Engine::Auto),
    },
    Scenario {
        name: "deep-one-after-the-other",
        run: |node| deep(node, Engine::Sync),
    },
    Scenario {
        name: "what-is-discarded-is-the-hosts-again",
        run: given_back,
    },
    Scenario {
        name: "limit-in-bytes",
        run: |node| limited(node, Of::Bytes),
    },
    Scenario {
        name: "limit-in-operations",
        run: |node| limited(node, Of::Operations),
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[
    ("disk", use_disk),
    ("disk-given-back", give_back),
    ("disk-limited", read_once),
];

const BLOCK: usize = 4096;
/// Threads of the guest, each with a part of the disk: so many requests are there at once.
const THREADS: u64 = 8;
const BLOCKS_EACH: u64 = 128;
const BLOCKS: u64 = THREADS * BLOCKS_EACH;
/// Blocks at the end that the guest gives back.
const GIVEN_BACK: u64 = BLOCKS / 4;
/// Who has written a block.
const NODE: u64 = 1;
const GUEST: u64 = 2;
/// More than threads, so that they meet in queues.
const CPUS: u8 = 4;

/// What stands in block `index` when `writer` has written it.
fn fill(block: &mut [u8], index: u64, writer: u64) {
    for (place, word) in (0u64..).zip(block.chunks_exact_mut(8)) {
        let value = (index << 20 | place << 4 | writer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The `n`th block that a thread goes to: each once, in no order that readahead knows.
fn place(thread: u64, n: u64) -> u64 {
    thread * BLOCKS_EACH + (n * 37 + thread) % BLOCKS_EACH
}

fn image(name: &str) -> Result<File> {
    let path = format!("{FILES}/{name}.img");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("make {path}"))?;
    std::fs::remove_file(&path)?;
    let mut block = [0; BLOCK];
    for index in 0..BLOCKS {
        fill(&mut block, index, NODE);
        file.write_all_at(&block, index * BLOCK as u64)?;
    }
    Ok(file)
}

fn deep(node: &Node, engine: Engine) -> Result<String> {
    let name = match engine {
        Engine::Auto => "deep-ring",
        Engine::Sync => "deep-sync",
    };
    let file = image(name)?;
    let before = file.metadata()?.blocks();
    let mut plan = node.plan(name, "disk")?;
    plan.spec.cpus = CPUS;
    let fd = plan.pass(file.try_clone()?);
    plan.spec.disks.push(Disk {
        queues: CPUS,
        engine,
        ..Disk::new("deep", fd, false)
    });
    let mut machine = plan.start()?;
    let queues = machine.line("queues ", PATIENCE)?;
    ensure!(queues == format!("queues {CPUS}"), "{queues}");
    machine.line("found", PATIENCE)?;
    // Many requests at once are behind it, and twice as many before it.
    let ring = has_ring(&machine)?;
    ensure!(ring == (engine == Engine::Auto), "a ring: {ring}");
    let written = machine.line("written ", PATIENCE)?;
    let read = machine.line("read ", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let (mut found, mut expected) = ([0; BLOCK], [0; BLOCK]);
    for index in 0..BLOCKS {
        file.read_exact_at(&mut found, index * BLOCK as u64)?;
        match index < BLOCKS - GIVEN_BACK {
            true => fill(&mut expected, index, GUEST),
            false => expected.fill(0),
        }
        ensure!(
            found == expected,
            "block {index} is not what the guest left"
        );
    }
    let freed = before - file.metadata()?.blocks();
    let given = GIVEN_BACK * (BLOCK as u64 / 512);
    ensure!(
        freed == given,
        "{freed} sectors freed of {given} given back"
    );
    Ok(format!("{written}; {read}; {freed} sectors freed"))
}

/// Blocks that a guest discards, makes zeros of, and punches out. Blocks stay in between, at both ends and next to
/// each.
const DISCARDED: [Range<u64>; 2] = [3..131, 500..501];
const ZEROED: Range<u64> = 200..264;
const PUNCHED: Range<u64> = 600..728;

fn bytes(blocks: &Range<u64>) -> Range<u64> {
    blocks.start * BLOCK as u64..blocks.end * BLOCK as u64
}

/// The host's file has holes where the guest gave blocks back, and every other block as it was. The zeros that a guest
/// only asks to be there may be either.
fn given_back(node: &Node) -> Result<String> {
    let file = image("given-back")?;
    let before = file.metadata()?.blocks();
    let mut plan = node.plan("given-back", "disk-given-back")?;
    let fd = plan.pass(file.try_clone()?);
    plan.spec.disks.push(Disk::new("given-back", fd, false));
    let mut machine = plan.start()?;
    machine.line("given back", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let (mut found, mut expected) = ([0; BLOCK], [0; BLOCK]);
    let is_gone = |index| {
        let mut all = DISCARDED.iter().chain([&ZEROED, &PUNCHED]);
        all.any(|blocks| blocks.contains(&index))
    };
    for index in 0..BLOCKS {
        file.read_exact_at(&mut found, index * BLOCK as u64)?;
        match is_gone(index) {
            true => expected.fill(0),
            false => fill(&mut expected, index, NODE),
        }
        ensure!(found == expected, "block {index} is not what was left");
    }
    let freed = before - file.metadata()?.blocks();
    let count = |blocks: &Range<u64>| (blocks.end - blocks.start) * (BLOCK as u64 / 512);
    let least: u64 = DISCARDED.iter().chain([&PUNCHED]).map(count).sum();
    ensure!(
        (least..=least + count(&ZEROED)).contains(&freed),
        "{freed} sectors freed of {least} given back"
    );
    ensure!(file.metadata()?.len() == BLOCKS * BLOCK as u64);
    Ok(format!("{freed} sectors freed of {least} given back"))
}

fn give_back() -> Result<()> {
    let disk = open_disk()?;
    for blocks in &DISCARDED {
        sys::block::discard(&disk, bytes(blocks)).context("discard")?;
    }
    sys::block::zero(&disk, bytes(&ZEROED)).context("write zeros")?;
    punch(&disk, &bytes(&PUNCHED))?;
    // The guest sees at once what the host will find.
    let (mut found, zeros) = (Aligned::new(), vec![0; BLOCK]);
    for blocks in DISCARDED.iter().chain([&ZEROED, &PUNCHED]) {
        for index in blocks.clone() {
            disk.read_exact_at(found.block(), index * BLOCK as u64)?;
            ensure!(found.block() == zeros, "block {index} is not zeros");
        }
    }
    say("given back");
    Ok(())
}

/// Linux makes of it a request to write zeros that may take the blocks away.
fn punch(disk: &File, bytes: &Range<u64>) -> Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, length) = (bytes.start, bytes.end - bytes.start);
    let done = fallocate(disk, flags, i64::try_from(start)?, i64::try_from(length)?);
    done.context("give blocks back")
}

fn has_ring(machine: &Machine) -> Result<bool> {
    let directory = format!("/proc/{}/fd", machine.pid());
    for entry in std::fs::read_dir(directory)? {
        // Some may be closed meanwhile.
        let target = std::fs::read_link(entry?.path());
        if target.is_ok_and(|t| t.to_string_lossy().contains("io_uring")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Memory that the kernel lets a disk write to directly.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let memory = vec![0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start }
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK]
    }
}

fn open_disk() -> Result<File> {
    mount("devtmpfs", "/dev")?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let disk = options.custom_flags(libc::O_DIRECT).open("/dev/vda");
    disk.context("open the disk")
}

/// Runs `each` in every thread; microseconds.
fn together(each: impl Fn(u64) -> Result<()> + Sync) -> Result<u128> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| (t, &each)).collect();
        let threads = threads
            .into_iter()
            .map(|(t, each)| scope.spawn(move || each(t)));
        let threads: Vec<_> = threads.collect();
        let mut ends = threads.into_iter().map(|t| t.join().expect("no panic"));
        ends.try_for_each(|end| end)
    })?;
    Ok(start.elapsed().as_micros())
}

fn check(disk: &File, thread: u64, writer: u64) -> Result<()> {
    let (mut found, mut expected) = (Aligned::new(), vec![0; BLOCK]);
    for n in 0..BLOCKS_EACH {
        let index = place(thread, n);
        disk.read_exact_at(found.block(), index * BLOCK as u64)?;
        fill(&mut expected, index, writer);
        ensure!(
            found.block() == expected,
            "block {index} is not of {writer}"
        );
    }
    Ok(())
}

fn use_disk() -> Result<()> {
    let disk = open_disk()?;
    mount("sysfs", "/sys")?;
    let queues = std::fs::read_dir("/sys/block/vda/mq")?.count();
    say(&format!("queues {queues}"));
    let read_us = together(|thread| check(&disk, thread, NODE))?;
    say("found");
    let write_us = together(|thread| {
        let mut block = Aligned::new();
        for n in 0..BLOCKS_EACH {
            let index = place(thread, n);
            fill(block.block(), index, GUEST);
            disk.write_all_at(block.block(), index * BLOCK as u64)?;
            // Flushes among writes of others.
            if n % 32 == 31 {
                disk.sync_data()?;
            }
        }
        Ok(())
    })?;
    say(&format!("written {BLOCKS} blocks in {write_us} us"));
    together(|thread| check(&disk, thread, GUEST))?;
    punch(&disk, &bytes(&(BLOCKS - GIVEN_BACK..BLOCKS)))?;
    say(&format!("read {BLOCKS} blocks in {read_us} us"));
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Bytes,
    Operations,
}

/// Blocks that the guest of a limited disk reads.
const LIMITED: u64 = 256;

fn limited(node: &Node, of: Of) -> Result<String> {
    let name = match of {
        Of::Bytes => "limit-bytes",
        Of::Operations => "limit-operations",
    };
    let block = BLOCK as u64;
    // A quarter at once, a quarter more each second: so it takes some seconds, whatever the machine.
    let tokens = match of {
        Of::Bytes => LIMITED * block / 4,
        Of::Operations => LIMITED / 4,
    };
    let tokens = std::num::NonZeroU64::new(tokens).context("a rate")?;
    let rate = Some(Rate {
        per_second: tokens,
        burst: tokens,
    });
    let limit = match of {
        Of::Bytes => Limit {
            bytes: rate,
            operations: None,
        },
        Of::Operations => Limit {
            bytes: None,
            operations: rate,
        },
    };
    let file = image(name)?;
    let mut plan = node.plan(name, "disk-limited")?;
    plan.spec.cpus = 2;
    let fd = plan.pass(file);
    plan.spec.disks.push(Disk {
        queues: 2,
        limit: Some(limit),
        ..Disk::new("limited", fd, false)
    });
    // The bucket is filled when the monitor starts, not earlier.
    let start = Instant::now();
    let mut machine = plan.start()?;
    let line = machine.line("read ", PATIENCE)?;
    let took = start.elapsed();
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let moved: u64 = line.trim_start_matches("read ").parse()?;
    ensure!(moved >= LIMITED, "{moved} blocks");
    let tokens = u128::from(tokens.get());
    let each = match of {
        Of::Bytes => u128::from(block),
        Of::Operations => 1,
    };
    // One operation may begin on the last token. What the guest's kernel reads of itself comes on top.
    let allowed = tokens + tokens * took.as_micros() / 1_000_000 + each;
    let counted = u128::from(moved) * each;
    ensure!(
        counted <= allowed,
        "{counted} of {allowed} allowed in {took:?}"
    );
    Ok(format!(
        "{counted} of {allowed} allowed in {} ms",
        took.as_millis()
    ))
}

/// One block after the other with a thread on each vCPU.
fn read_once() -> Result<()> {
    let _ = argument("guest")?;
    let disk = open_disk()?;
    let start = |thread: u64| thread * LIMITED / THREADS;
    together(|thread| {
        let (mut found, mut expected) = (Aligned::new(), vec![0; BLOCK]);
        for index in start(thread)..start(thread + 1) {
            disk.read_exact_at(found.block(), index * BLOCK as u64)?;
            fill(&mut expected, index, NODE);
            ensure!(found.block() == expected, "block {index}");
        }
        Ok(())
    })?;
    say(&format!("read {LIMITED}"));
    Ok(())
}
