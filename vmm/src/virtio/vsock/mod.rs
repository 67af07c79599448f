//! virtio-vsock in user space: the guest's connections to three ports of the host, and those of programs, both ways, that
//! a broker brings.
//!
//! Owns: the table of connections, and whose turn it is to speak. Refuses: other ports, other types than
//! streams, other addresses, and more connections than its table has room for: all get a reset.

mod connection;
pub(crate) mod forward;
mod packet;
mod port;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use types::guest::{GUEST_CID, HOST_CID};
use types::vm::SOCKETS_MAX;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::connection::{BUFFER_BYTES, Connection, Reset};
use self::forward::{Broker, News, Stream};
use self::packet::{HEADER_BYTES, Header, STREAM, op};
use self::port::{Host, Port};
use super::chain::Chain;
use super::ring::{Ring, Violation};
use super::{Device, Foreign, Ready, Turn};
use crate::control::{Lines, Outbox};
use crate::event::Source;
use crate::log::SharedLog;
use crate::report::Reports;

/// To the guest, from the guest, events. A guest puts a page and more into each place of the first as it
/// boots: 32 hold any message of the node's whole.
const QUEUES: [u16; 3] = [32, 128, 16];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;
/// Of its init a guest needs three; some may be closing.
const CONNECTIONS_MAX: usize = 16;
/// Resets that wait for room in the guest. When so many wait, nothing more is taken from it.
const RESETS_MAX: usize = 64;
/// Packets in one turn, in each direction.
const PACKETS_PER_TURN: usize = 128;
/// Bytes for the guest that may wait in a connection before the node's next message is read.
const UNSENT_MAX: usize = 4096;

/// A connection by the port of the host and of the guest.
type Key = (Port, u32);

struct Entry {
    connection: Connection,
    /// Control bytes, or those of a forwarded connection, that are not handed on yet.
    inbox: Vec<u8>,
    /// Of a forwarded connection, while it has one.
    stream: Option<Stream>,
}

impl Entry {
    fn new(connection: Connection, stream: Option<Stream>) -> Self {
        Self {
            connection,
            inbox: Vec::new(),
            stream,
        }
    }

    /// Moves what can be moved between guest and stream. True where the connection is over.
    fn forward(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        if stream
            .forward(&mut self.connection, &mut self.inbox)
            .is_err()
        {
            return true;
        }
        if self.finished() {
            self.stream = None;
            return self.connection.close();
        }
        false
    }

    /// Both sides have said their last, and all of it has come to the other.
    fn finished(&self) -> bool {
        let said = self.connection.half_closed() && self.connection.said_all();
        self.stream.is_some() && said && self.inbox.is_empty()
    }
}

pub(crate) struct Vsock {
    host: Host,
    broker: Option<Broker>,
    config: [u8; 8],
    connections: BTreeMap<Key, Entry>,
    /// Replies to packets of no connection: both ports.
    resets: VecDeque<(u32, u32)>,
    /// Who spoke last, so that all get their turn.
    last: Option<Key>,
    /// The driver is to be told that all its connections are gone.
    orphaned: bool,
    /// Of connections that broke the contract: a guest can make them without end.
    reports: Reports,
}

impl Vsock {
    pub(crate) fn new(
        outbox: &Arc<Outbox>,
        lines: &Arc<Lines>,
        log: Option<SharedLog>,
        broker: Option<Broker>,
    ) -> Self {
        Self {
            host: Host::new(outbox, lines, log),
            broker,
            config: GUEST_CID.to_le_bytes(),
            connections: BTreeMap::new(),
            resets: VecDeque::new(),
            last: None,
            orphaned: false,
            reports: Reports::default(),
        }
    }

    /// Who may be behind a port of the host.
    fn port(&self, number: u32) -> Option<Port> {
        let forwarded = self.broker.as_ref().map(|_| Port::Forwarded(number));
        Port::from_number(number).or(forwarded)
    }

    /// How many connections are forwarded, or not.
    fn count(&self, forwarded: bool) -> usize {
        let keys = self.connections.keys();
        keys.filter(|key| key.0.is_forwarded() == forwarded).count()
    }

    /// One packet of the guest.
    fn hear(&mut self, header: &Header, data: &[u8]) {
        if header.operation == op::RESET {
            if let Some(port) = self.port(header.destination_port) {
                self.connections.remove(&(port, header.source_port));
            }
            return;
        }
        let known = header.source_cid == GUEST_CID
            && header.destination_cid == HOST_CID
            && header.kind == STREAM;
        let port = self.port(header.destination_port).filter(|_| known);
        let done = port
            .ok_or(Reset)
            .and_then(|port| self.hear_on((port, header.source_port), header, data));
        if done == Err(Reset) {
            if let Some(port) = port {
                self.connections.remove(&(port, header.source_port));
            }
            self.resets
                .push_back((header.destination_port, header.source_port));
        }
    }

    fn hear_on(&mut self, key: Key, header: &Header, data: &[u8]) -> Result<(), Reset> {
        if header.operation == op::REQUEST {
            let asked = self.asked_for(key, header);
            if asked.is_err() {
                self.host.refused();
            }
            return asked;
        }
        let entry = self.connections.get_mut(&key).ok_or(Reset)?;
        let Entry {
            connection, inbox, ..
        } = entry;
        connection.heard(header);
        match header.operation {
            op::DATA => {
                let length = u32::try_from(data.len()).map_err(|_| Reset)?;
                connection.receive(length)?;
                match key.0 {
                    Port::Control | Port::Forwarded(_) => inbox.extend_from_slice(data),
                    Port::Output(stream) => {
                        self.host.output(stream, data);
                        connection.forward(length);
                    }
                }
            }
            op::RESPONSE => {
                connection.granted()?;
                self.host.connected(key.0);
            }
            op::SHUTDOWN => connection.guest_shutdown(header.flags)?,
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => connection.ask_credit(),
            _ => return Err(Reset),
        }
        Ok(())
    }

    /// The guest wants a connection.
    fn asked_for(&mut self, key: Key, header: &Header) -> Result<(), Reset> {
        if self.connections.contains_key(&key) {
            return Err(Reset);
        }
        let connection = if let Port::Forwarded(port) = key.0 {
            let room = self.count(true) < SOCKETS_MAX;
            let broker = self.broker.as_ref().filter(|_| room).ok_or(Reset)?;
            if !broker.ask(port, key.1) {
                return Err(Reset);
            }
            Connection::wanted(header)
        } else {
            // The first that connects to the control port is guest init; no program takes its place.
            let taken = key.0 == Port::Control && self.control_reader().is_some();
            if self.count(false) >= CONNECTIONS_MAX || taken {
                return Err(Reset);
            }
            self.host.connected(key.0);
            Connection::new(header)
        };
        self.connections.insert(key, Entry::new(connection, None));
        Ok(())
    }

    /// Takes what the broker has said.
    fn hear_broker(&mut self) {
        while let Some(news) = self.broker.as_mut().and_then(Broker::hear) {
            match news {
                News::Accepted {
                    port,
                    guest_port,
                    stream,
                } => self.accepted((Port::Forwarded(port), guest_port), stream),
                News::Connect { guest_port, stream } => self.connect(guest_port, stream),
                News::Gone => {
                    let waiting = self
                        .connections
                        .iter()
                        .filter(|(_, e)| e.connection.waits());
                    let waiting: Vec<Key> = waiting.map(|(key, _)| *key).collect();
                    waiting.into_iter().for_each(|key| self.accepted(key, None));
                }
            }
        }
    }

    /// The host's answer. The guest may have gone meanwhile.
    fn accepted(&mut self, key: Key, stream: Option<Stream>) {
        let waiting = self.connections.get_mut(&key);
        let Some(entry) = waiting.filter(|entry| entry.connection.waits()) else {
            return;
        };
        if stream.is_some() {
            entry.stream = stream;
            entry.connection.grant();
            self.host.connected(key.0);
        } else {
            self.host.refused();
            self.end(key);
        }
    }

    /// The host wants a connection. Where there is no room its stream is closed.
    fn connect(&mut self, guest_port: u32, stream: Stream) {
        let room = self.count(true) < SOCKETS_MAX;
        let (Some(broker), true) = (&mut self.broker, room) else {
            self.host.refused();
            return;
        };
        let connections = &self.connections;
        let port =
            broker.free_port(|port| connections.contains_key(&(Port::Forwarded(port), guest_port)));
        let entry = Entry::new(Connection::to_guest(), Some(stream));
        self.connections
            .insert((Port::Forwarded(port), guest_port), entry);
    }

    fn end(&mut self, key: Key) {
        self.connections.remove(&key);
        self.resets.push_back((key.0.number(), key.1));
    }

    /// Hands on what the guest has said, closes what is finished, and brings what the host says.
    fn advance(&mut self) {
        let mut over = Vec::new();
        for (key, entry) in &mut self.connections {
            if key.0.is_forwarded() {
                if entry.forward() {
                    over.push(*key);
                }
                continue;
            }
            let Entry {
                connection, inbox, ..
            } = entry;
            if key.0 == Port::Control {
                match self.host.lines(inbox) {
                    Ok(taken) => {
                        connection.forward(u32::try_from(taken).expect("within the buffer"))
                    }
                    Err(error) => {
                        self.reports.say(format_args!("{error}: connection reset"));
                        over.push(*key);
                        continue;
                    }
                }
            }
            // Lines that wait for the node keep the connection; half a line never becomes whole.
            let finished =
                !inbox.contains(&b'\n') && (key.0 != Port::Control || self.host.all_sent());
            if connection.half_closed() && finished && connection.close() {
                over.push(*key);
            }
        }
        over.into_iter().for_each(|key| self.end(key));
        self.bring_messages();
    }

    /// The control connection that reads.
    fn control_reader(&mut self) -> Option<&mut Connection> {
        let mut control = self
            .connections
            .iter_mut()
            .filter(|(key, _)| key.0 == Port::Control);
        control
            .find(|(_, e)| e.connection.open_to_guest())
            .map(|(_, entry)| &mut entry.connection)
    }

    fn bring_messages(&mut self) {
        while self.host.listen() && self.control_has_room() {
            let Some(line) = self.host.message() else {
                break;
            };
            let Some(reader) = self.control_reader() else {
                break;
            };
            reader.send(&line);
        }
    }

    fn control_has_room(&mut self) -> bool {
        self.control_reader()
            .is_some_and(|c| c.unsent() < UNSENT_MAX)
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    fn speak(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        let header = |host_port, guest_port, operation| Header {
            source_cid: HOST_CID,
            destination_cid: GUEST_CID,
            source_port: host_port,
            destination_port: guest_port,
            kind: STREAM,
            operation,
            ..Header::default()
        };
        if let Some((host_port, guest_port)) = self.resets.pop_front() {
            return Some((header(host_port, guest_port, op::RESET), Vec::new()));
        }
        let key = self.next_speaker()?;
        self.last = Some(key);
        let connection = &mut self.connections.get_mut(&key)?.connection;
        let speech = connection.speak(room)?;
        let mut header = header(key.0.number(), key.1, speech.operation);
        header.flags = speech.flags;
        header.length = u32::try_from(speech.data.len()).expect("credit is 32 bits");
        connection.announce(&mut header);
        Some((header, speech.data))
    }

    /// The first after the last one, in a circle.
    fn next_speaker(&self) -> Option<Key> {
        let wants =
            |(key, entry): (&Key, &Entry)| entry.connection.wants_to_speak().then_some(*key);
        let after = self.last.and_then(|last| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.connections
                .range((Excluded(last), Unbounded))
                .find_map(wants)
        });
        after.or_else(|| self.connections.iter().find_map(wants))
    }

    fn wants_to_speak(&self) -> bool {
        !self.resets.is_empty() || self.next_speaker().is_some()
    }

    /// Takes packets of the guest. Returns whether there may be more.
    fn receive(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.disarm()?;
        for _ in 0..PACKETS_PER_TURN {
            if self.resets.len() >= RESETS_MAX {
                // Room for resets brings us back here: in this turn, or when the guest offers buffers.
                ring.notify()?;
                return Ok(Turn::Done);
            }
            let Some(chain) = ring.pop()? else {
                ring.notify()?;
                if ring.arm()? {
                    continue;
                }
                return Ok(Turn::Done);
            };
            let (header, data) = read(ring, &chain)?;
            ring.complete(chain.head, 0)?;
            self.hear(&header, &data);
        }
        ring.notify()?;
        Ok(Turn::Again)
    }

    /// In a restored machine: the guest's end of every connection ends (VIRTIO 1.2 section 5.10.6.7).
    fn tell_orphaned(&mut self, ring: &mut Ring<'_>) -> Result<(), Violation> {
        if self.orphaned
            && let Some(chain) = ring.pop()?
        {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = chain.writable.copy_from(ring.ram(), &event);
            ring.complete(chain.head, u32::try_from(written).expect("4 bytes"))?;
            ring.notify()?;
            self.orphaned = false;
        }
        Ok(())
    }

    /// Fills buffers of the guest. Returns whether there may be more to say.
    fn transmit(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.disarm()?;
        for _ in 0..PACKETS_PER_TURN {
            if !self.wants_to_speak() {
                ring.notify()?;
                return Ok(Turn::Done);
            }
            let Some(chain) = ring.pop()? else {
                if ring.arm()? {
                    continue;
                }
                ring.notify()?;
                return Ok(Turn::Done);
            };
            let room = usize::try_from(chain.writable.bytes()).unwrap_or(usize::MAX);
            // Without room for data there is no end of what must be said.
            let room = room.checked_sub(HEADER_BYTES).filter(|room| *room > 0);
            let room = room.ok_or(Violation::Request("vsock buffer without room for a packet"))?;
            let room = room.min(BUFFER_BYTES as usize);
            let written = self.speak(room).map(|(header, data)| {
                let packet = [&header.encode()[..], &data].concat();
                chain.writable.copy_from(ring.ram(), &packet)
            });
            let written = u32::try_from(written.unwrap_or(0)).expect("64 KiB and a header");
            ring.complete(chain.head, written)?;
        }
        ring.notify()?;
        Ok(Turn::Again)
    }
}

/// Header and data of a packet; a length that its chain does not hold is a broken driver.
fn read(ring: &Ring<'_>, chain: &Chain) -> Result<(Header, Vec<u8>), Violation> {
    let mut readable = chain.readable.clone();
    let head = readable.split_front(HEADER_BYTES as u64);
    let head = head.ok_or(Violation::Request("vsock packet without a header"))?;
    let mut bytes = [0; HEADER_BYTES];
    head.copy_to(ring.ram(), &mut bytes);
    let header = Header::decode(&bytes);
    if header.operation != op::DATA {
        return Ok((header, Vec::new()));
    }
    if header.length > BUFFER_BYTES || u64::from(header.length) > readable.bytes() {
        return Err(Violation::Request(
            "vsock packet longer than its buffer or our credit",
        ));
    }
    let mut data = vec![0; header.length as usize];
    readable.copy_to(ring.ram(), &mut data);
    Ok((header, data))
}

impl Device for Vsock {
    const ID: u32 = VIRTIO_ID_VSOCK;

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.connections.clear();
        self.host.connections(0);
        self.resets.clear();
        self.last = None;
        self.orphaned = false;
    }

    fn sources(&self, out: &mut Vec<Source>) {
        out.push(self.host.source());
        let blocked = self.connections.iter().any(|(key, entry)| {
            key.0 == Port::Control && (!entry.inbox.is_empty() || entry.connection.half_closed())
        });
        if blocked && !self.host.all_sent() {
            out.extend(self.host.writable());
        }
        let Some(broker) = &self.broker else {
            return;
        };
        out.push(broker.source());
        for entry in self.connections.values() {
            if let Some(stream) = &entry.stream {
                stream.sources(&entry.connection, &entry.inbox, out);
            }
        }
    }

    fn serve(&mut self, _ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        self.tell_orphaned(&mut rings[EVENTS])?;
        self.host.seen();
        self.hear_broker();
        let turn = self.receive(&mut rings[FROM_GUEST])?;
        self.advance();
        self.host.connections(self.connections.len());
        let stalled = self.resets.len() >= RESETS_MAX;
        let turn = turn.and(self.transmit(&mut rings[TO_GUEST])?);
        let resumed = stalled && self.resets.len() < RESETS_MAX;
        // The last byte of a stream may have gone just now.
        let finished = self.connections.values().any(Entry::finished);
        Ok(if resumed || finished {
            Turn::Again
        } else {
            turn
        })
    }

    /// Connections end with the process that held them.
    fn restore(&mut self, state: &Value) -> Result<(), Foreign> {
        self.orphaned = true;
        match state {
            Value::Null => Ok(()),
            _ => Err(Foreign),
        }
    }
}

#[cfg(test)]
mod tests;
