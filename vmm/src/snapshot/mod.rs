//! A machine in two files, and a machine from two files.
//!
//! Owns: what a snapshot consists of, and that it fits the machine it is restored into.
//! Refuses: snapshots of another shape, another version or another processor.

pub(crate) mod format;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod memory;
mod raw;
pub(crate) mod vcpu;
pub(crate) mod working_set;

use std::fs::File;
use std::ops::Range;

use kvm_bindings::{kvm_clock_data, kvm_irqchip};
use serde::{Deserialize, Serialize};

use self::format::FormatError;
use self::memory::{MemoryFileError, MemoryState};
use self::vcpu::{VcpuError, VcpuState};
use crate::bus::PortsState;
use crate::gate::GateError;
use crate::hv::kvm::HvError;
use crate::memory::MemoryError;
use crate::virtio::worker::{SlotError, SlotState};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    #[error("vCPU {0}")]
    Vcpu(usize, #[source] VcpuError),
    #[error("device {0}")]
    Device(usize, #[source] SlotError),
    #[error(transparent)]
    Hv(#[from] HvError),
    #[error("{0}")]
    Ioctl(&'static str, #[source] kvm_ioctls::Error),
    #[error(transparent)]
    Pause(#[from] GateError),
    #[error(
        "the snapshot has {what} {theirs}, the specification {ours}: specify what the snapshot has"
    )]
    Shape {
        what: &'static str,
        theirs: String,
        ours: String,
    },
    #[error("descriptor {0} beside the request is no regular file open for writing")]
    File(usize),
    #[error(
        "there is nothing to differ from: specify `track_memory`, and take a full snapshot first"
    )]
    NoBase,
    #[error(
        "the {0}. snapshot of the chain is not the one that the next is based on: name the full one first, then each after the one it was taken after"
    )]
    Chain(usize),
    #[error("map the snapshot's memory")]
    Map(#[source] MemoryError),
    #[error(transparent)]
    WorkingSet(#[from] working_set::WorkingSetError),
    #[error("read the working set's pages of the snapshot")]
    Prefetch(#[source] std::io::Error),
    #[error("build the filter of the thread that brings pages")]
    Filter(#[source] crate::confine::ConfineError),
    #[error("start the thread that brings pages")]
    Serve(#[source] std::io::Error),
    #[error(
        "this machine was not restored with the mode `missing`: nobody knows which pages it has needed"
    )]
    Unrecorded,
    #[error("get random bytes")]
    Random(#[source] getrandom::Error),
}

/// The text of an error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

/// What a machine must have in common with the one in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    pub(crate) memory_mib: u64,
    pub(crate) apic_ids: Vec<u8>,
    /// What there is at I/O ports, by name.
    pub(crate) ports: Vec<String>,
    /// Where the guest's kernel is: its last words are looked for there. A specification does not say.
    pub(crate) kernel: Range<u64>,
}

/// The state file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The release that wrote it, for people.
    written_by: String,
    /// Random: which snapshot this is.
    id: String,
    /// Of a differential snapshot, the one it was taken after.
    parent: Option<String>,
    shape: Shape,
    #[serde(with = "raw::list")]
    chips: Vec<kvm_irqchip>,
    #[serde(with = "raw")]
    clock: kvm_clock_data,
    vcpus: Vec<VcpuState>,
    devices: Vec<SlotState>,
    ports: PortsState,
    memory: MemoryState,
}

impl State {
    /// `None`: no writer of ours gave it this id.
    fn id_bytes(&self) -> Option<[u8; working_set::ID_BYTES]> {
        let digits = self.id.as_bytes();
        let mut id = [0; working_set::ID_BYTES];
        if digits.len() != 2 * id.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(id)
    }
}

/// One snapshot's two files, checked as far as they can be alone.
pub(crate) struct Files {
    pub(crate) state: State,
    pub(crate) memory: File,
}

impl Files {
    /// `trusted`: the memory file need not be read.
    pub(crate) fn open(state: &File, memory: File, trusted: bool) -> Result<Self, SnapshotError> {
        let state = format::read(state)?;
        state.memory.check_length(&memory)?;
        if !trusted {
            state.memory.verify(&memory)?;
        }
        Ok(Self { state, memory })
    }
}

/// A snapshot with all that it is based on: the full one first, the wanted one last.
pub(crate) struct Chain(Vec<Files>);

impl Chain {
    pub(crate) fn new(files: Vec<Files>) -> Result<Self, SnapshotError> {
        for (index, files) in files.iter().enumerate() {
            let is_full = files.state.memory.pages.is_none();
            if is_full != (index == 0) {
                return Err(SnapshotError::Chain(index + 1));
            }
        }
        let linked = |pair: &[Files]| pair[1].state.parent.as_ref() == Some(&pair[0].state.id);
        match files.windows(2).position(|pair| !linked(pair)) {
            Some(index) => Err(SnapshotError::Chain(index + 1)),
            None => Ok(Self(files)),
        }
    }

    /// The machine's state.
    pub(crate) fn state(&self) -> &State {
        &self.0[self.0.len() - 1].state
    }
}

/// `bytes` random bytes in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String, SnapshotError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(SnapshotError::Random)?;
    Ok(hex(&random))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod tests {
    use super::{
        MemoryState, PortsState, Shape, SlotState, State, VcpuState, kvm_clock_data, kvm_irqchip,
        memory,
    };

    impl State {
        /// The same machine with these devices.
        pub(crate) fn with(mut self, devices: Vec<SlotState>, ports: PortsState) -> Self {
            (self.devices, self.ports) = (devices, ports);
            self
        }

        /// The same as what differs from a full one in some pages.
        pub(crate) fn differing(mut self, pages: Vec<memory::Run>) -> Self {
            self.parent = Some("its base".to_owned());
            self.memory.pages = Some(pages);
            self
        }

        /// A full one that this can be based on, if it is based on one.
        pub(crate) fn base(&self) -> Option<Self> {
            let id = self.parent.clone()?;
            Some(Self { id, ..state() })
        }

        pub(crate) fn vcpus(&self) -> &[VcpuState] {
            &self.vcpus
        }
    }

    /// A small state with something in each part.
    pub(crate) fn state() -> State {
        State {
            written_by: "a test".to_owned(),
            id: "00".to_owned(),
            parent: None,
            shape: Shape {
                memory_mib: 32,
                apic_ids: vec![0],
                ports: vec!["serial".to_owned()],
                kernel: 0..4096,
            },
            chips: vec![kvm_irqchip::default(); 3],
            clock: kvm_clock_data::default(),
            vcpus: vec![VcpuState::with_leaves(vec![Default::default()])],
            devices: Vec::new(),
            ports: PortsState::default(),
            memory: MemoryState {
                bytes: 32 << 20,
                blocks: Vec::new(),
                pages: None,
            },
        }
    }
}
