//! Connections that stand when rules have changed.
//!
//! Owns: when they are looked through. Refuses: judging them ([`net::firewall`] does).

use std::collections::BTreeSet;
use std::net::IpAddr;

use net::firewall::{self, Standing, policy};
use net::link::Handle;
use net::{Error, namespace};
use tokio::runtime;

/// Of the node's namespace, whose rules have been replaced. `before`: what it let in and out, where that is known.
pub(super) fn of_node(before: Option<&policy::Node>, node: &policy::Node) -> Result<(), Error> {
    if before.is_some_and(|before| !node.takes_from(before)) {
        return Ok(());
    }
    let addresses = runtime::Handle::current().block_on(addresses())?;
    let standing = Standing::of(node, &addresses);
    note("the node", firewall::end(|flow| standing.keeps(flow))?);
    Ok(())
}

/// Of a tenant's.
pub(super) fn of_tenant(
    name: &str,
    before: Option<&policy::Tenant>,
    tenant: &policy::Tenant,
) -> Result<(), Error> {
    if before.is_some_and(|before| !tenant.takes_from(before)) {
        return Ok(());
    }
    let ended = firewall::end_in(name, |flow| tenant.keeps(flow))?;
    note(name, ended);
    Ok(())
}

fn note(place: &str, ended: usize) {
    if ended > 0 {
        log::info!("{ended} connections of {place} were ended: the rules do not let them begin");
    }
}

/// Of the node's own namespace, as the kernel has them now.
async fn addresses() -> Result<BTreeSet<IpAddr>, Error> {
    let links = Handle::open()?.observe().await?.links;
    let all = links.iter().flat_map(|link| &link.addresses);
    Ok(all.map(|address| address.address).collect())
}

/// A network that is not there yet has no connections: it need not be looked through when it has been made.
pub(super) fn is_new(name: &str) -> bool {
    namespace::list().is_ok_and(|names| !names.iter().any(|known| known == name))
}
