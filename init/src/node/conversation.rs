//! What a VMM says in its life, and how much of it is heard.
//!
//! Owns: reading a control socket, and the bounds on what comes from it: a VMM speaks for a guest, and may
//! have been taken over by one.
//! Refuses: understanding (`host` does). One that breaks the contract again and again is to be ended.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};
use types::VmId;
use types::guest::FromGuest;
use types::vm::FromVmm;

use super::host::Message;
use crate::packets::Packets;

/// Packets taken before others get their turn.
const PACKETS_PER_TURN: usize = 32;
/// Packets outside the contract in one life. A few show a mistake of ours in the node's log, more an
/// attacker's patience.
const BREACHES_MAX: u32 = 8;
/// Failed chunks that are passed on in one life. The owner knows by then, and hears it of the chunk
/// daemon too.
const CHUNK_REPORTS_MAX: u32 = 256;
/// Refusals that are logged in one life: a guest that reads none of its lines gets few.
const REFUSALS_MAX: u32 = 16;

/// What is said at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Once {
    Running,
    GuestInit,
    Started,
    SetupFailed,
    Settling,
    Restored,
    Frozen,
    Exited,
    Panicked,
    Stopped,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// Enough of this has been heard.
    Drop,
    /// Outside the contract.
    Breach,
    /// Outside the contract, once too often.
    Over,
}

/// Questions without an answer.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// For its numbers.
    pub(crate) questions: Rc<Cell<u32>>,
    /// For the sake of its volumes.
    pub(crate) errands: Rc<Cell<u32>>,
}

/// The life of one VMM as far as it was heard, pure.
#[derive(Debug, Default)]
struct Conversation {
    said: BTreeSet<Once>,
    chunks: u32,
    refusals: u32,
    breaches: u32,
    open: Open,
    /// Answers that an earlier agent may have asked for.
    owed: u32,
}

impl Conversation {
    fn judge(&mut self, message: &FromVmm) -> Verdict {
        let once = match message {
            FromVmm::Running { .. } => Once::Running,
            FromVmm::GuestInit { .. } => Once::GuestInit,
            FromVmm::Guest(FromGuest::Started { .. }) => Once::Started,
            FromVmm::Guest(FromGuest::SetupFailed { .. }) => Once::SetupFailed,
            FromVmm::Guest(FromGuest::Settling) => Once::Settling,
            FromVmm::Guest(FromGuest::Restored { .. }) => Once::Restored,
            // Nobody here asks for it.
            FromVmm::Guest(FromGuest::Frozen { .. }) => Once::Frozen,
            FromVmm::Guest(FromGuest::Exited { .. }) => Once::Exited,
            FromVmm::Panicked { .. } => Once::Panicked,
            FromVmm::Stopped { .. } => Once::Stopped,
            FromVmm::ChunkFailed { .. } if self.chunks < CHUNK_REPORTS_MAX => {
                self.chunks += 1;
                return Verdict::Pass;
            }
            FromVmm::ChunkFailed { .. } => return Verdict::Drop,
            // A line that its guest did not take; other answers come to who asked, and this agent does not.
            FromVmm::Refused { .. } if self.refusals < REFUSALS_MAX => {
                self.refusals += 1;
                return Verdict::Pass;
            }
            FromVmm::Refused { .. } => return Verdict::Drop,
            FromVmm::Metrics(_) => return self.judge_answer(),
            FromVmm::Done { .. }
            | FromVmm::Guest(FromGuest::Grown { .. } | FromGuest::Held { .. }) => {
                return self.judge_errand();
            }
        };
        if self.said.insert(once) {
            Verdict::Pass
        } else {
            self.breach()
        }
    }

    /// An answer comes for a question.
    fn judge_answer(&mut self) -> Verdict {
        if let Some(open) = self.open.questions.get().checked_sub(1) {
            self.open.questions.set(open);
            return Verdict::Pass;
        }
        match self.owed.checked_sub(1) {
            Some(owed) => {
                self.owed = owed;
                Verdict::Drop
            }
            None => self.breach(),
        }
    }

    /// An errand's answer comes for an errand; whose, `errands` knows.
    fn judge_errand(&mut self) -> Verdict {
        let open = &self.open.errands;
        match open.get().checked_sub(1) {
            Some(left) => {
                open.set(left);
                Verdict::Pass
            }
            None => self.breach(),
        }
    }

    fn breach(&mut self) -> Verdict {
        self.breaches += 1;
        if self.breaches < BREACHES_MAX {
            Verdict::Breach
        } else {
            Verdict::Over
        }
    }
}

/// Passes on what a VMM says until its socket is closed, or it has broken the contract too often. A packet is
/// taken from the socket only when it has been noted: pid1 keeps the socket, and if this agent dies first, the
/// next one finds the packet there. Each may be heard twice that way, by two agents. `open`: questions that have
/// been asked; `owed`: answers that an earlier agent may have asked for.
pub(crate) async fn listen(
    vm: VmId,
    attempt: u64,
    control: Rc<Packets>,
    messages: mpsc::Sender<Message>,
    open: Open,
    owed: u32,
) {
    let mut conversation = Conversation {
        open,
        owed,
        ..Conversation::default()
    };
    for turn in 1usize.. {
        if turn.is_multiple_of(PACKETS_PER_TURN) {
            tokio::task::yield_now().await;
        }
        // Both are safe to drop.
        let seen = tokio::select! {
            seen = control.peek::<FromVmm>() => seen,
            Err(error) = control.serve() => Err(error),
        };
        let (verdict, heard) = match seen {
            Ok(Some(Ok(message))) => (conversation.judge(&message), Ok(message)),
            Ok(Some(Err(error))) => (conversation.breach(), Err(error)),
            Ok(None) => break,
            Err(error) => {
                log::info!("the control socket of {vm} broke: {error}");
                break;
            }
        };
        match (verdict, heard) {
            (Verdict::Pass, Ok(message)) => {
                let (noted, is_noted) = oneshot::channel();
                let message = Message::FromVmm {
                    vm: vm.clone(),
                    attempt,
                    message,
                    noted,
                };
                // Fails only when the loop has ended.
                if messages.send(message).await.is_err() {
                    return;
                }
                let _ = is_noted.await;
            }
            (Verdict::Over, _) => {
                let vm = vm.clone();
                let _ = messages.send(Message::Misbehaved { vm, attempt }).await;
                break;
            }
            (Verdict::Breach, Ok(message)) => {
                log::warn!("{vm} says twice what is said once: {message:?}");
            }
            (Verdict::Breach, Err(error)) => log::warn!("{vm} says what no VMM says: {error}"),
            (Verdict::Drop | Verdict::Pass, _) => {}
        }
        if let Err(error) = control.skip() {
            log::info!("the control socket of {vm} broke: {error}");
            break;
        }
    }
    let _ = messages.send(Message::ControlClosed { vm, attempt }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: FromVmm = FromVmm::Running { setup_us: 1 };

    #[test]
    fn what_is_said_once_counts_against_a_vmm_that_says_it_again() {
        let mut conversation = Conversation::default();
        let started = FromVmm::Guest(FromGuest::Started {
            pid: 2,
            uptime_ms: 5,
        });
        assert_eq!(conversation.judge(&RUNNING), Verdict::Pass);
        assert_eq!(conversation.judge(&started), Verdict::Pass);
        let verdicts: Vec<_> = (0..BREACHES_MAX)
            .map(|_| conversation.judge(&started))
            .collect();
        let (last, before) = verdicts.split_last().expect("some");
        assert!(before.iter().all(|v| *v == Verdict::Breach));
        assert_eq!(*last, Verdict::Over);
    }

    #[test]
    fn an_answer_needs_a_question() {
        let answer = FromVmm::Metrics(Box::default());
        let open = Rc::new(Cell::new(1));
        let mut conversation = Conversation {
            open: Open {
                questions: open.clone(),
                ..Open::default()
            },
            owed: 1,
            ..Conversation::default()
        };
        let verdicts = [(); 3].map(|()| conversation.judge(&answer));
        assert_eq!(verdicts, [Verdict::Pass, Verdict::Drop, Verdict::Breach]);
        open.set(1);
        assert_eq!(conversation.judge(&answer), Verdict::Pass);
    }

    #[test]
    fn failed_chunks_are_heard_so_often_and_are_no_breach() {
        let mut conversation = Conversation::default();
        let failed = |chunk| FromVmm::ChunkFailed {
            disk: "image".to_owned(),
            chunk,
        };
        for chunk in 0..CHUNK_REPORTS_MAX {
            assert_eq!(conversation.judge(&failed(chunk)), Verdict::Pass);
        }
        assert_eq!(conversation.judge(&failed(0)), Verdict::Drop);
        assert_eq!(conversation.judge(&RUNNING), Verdict::Pass);
    }
}
