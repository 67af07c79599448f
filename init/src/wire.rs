//! What the node agent and pid1 say to each other.
//!
//! Owns: the packets of the SOCK_SEQPACKET that the node inherits as descriptor 3. One JSON object a
//! packet, descriptors beside it by SCM_RIGHTS.
//! Refuses: bytes of anybody else. Both ends are roles of this binary.

use serde::{Deserialize, Serialize};
use types::VmId;

/// Name servers for the C library: pid1 makes it and mounts it at `/etc/resolv.conf`, the node writes it.
pub(crate) const RESOLV_CONF: &str = "/run/sifr/resolv.conf";
/// Descriptor number of the socket in the node process.
pub(crate) const PID1_FD: i32 = 3;
/// Longest packet.
pub(crate) const PACKET_MAX: usize = 64 << 10;
/// Most descriptors beside one packet: below the kernel's SCM_MAX_FD of 253.
pub(crate) const FDS_MAX: usize = 64;
/// uid and gid of the chunk daemon: nothing else has it. 99999 is a group of VMMs, 100000 the first of them.
pub(crate) const CHUNKS_ID: u32 = 99_998;
/// uid and gid of the ingress process.
pub(crate) const INGRESS_ID: u32 = 99_997;
/// VM slots: uid = gid = 100000 + slot.
pub(crate) const SLOTS_MAX: u16 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToPid1 {
    /// A sign of life, at least each 10 s: pid1 ends a node that gives none.
    Alive,
    /// Run a VMM. Beside it: first `child` descriptors for the VMM, from number 3 upwards, then
    /// descriptors that pid1 keeps and gives back to each new node.
    Spawn {
        vm: VmId,
        slot: u16,
        child: usize,
        limits: Limits,
        tag: String,
    },
    /// Send a signal to a VMM.
    Kill { vm: VmId, signal: i32 },
    /// End a process as a crash would. Answered by `Drilled` when it is dead; the node itself is not there
    /// to hear that.
    Drill { victim: Victim },
    /// The exit status has been noted: drop the kept descriptors and the record.
    Forget { vm: VmId },
    /// There are names to serve: the ingress process is to run from now on. Said again it changes nothing.
    Ingress,
    /// The one way down.
    Shutdown { mode: Mode },
}

/// Whom a drill ends: all that can be is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Victim {
    Node,
    Chunks,
    Ingress,
    Machine { vm: VmId },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    PowerOff,
    Reboot,
}

/// Limits of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Of its cgroup, as are the next three.
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u64,
    /// Processors whose time it may use, all its threads together: `cpu.max`.
    pub(crate) cpus: u64,
    /// Share of CPU time, cgroup v2 `cpu.weight`, 1 to 10000.
    pub(crate) cpu_weight: u64,
    /// Longest file that it may write.
    pub(crate) file_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromPid1 {
    /// A VM from before: running, or ended and not yet forgotten. Beside it: its kept descriptors.
    Kept {
        vm: VmId,
        slot: u16,
        pid: i32,
        tag: String,
        status: Option<Status>,
    },
    /// All `Kept` have been said.
    Welcome,
    Spawned {
        vm: VmId,
        pid: i32,
    },
    /// Nothing was started; the descriptors are closed.
    SpawnFailed {
        vm: VmId,
        error: String,
    },
    /// Repeated to every new node (inside `Kept`) until `Forget`.
    Exited {
        vm: VmId,
        status: Status,
    },
    /// The process is dead and, of a VMM, `Exited` has been said. `None`: there was none to kill.
    Drilled {
        victim: Victim,
        pid: Option<i32>,
    },
    /// pid1 was asked to go down (power button, SIGTERM): stop the machines, then say `Shutdown`.
    Stop {
        mode: Mode,
    },
}

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
}
