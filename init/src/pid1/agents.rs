//! The three agents that pid1 keeps alive: roles of this same binary.
//!
//! Owns: how they are started, and that who has no names to serve has no ingress. Refuses: when (`supervise` says so).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use supervise::{Policy, Service};
use sys::error::During;
use sys::process::{Child, Program};

use super::jail;
use super::patience::Leaving;

/// An agent is back at once after a first crash; one that cannot run costs a start each 10 s.
const POLICY: Policy = Policy {
    backoff_min: Duration::from_millis(50),
    backoff_max: Duration::from_secs(10),
    healthy_after: Duration::from_secs(30),
    stop_timeout: Duration::from_secs(5),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Node,
    Chunks,
    Ingress,
}

impl Role {
    /// Whether it runs from the boot on. Ingress waits for the node's word: most nodes have no names, and memory.
    pub(super) fn is_always_there(self) -> bool {
        match self {
            Self::Node | Self::Chunks => true,
            Self::Ingress => false,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Chunks => "chunks",
            Self::Ingress => "ingress",
        }
    }

    /// What the kernel thinks of killing it for memory: a VM first, then ingress and chunks, the node last.
    fn oom_score(self) -> &'static str {
        match self {
            Self::Node => "-900",
            Self::Chunks => "-500",
            Self::Ingress => "-400",
        }
    }
}

pub(super) struct Agent {
    pub(super) role: Role,
    pub(super) service: Service,
    pub(super) child: Option<Child>,
    pub(super) leaving: Leaving,
}

impl Agent {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            service: Service::new(POLICY),
            child: None,
            leaving: Leaving::Not,
        }
    }

    /// Starts the role. The node gets its socket to pid1, whose other end is the result.
    pub(super) fn spawn(&mut self, output: Option<BorrowedFd<'_>>) -> sys::Result<Option<OwnedFd>> {
        let name = self.role.name();
        self.leaving = Leaving::Not;
        match self.role {
            Role::Node => {
                let (ours, theirs) =
                    sys::socket::pair().during(|| "make the node's socket".to_owned())?;
                sys::socket::set_nonblocking(&ours)
                    .during(|| "prepare the node's socket".to_owned())?;
                self.child = Some(start(name, vec![theirs.as_fd()], output)?);
                self.protect();
                Ok(Some(ours))
            }
            Role::Chunks | Role::Ingress => {
                self.child = Some(start(name, Vec::new(), output)?);
                self.protect();
                Ok(None)
            }
        }
    }

    fn protect(&self) {
        if let Some(child) = &self.child {
            let path = format!("/proc/{}/oom_score_adj", child.pid);
            if let Err(error) = std::fs::write(&path, self.role.oom_score()) {
                log::warn!("write {path}: {error}");
            }
        }
    }

    pub(super) fn signal(&self, signal: i32) -> sys::Result<()> {
        match &self.child {
            Some(child) => sys::signal::send(child.pidfd.as_fd(), signal),
            None => Ok(()),
        }
    }
}

fn start(
    name: &str,
    fds: Vec<BorrowedFd<'_>>,
    output: Option<BorrowedFd<'_>>,
) -> sys::Result<Child> {
    let file = File::open("/proc/self/exe").during(|| "open this program".to_owned())?;
    // A node without cgroups still runs its agents.
    let group = jail::agent_group(name).ok();
    let text = |s: &str| {
        CString::new(s)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
            .during(|| format!("name {s}"))
    };
    sys::process::spawn(&Program {
        file: file.as_fd(),
        args: vec![text("init")?, text(name)?],
        env: vec![text("PATH=/sbin")?],
        fds,
        output,
        cgroup: group.as_ref().map(AsFd::as_fd),
        confinement: None,
    })
}
