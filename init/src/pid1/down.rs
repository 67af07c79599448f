//! The one way down.
//!
//! Owns: its order and its deadlines, and the last acts: sync, unmount, reboot.
//! Refuses: hanging. Every wait has an end, whatever a guest, the node or a disk does.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use sys::reboot::Ending;

use crate::wire::Mode;

/// For the node to stop every machine in order, all at once: the longest that one may take by the node's own
/// rules, and time to note how each has ended.
const NODE_TIMEOUT: Duration = Duration::from_millis(workload::STOP_MAX_MS + 15_000);
/// From SIGTERM to SIGKILL: what is left then had its chance.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(5);
/// From SIGKILL on: only a process stuck in a disk is left.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// For sync and unmount: a working disk is done by then, a dead one never is.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// The machine stays up.
    No,
    /// The node was asked to stop its machines.
    Asked { mode: Mode, until: Duration },
    /// Every process was asked to end.
    Terminating { mode: Mode, until: Duration },
    /// Every process was killed.
    Killing { mode: Mode, until: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    TellNode(Mode),
    TerminateAll,
    KillAll,
    End(Mode),
}

impl Down {
    /// Power button, signal: go down in order. The first wish counts.
    pub(super) fn ask(&mut self, now: Duration, mode: Mode) -> Option<Act> {
        match self {
            Self::No => {
                *self = Self::Asked {
                    mode,
                    until: now + NODE_TIMEOUT,
                };
                Some(Act::TellNode(mode))
            }
            Self::Asked { .. } | Self::Terminating { .. } | Self::Killing { .. } => None,
        }
    }

    /// The node says that its machines have stopped, or that it wants to go down.
    pub(super) fn node_agrees(&mut self, now: Duration, mode: Mode) -> Option<Act> {
        match self {
            Self::No | Self::Asked { .. } => Some(self.terminate(now, mode)),
            Self::Terminating { .. } | Self::Killing { .. } => None,
        }
    }

    /// Time has passed, or a child has ended. `children` of ours still run.
    pub(super) fn tick(&mut self, now: Duration, children: usize) -> Option<Act> {
        match *self {
            Self::Asked { mode, until } if now >= until => Some(self.terminate(now, mode)),
            Self::Terminating { mode, .. } | Self::Killing { mode, .. } if children == 0 => {
                Some(Act::End(mode))
            }
            Self::Terminating { mode, until } if now >= until => {
                *self = Self::Killing {
                    mode,
                    until: now + KILL_TIMEOUT,
                };
                Some(Act::KillAll)
            }
            Self::Killing { mode, until } if now >= until => Some(Act::End(mode)),
            Self::No | Self::Asked { .. } | Self::Terminating { .. } | Self::Killing { .. } => None,
        }
    }

    fn terminate(&mut self, now: Duration, mode: Mode) -> Act {
        *self = Self::Terminating {
            mode,
            until: now + TERMINATE_TIMEOUT,
        };
        Act::TerminateAll
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::No => None,
            Self::Asked { until, .. }
            | Self::Terminating { until, .. }
            | Self::Killing { until, .. } => Some(*until),
        }
    }

    /// What a node that has just started must be told again.
    pub(super) fn asked(&self) -> Option<Mode> {
        match self {
            Self::Asked { mode, .. } => Some(*mode),
            Self::No | Self::Terminating { .. } | Self::Killing { .. } => None,
        }
    }

    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Terminating { .. } | Self::Killing { .. })
    }
}

/// How somebody is kept from thinking that the machine hangs.
pub(super) struct Feeding<'a> {
    pub(super) every: Duration,
    pub(super) feed: &'a dyn Fn(),
}

/// Writes everything to disk and unmounts every pool within [`SYNC_TIMEOUT`]. Says what went wrong. `last` is done before, with the
/// places of the pools: it may hang in a disk as well.
pub(super) fn settle_disks(
    last: impl FnOnce(&[PathBuf]) + Send + 'static,
    feeding: Option<&Feeding<'_>>,
) -> Result<(), String> {
    let (done, wait) = std::sync::mpsc::channel();
    // A thread, as a dead disk blocks these calls for ever. It is the first one of pid1, and nothing
    // is forked after it.
    let worker = std::thread::Builder::new().spawn(move || {
        let pools = sys::mount::places_of("xfs");
        last(pools.as_deref().unwrap_or_default());
        nix::unistd::sync();
        let result = pools.and_then(|pools| {
            let ended = pools.iter().map(|place| sys::mount::unmount(place));
            ended.fold(Ok(()), sys::Result::and)
        });
        // Their keys go now, not with the next user of the memory. It fails where the kernel has no device mapper.
        let _ = sys::mapper::close_all();
        // The receiver is gone only when the time is up.
        let _ = done.send(result);
    });
    worker.map_err(|e| format!("start the sync: {e}"))?;
    match wait_for(&wait, SYNC_TIMEOUT, feeding) {
        Some(result) => result.map_err(|e| sys::chain(&e)),
        None => Err(format!(
            "the disks have not taken everything in {} s",
            SYNC_TIMEOUT.as_secs()
        )),
    }
}

/// What comes within a time, feeding meanwhile: at its beginning, too.
fn wait_for<T>(wait: &Receiver<T>, time: Duration, feeding: Option<&Feeding<'_>>) -> Option<T> {
    let mut left = time;
    loop {
        let turn = feeding.map_or(left, |f| f.every.min(left));
        if let Some(feeding) = feeding {
            (feeding.feed)();
        }
        match wait.recv_timeout(turn) {
            Ok(value) => return Some(value),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => left = left.saturating_sub(turn),
        }
        if left.is_zero() {
            return None;
        }
    }
}

/// The machine's end. Returns only where the kernel refuses.
pub(super) fn end(mode: Mode) -> sys::Error {
    let ending = match mode {
        Mode::PowerOff => Ending::PowerOff,
        Mode::Reboot => Ending::Restart,
    };
    match sys::reboot::end(ending) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_orderly_end_asks_terminates_and_ends_when_all_are_gone() {
        let mut down = Down::No;
        assert_eq!(
            down.ask(at(0), Mode::PowerOff),
            Some(Act::TellNode(Mode::PowerOff))
        );
        assert_eq!(down.ask(at(1), Mode::Reboot), None, "the first wish counts");
        assert_eq!(down.tick(at(10), 3), None);
        assert_eq!(
            down.node_agrees(at(12), Mode::PowerOff),
            Some(Act::TerminateAll)
        );
        assert_eq!(down.tick(at(13), 1), None);
        assert_eq!(down.tick(at(13), 0), Some(Act::End(Mode::PowerOff)));
    }

    #[test]
    fn nothing_that_hangs_keeps_the_machine_up() {
        let mut down = Down::No;
        down.ask(at(0), Mode::Reboot);
        let mut acts = Vec::new();
        for second in 0..200 {
            acts.extend(down.tick(at(second), 7).map(|act| (second, act)));
        }
        assert_eq!(
            acts[..3],
            [
                (90, Act::TerminateAll),
                (95, Act::KillAll),
                (100, Act::End(Mode::Reboot))
            ]
        );
    }

    #[test]
    fn the_watchdog_is_fed_while_a_disk_takes_its_time() {
        let fed = std::cell::Cell::new(0);
        let feeding = Feeding {
            every: Duration::from_millis(10),
            feed: &|| fed.set(fed.get() + 1),
        };
        let (done, wait) = std::sync::mpsc::channel();
        let time = Duration::from_millis(50);
        assert_eq!(wait_for(&wait, time, Some(&feeding)), None);
        assert_eq!(fed.get(), 5);
        done.send(7).expect("somebody waits");
        assert_eq!(wait_for(&wait, time, Some(&feeding)), Some(7));
        assert_eq!(wait_for(&wait, Duration::ZERO, None), None);
    }
}
