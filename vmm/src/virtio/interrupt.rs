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
    line: EventFd,
}

impl Interrupt {
    pub(crate) fn new(line: EventFd) -> Self {
        Self {
            shared: Arc::new(Shared {
                status: AtomicU32::new(0),
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
        self.shared.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, causes: u32) {
        self.shared.status.fetch_and(!causes, Ordering::SeqCst);
    }
}
