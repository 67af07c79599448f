//! What a person types, on its way to a guest's terminal.
//!
//! Owns: the raw mode of standard input while a machine has it, restored whatever happens, and the escape.
//! Refuses: to hold more than one read of input that the guest does not take.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Ctrl-A: what follows is for the front end.
const ESCAPE: u8 = 0x01;
/// Bytes read at a time: more than anybody types.
const INPUT_BYTES: usize = 4096;

/// Standard input. Only a terminal's has a raw mode and an escape.
#[derive(Debug)]
pub(super) struct Input {
    stdin: io::Stdin,
    before: Option<Termios>,
    escaped: bool,
    /// Read, and not yet taken by the guest.
    waiting: Vec<u8>,
    ended: bool,
}

/// What a key means to the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typed {
    Nothing,
    Stop,
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Where the terminal has gone there is nothing to restore.
            let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, before);
        }
    }
}

impl Input {
    pub(super) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let mut before = None;
        if stdin.is_terminal() {
            let now = tcgetattr(&stdin)?;
            let mut raw = now.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
            before = Some(now);
        }
        Ok(Self {
            stdin,
            before,
            escaped: false,
            waiting: Vec::new(),
            ended: false,
        })
    }

    /// Where input comes from, while the guest takes it.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        let wanted = !self.ended && self.waiting.is_empty();
        wanted.then(|| self.stdin.as_fd())
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what was typed and hands it on.
    pub(super) fn read(&mut self, to: &mut UnixStream) -> Typed {
        let mut bytes = [0; INPUT_BYTES];
        // Past the standard library's buffer, whose content no poll would tell of.
        let count = match nix::unistd::read(&self.stdin, &mut bytes) {
            Ok(count) => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return Typed::Nothing,
            Err(_) => 0,
        };
        self.ended = count == 0;
        let typed = if self.before.is_some() {
            self.understand(&bytes[..count])
        } else {
            self.waiting.extend_from_slice(&bytes[..count]);
            Typed::Nothing
        };
        self.push(to);
        typed
    }

    /// Ctrl-A x stops, Ctrl-A Ctrl-A is a Ctrl-A, Ctrl-A and anything else is nothing.
    fn understand(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::Nothing;
        for byte in bytes {
            match (self.escaped, *byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) => self.waiting.push(byte),
                (true, byte) => {
                    self.escaped = false;
                    match byte {
                        b'x' => typed = Typed::Stop,
                        ESCAPE => self.waiting.push(ESCAPE),
                        _ => {}
                    }
                }
            }
        }
        typed
    }

    /// Hands on what waits, as far as there is room.
    pub(super) fn push(&mut self, to: &mut UnixStream) {
        match to.write(&self.waiting) {
            Ok(count) => {
                self.waiting.drain(..count);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The machine has closed its end.
            Err(_) => self.waiting.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> Input {
        Input {
            stdin: io::stdin(),
            before: None,
            escaped: false,
            waiting: Vec::new(),
            ended: false,
        }
    }

    #[test]
    fn the_escape_is_the_front_ends_wherever_reads_are_cut() {
        let mut input = input();
        assert_eq!(input.understand(b"ls\r\x01"), Typed::Nothing);
        assert_eq!(input.understand(b"x"), Typed::Stop);
        assert_eq!(input.understand(b"\x01\x01x\x01yz\x03"), Typed::Nothing);
        assert_eq!(input.waiting, b"ls\r\x01xz\x03");
    }

    #[test]
    fn what_the_guest_does_not_take_waits_and_no_more_is_read() {
        let (mut ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("a flag of every socket");
        let mut input = input();
        assert!(input.source().is_some());
        while !input.waits() {
            input.waiting.extend_from_slice(&[b'x'; INPUT_BYTES]);
            input.push(&mut ours);
        }
        assert!(input.source().is_none());
        drop(theirs);
        input.push(&mut ours);
        assert!(!input.waits());
    }
}
