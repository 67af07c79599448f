//! A connection to a node whose name has several addresses.
//!
//! Owns: which address is tried when. Refuses: looking names up, and whose key the node shows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

/// Addresses of one name that are tried: a node has a few of each family.
const ADDRESSES_MAX: usize = 16;
/// How long one address of a name is waited for before the next is tried beside it (RFC 8305 section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// A connection to whichever answers: a name may have addresses of a family that leads nowhere from here.
pub(crate) async fn first_of(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut tries = tokio::task::JoinSet::new();
    let mut pause = Duration::ZERO;
    for address in addresses.iter().copied().take(ADDRESSES_MAX) {
        tries.spawn(async move {
            tokio::time::sleep(pause).await;
            TcpStream::connect(address).await
        });
        pause += NEXT_ADDRESS;
    }
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    while let Some(tried) = tries.join_next().await {
        match tried {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => {}
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_whose_first_address_leads_nowhere_is_reached_by_the_next() {
        let node = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let four = node.as_ref().expect("bound").local_addr();
        let four = four.expect("an address");
        // Nobody listens there: of the loopback of IPv6 the port is another.
        let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, four.port()));
        let reached = first_of(&[six, four]).await.expect("the second");
        assert_eq!(reached.peer_addr().expect("an address"), four);
        assert!(first_of(&[six]).await.is_err() && first_of(&[]).await.is_err());
    }
}
