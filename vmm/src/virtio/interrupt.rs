//! The interrupt of one device: its line and its status register.
//!
//! Owns: which causes are pending. Lock-free: the guest reads the register on every interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A used buffer has been added to a ring.
pub(crate) const USED_BUFFER: u32 = 1;
/// Configuration or device status has changed.
pub(crate) const CONFIGURATION: u32 = 2;

#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    status: AtomicU32,
    /// Causes that are there whatever the driver acknowledges: another than us signals the line.
    standing: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    pub(crate) fn new(line: EventFd) -> Self {
        Self {
            shared: Arc::new(Shared {
                status: AtomicU32::new(0),
                standing: AtomicU32::new(0),
                line,
            }),
        }
    }

    pub(crate) fn line(&self) -> &EventFd {
        &self.shared.line
    }

    /// Marks the cause, then signals: the guest finds the cause when it looks.
    pub(crate) fn raise(&self, cause: u32) {
        self.shared.status.fetch_or(cause, Ordering::SeqCst);
        // An event counter overflows only after 2^64 signals that KVM did not take.
        let _ = self.shared.line.write(1);
    }

    pub(crate) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst) | self.shared.standing.load(Ordering::SeqCst)
    }

    /// From now on these causes are always there, and no others always.
    pub(crate) fn stand(&self, causes: u32) {
        self.shared.standing.store(causes, Ordering::SeqCst);
    }

    pub(crate) fn acknowledge(&self, causes: u32) {
        self.shared.status.fetch_and(!causes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_cause_is_there_until_it_is_taken_back() {
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).expect("eventfd"));
        interrupt.stand(USED_BUFFER);
        interrupt.raise(CONFIGURATION);
        interrupt.acknowledge(u32::MAX);
        assert_eq!(interrupt.status(), USED_BUFFER);
        interrupt.stand(0);
        assert_eq!(interrupt.status(), 0);
    }
}
