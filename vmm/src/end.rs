//! How a machine ends: the first reason to stop is the reason.
//!
//! Owns: the reason, and the signal that there is one. Refuses: a second opinion.

use std::io;
use std::sync::Mutex;

use types::vm::StopReason;
use vmm_sys_util::eventfd::EventFd;

pub(crate) struct End {
    reason: Mutex<Option<StopReason>>,
    /// Readable once somebody has said a reason.
    pub(crate) event: EventFd,
}

impl End {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    pub(crate) fn say(&self, reason: StopReason) {
        self.reason
            .lock()
            .expect("no panic while locked")
            .get_or_insert(reason);
        // Counters of events overflow only after 2^64 signals.
        let _ = self.event.write(1);
    }

    pub(crate) fn said(&self) -> Option<StopReason> {
        self.reason.lock().expect("no panic while locked").clone()
    }

    pub(crate) fn fault(&self, message: String) {
        self.say(StopReason::Fault { message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_the_reason() {
        let end = End::new().expect("an event counter");
        assert_eq!(end.said(), None);
        end.say(StopReason::Watchdog);
        end.fault("later".to_owned());
        assert_eq!(end.said(), Some(StopReason::Watchdog));
        assert!(end.event.read().is_ok());
    }
}
