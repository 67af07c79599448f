//! virtio-net: one network card on one TAP.
//!
//! Owns: packets both ways, straight between TAP and guest memory, with the offloads that the kernel
//! does for us; how many of its queue pairs the driver uses. One thread serves all pairs. What a limit does
//! not let begin waits: in the guest's rings, or in the TAP, which drops what its own queue does not hold.
//! Where the specification brings vhost-net, the kernel moves the packets from DRIVER_OK until reset or rest.
//! Refuses: to look into packets. The kernel checks their headers, the network around the
//! TAP says what may pass.

mod pair;
mod tap;
mod vhost;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use serde_json::Value;
use types::vm::{NET_QUEUES_MAX, Net as NetSpec, NetLimit};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_OK,
};

use self::pair::{Filled, Pair, Shape};
use self::tap::{CHECKSUM, CONGESTION, HEADER_BYTES, SEGMENTATION_4, SEGMENTATION_6, Tap};
use self::vhost::Vhost;
use super::limit::Throttle;
use super::ring::{Ring, Violation};
use super::{Device, Foreign, Ready, Turn};
use crate::event::Source;
use crate::memory::io::write_packet;

const QUEUE_SIZE: u16 = 256;
/// Commands are given one at a time.
const CONTROL_SIZE: u16 = 16;
/// Packets for the guest on one queue in one turn; the TAP keeps what is left.
const PACKETS_PER_TURN: usize = 64;
/// Longest packet with its Ethernet header when segmentation is left to the guest.
const SEGMENTED_MAX: u32 = 65_535 + ETHERNET_BYTES;
/// Ethernet header with one VLAN tag.
const ETHERNET_BYTES: u32 = 18;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("set up the TAP: pass one that is attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Tap(#[source] io::Error),
    #[error("queue pair {0}: pass a TAP that is attached with IFF_MULTI_QUEUE, too")]
    Queue(usize, #[source] io::Error),
    #[error("{0} queue pairs: 1 to {NET_QUEUES_MAX} are possible")]
    Queues(usize),
    #[error("MTU {0} is outside 68 to 65521")]
    Mtu(u16),
    #[error("vhost-net: pass /dev/vhost-net, opened for reading and writing, or no `vhost`")]
    Vhost(#[source] io::Error),
    #[error("{vhosts} vhost descriptors for {pairs} queue pairs: every pair has one or none has")]
    SomeVhost { vhosts: usize, pairs: usize },
    #[error("a card with vhost has no limit: leave one of them out, the kernel counts no packets")]
    LimitedVhost,
    #[error("make the timer of a limit")]
    Limit(#[source] io::Error),
}

/// What the TAP is to be told of by the worker: a vCPU that sets a register does not wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// Offloads and pairs in use.
    Agreement,
    /// Pairs in use.
    Pairs,
}

#[derive(Debug)]
pub(crate) struct Net {
    pairs: Vec<Pair>,
    /// Pairs that the driver receives on: the first, until it asks for more.
    active: usize,
    queues: Vec<u16>,
    config: [u8; 12],
    mtu: u16,
    /// Agreed with the driver.
    features: u64,
    news: News,
    /// One for each pair where the kernel moves the packets, else none.
    vhosts: Vec<Vhost>,
    /// Of what the guest sends.
    tx: Throttle,
    /// Of what it receives.
    rx: Throttle,
}

impl Net {
    /// `taps`: one for each queue pair, the specification's first; `vhosts`: likewise, or none.
    pub(crate) fn new(
        spec: &NetSpec,
        taps: Vec<File>,
        vhosts: Vec<File>,
    ) -> Result<Self, NetError> {
        let (count, pairs) = (vhosts.len(), taps.len());
        if count != 0 && count != pairs {
            return Err(NetError::SomeVhost {
                vhosts: count,
                pairs,
            });
        }
        if count != 0 && spec.limit.is_some() {
            return Err(NetError::LimitedVhost);
        }
        let vhosts = vhosts.into_iter().map(Vhost::new);
        let vhosts = vhosts.collect::<Result<Vec<_>, _>>();
        let taps = taps.into_iter().map(Tap::new);
        let taps = taps.collect::<Result<Vec<_>, _>>();
        Self::on(
            spec,
            taps.map_err(NetError::Tap)?,
            vhosts.map_err(NetError::Vhost)?,
        )
    }

    /// On any descriptors of packets.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn fake(spec: &NetSpec, packets: Vec<File>) -> Result<Self, NetError> {
        Self::on(
            spec,
            packets.into_iter().map(Tap::fake).collect(),
            Vec::new(),
        )
    }

    fn on(spec: &NetSpec, taps: Vec<Tap>, vhosts: Vec<Vhost>) -> Result<Self, NetError> {
        if !(68..=65_521).contains(&spec.mtu) {
            return Err(NetError::Mtu(spec.mtu));
        }
        let count = taps.len();
        let fits = u16::try_from(count).ok();
        let fits = fits.filter(|n| (1..=u16::from(NET_QUEUES_MAX)).contains(n));
        let pairs = fits.ok_or(NetError::Queues(count))?;
        // MAC, link status, queue pairs, MTU.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&spec.mac.0);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&spec.mtu.to_le_bytes());
        let mut queues = vec![QUEUE_SIZE; 2 * count];
        if count > 1 {
            queues.push(CONTROL_SIZE);
        }
        let NetLimit { tx, rx } = spec.limit.unwrap_or_default();
        let throttle = |limit| Throttle::new(limit).map_err(NetError::Limit);
        let mut net = Self {
            pairs: taps.into_iter().map(Pair::new).collect(),
            active: 1,
            queues,
            config,
            mtu: spec.mtu,
            features: 0,
            news: News::None,
            vhosts,
            tx: throttle(tx)?,
            rx: throttle(rx)?,
        };
        net.attach_active()
            .map_err(|(pair, error)| NetError::Queue(pair, error))?;
        Ok(net)
    }

    fn agreed(&self, feature: u32) -> bool {
        self.features >> feature & 1 != 0
    }

    fn shape(&self) -> Shape {
        let segmented =
            self.agreed(VIRTIO_NET_F_GUEST_TSO4) || self.agreed(VIRTIO_NET_F_GUEST_TSO6);
        let packet = if segmented {
            SEGMENTED_MAX
        } else {
            u32::from(self.mtu) + ETHERNET_BYTES
        };
        Shape {
            longest: u64::from(HEADER_BYTES + packet),
            mergeable: self.agreed(VIRTIO_NET_F_MRG_RXBUF),
        }
    }

    /// The queue of commands, which comes after all that the driver knows of (VIRTIO 1.2 section 5.1.2).
    fn control_queue(&self) -> Option<usize> {
        self.agreed(VIRTIO_NET_F_CTRL_VQ)
            .then_some(2 * self.known_pairs())
    }

    /// The kernel hands packets to attached queues only.
    fn attach_active(&mut self) -> Result<(), (usize, io::Error)> {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            pair.attach(index < self.active).map_err(|e| (index, e))?;
        }
        Ok(())
    }

    fn deliver(&mut self, index: usize, ring: &mut Ring<'_>) -> Result<(), Violation> {
        let shape = self.shape();
        let pair = &mut self.pairs[index];
        ring.disarm()?;
        for _ in 0..PACKETS_PER_TURN {
            if !self.rx.open() {
                break;
            }
            match pair.fill(ring, shape)? {
                Filled::Packet(bytes) => self.rx.take(bytes),
                Filled::Interrupted => {}
                Filled::NoPacket | Filled::NoBuffers => break,
            }
        }
        ring.notify()?;
        // Leaves a packet's worth of buffers in hand, or the ring armed.
        pair.fillable = pair.gather(ring, shape)?;
        Ok(())
    }

    fn transmit(&mut self, index: usize, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        let with = (&self.pairs[index].tap, &mut self.tx);
        ring.drain_while(
            with,
            |(_, tx)| tx.open(),
            |ring, (tap, tx), chain| {
                let header = u64::from(HEADER_BYTES);
                let length = chain.readable.bytes();
                let fits = (header + 1..=header + u64::from(SEGMENTED_MAX)).contains(&length);
                tx.take(length.saturating_sub(header));
                let packet = chain.readable.io_vec(ring.ram()).filter(|_| fits);
                let sent = packet.is_some_and(|list| write_packet(tap.as_fd(), &list).is_ok());
                // A packet that the kernel does not take is lost, as on any wire.
                if !sent {
                    ring.count_failure();
                }
                ring.complete(chain.head, 0)
            },
        )
    }

    /// Does what the driver commands (VIRTIO 1.2 section 5.1.6.5): there is one command.
    fn command(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        let several = self.agreed(VIRTIO_NET_F_MQ);
        let turn = ring.drain_while(
            &mut *self,
            |_| true,
            |ring, net, mut chain| {
                let answer = chain.writable.split_back(1);
                let answer =
                    answer.ok_or(Violation::Request("command without room for an answer"))?;
                let mut command = [0; 4];
                let whole = chain.readable.copy_to(ring.ram(), &mut command) == command.len();
                let [class, which, low, high] = command.map(u32::from);
                let pairs = usize::try_from(low | high << 8).expect("16 bits");
                let set = (class, which) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
                let known = whole && set && several && (1..=net.pairs.len()).contains(&pairs);
                if known {
                    net.active = pairs;
                    net.news = News::Pairs;
                }
                let said = if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
                answer.copy_from(ring.ram(), &said.to_le_bytes()[..1]);
                ring.complete(chain.head, 1)
            },
        )?;
        self.tell_tap()?;
        Ok(turn)
    }

    /// What was agreed, and what is commanded.
    fn settle(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        self.tell_tap()?;
        match self.control_queue().filter(|q| ready.queue(*q)) {
            Some(queue) => self.command(&mut rings[queue]),
            None => Ok(Turn::Done),
        }
    }

    /// Pairs that the driver has a use for.
    fn known_pairs(&self) -> usize {
        match self.agreed(VIRTIO_NET_F_MQ) {
            true => self.pairs.len(),
            false => 1,
        }
    }

    /// Gives the kernel what it does not have yet.
    fn hand_over(&mut self, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let (known, features) = (self.known_pairs(), self.features);
        for (index, vhost) in self.vhosts.iter_mut().enumerate().take(known) {
            if vhost.has_given_up() {
                return Err(Violation::Request("a ring that vhost-net cannot follow"));
            }
            if vhost.is_running() {
                continue;
            }
            let (to_guest, from_guest) = (&rings[2 * index], &rings[2 * index + 1]);
            // Before the kernel may signal.
            to_guest.lend_interrupt(true);
            let tap = self.pairs[index].tap.as_raw_fd();
            vhost.start(tap, features, [to_guest, from_guest])?;
        }
        Ok(Turn::Done)
    }

    /// Moves packets.
    fn exchange(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let mut turn = Turn::Done;
        let count = self.pairs.len();
        let (rx_opens, tx_opens) = (ready.source(count), ready.source(count + 1));
        for index in 0..self.known_pairs() {
            let (to_guest, from_guest) = (2 * index, 2 * index + 1);
            let arrives = ready.queue(to_guest) || ready.source(index) || rx_opens;
            if index < self.active && arrives {
                self.deliver(index, &mut rings[to_guest])?;
            }
            if ready.queue(from_guest) || tx_opens {
                turn = turn.and(self.transmit(index, &mut rings[from_guest])?);
            }
        }
        Ok(turn)
    }

    fn tell_tap(&mut self) -> Result<(), Violation> {
        match std::mem::replace(&mut self.news, News::None) {
            News::None => return Ok(()),
            News::Agreement => {
                let offloads = self.offloads();
                self.pairs[0]
                    .tap
                    .set_offloads(offloads)
                    .map_err(|e| Violation::Host("set offloads", e))?;
            }
            News::Pairs => {}
        }
        self.attach_active()
            .map_err(|(_, error)| Violation::Host("attach or detach a queue of the TAP", error))
    }

    /// What the kernel may leave undone in packets for the guest.
    fn offloads(&self) -> u32 {
        let each = [
            (VIRTIO_NET_F_GUEST_CSUM, CHECKSUM),
            (VIRTIO_NET_F_GUEST_TSO4, SEGMENTATION_4),
            (VIRTIO_NET_F_GUEST_TSO6, SEGMENTATION_6),
            (VIRTIO_NET_F_GUEST_ECN, CONGESTION),
        ];
        let agreed = each.into_iter().filter(|(f, _)| self.agreed(*f));
        let offloads = agreed.fold(0, |all, (_, offload)| all | offload);
        // Segmentation without checksums makes no sense, and the kernel refuses it; so it does with
        // congestion marks without segmentation.
        match (
            offloads & CHECKSUM,
            offloads & (SEGMENTATION_4 | SEGMENTATION_6),
        ) {
            (0, _) => 0,
            (_, 0) => CHECKSUM,
            _ => offloads,
        }
    }
}

impl Device for Net {
    const ID: u32 = VIRTIO_ID_NET;

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        let several: &[u32] = match self.pairs.len() {
            1 => &[],
            _ => &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ],
        };
        let all = always.iter().chain(several);
        let all = all.fold(0, |all, feature| all | 1 << feature);
        let kernels = self.vhosts.iter();
        kernels.fold(all, |all, vhost| all & (vhost.features() | !vhost::SHARED))
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        self.news = News::Agreement;
    }

    fn reset(&mut self) {
        self.features = 0;
        self.active = 1;
        self.news = News::None;
        self.pairs.iter_mut().for_each(Pair::forget);
        self.vhosts.iter_mut().for_each(Vhost::stop);
    }

    fn sources(&self, out: &mut Vec<Source>) {
        for (index, pair) in self.pairs.iter().enumerate() {
            // While there is no room, the guest's next buffers wake us, not the next packet.
            let wanted = index < self.active && pair.fillable && !self.rx.closed();
            out.push(if wanted {
                Source::readable(&pair.tap)
            } else {
                Source::never()
            });
        }
        out.extend([self.rx.source(), self.tx.source()]);
        out.extend(self.vhosts.iter().map(Vhost::source));
    }

    fn kernel_serves(&self, queue: usize) -> bool {
        let vhost = self.vhosts.get(queue / 2);
        vhost.is_some_and(Vhost::is_running)
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let turn = self.settle(ready, rings).and_then(|turn| {
            let more = match self.vhosts.is_empty() {
                true => self.exchange(ready, rings)?,
                false => self.hand_over(rings)?,
            };
            Ok(turn.and(more))
        });
        if turn.is_err() {
            // The driver is told to reset the card; until then nothing moves.
            self.vhosts.iter_mut().for_each(Vhost::stop);
        }
        turn
    }

    fn quiesce(&mut self, rings: &mut [Ring<'_>]) -> Result<(), Violation> {
        for (index, vhost) in self.vhosts.iter_mut().enumerate() {
            if !vhost.is_running() {
                continue;
            }
            vhost.stop();
            for (ring, which) in rings[2 * index..2 * index + 2].iter_mut().zip(0..) {
                let next = vhost.position(which);
                ring.take_over(next.map_err(|e| Violation::Host("take a ring back", e))?)?;
                ring.lend_interrupt(false);
            }
        }
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let heads = pair.buffers.iter().map(|chain| chain.head);
            rings[2 * index].untake(&heads.collect::<Vec<_>>())?;
            pair.forget();
        }
        Ok(())
    }

    /// The pairs that the driver uses.
    fn save(&self) -> Value {
        Value::from(self.active)
    }

    fn restore(&mut self, state: &Value) -> Result<(), Foreign> {
        let active = state.as_u64().and_then(|count| usize::try_from(count).ok());
        let active = active.filter(|count| (1..=self.known_pairs()).contains(count));
        self.active = active.ok_or(Foreign)?;
        Ok(())
    }

    /// A clone may have another address, of which the driver takes no notice: the guest is told by its init.
    fn shape(&self) -> Vec<u8> {
        self.config[6..].to_vec()
    }
}

#[cfg(test)]
pub(crate) mod tests;
