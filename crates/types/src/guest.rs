//! The contract with the guest's PID 1: what it is told to run, and what it says over vsock.
//!
//! Owns: the run specification (file `/run.json` in the guest's initramfs), vsock ports, messages.
//! Refuses: trust. What comes from a guest is an allegation about that guest only.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Cidr, Cidr6, Mac, Name};

/// Path of the [`RunSpec`] inside the guest's initramfs, JSON.
pub const RUN_SPEC_PATH: &str = "/run.json";
/// In the program's root, for programs to read: the machine's generation, 32 hexadecimal digits and a line end.
/// Replaced by a rename, which inotify(7) tells who watches the directory.
pub const GENERATION_PATH: &str = "/run/sifr/generation";
/// What stands there in a machine that has booted and was not restored since.
pub const FIRST_GENERATION: &str = "00000000000000000000000000000000";
/// Host vsock port of the control stream: JSON lines both ways, [`FromGuest`] and [`ToGuest`].
pub const CONTROL_PORT: u32 = 1024;
/// Host vsock ports of the raw standard output and standard error streams.
pub const STDOUT_PORT: u32 = 1025;
pub const STDERR_PORT: u32 = 1026;
/// The host's vsock address (VIRTIO 1.2 section 5.10.4).
pub const HOST_CID: u64 = 2;
/// The guest's vsock address: each VM has its own vsock, so all may use the same.
pub const GUEST_CID: u64 = 3;
/// Longest that a guest keeps a volume still: a copy takes milliseconds, and who asked for it may have died.
pub const HOLD_MAX_MS: u64 = 10_000;
/// Longest control line in either direction, newline included.
pub const CONTROL_LINE_MAX: usize = 4096;

/// What guest PID 1 sets up and runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    pub hostname: Name,
    /// virtio-blk serial of the read-only EROFS image.
    pub image_serial: String,
    /// virtio-blk serial of the ext4 disk for the overlay's upper layer; `None` = a tmpfs.
    pub upper_serial: Option<String>,
    /// Program and arguments, never joined into one string.
    pub argv: Vec<String>,
    /// `NAME=value`, in order; later ones win.
    pub env: Vec<String>,
    /// One of the six OCI forms: user, uid, user:group, uid:gid, uid:group, user:gid. Empty = root.
    pub user: String,
    /// Absolute; made if missing.
    pub workdir: String,
    /// Signal number sent to the program first when the machine is stopped.
    pub stop_signal: i32,
    /// How long after it everything is killed.
    pub stop_grace_ms: u64,
    /// The card with the default route and the name server.
    pub link: Option<Link>,
    /// Its other cards: through each it reaches the card's own network and no further.
    #[serde(default)]
    pub further: Vec<Link>,
    /// In the order in which they are mounted: parents first.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
}

/// A disk with an ext4 of the program's own data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Its name, for messages.
    pub volume: Name,
    /// virtio-blk serial of its disk.
    pub serial: String,
    /// Absolute, in the program's root; made if missing.
    pub path: String,
    pub read_only: bool,
}

/// One network card of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub mac: Mac,
    pub address: Cidr,
    pub gateway: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub mtu: u16,
    /// Beyond its network the first card's gateway leads while it says so, by router advertisements.
    #[serde(default)]
    pub address6: Option<Cidr6>,
}

/// What makes a machine that was restored from a snapshot differ from all others that were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// New with each restore, 32 hexadecimal digits. Also in guest memory, where docs/vmm.md says.
    pub generation: String,
    /// For the kernel's random number generator, 64 hexadecimal digits.
    pub entropy: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// What the network card is now; `None`: as it was.
    pub link: Option<Link>,
    /// What the machine is called now; `None`: as it was.
    #[serde(default)]
    pub hostname: Option<Name>,
}

/// Guest to host, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// The program has been executed. Milliseconds are since the guest kernel's entry.
    Started { pid: i32, uptime_ms: u64 },
    /// Set-up failed before the program ran: the exit code that follows is 125, 126 or 127.
    SetupFailed { stage: String, message: String },
    /// The program has ended. Its output is on its way, then what it wrote goes to the disk; `Exited` follows.
    Settling,
    /// The guest has taken on its new identity after a restore, and its program goes on.
    Restored { generation: String },
    /// The answer to `Freeze`. With `refused`, the program goes on, and this is why.
    Frozen { refused: Option<String> },
    /// The answer to `Grow`: what the volume's file system spans now, or why it does not span its disk.
    Grown {
        serial: String,
        bytes: u64,
        refused: Option<String>,
    },
    /// The answer to `Hold`: the volume's file system is written out and takes nothing, or why not.
    Held {
        serial: String,
        refused: Option<String>,
    },
    /// The program ended. `code` is 128 + signal where a signal ended it.
    Exited {
        code: i32,
        signal: Option<i32>,
        oom_kills: u64,
    },
}

/// Host to guest, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// Send the stop signal, wait for the grace period, kill, report, power off.
    Stop,
    /// Send one signal to the program.
    Signal {
        number: i32,
    },
    /// Have the program and all that it has started stand still: what is restored from a snapshot of now runs
    /// nothing of theirs before it has a new identity.
    Freeze,
    /// Have them go on.
    Thaw,
    /// The volume's disk has become larger, to so many bytes: its file system is to span them.
    Grow {
        serial: String,
        bytes: u64,
    },
    /// Write the volume's file system out and let nothing be written to it until `Release`, or until
    /// [`HOLD_MAX_MS`] are over: it is about to be copied.
    Hold {
        serial: String,
    },
    Release {
        serial: String,
    },
    /// The first line after the machine was restored from a snapshot: others may have been, too.
    Restored(Box<Identity>),
}
