//! What went over each link.
//!
//! Owns: the kernel's counters of the links of one namespace. Refuses: rates, and everything else of a link
//! ([`super::Observed`] has it, and is read far more often: without counters, which cost the kernel a sum over all processors).

use std::collections::BTreeMap;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use types::links::Traffic;

use super::Handle;
use crate::Error;

/// Received and sent.
pub type Both = (Traffic, Traffic);

impl Handle {
    /// By the links' numbers.
    pub async fn traffic(&mut self) -> Result<BTreeMap<u32, Both>, Error> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let all = self.list("list what went over the links", question, |answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else {
                return None;
            };
            both(&link)
        });
        Ok(all.await?.into_iter().collect())
    }
}

fn both(link: &LinkMessage) -> Option<(u32, Both)> {
    let counted = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counted) => Some(counted),
            _ => None,
        })?;
    let received = Traffic {
        bytes: counted.rx_bytes,
        packets: counted.rx_packets,
        errors: counted.rx_errors,
        dropped: counted.rx_dropped,
    };
    let sent = Traffic {
        bytes: counted.tx_bytes,
        packets: counted.tx_packets,
        errors: counted.tx_errors,
        dropped: counted.tx_dropped,
    };
    Some((link.header.index, (received, sent)))
}
