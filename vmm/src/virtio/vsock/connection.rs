//! One connection of the guest to a port of the host: credit, half-close and what is to be said next,
//! pure.
//!
//! Owns: the counters of both directions and the bytes on their way to the guest.
//! Refuses: more data than there was credit for. What the bytes mean is the port's.

use super::packet::{Header, NO_RECEIVE, NO_SEND, op};

/// Receive buffer that we announce: what a guest may send before it is handed on.
pub(crate) const BUFFER_BYTES: u32 = 64 << 10;
/// Credit is announced unasked when this much has been handed on since it was last known.
const ANNOUNCE_AFTER: u32 = BUFFER_BYTES / 2;

/// What ends a connection at once: the guest gets a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reset;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest has asked for it, and the host has not answered.
    Wanted,
    /// The host has asked for it, and the guest has not answered.
    Offered,
    /// The guest sends.
    Open,
    /// The guest has said its last byte; some may not be handed on yet.
    HalfClosed,
    /// We have said that we neither send nor receive; the guest's reset ends it.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    /// The guest has said that it will not read, too.
    deaf: bool,
    /// Bytes of the guest, in all, and those handed on, modulo 2^32.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    announced: u32,
    /// The guest's own buffer, and its `forwarded`.
    peer_buffer: u32,
    peer_forwarded: u32,
    sent: u32,
    request: bool,
    respond: bool,
    credit_asked: bool,
    /// We send nothing more once `outgoing` is empty.
    ended: bool,
    /// Flags of a shutdown that is to be said once `outgoing` is empty.
    shutdown: u32,
    outgoing: Vec<u8>,
}

/// What to send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Speech {
    pub(crate) operation: u16,
    pub(crate) flags: u32,
    pub(crate) data: Vec<u8>,
}

impl Connection {
    /// From the guest's request, which is granted.
    pub(crate) fn new(request: &Header) -> Self {
        let mut connection = Self::wanted(request);
        connection.grant();
        connection
    }

    /// To a port of the guest, which is asked.
    pub(crate) fn to_guest() -> Self {
        Self {
            phase: Phase::Offered,
            request: true,
            ..Self::wanted(&Header::default())
        }
    }

    /// From the guest's request, which waits for an answer.
    pub(crate) fn wanted(request: &Header) -> Self {
        Self {
            phase: Phase::Wanted,
            deaf: false,
            received: 0,
            forwarded: 0,
            announced: 0,
            peer_buffer: request.buffer,
            peer_forwarded: request.forwarded,
            sent: 0,
            request: false,
            respond: false,
            credit_asked: false,
            ended: false,
            shutdown: 0,
            outgoing: Vec::new(),
        }
    }

    /// The host's answer to the guest's request.
    pub(crate) fn grant(&mut self) {
        self.phase = Phase::Open;
        self.respond = true;
    }

    /// The guest's answer to ours. One that was not asked for ends the connection.
    pub(crate) fn granted(&mut self) -> Result<(), Reset> {
        if self.phase != Phase::Offered || self.request {
            return Err(Reset);
        }
        self.phase = Phase::Open;
        Ok(())
    }

    /// Whether the host has yet to answer the guest.
    pub(crate) fn waits(&self) -> bool {
        self.phase == Phase::Wanted
    }

    /// Whether both sides have agreed to it.
    fn agreed(&self) -> bool {
        !matches!(self.phase, Phase::Wanted | Phase::Offered)
    }

    /// Any packet of the guest tells how much it has read.
    pub(crate) fn heard(&mut self, header: &Header) {
        self.peer_buffer = header.buffer;
        self.peer_forwarded = header.forwarded;
    }

    /// Takes `length` bytes of the guest into account.
    pub(crate) fn receive(&mut self, length: u32) -> Result<(), Reset> {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = held
            .checked_add(length)
            .is_some_and(|held| held <= BUFFER_BYTES);
        if self.phase != Phase::Open || !fits {
            return Err(Reset);
        }
        self.received = self.received.wrapping_add(length);
        Ok(())
    }

    /// `length` bytes of those received are no longer ours to hold.
    pub(crate) fn forward(&mut self, length: u32) {
        self.forwarded = self.forwarded.wrapping_add(length);
    }

    pub(crate) fn ask_credit(&mut self) {
        self.credit_asked = true;
    }

    pub(crate) fn guest_shutdown(&mut self, flags: u32) -> Result<(), Reset> {
        if !self.agreed() {
            return Err(Reset);
        }
        self.deaf |= flags & NO_RECEIVE != 0;
        if self.deaf {
            self.outgoing.clear();
        }
        if flags & NO_SEND != 0 && self.phase == Phase::Open {
            self.phase = Phase::HalfClosed;
        }
        Ok(())
    }

    /// Whether the guest has said its last byte and we have not closed yet.
    pub(crate) fn half_closed(&self) -> bool {
        self.phase == Phase::HalfClosed
    }

    /// Everything is handed on: close from our side. True where the connection is over now, since
    /// the guest reads no more either.
    pub(crate) fn close(&mut self) -> bool {
        self.phase = Phase::Closed;
        self.shutdown = if self.deaf { 0 } else { NO_RECEIVE | NO_SEND };
        self.deaf
    }

    /// We send nothing after what waits: the guest hears it, and may go on.
    pub(crate) fn end(&mut self) {
        if !self.ended && !self.deaf {
            self.shutdown |= NO_SEND;
        }
        self.ended = true;
    }

    /// Whether the guest reads what it is sent.
    pub(crate) fn reads(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::HalfClosed) && !self.deaf && !self.ended
    }

    /// Whether all is said that will be, or nobody would read it.
    pub(crate) fn said_all(&self) -> bool {
        self.deaf || (self.ended && self.outgoing.is_empty())
    }

    /// Whether bytes for the guest would be read.
    pub(crate) fn open_to_guest(&self) -> bool {
        self.phase == Phase::Open && !self.deaf
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// Bytes that wait for room in the guest.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    fn credit(&self) -> u32 {
        self.peer_buffer
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    pub(crate) fn wants_to_speak(&self) -> bool {
        let data = !self.outgoing.is_empty() && self.credit() > 0;
        let last = self.shutdown != 0 && self.outgoing.is_empty();
        self.request || self.respond || last || data || self.credit_due()
    }

    fn credit_due(&self) -> bool {
        self.credit_asked || self.forwarded.wrapping_sub(self.announced) >= ANNOUNCE_AFTER
    }

    /// The next packet, with at most `room` bytes of data.
    pub(crate) fn speak(&mut self, room: usize) -> Option<Speech> {
        let say = |operation, flags| {
            Some(Speech {
                operation,
                flags,
                data: Vec::new(),
            })
        };
        if std::mem::take(&mut self.request) {
            return say(op::REQUEST, 0);
        }
        if std::mem::take(&mut self.respond) {
            return say(op::RESPONSE, 0);
        }
        let credit = usize::try_from(self.credit()).expect("64-bit only");
        let count = self.outgoing.len().min(credit).min(room);
        if count > 0 {
            let data: Vec<u8> = self.outgoing.drain(..count).collect();
            self.sent = self
                .sent
                .wrapping_add(u32::try_from(count).expect("credit is 32 bits"));
            return Some(Speech {
                operation: op::DATA,
                flags: 0,
                data,
            });
        }
        if self.shutdown != 0 && self.outgoing.is_empty() {
            let flags = std::mem::take(&mut self.shutdown);
            return say(op::SHUTDOWN, flags);
        }
        if self.credit_due() {
            self.credit_asked = false;
            return say(op::CREDIT_UPDATE, 0);
        }
        None
    }

    /// Fills in our credit, which from now on the guest knows.
    pub(crate) fn announce(&mut self, header: &mut Header) {
        header.buffer = BUFFER_BYTES;
        header.forwarded = self.forwarded;
        self.announced = self.forwarded;
        self.credit_asked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(buffer: u32) -> Connection {
        let mut connection = Connection::new(&Header {
            buffer,
            ..Header::default()
        });
        assert_eq!(connection.speak(0).map(|s| s.operation), Some(op::RESPONSE));
        connection
    }

    #[test]
    fn a_guest_that_sends_beyond_its_credit_is_reset() {
        let mut c = connection(0);
        assert_eq!(c.receive(BUFFER_BYTES), Ok(()));
        assert_eq!(c.receive(1), Err(Reset));
        c.forward(10);
        assert_eq!(c.receive(10), Ok(()));
        assert_eq!(c.receive(u32::MAX), Err(Reset));
    }

    #[test]
    fn credit_is_announced_when_half_the_buffer_is_free_again_or_when_asked_for() {
        let mut c = connection(0);
        c.receive(ANNOUNCE_AFTER).expect("credit");
        c.forward(ANNOUNCE_AFTER - 1);
        assert!(!c.wants_to_speak());
        c.forward(1);
        assert_eq!(c.speak(0).map(|s| s.operation), Some(op::CREDIT_UPDATE));
        let mut header = Header::default();
        c.announce(&mut header);
        assert_eq!(
            (header.forwarded, header.buffer),
            (ANNOUNCE_AFTER, BUFFER_BYTES)
        );
        assert!(!c.wants_to_speak());
        c.ask_credit();
        assert!(c.wants_to_speak());
    }

    #[test]
    fn we_send_no_more_than_the_guest_has_room_for() {
        let mut c = connection(8);
        c.send(b"0123456789");
        assert_eq!(c.speak(5).expect("credit").data, b"01234");
        assert_eq!(c.speak(50).expect("credit").data, b"567");
        assert!(!c.wants_to_speak() && c.speak(50).is_none());
        c.heard(&Header {
            buffer: 8,
            forwarded: 8,
            ..Header::default()
        });
        assert_eq!(c.speak(50).expect("credit").data, b"89");
    }

    #[test]
    fn a_guest_that_lies_about_what_it_has_read_gets_no_more_than_its_buffer_or_nothing() {
        let mut c = connection(8);
        c.send(b"0123456789");
        c.heard(&Header {
            buffer: 8,
            forwarded: 100,
            ..Header::default()
        });
        assert!(c.speak(50).is_none());
    }

    #[test]
    fn after_half_close_we_say_what_is_left_and_then_shut_down() {
        let mut c = connection(100);
        c.send(b"bye");
        c.guest_shutdown(NO_SEND).expect("agreed");
        assert!(c.half_closed());
        assert_eq!(c.receive(1), Err(Reset));
        assert!(!c.close());
        assert_eq!(c.speak(9).expect("data").data, b"bye");
        let last = c.speak(9).expect("shutdown");
        assert_eq!((last.operation, last.flags), (op::SHUTDOWN, 3));
        assert!(!c.wants_to_speak());
    }

    #[test]
    fn what_the_host_asks_for_begins_with_the_guests_answer() {
        let mut c = Connection::to_guest();
        assert_eq!(c.granted(), Err(Reset), "nobody has asked yet");
        assert_eq!(c.speak(9).map(|s| s.operation), Some(op::REQUEST));
        assert!(!c.reads() && c.receive(1) == Err(Reset) && c.guest_shutdown(3) == Err(Reset));
        assert_eq!(c.granted(), Ok(()));
        assert!(c.reads());
        assert_eq!(c.granted(), Err(Reset), "twice");
    }

    #[test]
    fn what_the_guest_asks_for_begins_with_the_hosts_answer() {
        let mut c = Connection::wanted(&Header::default());
        assert!(c.waits() && !c.wants_to_speak() && c.receive(1) == Err(Reset));
        assert_eq!(c.granted(), Err(Reset), "the guest does not answer itself");
        c.grant();
        assert_eq!(c.speak(9).map(|s| s.operation), Some(op::RESPONSE));
        assert_eq!(c.receive(1), Ok(()));
    }

    #[test]
    fn the_hosts_end_is_said_once_behind_its_last_byte_and_the_guest_may_go_on() {
        let mut c = connection(4);
        c.send(b"last word");
        c.end();
        c.end();
        assert!(!c.reads() && !c.said_all());
        assert_eq!(c.speak(9).expect("credit").data, b"last");
        assert!(!c.wants_to_speak(), "no credit");
        c.heard(&Header {
            buffer: 100,
            forwarded: 4,
            ..Header::default()
        });
        assert_eq!(c.speak(9).expect("credit").data, b" word");
        let end = c.speak(9).expect("an end");
        assert_eq!((end.operation, end.flags), (op::SHUTDOWN, NO_SEND));
        assert!(c.said_all() && !c.wants_to_speak() && c.receive(5) == Ok(()));
    }

    #[test]
    fn a_guest_that_neither_reads_nor_sends_is_gone_once_all_is_handed_on() {
        let mut c = connection(100);
        c.send(b"nobody reads this");
        c.guest_shutdown(NO_SEND | NO_RECEIVE).expect("agreed");
        assert!(c.close());
        assert_eq!(c.unsent(), 0);
    }
}
