//! virtio-blk: one disk, as many queues as its guest has vCPUs, one thread.
//!
//! Owns: requests from ring to answer, and those that wait for chunks of a lazy disk. While one waits,
//! the others go on. What a limit does not let begin stays in the rings: nothing is dropped. Requests go
//! one after the other until several have waited at once a few times; from then on they are in flight
//! together wherever there is more than one, if the kernel has an io_uring for us.

mod disk;
mod engine;
mod lazy;
mod request;
mod uring;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use flist::wire::{self, PACKET_BYTES, ToVmm};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use types::vm::{DISK_QUEUES_MAX, Disk as DiskSpec, Engine as Wish, FromVmm};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::disk::Disk;
use self::engine::{Done, Engine};
use self::lazy::{News, Wants};
use self::request::{
    Limits, Operation, Outcome, RANGE_SECTORS_MAX, RANGES_MAX, Request, SECTOR, SERIAL_BYTES,
};
pub(crate) use self::uring::ENTRIES as RING_ENTRIES;
use super::chain::DESCRIPTORS_MAX;
use super::limit::Throttle;
use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};
use crate::control::Outbox;
use crate::event::Source;
use crate::memory::GuestRam;
use crate::memory::shared::{ChunkMap, SharedMapError};
use crate::report;

const QUEUE_SIZE: u16 = 256;
/// Data pieces of a request: a chain less header and status.
const SEGMENTS_MAX: u32 = 254;
const _: () = assert!(SEGMENTS_MAX as usize + 2 == DESCRIPTORS_MAX);
/// The chunk daemon among [`Blk`]'s sources.
const CHUNKS: usize = 0;
/// Most packets of the chunk daemon taken in one turn.
const PACKETS_PER_TURN: usize = 64;

/// A turn that finds this many requests waiting is deep; after so many deep turns a ring is made. A guest that
/// boots has a few: making a ring costs it more than it gains.
const DEEP: usize = 4;
const DEEP_TURNS: u32 = 8;
/// With a ring, fewer than this go faster without.
const OVERLAP: usize = 2;

/// Takes the right to make another ring from the thread that has made one.
pub(crate) type Seal = fn() -> Result<(), String>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BlkError {
    #[error("disk serial {0:?} is not 1 to {SERIAL_BYTES} printable ASCII characters")]
    Serial(String),
    #[error("disk {0:?} has {1} queues: 1 to {DISK_QUEUES_MAX} are possible")]
    Queues(String, u8),
    #[error("make the timer that limits disk {0:?}")]
    Limit(String, #[source] io::Error),
    #[error("find out the size of disk {0:?}")]
    Size(String, #[source] io::Error),
    #[error("disk {0:?} is lazy and not read-only: a lazy disk is an image")]
    LazyWritable(String),
    #[error("chunk map of disk {0:?}")]
    Map(String, #[source] SharedMapError),
    #[error("disk {0:?} is lazy and has the size of its image")]
    LazyGrowth(String),
    #[error(
        "disk {serial:?} has {has} bytes and cannot become {wanted}: it grows, by whole sectors"
    )]
    Growth {
        serial: String,
        has: u64,
        wanted: u64,
    },
    #[error("disk {serial:?} has {file} bytes, its chunk map says {map}")]
    Short { serial: String, file: u64, map: u64 },
}

/// How requests reach the kernel.
#[derive(Debug)]
enum Way {
    /// One after the other, as the specification wants it.
    Sync,
    /// One after the other so far; deep turns seen.
    Untried(u32),
    /// In flight together, where there are several.
    Ring(Box<Engine>),
    /// One after the other: the kernel has no ring for us.
    Refused,
}

/// What makes a disk lazy.
#[derive(Debug)]
struct Chunks {
    map: ChunkMap,
    socket: OwnedFd,
    wants: Wants,
    /// Both the daemon and the node are gone for good.
    closed: bool,
    /// Chunks whose failure the node knows of. A guest reads one as often as it likes.
    reported: BTreeSet<u32>,
}

#[derive(Debug)]
pub(crate) struct Blk {
    disk: Disk,
    limits: Limits,
    serial: String,
    queues: Vec<u16>,
    features: u64,
    config: Vec<u8>,
    /// The driver sends no flush: every write is one.
    write_through: bool,
    chunks: Option<Chunks>,
    /// Reads that wait for chunks, in the order in which they were taken.
    parked: Vec<Parked>,
    /// Requests of each queue that were taken and are not answered: no more than its ring has entries.
    outstanding: Vec<usize>,
    throttle: Throttle,
    way: Way,
    seal: Seal,
    /// Requests of this turn go into the ring.
    overlap: bool,
    /// The queue that is looked at first in the next turn, so that none starves behind a limit.
    first: usize,
    outbox: Arc<Outbox>,
}

#[derive(Debug)]
struct Parked {
    queue: usize,
    request: Request,
}

/// What the node passes for a lazy disk.
#[derive(Debug)]
pub(crate) struct LazyParts {
    pub(crate) map: File,
    pub(crate) socket: OwnedFd,
}

impl Blk {
    pub(crate) fn new(
        spec: &DiskSpec,
        file: File,
        lazy: Option<LazyParts>,
        seal: Seal,
        outbox: &Arc<Outbox>,
    ) -> Result<Self, BlkError> {
        let (serial, read_only) = (spec.serial.as_str(), spec.read_only);
        let name = || serial.to_owned();
        let printable = serial.bytes().all(|b| b.is_ascii_graphic());
        if serial.is_empty() || serial.len() > SERIAL_BYTES || !printable {
            return Err(BlkError::Serial(name()));
        }
        if !(1..=DISK_QUEUES_MAX).contains(&spec.queues) {
            return Err(BlkError::Queues(name(), spec.queues));
        }
        let throttle = Throttle::new(spec.limit).map_err(|e| BlkError::Limit(name(), e))?;
        let disk = Disk::new(file).map_err(|e| BlkError::Size(name(), e))?;
        let mut bytes = disk.bytes();
        let chunks = match lazy {
            None => None,
            Some(_) if !read_only => return Err(BlkError::LazyWritable(name())),
            Some(LazyParts { map, socket }) => {
                let map = ChunkMap::open(&map).map_err(|e| BlkError::Map(name(), e))?;
                let said = map.table().disk_bytes();
                if bytes < said {
                    return Err(BlkError::Short {
                        serial: name(),
                        file: bytes,
                        map: said,
                    });
                }
                bytes = said;
                Some(Chunks {
                    map,
                    socket,
                    wants: Wants::default(),
                    closed: false,
                    reported: BTreeSet::new(),
                })
            }
        };
        Ok(Self {
            disk,
            limits: Limits { bytes, read_only },
            serial: name(),
            queues: vec![QUEUE_SIZE; spec.queues.into()],
            features: features(read_only, spec.queues),
            config: config(bytes, spec.queues),
            write_through: true,
            chunks,
            parked: Vec::new(),
            outstanding: vec![0; spec.queues.into()],
            throttle,
            way: match spec.engine {
                Wish::Auto => Way::Untried(0),
                Wish::Sync => Way::Sync,
            },
            seal,
            overlap: false,
            first: 0,
            outbox: Arc::clone(outbox),
        })
    }

    /// Its file is longer now. The driver reads the configuration again.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), BlkError> {
        let (serial, has) = (self.serial.clone(), self.limits.bytes);
        if self.chunks.is_some() {
            return Err(BlkError::LazyGrowth(serial));
        }
        if bytes < has || !bytes.is_multiple_of(SECTOR) {
            return Err(BlkError::Growth {
                serial,
                has,
                wanted: bytes,
            });
        }
        self.limits.bytes = bytes;
        self.config[..8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
        Ok(())
    }

    /// Does a request whose content is there.
    fn execute(&mut self, ram: &GuestRam, request: &Request) -> (Outcome, u64) {
        let operation = match &request.operation {
            Ok(operation) => operation,
            Err(outcome) => return (*outcome, 0),
        };
        match operation {
            Operation::Read { offset, data } => (self.disk.read(ram, data, *offset), data.bytes()),
            Operation::Write { offset, data } => {
                let written = self.disk.write(ram, data, *offset);
                let through = self.write_through && written == Outcome::Ok;
                (if through { self.disk.flush() } else { written }, 0)
            }
            Operation::Flush if self.limits.read_only => (Outcome::Ok, 0),
            Operation::Flush => (self.disk.flush(), 0),
            Operation::Identify { data } => {
                let mut answer = [0; SERIAL_BYTES];
                answer[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
                (Outcome::Ok, data.copy_from(ram, &answer) as u64)
            }
            Operation::Discard(ranges) | Operation::WriteZeroes(ranges) => {
                (self.disk.allocate(operation, ranges), 0)
            }
        }
    }

    fn answer(
        ring: &mut Ring<'_>,
        request: &Request,
        outcome: Outcome,
        filled: u64,
    ) -> Result<(), Violation> {
        request.status.copy_from(ring.ram(), &[outcome.byte()]);
        if outcome != Outcome::Ok {
            ring.count_failure();
        }
        let filled = if outcome == Outcome::Ok { filled } else { 0 };
        ring.complete(request.head, u32::try_from(filled + 1).unwrap_or(u32::MAX))
    }

    /// A request that has just come off queue `queue`.
    fn take(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_>,
        request: Request,
    ) -> Result<(), Violation> {
        match self.missing(&request) {
            Missing::Nothing => self.start(queue, ring, request),
            Missing::Wanted => {
                self.hold(queue, ring)?;
                self.parked.push(Parked { queue, request });
                Ok(())
            }
            Missing::Never => Self::answer(ring, &request, Outcome::IoError, 0),
        }
    }

    /// Begins a request, or does it.
    fn start(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_>,
        mut request: Request,
    ) -> Result<(), Violation> {
        let flush = matches!(request.operation, Ok(Operation::Flush));
        let nothing = flush && self.limits.read_only;
        if self.overlap && !nothing {
            self.hold(queue, ring)?;
            if let Way::Ring(engine) = &mut self.way {
                request = match engine.begin(queue, request, self.write_through) {
                    Ok(()) => return Ok(()),
                    Err(request) => request,
                };
            }
            self.outstanding[queue] -= 1;
        }
        let (outcome, filled) = self.execute(ring.ram(), &request);
        Self::answer(ring, &request, outcome, filled)
    }

    /// Decides how this turn's requests go, by how many there are.
    fn choose(&mut self, rings: &[Ring<'_>]) {
        let waiting: usize = rings.iter().map(Ring::waiting).sum();
        let depth = waiting + self.parked.len();
        if let Way::Untried(turns) = &mut self.way {
            *turns += u32::from(depth >= DEEP);
            if *turns >= DEEP_TURNS {
                self.make_ring(rings[0].ram());
            }
        }
        self.overlap = match &self.way {
            Way::Ring(engine) => depth >= OVERLAP || !engine.is_idle(),
            Way::Sync | Way::Untried(_) | Way::Refused => false,
        };
    }

    fn make_ring(&mut self, ram: &GuestRam) {
        let made = Engine::new(self.disk.file(), ram).map_err(|e| e.to_string());
        self.way = match made.and_then(|engine| (self.seal)().map(|()| engine)) {
            Ok(engine) => Way::Ring(Box::new(engine)),
            Err(error) => {
                report::line(&format!(
                    "disk {:?}: requests go one after the other, the kernel has no io_uring for us: {error}",
                    self.serial
                ));
                Way::Refused
            }
        };
    }

    /// Takes what the ring has done, and hands it what is queued.
    fn fly(&mut self, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let Way::Ring(engine) = &mut self.way else {
            return Ok(Turn::Done);
        };
        let mut done = Vec::new();
        let turned = engine.turn(&mut self.disk, &mut done);
        self.land(rings, done)?;
        match turned {
            Ok(()) => Ok(Turn::Done),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => Ok(Turn::Again),
                _ => Err(Violation::Host("begin requests of a disk", error)),
            },
        }
    }

    fn land(&mut self, rings: &mut [Ring<'_>], done: Vec<Done>) -> Result<(), Violation> {
        for Done {
            queue,
            request,
            outcome,
        } in done
        {
            self.outstanding[queue] -= 1;
            let filled = match &request.operation {
                Ok(Operation::Read { data, .. }) => data.bytes(),
                Ok(_) | Err(_) => 0,
            };
            Self::answer(&mut rings[queue], &request, outcome, filled)?;
        }
        rings.iter_mut().try_for_each(Ring::notify)
    }

    fn has_room(&self) -> bool {
        match &self.way {
            Way::Ring(engine) => !self.overlap || engine.has_room(),
            Way::Sync | Way::Untried(_) | Way::Refused => true,
        }
    }

    /// Counts a request that is not answered at once. A driver offers an entry again only when it has got it
    /// back.
    fn hold(&mut self, queue: usize, ring: &Ring<'_>) -> Result<(), Violation> {
        let count = &mut self.outstanding[queue];
        if *count >= ring.size() {
            return Err(Violation::Request(
                "more requests at once than the ring has entries",
            ));
        }
        *count += 1;
        Ok(())
    }

    /// Notes as wanted every chunk that a read needs and the file does not hold.
    fn missing(&mut self, request: &Request) -> Missing {
        let (Some(chunks), Ok(Operation::Read { offset, data })) =
            (&mut self.chunks, &request.operation)
        else {
            return Missing::Nothing;
        };
        let mut missing = Missing::Nothing;
        for chunk in chunks
            .map
            .table()
            .chunks_of(*offset..*offset + data.bytes())
        {
            if !chunks.map.present(chunk) {
                if chunks.closed {
                    return Missing::Never;
                }
                chunks
                    .wants
                    .add(u32::try_from(chunk).expect("at most CHUNKS_MAX"));
                missing = Missing::Wanted;
            }
        }
        missing
    }

    /// Takes what the daemon has said. Returns whether there may be more.
    fn hear(&mut self, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let Some(chunks) = &mut self.chunks else {
            return Ok(Turn::Done);
        };
        let mut ready = false;
        let mut failed = Vec::new();
        let mut turn = Turn::Again;
        for _ in 0..PACKETS_PER_TURN {
            // One byte more than a packet has, so that a longer one shows.
            let mut packet = [0; PACKET_BYTES + 1];
            match recv(
                chunks.socket.as_raw_fd(),
                &mut packet,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(0) => {
                    chunks.closed = true;
                    failed.extend(chunks.wants.give_up());
                }
                Ok(length) => {
                    match ToVmm::decode(&packet[..length]).map(|p| chunks.wants.hear(p)) {
                        // The daemon is ours, but other: what it says in words we lack means nothing.
                        Ok(News::Nothing) | Err(_) => continue,
                        Ok(News::Ready(chunk)) if chunks.map.present(chunk as usize) => {
                            ready = true;
                            chunks.reported.remove(&chunk);
                            continue;
                        }
                        Ok(News::Ready(chunk) | News::Failed(chunk)) => {
                            failed.push(chunk);
                            continue;
                        }
                    }
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {}
                Err(_) => {
                    chunks.closed = true;
                    failed.extend(chunks.wants.give_up());
                }
            }
            turn = Turn::Done;
            break;
        }
        for chunk in failed.iter().filter(|c| chunks.reported.insert(**c)) {
            self.outbox.post(&FromVmm::ChunkFailed {
                disk: self.serial.clone(),
                chunk: *chunk,
            });
        }
        if ready || !failed.is_empty() {
            self.retry(rings, &failed)?;
        }
        Ok(turn)
    }

    /// Looks at every parked request again: those that wait for a failed chunk fail, those whose
    /// content has arrived are done.
    fn retry(&mut self, rings: &mut [Ring<'_>], failed: &[u32]) -> Result<(), Violation> {
        for Parked { queue, request } in std::mem::take(&mut self.parked) {
            self.outstanding[queue] -= 1;
            let ring = &mut rings[queue];
            if self.touches(&request, failed) {
                Self::answer(ring, &request, Outcome::IoError, 0)?;
            } else {
                self.take(queue, ring, request)?;
            }
        }
        rings.iter_mut().try_for_each(Ring::notify)
    }

    /// Takes what waits in the rings, as far as the limit lets it begin.
    fn drain(&mut self, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let (count, limits) = (rings.len(), self.limits);
        self.first = (self.first + 1) % count;
        let mut turn = Turn::Done;
        for queue in (self.first..count).chain(0..self.first) {
            turn = turn.and(rings[queue].drain_while(
                &mut *self,
                |blk| blk.has_room() && blk.throttle.open(),
                |ring, blk, chain| {
                    let request = Request::read(ring.ram(), chain, limits)?;
                    blk.throttle.take(request.data_bytes());
                    blk.take(queue, ring, request)
                },
            )?);
        }
        Ok(turn)
    }

    fn touches(&self, request: &Request, failed: &[u32]) -> bool {
        let (Some(chunks), Ok(Operation::Read { offset, data })) =
            (&self.chunks, &request.operation)
        else {
            return false;
        };
        let touched = chunks
            .map
            .table()
            .chunks_of(*offset..*offset + data.bytes());
        failed.iter().any(|chunk| {
            touched.contains(&(*chunk as usize)) && !chunks.map.present(*chunk as usize)
        })
    }

    /// Asks for what is wanted, as far as the socket takes it.
    fn ask(&mut self) {
        let Some(chunks) = &mut self.chunks else {
            return;
        };
        while let Some(chunk) = chunks.wants.unsent() {
            let packet = wire::FromVmm::Want(chunk).encode();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(chunks.socket.as_raw_fd(), &packet, flags) {
                Ok(_) => chunks.wants.sent(chunk),
                Err(Errno::EINTR) => {}
                // Full: later. Gone: reading the socket says so too, and acts.
                Err(_) => return,
            }
        }
    }
}

/// What a request still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    Wanted,
    Never,
}

impl Device for Blk {
    const ID: u32 = VIRTIO_ID_BLOCK;

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    fn answers(&self, _queue: usize) -> bool {
        true
    }

    fn name(&self) -> &str {
        &self.serial
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn reset(&mut self) {
        if let Way::Ring(engine) = &mut self.way {
            // Memory that the driver takes back is not touched any more; nobody waits for answers.
            drop(engine.settle(&mut self.disk));
        }
        self.write_through = true;
        self.parked.clear();
        self.outstanding.fill(0);
        if let Some(chunks) = &mut self.chunks {
            chunks.wants.clear();
        }
    }

    fn sources(&self, out: &mut Vec<Source>) {
        let chunks = self.chunks.as_ref().filter(|c| !c.closed);
        out.push(chunks.map_or(Source::never(), |c| Source::readable(&c.socket)));
        out.push(self.throttle.source());
        out.push(match &self.way {
            Way::Ring(engine) if !engine.is_idle() => Source::readable(engine.as_ref()),
            Way::Ring(_) | Way::Sync | Way::Untried(_) | Way::Refused => Source::never(),
        });
        if let Some(chunks) = chunks.filter(|c| c.wants.unsent().is_some()) {
            out.push(Source::writable(&chunks.socket));
        }
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let mut turn = self.fly(rings)?;
        self.choose(rings);
        if ready.source(CHUNKS) {
            turn = turn.and(self.hear(rings)?);
        }
        turn = turn.and(self.drain(rings)?);
        self.ask();
        Ok(turn.and(self.fly(rings)?))
    }

    /// What is in flight is answered. What waits for chunks goes back to its ring: whoever fetches them
    /// answers in his own time.
    fn quiesce(&mut self, rings: &mut [Ring<'_>]) -> Result<(), Violation> {
        if let Way::Ring(engine) = &mut self.way {
            let done = engine.settle(&mut self.disk);
            self.land(rings, done)?;
        }
        let parked = std::mem::take(&mut self.parked);
        for (queue, ring) in rings.iter_mut().enumerate() {
            let heads = parked.iter().filter(|p| p.queue == queue);
            let heads: Vec<u16> = heads.map(|p| p.request.head).collect();
            self.outstanding[queue] -= heads.len();
            ring.untake(&heads)?;
        }
        Ok(())
    }
}

fn features(read_only: bool, queues: u8) -> u64 {
    let several = u64::from(queues > 1) << VIRTIO_BLK_F_MQ;
    let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | several;
    match read_only {
        true => common | 1 << VIRTIO_BLK_F_RO,
        false => common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    }
}

/// `struct virtio_blk_config` as far as our features go.
fn config(bytes: u64, queues: u8) -> Vec<u8> {
    let mut config = vec![0; 60];
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(12, SEGMENTS_MAX);
    // Discard: sectors, ranges, alignment in sectors (one block of the file systems we use).
    let ranges = u32::try_from(RANGES_MAX).expect("16");
    put(36, RANGE_SECTORS_MAX);
    put(40, ranges);
    put(44, 8);
    put(48, RANGE_SECTORS_MAX);
    put(52, ranges);
    // Write-zeroes may give blocks back.
    config[56] = 1;
    config[..8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
    config[34] = queues;
    config
}

#[cfg(test)]
pub(crate) mod tests;
