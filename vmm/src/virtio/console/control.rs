//! What is said about the port on the control queues (VIRTIO 1.2 section 5.3.6.2), as state.
//!
//! ```text
//! Silent → (DEVICE_READY) → Adding → (PORT_READY) → Describing → Added
//! ```
//!
//! Owns: which message comes next. Each is said once, so that no driver, however often it asks, makes the list
//! longer. Refuses: ports other than 0, and messages that Linux' driver does not send.

use serde::{Deserialize, Serialize};
use types::vm::ConsoleKind;

use crate::virtio::Foreign;

/// Port, event, value.
pub(super) const MESSAGE_BYTES: usize = 8;
/// How the guest finds the port in sysfs.
const NAME: &[u8] = b"sifr.console";

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// There is a port.
    Add,
    /// It is a console.
    Terminal,
    Name,
    /// The host's end of it is open, or not any more.
    Open(bool),
}

impl Message {
    pub(super) fn encode(self) -> Vec<u8> {
        let (event, value, tail): (u16, u16, &[u8]) = match self {
            Self::Add => (PORT_ADD, 1, &[]),
            Self::Terminal => (CONSOLE_PORT, 1, &[]),
            Self::Name => (PORT_NAME, 1, NAME),
            Self::Open(open) => (PORT_OPEN, open.into(), &[]),
        };
        let mut out = Vec::with_capacity(MESSAGE_BYTES + tail.len());
        out.extend(0u32.to_le_bytes());
        out.extend(event.to_le_bytes());
        out.extend(value.to_le_bytes());
        out.extend(tail);
        out
    }
}

/// What the driver has agreed to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Ports,
}

/// How far the driver knows the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// No driver, or one that has not asked.
    Silent,
    /// It is to hear of the port.
    Adding,
    /// It has heard of it.
    Announced,
    /// It knows the port and is to hear what it is: the next message.
    Describing(Message),
    Added,
}

/// What a snapshot keeps of it. The host's end is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlState {
    stage: Stage,
    opened: bool,
    said_open: bool,
}

#[derive(Debug)]
pub(super) struct Control {
    kind: ConsoleKind,
    told: Told,
    stage: Stage,
    /// The guest has opened the port.
    opened: bool,
    /// The host's end is closed.
    closed: bool,
    /// What the driver knows of the host's end.
    said_open: bool,
}

impl Control {
    pub(super) fn new(kind: ConsoleKind) -> Self {
        Self {
            kind,
            told: Told::Nothing,
            stage: Stage::Silent,
            opened: false,
            closed: false,
            said_open: false,
        }
    }

    pub(super) fn begin(&mut self, told: Told) {
        self.told = told;
        self.opened = told == Told::Nothing;
    }

    pub(super) fn reset(&mut self) {
        (self.told, self.stage) = (Told::Nothing, Stage::Silent);
        (self.opened, self.said_open) = (false, false);
    }

    pub(super) fn kind(&self) -> ConsoleKind {
        self.kind
    }

    pub(super) fn save(&self) -> ControlState {
        ControlState {
            stage: self.stage,
            opened: self.opened,
            said_open: self.said_open,
        }
    }

    /// After `begin`.
    pub(super) fn restore(&mut self, state: ControlState) -> Result<(), Foreign> {
        if let Stage::Describing(Message::Add | Message::Open(_)) = state.stage {
            return Err(Foreign);
        }
        self.stage = state.stage;
        (self.opened, self.said_open) = (state.opened, state.said_open);
        Ok(())
    }

    /// Whether control queues are in use.
    pub(super) fn ports(&self) -> bool {
        self.told == Told::Ports
    }

    /// Whether input reaches somebody.
    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    /// The host's end is closed. Whether the driver is to hear of it.
    pub(super) fn hang_up(&mut self) -> bool {
        self.closed = true;
        self.ports() && self.next().is_some()
    }

    /// A message of the driver; a short one says nothing.
    pub(super) fn hear(&mut self, message: &[u8]) {
        let Ok(message) = <[u8; MESSAGE_BYTES]>::try_from(message) else {
            return;
        };
        let port = u32::from_le_bytes(message[..4].try_into().expect("4 bytes"));
        let [event, value] = [4, 6].map(|at| u16::from_le_bytes([message[at], message[at + 1]]));
        match (event, port, self.stage) {
            (DEVICE_READY, _, Stage::Silent) if value == 1 => self.stage = Stage::Adding,
            (PORT_READY, 0, Stage::Announced) if value == 1 => {
                self.stage = Stage::Describing(match self.kind {
                    ConsoleKind::Terminal => Message::Terminal,
                    ConsoleKind::Stream => Message::Name,
                });
            }
            (PORT_OPEN, 0, _) => self.opened = value == 1,
            _ => {}
        }
    }

    /// What is to be said next.
    pub(super) fn next(&self) -> Option<Message> {
        match self.stage {
            Stage::Adding => Some(Message::Add),
            Stage::Describing(message) => Some(message),
            Stage::Added if self.said_open == self.closed => Some(Message::Open(!self.closed)),
            Stage::Silent | Stage::Announced | Stage::Added => None,
        }
    }

    /// The message that [`Control::next`] gave is said.
    pub(super) fn said(&mut self, message: Message) {
        match message {
            Message::Add => self.stage = Stage::Announced,
            Message::Terminal => self.stage = Stage::Describing(Message::Name),
            Message::Name => self.stage = Stage::Added,
            Message::Open(open) => self.said_open = open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u16, port: u32, value: u16) -> Vec<u8> {
        let mut out = port.to_le_bytes().to_vec();
        out.extend(event.to_le_bytes());
        out.extend(value.to_le_bytes());
        out
    }

    /// All that is to be said now.
    fn drain(control: &mut Control) -> Vec<Message> {
        let mut out = Vec::new();
        while let Some(message) = control.next() {
            control.said(message);
            out.push(message);
        }
        out
    }

    #[test]
    fn each_message_is_said_once_however_often_the_driver_asks() {
        for (kind, described) in [
            (
                ConsoleKind::Stream,
                vec![Message::Name, Message::Open(true)],
            ),
            (
                ConsoleKind::Terminal,
                vec![Message::Terminal, Message::Name, Message::Open(true)],
            ),
        ] {
            let mut control = Control::new(kind);
            control.begin(Told::Ports);
            let mut said = Vec::new();
            for _ in 0..1000 {
                control.hear(&message(DEVICE_READY, u32::MAX, 1));
                said.extend(drain(&mut control));
            }
            assert_eq!(said, [Message::Add]);
            said.clear();
            for _ in 0..1000 {
                control.hear(&message(PORT_READY, 0, 1));
                said.extend(drain(&mut control));
            }
            assert_eq!(said, described);
        }
    }

    #[test]
    fn the_guest_opens_and_closes_and_the_host_hangs_up_once() {
        let mut control = Control::new(ConsoleKind::Stream);
        control.begin(Told::Ports);
        control.hear(&message(PORT_OPEN, 1, 1));
        control.hear(&message(PORT_OPEN, 0, 1)[..7]);
        assert!(!control.opened());
        control.hear(&message(PORT_OPEN, 0, 1));
        assert!(control.opened());
        control.hear(&message(PORT_OPEN, 0, 0));
        assert!(!control.opened());
        control.hear(&message(DEVICE_READY, 0, 1));
        drain(&mut control);
        control.hear(&message(PORT_READY, 0, 1));
        drain(&mut control);
        assert!(control.hang_up());
        assert_eq!(drain(&mut control), [Message::Open(false)]);
        assert!(!control.hang_up());
    }

    #[test]
    fn a_driver_that_knows_the_port_hears_in_a_restored_machine_only_what_has_changed() {
        let mut before = Control::new(ConsoleKind::Stream);
        before.begin(Told::Ports);
        for event in [DEVICE_READY, PORT_READY, PORT_OPEN] {
            before.hear(&message(event, 0, 1));
            drain(&mut before);
        }
        let restored = |state| {
            let mut after = Control::new(ConsoleKind::Stream);
            after.begin(Told::Ports);
            after.restore(state).map(|()| after)
        };
        let mut after = restored(before.save()).expect("its own state");
        assert!(after.opened() && drain(&mut after).is_empty());
        assert_eq!(after.save(), before.save());
        // The host's end was closed before the snapshot; now it is another.
        assert!(before.hang_up());
        drain(&mut before);
        let mut after = restored(before.save()).expect("its own state");
        assert_eq!(drain(&mut after), [Message::Open(true)]);
        let stage = Stage::Describing(Message::Open(true));
        let never = ControlState {
            stage,
            ..before.save()
        };
        assert_eq!(restored(never).expect_err("no such stage"), Foreign);
    }

    #[test]
    fn a_driver_without_ports_has_an_open_one() {
        let mut control = Control::new(ConsoleKind::Stream);
        control.begin(Told::Nothing);
        assert!(control.opened() && !control.ports() && !control.hang_up());
        control.reset();
        assert!(!control.opened());
    }

    #[test]
    fn a_name_follows_its_header() {
        assert_eq!(
            Message::Name.encode(),
            [message(7, 0, 1), NAME.to_vec()].concat()
        );
        assert_eq!(Message::Open(false).encode(), message(6, 0, 0));
    }
}
