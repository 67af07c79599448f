//! Requests in flight: a disk's requests as calls in a ring of the kernel's.
//!
//! Owns: which calls make up a request and what their results mean; the order of writes and flushes; guest
//! memory for as long as a call may touch it.
//! Refuses: to answer. Who began a request gets it back with its outcome.
//!
//! A flush is a sync of the file. It begins when every write that was taken before it is done, and no two
//! run at once: the kernel says once that writes were lost, to one of them. Those that wait for it meanwhile
//! share the next one. A write of a driver that sends no flushes rides on a sync of its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::disk::{Disk, allocation};
use super::request::{ByteRange, Operation, Outcome, Request};
use super::uring::{Call, ENTRIES, Uring};
use crate::memory::GuestRam;
use crate::memory::io::Detached;
use crate::virtio::chain::Segments;

/// Requests in flight, those that only wait for a sync not counted. More make no disk faster.
pub(super) const FLIGHTS_MAX: usize = 128;
const _: () = assert!(FLIGHTS_MAX < ENTRIES as usize, "and one sync");
/// The token of a sync; others are places in `flights`.
const SYNC: u64 = u64::MAX;

/// A request that is done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) queue: usize,
    pub(super) request: Request,
    pub(super) outcome: Outcome,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Bytes of its data that are done.
    Transfer(u64),
    /// Which of its ranges is under way.
    Range(usize),
}

#[derive(Debug)]
struct Flight {
    queue: usize,
    request: Request,
    stage: Stage,
    /// The driver wants a write on the medium before it is answered.
    through: bool,
    /// Counts requests in the order they were taken.
    sequence: u64,
    /// What the kernel reads while the call begins.
    list: Detached,
}

/// Waits for a sync.
#[derive(Debug)]
struct Rider {
    queue: usize,
    request: Request,
    /// Every request that writes and has a lower number is to be done first.
    after: u64,
}

#[derive(Debug)]
pub(super) struct Engine {
    ring: Uring,
    /// Keeps mapped what is in flight.
    ram: GuestRam,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Numbers of requests in flight that change the disk.
    writing: BTreeSet<u64>,
    sequence: u64,
    riders: Vec<Rider>,
    /// Those whose sync is in flight.
    syncing: Vec<Rider>,
}

/// What the result of a call means for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another call, from here.
    Call(Stage),
    /// The kernel would not do it this way now: an ordinary call, from here.
    Alone(Stage),
    Over(Outcome),
}

/// Judges `result`, which is what the system call would have returned.
fn judge(stage: Stage, operation: &Operation, result: i32) -> Next {
    let error = result.wrapping_neg();
    if matches!(error, libc::EAGAIN | libc::EINTR | libc::ECANCELED) {
        return Next::Alone(stage);
    }
    match (stage, operation) {
        (Stage::Transfer(done), Operation::Read { data, .. } | Operation::Write { data, .. }) => {
            // Nothing at all is the end of the file.
            let Ok(moved @ 1..) = u64::try_from(result) else {
                return Next::Over(Outcome::IoError);
            };
            match done + moved {
                done if done >= data.bytes() => Next::Over(Outcome::Ok),
                done => Next::Call(Stage::Transfer(done)),
            }
        }
        (Stage::Range(at), Operation::Discard(ranges) | Operation::WriteZeroes(ranges)) => {
            match result {
                0 if at + 1 == ranges.len() => Next::Over(Outcome::Ok),
                0 => Next::Call(Stage::Range(at + 1)),
                _ if error == libc::EOPNOTSUPP => Next::Over(Outcome::Unsupported),
                _ => Next::Over(Outcome::IoError),
            }
        }
        (Stage::Transfer(_) | Stage::Range(_), _) => Next::Over(Outcome::IoError),
    }
}

/// Where a request begins; `None`: it is no matter of calls in flight.
fn first_stage(operation: &Operation) -> Option<Stage> {
    match operation {
        Operation::Read { data, .. } | Operation::Write { data, .. } => {
            (data.bytes() > 0).then_some(Stage::Transfer(0))
        }
        Operation::Discard(_) | Operation::WriteZeroes(_) => Some(Stage::Range(0)),
        Operation::Flush | Operation::Identify { .. } => None,
    }
}

/// The rest of a transfer after `done` bytes.
fn rest(data: &Segments, done: u64) -> Segments {
    let mut rest = data.clone();
    // No more is done than there is.
    let _ = rest.split_front(done);
    rest
}

impl Engine {
    pub(super) fn new(file: &File, ram: &GuestRam) -> io::Result<Self> {
        Ok(Self {
            ring: Uring::new(file)?,
            ram: ram.clone(),
            flights: (0..FLIGHTS_MAX).map(|_| None).collect(),
            free: (0..FLIGHTS_MAX).collect(),
            writing: BTreeSet::new(),
            sequence: 0,
            riders: Vec::new(),
            syncing: Vec::new(),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == FLIGHTS_MAX && self.riders.is_empty() && self.syncing.is_empty()
    }

    /// Takes a request over, or gives it back: it can be done at once. There is room.
    pub(super) fn begin(
        &mut self,
        queue: usize,
        request: Request,
        through: bool,
    ) -> Result<(), Request> {
        let Ok(operation) = &request.operation else {
            return Err(request);
        };
        self.sequence += 1;
        if matches!(operation, Operation::Flush) {
            let after = self.sequence;
            self.riders.push(Rider {
                queue,
                request,
                after,
            });
            return Ok(());
        }
        let Some(stage) = first_stage(operation) else {
            return Err(request);
        };
        let writes = !matches!(operation, Operation::Read { .. });
        let Some(place) = self.free.pop() else {
            return Err(request);
        };
        if writes {
            self.writing.insert(self.sequence);
        }
        let flight = Flight {
            queue,
            through: through && matches!(operation, Operation::Write { .. }),
            request,
            stage,
            sequence: self.sequence,
            list: Detached::default(),
        };
        self.call(place, flight, stage)
    }

    /// Queues the call of `stage`. Gives the request back where a list is longer than a call takes.
    fn call(&mut self, place: usize, mut flight: Flight, stage: Stage) -> Result<(), Request> {
        flight.stage = stage;
        let list = match (stage, &flight.request.operation) {
            (
                Stage::Transfer(done),
                Ok(Operation::Read { data, .. } | Operation::Write { data, .. }),
            ) => rest(data, done).io_vec(&self.ram).map(|list| list.detach()),
            (Stage::Transfer(_) | Stage::Range(_), _) => Some(Detached::default()),
        };
        let Some(list) = list else {
            self.free.push(place);
            self.writing.remove(&flight.sequence);
            return Err(flight.request);
        };
        flight.list = list;
        let flight = self.flights[place].insert(flight);
        let call = match (stage, &flight.request.operation) {
            (Stage::Transfer(done), Ok(Operation::Read { offset, .. })) => Call::Read {
                to: &flight.list,
                offset: offset + done,
            },
            (Stage::Transfer(done), Ok(Operation::Write { offset, .. })) => Call::Write {
                from: &flight.list,
                offset: offset + done,
            },
            (Stage::Range(at), Ok(operation)) => {
                let (range, flags) = range_of(operation, at).expect("judged by its ranges");
                Call::Allocate {
                    flags: flags.bits(),
                    start: range.start,
                    length: range.length,
                }
            }
            (Stage::Transfer(_) | Stage::Range(_), _) => unreachable!("has a first stage"),
        };
        let token = u64::try_from(place).expect("small");
        push(&mut self.ring, &call, token);
        Ok(())
    }

    /// Begins a sync for those who may have one now. `lost`: none is good any more.
    fn sync(&mut self, lost: bool, done: &mut Vec<Done>) {
        if !self.syncing.is_empty() {
            return;
        }
        let oldest = self.writing.first().copied().unwrap_or(u64::MAX);
        let ready = self.riders.extract_if(.., |rider| rider.after <= oldest);
        self.syncing = ready.collect();
        if lost {
            self.land(Outcome::IoError, done);
        } else if !self.syncing.is_empty() {
            push(&mut self.ring, &Call::Sync, SYNC);
        }
    }

    fn land(&mut self, outcome: Outcome, done: &mut Vec<Done>) {
        let landed = self.syncing.drain(..).map(|rider| Done {
            queue: rider.queue,
            request: rider.request,
            outcome,
        });
        done.extend(landed);
    }

    /// Takes the results that are there, begins what follows from them, and hands all that is queued to the
    /// kernel.
    pub(super) fn turn(&mut self, disk: &mut Disk, done: &mut Vec<Done>) -> io::Result<()> {
        self.reap(disk, done);
        self.sync(disk.lost(), done);
        self.ring.submit()
    }

    fn reap(&mut self, disk: &mut Disk, done: &mut Vec<Done>) {
        while let Some((token, result)) = self.ring.result() {
            if token == SYNC {
                let outcome = disk.synced(result);
                self.land(outcome, done);
                continue;
            }
            let place = usize::try_from(token).expect("64-bit only");
            let Some(flight) = self.flights.get_mut(place).and_then(Option::take) else {
                continue;
            };
            let Ok(operation) = &flight.request.operation else {
                continue;
            };
            let outcome = match judge(flight.stage, operation, result) {
                Next::Call(stage) => {
                    let (queue, sequence) = (flight.queue, flight.sequence);
                    // A shorter list fits where a longer one did.
                    if let Err(request) = self.call(place, flight, stage) {
                        let outcome = Outcome::IoError;
                        self.writing.remove(&sequence);
                        done.push(Done {
                            queue,
                            request,
                            outcome,
                        });
                    }
                    continue;
                }
                Next::Alone(stage) => alone(disk, &self.ram, operation, stage),
                Next::Over(outcome) => outcome,
            };
            self.free.push(place);
            self.writing.remove(&flight.sequence);
            let Flight { queue, request, .. } = flight;
            if flight.through && outcome == Outcome::Ok {
                // Its own write is done, and older ones are nothing to it.
                self.riders.push(Rider {
                    queue,
                    request,
                    after: 0,
                });
            } else {
                done.push(Done {
                    queue,
                    request,
                    outcome,
                });
            }
        }
    }

    /// Waits until nothing is in flight.
    pub(super) fn settle(&mut self, disk: &mut Disk) -> Vec<Done> {
        let mut done = Vec::new();
        loop {
            // An error here is the kernel's "not now"; what is in its hand comes back whatever we do.
            let _ = self.turn(disk, &mut done);
            if self.is_idle() {
                return done;
            }
            if self.ring.wait().is_err() {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody is answered any more, but memory is given back only when nobody writes to it.
        while self.free.len() < FLIGHTS_MAX {
            if self.ring.wait().is_err() {
                std::thread::yield_now();
            }
            while let Some((token, _)) = self.ring.result() {
                let place = usize::try_from(token).unwrap_or(usize::MAX);
                if self.flights.get_mut(place).and_then(Option::take).is_some() {
                    self.free.push(place);
                }
            }
        }
    }
}

impl AsRawFd for Engine {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn push(ring: &mut Uring, call: &Call<'_>, token: u64) {
    // SAFETY: the list lives on the heap in `Engine::flights` until the result of `token` is taken, and the
    // guest memory that it names is kept mapped by `Engine::ram`, which goes after all results have come.
    #[expect(unsafe_code, reason = "the border to the ring")]
    let pushed = unsafe { ring.push(call, token) };
    assert!(
        pushed,
        "each of the flights has one call at most, and there is one sync"
    );
}

fn range_of(operation: &Operation, at: usize) -> Option<(&ByteRange, nix::fcntl::FallocateFlags)> {
    let ranges = match operation {
        Operation::Discard(ranges) | Operation::WriteZeroes(ranges) => ranges,
        Operation::Read { .. }
        | Operation::Write { .. }
        | Operation::Flush
        | Operation::Identify { .. } => return None,
    };
    let range = ranges.get(at)?;
    Some((range, allocation(operation, range)))
}

/// Finishes a request by ordinary calls.
fn alone(disk: &Disk, ram: &GuestRam, operation: &Operation, stage: Stage) -> Outcome {
    match (stage, operation) {
        (Stage::Transfer(done), Operation::Read { offset, data }) => {
            disk.read(ram, &rest(data, done), offset + done)
        }
        (Stage::Transfer(done), Operation::Write { offset, data }) => {
            disk.write(ram, &rest(data, done), offset + done)
        }
        (Stage::Range(at), Operation::Discard(ranges) | Operation::WriteZeroes(ranges)) => {
            disk.allocate(operation, &ranges[at..])
        }
        (Stage::Transfer(_) | Stage::Range(_), _) => Outcome::IoError,
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
