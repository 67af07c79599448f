//! What stands behind the host's ports: the node for control lines, the log for output, or whoever a broker knows.
//!
//! Owns: lines in both directions and their bounds. Refuses: lines that are too long or not of the
//! contract; their connection is reset.

use std::sync::Arc;

use types::guest::{CONTROL_LINE_MAX, CONTROL_PORT, FromGuest, STDERR_PORT, STDOUT_PORT};
use types::vm::{FromVmm, LogRecord, Stream};

use crate::control::{Lines, Outbox};
use crate::event::Source;
use crate::log::SharedLog;

/// The ports of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    Control,
    Output(Stream),
    /// Of a program of the host.
    Forwarded(u32),
}

impl Port {
    /// Those that every guest may connect to.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            CONTROL_PORT => Some(Self::Control),
            STDOUT_PORT => Some(Self::Output(Stream::Stdout)),
            STDERR_PORT => Some(Self::Output(Stream::Stderr)),
            _ => None,
        }
    }

    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Control => CONTROL_PORT,
            Self::Output(Stream::Stdout) => STDOUT_PORT,
            Self::Output(Stream::Stderr) => STDERR_PORT,
            Self::Forwarded(number) => number,
        }
    }

    pub(crate) const fn is_forwarded(self) -> bool {
        matches!(self, Self::Forwarded(_))
    }
}

/// A line that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    #[error("control line is longer than {CONTROL_LINE_MAX} bytes")]
    Long,
    #[error("control line is no message of the contract")]
    Parse,
}

/// Takes the first whole line off `buffer`. Returns it with its length, newline included.
pub(crate) fn take_line(buffer: &mut Vec<u8>) -> Result<Option<(FromGuest, usize)>, LineError> {
    let end = buffer
        .iter()
        .take(CONTROL_LINE_MAX)
        .position(|b| *b == b'\n');
    let Some(end) = end else {
        return if buffer.len() < CONTROL_LINE_MAX {
            Ok(None)
        } else {
            Err(LineError::Long)
        };
    };
    let message = serde_json::from_slice(&buffer[..end]).map_err(|_| LineError::Parse)?;
    buffer.drain(..=end);
    Ok(Some((message, end + 1)))
}

/// The host's side of all ports.
#[derive(Debug)]
pub(crate) struct Host {
    outbox: Arc<Outbox>,
    lines: Arc<Lines>,
    /// A line of the node that the guest has no room for yet.
    pending: Option<Vec<u8>>,
    log: Option<SharedLog>,
}

impl Host {
    pub(crate) fn new(outbox: &Arc<Outbox>, lines: &Arc<Lines>, log: Option<SharedLog>) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            lines: Arc::clone(lines),
            pending: None,
            log,
        }
    }

    /// The guest has opened a connection. The first to the control port is its init's.
    pub(crate) fn connected(&self, port: Port) {
        self.outbox.life.connected();
        if port == Port::Control
            && let Some(us) = self.outbox.life.guest_init()
        {
            self.outbox.post(&FromVmm::GuestInit { us });
        }
    }

    pub(crate) fn refused(&self) {
        self.outbox.life.refused();
    }

    /// How many connections there are now.
    pub(crate) fn connections(&self, count: usize) {
        self.outbox.life.open(count);
    }

    /// Output of the program. Always taken.
    pub(crate) fn output(&self, stream: Stream, bytes: &[u8]) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock().expect("no panic while the log was locked");
        for record in bytes.chunks(LogRecord::LENGTH_MAX as usize) {
            log.append(stream, record);
        }
    }

    /// Hands whole lines to the node while it has room. Returns the bytes handed on.
    pub(crate) fn lines(&self, buffer: &mut Vec<u8>) -> Result<usize, LineError> {
        let mut taken = 0;
        while self.outbox.room() {
            let Some((message, length)) = take_line(buffer)? else {
                break;
            };
            self.outbox.post(&FromVmm::Guest(message));
            taken += length;
        }
        Ok(taken)
    }

    /// Whether everything that the guest said has reached the kernel.
    pub(crate) fn all_sent(&self) -> bool {
        self.outbox.empty()
    }

    /// Fires when the node can be told more.
    pub(crate) fn writable(&self) -> Option<Source> {
        self.outbox.writable()
    }

    /// Fires when there is a new line for the guest.
    pub(crate) fn source(&self) -> Source {
        self.lines.source()
    }

    /// The device looks at the lines now.
    pub(crate) fn seen(&self) {
        self.lines.seen();
    }

    /// The next line for the guest, if one has been heard.
    pub(crate) fn message(&mut self) -> Option<Vec<u8>> {
        self.pending.take()
    }

    /// Keeps the node's next line, if there is one. Whether there is.
    pub(crate) fn listen(&mut self) -> bool {
        if self.pending.is_none() {
            self.pending = self.lines.take();
        }
        self.pending.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXITED: &[u8] = b"{\"exited\":{\"code\":3,\"signal\":null,\"oom_kills\":0}}\n";

    #[test]
    fn lines_are_taken_one_by_one_and_half_a_line_waits() {
        let mut buffer = [EXITED, EXITED, &EXITED[..9]].concat();
        for _ in 0..2 {
            let (message, length) = take_line(&mut buffer).expect("contract").expect("a line");
            assert!(matches!(message, FromGuest::Exited { code: 3, .. }));
            assert_eq!(length, EXITED.len());
        }
        assert_eq!(take_line(&mut buffer), Ok(None));
        assert_eq!(buffer, &EXITED[..9]);
    }

    #[test]
    fn long_and_foreign_lines_are_refused() {
        assert_eq!(take_line(&mut vec![b' '; CONTROL_LINE_MAX - 1]), Ok(None));
        assert_eq!(
            take_line(&mut vec![b' '; CONTROL_LINE_MAX]),
            Err(LineError::Long)
        );
        assert_eq!(
            take_line(&mut b"{\"rm\":{}}\n".to_vec()),
            Err(LineError::Parse)
        );
        assert_eq!(take_line(&mut vec![0xff, b'\n']), Err(LineError::Parse));
    }

    #[test]
    fn ports_have_the_numbers_of_the_contract() {
        for number in 0..2000 {
            assert!(Port::from_number(number).is_none_or(|port| port.number() == number));
        }
        assert_eq!((1024..=1026).filter_map(Port::from_number).count(), 3);
    }
}
