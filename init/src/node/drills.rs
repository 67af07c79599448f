//! Drills that pid1 has been asked for.
//!
//! Owns: who waits for which, and when the answer is due: after the end of a VMM shows in its status, so
//! that who waits for the machine next does not find it running as if nothing had been.
//! Refuses: killing (pid1 does).

use tokio::sync::oneshot;
use types::VmId;

use crate::wire::Victim;

/// Told the number of the killed process; `None` where there was none.
pub(crate) type DrillReply = oneshot::Sender<Option<i32>>;

/// One for each request that waits; the server bounds those.
#[derive(Debug, Default)]
pub(crate) struct Drills(Vec<Drill>);

#[derive(Debug)]
struct Drill {
    victim: Victim,
    reply: DrillReply,
    /// What pid1 said.
    over: Option<Option<i32>>,
}

impl Drills {
    pub(crate) fn begin(&mut self, victim: Victim, reply: DrillReply) {
        let over = None;
        self.0.push(Drill {
            victim,
            reply,
            over,
        });
    }

    /// pid1 has answered. Two who wanted the same end both had it.
    pub(crate) fn over(&mut self, victim: &Victim, pid: Option<i32>) {
        let open = |drill: &&mut Drill| drill.victim == *victim && drill.over.is_none();
        self.0
            .iter_mut()
            .filter(open)
            .for_each(|drill| drill.over = Some(pid));
    }

    /// Answers all that are due.
    pub(crate) fn answer(&mut self, is_ending: impl Fn(&VmId) -> bool) {
        let due = |drill: &mut Drill| {
            let ending = match &drill.victim {
                Victim::Machine { vm } => is_ending(vm),
                Victim::Node | Victim::Chunks | Victim::Ingress => false,
            };
            drill.over.is_some() && !ending
        };
        for drill in self.0.extract_if(.., due) {
            // A client that has gone away misses its answer.
            let _ = drill.reply.send(drill.over.flatten());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_answered_when_the_end_of_its_machine_shows() {
        let mut drills = Drills::default();
        let vm: VmId = "a".parse().expect("a valid id");
        let victim = Victim::Machine { vm };
        let ((one, mut first), (two, mut second)) = (oneshot::channel(), oneshot::channel());
        drills.begin(victim.clone(), one);
        drills.begin(Victim::Chunks, two);
        drills.answer(|_| false);
        drills.over(&victim, Some(7));
        drills.answer(|_| true);
        assert!(first.try_recv().is_err(), "its last words are being read");
        drills.answer(|_| false);
        assert_eq!(first.try_recv(), Ok(Some(7)));
        drills.over(&Victim::Chunks, None);
        drills.answer(|_| true);
        assert_eq!(second.try_recv(), Ok(None));
    }
}
