//! What is asked of a VM for the sake of its volumes, and who waits for the answers.
//!
//! Owns: one question at a time to each VM and its guest, with the time that its answer may take.
//! Refuses: belief. An answer is a guest's word about its own file system, and no file of ours depends on it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use types::guest::{FromGuest, HOLD_MAX_MS, ToGuest};
use types::vm::ToVmm;

use crate::packets::Packets;

/// Longest that a VMM takes to tell its guest of a disk's new size.
const RESIZE_MAX: Duration = Duration::from_secs(10);
/// Longest that a guest takes to have its file system span a larger disk: it writes the tables of each new 128 MiB.
const GROW_MAX: Duration = Duration::from_secs(120);
/// Longest wait for a guest to write a volume out. It holds still for [`HOLD_MAX_MS`] at most, and the copy comes after.
const HOLD_MAX: Duration = Duration::from_millis(HOLD_MAX_MS / 2);
/// Longest part of a guest's refusal that is shown.
const WHY_MAX: usize = 256;

/// What came of a question; the error is its refusal.
type Outcome = Result<u64, String>;

/// Which answer is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    Resized,
    Grown(String),
    Held(String),
}

#[derive(Debug, Default)]
pub(crate) struct Errands {
    waiting: RefCell<Vec<(Want, oneshot::Sender<Outcome>)>>,
    /// Answers that may come. Shared with who reads them.
    open: Rc<Cell<u32>>,
}

impl Errands {
    /// `owed`: answers that an earlier agent may have asked for.
    pub(crate) fn new(owed: u32) -> Self {
        Self {
            waiting: RefCell::default(),
            open: Rc::new(Cell::new(owed)),
        }
    }

    pub(crate) fn open(&self) -> Rc<Cell<u32>> {
        self.open.clone()
    }

    pub(crate) fn done(&self) {
        self.answer(&Want::Resized, Ok(0));
    }

    /// Whether anybody had asked for what was refused.
    pub(crate) fn refused(&self, message: &str) -> bool {
        self.answer(&Want::Resized, Err(shown(message)))
    }

    pub(crate) fn hear(&self, message: FromGuest) {
        let outcome = |bytes, refused: Option<String>| match refused {
            None => Ok(bytes),
            Some(why) => Err(shown(&why)),
        };
        match message {
            FromGuest::Grown {
                serial,
                bytes,
                refused,
            } => self.answer(&Want::Grown(serial), outcome(bytes, refused)),
            FromGuest::Held { serial, refused } => {
                self.answer(&Want::Held(serial), outcome(0, refused))
            }
            FromGuest::Started { .. }
            | FromGuest::SetupFailed { .. }
            | FromGuest::Settling
            | FromGuest::Restored { .. }
            | FromGuest::Frozen { .. }
            | FromGuest::Exited { .. } => false,
        };
    }

    fn answer(&self, want: &Want, outcome: Outcome) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let Some(at) = waiting.iter().position(|(wanted, _)| wanted == want) else {
            return false;
        };
        let (_, asker) = waiting.remove(at);
        // It may have given up.
        let _ = asker.send(outcome);
        true
    }

    /// The VM has gone: nobody answers any more.
    pub(crate) fn clear(&self) {
        self.waiting.borrow_mut().clear();
    }
}

/// A VM that can be spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) control: Rc<Packets>,
    pub(crate) errands: Rc<Errands>,
    pub(crate) pid: Option<i32>,
}

impl Line {
    async fn ask(&self, message: ToVmm, want: Want, limit: Duration) -> Outcome {
        let (asker, answer) = oneshot::channel();
        self.errands.waiting.borrow_mut().push((want, asker));
        let open = &self.errands.open;
        open.set(open.get().saturating_add(1));
        let sent = self.control.send(&message, Vec::new());
        sent.map_err(|error| format!("its VMM cannot be asked: {error}"))?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("its machine has ended".to_owned()),
            Err(_) => Err(format!(
                "its machine did not answer within {} s",
                limit.as_secs()
            )),
        }
    }

    /// Tells the VMM that a disk's file is longer now; the guest's kernel hears of it.
    pub(crate) async fn resize(&self, disk: &str, bytes: u64) -> Result<(), String> {
        if let Some(pid) = self.pid {
            sys::process::allow_file_bytes(pid, bytes)
                .map_err(|error| format!("its VMM may not write so far: {error}"))?;
        }
        let disk = disk.to_owned();
        let asked = self.ask(ToVmm::Resize { disk, bytes }, Want::Resized, RESIZE_MAX);
        asked.await.map(drop)
    }

    /// Has the guest's file system span its disk.
    pub(crate) async fn grow(&self, serial: &str, bytes: u64) -> Result<(), String> {
        let want = Want::Grown(serial.to_owned());
        let serial = serial.to_owned();
        let message = ToVmm::Guest(ToGuest::Grow { serial, bytes });
        self.ask(message, want, GROW_MAX).await.map(drop)
    }

    /// Has the guest write its file system out and hold it still.
    pub(crate) async fn hold(&self, serial: &str) -> Result<(), String> {
        let want = Want::Held(serial.to_owned());
        let serial = serial.to_owned();
        let message = ToVmm::Guest(ToGuest::Hold { serial });
        self.ask(message, want, HOLD_MAX).await.map(drop)
    }

    pub(crate) fn release(&self, serial: &str) {
        let serial = serial.to_owned();
        let message = ToVmm::Guest(ToGuest::Release { serial });
        if let Err(error) = self.control.send(&message, Vec::new()) {
            // It lets go by itself.
            log::info!("tell a guest to go on with its volume: {error}");
        }
    }
}

/// A guest's words, safe to print: short, and without control characters.
fn shown(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(WHY_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(serial: &str, refused: Option<&str>) -> FromGuest {
        FromGuest::Held {
            serial: serial.to_owned(),
            refused: refused.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn an_answer_comes_to_who_asked_for_it_and_a_refusal_is_short() {
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        let line = Line {
            control: Rc::new(Packets::new(ours, 4096).expect("packets")),
            errands: Rc::new(Errands::new(0)),
            pid: None,
        };
        let errands = line.errands.clone();
        let (first, ()) = tokio::join!(line.hold("vol0"), async {
            tokio::task::yield_now().await;
            assert_eq!(errands.open().get(), 1);
            errands.hear(held("vol1", None));
            errands.hear(held("vol0", Some(&"x\n".repeat(400))));
        });
        assert_eq!(first.map_err(|why| why.len()), Err(WHY_MAX));
        let (second, ()) = tokio::join!(line.hold("vol0"), async {
            tokio::task::yield_now().await;
            errands.clear();
        });
        assert_eq!(second, Err("its machine has ended".to_owned()));
        assert!(!errands.refused("nobody asked"));
        drop(theirs);
        assert!(line.resize("vol0", 5).await.is_err());
    }
}
