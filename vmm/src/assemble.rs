//! From the specification to a machine that is ready to run, in reading order.
//!
//! Owns: the order of set-up, and every check that needs more than one part.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VcpuFd;
use types::guest::ToGuest;
use types::vm::{Disk, Net as NetSpec, NetQueue, VmSpec};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{BootError, Entry, Kernel, cmdline, initramfs, mptable};
use crate::bus::{Mmio, MmioDevice, Pio};
use crate::confine::{self, ConfineError, Kind};
use crate::control::{Inbox, Lines, Outbox, Requests, SharedBalloon, SharedDisks};
use crate::cpu::topology::{Topology, TopologyError};
use crate::cpu::vcpu::Shared;
use crate::cpu::{cpuid, start};
use crate::device::serial::Serial;
use crate::end::End;
use crate::event::Served;
use crate::extras::{ExtraError, ExtraFds, Extras};
use crate::fds::{FdError, Inherited};
use crate::gate::{Gate, Halting};
use crate::hv::coalesced::Ring;
use crate::hv::kvm::{HvError, Vm, Writes};
use crate::log::{Log, SharedLog};
use crate::machine::{Machine, Worker};
use crate::memory::{self, GuestRam, MemoryError, layout};
use crate::metrics::Registry;
use crate::snapshot::load::{self, Aids, Recorder};
use crate::snapshot::machine::Subject;
use crate::snapshot::{self, Chain, Files, Shape, SnapshotError, State};
use crate::virtio::Device;
use crate::virtio::blk::{Blk, BlkError, LazyParts};
use crate::virtio::net::{Net, NetError};
use crate::virtio::rng::Rng;
use crate::virtio::transport::mmio::{self, QUEUE_NOTIFY};
use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::forward::{self, Broker, SocketsError};
use crate::virtio::worker::{Slot, Wired};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("take over the descriptors")]
    Fds(#[from] FdError),
    #[error("confine the process")]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error("{count} devices: a machine has room for {max}", max = layout::VIRTIO_IRQS.len())]
    Devices { count: usize },
    #[error("there is neither a kernel nor a snapshot: name one as `kernel` or `restore`")]
    NoKernel,
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error("two disks have the serial {0:?}")]
    Serials(String),
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    #[error("virtual machine")]
    Hv(#[from] HvError),
    #[error("vCPU {0}")]
    Vcpu(u8, #[source] start::StartError),
    #[error("guest kernel")]
    Boot(#[from] BootError),
    #[error("kernel command line")]
    Cmdline(#[from] cmdline::CmdlineError),
    #[error("disk")]
    Blk(#[from] BlkError),
    #[error("network card")]
    Net(#[from] NetError),
    #[error(transparent)]
    Extra(#[from] ExtraError),
    #[error("map the ring of a machine's writes")]
    Ring(#[source] io::Error),
    #[error("read the log's files")]
    Log(#[source] io::Error),
    #[error("prepare the control socket")]
    Control(#[source] io::Error),
    #[error("restore the snapshot")]
    Restore(#[from] SnapshotError),
    #[error("make an event counter")]
    Event(#[source] io::Error),
}

/// What the guest boots from.
struct Images {
    kernel: Option<File>,
    /// In the order in which they are put together.
    initramfs: Vec<File>,
}

/// The TAP queues of a network card, and the vhost descriptors of those that have one.
struct Pairs {
    taps: Vec<File>,
    vhosts: Vec<File>,
}

impl Pairs {
    fn take(fds: &mut Inherited, net: &NetSpec) -> Result<Self, FdError> {
        let first = NetQueue {
            tap: net.tap,
            vhost: net.vhost,
        };
        let (mut taps, mut vhosts) = (Vec::new(), Vec::new());
        for pair in [first].iter().chain(&net.queues) {
            taps.push(fds.take(pair.tap, "tap")?.into());
            if let Some(vhost) = pair.vhost {
                vhosts.push(fds.take(vhost, "vhost-net")?.into());
            }
        }
        Ok(Self { taps, vhosts })
    }
}

/// Everything the specification names, as open descriptors.
struct Parts {
    kvm: OwnedFd,
    images: Images,
    disks: Vec<(Disk, File, Option<LazyParts>)>,
    nets: Vec<(NetSpec, Pairs)>,
    control: Option<Arc<OwnedFd>>,
    /// With the ports that it knows.
    broker: Option<(OwnedFd, Vec<u32>)>,
    log: Option<([File; 2], u64)>,
    serial: Option<File>,
    extras: ExtraFds,
    /// State and memory of each snapshot in the chain, the full one first.
    snapshots: Vec<(File, File)>,
    aids: Aids,
}

impl Parts {
    fn take(mut fds: Inherited, spec: &VmSpec) -> Result<Self, FdError> {
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let file = File::from(fds.take(disk.fd, "disk")?);
            let lazy = match &disk.lazy {
                None => None,
                Some(lazy) => Some(LazyParts {
                    map: File::from(fds.take(lazy.map, "chunk map")?),
                    socket: fds.take(lazy.chunks, "chunk socket")?,
                }),
            };
            disks.push((disk.clone(), file, lazy));
        }
        let mut nets = Vec::new();
        for net in &spec.nets {
            nets.push((net.clone(), Pairs::take(&mut fds, net)?));
        }
        let log = match &spec.log {
            None => None,
            Some(log) => {
                let [a, b] = log.files;
                let files = [fds.take(a, "log")?.into(), fds.take(b, "log")?.into()];
                Some((files, log.max_bytes))
            }
        };
        let mut snapshots = Vec::new();
        if let Some(restore) = &spec.restore {
            let bases = restore.bases.iter().map(|base| (base.state, base.memory));
            for (state, memory) in bases.chain([(restore.state, restore.memory)]) {
                let state = fds.take(state, "state of a snapshot")?;
                let memory = fds.take(memory, "memory of a snapshot")?;
                snapshots.push((state.into(), memory.into()));
            }
        }
        let aids = Aids::take(spec.restore.as_ref(), |fd, what| fds.take(fd, what))?;
        let parts = Self {
            snapshots,
            aids,
            kvm: fds.take(spec.kvm, "kvm")?,
            images: Images {
                kernel: spec
                    .kernel
                    .map(|fd| fds.take(fd, "kernel").map(File::from))
                    .transpose()?,
                initramfs: spec
                    .initramfs
                    .iter()
                    .map(|fd| fds.take(*fd, "initramfs").map(File::from))
                    .collect::<Result<_, _>>()?,
            },
            disks,
            nets,
            broker: take_broker(&mut fds, spec)?,
            log,
            control: spec
                .control
                .map(|fd| fds.take(fd, "control"))
                .transpose()?
                .map(Arc::new),
            serial: spec
                .serial
                .map(|fd| fds.take(fd, "serial"))
                .transpose()?
                .map(File::from),
            extras: ExtraFds::take(&mut fds, spec)?,
        };
        fds.close_rest();
        Ok(parts)
    }
}

fn take_broker(fds: &mut Inherited, spec: &VmSpec) -> Result<Option<(OwnedFd, Vec<u32>)>, FdError> {
    let Some(sockets) = &spec.sockets else {
        return Ok(None);
    };
    let broker = fds.take(sockets.broker, "broker")?;
    Ok(Some((broker, sockets.ports.clone())))
}

/// The balloon, which is spoken to, and all that the main thread serves.
type Added = (Option<SharedBalloon>, Vec<Arc<dyn Served>>);

/// Devices in the order of their slots.
#[derive(Default)]
struct Slots {
    mmio: Vec<Arc<dyn MmioDevice>>,
    wired: Vec<Arc<dyn Wired>>,
    disks: SharedDisks,
}

impl Slots {
    fn add<D: Device>(
        &mut self,
        device: D,
        ram: &Arc<GuestRam>,
    ) -> Result<Arc<Slot<D>>, SetupError> {
        let slot = Arc::new(Slot::new(device, ram).map_err(SetupError::Event)?);
        self.mmio.push(slot.clone());
        self.wired.push(slot.clone());
        Ok(slot)
    }

    /// Disks and cards, each with a thread of its own.
    fn add_workers(
        &mut self,
        disks: Vec<(Disk, File, Option<LazyParts>)>,
        nets: Vec<(NetSpec, Pairs)>,
        outbox: &Arc<Outbox>,
        ram: &Arc<GuestRam>,
    ) -> Result<Vec<Worker>, SetupError> {
        let mut workers = Vec::new();
        for (disk, file, lazy) in disks {
            let device = Blk::new(&disk, file, lazy, confine::seal_ring, outbox)?;
            let served = self.add(device, ram)?;
            self.disks.push(served.clone());
            workers.push(Worker {
                name: format!("blk {}", disk.serial),
                filter: confine::filter(Kind::Blk)?,
                served,
            });
        }
        for (index, (net, pairs)) in nets.into_iter().enumerate() {
            let served = self.add(Net::new(&net, pairs.taps, pairs.vhosts)?, ram)?;
            workers.push(Worker {
                name: format!("net {index}"),
                filter: confine::filter(Kind::Net)?,
                served,
            });
        }
        Ok(workers)
    }

    fn add_extras(
        &mut self,
        extras: &mut Extras,
        ram: &Arc<GuestRam>,
    ) -> Result<Added, SetupError> {
        let mut served = std::mem::take(&mut extras.served);
        let balloon = extras.balloon.take().map(|device| self.add(device, ram));
        let balloon = balloon.transpose()?;
        if let Some(balloon) = &balloon {
            served.push(balloon.clone());
        }
        if let Some(console) = extras.console.take() {
            served.push(self.add(console, ram)?);
        }
        for pmem in extras.pmems.drain(..) {
            served.push(self.add(pmem, ram)?);
        }
        Ok((balloon, served))
    }

    /// Interrupt line of each slot.
    fn irqs(&self) -> Result<Vec<u32>, SetupError> {
        let count = self.wired.len();
        if count > layout::VIRTIO_IRQS.len() {
            return Err(SetupError::Devices { count });
        }
        Ok(layout::VIRTIO_IRQS.take(count).collect())
    }

    fn connect(&self, vm: &Vm, irqs: &[u32]) -> Result<(), HvError> {
        for ((slot, irq), address) in self.wired.iter().zip(irqs).zip(cmdline::device_addresses()) {
            vm.interrupt_on_signal(slot.interrupt_line(), *irq)?;
            for registers in mmio::PATIENT {
                vm.coalesce_writes(&(address + registers.start..address + registers.end))?;
            }
            for (queue, bell) in (0u32..).zip(slot.doorbells()) {
                vm.signal_on_write(bell, address + QUEUE_NOTIFY, queue)?;
            }
        }
        Ok(())
    }
}

/// Builds the machine; nothing of it runs yet.
pub(crate) fn assemble() -> Result<Machine, SetupError> {
    let (fds, spec) = Inherited::spec()?;
    let topology = check(&spec)?;
    let parts = Parts::take(fds, &spec)?;
    confine::process()?;
    let wants_serial = parts.serial.is_some() && cmdline::wants_serial(&spec.cmdline);
    let mut shape = shape(&spec, topology, wants_serial);

    // Memory before interrupt controllers before vCPUs before doorbells: in another order each waits
    // for a grace period of the kernel's.
    let (saved, ram, recorder) = recall(&spec, parts.snapshots, parts.aids, &shape)?;
    let writes = writes(&spec, &ram);
    let end = Arc::new(End::new().map_err(SetupError::Event)?);
    let mut extras = Extras::new(parts.extras, &spec, &end)?;
    let images = std::mem::take(&mut extras.images);
    let vm = Vm::new(parts.kvm, &ram, images, writes)?;
    let ids = topology.apic_ids();
    let vcpus = ids
        .map(|id| vm.create_vcpu(id))
        .collect::<Result<Vec<_>, _>>()?;

    let outbox = Arc::new(Outbox::new(parts.control.clone()).map_err(SetupError::Event)?);
    let lines = Arc::new(Lines::new().map_err(SetupError::Event)?);
    let inbox = Inbox::new(parts.control, &lines, &outbox).map_err(SetupError::Control)?;
    let mut slots = Slots::default();
    let workers = slots.add_workers(parts.disks, parts.nets, &outbox, &ram)?;
    let log = shared(parts.log)?;
    let gate = Gate::new(vcpus.len(), workers.len()).map_err(SetupError::Event)?;
    let gate = Arc::new(gate);
    let broker = broker(parts.broker).map_err(SetupError::Control)?;
    let vsock = slots.add(Vsock::new(&outbox, &lines, log.clone(), broker), &ram)?;
    let rng = slots.add(Rng, &ram)?;
    let (balloon, more) = slots.add_extras(&mut extras, &ram)?;
    let own = halting(&gate, [vsock, rng], more);
    let irqs = slots.irqs()?;

    let start = Start {
        vm: &vm,
        vcpus: &vcpus,
        ram: &ram,
        topology,
    };
    shape.kernel = match &saved {
        Some(state) => start.again(state)?,
        None => start.boot(&spec, &parts.images, &irqs, wants_serial)?,
    };
    slots.connect(&vm, &irqs)?;
    extras.ports.serial = serial(&vm, parts.serial.filter(|_| wants_serial))?;
    let ring = Ring::of(&vcpus[0]).map_err(SetupError::Ring)?;
    let (pio, mmio) = (Pio::new(extras.ports), Mmio::new(slots.mmio));
    let shared = Arc::new(Shared::new(pio, mmio, ring));
    if let Some(state) = &saved {
        revive(state, &slots.wired, &shared, &ram, &lines, &spec)?;
    }
    let subject = Subject {
        vm: Arc::new(vm),
        vcpus: vcpus.into_iter().map(|v| Arc::new(Mutex::new(v))).collect(),
        shared,
        ram,
        anonymous: saved.is_none(),
        writes,
        slots: slots.wired,
        own,
        gate,
        shape,
        tracking: Mutex::default(),
    };
    let asked = (balloon, slots.disks, recorder);
    finish(inbox, outbox, log, workers, subject, end, asked)
}

/// The state that there is, guest memory, and which of it has come if that is a question.
type Recalled = (Option<State>, Arc<GuestRam>, Option<Recorder>);

/// Guest memory: new, or a snapshot's with the state that goes with it.
fn recall(
    spec: &VmSpec,
    files: Vec<(File, File)>,
    aids: Aids,
    shape: &Shape,
) -> Result<Recalled, SetupError> {
    let Some(chain) = open(spec, files)? else {
        let ram = memory::allocate(spec.memory_mib, spec.huge_pages)?;
        return Ok((None, ram, None));
    };
    chain.check(shape)?;
    let (state, source) = chain.memory()?;
    let (ram, recorder) = load::place(&state, source, aids)?;
    Ok((Some(state), ram, recorder))
}

/// What vCPUs begin with. Both ways give the kernel's place.
struct Start<'a> {
    vm: &'a Vm,
    vcpus: &'a [VcpuFd],
    ram: &'a GuestRam,
    topology: Topology,
}

impl Start<'_> {
    /// At a kernel's entry.
    fn boot(
        &self,
        spec: &VmSpec,
        images: &Images,
        irqs: &[u32],
        has_serial: bool,
    ) -> Result<Range<u64>, SetupError> {
        let line = cmdline::build(irqs, &spec.cmdline, has_serial)?;
        let (entry, kernel) = load(self.ram, spec, self.topology, images, &line)?;
        prepare(self.vm, self.vcpus, self.topology, entry)?;
        Ok(kernel)
    }

    /// Where they were.
    fn again(&self, state: &State) -> Result<Range<u64>, SetupError> {
        state.restore_vm(self.vm)?;
        state.restore_vcpus(self.vm, self.vcpus)?;
        Ok(state.shape().kernel.clone())
    }
}

/// Devices as they were, and a new identity for the guest.
fn revive(
    state: &State,
    slots: &[Arc<dyn Wired>],
    shared: &Shared,
    ram: &GuestRam,
    lines: &Lines,
    spec: &VmSpec,
) -> Result<(), SetupError> {
    state.restore_devices(slots, &shared.pio)?;
    let link = spec.restore.as_ref().and_then(|r| r.link.clone());
    let mut identity = snapshot::machine::identity(ram, link)?;
    identity.hostname = spec.restore.as_ref().and_then(|r| r.hostname.clone());
    let added = lines.add(&ToGuest::Restored(Box::new(identity)));
    assert!(added, "the first line finds room");
    Ok(())
}

fn shape(spec: &VmSpec, topology: Topology, serial: bool) -> Shape {
    let parts = [
        ("serial", serial),
        ("rtc", spec.rtc),
        ("watchdog", spec.watchdog),
        ("pvpanic", spec.pvpanic),
    ]
    .into_iter();
    Shape {
        memory_mib: spec.memory_mib,
        apic_ids: topology.apic_ids().collect(),
        ports: parts
            .filter(|(_, has)| *has)
            .map(|(name, _)| name.to_owned())
            .collect(),
        kernel: 0..0,
    }
}

/// What the main thread serves, and leaves alone while the machine is paused.
fn halting(
    gate: &Arc<Gate>,
    first: [Arc<dyn Served>; 2],
    more: Vec<Arc<dyn Served>>,
) -> Vec<Arc<dyn Served>> {
    let halting = |device| -> Arc<dyn Served> {
        let gate = gate.clone();
        Arc::new(Halting { gate, device })
    };
    first.into_iter().chain(more).map(halting).collect()
}

/// The threads' filters, and what each serves.
fn finish(
    inbox: Inbox,
    outbox: Arc<Outbox>,
    log: Option<SharedLog>,
    workers: Vec<Worker>,
    subject: Subject,
    end: Arc<End>,
    (balloon, disks, recorder): (Option<SharedBalloon>, SharedDisks, Option<Recorder>),
) -> Result<Machine, SetupError> {
    let mut machine = Machine {
        vm: subject.vm.clone(),
        vcpus: subject.vcpus.clone(),
        gate: subject.gate.clone(),
        vcpu_filter: confine::filter(Kind::Vcpu)?,
        shared: subject.shared.clone(),
        workers,
        main_filter: confine::filter(Kind::Main)?,
        main: vec![outbox.clone()],
        end,
        outbox: outbox.clone(),
        ram: subject.ram.clone(),
        kernel: subject.shape.kernel.clone(),
        log,
    };
    let own = subject.own.clone();
    let registry = Registry::new(
        subject.slots.clone(),
        &subject.shared,
        &outbox,
        balloon.clone(),
        subject.shape.memory_mib,
        recorder.as_ref().map(|r| r.missing.clone()),
    );
    let asked = (balloon, disks);
    let requests = Requests::new(inbox, &outbox, registry, asked, subject, recorder);
    machine.main.push(Arc::new(requests));
    machine.main.extend(own);
    Ok(machine)
}

/// Turns noting on in this process; KVM is told with the memory.
fn writes(spec: &VmSpec, ram: &GuestRam) -> Writes {
    if !spec.track_memory {
        return Writes::Unnoted;
    }
    ram.iter().for_each(|region| region.bitmap().begin());
    Writes::Noted
}

/// The snapshot that the specification names, with all that it is based on.
fn open(spec: &VmSpec, files: Vec<(File, File)>) -> Result<Option<Chain>, SetupError> {
    let Some(restore) = &spec.restore else {
        return Ok(None);
    };
    let mut opened = Vec::with_capacity(files.len());
    for (state, memory) in files {
        opened.push(Files::open(&state, memory, restore.trusted)?);
    }
    Ok(Some(Chain::new(opened)?))
}

/// Gives every vCPU its CPUID and state; the first one starts at `entry`.
fn prepare(vm: &Vm, vcpus: &[VcpuFd], topology: Topology, entry: Entry) -> Result<(), SetupError> {
    let supported = vm.supported_cpuid()?;
    for (index, vcpu) in (0..topology.cpus()).zip(vcpus) {
        let leaves = cpuid::leaves(supported.as_slice(), index, topology);
        let entry = (index == 0).then_some(entry);
        start::prepare(vcpu, &leaves, entry).map_err(|e| SetupError::Vcpu(index, e))?;
    }
    Ok(())
}

/// Puts kernel, initramfs and boot tables into guest memory; gives the kernel's entry and place.
fn load(
    ram: &GuestRam,
    spec: &VmSpec,
    topology: Topology,
    images: &Images,
    line: &str,
) -> Result<(Entry, Range<u64>), SetupError> {
    let mib = spec.memory_mib;
    let kernel = images.kernel.as_ref().ok_or(SetupError::NoKernel)?;
    let kernel = Kernel::load(ram, kernel, mib)?;
    let initramfs = initramfs::load(ram, &images.initramfs, &kernel.initramfs_room(mib), mib)?;
    kernel.write_tables(ram, line, &mptable::build(topology), &initramfs, mib)?;
    Ok((kernel.entry(), kernel.place()))
}

fn broker(parts: Option<(OwnedFd, Vec<u32>)>) -> io::Result<Option<Broker>> {
    parts
        .map(|(socket, ports)| Broker::new(socket, &ports))
        .transpose()
}

fn shared(log: Option<([File; 2], u64)>) -> Result<Option<SharedLog>, SetupError> {
    let log = log.map(|(files, max_bytes)| Log::open(files, max_bytes));
    let log = log.transpose().map_err(SetupError::Log)?;
    Ok(log.map(|log| Arc::new(Mutex::new(log))))
}

/// What can be said of a specification without its descriptors.
pub(crate) fn check(spec: &VmSpec) -> Result<Topology, SetupError> {
    if spec.kernel.is_none() && spec.restore.is_none() {
        return Err(SetupError::NoKernel);
    }
    let topology = Topology::new(spec.cpus, spec.topology)?;
    memory::check(spec.memory_mib, spec.huge_pages)?;
    forward::check(spec.sockets.as_ref().map_or(&[], |sockets| &sockets.ports))?;
    let mut serials: Vec<&str> = spec.disks.iter().map(|d| d.serial.as_str()).collect();
    serials.sort_unstable();
    match serials.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(SetupError::Serials(pair[0].to_owned())),
        None => Ok(topology),
    }
}

fn serial(vm: &Vm, output: Option<File>) -> Result<Option<Serial>, SetupError> {
    let Some(output) = output else {
        return Ok(None);
    };
    let event = || vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let interrupt = event().map_err(SetupError::Event)?;
    vm.interrupt_on_signal(&interrupt, layout::SERIAL_IRQ)?;
    Ok(Some(Serial::new(output, interrupt)))
}
