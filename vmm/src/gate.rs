//! Bringing all threads to a place where nothing is in flight, and letting them go on.
//!
//! ```text
//! open ── stop vCPUs ──► vCPUs rest ── stop workers ──► all rest (paused) ── open ──► open
//! ```
//!
//! Owns: who rests and who shall. vCPUs rest outside KVM_RUN with their last exit done; workers at the end
//! of a turn with their device at rest.
//! Refuses: to wait for ever, and to wait for the threads of a machine that ends.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::event::{Served, Source};
use crate::hv::kick::Kick;

/// How long vCPUs and devices may take to come to rest. A device may be in the middle of a sync of a slow
/// disk; a host that takes longer has other troubles than a snapshot.
const REST_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError {
    #[error("{running} {what} have not come to rest within {seconds} s: the host's disks are too slow now, ask again later", seconds = REST_MAX.as_secs())]
    Slow { what: &'static str, running: usize },
    #[error("the machine is ending")]
    Ending,
    #[error("interrupt the vCPUs")]
    Kick(#[source] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// vCPUs shall rest, workers go on: an exit may need one.
    StoppingVcpus,
    /// All shall rest.
    Stopping,
    /// All rest.
    Paused,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Threads that have not ended, and those of them that rest.
    vcpus: usize,
    vcpus_resting: usize,
    workers: usize,
    workers_resting: usize,
    /// A vCPU has ended, and with it the machine.
    ending: bool,
}

pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while workers shall rest.
    workers: EventFd,
    kicks: Mutex<Vec<Kick>>,
}

impl Gate {
    pub(crate) fn new(vcpus: usize, workers: usize) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                phase: Phase::Open,
                vcpus,
                vcpus_resting: 0,
                workers,
                workers_resting: 0,
                ending: false,
            }),
            changed: Condvar::new(),
            workers: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            kicks: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic while the gate was locked")
    }

    /// How the vCPUs are interrupted. Called once, when their threads are there.
    pub(crate) fn arm(&self, kicks: Vec<Kick>) {
        *self.kicks.lock().expect("no panic while locked") = kicks;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().phase == Phase::Paused
    }

    /// A vCPU outside KVM_RUN: rests for as long as it shall.
    pub(crate) fn vcpu(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            return;
        }
        state.vcpus_resting += 1;
        self.changed.notify_all();
        while state.phase != Phase::Open {
            state = self.wait(state);
        }
        state.vcpus_resting -= 1;
    }

    /// A vCPU has ended: the machine does, too.
    pub(crate) fn vcpu_ended(&self) {
        let mut state = self.lock();
        state.ending = true;
        self.changed.notify_all();
    }

    fn worker(&self) {
        let mut state = self.lock();
        let stopping = |s: &State| matches!(s.phase, Phase::Stopping | Phase::Paused);
        if !stopping(&state) {
            return;
        }
        state.workers_resting += 1;
        self.changed.notify_all();
        while stopping(&state) {
            state = self.wait(state);
        }
        state.workers_resting -= 1;
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .expect("no panic while the gate was locked")
    }

    /// Stops all vCPUs. `then` does what their last exits left to do; after it all workers stop. Of a paused
    /// machine nothing is asked. On an error everything goes on.
    pub(crate) fn pause(&self, then: impl FnOnce()) -> Result<(), GateError> {
        if self.is_paused() {
            return Ok(());
        }
        let stopped = self.stop(then);
        if stopped.is_err() {
            self.open();
        }
        stopped
    }

    fn stop(&self, then: impl FnOnce()) -> Result<(), GateError> {
        self.lock().phase = Phase::StoppingVcpus;
        for kick in self.kicks.lock().expect("no panic while locked").iter_mut() {
            kick.interrupt().map_err(GateError::Kick)?;
        }
        self.wait_for("vCPUs", |s| s.vcpus - s.vcpus_resting)?;
        then();
        self.lock().phase = Phase::Stopping;
        // Counters of events overflow only after 2^64 signals.
        let _ = self.workers.write(1);
        self.wait_for("devices", |s| s.workers - s.workers_resting)?;
        self.lock().phase = Phase::Paused;
        Ok(())
    }

    fn wait_for(
        &self,
        what: &'static str,
        running: impl Fn(&State) -> usize,
    ) -> Result<(), GateError> {
        let until = Instant::now() + REST_MAX;
        let mut state = self.lock();
        loop {
            if state.ending {
                return Err(GateError::Ending);
            }
            let running = running(&state);
            let left = until.saturating_duration_since(Instant::now());
            if running == 0 {
                return Ok(());
            }
            if left.is_zero() {
                return Err(GateError::Slow { what, running });
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.expect("no panic while the gate was locked").0;
        }
    }

    /// All go on.
    pub(crate) fn open(&self) {
        for kick in self.kicks.lock().expect("no panic while locked").iter_mut() {
            kick.relent();
        }
        let _ = self.workers.read();
        self.lock().phase = Phase::Open;
        self.changed.notify_all();
    }
}

/// The last of what a worker serves: where it rests.
pub(crate) struct Place {
    pub(crate) gate: Arc<Gate>,
    /// The device that is brought to rest first.
    pub(crate) device: Arc<dyn Served>,
}

impl Served for Place {
    fn sources(&self, out: &mut Vec<Source>) {
        out.push(Source::readable(&self.gate.workers));
    }

    fn serve(&self, _fired: u64) {
        self.device.quiesce();
        self.gate.worker();
    }

    fn stop(&self) {}
}

/// A device that the main thread serves, which does nothing while the machine is paused.
pub(crate) struct Halting {
    pub(crate) gate: Arc<Gate>,
    pub(crate) device: Arc<dyn Served>,
}

impl Served for Halting {
    fn sources(&self, out: &mut Vec<Source>) {
        if !self.gate.is_paused() {
            self.device.sources(out);
        }
    }

    /// What has fired before the pause fires again after it: nobody has taken the event.
    fn serve(&self, fired: u64) {
        if !self.gate.is_paused() {
            self.device.serve(fired);
        }
    }

    fn quiesce(&self) {
        self.device.quiesce();
    }

    fn resume(&self) {
        self.device.resume();
    }

    fn stop(&self) {
        self.device.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn all_rest_in_a_pause_and_go_on_after_it_however_often() {
        const ROUNDS: usize = 50;
        let gate = Arc::new(Gate::new(2, 1).expect("an event counter"));
        let turns: Arc<[AtomicU64; 3]> = Arc::default();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let (gate, turns, stop) = (gate.clone(), turns.clone(), stop.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        turns[index].fetch_add(1, Ordering::Relaxed);
                        if index < 2 {
                            gate.vcpu()
                        } else {
                            gate.worker()
                        }
                        thread::yield_now();
                    }
                })
            })
            .collect();
        let read = || turns.each_ref().map(|t| t.load(Ordering::Relaxed));
        for _ in 0..ROUNDS {
            let mut done = false;
            gate.pause(|| done = true).expect("rests");
            assert!(done && gate.is_paused());
            gate.pause(|| panic!("it is paused already"))
                .expect("rests");
            let before = read();
            thread::yield_now();
            assert_eq!(read(), before);
            gate.open();
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("ends");
        }
    }

    #[test]
    fn a_machine_that_ends_is_not_waited_for() {
        let gate = Gate::new(1, 0).expect("an event counter");
        gate.vcpu_ended();
        assert!(matches!(gate.pause(|| {}), Err(GateError::Ending)));
        assert!(!gate.is_paused());
    }
}
