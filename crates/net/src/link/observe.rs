//! Observing and changing links through rtnetlink.
//!
//! Owns: the connection to the kernel, which belongs to the namespace it was made in, and its time limit.
//! Refuses: planning, and a task of its own: the connection is driven by the calls that need it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::Connection;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, MulticastGroup};
use types::AnyCidr;

use super::message::Twin;
use super::{Create, Link, Observed, Step, message};
use crate::Error;
use crate::namespace::within;

/// The kernel answers while it is asked; this only turns a lost answer into an error.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Most objects one list may have: far above the links of the largest node.
const OBJECTS_MAX: usize = 64 << 10;
/// A list that changed while it was read is read again; one that always does is an error.
const LIST_TRIES: usize = 16;

/// A connection to the kernel's links, addresses and routes.
pub struct Handle {
    connection: Connection<RouteNetlinkMessage>,
    pub(super) requests: rtnetlink::Handle,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// In the caller's namespace; within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let opened = rtnetlink::new_connection();
        let (mut connection, requests, _) =
            opened.map_err(Error::io("open an rtnetlink socket"))?;
        // The end of a list says whether the list is whole.
        connection.set_forward_done(true);
        Ok(Self {
            connection,
            requests,
        })
    }

    /// In another namespace, for use in this one; within a tokio runtime.
    pub fn open_in(namespace: impl AsFd + Sync) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        within(namespace, || {
            let _entered = runtime.enter();
            Self::open()
        })
    }

    pub async fn observe(&mut self) -> Result<Observed, Error> {
        let question = RouteNetlinkMessage::GetLink(message::all_links());
        let links = self.list("list links", question, |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => message::link(&link),
            _ => None,
        });
        let mut links = links.await?;
        links.sort_by_key(|link| link.index);
        let question = RouteNetlinkMessage::GetAddress(message::all_addresses());
        let addresses = self.list("list addresses", question, |answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => {
                Some((message::address_of(&address)?, message::twin(&address)))
            }
            _ => None,
        });
        for ((index, address), twin) in addresses.await? {
            if let Some(link) = links.iter_mut().find(|link| link.index == index) {
                hold(link, address, twin);
            }
        }
        let question = RouteNetlinkMessage::GetRoute(message::all_routes());
        let routes = self.list("list routes", question, |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => message::route(&route),
            _ => None,
        });
        let routes = routes.await?;
        Ok(Observed { links, routes })
    }

    /// Does the steps in order and stops at the first that fails.
    pub async fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            let work = perform(self.requests.clone(), step);
            let work = async { excuse(step, work.await.map_err(cause)) };
            self.carry(step.to_string(), work).await?;
        }
        Ok(())
    }

    /// Does all steps in order, whatever fails; gives the first error.
    pub async fn apply_each(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut done = Ok(());
        for step in steps {
            let one = self.apply(std::slice::from_ref(step)).await;
            done = done.and(one);
        }
        done
    }

    /// All objects of one kind. Not with the library's own request: that does not tell when a list
    /// changed while it was read.
    pub(super) async fn list<T>(
        &mut self,
        operation: &str,
        question: RouteNetlinkMessage,
        read: fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..LIST_TRIES {
            let whole = list_once(self.requests.clone(), question.clone(), read);
            if let Some(list) = self.carry(operation, whole).await? {
                return Ok(list);
            }
        }
        let busy = "the list changes faster than it can be read";
        Err(Error::io(operation)(io::Error::new(
            ErrorKind::ResourceBusy,
            busy,
        )))
    }

    /// Does `work` while the connection carries its messages.
    pub(super) async fn carry<T>(
        &mut self,
        operation: impl Into<String>,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Error> {
        let carried = async {
            tokio::select! {
                done = work => done,
                () = &mut self.connection => Err(ErrorKind::BrokenPipe.into()),
            }
        };
        let done = tokio::time::timeout(ANSWER_TIME, carried).await;
        done.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
            .map_err(Error::io(operation))
    }
}

fn hold(link: &mut Link, address: AnyCidr, twin: Twin) {
    link.addresses.push(address);
    let local = address.v6().map(|address| address.address);
    let local = local.filter(Ipv6Addr::is_unicast_link_local);
    match twin {
        Twin::None => link.local = link.local.or(local),
        Twin::Found => link.taken.push(address),
        Twin::Unknown => {}
    }
}

/// `None` where the list changed while it was read.
async fn list_once<T>(
    mut requests: rtnetlink::Handle,
    question: RouteNetlinkMessage,
    read: fn(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Option<Vec<T>>> {
    let mut request = NetlinkMessage::from(question);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = requests.request(request).map_err(cause)?;
    let (mut objects, mut torn) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(object) => objects.extend(read(object)),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Done(end) if end.code != 0 => {
                return Err(io::Error::from_raw_os_error(end.code.saturating_neg()));
            }
            _ => {}
        }
        if objects.len() > OBJECTS_MAX {
            return Err(ErrorKind::OutOfMemory.into());
        }
    }
    Ok((!torn).then_some(objects))
}

/// Names are looked up when the step is done: a link made by an earlier step has no number before.
async fn perform(requests: rtnetlink::Handle, step: &Step) -> Result<(), rtnetlink::Error> {
    let (links, addresses, routes) = (requests.link(), requests.address(), requests.route());
    let change = async |link: LinkMessageBuilder<LinkUnspec>| {
        let request = requests.link().change(link.build());
        request.execute().await
    };
    let named = LinkUnspec::new_with_name;
    match step {
        Step::Create { link, create } => {
            let on = match create {
                Create::Vlan { on, .. } => index(&requests, on).await?,
                Create::Bridge
                | Create::Bond { .. }
                | Create::Veth { .. }
                | Create::Wireguard { .. } => 0,
            };
            let link = message::new_link(link, create, on);
            links.add(link).execute().await
        }
        Step::Delete { link } => {
            let link = index(&requests, link).await?;
            links.del(link).execute().await
        }
        Step::Up { link } => change(named(link).up()).await,
        Step::Down { link } => change(named(link).down()).await,
        Step::SetMtu { link, mtu } => change(named(link).mtu(*mtu)).await,
        Step::SetMac { link, mac } => change(named(link).address(mac.0.to_vec())).await,
        Step::SetMaster { link, master } => {
            let master = index(&requests, master).await?;
            change(named(link).controller(master)).await
        }
        Step::Release { link } => change(named(link).nocontroller()).await,
        Step::AddAddress { link, address } => {
            let link = index(&requests, link).await?;
            let add = addresses.add(link, address.address, address.prefix());
            add.replace().execute().await
        }
        Step::DeleteAddress { link, address } => {
            let link = index(&requests, link).await?;
            let address = message::address(link, *address);
            addresses.del(address).execute().await
        }
        Step::AddRoute { link, route } => {
            let link = index(&requests, link).await?;
            let route = message::new_route(link, route).map_err(refused)?;
            let add = routes.add(route);
            add.replace().execute().await
        }
        Step::DeleteRoute { route } => {
            let route = message::old_route(route).map_err(refused)?;
            routes.del(route).execute().await
        }
    }
}

async fn index(requests: &rtnetlink::Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = requests.link().get().match_name(name).execute();
    match std::pin::pin!(found).next().await {
        Some(link) => Ok(link?.header.index),
        None => Err(rtnetlink::Error::RequestFailed),
    }
}

/// What is gone already needs no deleting.
fn excuse(step: &Step, done: io::Result<()>) -> io::Result<()> {
    let gone = match step {
        Step::Delete { .. } => Some(Errno::ENODEV),
        Step::DeleteAddress { .. } => Some(Errno::EADDRNOTAVAIL),
        Step::DeleteRoute { .. } => Some(Errno::ESRCH),
        Step::Create { .. }
        | Step::Up { .. }
        | Step::Down { .. }
        | Step::SetMtu { .. }
        | Step::SetMac { .. }
        | Step::SetMaster { .. }
        | Step::Release { .. }
        | Step::AddAddress { .. }
        | Step::AddRoute { .. } => None,
    };
    match done {
        Err(error) if gone.is_some_and(|gone| error.raw_os_error() == Some(gone as i32)) => Ok(()),
        done => done,
    }
}

/// No message can say it.
fn refused(error: io::Error) -> rtnetlink::Error {
    rtnetlink::Error::InvalidNla(error.to_string())
}

/// The kernel's error number, where it is one.
pub(super) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other),
    }
}

/// Tells when links, addresses or routes change.
pub struct Monitor {
    connection: Connection<RouteNetlinkMessage>,
    /// Filled only while the connection is driven, in [`Self::changed`], which empties it again.
    news: BoxStream<'static, ()>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

impl Monitor {
    /// In the caller's namespace; within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let opened = rtnetlink::new_multicast_connection(&GROUPS);
        let (connection, _, news) = opened.map_err(Error::io("watch links"))?;
        let news = news.map(|_| ()).boxed();
        Ok(Self { connection, news })
    }

    /// Returns once something has changed since the last call. Then observe. After an error it has
    /// begun anew where it can: something may have changed meanwhile.
    pub async fn changed(&mut self) -> Result<(), Error> {
        tokio::select! {
            Some(()) = self.news.next() => {}
            () = &mut self.connection => {
                *self = Self::open()?;
                return Err(Error::io("watch links")(ErrorKind::BrokenPipe.into()));
            }
        }
        // What changed does not matter, and neither does how often.
        while let Some(Some(())) = self.news.next().now_or_never() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests;
