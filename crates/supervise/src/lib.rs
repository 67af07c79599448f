//! The life of one supervised process, as a pure state machine.
//!
//! Owns: when to start, to wait, to ask and to kill. One [`Service`] per process; events go in with the
//! time they happened, actions come out.
//! Refuses: clocks, forks and signals: the caller has them. It never gives up on a service.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How patient a supervisor is with one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pause after the first failure; doubled with each further one.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// A run at least this long was good: the next pause is `backoff_min` again.
    pub healthy_after: Duration,
    /// From being asked to end until being killed.
    pub stop_timeout: Duration,
}

/// What happened. Times are since any fixed moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It should run from now on.
    Start,
    /// It should not run from now on.
    Stop,
    /// A [`Action::Spawn`] led to a process.
    Spawned,
    /// A [`Action::Spawn`] led to nothing.
    SpawnFailed,
    /// The process has ended and was reaped.
    Exited,
    /// Time has passed.
    Tick,
}

/// What the caller does now. `Spawn` is answered by `Spawned` or `SpawnFailed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Spawn,
    /// Ask it to end.
    Terminate,
    /// End it.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing runs and nothing should.
    Stopped,
    /// A spawn has been asked for.
    Starting,
    Running {
        since: Duration,
    },
    /// It failed and is started again at this time.
    Waiting {
        until: Duration,
    },
    /// It was asked to end and is killed at this time. `restart` once it is gone?
    Stopping {
        kill_at: Duration,
        restart: bool,
    },
    /// It was killed; only its end is missing.
    Killed {
        restart: bool,
    },
}

/// One service.
#[derive(Debug, Clone)]
pub struct Service {
    policy: Policy,
    state: State,
    /// Failures since the last healthy run.
    failures: u32,
    /// Spawns after the first.
    restarts: u64,
    stop_after_spawn: bool,
}

impl Service {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Stopped,
            failures: 0,
            restarts: 0,
            stop_after_spawn: false,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// When [`Event::Tick`] is due, if ever.
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Stopping { kill_at, .. } => Some(kill_at),
            State::Stopped | State::Starting | State::Running { .. } | State::Killed { .. } => None,
        }
    }

    /// Takes one event. Events that mean nothing in the present state change nothing.
    pub fn step(&mut self, now: Duration, event: Event) -> Option<Action> {
        match event {
            Event::Start => self.start(),
            Event::Stop => self.stop(now),
            Event::Spawned => self.spawned(now),
            Event::SpawnFailed => self.gone(now, Duration::ZERO),
            Event::Exited => {
                let ran = match self.state {
                    State::Running { since } => now.saturating_sub(since),
                    State::Stopped
                    | State::Starting
                    | State::Waiting { .. }
                    | State::Stopping { .. }
                    | State::Killed { .. } => Duration::ZERO,
                };
                self.gone(now, ran)
            }
            Event::Tick => self.tick(now),
        }
    }

    fn start(&mut self) -> Option<Action> {
        match &mut self.state {
            State::Stopped => {
                self.failures = 0;
                self.spawn()
            }
            State::Stopping { restart, .. } | State::Killed { restart } => {
                *restart = true;
                None
            }
            State::Starting => {
                self.stop_after_spawn = false;
                None
            }
            State::Running { .. } | State::Waiting { .. } => None,
        }
    }

    fn stop(&mut self, now: Duration) -> Option<Action> {
        match &mut self.state {
            State::Running { .. } => {
                let kill_at = now + self.policy.stop_timeout;
                self.state = State::Stopping {
                    kill_at,
                    restart: false,
                };
                Some(Action::Terminate)
            }
            State::Waiting { .. } => {
                self.state = State::Stopped;
                None
            }
            State::Starting => {
                self.stop_after_spawn = true;
                None
            }
            State::Stopping { restart, .. } | State::Killed { restart } => {
                *restart = false;
                None
            }
            State::Stopped => None,
        }
    }

    fn spawn(&mut self) -> Option<Action> {
        self.state = State::Starting;
        self.stop_after_spawn = false;
        Some(Action::Spawn)
    }

    fn spawned(&mut self, now: Duration) -> Option<Action> {
        if self.state != State::Starting {
            return None;
        }
        self.state = State::Running { since: now };
        if self.stop_after_spawn {
            self.stop(now)
        } else {
            None
        }
    }

    /// The process is gone, or never came to be.
    fn gone(&mut self, now: Duration, ran: Duration) -> Option<Action> {
        match self.state {
            State::Running { .. } | State::Starting => {
                if self.stop_after_spawn && self.state == State::Starting {
                    self.state = State::Stopped;
                    return None;
                }
                if ran >= self.policy.healthy_after {
                    self.failures = 0;
                }
                let until = now + self.backoff();
                self.failures = self.failures.saturating_add(1);
                self.restarts += 1;
                self.state = State::Waiting { until };
                None
            }
            State::Stopping { restart, .. } | State::Killed { restart } => {
                self.state = State::Stopped;
                if restart { self.start() } else { None }
            }
            State::Stopped | State::Waiting { .. } => None,
        }
    }

    fn tick(&mut self, now: Duration) -> Option<Action> {
        match self.state {
            State::Waiting { until } if now >= until => self.spawn(),
            State::Stopping { kill_at, restart } if now >= kill_at => {
                self.state = State::Killed { restart };
                Some(Action::Kill)
            }
            State::Waiting { .. }
            | State::Stopping { .. }
            | State::Stopped
            | State::Starting
            | State::Running { .. }
            | State::Killed { .. } => None,
        }
    }

    fn backoff(&self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.policy
            .backoff_min
            .saturating_mul(factor)
            .min(self.policy.backoff_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(10),
        healthy_after: Duration::from_secs(30),
        stop_timeout: Duration::from_secs(5),
    };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_crash_is_followed_by_a_longer_and_longer_pause_with_a_cap() {
        let mut service = Service::new(POLICY);
        let (mut now, mut pauses) = (at(0), Vec::new());
        assert_eq!(service.step(now, Event::Start), Some(Action::Spawn));
        for _ in 0..40 {
            service.step(now, Event::Spawned);
            assert_eq!(service.step(now, Event::Exited), None);
            let until = service.deadline().expect("a pause");
            pauses.push((until - now).as_millis());
            now = until;
            assert_eq!(service.step(now, Event::Tick), Some(Action::Spawn));
        }
        assert_eq!(pauses[..8], [100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert!(pauses[8..].iter().all(|p| *p == 10_000));
    }

    #[test]
    fn a_healthy_run_forgives() {
        let mut service = Service::new(POLICY);
        service.step(at(0), Event::Start);
        for _ in 0..5 {
            service.step(at(0), Event::SpawnFailed);
            service.step(at(100_000), Event::Tick);
        }
        service.step(at(100_000), Event::Spawned);
        service.step(at(130_000), Event::Exited);
        assert_eq!(service.state(), State::Waiting { until: at(130_100) });
    }

    #[test]
    fn what_does_not_end_when_asked_is_killed_once() {
        let mut service = Service::new(POLICY);
        service.step(at(0), Event::Start);
        service.step(at(0), Event::Spawned);
        assert_eq!(service.step(at(10), Event::Stop), Some(Action::Terminate));
        assert_eq!(service.step(at(5000), Event::Tick), None);
        assert_eq!(service.step(at(5010), Event::Tick), Some(Action::Kill));
        assert_eq!(service.step(at(9999), Event::Tick), None);
        assert_eq!(service.step(at(9999), Event::Exited), None);
        assert_eq!(service.state(), State::Stopped);
    }

    #[test]
    fn a_stop_that_overtakes_a_spawn_is_not_lost() {
        let mut service = Service::new(POLICY);
        service.step(at(0), Event::Start);
        assert_eq!(service.step(at(1), Event::Stop), None);
        assert_eq!(service.step(at(2), Event::Spawned), Some(Action::Terminate));
        assert_eq!(service.step(at(3), Event::Start), None);
        assert_eq!(service.step(at(4), Event::Exited), Some(Action::Spawn));
    }

    fn events() -> impl Strategy<Value = Vec<(u16, u8)>> {
        prop::collection::vec((any::<u16>(), 0u8..6), 0..200)
    }

    proptest! {
        /// Drives a service as a caller may: `Spawned` and `Exited` only where a process makes them true.
        #[test]
        fn there_is_never_more_than_one_process_and_a_wanted_one_comes_back(events in events()) {
            let mut service = Service::new(POLICY);
            let (mut now, mut wanted, mut asked, mut alive) = (at(0), false, false, false);
            let mut apply = |service: &mut Service, now, event| {
                let action = service.step(now, event);
                match event {
                    Event::Start => wanted = true,
                    Event::Stop => wanted = false,
                    Event::Spawned => (asked, alive) = (false, true),
                    Event::SpawnFailed => asked = false,
                    Event::Exited => alive = false,
                    Event::Tick => {}
                }
                if action == Some(Action::Spawn) {
                    assert!(!alive && !asked && wanted, "a second process, or one that nobody wants");
                    asked = true;
                }
                if matches!(action, Some(Action::Terminate | Action::Kill)) {
                    assert!(alive);
                }
                (wanted, asked, alive)
            };
            let mut facts = (false, false, false);
            for (ms, number) in events {
                now += at(u64::from(ms));
                let event = match number {
                    0 => Event::Start,
                    1 => Event::Stop,
                    2 if facts.1 => Event::Spawned,
                    3 if facts.1 => Event::SpawnFailed,
                    4 if facts.2 => Event::Exited,
                    _ => Event::Tick,
                };
                facts = apply(&mut service, now, event);
            }
            // Whatever happened: wanted things run in the end, others do not.
            for _ in 0..8 {
                now += at(20_000);
                let event = match facts {
                    (_, true, _) => Event::Spawned,
                    (false, _, true) => Event::Exited,
                    _ => Event::Tick,
                };
                facts = apply(&mut service, now, event);
                if facts.2 && matches!(service.state(), State::Stopping { .. } | State::Killed { .. }) {
                    facts = apply(&mut service, now, Event::Exited);
                }
            }
            prop_assert_eq!(facts.2, facts.0);
        }
    }
}
