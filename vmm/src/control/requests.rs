//! What is asked of the machine itself, done and answered.
//!
//! Owns: one answer for each request, in the order in which they were asked.
//! Refuses: with words what it cannot do. A request never ends the machine.

use std::sync::Arc;
use std::time::Instant;

use types::vm::{FromVmm, ToVmm};

use super::inbox::Request;
use super::{Inbox, Outbox};
use crate::event::{Served, Source};
use crate::metrics::Registry;
use crate::snapshot::load::Recorder;
use crate::snapshot::machine::Subject;
use crate::snapshot::{self, SnapshotError};
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::worker::Slot;

/// Requests of one turn, so that devices come in between.
const REQUESTS_PER_TURN: usize = 8;

/// The machine's balloon, if it has one.
pub(crate) type SharedBalloon = Arc<Slot<Balloon>>;

/// Its disks, each by its serial.
pub(crate) type SharedDisks = Vec<Arc<Slot<Blk>>>;

pub(crate) struct Requests {
    inbox: Inbox,
    outbox: Arc<Outbox>,
    registry: Registry,
    balloon: Option<SharedBalloon>,
    disks: SharedDisks,
    subject: Subject,
    recorder: Option<Recorder>,
}

impl Requests {
    pub(crate) fn new(
        inbox: Inbox,
        outbox: &Arc<Outbox>,
        registry: Registry,
        (balloon, disks): (Option<SharedBalloon>, SharedDisks),
        subject: Subject,
        recorder: Option<Recorder>,
    ) -> Self {
        Self {
            inbox,
            outbox: Arc::clone(outbox),
            registry,
            balloon,
            disks,
            subject,
            recorder,
        }
    }

    fn answer(&self, request: Request) -> FromVmm {
        let started = Instant::now();
        let done = |result: Result<u64, SnapshotError>| match result {
            Ok(bytes) => FromVmm::Done {
                took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                bytes,
            },
            Err(error) => FromVmm::Refused {
                message: snapshot::chain(&error),
            },
        };
        let refused = |what: &str| FromVmm::Refused {
            message: format!("{what} is not a thing that this VMM does: use a newer one"),
        };
        match request.message {
            ToVmm::Guest(_) => refused("a line for the guest in the place of a request"),
            ToVmm::Pause => done(self.subject.pause().map(|()| 0)),
            ToVmm::Resume => {
                self.subject.resume();
                done(Ok(0))
            }
            ToVmm::Snapshot { .. } if request.fds.len() != 2 => FromVmm::Refused {
                message: format!(
                    "a snapshot takes two descriptors beside its request, not {}",
                    request.fds.len()
                ),
            },
            ToVmm::Snapshot { kind } => done(self.subject.snapshot(kind, request.fds)),
            ToVmm::WorkingSet => done(match &self.recorder {
                Some(recorder) => recorder.write(request.fds),
                None => Err(SnapshotError::Unrecorded),
            }),
            ToVmm::Balloon { target_mib } => self.inflate(target_mib),
            ToVmm::Resize { disk, bytes } => self.resize(&disk, bytes),
            ToVmm::Metrics => FromVmm::Metrics(Box::new(self.registry.read())),
        }
    }

    /// Done is that the guest has been told; how far it has come stands in the metrics.
    fn inflate(&self, target_mib: u64) -> FromVmm {
        let Some(balloon) = &self.balloon else {
            let message = "the machine has no balloon: name one in its specification".to_owned();
            return FromVmm::Refused { message };
        };
        let started = Instant::now();
        match balloon.reconfigure(|balloon| balloon.keep(target_mib)) {
            Ok(()) => FromVmm::Done {
                took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                bytes: 0,
            },
            Err(error) => FromVmm::Refused {
                message: error.to_string(),
            },
        }
    }

    /// Done is that the guest has been told.
    fn resize(&self, serial: &str, bytes: u64) -> FromVmm {
        let started = Instant::now();
        let named = |disk: &&Arc<Slot<Blk>>| disk.ask(|blk| blk.name() == serial);
        let Some(disk) = self.disks.iter().find(named) else {
            let message = format!("the machine has no disk {serial:?}");
            return FromVmm::Refused { message };
        };
        match disk.reconfigure(|blk| blk.grow(bytes)) {
            Ok(()) => FromVmm::Done {
                took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                bytes: 0,
            },
            Err(error) => FromVmm::Refused {
                message: error.to_string(),
            },
        }
    }
}

impl Served for Requests {
    fn sources(&self, out: &mut Vec<Source>) {
        out.push(self.inbox.source());
    }

    fn serve(&self, _fired: u64) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(request) = self.inbox.next() else {
                return;
            };
            self.outbox.post(&self.answer(request));
        }
    }

    fn stop(&self) {}
}
