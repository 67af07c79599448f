//! What the chunk daemon says to VMMs and to the node.
//!
//! Owns: the 16-byte packets of a VM's own socket, and the JSON packets of `/run/sifr/chunks.sock`.
//! Refuses: sockets, and packets that are not exactly one of these.

use serde::{Deserialize, Serialize};
use types::flist::ImageConfig;
use types::proxy::Egress;
use types::{Digest, Stores, VmId};

/// Every packet between VMM and daemon, little-endian: kind u32, index u32, reserved u64 (zero).
pub const PACKET_BYTES: usize = 16;

const WANT: u32 = 1;
const HELLO: u32 = 2;
const READY: u32 = 3;
const FAILED: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("packet of {0} bytes, expected {PACKET_BYTES}")]
    Length(usize),
    #[error("packet of kind {0} is unknown here, or its reserved bytes are not zero")]
    Kind(u32),
}

/// VMM to daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromVmm {
    /// The guest reads this chunk and its state byte says absent. Saying it again is harmless.
    Want(u32),
}

/// Daemon to VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToVmm {
    /// A daemon has taken over this socket: repeat every outstanding `Want`.
    Hello,
    /// The state byte says present. May come unasked.
    Ready(u32),
    /// Given up for now: give the guest an I/O error. The next `Want` tries again.
    Failed(u32),
}

impl FromVmm {
    pub fn encode(self) -> [u8; PACKET_BYTES] {
        match self {
            Self::Want(index) => packet(WANT, index),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        match fields(bytes)? {
            (WANT, index) => Ok(Self::Want(index)),
            (kind, _) => Err(PacketError::Kind(kind)),
        }
    }
}

impl ToVmm {
    pub fn encode(self) -> [u8; PACKET_BYTES] {
        match self {
            Self::Hello => packet(HELLO, 0),
            Self::Ready(index) => packet(READY, index),
            Self::Failed(index) => packet(FAILED, index),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        match fields(bytes)? {
            (HELLO, 0) => Ok(Self::Hello),
            (READY, index) => Ok(Self::Ready(index)),
            (FAILED, index) => Ok(Self::Failed(index)),
            (kind, _) => Err(PacketError::Kind(kind)),
        }
    }
}

fn packet(kind: u32, index: u32) -> [u8; PACKET_BYTES] {
    let mut out = [0; PACKET_BYTES];
    out[..4].copy_from_slice(&kind.to_le_bytes());
    out[4..8].copy_from_slice(&index.to_le_bytes());
    out
}

fn fields(bytes: &[u8]) -> Result<(u32, u32), PacketError> {
    let bytes: &[u8; PACKET_BYTES] = bytes
        .try_into()
        .map_err(|_| PacketError::Length(bytes.len()))?;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    if bytes[8..] != [0; 8] {
        return Err(PacketError::Kind(word(0)));
    }
    Ok((word(0), word(4)))
}

/// Longest JSON packet between node and daemon: an [`ImageConfig`] of its largest size
/// (64 KiB) with room, below the default send buffer of a socket.
pub const JSON_BYTES_MAX: usize = 160 << 10;

/// Node to daemon. One JSON object a packet; descriptors by SCM_RIGHTS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromNode {
    /// How stores are asked, from now on and before anything else is said. It may hold a password.
    Egress { egress: Egress },
    /// Make the disk of an flist ready to be attached. Said again, it renews store and pin, and is
    /// answered again. `pin`: keep the whole content and fetch what is missing in the background.
    Open {
        flist: Digest,
        store: Option<Stores>,
        pin: bool,
    },
    /// Beside it: the daemon's end of the VM's socket.
    Attach { vm: VmId, flist: Digest },
    /// The VM's program runs. Said again after each `Attach` of a VM of which it is known; unknown VMs are no error.
    Started { vm: VmId },
    /// The VM is gone: close its socket. Unknown VMs are no error.
    Detach { vm: VmId },
    /// No longer pinned: stop filling it in the background.
    Unpin { flist: Digest },
    /// Forget the flist and remove its disk, unless VMs are attached. The cached chunks stay.
    Close { flist: Digest },
}

/// What a daemon has done since its start. All of it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Chunks that VMs waited for.
    pub wanted: u64,
    /// Jobs that brought a chunk before any VM waited for it, by read-ahead or a trace.
    pub guessed: u64,
    /// Chunks that came from stores, and their stored bytes.
    pub fetched: u64,
    pub fetched_bytes: u64,
    /// Bytes of the cache that were read again, and chunks that were not what their names say.
    pub scrubbed_bytes: u64,
    pub damaged: u64,
}

/// Daemon to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToNode {
    /// Beside it, in this order: the image file and the chunk map, both read-only.
    Opened {
        flist: Digest,
        disk_bytes: u64,
        config: ImageConfig,
        present: u64,
        total: u64,
    },
    /// What to do is in `error`; the daemon does not try again by itself.
    OpenFailed {
        flist: Digest,
        error: String,
    },
    Attached {
        vm: VmId,
    },
    AttachFailed {
        vm: VmId,
        error: String,
    },
    /// Chunks in the node's cache, pushed when it changes, a few times a second at most.
    Progress {
        flist: Digest,
        present: u64,
        total: u64,
    },
    /// What this daemon has done so far, when that has changed, a few times a second at most.
    Counted {
        counts: Counts,
    },
    /// A chunk could not be had; VMs that asked for it got an I/O error. Named by its stored bytes.
    Fault {
        flist: Digest,
        chunk: Digest,
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packets_read_back() {
        assert_eq!(
            FromVmm::decode(&FromVmm::Want(7).encode()),
            Ok(FromVmm::Want(7))
        );
        for p in [
            ToVmm::Hello,
            ToVmm::Ready(0),
            ToVmm::Ready(u32::MAX),
            ToVmm::Failed(3),
        ] {
            assert_eq!(ToVmm::decode(&p.encode()), Ok(p));
        }
    }

    #[test]
    fn a_packet_of_the_other_direction_is_refused() {
        assert_eq!(
            FromVmm::decode(&ToVmm::Ready(1).encode()),
            Err(PacketError::Kind(3))
        );
        assert_eq!(
            ToVmm::decode(&FromVmm::Want(1).encode()),
            Err(PacketError::Kind(1))
        );
        assert_eq!(ToVmm::decode(&[0; 15]), Err(PacketError::Length(15)));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in prop::collection::vec(0u8..5, 14..18)) {
            if let Ok(p) = FromVmm::decode(&bytes) {
                prop_assert_eq!(&p.encode()[..], &bytes[..]);
            }
            if let Ok(p) = ToVmm::decode(&bytes) {
                prop_assert_eq!(&p.encode()[..], &bytes[..]);
            }
        }
    }
}
