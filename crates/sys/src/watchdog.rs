//! The hardware watchdog.
//!
//! Owns: its ioctls and the magic close. Refuses: deciding when the machine is well.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::error::{During, Result};

// linux/watchdog.h
nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);
nix::ioctl_read!(wdioc_gettimeout, b'W', 7, libc::c_int);
nix::ioctl_read!(wdioc_getbootstatus, b'W', 2, libc::c_int);
/// The card has reset the machine: a flag of the boot's status.
const WDIOF_CARDRESET: libc::c_int = 0x20;

/// An armed watchdog: the machine resets when it is not fed in time, or when it is dropped unread of
/// [`Watchdog::disarm`].
#[derive(Debug)]
pub struct Watchdog {
    file: File,
    timeout: Duration,
}

impl Watchdog {
    /// Opening arms it. The driver may round `timeout`, or know only its own.
    pub fn open(path: &Path, timeout: Duration) -> Result<Self> {
        let during = || format!("open watchdog {}", path.display());
        let file = File::options().write(true).open(path).during(during)?;
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the ioctl reads and writes one int, which lives until it returns.
        let set = unsafe { wdioc_settimeout(file.as_raw_fd(), &raw mut seconds) };
        if set.is_err() {
            // SAFETY: the ioctl writes one int, which lives until it returns.
            unsafe { wdioc_gettimeout(file.as_raw_fd(), &raw mut seconds) }.during(during)?;
        }
        let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
        Ok(Self { file, timeout })
    }

    /// What the driver took.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether it ended the boot before this one. Not every driver knows: those say that it did not.
    pub fn has_bitten(&self) -> bool {
        let mut status = 0;
        // SAFETY: the ioctl writes one int, which lives until it returns.
        let asked = unsafe { wdioc_getbootstatus(self.file.as_raw_fd(), &raw mut status) };
        asked.is_ok() && status & WDIOF_CARDRESET != 0
    }

    pub fn feed(&self) -> Result<()> {
        (&self.file)
            .write_all(b"\0")
            .during(|| "feed the watchdog".to_owned())
    }

    /// Magic close: the machine may go on without being fed.
    pub fn disarm(self) -> Result<()> {
        (&self.file)
            .write_all(b"V")
            .during(|| "disarm the watchdog".to_owned())
    }
}
