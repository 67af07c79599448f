//! What a guest does to its VMM: registers, rings in its memory, ports, its kernel's file.
//!
//! Owns: a language of such deeds in bytes, and drivers that follow the rules as seeds.
//! Refuses: judging what a device answers; that is for the tests beside it. Here it must stand.

use ::types::vm::LogRecord;
use ::vmm::fuzz::{self, Guest, Kind, Ports, Registers};

use crate::Target;
use crate::choices::{Choices, Made};

pub(crate) const TARGETS: [Target; 19] = [
    Target {
        name: "vmm-balloon",
        bytes_max: 2048,
        run: |input| device(Kind::Balloon, input),
        seeds: balloon_drivers,
    },
    Target {
        name: "vmm-blk",
        bytes_max: 2048,
        run: |input| device(Kind::Disk, input),
        seeds: disk_drivers,
    },
    Target {
        name: "vmm-blk-lazy",
        bytes_max: 2048,
        run: |input| device(Kind::LazyDisk, input),
        seeds: lazy_drivers,
    },
    Target {
        name: "vmm-blk-ro",
        bytes_max: 2048,
        run: |input| device(Kind::ReadOnlyDisk, input),
        seeds: disk_drivers,
    },
    Target {
        name: "vmm-blk-wide",
        bytes_max: 2048,
        run: |input| device(Kind::WideDisk, input),
        seeds: wide_disk_drivers,
    },
    Target {
        name: "vmm-bzimage",
        bytes_max: 4096,
        run: |input| {
            fuzz::kernel(input);
        },
        seeds: bzimages,
    },
    Target {
        name: "vmm-chunk-map",
        bytes_max: 1024,
        run: fuzz::chunk_map,
        seeds: crate::flist::maps,
    },
    Target {
        name: "vmm-console",
        bytes_max: 2048,
        run: |input| device(Kind::Console, input),
        seeds: console_drivers,
    },
    Target {
        name: "vmm-kernel",
        bytes_max: 1024,
        run: |input| {
            fuzz::kernel(input);
        },
        seeds: kernels,
    },
    Target {
        name: "vmm-log",
        bytes_max: 2048,
        run: log,
        seeds: logs,
    },
    Target {
        name: "vmm-net",
        bytes_max: 2048,
        run: |input| device(Kind::Net, input),
        seeds: net_drivers,
    },
    Target {
        name: "vmm-net-wide",
        bytes_max: 2048,
        run: |input| device(Kind::WideNet, input),
        seeds: wide_net_drivers,
    },
    Target {
        name: "vmm-pmem",
        bytes_max: 2048,
        run: |input| device(Kind::Pmem, input),
        seeds: pmem_drivers,
    },
    Target {
        name: "vmm-ports",
        bytes_max: 256,
        run: ports,
        seeds: || {
            let serial = [(0x3f9, 7), (0x3f8, b'h'), (0x3fb, 0x80), (0x64, 0xfe)];
            let others = [(0x70, 0x0a), (0x443, 5), (0x441, 0), (0x505, 1)];
            let writes = serial.into_iter().chain(others);
            let write = |made: Made, (port, value): (u16, u8)| made.u8(1).u16(port).u8(value);
            vec![writes.fold(Made::default(), write).0]
        },
    },
    Target {
        name: "vmm-registers",
        bytes_max: 1024,
        run: registers,
        seeds: register_drivers,
    },
    Target {
        name: "vmm-rng",
        bytes_max: 2048,
        run: |input| device(Kind::Rng, input),
        seeds: rng_drivers,
    },
    Target {
        name: "vmm-snapshot",
        bytes_max: SNAPSHOT_BYTES_MAX,
        run: snapshot,
        seeds: snapshots,
    },
    Target {
        name: "vmm-vsock",
        bytes_max: 2048,
        run: |input| device(Kind::Vsock, input),
        seeds: vsock_drivers,
    },
    Target {
        name: "vmm-working-set",
        bytes_max: 1024,
        run: working_set,
        seeds: working_sets,
    },
];

/// Registers of virtio-mmio (VIRTIO 1.2 section 4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: u16 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u16 = 0x24;
    pub(super) const QUEUE_SEL: u16 = 0x30;
    pub(super) const QUEUE_NUM: u16 = 0x38;
    pub(super) const QUEUE_READY: u16 = 0x44;
    pub(super) const STATUS: u16 = 0x70;
    pub(super) const QUEUE_DESC: u16 = 0x80;
    pub(super) const QUEUE_DRIVER: u16 = 0x90;
    pub(super) const QUEUE_DEVICE: u16 = 0xa0;
}

/// Deeds, by their first byte.
mod deed {
    pub(super) const WRITE_REGISTER: u8 = 0;
    pub(super) const READ_REGISTER: u8 = 1;
    pub(super) const WRITE_MEMORY: u8 = 2;
    pub(super) const SERVE: u8 = 3;
    pub(super) const DESCRIBE: u8 = 4;
    pub(super) const OFFER: u8 = 5;
    pub(super) const SAY: u8 = 6;
    pub(super) const SET_CHUNK: u8 = 7;
    pub(super) const HEAR: u8 = 8;
    pub(super) const HANG_UP: u8 = 9;
    pub(super) const REST: u8 = 10;
    pub(super) const ALL: u8 = 11;
}

/// Where the seeds' drivers have their rings: 16 KiB for each queue.
const RING_BYTES: u32 = 0x4000;
/// Most queues of a device: a card with two pairs, and its control queue.
const QUEUES: u8 = 5;
/// Entries of each ring of a seed.
const RING_SIZE: u16 = 16;
/// Their data begins here.
const DATA: u32 = 0x2_0000;

/// Guest memory that is spoken of: 24 bits of address, and wild ones above.
fn address(choices: &mut Choices<'_>) -> u64 {
    match choices.u32() {
        wild @ 0xff00_0000.. => u64::from(wild) << 32,
        tame => u64::from(tame & 0x1f_ffff),
    }
}

fn device(kind: Kind, input: &[u8]) {
    let mut choices = Choices(input);
    let mut guest = Guest::new(kind);
    let mut offered = [0u16; QUEUES as usize];
    while !choices.is_empty() {
        match choices.u8() % deed::ALL {
            deed::WRITE_REGISTER => {
                let offset = u64::from(choices.u16() & 0x1ff);
                guest.write_register(offset, &choices.u32().to_le_bytes());
            }
            deed::READ_REGISTER => {
                let (offset, width) = (choices.u16() & 0x1ff, choices.u8() & 15);
                guest.read_register(offset.into(), &mut vec![0; width.into()]);
            }
            deed::WRITE_MEMORY => guest.write_memory(address(&mut choices), choices.short()),
            deed::SERVE => guest.serve(choices.u8().into()),
            deed::DESCRIBE => {
                let (queue, index) = (choices.u8() % QUEUES, choices.u8());
                let at = u64::from(queue) * u64::from(RING_BYTES) + u64::from(index) * 16;
                guest.write_memory(at, &address(&mut choices).to_le_bytes());
                let (length, flags, next) = (choices.u32(), choices.u8(), choices.u8());
                let tail = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
                guest.write_memory(at + 8, &tail.to_le_bytes());
            }
            deed::OFFER => {
                let (queue, head) = (choices.u8() % QUEUES, choices.u16());
                let ring = u64::from(queue) * u64::from(RING_BYTES) + 0x1000;
                let count = &mut offered[usize::from(queue)];
                let place = u64::from(*count % RING_SIZE);
                guest.write_memory(ring + 4 + 2 * place, &head.to_le_bytes());
                *count = count.wrapping_add(1);
                guest.write_memory(ring + 2, &count.to_le_bytes());
            }
            deed::SAY => guest.say(choices.long()),
            deed::SET_CHUNK => guest.set_chunk(choices.u32(), choices.u8()),
            deed::HEAR => {
                guest.hear();
            }
            deed::REST => guest.rest(),
            _ => guest.hang_up(),
        }
    }
    guest.stop();
}

/// Writes deeds.
#[derive(Clone, Default)]
struct Driver {
    made: Made,
    descriptors: u8,
}

const NEXT: u8 = 1;
const WRITE: u8 = 2;

impl Driver {
    /// A driver that has brought the device up with these features and so many queues.
    fn new(features: u64, queues: u8) -> Self {
        let mut driver = Self::default();
        let halves = [features & 0xffff_ffff, features >> 32 | 1];
        driver.register(register::STATUS, 1);
        driver.register(register::STATUS, 3);
        for (which, half) in (0..).zip(halves) {
            driver.register(register::DRIVER_FEATURES_SEL, which);
            let half = u32::try_from(half).expect("a half");
            driver.register(register::DRIVER_FEATURES, half);
        }
        driver.register(register::STATUS, 0xb);
        for queue in 0..queues {
            let at = u32::from(queue) * RING_BYTES;
            driver.register(register::QUEUE_SEL, queue.into());
            driver.register(register::QUEUE_NUM, RING_SIZE.into());
            driver.register(register::QUEUE_DESC, at);
            driver.register(register::QUEUE_DRIVER, at + 0x1000);
            driver.register(register::QUEUE_DEVICE, at + 0x2000);
            driver.register(register::QUEUE_READY, 1);
        }
        driver.register(register::STATUS, 0xf);
        driver
    }

    fn with(&mut self, change: impl FnOnce(Made) -> Made) {
        self.made = change(std::mem::take(&mut self.made));
    }

    fn register(&mut self, offset: u16, value: u32) {
        self.with(|made| made.u8(deed::WRITE_REGISTER).u16(offset).u32(value));
    }

    fn memory(&mut self, at: u32, bytes: &[u8]) {
        self.with(|made| made.u8(deed::WRITE_MEMORY).u32(at).short(bytes));
    }

    /// Offers a chain: address, length and whether the device writes it.
    fn offer(&mut self, queue: u8, parts: &[(u32, u32, bool)]) {
        let head = self.descriptors;
        for (place, (at, length, is_written)) in (1..).zip(parts) {
            let index = self.descriptors;
            self.descriptors = (index + 1) % 16;
            let next = if place < parts.len() { NEXT } else { 0 };
            let flags = next | if *is_written { WRITE } else { 0 };
            let after = self.descriptors;
            self.with(|made| {
                let made = made.u8(deed::DESCRIBE).u8(queue).u8(index).u32(*at);
                made.u32(*length).u8(flags).u8(after)
            });
        }
        self.with(|made| made.u8(deed::OFFER).u8(queue).u16(head.into()));
    }

    fn say(&mut self, packet: &[u8]) {
        self.with(|made| made.u8(deed::SAY).long(packet));
    }

    fn serve(&mut self) {
        self.with(|made| made.u8(deed::SERVE).u8(0xff));
    }

    fn done(mut self) -> Vec<u8> {
        self.serve();
        self.with(|made| made.u8(deed::HEAR));
        self.made.0
    }
}

/// Disk requests: read, write, flush, identify, discard (VIRTIO 1.2 section 5.2.6).
fn disk_requests(driver: &mut Driver) {
    for (place, (kind, written)) in
        (0u32..).zip([(0, true), (1, false), (4, false), (8, true), (11, false)])
    {
        let header = DATA + place * 0x100;
        let mut bytes = [0; 16];
        bytes[0] = kind;
        bytes[8] = 8;
        driver.memory(header, &bytes);
        let data = (DATA + 0x1000, if kind == 11 { 16 } else { 512 }, written);
        driver.offer(0, &[(header, 16, false), data, (header + 0x80, 1, true)]);
        driver.serve();
    }
}

fn disk_drivers() -> Vec<Vec<u8>> {
    let features = 1 << 9 | 1 << 13 | 1 << 14;
    [0, features, features | 1 << 29 | 1 << 28]
        .map(|features| {
            let mut driver = Driver::new(features, 1);
            disk_requests(&mut driver);
            driver.done()
        })
        .to_vec()
}

/// Requests on one queue after the other, more than the limit lets through at once; the machine pauses.
fn wide_disk_drivers() -> Vec<Vec<u8>> {
    let mut driver = Driver::new(1 << 9 | 1 << 12 | 1 << 13 | 1 << 14, 3);
    for queue in [0, 1, 2, 0] {
        let header = DATA + u32::from(queue) * 0x100;
        driver.memory(header, &[0; 16]);
        let data = (DATA + 0x1000, 2048, true);
        driver.offer(
            queue,
            &[(header, 16, false), data, (header + 0x80, 1, true)],
        );
    }
    driver.serve();
    driver.with(|made| made.u8(deed::REST));
    vec![driver.done()]
}

fn lazy_drivers() -> Vec<Vec<u8>> {
    let mut driver = Driver::new(1 << 9, 1);
    disk_requests(&mut driver);
    let (hello, ready, failed) = (
        ::flist::wire::ToVmm::Hello.encode(),
        ::flist::wire::ToVmm::Ready(0).encode(),
        ::flist::wire::ToVmm::Failed(0).encode(),
    );
    let mut arrives = driver.clone();
    arrives.with(|made| made.u8(deed::SET_CHUNK).u32(0).u8(1));
    arrives.say(&ready);
    let mut fails = driver.clone();
    fails.say(&failed);
    driver.say(&hello);
    driver.serve();
    driver.with(|made| made.u8(deed::HANG_UP));
    [arrives, fails, driver].map(Driver::done).to_vec()
}

fn net_drivers() -> Vec<Vec<u8>> {
    let offloads = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15;
    [0, 1 << 15, offloads, offloads | 1 << 29]
        .map(|features| {
            let mut driver = Driver::new(features, 2);
            for place in 0..4 {
                driver.offer(0, &[(DATA + place * 0x800, 0x800, true)]);
            }
            driver.serve();
            driver.say(&[7; 300]);
            driver.serve();
            driver.offer(1, &[(DATA + 0x4000, 12, false), (DATA + 0x5000, 60, false)]);
            driver.done()
        })
        .to_vec()
}

/// The second pair is turned on by the control queue (VIRTIO 1.2 section 5.1.6.5.5).
fn wide_net_drivers() -> Vec<Vec<u8>> {
    let features = 1 << 15 | 1 << 17 | 1 << 22;
    let mut driver = Driver::new(features, 5);
    driver.memory(DATA, &[4, 0, 2, 0]);
    let (class, pairs) = ((DATA, 2, false), (DATA + 2, 2, false));
    driver.offer(4, &[class, pairs, (DATA + 0x80, 1, true)]);
    driver.serve();
    for queue in [0, 2] {
        driver.offer(queue, &[(DATA + 0x2000, 0x800, true)]);
    }
    for queue in [1, 3, 1] {
        driver.offer(
            queue,
            &[(DATA + 0x4000, 12, false), (DATA + 0x5000, 60, false)],
        );
    }
    driver.say(&[7; 300]);
    driver.serve();
    driver.with(|made| made.u8(deed::REST));
    vec![driver.done()]
}

/// Reads and writes of any width anywhere in the row of devices and a little beyond.
fn registers(input: &[u8]) {
    let mut choices = Choices(input);
    let registers = Registers::default();
    while !choices.is_empty() {
        let (kind, page, offset) = (choices.u8(), choices.u8() % 10, choices.u16() & 0xfff);
        let address = u64::from(page) << 12 | u64::from(offset);
        match kind % 3 {
            0 => registers.write(address, choices.short()),
            1 => {
                let mut bytes = [0; 8];
                let width = 1 << (choices.u8() & 3);
                registers.read(address, &mut bytes[..width]);
            }
            _ => registers.serve(choices.u8().into()),
        }
    }
    registers.serve(u64::MAX);
}

/// Each device from reset to running, without a queue.
fn register_drivers() -> Vec<Vec<u8>> {
    let mut made = Made::default();
    for page in 0..8 {
        let steps = [
            (register::STATUS, 3u32),
            (register::DRIVER_FEATURES_SEL, 1),
            (register::DRIVER_FEATURES, 1),
            (register::STATUS, 0xb),
            (register::STATUS, 0xf),
        ];
        for (offset, value) in steps {
            made = made.u8(0).u8(page).u16(offset).short(&value.to_le_bytes());
        }
        made = made.u8(1).u8(page).u16(register::STATUS).u8(2);
        made = made.u8(2).u8(0).u16(0).u8(0xff);
    }
    vec![made.0]
}

fn balloon_drivers() -> Vec<Vec<u8>> {
    let statistics = 1 << 1;
    let reporting = 1 << 5;
    [statistics | reporting, reporting, 0]
        .map(|features| {
            let queues = 2 + u8::try_from(u64::count_ones(features)).expect("two");
            let mut driver = Driver::new(features, queues);
            let pages: Vec<u8> = [0x30u32, 0x31, 0x33]
                .iter()
                .flat_map(|p| p.to_le_bytes())
                .collect();
            driver.memory(DATA, &pages);
            for queue in 0..2 {
                driver.offer(queue, &[(DATA, 12, false)]);
                driver.serve();
            }
            if features & statistics != 0 {
                driver.memory(DATA + 0x100, &[4, 0, 1, 2, 3, 0, 0, 0, 0, 0]);
                driver.offer(2, &[(DATA + 0x100, 10, false)]);
                driver.serve();
            }
            let reports = [(DATA + 0x4000, 0x4000, true), (DATA + 0x1000, 0x1000, true)];
            driver.offer(queues - 1, &reports);
            // What the driver says it holds.
            driver.register(0x104, 3);
            driver.done()
        })
        .to_vec()
}

fn console_drivers() -> Vec<Vec<u8>> {
    let mut plain = Driver::new(0, 2);
    plain.memory(DATA, b"hello");
    plain.offer(1, &[(DATA, 3, false), (DATA + 3, 2, false)]);
    plain.offer(0, &[(DATA + 0x100, 64, true)]);
    plain.serve();
    plain.say(b"input");
    let mut gone = plain.clone();
    gone.with(|made| made.u8(deed::HANG_UP));
    let mut ports = Driver::new(1 << 1, 4);
    for place in 0..6 {
        ports.offer(2, &[(DATA + 0x1000 + place * 0x40, 0x40, true)]);
    }
    // The device is ready, its port is, and is opened (VIRTIO 1.2 section 5.3.6.2).
    for (place, event) in (0u32..).zip([0, 3, 6]) {
        let at = DATA + 0x800 + place * 8;
        ports.memory(at, &[0, 0, 0, 0, event, 0, 1, 0]);
        ports.offer(3, &[(at, 8, false)]);
        ports.serve();
    }
    ports.offer(0, &[(DATA + 0x100, 64, true)]);
    ports.say(b"input");
    [plain, gone, ports].map(Driver::done).to_vec()
}

fn pmem_drivers() -> Vec<Vec<u8>> {
    let mut driver = Driver::new(0, 1);
    driver.memory(DATA, &[0; 4]);
    driver.offer(0, &[(DATA, 4, false), (DATA + 64, 4, true)]);
    vec![driver.done()]
}

fn rng_drivers() -> Vec<Vec<u8>> {
    let mut driver = Driver::new(0, 1);
    driver.offer(0, &[(DATA, 64, true), (DATA + 0x100, 64, true)]);
    vec![driver.done()]
}

/// A socket packet's header (VIRTIO 1.2 section 5.10.6).
fn socket(port: u32, operation: u8, flags: u8, length: u8) -> Vec<u8> {
    let mut header = vec![0; 44];
    header[0] = 3;
    header[8] = 2;
    header[16..20].copy_from_slice(&5000u32.to_le_bytes());
    header[20..24].copy_from_slice(&port.to_le_bytes());
    header[24] = length;
    header[28] = 1;
    header[30] = operation;
    header[32] = flags;
    header[38] = 1;
    header
}

fn vsock_drivers() -> Vec<Vec<u8>> {
    const REQUEST: u8 = 1;
    const RESPONSE: u8 = 2;
    const SHUTDOWN: u8 = 4;
    const SAYS: u8 = 5;
    let line = b"{\"exited\":{\"code\":3,\"signal\":null,\"oom_kills\":0}}\n";
    let length = u8::try_from(line.len()).expect("short");
    let prepared = || {
        let mut driver = Driver::new(0, 3);
        for place in 0..4 {
            driver.offer(0, &[(DATA + 0x1_0000 + place * 0x400, 0x400, true)]);
        }
        driver
    };
    let send = |driver: &mut Driver, packets: &[Vec<u8>]| {
        for (place, packet) in (0u32..).zip(packets) {
            let at = DATA + place * 0x100;
            driver.memory(at, packet);
            let length = u32::try_from(packet.len()).expect("short");
            driver.offer(1, &[(at, length, false)]);
            driver.serve();
        }
    };
    let talk = |port: u32, begin: u8| {
        [
            socket(port, begin, 0, 0),
            [&socket(port, SAYS, 0, length), &line[..]].concat(),
            socket(port, SHUTDOWN, 2, 0),
        ]
    };
    let to_host = [1024, 1025, 99, 98].map(|port| {
        let mut driver = prepared();
        driver.say(b"{\"guest\":\"stop\"}");
        send(&mut driver, &talk(port, REQUEST));
        driver.serve();
        driver.done()
    });
    // The world connects to port 22: the first connection of the host is from this port.
    let mut to_guest = prepared();
    to_guest.say(&[0xff, 22]);
    to_guest.serve();
    let from = |mut packet: Vec<u8>| {
        packet[16..20].copy_from_slice(&22u32.to_le_bytes());
        packet
    };
    send(&mut to_guest, &talk(1 << 30, RESPONSE).map(from));
    to_guest.serve();
    let mut all = to_host.to_vec();
    all.push(to_guest.done());
    all
}

fn ports(input: &[u8]) {
    let mut choices = Choices(input);
    let ports = Ports::default();
    while !choices.is_empty() {
        let (deed, port) = (choices.u8(), choices.u16());
        match deed & 3 {
            0 => ports.read(port, &mut [0]),
            1 => ports.write(port, choices.take(1)),
            2 => ports.read(
                0x3f8 + (port & 7),
                &mut [0; 4][..usize::from(deed >> 6) + 1],
            ),
            _ => ports.write(0x3f8 + (port & 7), choices.take(usize::from(deed >> 6) + 1)),
        }
    }
}

/// The smallest ELF with a PVH note that is loaded: one segment of one byte, one of notes.
fn kernels() -> Vec<Vec<u8>> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.resize(16, 0);
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend_from_slice(&value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend_from_slice(&value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend_from_slice(&value.to_le_bytes());
    half(&mut elf, 2); // ET_EXEC
    half(&mut elf, 62); // EM_X86_64
    word(&mut elf, 1);
    for value in [0x10_0000, 64, 0] {
        long(&mut elf, value); // Entry, program headers, section headers.
    }
    word(&mut elf, 0);
    for value in [64, 56, 2, 0, 0, 0] {
        half(&mut elf, value);
    }
    // PT_LOAD of 16 bytes at 176, PT_NOTE of 20 bytes at 192.
    for (kind, offset, address, bytes) in [(1, 176, 0x10_0000, 16), (4, 192, 0, 20)] {
        word(&mut elf, kind);
        word(&mut elf, 5);
        for value in [offset, address, address, bytes, bytes, 4] {
            long(&mut elf, value);
        }
    }
    elf.resize(176 + 16, 0x90);
    for value in [4, 4, 18] {
        word(&mut elf, value); // Lengths of name and value, XEN_ELFNOTE_PHYS32_ENTRY.
    }
    elf.extend_from_slice(b"Xen\0");
    word(&mut elf, 0x10_0000);
    assert!(fuzz::kernel(&elf), "the seed is a kernel");
    vec![elf]
}

/// A header of protocol 2.15 that wants 1 MiB at 16 MiB, set-up code of one sector, and some bytes to load
/// (kernel document `arch/x86/boot.rst`); the same that may not move.
fn bzimages() -> Vec<Vec<u8>> {
    let image = |relocatable: u8| {
        let mut image = vec![0; 1024 + 1024];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &[15, 2]);
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x230, &0x20_0000_u32.to_le_bytes());
        put(0x234, &[relocatable, 21]);
        put(0x236, &[1, 0]);
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &0x100_0000_u64.to_le_bytes());
        put(0x260, &0x10_0000_u32.to_le_bytes());
        assert!(fuzz::kernel(&image), "the seed is a kernel");
        image
    };
    vec![image(0), image(1)]
}

/// A working set has one form: what is read is written as it was.
fn working_set(input: &[u8]) {
    if let Some(written) = fuzz::working_set(input) {
        assert_eq!(written, input);
    }
    if let Some((written, sealed)) = fuzz::sealed_working_set(input) {
        assert_eq!(written, sealed);
    }
}

/// Runs of few pages in a small memory, alone and with their header.
fn working_sets() -> Vec<Vec<u8>> {
    let runs: Vec<u8> = [(3u64, 2u64), (9, 1), (0, 3), (200, 56)]
        .iter()
        .flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()].concat())
        .collect();
    let sealed = fuzz::sealed_working_set(&runs).expect("the seed is a working set");
    vec![runs, sealed.1]
}

/// What was whole before an append is whole after it, and what is appended is there.
/// How a state stands in an input: as in its file, or what stands there behind the header.
const AS_FILE: u8 = 0;
const AS_PAYLOAD: u8 = 1;
/// A state of every device has some 24 KiB.
const SNAPSHOT_BYTES_MAX: usize = 48 << 10;

/// A word for the memory file, then a state.
fn snapshot(input: &[u8]) {
    let mut choices = Choices(input);
    let (form, word) = (choices.u8(), choices.u32());
    let went_on = fuzz::snapshot(choices.0, form & 1 == AS_PAYLOAD, &word.to_le_bytes());
    let has_seal = form & 1 == AS_PAYLOAD || choices.0.starts_with(b"SIFRSNAP");
    assert!(has_seal || !went_on, "no state was taken for one");
}

fn snapshots() -> Vec<Vec<u8>> {
    let payloads = fuzz::snapshots();
    for payload in &payloads {
        assert!(fuzz::snapshot(payload, true, &[]), "the seed goes on");
    }
    let mut seeds: Vec<_> = payloads
        .iter()
        .map(|payload| [&Made::default().u8(AS_PAYLOAD).u32(7).0[..], payload].concat())
        .collect();
    let file = fuzz::snapshot_file(&payloads[0]);
    seeds.push([&Made::default().u8(AS_FILE).u32(7).0[..], &file].concat());
    seeds
}

fn log(input: &[u8]) {
    let mut choices = Choices(input);
    let (max, a, b) = (choices.u32(), choices.long(), choices.long());
    let mut records = Vec::new();
    while !choices.is_empty() && records.len() < 8 {
        records.push(choices.short());
    }
    let after = fuzz::log(a, b, max.into(), &records);
    let count: usize = after.iter().map(|content| whole_records(content)).sum();
    assert!(count >= records.len(), "appended records are there");
}

fn whole_records(mut rest: &[u8]) -> usize {
    let mut count = 0;
    while let Some(record) = rest.first_chunk().and_then(LogRecord::decode) {
        let bytes = LogRecord::HEADER_BYTES + record.length as usize;
        let Some(after) = rest.get(bytes..) else {
            break;
        };
        (rest, count) = (after, count + 1);
    }
    count
}

fn logs() -> Vec<Vec<u8>> {
    let record = |sequence: u64| {
        let record = LogRecord {
            sequence,
            time_ms: 1,
            stream: ::types::vm::Stream::Stdout,
            length: 3,
        };
        [&record.encode()[..], b"abc"].concat()
    };
    let (old, new) = (
        [record(1), record(2)].concat(),
        [record(3), record(4)].concat(),
    );
    let torn = &new[..new.len() - 2];
    let made = |a: &[u8], b: &[u8]| {
        let made = Made::default().u32(0).long(a).long(b);
        made.short(b"next").short(b"line\n").0
    };
    vec![made(&old, &new), made(torn, &old), made(&[], &[])]
}
