//! Sockets between guest and host: a control line to the guest and its answer back, and output into a log.
//!
//! Owns: both as the node has them: JSON on the control socket, records in files.
//! Refuses: QEMU's, which are the host kernel's own; where it has none, that is said.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use types::guest::{CONTROL_PORT, FromGuest, HOST_CID, STDOUT_PORT, ToGuest};
use types::vm::{FromVmm, Log, ToVmm};

use super::monitor::{Monitor, Wanted, ours};
use super::{Figures, RUNS, figure, rate};
use crate::bench::report::{Role, Sample};
use crate::nested::toolkit::{FILES, Machine, Node, PATIENCE};

const TRIPS: &str = "vsock round trips of a line";
const OUTPUT: &str = "vsock output, guest to log";
/// Round trips of one run.
const TRIPS_A_RUN: u64 = 64;
/// Output of one run.
const OUTPUT_MIB: u64 = 2;
/// As `sifr-guest` writes it.
const PIECE: usize = 16 << 10;
/// The host kernel's own sockets for guests, which QEMU needs.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// A stream to a port of the host.
pub(super) fn host(port: u32) -> Result<File> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let address = VsockAddr::new(u32::try_from(HOST_CID)?, port);
    connect(stream.as_raw_fd(), &address).context("reach the host")?;
    Ok(File::from(stream))
}

/// Answers every line; writes output when it is told to, by signal 2.
pub(super) fn guest() -> Result<()> {
    let mut control = host(CONTROL_PORT)?;
    let lines = BufReader::new(control.try_clone()?).lines();
    let mut answer = serde_json::to_vec(&FromGuest::Settling)?;
    answer.push(b'\n');
    control.write_all(&answer)?;
    for line in lines {
        let said: ToGuest = serde_json::from_str(&line?)?;
        if said == (ToGuest::Signal { number: 2 }) {
            break;
        }
        control.write_all(&answer)?;
    }
    let mut output = host(STDOUT_PORT)?;
    let piece = vec![b'x'; PIECE];
    for run in 0..=RUNS {
        let started = Instant::now();
        for _ in 0..OUTPUT_MIB * (1 << 20) / PIECE as u64 {
            output.write_all(&piece)?;
        }
        if run > 0 {
            figure(OUTPUT, rate(OUTPUT_MIB, started.elapsed()));
        }
    }
    Ok(())
}

pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let mut plan = ours(node, Wanted::new(Role::UseVsock))?;
    let mut file = |name: &str| -> Result<_> {
        let mut options = File::options();
        let path = format!("{FILES}/{name}");
        let file = options.read(true).append(true).create(true).open(&path);
        Ok(plan.pass(file.with_context(|| format!("make {path}"))?))
    };
    let files = [file("vsock.a")?, file("vsock.b")?];
    plan.spec.log = Some(Log {
        files,
        max_bytes: 16 << 20,
    });
    let mut machine = plan.start()?;
    let answered = |machine: &mut Machine| {
        machine.hear_until("the guest answers", PATIENCE, |message| match message {
            FromVmm::Guest(FromGuest::Settling) => Some(()),
            _ => None,
        })
    };
    answered(&mut machine)?;
    let mut trips = Vec::new();
    for run in 0..=RUNS {
        let started = Instant::now();
        for _ in 0..TRIPS_A_RUN {
            machine.ask(&ToVmm::Guest(ToGuest::Signal { number: 1 }), &[])?;
            answered(&mut machine)?;
        }
        if run > 0 {
            trips.push(rate(TRIPS_A_RUN, started.elapsed()));
        }
    }
    machine.ask(&ToVmm::Guest(ToGuest::Signal { number: 2 }), &[])?;
    let mut running = super::monitor::Running::Ours(Box::new(machine));
    let figures = running.figures()?;
    running.finish()?;
    let who = Monitor::Ours.name();
    let mut samples = vec![Sample::new(TRIPS, who, trips)];
    let mut output = Figures::default();
    output.add(who, figures);
    samples.extend(output.samples());
    let why = match Path::new(VHOST_VSOCK).exists() {
        true => "not measured: its sockets speak another protocol with the node than ours",
        false => "the host kernel has no vhost-vsock, which QEMU needs for it",
    };
    let cannot = |what| Sample::cannot(what, Monitor::Qemu.name(), why);
    samples.extend([TRIPS, OUTPUT].map(cannot));
    Ok(samples)
}
