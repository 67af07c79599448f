//! Neighbours of one link that stop answering, as the kernel finds out while it sends to them (RFC 4861 section 7.3).
//!
//! Owns: the connection on which the kernel says so, which belongs to the namespace it was made in. Refuses: asking neighbours, and
//! remembering what was said.

use std::fmt;
use std::io::ErrorKind;
use std::net::Ipv6Addr;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::proto::Connection;

use crate::Error;

/// Whether a neighbour answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub address: Ipv6Addr,
    pub answers: bool,
}

/// Tells of them as it changes.
pub struct Neighbours {
    connection: Connection<RouteNetlinkMessage>,
    /// Filled only while the connection is driven.
    news: BoxStream<'static, Neighbour>,
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours").finish_non_exhaustive()
    }
}

impl Neighbours {
    /// Of the link of this number, in the caller's namespace; within a tokio runtime.
    pub fn open(link: u32) -> Result<Self, Error> {
        let opened = rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh]);
        let (connection, _, news) = opened.map_err(Error::io("watch neighbours"))?;
        let news = news.filter_map(move |(message, _)| {
            let said = match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                    read(message, link)
                }
                _ => None,
            };
            std::future::ready(said)
        });
        Ok(Self {
            connection,
            news: news.boxed(),
        })
    }

    /// The next that is found out. After an error another connection is needed: what was said meanwhile is lost, and is found out
    /// anew as long as it is so and somebody sends there. Safe to drop.
    pub async fn next(&mut self) -> Result<Neighbour, Error> {
        tokio::select! {
            Some(said) = self.news.next() => Ok(said),
            () = &mut self.connection => {
                Err(Error::io("watch neighbours")(ErrorKind::BrokenPipe.into()))
            }
        }
    }
}

/// `None` where it says neither.
fn read(message: &NeighbourMessage, link: u32) -> Option<Neighbour> {
    let answers = match message.header.state {
        NeighbourState::Reachable => true,
        NeighbourState::Failed => false,
        // Asked, or not asked for a while: it is believed to answer until it is known not to.
        _ => return None,
    };
    let address = message.attributes.iter().find_map(|of| match of {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
        _ => None,
    });
    (message.header.ifindex == link).then_some(Neighbour {
        address: address?,
        answers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_of_the_link_answers_or_does_not_or_nothing_is_said() {
        let address: Ipv6Addr = "fe80::1".parse().expect("an address");
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        let to = NeighbourAttribute::Destination(NeighbourAddress::Inet6(address));
        message.attributes = vec![to];
        for (state, answers) in [
            (NeighbourState::Reachable, Some(true)),
            (NeighbourState::Failed, Some(false)),
            (NeighbourState::Stale, None),
            (NeighbourState::Probe, None),
            (NeighbourState::Incomplete, None),
        ] {
            message.header.state = state;
            let expected = answers.map(|answers| Neighbour { address, answers });
            assert_eq!(read(&message, 3), expected, "{state:?}");
            assert_eq!(read(&message, 4), None);
        }
        message.attributes.clear();
        message.header.state = NeighbourState::Failed;
        assert_eq!(read(&message, 3), None);
    }
}
