//! The attacks.
//!
//! Owns: their table. Each leaves the devices in whatever state it likes.
//! Refuses: to judge. What the devices do afterwards is judged by `honest`, the rest by whoever runs this.

mod disk;
mod exits;
mod packets;
mod parts;
mod processors;
mod queues;
mod registers;
mod rings;
mod storm;

use crate::device::{DEVICES_MAX, Device, Queue};
use crate::random::Random;

/// How a machine under attack must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// All devices serve afterwards, and the guest resets the machine.
    Answers,
    /// The machine faults, for a reason that says this.
    Faults(&'static str),
    /// The attack destroys its own kernel: the guest still resets the machine, or faults.
    Either,
    /// It runs on for ever and does nothing.
    Hangs,
}

#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// What belongs together runs together.
    pub group: &'static str,
    pub name: &'static str,
    pub ends: Ends,
    pub(crate) run: fn(&mut Bench),
}

/// What an attack works with.
pub(crate) struct Bench {
    devices: [Device; DEVICES_MAX],
    count: usize,
    pub(crate) random: Random,
    /// Where the code for another processor is.
    trampoline: (u64, u64),
}

impl Bench {
    pub(crate) fn new(seed: u64, trampoline: (u64, u64)) -> Self {
        let (devices, count) = Device::find();
        let random = Random::new(seed);
        Self {
            devices,
            count,
            random,
            trampoline,
        }
    }

    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices[..self.count]
    }

    /// Devices with this number.
    fn of(&self, id: u32) -> impl Iterator<Item = Device> + use<> {
        // Slots without a device have number 0.
        self.devices
            .into_iter()
            .filter(move |device| device.id == id)
    }

    /// Every queue of every device, each started anew.
    fn each_queue(&mut self, mut attack: impl FnMut(&Device, Queue, &mut Random)) {
        for device in &self.devices[..self.count] {
            let Some(queues) = device.start() else {
                continue;
            };
            for index in 0..queues.list().len() {
                // Where another processor turns its registers meanwhile, a device has fewer queues than before.
                let queues = device.start().unwrap_or_default();
                if let Some(queue) = queues.list().get(index) {
                    attack(device, *queue, &mut self.random);
                }
            }
        }
    }
}

/// The group whose machines have two processors.
pub const TWO_PROCESSORS: &str = "processors";

pub(crate) use processors::second;

macro_rules! attacks {
    ($($group:literal { $($name:literal => $ends:expr, $run:expr;)* })*) => {
        &[$($(Attack { group: $group, name: $name, ends: $ends, run: $run },)*)*]
    };
}

pub const ATTACKS: &[Attack] = attacks! {
    "rings" {
        "loop" => Ends::Answers, rings::looping;
        "long-chain" => Ends::Answers, rings::long_chain;
        "outside-memory" => Ends::Answers, rings::outside_memory;
        "indirect" => Ends::Answers, rings::indirect;
        "zero-length" => Ends::Answers, rings::zero_length;
        "overlap" => Ends::Answers, rings::overlap;
        "bad-head" => Ends::Answers, rings::bad_head;
        "index-jump" => Ends::Answers, rings::index_jump;
        "wrong-order" => Ends::Answers, rings::wrong_order;
        "same-chain-again" => Ends::Answers, rings::same_chain_again;
        "over-own-rings" => Ends::Answers, rings::over_own_rings;
    }
    "queues" {
        "bad-place" => Ends::Answers, queues::bad_place;
        "bad-size" => Ends::Answers, queues::bad_size;
        "change-live" => Ends::Answers, queues::change_live;
        "reset-busy" => Ends::Answers, queues::reset_busy;
        "state-storm" => Ends::Answers, queues::state_storm;
        "notify-flood" => Ends::Answers, queues::notify_flood;
        "shared-rings" => Ends::Answers, queues::shared_rings;
    }
    "registers" {
        "every-size" => Ends::Answers, registers::every_size;
        "configuration" => Ends::Answers, registers::configuration;
        "between-devices" => Ends::Answers, registers::between_devices;
        "window" => Ends::Answers, registers::window;
        "waiting-writes" => Ends::Answers, registers::waiting_writes;
    }
    "devices" {
        "read-only-disk" => Ends::Answers, disk::read_only;
        "disk-requests" => Ends::Answers, disk::requests;
        "disk-ranges" => Ends::Answers, disk::ranges;
        "net-frames" => Ends::Answers, packets::frames;
        "net-buffers" => Ends::Answers, packets::buffers;
        "vsock-packets" => Ends::Answers, packets::vsock;
        "vsock-flood" => Ends::Answers, packets::vsock_flood;
        "rng-greed" => Ends::Answers, packets::rng_greed;
    }
    "exits" {
        "ports" => Ends::Answers, exits::ports;
        "port-strings" => Ends::Answers, exits::port_strings;
        "exit-flood" => Ends::Answers, exits::flood;
        "hypercalls" => Ends::Answers, exits::hypercalls;
        "console-flood" => Ends::Answers, exits::console_flood;
    }
    "ends" {
        "triple-fault" => Ends::Faults("triple fault"), |_| crate::cpu::triple_fault();
        "run-in-registers" => Ends::Faults(""), exits::run_in_registers;
        "run-in-nothing" => Ends::Faults(""), exits::run_in_nothing;
        "over-itself" => Ends::Either, rings::over_itself;
        "halt" => Ends::Hangs, |_| crate::cpu::halt();
    }
    "processors" {
        "registers-against-rings" => Ends::Answers, processors::registers_against_rings;
        "reset-against-rings" => Ends::Answers, processors::reset_against_rings;
        "same-registers" => Ends::Answers, processors::same_registers;
        "fault-of-one" => Ends::Faults("triple fault"), processors::fault_of_one;
    }
    "parts" {
        "clock" => Ends::Answers, parts::clock;
        "panic-port" => Ends::Faults("says that it has panicked"), parts::panic;
    }
    "random" {
        "storm" => Ends::Answers, storm::run;
    }
};
