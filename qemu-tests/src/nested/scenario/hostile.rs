//! Guests that attack their monitor, and an honest guest beside them.
//!
//! Owns: the judgement: after each attack the machine answers or ends alone, for a reason that is said; its
//! memory is bounded; what it may not write is unwritten; its neighbour is served meanwhile.
//! Refuses: attacks; they are in the package `hostile`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hostile::{
    ANSWERED, ATTACKS, Attack, CLOCK, Ends, FAILED, GOES_ON, MEMORY_MIB, TWO_PROCESSORS, pattern,
};
use sys::process::Ended;
use types::Mac;
use types::vm::{Balloon, Console, ConsoleKind, Disk, Net, Pmem, StopReason};

use super::Scenario;
use crate::nested::SEED_WORD;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{FILES, Life, Machine, Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "rings",
        run: |node| group(node, "rings"),
    },
    Scenario {
        name: "queues",
        run: |node| group(node, "queues"),
    },
    Scenario {
        name: "registers",
        run: |node| group(node, "registers"),
    },
    Scenario {
        name: "devices",
        run: |node| group(node, "devices"),
    },
    Scenario {
        name: "exits",
        run: |node| group(node, "exits"),
    },
    Scenario {
        name: "ends",
        run: |node| group(node, "ends"),
    },
    Scenario {
        name: "processors",
        run: |node| group(node, TWO_PROCESSORS),
    },
    Scenario {
        name: "a-clock-that-is-written-says-the-time-all-the-same",
        run: clock,
    },
    Scenario {
        name: "a-panic-that-is-said-ends-the-machine",
        run: panic_port,
    },
    Scenario {
        name: "random",
        run: random,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("honest", honest)];

/// The monitor, the kernel's books, and what of the guest's memory was ever touched, as their cgroup counts it:
/// twice what was seen of any attack. None touches more than a few MiB; a request held whole in the monitor has 32.
const PEAK_MAX: u64 = 16 << 20;
/// The attacked machine's devices: two disks, a network card, sockets, entropy, a balloon, a console, memory.
const DEVICES: &str = "8 devices";
const DISK_BYTES: u64 = 1 << 20;
const READ_ONLY_BYTES: u64 = 64 << 10;
/// The honest guest's longest wait for its disk: far above any that was seen, far below a wedged node's.
const SERVED_WITHIN: Duration = Duration::from_secs(30);
/// An attack is some thousand steps in an emulated machine in another.
const ATTACK_PATIENCE: Duration = Duration::from_secs(300);
/// How long a halted machine is watched.
const WATCHED: Duration = Duration::from_secs(2);
/// The random phase. A new seed is `NESTED_SEED`'s to give: what it finds must be found again.
const SEEDS: Range<u64> = 1..5;

/// All attacks of a group, each on a machine of its own.
fn group(node: &Node, group: &str) -> Result<String> {
    let attacks: Vec<_> = ATTACKS.iter().filter(|a| a.group == group).collect();
    ensure!(!attacks.is_empty(), "no attacks in {group}");
    let runs: Vec<_> = attacks.into_iter().map(|attack| (attack, 1)).collect();
    beside_an_honest_guest(node, &runs)
}

fn random(node: &Node) -> Result<String> {
    let attack = ATTACKS.iter().find(|a| a.group == "random");
    let attack = attack.context("no random attack")?;
    let seeds = match std::env::var(SEED_WORD) {
        Ok(text) => seeds(&text)?,
        Err(_) => SEEDS,
    };
    let runs: Vec<_> = seeds.map(|seed| (attack, seed)).collect();
    beside_an_honest_guest(node, &runs)
}

/// A seed, or several as `first..end`.
fn seeds(text: &str) -> Result<Range<u64>> {
    let number = |text: &str| text.parse::<u64>().context("a seed is a number");
    Ok(match text.split_once("..") {
        Some((first, end)) => number(first)?..number(end)?,
        None => number(text)?..number(text)? + 1,
    })
}

fn beside_an_honest_guest(node: &Node, runs: &[(&Attack, u64)]) -> Result<String> {
    let mut neighbour = neighbour(node)?;
    neighbour.line("beat", PATIENCE)?;
    let (mut told, mut failures) = (Vec::new(), Vec::new());
    for (attack, seed) in runs {
        let name = format!("{} (seed {seed})", attack.name);
        // Where the node itself ends, the console's last line says in which attack.
        println!("attack {name}");
        let started = Instant::now();
        match one(node, attack, *seed) {
            Ok(figures) => told.push(format!(
                "{name} {} ms {figures}",
                started.elapsed().as_millis()
            )),
            Err(error) => {
                // At once: of a long storm the end may never come.
                println!("attack {name} FAILED: {error:#}");
                failures.push(format!("{name}: {error:#}"));
            }
        }
        neighbour.forget_lines()?;
        let beat = neighbour.line("beat", SERVED_WITHIN);
        beat.with_context(|| format!("the neighbour after {name}"))?;
    }
    neighbour.forget_lines()?;
    let beat = neighbour.line("beat", SERVED_WITHIN)?;
    let worst = beat.split(' ').next_back().context("no figure")?.parse()?;
    ensure!(
        Duration::from_millis(worst) < SERVED_WITHIN,
        "the neighbour once waited {worst} ms"
    );
    if failures.is_empty() {
        let all = told.join("; ");
        Ok(format!("{all}; the neighbour waited {worst} ms at most"))
    } else {
        bail!("{}", failures.join(" | "))
    }
}

/// A guest with a disk that it writes, flushes and reads without end.
fn neighbour(node: &Node) -> Result<Machine> {
    let mut plan = node.plan("neighbour", "honest")?;
    let disk = file(DISK_BYTES, |_| 0)?;
    let fd = plan.pass(disk);
    plan.spec.disks.push(Disk::new("honest", fd, false));
    plan.start()
}

fn honest() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    let mut disk = File::options().read(true).write(true).open("/dev/vda")?;
    let (mut worst, mut block) = (0, [0; 4096]);
    for count in 0_u64.. {
        let started = Instant::now();
        block.fill(count.to_le_bytes()[0]);
        disk.seek(SeekFrom::Start(count % 64 * 4096))?;
        disk.write_all(&block)?;
        disk.sync_data()?;
        std::thread::sleep(Duration::from_millis(50));
        worst = worst.max(started.elapsed().as_millis());
        say(&format!("beat {count} worst {worst}"));
    }
    Ok(())
}

/// One attack on one machine. Gives figures.
fn one(node: &Node, attack: &Attack, seed: u64) -> Result<String> {
    let words = format!("attack={} seed={seed}", attack.name);
    let mut plan = node.hostile(&format!("attack-{}", attack.name), &words)?;
    plan.spec.memory_mib = MEMORY_MIB;
    plan.spec.cpus = if attack.group == TWO_PROCESSORS { 2 } else { 1 };
    let (disk, read_only) = (file(DISK_BYTES, |_| 0)?, file(READ_ONLY_BYTES, pattern)?);
    let fd = plan.pass(disk.try_clone()?);
    plan.spec.disks.push(Disk {
        queues: 2,
        ..Disk::new("writable", fd, false)
    });
    let fd = plan.pass(read_only.try_clone()?);
    plan.spec.disks.push(Disk::new("read-only", fd, true));
    let fd = plan.pass(tap()?);
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    plan.spec.nets.push(Net::new(fd, mac, 1500));
    // Nobody reads what the console says.
    let (_unread, stream) = UnixStream::pair().context("make a stream")?;
    let fd = plan.pass(stream);
    plan.spec.console = Some(Console {
        fd,
        kind: ConsoleKind::Stream,
    });
    plan.spec.balloon = Some(Balloon::reporting());
    let fd = plan.pass(read_only.try_clone()?);
    plan.spec.pmems.push(Pmem { fd });
    (plan.spec.rtc, plan.spec.pvpanic) = (true, true);
    let mut machine = plan.start()?;
    if attack.ends == Ends::Hangs {
        return halted(&mut machine);
    }
    let life = machine.finish(ATTACK_PATIENCE)?;
    judge(attack, &life)?;
    ensure!(
        disk.metadata()?.len() == DISK_BYTES && read_only.metadata()?.len() == READ_ONLY_BYTES,
        "a disk has another length"
    );
    unwritten(&read_only)?;
    ensure!(
        life.peak_bytes <= PEAK_MAX,
        "{} bytes of memory, {PEAK_MAX} at most: {life:?}",
        life.peak_bytes
    );
    let (reason, exits) = life.stopped()?;
    let all = exits.pio_in + exits.pio_out + exits.mmio_read + exits.mmio_write + exits.other;
    let figures = match reason {
        StopReason::GuestReset => {
            let (reports, peak) = (life.output.lines().count(), life.peak_bytes >> 10);
            format!("{all} exits {peak} KiB {reports} reports")
        }
        StopReason::Fault { message } => message.clone(),
        StopReason::Watchdog => "its watchdog ran out".to_owned(),
    };
    Ok(figures)
}

fn judge(attack: &Attack, life: &Life) -> Result<()> {
    let said = |text: &str| life.console.contains(text);
    ensure!(!life.output.contains("panicked at"), "a panic: {life:?}");
    let resets =
        life.ended == Ended::Code(0) && matches!(life.stopped()?.0, StopReason::GuestReset);
    let answers = resets && said(&format!("{ANSWERED} {DEVICES}")) && !said(FAILED);
    let faults = |text: &str| -> Result<bool> {
        let stopped = life.stopped()?.0;
        let fits = matches!(stopped, StopReason::Fault { message } if message.contains(text));
        Ok(life.ended == Ended::Code(2) && fits)
    };
    let fine = match attack.ends {
        Ends::Answers => answers,
        Ends::Faults(text) => faults(text)?,
        // Of what it would say, too, nothing may be left.
        Ends::Either => resets || faults("")?,
        Ends::Hangs => false,
    };
    ensure!(fine, "should be {:?}, was {life:?}", attack.ends);
    Ok(())
}

fn since_1970() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the node's clock is before 1970")?.as_secs())
}

/// The clock is the node's, so that what the guest reads lies between two looks at that.
fn clock(node: &Node) -> Result<String> {
    let mut plan = node.hostile("clock", "attack=clock seed=1")?;
    plan.spec.memory_mib = MEMORY_MIB;
    plan.spec.rtc = true;
    let before = since_1970()?;
    let mut machine = plan.start()?;
    let line = machine.line(CLOCK, PATIENCE)?;
    let after = since_1970()?;
    let words = line.trim_start_matches(CLOCK).split_whitespace();
    let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
    let [year, month, day, hours, minutes, seconds] = numbers[..] else {
        bail!("{line:?}");
    };
    let said = days(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds;
    ensure!(
        (before..=after).contains(&said),
        "{line:?} is {said}, and it was {before} to {after}"
    );
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    Ok(format!("{said}, within {} s", after - before))
}

/// Days since 1970 of a date by the Gregorian calendar, counted year by year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let years: u64 = (1970..year).map(|y| 365 + u64::from(leap(y))).sum();
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let months: u64 = (1..month).zip(lengths).map(|(_, length)| length).sum();
    years + months + day - 1
}

/// The reason comes on the control socket, and is on standard error.
fn panic_port(node: &Node) -> Result<String> {
    let mut plan = node.hostile("panic-port", "attack=panic-port")?;
    plan.spec.memory_mib = MEMORY_MIB;
    plan.spec.pvpanic = true;
    let mut machine = plan.start()?;
    machine.line(GOES_ON, PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(2), "{life:?}");
    let attack = ATTACKS.iter().find(|a| a.name == "panic-port");
    judge(attack.context("no such attack")?, &life)?;
    ensure!(life.output.contains("has panicked"), "{life:?}");
    Ok(life.output.trim().to_owned())
}

/// A machine that does nothing takes no time, and can be killed.
fn halted(machine: &mut Machine) -> Result<String> {
    machine.running()?;
    std::thread::sleep(WATCHED);
    let before = machine.processor_time()?;
    std::thread::sleep(WATCHED);
    let spent = machine.processor_time()? - before;
    ensure!(machine.alive()?, "it ended");
    ensure!(spent < WATCHED / 4, "it does nothing and takes {spent:?}");
    machine.kill()?;
    Ok(format!("{} us in {WATCHED:?}", spent.as_micros()))
}

/// A nameless file whose bytes all exist, so that their memory is nobody's who touches them later.
fn file(bytes: u64, content: impl Fn(u64) -> u8) -> Result<File> {
    let mut file = tempfile::tempfile_in(FILES).context("make a disk")?;
    let all: Vec<u8> = (0..bytes).map(content).collect();
    file.write_all(&all).context("fill a disk")?;
    Ok(file)
}

fn unwritten(disk: &File) -> Result<()> {
    let mut bytes = Vec::new();
    let mut disk = disk;
    disk.seek(SeekFrom::Start(0))?;
    disk.read_to_end(&mut bytes)?;
    let same = (0..).zip(&bytes).all(|(at, byte)| *byte == pattern(at));
    ensure!(same, "the read-only disk was written");
    Ok(())
}

/// A TAP of the node's, up. It goes with its last descriptor.
fn tap() -> Result<std::os::fd::OwnedFd> {
    const NAME: &str = "attacked";
    /// IFF_UP | IFF_BROADCAST | IFF_MULTICAST.
    const UP: &str = "0x1003";
    let tap = sys::tap::open(NAME).context("make a TAP")?;
    fs::write(format!("/sys/class/net/{NAME}/flags"), UP).context("bring a TAP up")?;
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_one_or_a_range() {
        assert_eq!(seeds("7").expect("one"), 7..8);
        assert_eq!(seeds("7..12").expect("several"), 7..12);
        assert!(seeds("").is_err() && seeds("1..").is_err() && seeds("x").is_err());
    }

    #[test]
    fn days_are_counted_as_the_calendar_has_them() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
        assert_eq!(days(2026, 11, 21), 20_778);
    }
}
