//! Signals as data: blocked, then read from a descriptor; and kill.
//!
//! Owns: the mask and the signalfd. Refuses: handlers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;
pub use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{During, Result};

/// A non-blocking source of the signals it was made for; they reach the process in no other way.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks `signals` in this thread (call it before any other thread exists) and reads them here.
    pub fn take(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()
            .during(|| format!("block signals {signals:?}"))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Self)
            .during(|| "make a signalfd".to_owned())
    }

    /// The next pending signal.
    pub fn next(&self) -> Result<Option<Signal>> {
        let info = self
            .0
            .read_signal()
            .during(|| "read the signalfd".to_owned())?;
        Ok(info
            .and_then(|i| i32::try_from(i.ssi_signo).ok())
            .and_then(|n| Signal::try_from(n).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends signal number `signal` to the process behind a pidfd: it cannot hit another that took its number.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes integers and a null pointer only, which the kernel reads as "no siginfo";
    // `pidfd` is borrowed and so open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    let result = if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    };
    result.during(|| format!("send signal {signal}"))
}

/// Sends a signal to every process but this one. Only pid1 may mean it.
pub fn send_all(signal: Signal) -> Result<()> {
    let everyone = nix::unistd::Pid::from_raw(-1);
    match nix::sys::signal::kill(everyone, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).during(|| format!("send {signal} to all processes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_signal_is_read_not_delivered() {
        let signals = Signals::take(&[Signal::SIGUSR1]).expect("a signalfd");
        assert_eq!(signals.next().expect("read"), None);
        // Thread-directed, as other threads of the test process have not blocked it.
        nix::sys::signal::raise(Signal::SIGUSR1).expect("a signal");
        assert_eq!(signals.next().expect("read"), Some(Signal::SIGUSR1));
    }
}
