//! virtio-blk: one disk, one queue, one thread.
//!
//! Owns: requests from ring to answer, and those that wait for chunks of a lazy disk. While one waits,
//! the others go on.

mod disk;
mod lazy;
mod request;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use flist::wire::{self, PACKET_BYTES, ToVmm};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use types::vm::FromVmm;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::disk::Disk;
use self::lazy::{News, Wants};
use self::request::{
    Limits, Operation, Outcome, RANGE_SECTORS_MAX, RANGES_MAX, Request, SECTOR, SERIAL_BYTES,
};
use super::chain::DESCRIPTORS_MAX;
use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};
use crate::control::Outbox;
use crate::event::Source;
use crate::memory::GuestRam;
use crate::memory::shared::{ChunkMap, SharedMapError};

const QUEUE_SIZE: u16 = 256;
const QUEUES: [u16; 1] = [QUEUE_SIZE];
/// Data pieces of a request: a chain less header and status.
const SEGMENTS_MAX: u32 = 254;
const _: () = assert!(SEGMENTS_MAX as usize + 2 == DESCRIPTORS_MAX);
/// Most packets of the chunk daemon taken in one turn.
const PACKETS_PER_TURN: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BlkError {
    #[error("disk serial {0:?} is not 1 to {SERIAL_BYTES} printable ASCII characters")]
    Serial(String),
    #[error("find out the size of disk {0:?}")]
    Size(String, #[source] io::Error),
    #[error("disk {0:?} is lazy and not read-only: a lazy disk is an image")]
    LazyWritable(String),
    #[error("chunk map of disk {0:?}")]
    Map(String, #[source] SharedMapError),
    #[error("disk {serial:?} has {file} bytes, its chunk map says {map}")]
    Short { serial: String, file: u64, map: u64 },
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
    features: u64,
    config: Vec<u8>,
    /// The driver sends no flush: every write is one.
    write_through: bool,
    chunks: Option<Chunks>,
    /// Reads that wait for chunks: no more than the ring has entries.
    parked: Vec<Request>,
    outbox: Arc<Outbox>,
}

/// What the node passes for a lazy disk.
#[derive(Debug)]
pub(crate) struct LazyParts {
    pub(crate) map: File,
    pub(crate) socket: OwnedFd,
}

impl Blk {
    pub(crate) fn new(
        serial: &str,
        file: File,
        read_only: bool,
        lazy: Option<LazyParts>,
        outbox: &Arc<Outbox>,
    ) -> Result<Self, BlkError> {
        let name = || serial.to_owned();
        let printable = serial.bytes().all(|b| b.is_ascii_graphic());
        if serial.is_empty() || serial.len() > SERIAL_BYTES || !printable {
            return Err(BlkError::Serial(name()));
        }
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
            features: features(read_only),
            config: config(bytes),
            write_through: true,
            chunks,
            parked: Vec::new(),
            outbox: Arc::clone(outbox),
        })
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
            Operation::Discard(ranges) => (self.disk.discard(ranges), 0),
            Operation::WriteZeroes(ranges) => (self.disk.write_zeroes(ranges), 0),
        }
    }

    fn answer(
        ring: &mut Ring<'_>,
        request: &Request,
        outcome: Outcome,
        filled: u64,
    ) -> Result<(), Violation> {
        request.status.copy_from(ring.ram(), &[outcome.byte()]);
        let filled = if outcome == Outcome::Ok { filled } else { 0 };
        ring.complete(request.head, u32::try_from(filled + 1).unwrap_or(u32::MAX))
    }

    fn take(&mut self, ring: &mut Ring<'_>, request: Request) -> Result<(), Violation> {
        match self.missing(&request) {
            Missing::Nothing => {
                let (outcome, filled) = self.execute(ring.ram(), &request);
                Self::answer(ring, &request, outcome, filled)
            }
            // A driver offers an entry again only when it has got it back.
            Missing::Wanted if self.parked.len() >= ring.size() => Err(Violation::Request(
                "more reads at once than the ring has entries",
            )),
            Missing::Wanted => {
                self.parked.push(request);
                Ok(())
            }
            Missing::Never => Self::answer(ring, &request, Outcome::IoError, 0),
        }
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
    fn hear(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
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
            self.retry(ring, &failed)?;
        }
        Ok(turn)
    }

    /// Looks at every parked request again: those that wait for a failed chunk fail, those whose
    /// content has arrived are done.
    fn retry(&mut self, ring: &mut Ring<'_>, failed: &[u32]) -> Result<(), Violation> {
        for request in std::mem::take(&mut self.parked) {
            if self.touches(&request, failed) {
                Self::answer(ring, &request, Outcome::IoError, 0)?;
            } else {
                self.take(ring, request)?;
            }
        }
        ring.notify()
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

    fn queues(&self) -> &'static [u16] {
        &QUEUES
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
        self.write_through = true;
        self.parked.clear();
        if let Some(chunks) = &mut self.chunks {
            chunks.wants.clear();
        }
    }

    fn sources(&self, out: &mut Vec<Source>) {
        let Some(chunks) = self.chunks.as_ref().filter(|c| !c.closed) else {
            return;
        };
        out.push(Source::readable(&chunks.socket));
        if chunks.wants.unsent().is_some() {
            out.push(Source::writable(&chunks.socket));
        }
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let ring = &mut rings[0];
        let heard = if ready.source(0) {
            self.hear(ring)?
        } else {
            Turn::Done
        };
        let limits = self.limits;
        let drained = ring.drain(|ring, chain| {
            let request = Request::read(ring.ram(), chain, limits)?;
            self.take(ring, request)
        })?;
        self.ask();
        Ok(heard.and(drained))
    }
}

fn features(read_only: bool) -> u64 {
    let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
    match read_only {
        true => common | 1 << VIRTIO_BLK_F_RO,
        false => common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    }
}

/// `struct virtio_blk_config` as far as our features go.
fn config(bytes: u64) -> Vec<u8> {
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
    config
}

#[cfg(test)]
mod tests;
