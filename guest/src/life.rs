//! The program's life as a state machine.
//!
//! ```text
//! Starting ── executed ──► Running ── ended ──► Draining ── outputs closed or time up ──► Done
//!     └────── refused ───► Refused ── ended ───────┘
//! ```
//!
//! Owns: what is done when the program starts, is told to stop, ends, or cannot be executed.
//! Refuses: doing it. `attend` acts.

use types::guest::FromGuest;

/// How long output may still flow to the host after every process has ended: a host that reads at all
/// empties two pipes and two socket buffers in far less.
const DRAIN_MS: u64 = 10_000;

/// How the program ended, as the host is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
}

/// How far stopping has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    /// The stop signal has been sent; at this time everything is killed.
    Asked {
        kill_at_ms: u64,
    },
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Forked; the kernel has not said whether it executes the program.
    Starting(Stop),
    /// It does not; the child is about to end.
    Refused {
        code: i32,
    },
    Running(Stop),
    /// The program has ended and the rest was killed; output is on its way to the host.
    Draining {
        ending: Ending,
        until_ms: u64,
    },
    Done(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Executed,
    /// The child could not execute the program.
    Refused {
        code: i32,
        message: String,
    },
    /// The host asks for the end, or the host's control stream is gone.
    Stop,
    Signal {
        number: i32,
    },
    Ended(Ending),
    /// Both output streams have ended and all was handed to the host.
    OutputsClosed,
    /// Time has passed.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Say(FromGuest),
    /// Signal the program, and none of its children: whom else to tell is for it to say.
    SignalProgram(i32),
    KillAll,
}

/// What does not change during the program's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) pid: i32,
    pub(crate) stop_signal: i32,
    pub(crate) stop_grace_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Life {
    terms: Terms,
    state: State,
}

impl Life {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Starting(Stop::No),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self.state {
            State::Starting(stop) | State::Running(stop) => match stop {
                Stop::Asked { kill_at_ms } => Some(kill_at_ms),
                Stop::No | Stop::Killed => None,
            },
            State::Draining { until_ms, .. } => Some(until_ms),
            State::Refused { .. } | State::Done(_) => None,
        }
    }

    /// Milliseconds are those since boot.
    pub(crate) fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        match event {
            Event::Executed => self.executed(now_ms),
            Event::Refused { code, message } => self.refused(code, message),
            Event::Stop => self.stop(now_ms),
            Event::Signal { number } => match self.state {
                State::Starting(_) | State::Running(_) => vec![Action::SignalProgram(number)],
                State::Refused { .. } | State::Draining { .. } | State::Done(_) => Vec::new(),
            },
            Event::Ended(ending) => self.ended(now_ms, ending),
            Event::OutputsClosed => {
                if let State::Draining { ending, .. } = self.state {
                    self.state = State::Done(ending);
                }
                Vec::new()
            }
            Event::Tick => self.tick(now_ms),
        }
    }

    fn executed(&mut self, now_ms: u64) -> Vec<Action> {
        let State::Starting(stop) = self.state else {
            return Vec::new();
        };
        self.state = State::Running(stop);
        vec![Action::Say(FromGuest::Started {
            pid: self.terms.pid,
            uptime_ms: now_ms,
        })]
    }

    fn refused(&mut self, code: i32, message: String) -> Vec<Action> {
        let State::Starting(_) = self.state else {
            return Vec::new();
        };
        self.state = State::Refused { code };
        vec![Action::Say(FromGuest::SetupFailed {
            stage: "program".to_owned(),
            message,
        })]
    }

    fn stop(&mut self, now_ms: u64) -> Vec<Action> {
        let asked = Stop::Asked {
            kill_at_ms: now_ms.saturating_add(self.terms.stop_grace_ms),
        };
        match self.state {
            State::Starting(Stop::No) => self.state = State::Starting(asked),
            State::Running(Stop::No) => self.state = State::Running(asked),
            // Asked before, or ending anyway.
            State::Starting(Stop::Asked { .. } | Stop::Killed)
            | State::Running(Stop::Asked { .. } | Stop::Killed)
            | State::Refused { .. }
            | State::Draining { .. }
            | State::Done(_) => return Vec::new(),
        }
        vec![Action::SignalProgram(self.terms.stop_signal)]
    }

    fn ended(&mut self, now_ms: u64, ending: Ending) -> Vec<Action> {
        let ending = match self.state {
            State::Starting(_) | State::Running(_) => ending,
            State::Refused { code } => Ending { code, signal: None },
            State::Draining { .. } | State::Done(_) => return Vec::new(),
        };
        self.state = State::Draining {
            ending,
            until_ms: now_ms.saturating_add(DRAIN_MS),
        };
        // The container is its program: what that left behind goes with it. The host has to know that there is
        // nothing left to kill, only to wait for.
        vec![Action::KillAll, Action::Say(FromGuest::Settling)]
    }

    fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        if self.deadline_ms().is_none_or(|deadline| now_ms < deadline) {
            return Vec::new();
        }
        match self.state {
            State::Starting(_) => self.state = State::Starting(Stop::Killed),
            State::Running(_) => self.state = State::Running(Stop::Killed),
            State::Draining { ending, .. } => {
                self.state = State::Done(ending);
                return Vec::new();
            }
            State::Refused { .. } | State::Done(_) => return Vec::new(),
        }
        vec![Action::KillAll]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Ending = Ending {
        code: 0,
        signal: None,
    };
    const KILLED: Ending = Ending {
        code: 137,
        signal: Some(9),
    };

    fn life() -> Life {
        Life::new(Terms {
            pid: 42,
            stop_signal: 15,
            stop_grace_ms: 3000,
        })
    }

    #[test]
    fn a_program_that_ends_by_itself_drains_and_is_done() {
        let mut life = life();
        let started = Action::Say(FromGuest::Started {
            pid: 42,
            uptime_ms: 7,
        });
        assert_eq!(life.step(7, Event::Executed), [started]);
        let settling = Action::Say(FromGuest::Settling);
        let ended = life.step(8, Event::Ended(FINE));
        assert_eq!(ended, [Action::KillAll, settling]);
        assert_eq!(life.deadline_ms(), Some(8 + DRAIN_MS));
        assert_eq!(life.step(9, Event::OutputsClosed), []);
        assert_eq!(life.state(), State::Done(FINE));
    }

    #[test]
    fn stopping_sends_the_stop_signal_once_and_kills_after_the_grace_period() {
        let mut life = life();
        life.step(0, Event::Executed);
        assert_eq!(life.step(100, Event::Stop), [Action::SignalProgram(15)]);
        assert_eq!(life.step(200, Event::Stop), []);
        assert_eq!(life.step(3099, Event::Tick), []);
        assert_eq!(life.step(3100, Event::Tick), [Action::KillAll]);
        assert_eq!(life.deadline_ms(), None);
        life.step(3101, Event::Ended(KILLED));
        life.step(3102, Event::OutputsClosed);
        assert_eq!(life.state(), State::Done(KILLED));
    }

    #[test]
    fn a_stop_before_the_program_is_executed_is_not_lost() {
        let mut life = life();
        assert_eq!(life.step(1, Event::Stop), [Action::SignalProgram(15)]);
        life.step(2, Event::Executed);
        assert_eq!(life.deadline_ms(), Some(3001));
    }

    #[test]
    fn a_program_that_cannot_be_executed_ends_with_the_code_that_says_so() {
        let mut life = life();
        let said = life.step(
            1,
            Event::Refused {
                code: 127,
                message: "not found".to_owned(),
            },
        );
        assert!(matches!(
            &said[..],
            [Action::Say(FromGuest::SetupFailed { .. })]
        ));
        life.step(
            2,
            Event::Ended(Ending {
                code: 1,
                signal: None,
            }),
        );
        life.step(3, Event::OutputsClosed);
        assert_eq!(
            life.state(),
            State::Done(Ending {
                code: 127,
                signal: None
            })
        );
    }

    #[test]
    fn a_host_that_reads_no_output_does_not_keep_the_machine_alive() {
        let mut life = life();
        life.step(0, Event::Executed);
        life.step(5, Event::Ended(FINE));
        assert_eq!(life.step(5 + DRAIN_MS, Event::Tick), []);
        assert_eq!(life.state(), State::Done(FINE));
    }

    #[test]
    fn signals_reach_the_program_only_while_it_lives() {
        let mut life = life();
        life.step(0, Event::Executed);
        assert_eq!(
            life.step(1, Event::Signal { number: 1 }),
            [Action::SignalProgram(1)]
        );
        life.step(2, Event::Ended(FINE));
        assert_eq!(life.step(3, Event::Signal { number: 1 }), []);
    }

    #[test]
    fn an_endless_grace_period_does_not_overflow() {
        let mut life = Life::new(Terms {
            pid: 1,
            stop_signal: 15,
            stop_grace_ms: u64::MAX,
        });
        life.step(5, Event::Stop);
        assert_eq!(life.deadline_ms(), Some(u64::MAX));
    }
}
