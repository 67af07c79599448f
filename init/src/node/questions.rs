//! Who waits for the numbers of one VMM.
//!
//! Owns: that a VMM is asked one question at a time, and how many wait for its answer.
//! Refuses: waiting (who asks has the clock); answers that nobody asked for are a breach (`conversation`).

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::sync::oneshot;
use types::metrics::Machine;

/// Most who wait for one answer. A scraper asks once in some seconds, and who has gone is forgotten.
const WAITING_MAX: usize = 16;
/// Most queues of a machine that are believed: every device we know with more queues than vCPUs. A VMM may
/// have been taken over by its guest.
const QUEUES_MAX: usize = 256;
/// Longest name of a device: a serial has 20 characters.
const NAME_MAX: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: Vec<oneshot::Sender<Machine>>,
    /// Questions without an answer: none or one. Shared with who reads the answers.
    open: Rc<Cell<u32>>,
}

impl Questions {
    pub(crate) fn open(&self) -> Rc<Cell<u32>> {
        self.open.clone()
    }

    /// Asks, where no answer is on its way. `None`: too many wait, or nothing can be asked.
    pub(crate) fn ask(
        &mut self,
        send: impl FnOnce() -> io::Result<()>,
    ) -> Option<oneshot::Receiver<Machine>> {
        self.waiting.retain(|asker| !asker.is_closed());
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        if self.open.get() == 0 {
            send().ok()?;
            self.open.set(1);
        }
        let (asker, answer) = oneshot::channel();
        self.waiting.push(asker);
        Some(answer)
    }

    /// Gives the answer to all who wait. One that no VMM of ours gives is dropped.
    pub(crate) fn answer(&mut self, machine: &Machine) {
        let waiting = std::mem::take(&mut self.waiting);
        if !is_sane(machine) {
            return;
        }
        for asker in waiting {
            // It may have gone.
            let _ = asker.send(machine.clone());
        }
    }
}

fn is_sane(machine: &Machine) -> bool {
    let queues: usize = machine.devices.iter().map(|d| d.queues.len().max(1)).sum();
    queues <= QUEUES_MAX && machine.devices.iter().all(|d| d.name.len() <= NAME_MAX)
}

#[cfg(test)]
mod tests {
    use types::metrics::{Device, Kind};

    use super::*;

    #[test]
    fn many_askers_are_one_question_and_all_get_its_answer() {
        let mut questions = Questions::default();
        let mut sent = 0;
        let mut ask = |questions: &mut Questions| {
            questions.ask(|| {
                sent += 1;
                Ok(())
            })
        };
        let mut answers: Vec<_> = (0..WAITING_MAX)
            .map(|_| ask(&mut questions).expect("a place"))
            .collect();
        assert!(ask(&mut questions).is_none(), "one too many");
        drop(answers.pop());
        answers.push(ask(&mut questions).expect("the place of one that went"));
        assert_eq!(sent, 1);
        questions.answer(&Machine::default());
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_ok()));
    }

    #[test]
    fn what_cannot_be_asked_has_no_answer() {
        let mut questions = Questions::default();
        let broken = || Err(io::ErrorKind::BrokenPipe.into());
        assert!(questions.ask(broken).is_none());
        assert_eq!(questions.open().get(), 0);
    }

    #[test]
    fn an_answer_without_bounds_is_no_answer() {
        let device = |name: &str| Device {
            kind: Kind::Rng,
            name: name.to_owned(),
            stops: 0,
            queues: Vec::new(),
        };
        for devices in [
            vec![device("x"); QUEUES_MAX + 1],
            vec![device(&"x".repeat(99))],
        ] {
            let mut questions = Questions::default();
            let mut answer = questions.ask(|| Ok(())).expect("asked");
            questions.answer(&Machine {
                devices,
                ..Machine::default()
            });
            assert!(answer.try_recv().is_err());
        }
    }
}
