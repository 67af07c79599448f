//! virtio-console: one port, a stream between a descriptor and the guest.
//!
//! Owns: bytes both ways, straight between descriptor and guest memory. Nothing is buffered here: what the
//! descriptor does not take stays on the ring, what the guest has no room for stays in the descriptor.
//! Refuses: more ports, sizes of windows, and input for a port that the guest has not opened.

mod control;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::vm::ConsoleKind;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use self::control::{Control, ControlState, Told};
use super::chain::Chain;
use super::ring::{Ring, Violation};
use super::{Device, Foreign, Ready, Turn};
use crate::event::{Source, hung_up};
use crate::memory::io::{read_packet, write_packet};
use crate::report::Reports;

const QUEUES: [u16; 4] = [64; 4];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;

/// Feature bit (VIRTIO 1.2 section 5.3.3): ports are spoken of on control queues.
const MULTIPORT: u64 = 1 << 1;
/// Requests of one queue in one turn: each moves at most what its descriptors hold, and a pipe or socket takes
/// less than that.
const REQUESTS_PER_TURN: usize = 32;
/// Most bytes that one request moves at a time: the next one is another device's turn.
const BYTES_AT_ONCE: u64 = 1 << 20;

/// Whether a direction still goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// As far as is known bytes go through.
    Open,
    /// The descriptor has nothing, or takes nothing, for now.
    Waiting,
    /// For ever: the other end is closed.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Console {
    descriptor: File,
    config: [u8; 12],
    input: Flow,
    output: Flow,
    /// The guest has room for input.
    room: bool,
    /// Bytes of the oldest request from the guest that the descriptor has taken.
    taken: u64,
    control: Control,
    reports: Reports,
}

/// What a snapshot keeps of the console.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    taken: u64,
    control: ControlState,
}

impl Console {
    /// `descriptor` becomes non-blocking, for whoever shares it too.
    pub(crate) fn new(descriptor: File, kind: ConsoleKind) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        let readable = flags & OFlag::O_ACCMODE != OFlag::O_WRONLY;
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // Columns and rows, of which we know nothing; then the number of ports.
        let mut config = [0; 12];
        config[4] = 1;
        Ok(Self {
            descriptor,
            config,
            input: if readable { Flow::Open } else { Flow::Ended },
            output: Flow::Open,
            room: false,
            taken: 0,
            control: Control::new(kind),
            reports: Reports::default(),
        })
    }

    /// Hands on what is left of the guest's oldest request, or a part of that. False: not now.
    fn write(&mut self, ring: &mut Ring<'_>, mut chain: Chain) -> Result<bool, Violation> {
        // A driver that changed the request meanwhile has less to say: its loss.
        let whole = chain.readable.bytes();
        let left = match self.output {
            Flow::Ended => 0,
            Flow::Open | Flow::Waiting => whole.saturating_sub(self.taken),
        };
        if left == 0 {
            self.taken = 0;
            ring.complete(chain.head, 0)?;
            return Ok(true);
        }
        // Both exist: `left` counts what follows `taken`.
        let _taken = chain.readable.split_front(self.taken);
        let part = chain.readable.split_front(left.min(BYTES_AT_ONCE));
        let list = part.as_ref().and_then(|part| part.io_vec(ring.ram()));
        let list = list.ok_or(Violation::Request("output in too many pieces"))?;
        match write_packet(self.descriptor.as_fd(), &list) {
            Ok(0) => self.end_output(&io::ErrorKind::WriteZero.into()),
            Ok(count) => self.taken += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.output = Flow::Waiting,
            Err(error) => self.end_output(&error),
        }
        ring.put_back(whole);
        Ok(self.output != Flow::Waiting)
    }

    /// Nobody will ever take output: it is dropped, so that the guest does not wait for ever.
    fn end_output(&mut self, error: &io::Error) {
        self.reports.say(format_args!(
            "console: output is dropped from now on: {error}"
        ));
        self.output = Flow::Ended;
    }

    /// Nothing more will come. A descriptor of which the other end is closed whole takes nothing either.
    fn end_input(&mut self) {
        self.input = Flow::Ended;
        if hung_up(self.descriptor.as_fd()) {
            self.output = Flow::Ended;
        }
    }

    fn take_output(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        for _ in 0..REQUESTS_PER_TURN {
            ring.disarm()?;
            match ring.pop()? {
                Some(chain) => {
                    if !self.write(ring, chain)? {
                        ring.notify()?;
                        return Ok(Turn::Done);
                    }
                }
                None => {
                    ring.notify()?;
                    if !ring.arm()? {
                        return Ok(Turn::Done);
                    }
                }
            }
        }
        ring.notify()?;
        Ok(Turn::Again)
    }

    /// Fills the guest's buffers, one read each.
    fn give_input(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.disarm()?;
        for _ in 0..REQUESTS_PER_TURN {
            let Some(chain) = ring.pop()? else {
                self.room = false;
                ring.notify()?;
                if ring.arm()? {
                    ring.disarm()?;
                    continue;
                }
                return Ok(Turn::Done);
            };
            self.room = true;
            let Some(list) = chain.writable.io_vec(ring.ram()).filter(|l| l.bytes() > 0) else {
                return Err(Violation::Request("a buffer for input without room"));
            };
            match read_packet(self.descriptor.as_fd(), &list) {
                Ok(0) => self.end_input(),
                Ok(count) => {
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    ring.complete(chain.head, count)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.input = Flow::Waiting;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // A terminal whose other side is closed says so.
                    self.reports
                        .say(format_args!("console: no more input: {error}"));
                    self.end_input();
                }
            }
            ring.put_back(chain.readable.bytes());
            if self.input != Flow::Open {
                ring.notify()?;
                return Ok(Turn::Done);
            }
        }
        ring.notify()?;
        Ok(Turn::Again)
    }

    /// Control messages both ways.
    fn converse(&mut self, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let control = &mut self.control;
        let turn = rings[CONTROL_FROM_GUEST].drain_some(REQUESTS_PER_TURN, |ring, chain| {
            let mut message = [0; control::MESSAGE_BYTES];
            let length = chain.readable.copy_to(ring.ram(), &mut message);
            control.hear(&message[..length]);
            ring.complete(chain.head, 0)
        })?;
        let ring = &mut rings[CONTROL_TO_GUEST];
        while let Some(message) = self.control.next() {
            let Some(chain) = ring.pop()? else {
                // Its doorbell says when there is room. A buffer that came in between is for the next turn.
                ring.notify()?;
                return Ok(if ring.arm()? { Turn::Again } else { turn });
            };
            let bytes = message.encode();
            if chain.writable.bytes() < bytes.len() as u64 {
                return Err(Violation::Request(
                    "a buffer too small for a control message",
                ));
            }
            let written = chain.writable.copy_from(ring.ram(), &bytes);
            ring.complete(chain.head, u32::try_from(written).expect("a short message"))?;
            self.control.said(message);
        }
        ring.notify()?;
        Ok(turn)
    }
}

impl Device for Console {
    const ID: u32 = VIRTIO_ID_CONSOLE;

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        let told = match features & MULTIPORT {
            // A driver that knows nothing of ports has one, which is open.
            0 => Told::Nothing,
            _ => Told::Ports,
        };
        self.control.begin(told);
    }

    /// What the guest has said of the port, and how much of its oldest request is out.
    fn save(&self) -> Value {
        let state = ConsoleState {
            taken: self.taken,
            control: self.control.save(),
        };
        serde_json::to_value(state).expect("plain data")
    }

    fn restore(&mut self, state: &Value) -> Result<(), Foreign> {
        let state = ConsoleState::deserialize(state).map_err(|_| Foreign)?;
        self.taken = state.taken;
        self.control.restore(state.control)
    }

    fn shape(&self) -> Vec<u8> {
        match self.control.kind() {
            ConsoleKind::Stream => b"stream".to_vec(),
            ConsoleKind::Terminal => b"terminal".to_vec(),
        }
    }

    fn reset(&mut self) {
        self.control.reset();
        (self.taken, self.room) = (0, false);
        for flow in [&mut self.input, &mut self.output] {
            if *flow == Flow::Waiting {
                *flow = Flow::Open;
            }
        }
    }

    fn sources(&self, out: &mut Vec<Source>) {
        let wants_input = self.room && self.input == Flow::Waiting && self.control.opened();
        out.push(match wants_input {
            true => Source::readable(&self.descriptor),
            false => Source::never(),
        });
        out.push(match self.output {
            Flow::Waiting => Source::writable(&self.descriptor),
            Flow::Open | Flow::Ended => Source::never(),
        });
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        for (flow, source) in [(&mut self.input, 0), (&mut self.output, 1)] {
            if *flow == Flow::Waiting && ready.source(source) {
                *flow = Flow::Open;
            }
        }
        let mut turn = Turn::Done;
        if self.control.ports() {
            turn = self.converse(rings)?;
        }
        if self.output != Flow::Waiting {
            turn = turn.and(self.take_output(&mut rings[FROM_GUEST])?);
        }
        let wanted = self.input == Flow::Open || (self.input == Flow::Waiting && !self.room);
        if wanted && self.control.opened() {
            turn = turn.and(self.give_input(&mut rings[TO_GUEST])?);
        }
        if self.input == Flow::Ended && self.output == Flow::Ended && self.control.hang_up() {
            turn = turn.and(self.converse(rings)?);
        }
        Ok(turn)
    }
}

#[cfg(test)]
mod tests;
