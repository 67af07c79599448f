//! A machine's network cards and what they are plugged into.
//!
//! Owns: QEMU's words for both. Refuses: networks of this machine; a TAP is somebody's who has made it.

use std::net::Ipv4Addr;

use types::Mac;

use super::{Boot, Line, Machine, escaped};

/// A network card. Number N can be unplugged with [`Node::set_link`]`(N, false)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    pub card: Card,
    /// QEMU's own choice where not given.
    pub mac: Option<Mac>,
    pub link: Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    Virtio,
    E1000e,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// QEMU's user-mode network: DHCP, the node is `leased` or else 10.0.2.15, this machine 10.0.2.2.
    User {
        forwards: Vec<Forward>,
        leased: Option<Ipv4Addr>,
    },
    /// An existing TAP device.
    Tap { name: String },
    /// A switch of this machine's, which listens on this loopback port: each frame goes there behind its length in four bytes.
    Switch { port: u16 },
    /// A second card in the user-mode network of an earlier one.
    Beside { card: usize },
    /// A user-mode network that is reached through somebody else: who listens on the loopback port `near` gets what the
    /// card sends, who listens on `far` what the network sends, each frame behind its length in four bytes.
    Trunk {
        near: u16,
        far: u16,
        forwards: Vec<Forward>,
        leased: Option<Ipv4Addr>,
    },
}

/// A TCP port of this machine's loopback that leads to a port of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub host: u16,
    pub node: u16,
}

impl Machine {
    pub(super) fn net_arguments(&self, index: usize, net: &Net, line: &mut Line) {
        let id = format!("net{index}");
        let boots = index == 0 && matches!(self.boot, Boot::Network { .. });
        match &net.link {
            Link::User { forwards, leased } => {
                let shared = self
                    .nets
                    .iter()
                    .any(|n| n.link == Link::Beside { card: index });
                let own = if shared {
                    format!("user{index}")
                } else {
                    id.clone()
                };
                let mut back = user(&own, forwards, *leased);
                if let (Boot::Network { directory, script }, true) = (&self.boot, boots) {
                    back.push_str(&format!(",tftp={},bootfile={script}", escaped(directory)));
                }
                line.pair("-netdev", back);
                if shared {
                    line.pair("-netdev", hub(&format!("hub{index}"), index, Some(&own)));
                    line.pair("-netdev", hub(&id, index, None));
                }
            }
            Link::Tap { name } => {
                let back = format!("tap,id={id},ifname={name},script=no,downscript=no");
                line.pair("-netdev", back);
            }
            Link::Switch { port } => {
                line.pair("-netdev", socket(&id, *port));
            }
            Link::Beside { card } => {
                line.pair("-netdev", hub(&id, *card, None));
            }
            Link::Trunk {
                near,
                far,
                forwards,
                leased,
            } => {
                let (user_id, far_id) = (format!("user{index}"), format!("far{index}"));
                line.pair("-netdev", socket(&id, *near));
                line.pair("-netdev", user(&user_id, forwards, *leased));
                line.pair("-netdev", socket(&far_id, *far));
                line.pair(
                    "-netdev",
                    hub(&format!("hub{index}"), index, Some(&user_id)),
                );
                line.pair("-netdev", hub(&format!("end{index}"), index, Some(&far_id)));
            }
        }
        let card = match net.card {
            Card::Virtio => "virtio-net-pci",
            Card::E1000e => "e1000e",
        };
        let mut front = format!("{card},id=card{index},netdev={id}");
        if let Some(mac) = net.mac {
            front.push_str(&format!(",mac={mac}"));
        }
        if !boots {
            // No boot ROM: the firmware is quicker without.
            front.push_str(",romfile=");
        }
        line.pair("-device", front);
    }
}

fn user(id: &str, forwards: &[Forward], leased: Option<Ipv4Addr>) -> String {
    let mut back = format!("user,id={id}");
    if let Some(first) = leased {
        back.push_str(&format!(",dhcpstart={first}"));
    }
    for Forward { host, node } in forwards {
        let here = Ipv4Addr::LOCALHOST;
        for protocol in ["tcp", "udp"] {
            back.push_str(&format!(",hostfwd={protocol}:{here}:{host}-:{node}"));
        }
    }
    back
}

/// A port of a hub, with another back end behind it or a card.
fn hub(id: &str, number: usize, behind: Option<&str>) -> String {
    let behind = behind.map_or(String::new(), |other| format!(",netdev={other}"));
    format!("hubport,id={id},hubid={number}{behind}")
}

fn socket(id: &str, port: u16) -> String {
    format!("socket,id={id},connect={}:{port}", Ipv4Addr::LOCALHOST)
}
