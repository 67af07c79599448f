//! Observing and changing links through rtnetlink.
//!
//! Owns: the socket, which belongs to the namespace it was opened in.
//! Refuses: planning.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};
use tokio::io::unix::AsyncFd;

use super::message::{self, Set};
use super::{Create, Observed, Step};
use crate::netlink::{Message, Socket};
use crate::{Error, ready};

/// An rtnetlink socket. Calls block, but only for the kernel's own work.
#[derive(Debug)]
pub struct Handle {
    socket: Socket,
}

impl Handle {
    /// In the caller's namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(SockProtocol::NetlinkRoute, 0)?,
        })
    }

    pub fn observe(&self) -> Result<Observed, Error> {
        let dump = |kind, what: &str| {
            // The longest of the three fixed headers, all zero: everything of every family.
            self.socket
                .dump(kind, &[0; 16])
                .map_err(Error::io(format!("list {what}")))
        };
        let links = dump(message::RTM_GETLINK, "links")?;
        let links = links
            .iter()
            .filter(|object| object.kind == message::RTM_NEWLINK);
        let mut links: Vec<_> = links
            .filter_map(|object| message::parse_link(&object.body))
            .collect();
        links.sort_by_key(|link| link.index);
        let addresses = dump(message::RTM_GETADDR, "addresses")?;
        for object in addresses
            .iter()
            .filter(|object| object.kind == message::RTM_NEWADDR)
        {
            if let Some((index, address)) = message::parse_address(&object.body)
                && let Some(link) = links.iter_mut().find(|link| link.index == index)
            {
                link.addresses.push(address);
            }
        }
        let routes = dump(message::RTM_GETROUTE, "routes")?;
        let routes = routes
            .iter()
            .filter(|object| object.kind == message::RTM_NEWROUTE);
        let routes = routes
            .filter_map(|object| message::parse_route(&object.body))
            .collect();
        Ok(Observed { links, routes })
    }

    /// Does the steps in order and stops at the first that fails.
    pub fn apply(&self, steps: &[Step]) -> Result<(), Error> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&self, step: &Step) -> Result<(), Error> {
        let link = match step {
            Step::Create { .. } => 0,
            Step::DeleteRoute { route } => route.link,
            Step::Delete { link }
            | Step::Up { link }
            | Step::SetMtu { link, .. }
            | Step::SetMac { link, .. }
            | Step::SetMaster { link, .. }
            | Step::AddAddress { link, .. }
            | Step::DeleteAddress { link, .. }
            | Step::AddRoute { link, .. } => self.index(link)?,
        };
        // What is gone already needs no deleting.
        let gone = match step {
            Step::Delete { .. } => Some(Errno::ENODEV),
            Step::DeleteAddress { .. } => Some(Errno::EADDRNOTAVAIL),
            Step::DeleteRoute { .. } => Some(Errno::ESRCH),
            Step::Create { .. }
            | Step::Up { .. }
            | Step::SetMtu { .. }
            | Step::SetMac { .. }
            | Step::SetMaster { .. }
            | Step::AddAddress { .. }
            | Step::AddRoute { .. } => None,
        };
        match self.socket.request(self.message(step, link)?) {
            Err(error) if gone.is_some_and(|gone| error.raw_os_error() == Some(gone as i32)) => {
                Ok(())
            }
            result => result.map_err(Error::io(step.to_string())),
        }
    }

    fn message(&self, step: &Step, link: u32) -> Result<Message, Error> {
        Ok(match step {
            Step::Create {
                link,
                create: Create::Bridge,
            } => message::new_bridge(link),
            Step::Create {
                link,
                create: Create::Veth { peer, namespace },
            } => message::new_veth(link, peer, namespace.as_raw_fd()),
            Step::Delete { .. } => message::delete_link(link),
            Step::Up { .. } => message::set_link(link, Set::Up),
            Step::SetMtu { mtu, .. } => message::set_link(link, Set::Mtu(*mtu)),
            Step::SetMac { mac, .. } => message::set_link(link, Set::Mac(*mac)),
            Step::SetMaster { master, .. } => {
                message::set_link(link, Set::Master(self.index(master)?))
            }
            Step::AddAddress { address, .. } => message::address(link, *address, true),
            Step::DeleteAddress { address, .. } => message::address(link, *address, false),
            Step::AddRoute { route, .. } => message::add_route(link, route),
            Step::DeleteRoute { route } => message::delete_route(route),
        })
    }

    /// Names are looked up when the step is done: a link made by an earlier step has no number before.
    fn index(&self, name: &str) -> Result<u32, Error> {
        let objects = self.socket.dump(message::RTM_GETLINK, &[0; 16]);
        let objects = objects.map_err(Error::io(format!("find link {name}")))?;
        let links = objects
            .iter()
            .filter_map(|object| message::parse_link(&object.body));
        let found = links
            .into_iter()
            .find(|link| link.name == name)
            .map(|link| link.index);
        found.ok_or_else(|| Error::errno(format!("find link {name}"))(Errno::ENODEV))
    }
}

/// Tells when links, addresses or routes change.
#[derive(Debug)]
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
}

/// RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40;

impl Monitor {
    /// In the caller's namespace; within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(SockProtocol::NetlinkRoute, GROUPS)?;
        let fd = socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("watch links"))?;
        let fd = ready::watch(fd).map_err(Error::io("watch links"))?;
        Ok(Self { fd })
    }

    /// Returns once something has changed since the last call. Then observe.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let mut guard = self.fd.readable().await.map_err(Error::io("watch links"))?;
        // What changed does not matter, and a full queue (ENOBUFS) is a change too.
        let mut packet = [0; 64];
        loop {
            match recv(
                guard.get_inner().as_raw_fd(),
                &mut packet,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::errno("watch links")(errno)),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Desired, plan};
    use super::*;
    use crate::namespace;

    #[test]
    fn a_change_is_told_to_the_monitor() {
        let name = "sifr-test-monitor";
        namespace::remove(name).expect("removed");
        let namespace = namespace::ensure(name).expect("a namespace; it needs root");
        let bridge = |mtu| {
            [Desired {
                create: Some(Create::Bridge),
                mtu: Some(mtu),
                ..Desired::up("bridge0")
            }]
        };
        let call = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                let (mut monitor, handle) = (Monitor::open()?, Handle::open()?);
                for mtu in [1500, 1400] {
                    handle.apply(&plan(&bridge(mtu), &handle.observe()?))?;
                    let wait = tokio::time::timeout(Duration::from_secs(10), monitor.changed());
                    wait.await.expect("told in time")?;
                    let observed = handle.observe()?;
                    assert_eq!(observed.link("bridge0").map(|link| link.mtu), Some(mtu));
                    assert!(plan(&bridge(mtu), &observed).is_empty());
                }
                handle.apply(&[Step::Delete {
                    link: "bridge0".to_owned(),
                }])?;
                let error = handle.apply(&[Step::Up {
                    link: "bridge0".to_owned(),
                }]);
                let error = error.expect_err("it is gone");
                assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
                Ok(())
            })
        };
        namespace::within(&namespace, call).expect("no error");
        namespace::remove(name).expect("removed");
    }
}
