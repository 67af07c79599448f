//! Why set-up failed, and the exit code that says so.
//!
//! Owns: the errors of everything that happens before the program runs.
//! Refuses: failures of the program itself: those are its exit status.

use std::path::PathBuf;

use types::guest::RUN_SPEC_PATH;

/// Set-up failed before the program could be executed (the code container runtimes use).
pub(crate) const CODE_SETUP: i32 = 125;
/// The program was found and could not be executed.
pub(crate) const CODE_NOT_EXECUTABLE: i32 = 126;
/// The program was not found.
pub(crate) const CODE_NOT_FOUND: i32 = 127;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The text is the operation, the source what the kernel answered.
    #[error(transparent)]
    System(#[from] sys::error::Error),
    #[error("{path} is longer than {max} bytes", path = path.display())]
    TooLong { path: PathBuf, max: usize },
    #[error(
        "the file system on {device} was in use when its disk was copied: shut that machine down, or run \
         `e2fsck` on the disk, then pack it again", device = device.display()
    )]
    InUse { device: PathBuf },
    #[error(
        "the image's disk has no root that can run here: neither it nor one of its {partitions} partitions is an \
         ext4, ext3 or ext2 file system with a bin, sbin, usr or etc"
    )]
    NoRoot { partitions: usize },
    #[error("{RUN_SPEC_PATH} is no run specification")]
    Spec(#[source] serde_json::Error),
    #[error("{what} did not appear within {seconds} seconds: does the VM have it?")]
    Absent { what: String, seconds: u64 },
    #[error("the kernel refused to {operation}")]
    Netlink {
        operation: String,
        source: std::io::Error,
    },
    #[error("user {user:?} is not one of user, uid, user:group, uid:gid, uid:group, user:gid")]
    UserForm { user: String },
    #[error(
        "user {user:?} is not in the image's /etc/passwd: set `user` to one that is, or to a number"
    )]
    NoUser { user: String },
    #[error(
        "group {group:?} is not in the image's /etc/group: set `user` to one that is, or to a number"
    )]
    NoGroup { group: String },
    #[error("there is no program to run: set `entrypoint` or `command`")]
    NoProgram,
    #[error("the host's identity for this machine has a generation or entropy of another form")]
    Identity,
    #[error("the machine was started without a network card and cannot be given one's address")]
    NoCard,
    #[error(
        "the program does not stand still within {seconds} seconds: one of its threads waits for a device"
    )]
    Moving { seconds: u64 },
    #[error(
        "mount the volume {volume} on {path}: the program that wrote to it last did not end in order, and what it wrote is \
         still in the journal: mount the volume once without read_only"
    )]
    Unsettled { volume: String, path: String },
    #[error("this machine has no volume on a disk with the serial {0:?} that it writes to")]
    NoVolume(String),
    #[error("{what} contains a NUL byte")]
    Nul { what: &'static str },
}

pub(crate) type Result<T> = std::result::Result<T, SetupError>;
