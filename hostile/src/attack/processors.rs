//! Two processors on one device.
//!
//! Owns: starting the second one, what both do at once, and stopping it before anybody judges.
//! Refuses: an order between them: that is the point.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::Bench;
use crate::cpu;
use crate::device::{
    DRIVER_FEATURES, Device, PATIENCE, QUEUE_DESC, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, Queue,
    STATUS, WRITE, buffer, within,
};
use crate::memory::{TRAMPOLINE, place_trampoline, write};
use crate::random::Random;

/// The local APIC's command register, and what starts a processor (Intel SDM, volume 3, 11.4).
const COMMAND_HIGH: u64 = 0xfee0_0310;
const COMMAND_LOW: u64 = 0xfee0_0300;
/// The register that switches a local APIC on. KVM finds the other processors' only once one of them was.
const SPURIOUS: u64 = 0xfee0_00f0;
const ENABLED: u32 = 0x1ff;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// The second processor's APIC number.
const SECOND: u32 = 1;

/// What the second processor is to do.
const NOTHING: u32 = 0;
const REGISTERS: u32 = 1;
const RESETS: u32 = 2;
const FAULT: u32 = 3;

static TASK: AtomicU32 = AtomicU32::new(NOTHING);
/// It has begun, and it has stopped.
static BEGUN: AtomicU32 = AtomicU32::new(0);
static STOPPED: AtomicU32 = AtomicU32::new(0);

const ROUNDS: u32 = 8;

/// Runs `attack` while the second processor does `task`.
fn beside(bench: &mut Bench, task: u32, attack: impl Fn(&mut Bench)) {
    place_trampoline(bench.trampoline);
    TASK.store(task, SeqCst);
    write(SPURIOUS, ENABLED);
    let page = (TRAMPOLINE >> 12) as u32;
    for command in [INIT, STARTUP | page, STARTUP | page] {
        write(COMMAND_HIGH, SECOND << 24);
        write(COMMAND_LOW, command);
    }
    assert!(
        within(PATIENCE, || BEGUN.load(SeqCst) == 1),
        "the second processor does not begin"
    );
    attack(bench);
    TASK.store(NOTHING, SeqCst);
    assert!(
        within(PATIENCE, || STOPPED.load(SeqCst) == 1),
        "the second processor does not stop"
    );
}

/// The second processor's part.
pub(crate) fn second() {
    BEGUN.store(1, SeqCst);
    let (devices, count) = Device::find();
    let mut random = Random::new(77);
    loop {
        let device = devices[random.below(count as u64) as usize];
        match TASK.load(SeqCst) {
            NOTHING => break,
            REGISTERS => registers(&device, &mut random),
            RESETS => {
                device.write(STATUS, random.pick(&[0, 0xf, 0]));
                device.notify(random.below(4) as u32);
            }
            _ => cpu::triple_fault(),
        }
    }
    STOPPED.store(1, SeqCst);
}

fn registers(device: &Device, random: &mut Random) {
    let list = [
        QUEUE_SEL,
        QUEUE_NUM,
        QUEUE_READY,
        QUEUE_DESC,
        DRIVER_FEATURES,
        0x64,
    ];
    device.write(random.pick(&list), random.pick(&[0, 1, 2, 16, u32::MAX]));
    device.read(random.below(0x44) * 4);
    device.notify(random.below(4) as u32);
}

/// Full rings on every queue, again and again.
fn rings(bench: &mut Bench) {
    for _ in 0..ROUNDS {
        bench.each_queue(|device, queue, random| {
            let (header, data, status) = (buffer(0, 64), buffer(1, 4096), buffer(2, 64));
            queue.chain(
                0,
                &[(header, 16, 0), (data, 4096, WRITE), (status, 1, WRITE)],
            );
            queue.chain(3, &[(data, 4096, WRITE)]);
            for _ in 0..queue.size {
                queue.offer(random.pick(&[0, 3]));
            }
            device.notify(queue.index);
            queue.glance(device);
        });
    }
}

pub(super) fn registers_against_rings(bench: &mut Bench) {
    beside(bench, REGISTERS, rings);
}

pub(super) fn reset_against_rings(bench: &mut Bench) {
    beside(bench, RESETS, rings);
}

/// Both set the same devices up, over and over.
pub(super) fn same_registers(bench: &mut Bench) {
    beside(bench, REGISTERS, |bench| {
        for device in bench.devices() {
            for _ in 0..ROUNDS * 8 {
                device.write(STATUS, 0);
                device.agree(device.offered());
                let queue = Queue::new(0, 16);
                device.place(0, 16, queue.parts());
                device.go();
                queue.offer(0);
                device.notify(0);
            }
        }
    });
}

/// One processor faults while the other is busy: the whole machine ends, once.
pub(super) fn fault_of_one(bench: &mut Bench) {
    beside(bench, FAULT, rings);
}
