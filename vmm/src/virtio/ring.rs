//! One active queue, as a device uses it.
//!
//! Owns: taking chains, returning them, and telling the driver only when it wants to be told.
//! Refuses: to go on after the driver has broken the ring.

use std::io::Error as IoError;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::Turn;
use super::chain::{Chain, ChainError};
use super::interrupt::{Interrupt, USED_BUFFER};
use crate::memory::GuestRam;

/// Most requests of one turn: other devices, registers and the end of the machine come in between.
const TURN_MAX: usize = 256;

/// The driver broke the rules: its device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("bad ring: {0}")]
    Ring(virtio_queue::Error),
    #[error("bad chain: {0}")]
    Chain(#[from] ChainError),
    #[error("bad request: {0}")]
    Request(&'static str),
    /// Not the driver's doing, but as final.
    #[error("{0}: {1}")]
    Host(&'static str, IoError),
}

impl From<virtio_queue::Error> for Violation {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

pub(crate) struct Ring<'a> {
    queue: &'a mut Queue,
    ram: &'a GuestRam,
    interrupt: &'a Interrupt,
    /// Buffers were returned since the driver was last told.
    returned: bool,
}

impl<'a> Ring<'a> {
    pub(crate) fn new(queue: &'a mut Queue, ram: &'a GuestRam, interrupt: &'a Interrupt) -> Self {
        Self {
            queue,
            ram,
            interrupt,
            returned: false,
        }
    }

    pub(crate) fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// The next request. A queue that the driver has not set up has none.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Violation> {
        if !self.queue.ready() {
            return Ok(None);
        }
        match self.queue.iter(self.ram)?.next() {
            Some(chain) => Ok(Some(Chain::read(self.ram, chain)?)),
            None => Ok(None),
        }
    }

    /// Gives a chain back, `written` bytes of it filled.
    pub(crate) fn complete(&mut self, head: u16, written: u32) -> Result<(), Violation> {
        self.queue.add_used(self.ram, head, written)?;
        self.returned = true;
        Ok(())
    }

    /// Interrupts the driver if buffers were returned and it asked for that.
    pub(crate) fn notify(&mut self) -> Result<(), Violation> {
        if std::mem::take(&mut self.returned) && self.queue.needs_notification(self.ram)? {
            self.interrupt.raise(USED_BUFFER);
        }
        Ok(())
    }

    /// Hands every waiting request to `each`, those that arrive meanwhile too, up to a turn's share.
    pub(crate) fn drain(
        &mut self,
        mut each: impl FnMut(&mut Self, Chain) -> Result<(), Violation>,
    ) -> Result<Turn, Violation> {
        let mut share = TURN_MAX;
        loop {
            self.disarm()?;
            while let Some(chain) = self.pop()? {
                each(self, chain)?;
                share -= 1;
                if share == 0 {
                    self.notify()?;
                    return Ok(Turn::Again);
                }
            }
            self.notify()?;
            if !self.arm()? {
                return Ok(Turn::Done);
            }
        }
    }

    /// Asks not to be told of new requests while we look at the ring anyway.
    pub(crate) fn disarm(&mut self) -> Result<(), Violation> {
        if self.queue.ready() {
            self.queue.disable_notification(self.ram)?;
        }
        Ok(())
    }

    /// Asks to be told of new requests. True: there are some already, look again.
    pub(crate) fn arm(&mut self) -> Result<bool, Violation> {
        Ok(self.queue.ready() && self.queue.enable_notification(self.ram)?)
    }
}
