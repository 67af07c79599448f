//! What a process forbids itself: new privileges, being traced, paths, ports, and system calls.
//!
//! Owns: allow-lists of system calls as data and the filters they become (seccomp(2)), and Landlock domains
//! (landlock(7)). Both hold for the calling thread and those that it starts later, for good.
//! Refuses: knowing who needs what. Each program has its lists, with the caller beside each call.

use std::path::Path;

pub use landlock::RulesetStatus;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;
pub use seccompiler::BpfProgram;

pub use crate::filter::FilterError;
use crate::filter::{self, Listed};

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("set {0}")]
    Prctl(&'static str, #[source] Errno),
    #[error("build the system call filter")]
    Build(#[source] FilterError),
    #[error("install the system call filter")]
    Install(#[source] seccompiler::Error),
    #[error("enter a Landlock domain")]
    Landlock(#[source] RulesetError),
    #[error("open a path for a Landlock domain")]
    Path(#[source] PathFdError),
}

/// A call that is allowed, for one reason, and if set only with this argument.
#[derive(Debug)]
pub struct Call {
    pub number: libc::c_long,
    pub argument: Option<Argument>,
}

/// `argument & mask == value`, of the lower 32 bits: the kernel takes no more of the arguments we look at,
/// and what stands above them is the C library's (musl's `ioctl` has a signed request, so that one with
/// the highest bit set arrives with all the upper bits set).
#[derive(Debug)]
pub struct Argument {
    pub index: u8,
    pub mask: u32,
    pub value: u32,
}

pub const fn any(number: libc::c_long) -> Call {
    Call {
        number,
        argument: None,
    }
}

pub const fn with(number: libc::c_long, index: u8, value: u32) -> Call {
    masked(number, index, u32::MAX, value)
}

pub const fn masked(number: libc::c_long, index: u8, mask: u32, value: u32) -> Call {
    Call {
        number,
        argument: Some(Argument { index, mask, value }),
    }
}

/// Memory calls whose protection argument asks for no execution.
pub const fn not_executable(number: libc::c_long) -> Call {
    masked(number, 2, libc::PROT_EXEC.cast_unsigned(), 0)
}

/// The filter that lets these calls pass, and kills the process for any other.
pub fn filter<'a>(calls: impl Iterator<Item = &'a Call>) -> Result<BpfProgram, ConfineError> {
    let calls = calls.map(|call| (call.number, call.argument.as_ref()));
    filter::program(calls, Listed::Pass).map_err(ConfineError::Build)
}

/// The filter that kills the process for any of these calls, and lets all others pass.
pub fn without(calls: &[libc::c_long]) -> Result<BpfProgram, ConfineError> {
    let calls = calls.iter().map(|number| (*number, None));
    filter::program(calls, Listed::Die).map_err(ConfineError::Build)
}

/// For the calling thread and what it starts, for good.
pub fn install(filter: &BpfProgram) -> Result<(), ConfineError> {
    seccompiler::apply_filter(filter).map_err(ConfineError::Install)
}

/// For the whole process: no privileges by exec, no core dump, no tracer of the same user.
pub fn forbid_privileges() -> Result<(), ConfineError> {
    use nix::sys::prctl;
    prctl::set_no_new_privs().map_err(|e| ConfineError::Prctl("no_new_privs", e))?;
    prctl::set_dumpable(false).map_err(|e| ConfineError::Prctl("dumpable", e))
}

/// The newest rules that we know: Linux 6.12. A kernel that knows fewer enforces those.
const RULES: ABI = ABI::V6;

/// What may be done with a path of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read this file, or those below this directory.
    Read,
    /// List this directory and those in it; no file in them is opened.
    List,
    /// All that a store of files does below this directory: read, write, make and remove files and directories.
    Store,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile.into(),
            Self::List => AccessFs::ReadDir.into(),
            Self::Store => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeDir
                    | AccessFs::RemoveFile
            }
        }
    }
}

/// Whether a domain may connect to TCP ports. None may bind one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    Connect,
    Nothing,
}

/// Enters a domain in which only these paths are in reach, no TCP port is bound, no abstract unix socket reached and no
/// process outside it signalled. Descriptors that are open, and those that come over a socket, keep what they were
/// opened for. A path stands for what is mounted there now.
pub fn enter_domain(paths: &[(&Path, Access)], tcp: Tcp) -> Result<RulesetStatus, ConfineError> {
    let ports = match tcp {
        Tcp::Connect => AccessNet::BindTcp.into(),
        Tcp::Nothing => AccessNet::from_all(RULES),
    };
    let mut domain = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))
        .and_then(|rules| rules.handle_access(ports))
        .and_then(|rules| rules.scope(Scope::from_all(RULES)))
        .and_then(|rules| rules.create())
        .map_err(ConfineError::Landlock)?;
    for (path, access) in paths {
        let path = PathFd::new(path).map_err(ConfineError::Path)?;
        let rule = PathBeneath::new(path, access.rights());
        domain = domain.add_rule(rule).map_err(ConfineError::Landlock)?;
    }
    let entered = domain.restrict_self().map_err(ConfineError::Landlock)?;
    Ok(entered.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_becomes_a_filter_and_an_empty_one_too() {
        let calls = [
            any(libc::SYS_read),
            with(libc::SYS_ioctl, 1, 7),
            not_executable(libc::SYS_mmap),
        ];
        let some = filter(calls.iter()).expect("builds");
        assert!(some.len() > filter([].iter()).expect("builds").len());
        without(&[libc::SYS_execve]).expect("builds");
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error_before_anything_is_forbidden() {
        let error = enter_domain(&[(Path::new("/nowhere"), Access::List)], Tcp::Nothing);
        assert!(matches!(error, Err(ConfineError::Path(_))));
        assert!(std::fs::File::open("/").is_ok());
    }
}
