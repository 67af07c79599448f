//! A snapshot's two files as anybody may have made them, and all of a machine that is made from them without KVM.
//!
//! Owns: a machine with every kind of device, restored, used and saved again.
//! Refuses: vCPUs and interrupt controllers: what they are given KVM judges.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use types::vm::{Balloon as BalloonSpec, ConsoleKind};
use vmm_sys_util::eventfd::EventFd;

use super::{Both, DISK_BYTES, Kind, disk_spec, file, net, pair, slot};
use crate::bus::{self, Pio};
use crate::control::{Lines, Outbox};
use crate::device::rtc::Rtc;
use crate::device::serial::Serial;
use crate::device::watchdog::Watchdog;
use crate::end::End;
use crate::memory::{GuestRam, layout};
use crate::postmortem;
use crate::snapshot::memory::Run;
use crate::snapshot::tests::state;
use crate::snapshot::{Chain, Files, State, format};
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::console::Console;
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::transport::mmio;
use crate::virtio::vsock::Vsock;
use crate::virtio::worker::Wired;

/// Rings of a device, one behind the other from the end of the table of devices on.
const RINGS: u32 = 0x10_0000;
const RING_BYTES: u32 = 0x4000;
/// Registers of a device that are looked at: all that there are, and some of its configuration.
const REGISTERS: u64 = 0x140;

/// A machine without vCPUs.
struct World {
    devices: Vec<Arc<dyn Both>>,
    pio: Pio,
    /// The other ends of what is behind the devices.
    _worlds: Vec<std::os::fd::OwnedFd>,
}

impl World {
    fn new(ram: &Arc<GuestRam>) -> Self {
        let outbox = Arc::new(Outbox::new(None).expect("an event counter"));
        let lines = Arc::new(Lines::new().expect("an event counter"));
        let disk = |kind| {
            let spec = disk_spec(kind, false);
            let blk = Blk::new(&spec, file(DISK_BYTES), None, || Ok(()), &outbox);
            slot(blk.expect("a good disk"), ram)
        };
        let (card, wire) = net(Kind::WideNet);
        let (ours, terminal) = pair();
        let console = Console::new(File::from(ours), ConsoleKind::Stream).expect("a flag");
        let mib = state().shape().memory_mib;
        let balloon = Balloon::new(&BalloonSpec::reporting(), mib).expect("a good target");
        let end = Arc::new(End::new().expect("an event counter"));
        let event = EventFd::new(libc::EFD_NONBLOCK).expect("an event counter");
        Self {
            devices: vec![
                disk(Kind::Disk),
                disk(Kind::WideDisk),
                slot(card, ram),
                slot(Vsock::new(&outbox, &lines, None, None), ram),
                slot(Rng, ram),
                slot(balloon, ram),
                slot(console, ram),
                slot(Pmem::new(1 << 32, 1 << 21), ram),
            ],
            pio: Pio::new(bus::Ports {
                serial: Some(Serial::new(file(0), event)),
                rtc: Some(Rtc::default()),
                watchdog: Some(Arc::new(Watchdog::new(&end).expect("a timer"))),
                pvpanic: true,
            }),
            _worlds: vec![wire, terminal],
        }
    }

    fn slots(&self) -> Vec<Arc<dyn Wired>> {
        let wired = self.devices.iter().map(|d| Arc::clone(d) as Arc<dyn Wired>);
        wired.collect()
    }

    /// Each device's driver does what drivers do, to the end.
    fn bring_up(&self) {
        for device in &self.devices {
            let write = |offset: u64, value: u32| device.write(offset, &value.to_le_bytes());
            let read = |offset: u64| {
                let mut word = [0; 4];
                device.read(offset, &mut word);
                u32::from_le_bytes(word)
            };
            for status in [1, 3] {
                write(mmio::STATUS, status);
            }
            for half in [0, 1] {
                write(mmio::DEVICE_FEATURES_SEL, half);
                let offered = read(mmio::DEVICE_FEATURES);
                write(mmio::DRIVER_FEATURES_SEL, half);
                write(mmio::DRIVER_FEATURES, offered);
            }
            write(mmio::STATUS, 11);
            let count = u32::try_from(device.doorbells().len()).expect("a few");
            for queue in 0..count {
                let at = RINGS + queue * RING_BYTES;
                write(mmio::QUEUE_SEL, queue);
                write(mmio::QUEUE_NUM, 16);
                write(mmio::QUEUE_DESC, at);
                write(mmio::QUEUE_DRIVER, at + 0x1000);
                write(mmio::QUEUE_DEVICE, at + 0x2000);
                write(mmio::QUEUE_READY, 1);
            }
            write(mmio::STATUS, 15);
        }
    }

    /// Every worker wakes, every register and port is read, and all comes to rest.
    fn live(&self) {
        for device in &self.devices {
            for _ in 0..2 {
                device.sources(&mut Vec::new());
                device.serve(u64::MAX);
            }
            for offset in (0..REGISTERS).step_by(4) {
                device.read(offset, &mut [0; 4]);
            }
            device.rest();
        }
        for port in [0x3f8..0x400, 0x70..0x72, 0x441..0x444]
            .into_iter()
            .flatten()
        {
            self.pio.read(port, &mut [0]);
        }
    }

    fn state(&self) -> State {
        let devices = self.slots().iter().map(|slot| slot.save()).collect();
        state().with(devices, self.pio.save())
    }
}

/// A state file, and the beginning of the memory file that is beside it. `payload`: the state is sealed as our
/// writer does it, so that what its digest cannot show is looked at, too. Whether a machine went on from it.
pub fn snapshot(bytes: &[u8], payload: bool, content: &[u8]) -> bool {
    let text = if payload {
        format::seal(bytes)
    } else {
        bytes.to_vec()
    };
    let (ours, shape) = (file(0), state().shape().clone());
    ours.write_all_at(&text, 0).expect("memory");
    let memory = || {
        let memory = file(shape.memory_mib << 20);
        memory.write_all_at(content, 0).expect("memory");
        memory
    };
    let Ok(files) = Files::open(&ours, memory(), true) else {
        return false;
    };
    let again = format::encode(&files.state);
    let twice = format::decode(&again).map(|state| format::encode(&state));
    assert_eq!(twice.ok(), Some(again), "a state that does not read back");
    let mut chain = Vec::new();
    if let Some(base) = files.state.base() {
        chain.push(Files {
            state: base,
            memory: memory(),
        });
    }
    chain.push(files);
    let Ok(chain) = Chain::new(chain) else {
        return false;
    };
    if chain.check(&shape).is_err() {
        return false;
    }
    let Ok((state, ram)) = chain.memory() else {
        return false;
    };
    for vcpu in state.vcpus() {
        let _ = vcpu.check(&[]);
    }
    let world = World::new(&ram);
    if state.restore_devices(&world.slots(), &world.pio).is_err() {
        return false;
    }
    world.live();
    let _ = postmortem::last_words(&ram, state.shape().kernel.clone());
    let kept = world.state();
    let another = World::new(&ram);
    let restored = kept.restore_devices(&another.slots(), &another.pio);
    assert!(
        restored.is_ok(),
        "what went on cannot be kept: {restored:?}"
    );
    true
}

/// States as our writer makes them: of a machine at power-on, of one whose drivers are ready, and of one that
/// differs from another in some pages. As they lie in their file after its header.
pub fn snapshots() -> Vec<Vec<u8>> {
    let ram = crate::memory::allocate(state().shape().memory_mib, types::vm::HugePages::None);
    let ram = ram.expect("memory");
    assert!(u64::from(RINGS) > layout::GENERATION, "above what is taken");
    let new = World::new(&ram).state();
    let ready = World::new(&ram);
    ready.bring_up();
    ready.live();
    let run = |first| Run { first, count: 3 };
    let differs = ready.state().differing(vec![run(0), run(100)]);
    [new, ready.state(), differs]
        .map(|state| serde_json::to_vec(&state).expect("plain data"))
        .to_vec()
}

/// The file with this behind its header.
pub fn snapshot_file(payload: &[u8]) -> Vec<u8> {
    format::seal(payload)
}
