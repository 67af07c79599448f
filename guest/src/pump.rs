//! One output stream of the program on its way to the host.
//!
//! Owns: a pipe's reading end, one bounded buffer, and the stream socket it goes to.
//! Refuses: reading on while the host does not take what was read: the program then waits in `write`,
//! as it would before a slow terminal.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::control::half_close;

/// What is read and sent at once. Below 32 KiB the guest kernel lays a vsock packet out in one piece,
/// which every device implementation takes (linux/virtio_vsock.h, `virtio_vsock_alloc_skb`).
const BUFFER_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Pump {
    pipe: OwnedFd,
    socket: OwnedFd,
    buffer: Box<[u8]>,
    /// What of the buffer has not been handed over.
    unsent: std::ops::Range<usize>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The host takes no more. The program must not notice: what it writes is read and dropped.
    Deaf,
    /// The pipe has ended; the buffer may still hold something.
    Ended,
    /// Nothing more comes, and the host has been told.
    Closed,
}

impl Pump {
    /// Both descriptors must be non-blocking.
    pub(crate) fn new(pipe: OwnedFd, socket: OwnedFd) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            pipe,
            socket,
            buffer,
            unsent: 0..0,
            state: State::Open,
        }
    }

    /// What to poll before [`Pump::advance`] is worth calling; `None` once closed.
    pub(crate) fn interest(&self) -> Option<PollFd<'_>> {
        match self.state {
            State::Closed => None,
            State::Open | State::Ended if !self.unsent.is_empty() => {
                Some(PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT))
            }
            State::Open | State::Deaf | State::Ended => {
                Some(PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN))
            }
        }
    }

    pub(crate) fn closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Moves one buffer as far as it goes without waiting.
    pub(crate) fn advance(&mut self) {
        if self.unsent.is_empty() && matches!(self.state, State::Open | State::Deaf) {
            self.fill();
        }
        if !self.unsent.is_empty() {
            self.empty();
        }
        if self.state == State::Ended && self.unsent.is_empty() {
            half_close(self.socket.as_fd());
            self.state = State::Closed;
        }
    }

    fn fill(&mut self) {
        match nix::unistd::read(&self.pipe, &mut self.buffer) {
            Ok(0) => self.state = State::Ended,
            Ok(read) => self.unsent = 0..read,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.state = State::Ended,
        }
    }

    fn empty(&mut self) {
        if self.state == State::Deaf {
            self.unsent = 0..0;
            return;
        }
        match nix::unistd::write(&self.socket, &self.buffer[self.unsent.clone()]) {
            Ok(written) => self.unsent.start += written,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The machine is restored: the loop brings another socket before it looks here again.
            Err(Errno::ECONNRESET | Errno::ENOTCONN) => {}
            Err(_) => {
                self.unsent = 0..0;
                if self.state == State::Open {
                    self.state = State::Deaf;
                }
            }
        }
    }

    /// Goes on to another socket. What the one before had taken may be lost.
    pub(crate) fn redirect(&mut self, socket: OwnedFd) {
        self.socket = socket;
        self.state = match self.state {
            State::Open | State::Deaf => State::Open,
            // Closed again, once this one has the rest.
            State::Ended | State::Closed => State::Ended,
        };
    }

    /// The socket, half-closed whether or not everything was sent.
    pub(crate) fn into_socket(self) -> OwnedFd {
        if self.state != State::Closed {
            half_close(self.socket.as_fd());
        }
        self.socket
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pump() -> (Pump, std::io::PipeWriter, UnixStream) {
        let (read, write) = std::io::pipe().expect("a pipe");
        let (ours, host) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        sys::socket::set_nonblocking(&read).expect("non-blocking");
        (Pump::new(read.into(), ours.into()), write, host)
    }

    #[test]
    fn output_arrives_whole_and_then_ends() {
        let (mut pump, mut program, mut host) = pump();
        program.write_all(b"hello").expect("write");
        pump.advance();
        program.write_all(b" world").expect("write");
        drop(program);
        while !pump.closed() {
            pump.advance();
        }
        let mut text = String::new();
        host.read_to_string(&mut text).expect("the stream ends");
        assert_eq!(text, "hello world");
    }

    #[test]
    fn a_host_that_does_not_read_holds_the_program_and_loses_nothing() {
        let (mut pump, mut program, mut host) = pump();
        sys::socket::set_nonblocking(&program).expect("non-blocking");
        let mut written = 0;
        let mut stuck = 0;
        while stuck < 3 {
            match program.write(&[7; 4096]) {
                Ok(n) => (written, stuck) = (written + n, 0),
                Err(_) => stuck += 1,
            }
            pump.advance();
        }
        assert!(written > BUFFER_BYTES && pump.interest().is_some());
        drop(program);
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).expect("the stream ends");
            bytes.len()
        });
        while let Some(interest) = pump.interest() {
            nix::poll::poll(&mut [interest], nix::poll::PollTimeout::NONE).expect("poll");
            pump.advance();
        }
        assert_eq!(reader.join().expect("no panic"), written);
    }

    #[test]
    fn another_socket_gets_what_the_first_did_not_take() {
        let (mut pump, mut program, host) = pump();
        drop(host);
        program.write_all(b"lost").expect("write");
        pump.advance();
        for ended in [false, true, true] {
            program.write_all(b"kept").expect("write");
            let (ours, mut host) = UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("non-blocking");
            pump.redirect(ours.into());
            if ended {
                let (none, write) = std::io::pipe().expect("a pipe");
                drop(none);
                program = write;
            }
            pump.advance();
            if !ended {
                let mut bytes = [0; 4];
                host.read_exact(&mut bytes).expect("bytes");
                assert_eq!(&bytes, b"kept");
            } else {
                pump.advance();
                assert!(pump.closed());
                host.read_to_end(&mut Vec::new()).expect("it ends");
                return;
            }
        }
    }

    #[test]
    fn a_program_does_not_notice_a_host_that_is_gone() {
        let (mut pump, mut program, host) = pump();
        drop(host);
        for _ in 0..64 {
            program
                .write_all(&[7; 32 << 10])
                .expect("never blocks, never fails");
            pump.advance();
            pump.advance();
        }
        drop(program);
        pump.advance();
        assert!(pump.closed());
    }
}
