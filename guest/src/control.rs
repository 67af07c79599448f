//! The control stream's lines, and the three connections to the host.
//!
//! Owns: connecting by vsock, cutting the byte stream into messages, writing one with a deadline.
//! Refuses: acting on a message; lines over the contract's limit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, VsockAddr};
use sys::error::During;
use types::guest::{
    CONTROL_LINE_MAX, CONTROL_PORT, FromGuest, HOST_CID, STDERR_PORT, STDOUT_PORT, ToGuest,
};

use crate::error::Result;

/// How long one line may take to leave: the host reads control before anything else.
const WRITE_MS: u64 = 5_000;
/// How long the host may take to close the streams once everything is said.
const FAREWELL_MS: u64 = 5_000;
/// Longest text of a failure, in characters: escaped and with its stage it fits one line whatever it holds
/// (six bytes a character at most, as `\u001b`).
const MESSAGE_CHARS_MAX: usize = 600;

/// The three streams to the host.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) control: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Streams {
    pub(crate) fn connect() -> Result<Self> {
        Ok(Self {
            control: connect(CONTROL_PORT)?,
            stdout: connect(STDOUT_PORT)?,
            stderr: connect(STDERR_PORT)?,
        })
    }

    /// Half-closes what is still open and waits until the host has closed its side of all three.
    pub(crate) fn farewell(self) {
        let deadline_ms = now_ms().saturating_add(FAREWELL_MS);
        half_close(self.control.as_fd());
        for stream in [self.stdout, self.stderr, self.control] {
            half_close(stream.as_fd());
            while wait(stream.as_fd(), PollFlags::POLLIN, deadline_ms) {
                // What the host still says is too late to act on.
                match nix::unistd::read(&stream, &mut [0; 512]) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// A stream socket to a port of the host; non-blocking once connected.
fn connect(port: u32) -> Result<OwnedFd> {
    let during = || format!("connect to the host on vsock port {port}");
    let kind = (
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
    );
    let socket = nix::sys::socket::socket(kind.0, kind.1, kind.2, None).during(during)?;
    let host = u32::try_from(HOST_CID).expect("the host's address is a small constant");
    nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(host, port)).during(during)?;
    sys::socket::set_nonblocking(&socket).during(during)?;
    Ok(socket)
}

/// Tells the host that nothing more comes. A stream that is gone already is as good.
pub(crate) fn half_close(stream: BorrowedFd<'_>) {
    let _gone = nix::sys::socket::shutdown(stream.as_raw_fd(), Shutdown::Write);
}

/// Writes one message. An error means that the host does not listen any more.
pub(crate) fn say(control: BorrowedFd<'_>, message: &FromGuest) -> io::Result<()> {
    let deadline_ms = now_ms().saturating_add(WRITE_MS);
    let line = line(message);
    let mut rest = &line[..];
    while !rest.is_empty() {
        match nix::unistd::write(control, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if wait(control, PollFlags::POLLOUT, deadline_ms) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether `events` (or an error) came before the deadline.
fn wait(fd: BorrowedFd<'_>, events: PollFlags, deadline_ms: u64) -> bool {
    loop {
        let left = timeout(now_ms(), Some(deadline_ms));
        match nix::poll::poll(&mut [PollFd::new(fd, events)], left) {
            Ok(0) if now_ms() >= deadline_ms => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// How long `poll` may wait; longer deadlines are waited for in pieces.
pub(crate) fn timeout(now_ms: u64, deadline_ms: Option<u64>) -> PollTimeout {
    match deadline_ms {
        None => PollTimeout::NONE,
        // One more, as the clock is read in whole milliseconds, rounded down.
        Some(at) => PollTimeout::try_from(at.saturating_sub(now_ms).saturating_add(1))
            .unwrap_or(PollTimeout::MAX),
    }
}

/// Milliseconds since the kernel started.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

/// Short enough for a line.
fn short(why: &Option<String>) -> Option<String> {
    let cut = |why: &String| why.chars().take(MESSAGE_CHARS_MAX).collect();
    why.as_ref().map(cut)
}

fn line(message: &FromGuest) -> Vec<u8> {
    let message = match message {
        FromGuest::SetupFailed { stage, message } => {
            let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
            FromGuest::SetupFailed {
                stage: stage.clone(),
                message,
            }
        }
        FromGuest::Frozen { refused } => FromGuest::Frozen {
            refused: short(refused),
        },
        FromGuest::Grown {
            serial,
            bytes,
            refused,
        } => FromGuest::Grown {
            serial: serial.clone(),
            bytes: *bytes,
            refused: short(refused),
        },
        FromGuest::Held { serial, refused } => FromGuest::Held {
            serial: serial.clone(),
            refused: short(refused),
        },
        FromGuest::Started { .. }
        | FromGuest::Settling
        | FromGuest::Restored { .. }
        | FromGuest::Exited { .. } => message.clone(),
    };
    let mut line = serde_json::to_vec(&message).expect("plain data without maps always serialises");
    line.push(b'\n');
    line
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("a control line is longer than {CONTROL_LINE_MAX} bytes")]
    TooLong,
    #[error("a control line is no message")]
    Message(#[source] serde_json::Error),
}

/// Cuts a byte stream into messages, holding at most one unfinished line.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> std::result::Result<Vec<ToGuest>, ControlError> {
        let mut messages = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                messages.push(serde_json::from_slice(&self.0).map_err(ControlError::Message)?);
                self.0.clear();
            } else if self.0.len() + 1 < CONTROL_LINE_MAX {
                self.0.push(byte);
            } else {
                return Err(ControlError::TooLong);
            }
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let bytes = b"\"stop\"\n{\"signal\":{\"number\":10}}\n";
        let expected = [ToGuest::Stop, ToGuest::Signal { number: 10 }];
        for size in 1..bytes.len() {
            let mut lines = Lines::default();
            let pieces = bytes
                .chunks(size)
                .map(|piece| lines.push(piece).expect("messages"));
            assert_eq!(pieces.flatten().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut lines = Lines::default();
        assert!(
            lines
                .push(&[b' '; CONTROL_LINE_MAX - 1])
                .expect("not yet")
                .is_empty()
        );
        assert!(matches!(lines.push(b" "), Err(ControlError::TooLong)));
        assert!(matches!(
            Lines::default().push(b"nonsense\n"),
            Err(ControlError::Message(_))
        ));
    }

    #[test]
    fn every_message_fits_a_line() {
        let message = "\u{1b}".repeat(100_000);
        let line = line(&FromGuest::SetupFailed {
            stage: "network".to_owned(),
            message,
        });
        assert!(line.len() <= CONTROL_LINE_MAX, "{}", line.len());
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[test]
    fn the_farewell_ends_as_soon_as_the_host_has_closed() {
        let pair = || std::os::unix::net::UnixStream::pair().expect("a pair");
        let (a, b, c) = (pair(), pair(), pair());
        let host = std::thread::spawn(move || {
            for mut stream in [a.0, b.0, c.0] {
                io::Write::write_all(&mut stream, b"late words").expect("written");
                io::Read::read_to_end(&mut stream, &mut Vec::new()).expect("half-closed");
            }
        });
        let before_ms = now_ms();
        Streams {
            control: a.1.into(),
            stdout: b.1.into(),
            stderr: c.1.into(),
        }
        .farewell();
        assert!(now_ms() - before_ms < FAREWELL_MS);
        host.join().expect("every stream was half-closed");
    }

    #[test]
    fn deadlines_are_never_waited_for_too_briefly() {
        assert_eq!(timeout(10, Some(15)), PollTimeout::from(6u8));
        assert_eq!(timeout(15, Some(10)), PollTimeout::from(1u8));
        assert_eq!(timeout(0, Some(u64::MAX)), PollTimeout::MAX);
        assert_eq!(timeout(0, None), PollTimeout::NONE);
    }
}
