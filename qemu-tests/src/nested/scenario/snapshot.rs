//! Machines that go into files and come out of them, compared by sums that the guests make themselves.
//!
//! Owns: a guest that keeps sums of its memory and its disk, and what becomes of it across snapshots.
//! Refuses: what the monitor says of itself as proof; the guest's own lines count.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use sys::process::Ended;
use types::guest::{CONTROL_PORT, HOST_CID, ToGuest};
use types::vm::{Base, Disk, FromVmm, Restore, RestoreMode, SnapshotKind, ToVmm};

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{FILES, Machine, Node, PATIENCE, Plan};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a-pause-stops-all-and-a-resume-goes-on",
        run: pauses,
    },
    Scenario {
        name: "a-machine-goes-on-from-its-files-after-its-death",
        run: |node| round_trip(node, 1),
    },
    Scenario {
        name: "two-processors-go-on-from-their-files",
        run: |node| round_trip(node, 2),
    },
    Scenario {
        name: "clones-of-one-snapshot-differ-in-generation-and-randomness",
        run: clones,
    },
    Scenario {
        name: "differential-snapshots-lie-over-their-base",
        run: chain,
    },
    Scenario {
        name: "damaged-and-foreign-snapshots-are-refused",
        run: refusals,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("sums", sums)];

const DISK_BYTES: u64 = 8 << 20;
const PART: usize = 256 << 10;
const WORDS: usize = (8 << 20) / 8;
/// The disk's name in the guest.
const DEVICE: &str = "/dev/vda";

/// Changes memory and disk in rounds and compares, in each, with the sums of the round before.
pub(super) fn sums() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    mount("proc", "/proc")?;
    let mut disk = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .context("open the disk")?;
    let mut host = host();
    let mut memory: Vec<u64> = (0..WORDS as u64).map(mix).collect();
    let mut expected = sum(&memory);
    let mut parts = vec![None; usize::try_from(DISK_BYTES)? / PART];
    for round in 0u64.. {
        ensure!(
            sum(&memory) == expected,
            "memory of round {round} is not as it was left"
        );
        for word in memory
            .iter_mut()
            .skip(usize::try_from(round)? % 7)
            .step_by(7)
        {
            *word = mix(*word ^ round);
        }
        expected = sum(&memory);
        let place = usize::try_from(round)? % parts.len();
        let content: Vec<u8> = (0..PART as u64 / 8)
            .flat_map(|n| mix(n ^ round << 32).to_le_bytes())
            .collect();
        disk.seek(SeekFrom::Start((place * PART) as u64))?;
        disk.write_all(&content)?;
        disk.sync_data()?;
        parts[place] = Some(digest(&content));
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        for (place, digest_then) in parts
            .iter()
            .enumerate()
            .filter_map(|(n, d)| Some((n, (*d)?)))
        {
            let mut content = vec![0; PART];
            disk.seek(SeekFrom::Start((place * PART) as u64))?;
            disk.read_exact(&mut content)?;
            ensure!(
                digest(&content) == digest_then,
                "part {place} of the disk is not as it was left"
            );
        }
        say(&format!("round {round}"));
        listen(&mut host)?;
    }
    Ok(())
}

pub(super) fn mix(mut word: u64) -> u64 {
    for _ in 0..2 {
        word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    word
}

fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |all, word| mix(all ^ word))
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0, |all, word| {
        mix(all ^ u64::from_le_bytes(word.try_into().expect("8 bytes")))
    })
}

/// The guest's control connection, as its init has one.
fn host() -> Option<OwnedFd> {
    let kind = (
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
    );
    let fd = socket(kind.0, kind.1, kind.2, None).ok()?;
    let cid = u32::try_from(HOST_CID).ok()?;
    connect(fd.as_raw_fd(), &VsockAddr::new(cid, CONTROL_PORT)).ok()?;
    sys::socket::set_nonblocking(&fd).ok()?;
    Some(fd)
}

/// Hears a line of the host, if there is one; a connection that has ended is made anew.
fn listen(connection: &mut Option<OwnedFd>) -> Result<()> {
    let Some(fd) = connection.as_ref() else {
        *connection = host();
        return Ok(());
    };
    let mut bytes = [0; 4096];
    match nix::unistd::read(fd, &mut bytes) {
        Err(nix::errno::Errno::EAGAIN) => {}
        Ok(0) | Err(_) => {
            say("the host is gone");
            *connection = host();
        }
        Ok(length) => {
            if let ToGuest::Restored(identity) = serde_json::from_slice(&bytes[..length])? {
                sys::random::add_entropy(identity.entropy.as_bytes())?;
                let mut random = [0; 8];
                sys::random::fill(&mut random)?;
                let random = u64::from_le_bytes(random);
                say(&format!("restored {} {random:016x}", identity.generation));
            }
        }
    }
    Ok(())
}

/// A file of a tmpfs, with no name.
pub(super) fn file() -> Result<File> {
    tempfile::tempfile_in(FILES).context("make a file")
}

/// Another descriptor of the same file, with a position of its own.
pub(super) fn again(file: &File) -> Result<File> {
    file.try_clone().context("copy a descriptor")
}

/// What a snapshot consists of.
pub(super) struct Files {
    pub(super) state: File,
    pub(super) memory: File,
}

impl Files {
    fn new() -> Result<Self> {
        Ok(Self {
            state: file()?,
            memory: file()?,
        })
    }
}

fn plan<'a>(node: &'a Node, cpus: u8, disk: &File) -> Result<Plan<'a>> {
    let mut plan = node.plan("sums", "sums")?;
    plan.spec.cpus = cpus;
    plan.spec.memory_mib = 96;
    let fd = plan.pass(again(disk)?);
    plan.spec.disks.push(Disk::new("disk", fd, false));
    Ok(plan)
}

/// A plan of the same machine that goes on from a snapshot.
fn restored<'a>(node: &'a Node, cpus: u8, disk: &File, files: &[&Files]) -> Result<Plan<'a>> {
    let mut plan = plan(node, cpus, disk)?;
    plan.spec.restore = Some(from(&mut plan, files)?);
    Ok(plan)
}

/// What of a specification makes a machine go on from these.
pub(super) fn from(plan: &mut Plan<'_>, files: &[&Files]) -> Result<Restore> {
    let mut passed = Vec::new();
    for files in files {
        let state = plan.pass(again(&files.state)?);
        let memory = plan.pass(again(&files.memory)?);
        passed.push(Base { state, memory });
    }
    let last = passed.pop().context("one snapshot at least")?;
    Ok(Restore {
        state: last.state,
        memory: last.memory,
        bases: passed,
        mode: RestoreMode::Private,
        working_set: None,
        trusted: true,
        link: None,
        hostname: None,
    })
}

pub(super) fn disk() -> Result<File> {
    let disk = file()?;
    disk.set_len(DISK_BYTES)?;
    Ok(disk)
}

/// The answer to a request: microseconds and bytes.
pub(super) fn ask(machine: &mut Machine, request: &ToVmm, fds: &[&File]) -> Result<(u64, u64)> {
    let fds: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
    machine.ask(request, &fds)?;
    let answer = machine.hear_until("an answer", PATIENCE, |message| match message {
        FromVmm::Done { took_us, bytes } => Some(Ok((*took_us, *bytes))),
        FromVmm::Refused { message } => Some(Err(message.clone())),
        _ => None,
    })?;
    answer.map_err(|message| anyhow::anyhow!("{request:?} was refused: {message}"))
}

pub(super) fn snapshot(machine: &mut Machine, kind: SnapshotKind) -> Result<(Files, u64, u64)> {
    let files = Files::new()?;
    let request = ToVmm::Snapshot { kind };
    let (took_us, bytes) = ask(machine, &request, &[&files.state, &files.memory])?;
    Ok((files, took_us, bytes))
}

pub(super) fn round(machine: &mut Machine) -> Result<u64> {
    let line = machine.line("round ", PATIENCE)?;
    let number = line.rsplit(' ').next().context("a number")?;
    number
        .parse()
        .with_context(|| format!("a round in {line:?}"))
}

/// Rounds until this one.
pub(super) fn until(machine: &mut Machine, wanted: u64) -> Result<()> {
    while round(machine)? < wanted {}
    Ok(())
}

fn pauses(node: &Node) -> Result<String> {
    let mut machine = plan(node, 2, &disk()?)?.start()?;
    until(&mut machine, 2)?;
    let mut took = Vec::new();
    for _ in 0..5 {
        // Each twice: the second is done already.
        took.push(ask(&mut machine, &ToVmm::Pause, &[])?.0);
        ask(&mut machine, &ToVmm::Pause, &[])?;
        // What had been written before may still be read; then nothing comes.
        while machine.line("round ", Duration::from_millis(200)).is_ok() {}
        let silent = machine.line("round ", Duration::from_secs(1)).is_err();
        ensure!(silent, "a paused guest goes on");
        for _ in 0..2 {
            ask(&mut machine, &ToVmm::Resume, &[])?;
        }
        let now = round(&mut machine)?;
        until(&mut machine, now + 1)?;
    }
    machine.kill()?;
    Ok(format!("us to pause: {took:?}"))
}

fn round_trip(node: &Node, cpus: u8) -> Result<String> {
    let disk = disk()?;
    let mut machine = plan(node, cpus, &disk)?.start()?;
    let setup = machine.running()?;
    until(&mut machine, 2)?;
    let mut figures = format!("us: set-up {setup}");
    for trip in 0..2 {
        ask(&mut machine, &ToVmm::Pause, &[])?;
        let (files, took_us, bytes) = snapshot(&mut machine, SnapshotKind::Full)?;
        machine.kill()?;
        machine = restored(node, cpus, &disk, &[&files])?.start()?;
        let restore = machine.running()?;
        let first = round(&mut machine)?;
        ensure!(first >= 2, "round {first} after a restore");
        until(&mut machine, first + 2)?;
        figures += &format!(", trip {trip}: snapshot {took_us} ({bytes} bytes), restore {restore}");
    }
    machine.kill()?;
    Ok(figures)
}

fn clones(node: &Node) -> Result<String> {
    let original = disk()?;
    let mut machine = plan(node, 1, &original)?.start()?;
    until(&mut machine, 2)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let mut machines = Vec::new();
    for _ in 0..4 {
        // Each has a copy of the disk as it was.
        let mut copy = file()?;
        let mut from = again(&original)?;
        from.rewind()?;
        std::io::copy(&mut from, &mut copy)?;
        machines.push(restored(node, 1, &copy, &[&files])?.start()?);
    }
    let mut seen = std::collections::BTreeSet::new();
    for machine in &mut machines {
        let line = machine.line("restored ", PATIENCE)?;
        for word in line
            .split(' ')
            .skip_while(|word| !word.ends_with("restored"))
            .skip(1)
        {
            ensure!(seen.insert(word.to_owned()), "two clones say {word}");
        }
        let first = round(machine)?;
        until(machine, first + 1)?;
    }
    ensure!(seen.len() == 8, "generations and random numbers: {seen:?}");
    for machine in &mut machines {
        machine.kill()?;
    }
    Ok(format!("{} clones differ", machines.len()))
}

fn chain(node: &Node) -> Result<String> {
    let disk = disk()?;
    let mut plan = plan(node, 1, &disk)?;
    plan.spec.track_memory = true;
    let mut machine = plan.start()?;
    until(&mut machine, 2)?;
    let refused = snapshot(&mut machine, SnapshotKind::Differential);
    ensure!(refused.is_err(), "a differential snapshot without a base");
    let (full, _, full_bytes) = snapshot(&mut machine, SnapshotKind::Full)?;
    let now = round(&mut machine)?;
    until(&mut machine, now + 2)?;
    let (one, _, one_bytes) = snapshot(&mut machine, SnapshotKind::Differential)?;
    let now = round(&mut machine)?;
    until(&mut machine, now + 2)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let (two, _, two_bytes) = snapshot(&mut machine, SnapshotKind::Differential)?;
    machine.kill()?;
    let mut machine = restored(node, 1, &disk, &[&full, &one, &two])?.start()?;
    let first = round(&mut machine)?;
    ensure!(first >= now + 2, "round {first} after a restore");
    until(&mut machine, first + 2)?;
    machine.kill()?;
    ensure!(two_bytes < full_bytes, "{two_bytes} of {full_bytes} bytes");
    Ok(format!(
        "bytes: full {full_bytes}, then {one_bytes}, {two_bytes}"
    ))
}

fn refusals(node: &Node) -> Result<String> {
    use std::os::unix::fs::FileExt;
    let disk = disk()?;
    let mut machine = plan(node, 1, &disk)?.start()?;
    until(&mut machine, 1)?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let refuse = |what: &str, says: &str, change: &dyn Fn(&mut Plan<'_>)| -> Result<()> {
        let mut plan = restored(node, 1, &disk, &[&files])?;
        change(&mut plan);
        let life = plan.start()?.finish(PATIENCE)?;
        let refused = life.ended == Ended::Code(1) && life.output.contains(says);
        ensure!(refused, "{what}: {life:?}");
        Ok(())
    };
    refuse("memory of another size", "MiB of memory", &|plan| {
        plan.spec.memory_mib = 128
    })?;
    refuse("two processors", "APIC ids", &|plan| plan.spec.cpus = 2)?;
    refuse("no disk", "virtio devices", &|plan| plan.spec.disks.clear())?;
    refuse("a read-only disk", "disk", &|plan| {
        plan.spec.disks[0].read_only = true
    })?;
    let flip = |file: &File, at: u64, bit: u8| -> Result<()> {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ bit], at)?;
        Ok(())
    };
    flip(&files.state, 5000, 1)?;
    refuse("a flipped bit of the state", "damaged", &|_| {})?;
    flip(&files.state, 5000, 1)?;
    flip(&files.state, 8, 1)?;
    refuse("a newer version", "version 3", &|_| {})?;
    flip(&files.state, 8, 1)?;
    let untrusted = |plan: &mut Plan<'_>| {
        if let Some(restore) = &mut plan.spec.restore {
            restore.trusted = false;
        }
    };
    flip(&files.memory, 50 << 20, 1)?;
    refuse("a flipped bit of the memory", "damaged", &untrusted)?;
    flip(&files.memory, 50 << 20, 1)?;
    let length = files.memory.metadata()?.len();
    files.memory.set_len(length - 4096)?;
    refuse("a cut memory", "was cut", &|_| {})?;
    Ok("eight were refused".to_owned())
}
