//! The specification of one VM: what the node hands to the VMM, and what the VMM reports.
//!
//! Owns: the JSON in descriptor 3 of a VMM process and the messages on its control socket.
//! Refuses: paths. A VMM gets descriptors only.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::guest::{FromGuest, Link, ToGuest};
use crate::metrics::Machine;
use crate::{Mac, Name, VmId};

/// Descriptor of the JSON [`VmSpec`] in a new VMM process (a sealed memfd or pipe, read to its end).
pub const SPEC_FD: i32 = 3;
/// Longest message on a VMM's control socket (SOCK_SEQPACKET, one JSON object a packet).
pub const CONTROL_PACKET_MAX: usize = 64 << 10;

/// The number of an inherited descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub i32);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    pub id: VmId,
    pub cpus: u8,
    pub memory_mib: u64,
    /// /dev/kvm, opened for reading and writing.
    pub kvm: Fd,
    /// Guest kernel: an uncompressed ELF with a PVH note, or a bzImage with a 64-bit entry. Not read, and not
    /// needed, where a snapshot is restored.
    #[serde(default)]
    pub kernel: Option<Fd>,
    /// Concatenated in this order, each padded to 512 bytes.
    #[serde(default)]
    pub initramfs: Vec<Fd>,
    /// Appended to the VMM's own command line. Normally empty; `console=ttyS0` turns the serial port on.
    #[serde(default)]
    pub cmdline: String,
    #[serde(default)]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub nets: Vec<Net>,
    /// SOCK_SEQPACKET: [`ToVmm`] in, [`FromVmm`] out.
    #[serde(default)]
    pub control: Option<Fd>,
    #[serde(default)]
    pub log: Option<Log>,
    /// Where serial output goes, if the command line turns it on.
    #[serde(default)]
    pub serial: Option<Fd>,
    /// How the vCPUs are grouped. Absent: one socket, one thread a core.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// Pages of the host that back the guest's memory.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Lets memory go back to the host.
    #[serde(default)]
    pub balloon: Option<Balloon>,
    /// A stream for bulk output and input.
    #[serde(default)]
    pub console: Option<Console>,
    /// Disk images as guest-physical memory, read-only: `/dev/pmem0` is the first.
    #[serde(default)]
    pub pmems: Vec<Pmem>,
    /// A timer that the guest starts and feeds (IB700, I/O ports 0x441 and 0x443). When it runs out the
    /// machine ends with [`StopReason::Watchdog`].
    #[serde(default)]
    pub watchdog: bool,
    /// A clock with the host's time, UTC (MC146818, I/O ports 0x70 and 0x71).
    #[serde(default)]
    pub rtc: bool,
    /// A port by which the guest's kernel says that it has panicked (pvpanic, I/O port 0x505).
    #[serde(default)]
    pub pvpanic: bool,
    /// Connections between programs in the guest and programs of the host. Absent: vsock is the guest's init's alone.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// Note which memory changes, so that differential snapshots can be taken. Costs the guest an exit for
    /// each page that it writes between two snapshots, and huge pages.
    #[serde(default)]
    pub track_memory: bool,
    /// `None`: the guest boots.
    #[serde(default)]
    pub restore: Option<Restore>,
}

/// Goes on where a machine was when its snapshot was taken. The rest of the specification names the same
/// number and kinds of devices in the same order, the same memory and vCPUs; what is behind the devices may
/// be other: another TAP with another MAC, a copy of a disk. The kernel and initramfs are not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The two files of the snapshot, open for reading. Nobody may change them while the machine runs.
    pub state: Fd,
    pub memory: Fd,
    /// Of a differential snapshot, those that it is based on: first the full one.
    #[serde(default)]
    pub bases: Vec<Base>,
    pub mode: RestoreMode,
    /// What `ToVmm::WorkingSet` of a machine from this snapshot has written: these pages are read at once,
    /// before the vCPUs run.
    #[serde(default)]
    pub working_set: Option<Fd>,
    /// Whether the memory files are known to be undamaged. Otherwise all of them is read and compared with
    /// its digests before the guest goes on. The state is always compared.
    #[serde(default)]
    pub trusted: bool,
    /// What the guest's network card becomes, where it is to have another address.
    #[serde(default)]
    pub link: Option<Link>,
    /// What the guest is called, where it is to have another name.
    #[serde(default)]
    pub hostname: Option<Name>,
}

impl Restore {
    /// From a full snapshot, into memory that is mapped; the guest is told of no new address or name.
    pub fn new(state: Fd, memory: Fd) -> Self {
        Self {
            state,
            memory,
            bases: Vec::new(),
            mode: RestoreMode::Private,
            working_set: None,
            trusted: false,
            link: None,
            hostname: None,
        }
    }
}

/// A snapshot that another one is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    pub state: Fd,
    pub memory: Fd,
}

/// How memory comes into a restored machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// The memory file is mapped: what is touched comes from the page cache, which all clones share, and
    /// what is written becomes the guest's own.
    Private,
    /// Memory is the guest's own from the start, and each page comes when it is first touched, from a thread
    /// that serves faults. Which pages those are can be asked for ([`ToVmm::WorkingSet`]).
    Missing {
        /// `/dev/userfaultfd`, open for reading and writing.
        userfault: Fd,
    },
}

impl VmSpec {
    /// The least machine: no disks, no network, nobody who listens.
    pub fn new(id: VmId, cpus: u8, memory_mib: u64, kvm: Fd, kernel: Fd) -> Self {
        Self {
            kernel: Some(kernel),
            ..Self::without_kernel(id, cpus, memory_mib, kvm)
        }
    }

    /// The same without what it begins with: a kernel or a snapshot.
    pub fn without_kernel(id: VmId, cpus: u8, memory_mib: u64, kvm: Fd) -> Self {
        Self {
            id,
            cpus,
            memory_mib,
            kvm,
            kernel: None,
            initramfs: Vec::new(),
            cmdline: String::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            control: None,
            log: None,
            serial: None,
            topology: None,
            huge_pages: HugePages::default(),
            balloon: None,
            console: None,
            pmems: Vec::new(),
            watchdog: false,
            rtc: false,
            pvpanic: false,
            sockets: None,
            track_memory: false,
            restore: None,
        }
    }
}

/// How vCPUs are grouped, as CPUID shows it. The product of the three is the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    #[serde(default = "one")]
    pub sockets: u8,
    /// Cores of a socket.
    pub cores: u8,
    /// Threads of a core.
    #[serde(default = "one")]
    pub threads: u8,
}

const fn one() -> u8 {
    1
}

/// Pages of the host that back a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HugePages {
    /// Pages of 4 KiB only: memory that a guest gives back returns in the smallest pieces.
    #[serde(rename = "none")]
    None,
    /// As the host finds them, 2 MiB or 4 KiB.
    #[default]
    #[serde(rename = "transparent")]
    Transparent,
    /// 2 MiB each, reserved on the host beforehand (`vm.nr_hugepages`); the machine starts only where
    /// there are enough.
    #[serde(rename = "2Mi")]
    Reserved2Mi,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Up to 20 bytes of ASCII: how the guest finds the disk.
    pub serial: String,
    pub fd: Fd,
    pub read_only: bool,
    /// Set where the content arrives on first touch.
    #[serde(default)]
    pub lazy: Option<Lazy>,
    /// Request queues, 1 to [`DISK_QUEUES_MAX`]: as many as vCPUs is what pays.
    #[serde(default = "one_queue")]
    pub queues: u8,
    /// How fast it may be used, reads and writes together.
    #[serde(default)]
    pub limit: Option<Limit>,
    #[serde(default)]
    pub engine: Engine,
}

/// Most request queues of a disk: beyond this vCPUs share, and each costs the guest an exit at boot.
pub const DISK_QUEUES_MAX: u8 = 8;
/// Most queue pairs of a network card, for the same reason.
pub const NET_QUEUES_MAX: u8 = 8;

fn one_queue() -> u8 {
    1
}

/// How a disk's requests reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// One after the other until several wait at once again and again; then by io_uring, where the kernel
    /// lets it.
    #[default]
    Auto,
    /// One after the other, always.
    Sync,
}

/// What flows through a device. What is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Requests or packets.
    #[serde(default)]
    pub operations: Option<Rate>,
    /// Bytes of content: a disk's data, a packet with its Ethernet header.
    #[serde(default)]
    pub bytes: Option<Rate>,
}

/// A token bucket: `burst` at once, `per_second` in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub per_second: NonZeroU64,
    pub burst: NonZeroU64,
}

impl Disk {
    /// A disk whose content is all there.
    pub fn new(serial: &str, fd: Fd, read_only: bool) -> Self {
        Self {
            serial: serial.to_owned(),
            fd,
            read_only,
            lazy: None,
            queues: one_queue(),
            limit: None,
            engine: Engine::default(),
        }
    }
}

/// A disk whose chunks are fetched on first touch: `Disk::fd` holds the content of chunks that are
/// present, and zeros elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lazy {
    /// Read-only shared memory: the chunk map, `flist::map` says how it is laid out.
    pub map: Fd,
    /// SOCK_SEQPACKET to the chunk daemon: `flist::wire` says what is spoken.
    pub chunks: Fd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A TAP with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, attached.
    pub tap: Fd,
    pub mac: Mac,
    pub mtu: u16,
    /// /dev/vhost-net, opened for reading and writing: the kernel moves the packets of this queue pair.
    #[serde(default)]
    pub vhost: Option<Fd>,
    /// Queue pairs besides the first, up to [`NET_QUEUES_MAX`] in all. The TAP is then IFF_MULTI_QUEUE.
    #[serde(default)]
    pub queues: Vec<NetQueue>,
    #[serde(default)]
    pub limit: Option<NetLimit>,
}

/// One more queue pair of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetQueue {
    /// Attached to the same TAP as the first.
    pub tap: Fd,
    /// As [`Net::vhost`]; every pair has one or none has.
    #[serde(default)]
    pub vhost: Option<Fd>,
}

/// How fast a card may be used. Not together with vhost: the kernel counts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimit {
    /// What the guest sends: it waits.
    #[serde(default)]
    pub tx: Option<Limit>,
    /// What the guest receives: it waits in the TAP, which drops what exceeds its queue.
    #[serde(default)]
    pub rx: Option<Limit>,
}

impl Net {
    pub fn new(tap: Fd, mac: Mac, mtu: u16) -> Self {
        Self {
            tap,
            mac,
            mtu,
            vhost: None,
            queues: Vec::new(),
            limit: None,
        }
    }
}

/// How the guest gives memory back (virtio-balloon).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// MiB that the guest keeps once its driver is there, all of its memory if absent. [`ToVmm::Balloon`]
    /// changes it.
    #[serde(default)]
    pub target_mib: Option<u64>,
    /// A guest that runs out of memory takes it from the balloon.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// The guest reports free memory by itself, and the host takes it back.
    #[serde(default)]
    pub free_page_reporting: bool,
}

impl Balloon {
    /// Takes nothing from the guest but what it does not use.
    pub fn reporting() -> Self {
        Self {
            target_mib: None,
            deflate_on_oom: true,
            free_page_reporting: true,
        }
    }
}

/// Both directions of one descriptor: a socket, a pseudoterminal, or a pipe or file that output goes to. The VMM
/// makes it non-blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    pub fd: Fd,
    #[serde(default)]
    pub kind: ConsoleKind,
}

/// As what the guest sees a [`Console`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleKind {
    /// A stream of bytes, `/dev/vport<N>p0`, whose name in sysfs is `sifr.console`. A writer that nobody
    /// reads from sleeps.
    #[default]
    Stream,
    /// A terminal, `/dev/hvc0`, which can be the kernel's console (`console=hvc0`). A vCPU that writes
    /// what nobody reads waits and does nothing else: Linux's driver works so.
    Terminal,
}

/// The guest's vsock as stream sockets of the host. The VMM neither listens nor connects: a broker at the other end of
/// `broker` does, and passes connected sockets ([`ToBroker`], [`FromBroker`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// SOCK_SEQPACKET, one JSON object a packet.
    pub broker: Fd,
    /// Ports of the host that the guest may connect to, 1 to [`SOCKET_PORT_MAX`], but those of its init.
    #[serde(default)]
    pub ports: Vec<u32>,
}

/// Highest port of the host that can be named: above are those from which the host connects.
pub const SOCKET_PORT_MAX: u32 = (1 << 30) - 1;
/// Most connections of [`Sockets`] at once. Each may hold 64 KiB for either side that does not read.
pub const SOCKETS_MAX: usize = 128;

/// VMM to broker: the guest connects to `port` of the host, from `guest_port` of its own. It waits for [`FromBroker::Accepted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToBroker {
    pub port: u32,
    pub guest_port: u32,
}

/// Broker to VMM. A socket beside a packet is a stream, connected and non-blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromBroker {
    /// The answer to the [`ToBroker`] of these ports, with the socket beside it; without one, a refusal.
    Accepted { port: u32, guest_port: u32 },
    /// Whoever is at the other end of the socket beside it wants to speak to `guest_port` of the guest.
    Connect { guest_port: u32 },
}

/// A file that never shrinks while the machine runs. Its content is padded with zeros to whole units of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Opened for reading.
    pub fd: Fd,
}

/// The workload's output: two files used in turn. When one holds `max_bytes`, the other is truncated
/// and written next. `types::vm::LogRecord` says what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Opened read-write and O_APPEND.
    pub files: [Fd; 2],
    pub max_bytes: u64,
}

/// Which output stream of the program a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Header of one log record, 20 bytes little-endian: sequence (u64), realtime milliseconds (u64),
/// length and stream (u32: length in the low 24 bits, stream number 1 or 2 in the high 8), then
/// `length` bytes of output as the program wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRecord {
    /// Counts up by one per record of a VM's log, over both files and over restarts.
    pub sequence: u64,
    pub time_ms: u64,
    pub stream: Stream,
    pub length: u32,
}

impl LogRecord {
    pub const HEADER_BYTES: usize = 20;
    /// Longest record: one read from the guest.
    pub const LENGTH_MAX: u32 = 64 << 10;

    pub fn encode(&self) -> [u8; Self::HEADER_BYTES] {
        let stream = match self.stream {
            Stream::Stdout => 1u32,
            Stream::Stderr => 2,
        };
        let mut out = [0; Self::HEADER_BYTES];
        out[..8].copy_from_slice(&self.sequence.to_le_bytes());
        out[8..16].copy_from_slice(&self.time_ms.to_le_bytes());
        out[16..]
            .copy_from_slice(&(stream << 24 | self.length.min(Self::LENGTH_MAX)).to_le_bytes());
        out
    }

    /// `None` where the bytes are no record: a torn write at the end of a file.
    pub fn decode(bytes: &[u8; Self::HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let tail = u32::from_le_bytes(bytes[16..].try_into().expect("4 bytes"));
        let stream = match tail >> 24 {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let length = tail & 0xff_ffff;
        (length <= Self::LENGTH_MAX).then_some(Self {
            sequence: word(0),
            time_ms: word(8),
            stream,
            length,
        })
    }
}

/// VMM to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// vCPUs run. Microseconds from process start to here.
    Running { setup_us: u64 },
    /// A line from guest init.
    Guest(FromGuest),
    /// A disk could not be read: the chunk daemon gave up on a chunk, the guest got an I/O error.
    /// `chunk` is its index in the chunk map; a VMM knows no digests (`flist::wire::ToNode::Fault` does).
    ChunkFailed { disk: String, chunk: u32 },
    /// The guest's kernel gave up, for this reason by its own account. Its last lines are in the log.
    Panicked { reason: String },
    /// The guest's init has connected: its kernel is up. Microseconds from process start to here.
    GuestInit { us: u64 },
    /// The last message: why the VM ended.
    Stopped { reason: StopReason, exits: Exits },
    /// A request was done, in so many microseconds. `bytes` were written to the descriptors that came with it.
    /// Requests are answered in their order.
    Done { took_us: u64, bytes: u64 },
    /// A request was not done, and why. The machine goes on as before.
    Refused { message: String },
    /// The answer to [`ToVmm::Metrics`].
    Metrics(Box<Machine>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The guest asked for power-off or reset: the only clean end.
    GuestReset,
    /// KVM could not go on: triple fault, internal error, failed entry.
    Fault { message: String },
    /// The guest started its watchdog and then did not feed it.
    Watchdog,
}

/// Exits of all vCPUs to user space, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exits {
    pub pio_in: u64,
    pub pio_out: u64,
    pub mmio_read: u64,
    pub mmio_write: u64,
    pub other: u64,
}

/// Node to VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToVmm {
    /// Forwarded to guest init as one line. The only message without an answer, unless it cannot be kept.
    Guest(ToGuest),
    /// Stop all vCPUs and devices, with nothing in flight. Of a paused machine: done already.
    Pause,
    /// Go on after `Pause`. Of a running machine: done already.
    Resume,
    /// Write the machine's state to the first and its memory to the second of two descriptors beside the
    /// packet, both of regular files, open for reading and writing; what they hold is cut off. A running
    /// machine is paused for it and goes on.
    Snapshot {
        kind: SnapshotKind,
    },
    Metrics,
    /// Write which pages the guest has needed so far, in that order, to a descriptor beside the packet, of a
    /// regular file, open for reading and writing; what it holds is cut off. For machines restored with
    /// [`RestoreMode::Missing`].
    WorkingSet,
    /// Let the guest keep so much memory, the balloon takes the rest.
    Balloon {
        target_mib: u64,
    },
    /// The file of the disk with this serial has so many bytes now, more than before: the guest is told. Answered
    /// with `Done` once it has been.
    Resize {
        disk: String,
        bytes: u64,
    },
}

/// How much memory a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// All of it.
    Full,
    /// What has changed since the last snapshot of this machine, of either kind. For machines
    /// with [`VmSpec::track_memory`].
    Differential,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_record_header_reads_back() {
        let record = LogRecord {
            sequence: 9,
            time_ms: 1 << 40,
            stream: Stream::Stderr,
            length: 65536,
        };
        assert_eq!(LogRecord::decode(&record.encode()), Some(record));
        assert_eq!(LogRecord::decode(&[0; 20]), None);
        assert_eq!(LogRecord::decode(&[0xff; 20]), None);
    }
}
