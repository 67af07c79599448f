//! Machines with our own init that are restored: each becomes one of its own before its program goes on.
//!
//! Owns: tenants' programs that say what they see, and what the node sees of their machines.
//! Refuses: to believe a program about its network: the node's TAP has to have seen the card.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sys::process::Ended;
use types::Mac;
use types::guest::{FIRST_GENERATION, FromGuest, GENERATION_PATH, Link, ToGuest};
use types::vm::{FromVmm, Restore, RestoreMode, SnapshotKind, ToVmm};

use super::Scenario;
use super::snapshot::{Files, snapshot};
use crate::nested::guest::Program;
use crate::nested::tenant::{self, Sight, card, say};
use crate::nested::toolkit::{Machine, Node, PATIENCE, Plan};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "our-init-goes-on-from-a-snapshot-and-ends-as-it-is-told",
        run: goes_on,
    },
    Scenario {
        name: "two-clones-are-machines-of-their-own",
        run: two_clones,
    },
    Scenario {
        name: "twenty-clones-at-once-are-machines-of-their-own",
        run: twenty,
    },
    Scenario {
        name: "a-program-that-stood-still-has-drawn-nothing-before-its-new-identity",
        run: stands_still,
    },
];

/// Programs of containers, by the word in their environment.
pub(super) const TENANTS: &[(&str, Program)] = &[("watches", watches), ("draws", draws)];

/// Where the node hears programs.
const PORT: u16 = 7100;
/// How long nothing runs between a snapshot and its clones: a clock that went on from the snapshot would be
/// that late.
const BETWEEN: Duration = Duration::from_secs(5);
/// How wrong a clone's clock may be: what there is between the reading of the host's clock and of the
/// program's, on emulated processors.
const CLOCK_MS: u64 = 2_500;

/// Machines at once, and the time before them: half of it is more than twenty on two emulated processors need
/// between a program's reading of its clock and the node's.
const CLONES: u8 = 20;
const BETWEEN_MANY: Duration = Duration::from_secs(30);

/// Says what it sees when it starts, and whenever the machine has become another; then tells the node by
/// the network, too.
fn watches() -> Result<()> {
    let watch = watched()?;
    say(&Sight::now()?.line());
    loop {
        changed(&watch)?;
        let sight = Sight::now()?;
        say(&sight.line());
        let [a, b, c, _] = sight.address.octets();
        let mut node = TcpStream::connect((Ipv4Addr::new(a, b, c, 1), PORT))?;
        writeln!(node, "{}", sight.line())?;
    }
}

fn watched() -> Result<Inotify> {
    let (directory, _) = GENERATION_PATH.rsplit_once('/').context("a path")?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    watch.add_watch(directory, AddWatchFlags::IN_MOVED_TO)?;
    Ok(watch)
}

/// Returns when the generation has been replaced.
fn changed(watch: &Inotify) -> Result<()> {
    loop {
        let events = watch.read_events()?;
        let mut names = events.iter().filter_map(|event| event.name.as_ref());
        if names.any(|name| GENERATION_PATH.ends_with(&*name.to_string_lossy())) {
            return Ok(());
        }
    }
}

/// Draws random numbers without pause. When the machine has become another: how many it has drawn before,
/// the last of them, and the first after.
fn draws() -> Result<()> {
    let mut generation = FIRST_GENERATION.to_owned();
    let mut drawn = Vec::<u64>::new();
    loop {
        let before = std::fs::read_to_string(GENERATION_PATH)?;
        let sight = Sight::now();
        // Of a machine that became another meanwhile it is half the one and half the other, which may not even be read: a name
        // without its line in `/etc/hosts`.
        if std::fs::read_to_string(GENERATION_PATH)? != before {
            continue;
        }
        let sight = sight?;
        if generation != sight.generation {
            let (count, last) = (drawn.len(), drawn.last());
            let last = last.context("it has drawn nothing before")?;
            say(&format!("drew {count} {last} {}", sight.random));
            generation = sight.generation.clone();
            drawn.clear();
        }
        drawn.push(sight.random);
        if drawn.len() == 1 {
            // It may be stopped from here on.
            say(&sight.line());
        }
    }
}

/// A plan of the machine in `files` that goes on in `network` with the card of that.
pub(super) fn clone<'a>(
    node: &'a Node,
    word: &str,
    network: u8,
    told: &Link,
    files: &Files,
) -> Result<Plan<'a>> {
    let mut plan = tenant::plan(node, word, network, told)?;
    let state = plan.pass(files.state.try_clone()?);
    let memory = plan.pass(files.memory.try_clone()?);
    plan.spec.restore = Some(Restore {
        state,
        memory,
        bases: Vec::new(),
        mode: RestoreMode::Private,
        working_set: None,
        trusted: true,
        link: Some(card(network)),
        hostname: Some(format!("clone-{network}").parse()?),
    });
    Ok(plan)
}

fn sight(machine: &mut Machine) -> Result<Sight> {
    let line = machine.line("sees ", PATIENCE)?;
    Sight::parse(&line)
}

/// Has the program stand still.
pub(super) fn freeze(machine: &mut Machine) -> Result<()> {
    machine.ask(&ToVmm::Guest(ToGuest::Freeze), &[])?;
    let refused = machine.hear_until(
        "the program stands still",
        PATIENCE,
        |message| match message {
            FromVmm::Guest(FromGuest::Frozen { refused }) => Some(refused.clone()),
            _ => None,
        },
    )?;
    ensure!(refused.is_none(), "it does not stand still: {refused:?}");
    Ok(())
}

/// The generation that the guest says it has taken on.
pub(super) fn restored(machine: &mut Machine) -> Result<String> {
    machine.hear_until("an identity", PATIENCE, |message| match message {
        FromVmm::Guest(FromGuest::Restored { generation }) => Some(generation.clone()),
        _ => None,
    })
}

/// The clock of a program that has said the time not long ago.
fn check_clock(sight: &Sight) -> Result<u64> {
    let off = off(sight)?;
    ensure!(off <= CLOCK_MS, "the guest's clock is {off} ms wrong");
    Ok(off)
}

/// How far what a program says is from the node's clock, in milliseconds.
fn off(sight: &Sight) -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?.abs_diff(sight.time_ms))
}

/// A line of a program that comes from `address`, and what the node knows of the card there.
fn heard(listener: &TcpListener, address: Ipv4Addr) -> Result<(Sight, Mac)> {
    let (mut peer, from) = listener.accept().context("hear a program")?;
    ensure!(from.ip() == IpAddr::V4(address), "{from} is not {address}");
    peer.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    peer.read_to_string(&mut line)?;
    let neighbours = std::fs::read_to_string("/proc/net/arp").context("read the neighbours")?;
    let text = address.to_string();
    let line_of = neighbours
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&text));
    let mac = line_of.and_then(|line| line.split_whitespace().nth(3));
    let mac = mac.context("the node does not know the card")?.parse()?;
    Ok((Sight::parse(&line)?, mac))
}

fn goes_on(node: &Node) -> Result<String> {
    let mut machine = tenant::plan(node, "watches", 1, &card(1))?.start()?;
    let first = sight(&mut machine)?;
    ensure!(first.generation == FIRST_GENERATION, "{first:?}");
    // Nobody asks the program to stand still: it does when its machine finds itself restored.
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    drop(machine);
    std::thread::sleep(BETWEEN);
    let begin = Instant::now();
    let plan = clone(node, "watches", 1, &card(1), &files)?;
    let listener = TcpListener::bind((tenant::gateway(1), PORT))?;
    let mut machine = plan.start()?;
    let generation = restored(&mut machine)?;
    let took = begin.elapsed().as_millis();
    let second = sight(&mut machine)?;
    let off = check_clock(&second)?;
    ensure!(second.generation == generation, "{second:?}");
    ensure!(second.hostname.as_str() == "clone-1", "{second:?}");
    ensure!(second.address == first.address && second.mac == first.mac);
    heard(&listener, second.address)?;
    machine.ask(&ToVmm::Guest(ToGuest::Stop), &[])?;
    let life = machine.finish(PATIENCE)?;
    let said = life.messages.iter().any(|message| {
        let FromVmm::Guest(FromGuest::Exited { signal, .. }) = message else {
            return false;
        };
        *signal == Some(nix::libc::SIGTERM)
    });
    ensure!(said && life.ended == Ended::Code(0), "{life:?}");
    Ok(format!("restored in {took} ms, clock {off} ms off"))
}

fn two_clones(node: &Node) -> Result<String> {
    let mut machine = tenant::plan(node, "watches", 1, &card(1))?.start()?;
    let first = sight(&mut machine)?;
    freeze(&mut machine)?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    std::thread::sleep(BETWEEN);
    // The original goes on as it was.
    machine.ask(&ToVmm::Guest(ToGuest::Thaw), &[])?;
    let mut sights = vec![first];
    let mut off = Vec::new();
    let mut clones = Vec::new();
    for network in [2, 3] {
        let plan = clone(node, "watches", network, &card(1), &files)?;
        let listener = TcpListener::bind((tenant::gateway(network), PORT))?;
        let mut machine = plan.start()?;
        let sight = sight(&mut machine)?;
        off.push(check_clock(&sight)?);
        let card = card(network);
        ensure!(sight.address == card.address.address, "{sight:?}");
        let (told, seen) = heard(&listener, sight.address)?;
        ensure!(told == sight && seen == card.mac, "{told:?} from {seen}");
        sights.push(sight);
        clones.push(machine);
    }
    all_differ(&sights)?;
    for machine in &mut clones {
        machine.kill()?;
    }
    machine.kill()?;
    Ok(format!("clocks {off:?} ms off"))
}

/// All run before the first is heard: what one is told never reaches another.
fn twenty(node: &Node) -> Result<String> {
    let mut machine = tenant::plan(node, "watches", 1, &card(1))?.start()?;
    let first = sight(&mut machine)?;
    freeze(&mut machine)?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    drop(machine);
    std::thread::sleep(BETWEEN_MANY);
    let begin = Instant::now();
    let (mut machines, mut hear) = (Vec::new(), Vec::new());
    for network in 2..2 + CLONES {
        let plan = clone(node, "watches", network, &card(1), &files)?;
        let listener = TcpListener::bind((tenant::gateway(network), PORT))?;
        let Link { address, mac, .. } = card(network);
        hear.push(std::thread::spawn(move || -> Result<(Sight, u64)> {
            let (sight, seen) = heard(&listener, address.address)?;
            ensure!(seen == mac && sight.mac == mac, "{sight:?} from {seen}");
            Ok((sight.clone(), off(&sight)?))
        }));
        machines.push(plan.start()?);
    }
    let (mut sights, mut worst) = (vec![first], 0);
    for thread in hear {
        let (sight, off) = thread.join().expect("no panic")?;
        worst = worst.max(off);
        sights.push(sight);
    }
    let took = begin.elapsed().as_millis();
    all_differ(&sights)?;
    let limit = u64::try_from(BETWEEN_MANY.as_millis())? / 2;
    ensure!(worst <= limit, "a guest's clock is {worst} ms wrong");
    for machine in &mut machines {
        ensure!(machine.alive()?, "a clone has ended");
        machine.kill()?;
    }
    Ok(format!(
        "{CLONES} in {took} ms, clocks {worst} ms off at most"
    ))
}

/// In all that a machine has of its own.
fn all_differ(sights: &[Sight]) -> Result<()> {
    let fields: [fn(&Sight) -> String; 5] = [
        |s| s.generation.clone(),
        |s| s.random.to_string(),
        |s| s.mac.to_string(),
        |s| s.address.to_string(),
        |s| s.hostname.to_string(),
    ];
    for field in fields {
        let distinct: BTreeSet<_> = sights.iter().map(field).collect();
        ensure!(distinct.len() == sights.len(), "{sights:?}");
    }
    Ok(())
}

fn stands_still(node: &Node) -> Result<String> {
    let mut machine = tenant::plan(node, "draws", 1, &card(1))?.start()?;
    sight(&mut machine)?;
    freeze(&mut machine)?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let mut drawn = Vec::new();
    for network in [2, 3] {
        let mut machine = clone(node, "draws", network, &card(1), &files)?.start()?;
        let line = machine.line("drew ", PATIENCE)?;
        let words = line.split_once("drew ").context("its words")?.1;
        let words: Vec<u64> = words.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        drawn.push(words);
        machine.kill()?;
    }
    let (a, b) = (&drawn[0], &drawn[1]);
    // As many before, with the same last one: nothing was drawn between the snapshot and the identity.
    ensure!(a.len() == 3 && a[..2] == b[..2], "{drawn:?}");
    ensure!(a[2] != b[2], "two clones draw {}", a[2]);
    Ok(format!("{} draws before the snapshot", a[0]))
}
