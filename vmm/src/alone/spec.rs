//! The file that describes a machine by paths.
//!
//! Owns: its JSON form and defaults. Refuses: fields it does not know, by name, and units that must be guessed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use types::vm::{Balloon, Engine, HugePages, Limit, NetLimit, Topology};
use types::{Bytes, Mac, VmId};

/// Longest file: some paths and a command line.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Ethernet's.
const MTU: u16 = 1500;

#[derive(Debug, thiserror::Error)]
pub(super) enum SpecError {
    #[error("read the specification")]
    Read(#[source] io::Error),
    #[error("the specification is longer than {FILE_BYTES_MAX} bytes")]
    Long,
    #[error("the specification is not understood; see sifr-vmm --help")]
    Parse(#[source] serde_json::Error),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineFile {
    /// For people, and the process's name.
    #[serde(default = "name")]
    pub(super) name: VmId,
    /// Needed where nothing is restored.
    #[serde(default)]
    pub(super) kernel: Option<PathBuf>,
    #[serde(default)]
    pub(super) initramfs: Vec<PathBuf>,
    #[serde(default)]
    pub(super) cmdline: String,
    #[serde(default = "one")]
    pub(super) cpus: u8,
    #[serde(default)]
    pub(super) topology: Option<Topology>,
    pub(super) memory: Bytes,
    #[serde(default)]
    pub(super) huge_pages: HugePages,
    #[serde(default)]
    pub(super) disks: Vec<DiskFile>,
    #[serde(default)]
    pub(super) nets: Vec<NetFile>,
    /// Raw images that the guest maps as memory, read-only.
    #[serde(default)]
    pub(super) pmems: Vec<PathBuf>,
    #[serde(default)]
    pub(super) balloon: Option<Balloon>,
    #[serde(default)]
    pub(super) watchdog: bool,
    #[serde(default)]
    pub(super) rtc: bool,
    #[serde(default)]
    pub(super) pvpanic: bool,
    #[serde(default)]
    pub(super) console: ConsoleFile,
    #[serde(default)]
    pub(super) log: Option<LogFile>,
    /// The guest's vsock as unix sockets here.
    #[serde(default)]
    pub(super) vsock: Vec<SocketFile>,
    /// Note what is written, for differential snapshots.
    #[serde(default)]
    pub(super) track_memory: bool,
    /// Go on from a snapshot.
    #[serde(default)]
    pub(super) restore: Option<RestoreFile>,
}

/// The files of a snapshot. While a machine runs from them they are not to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreFile {
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
    /// What a differential one is based on, the full one first.
    #[serde(default)]
    pub(super) bases: Vec<BaseFile>,
    /// The memory is not read and compared with its digests first.
    #[serde(default)]
    pub(super) trusted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseFile {
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskFile {
    /// A raw image, or a block device.
    pub(super) path: PathBuf,
    /// `disk0` for the first one, and so on.
    #[serde(default)]
    pub(super) serial: Option<String>,
    #[serde(default)]
    pub(super) read_only: bool,
    /// One for each vCPU, as far as they pay, if absent.
    #[serde(default)]
    pub(super) queues: Option<u8>,
    #[serde(default)]
    pub(super) limit: Option<Limit>,
    #[serde(default)]
    pub(super) engine: Engine,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetFile {
    /// Name of a TAP link that exists.
    pub(super) tap: String,
    pub(super) mac: Mac,
    #[serde(default = "mtu")]
    pub(super) mtu: u16,
    /// The kernel moves the packets (/dev/vhost-net).
    #[serde(default)]
    pub(super) vhost: bool,
    #[serde(default)]
    pub(super) limit: Option<NetLimit>,
}

/// A unix stream socket at one end of the guest's vsock.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SocketFile {
    /// Of the one who is connected to.
    pub(super) port: u32,
    pub(super) path: PathBuf,
    pub(super) from: From,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum From {
    /// A program in the guest, to a port of the host; at the path somebody listens.
    Guest,
    /// Whoever connects to the path, which is listened at, to a port of the guest.
    Host,
}

/// Where the guest's console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ConsoleFile {
    /// The serial port, shown on standard output. Output only.
    #[default]
    Serial,
    /// A virtio console, `/dev/hvc0`: both directions, the terminal here is raw meanwhile.
    Terminal,
    None,
}

/// What programs under `sifr-guest` write: two files, PATH.a and PATH.b, used in turn.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    /// Of each file.
    #[serde(default = "log_size")]
    pub(super) size: Bytes,
}

fn name() -> VmId {
    "vm".parse().expect("a plain word")
}

const fn one() -> u8 {
    1
}

const fn mtu() -> u16 {
    MTU
}

const fn log_size() -> Bytes {
    Bytes::mib(1)
}

impl MachineFile {
    pub(super) fn read(path: &Path) -> Result<Self, SpecError> {
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text))
            .map_err(SpecError::Read)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(SpecError::Long);
        }
        serde_json::from_slice(&text).map_err(SpecError::Parse)
    }
}

impl fmt::Display for MachineFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} vCPUs, {} of memory, {} disks, {} network cards",
            self.name,
            self.cpus,
            self.memory,
            self.disks.len(),
            self.nets.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MachineFile, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_kernel_and_memory_are_enough() {
        let file = parse(r#"{"kernel": "vmlinux", "memory": "64Mi"}"#).expect("the least");
        assert_eq!((file.cpus, file.memory.as_mib()), (1, 64));
        assert_eq!(file.console, ConsoleFile::Serial);
    }

    #[test]
    fn a_snapshot_and_memory_are_enough_too() {
        let text = r#"{"memory": "64Mi", "restore": {"state": "s", "memory": "m"}}"#;
        let file = parse(text).expect("the least");
        let restore = file.restore.expect("a snapshot");
        assert!(file.kernel.is_none() && restore.bases.is_empty() && !restore.trusted);
        let error = parse(r#"{"memory": "64Mi", "restore": {"state": "s"}}"#);
        let error = error.expect_err("no memory").to_string();
        assert!(error.contains("missing field `memory`"), "{error}");
    }

    #[test]
    fn the_example_is_one() {
        let text = include_str!("../../../docs/examples/machine.json");
        let file = parse(text).expect("the example");
        assert!(!file.disks.is_empty() && !file.nets.is_empty() && !file.initramfs.is_empty());
        let from: Vec<_> = file.vsock.iter().map(|socket| socket.from).collect();
        assert_eq!(from, [From::Host, From::Guest]);
    }

    #[test]
    fn a_field_that_is_not_known_is_named_wherever_it_stands() {
        for (text, field) in [
            (r#"{"kernel":"k","memory":"1Gi","vcpus":2}"#, "vcpus"),
            (
                r#"{"kernel":"k","memory":"1Gi","disks":[{"path":"d","readonly":true}]}"#,
                "readonly",
            ),
            (
                r#"{"kernel":"k","memory":"1Gi","vsock":[{"port":1,"path":"p","from":"host","cid":3}]}"#,
                "cid",
            ),
            (
                r#"{"kernel":"k","memory":"1Gi","nets":[{"tap":"t","mac":"02:00:00:00:00:01","ip":""}]}"#,
                "ip",
            ),
        ] {
            let error = parse(text).expect_err("unknown").to_string();
            assert!(
                error.contains(&format!("unknown field `{field}`")),
                "{error}"
            );
        }
        let error = parse(r#"{"kernel":"k"}"#)
            .expect_err("no memory")
            .to_string();
        assert!(error.contains("missing field `memory`"), "{error}");
        let error = parse(r#"{"kernel":"k","memory":"64MB"}"#)
            .expect_err("a foreign unit")
            .to_string();
        assert!(error.contains("64MB") && error.contains("Mi"), "{error}");
    }
}
