//! The client's states (RFC 2131 section 4.4), without sockets or clocks.
//!
//! Owns: when what is sent, which replies count, when a lease begins and ends.
//! Refuses: replies to another transaction, for another machine, or from another server than chosen.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use types::{Mac, Name};

use super::Lease;
use super::packet::{Reply, ReplyKind, Request, RequestKind, Terms};

/// First wait for an answer. RFC 2131 suggests 4 s for links of its time; a server that is there answers
/// in milliseconds, and what is lost is mostly the first packet after a link came up.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two tries (RFC 2131 section 4.1).
const WAIT_MAX: Duration = Duration::from_secs(64);
/// An offer that is asked for this often in vain is given up.
const SELECT_TRIES: u32 = 4;
/// Whether a lease still holds is asked this often after its link came up: 15 s, then nobody objects.
const REBOOT_TRIES: u32 = 4;
/// Shortest wait between two tries to extend a lease (RFC 2131 section 4.4.5).
const EXTEND_WAIT_MIN: Duration = Duration::from_secs(60);
/// A shorter lease is kept as if it were this long: no server can make the node ask without pause.
const LEASE_MIN: Duration = Duration::from_secs(30);
/// An MTU outside this is not used: below, IPv4 hosts need not accept (RFC 791); above, no Ethernet is.
const MTUS: std::ops::RangeInclusive<u16> = 576..=9216;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Send the request to everybody on the link.
    Broadcast(Vec<u8>),
    /// Send the request from our address to the server that lent it.
    Unicast {
        from: Ipv4Addr,
        to: Ipv4Addr,
        request: Vec<u8>,
    },
    /// A lease has begun, was extended, or is lost.
    Lease(Option<Lease>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing asked yet, or a pause after a refusal.
    Init,
    Selecting {
        tries: u32,
    },
    Requesting {
        terms: Terms,
        server: Ipv4Addr,
        tries: u32,
    },
    Bound(Held),
    Renewing(Held),
    Rebinding(Held),
    /// The link was away: whether the lease holds where it leads now is being asked.
    Rebooting {
        held: Held,
        tries: u32,
    },
}

/// A lease and its times.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    address: Ipv4Addr,
    server: Ipv4Addr,
    /// `None`: the lease is for ever.
    times: Option<Times>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    renew: Instant,
    rebind: Instant,
    expire: Instant,
}

#[derive(Debug)]
pub(super) struct Client<R> {
    mac: Mac,
    hostname: Option<Name>,
    random: R,
    state: State,
    xid: u32,
    /// When this transaction began.
    began: Instant,
    /// Refusals in a row.
    refusals: u32,
    deadline: Option<Instant>,
}

impl<R: FnMut() -> u32> Client<R> {
    pub(super) fn new(mac: Mac, hostname: Option<Name>, now: Instant, random: R) -> Self {
        Self {
            mac,
            hostname,
            random,
            state: State::Init,
            xid: 0,
            began: now,
            refusals: 0,
            deadline: Some(now),
        }
    }

    /// When [`Self::tick`] wants to be called. `None`: never, unless something arrives.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// To be called at the deadline.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match self.state.clone() {
            State::Init => self.discover(now, 0),
            State::Selecting { tries } => self.discover(now, tries),
            State::Requesting { tries, .. } if tries >= SELECT_TRIES => self.discover(now, 0),
            State::Requesting {
                terms,
                server,
                tries,
            } => self.select(now, terms, server, tries),
            State::Bound(held) | State::Renewing(held) | State::Rebinding(held) => {
                self.extend(now, held)
            }
            State::Rebooting { held, tries } => self.reboot(now, held, tries),
        }
    }

    /// The link has come up, and may lead to another network than before: whoever is there is asked at
    /// once. A lease is kept meanwhile (RFC 2131 section 3.2).
    pub(super) fn attached(&mut self, now: Instant) -> Vec<Action> {
        match self.state.clone() {
            State::Init | State::Selecting { .. } | State::Requesting { .. } => {
                self.discover(now, 0)
            }
            State::Bound(held)
            | State::Renewing(held)
            | State::Rebinding(held)
            | State::Rebooting { held, .. } => self.reboot(now, held, 0),
        }
    }

    pub(super) fn receive(&mut self, now: Instant, reply: Reply) -> Vec<Action> {
        if reply.xid != self.xid || reply.mac != self.mac {
            return Vec::new();
        }
        let server = reply.server;
        match (self.state.clone(), reply.kind) {
            (State::Selecting { .. }, ReplyKind::Offer(terms)) => {
                self.select(now, terms, server, 0)
            }
            (
                State::Requesting {
                    terms,
                    server: chosen,
                    ..
                },
                ReplyKind::Ack(given),
            ) if server == chosen && given.address.address == terms.address.address => {
                self.bind(now, given, server)
            }
            (State::Requesting { server: chosen, .. }, ReplyKind::Nak) if server == chosen => {
                self.refused(now);
                Vec::new()
            }
            (State::Renewing(held), ReplyKind::Ack(given))
                if server == held.server && given.address.address == held.address =>
            {
                self.bind(now, given, server)
            }
            (State::Rebinding(held) | State::Rebooting { held, .. }, ReplyKind::Ack(given))
                if given.address.address == held.address =>
            {
                self.bind(now, given, server)
            }
            (State::Renewing(held), ReplyKind::Nak) if server == held.server => {
                self.refused(now);
                vec![Action::Lease(None)]
            }
            (State::Rebinding(_) | State::Rebooting { .. }, ReplyKind::Nak) => {
                self.refused(now);
                vec![Action::Lease(None)]
            }
            (
                State::Init
                | State::Selecting { .. }
                | State::Requesting { .. }
                | State::Bound(_)
                | State::Renewing(_)
                | State::Rebinding(_)
                | State::Rebooting { .. },
                ReplyKind::Offer(_) | ReplyKind::Ack(_) | ReplyKind::Nak,
            ) => Vec::new(),
        }
    }

    fn discover(&mut self, now: Instant, tries: u32) -> Vec<Action> {
        if tries == 0 {
            self.begin(now);
        }
        self.deadline = Some(now + self.wait(tries));
        self.state = State::Selecting {
            tries: tries.saturating_add(1),
        };
        vec![Action::Broadcast(self.request(now, RequestKind::Discover))]
    }

    fn select(&mut self, now: Instant, terms: Terms, server: Ipv4Addr, tries: u32) -> Vec<Action> {
        let address = terms.address.address;
        self.deadline = Some(now + self.wait(tries));
        self.state = State::Requesting {
            terms,
            server,
            tries: tries + 1,
        };
        vec![Action::Broadcast(
            self.request(now, RequestKind::Select { address, server }),
        )]
    }

    fn bind(&mut self, now: Instant, terms: Terms, server: Ipv4Addr) -> Vec<Action> {
        let times = terms.seconds.map(|seconds| times(now, seconds, &terms));
        let address = terms.address;
        let lease = Lease {
            address,
            gateway: terms.gateway,
            dns: terms.dns,
            ntp: terms.ntp,
            mtu: terms.mtu.filter(|mtu| MTUS.contains(mtu)),
            expires: times.map(|times| times.expire),
        };
        self.refusals = 0;
        self.deadline = times.map(|times| times.renew);
        self.state = State::Bound(Held {
            address: address.address,
            server,
            times,
        });
        vec![Action::Lease(Some(lease))]
    }

    /// A lease's next step in time: ask its server, ask everybody, or lose it.
    fn extend(&mut self, now: Instant, held: Held) -> Vec<Action> {
        let Some(Times { rebind, expire, .. }) = held.times else {
            self.deadline = None;
            return Vec::new();
        };
        if now >= expire {
            let mut actions = vec![Action::Lease(None)];
            actions.extend(self.discover(now, 0));
            return actions;
        }
        let renewing = now < rebind;
        let fresh = match &self.state {
            State::Renewing(_) => !renewing,
            State::Rebinding(_) => false,
            State::Init
            | State::Selecting { .. }
            | State::Requesting { .. }
            | State::Bound(_)
            | State::Rebooting { .. } => true,
        };
        if fresh {
            self.begin(now);
        }
        let end = if renewing { rebind } else { expire };
        let wait = ((end - now) / 2).max(EXTEND_WAIT_MIN);
        self.deadline = Some(end.min(now + wait));
        let (from, to) = (held.address, held.server);
        let request = self.request(now, RequestKind::Extend { address: from });
        if renewing {
            self.state = State::Renewing(held);
            vec![Action::Unicast { from, to, request }]
        } else {
            self.state = State::Rebinding(held);
            vec![Action::Broadcast(request)]
        }
    }

    /// Asks whether the lease holds. Where nobody answers it does, for the rest of its time.
    fn reboot(&mut self, now: Instant, held: Held, tries: u32) -> Vec<Action> {
        if held.times.is_some_and(|times| now >= times.expire) {
            return self.extend(now, held);
        }
        if tries >= REBOOT_TRIES {
            self.deadline = held.times.map(|times| times.renew);
            self.state = State::Bound(held);
            return Vec::new();
        }
        if tries == 0 {
            self.begin(now);
        }
        self.deadline = Some(now + self.wait(tries));
        let address = held.address;
        self.state = State::Rebooting {
            held,
            tries: tries + 1,
        };
        vec![Action::Broadcast(
            self.request(now, RequestKind::Reboot { address }),
        )]
    }

    /// Begin again after a pause that grows, so that a server that always refuses is not asked without
    /// pause.
    fn refused(&mut self, now: Instant) {
        self.deadline = Some(now + self.wait(self.refusals));
        self.refusals = self.refusals.saturating_add(1);
        self.state = State::Init;
    }

    fn begin(&mut self, now: Instant) {
        self.xid = (self.random)();
        self.began = now;
    }

    /// Doubles with each try, and differs by up to a quarter between machines that started together.
    fn wait(&mut self, tries: u32) -> Duration {
        let wait = WAIT_FIRST.saturating_mul(1 << tries.min(16)).min(WAIT_MAX);
        wait.mul_f64(0.75 + 0.5 * f64::from((self.random)()) / f64::from(u32::MAX))
    }

    fn request(&self, now: Instant, kind: RequestKind) -> Vec<u8> {
        let secs = u16::try_from((now - self.began).as_secs()).unwrap_or(u16::MAX);
        let hostname = self.hostname.as_ref().map(Name::as_str);
        Request {
            kind,
            xid: self.xid,
            secs,
            mac: self.mac,
            hostname,
        }
        .encode()
    }
}

/// The times of a lease: the server's if they are in order, else those of RFC 2131 section 4.4.5.
fn times(now: Instant, seconds: u32, terms: &Terms) -> Times {
    let lease = Duration::from_secs(seconds.into()).max(LEASE_MIN);
    let given = |value: Option<u32>| value.map(|seconds| Duration::from_secs(seconds.into()));
    let (renew, rebind) = match (given(terms.renewal), given(terms.rebinding)) {
        (Some(renew), Some(rebind))
            if LEASE_MIN / 2 <= renew && renew < rebind && rebind < lease =>
        {
            (renew, rebind)
        }
        _ => (lease / 2, lease * 7 / 8),
    };
    Times {
        renew: now + renew,
        rebind: now + rebind,
        expire: now + lease,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, any, prop_oneof, proptest};

    use super::super::packet;
    use super::super::packet::tests::reply;
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SERVER: (u8, &[u8]) = (54, &[10, 0, 2, 2]);
    const HOUR: (u8, &[u8]) = (51, &[0, 0, 0x0e, 0x10]);

    fn client(now: Instant) -> Client<impl FnMut() -> u32> {
        let mut number = 40;
        let random = move || {
            number += 1;
            number
        };
        Client::new(OURS, None, now, random)
    }

    fn sent(actions: &[Action]) -> Vec<u8> {
        match actions {
            [Action::Broadcast(request) | Action::Unicast { request, .. }] => request.clone(),
            other => panic!("one request expected: {other:?}"),
        }
    }

    fn answer<R: FnMut() -> u32>(
        client: &mut Client<R>,
        now: Instant,
        kind: u8,
        request: &[u8],
        options: &[(u8, &[u8])],
    ) -> Vec<Action> {
        let bytes = reply(kind, request, [10, 0, 2, 15], options);
        client.receive(now, packet::parse(&bytes).expect("a reply"))
    }

    /// A client with a lease of one hour, and the time it was given.
    fn bound(now: Instant) -> Client<impl FnMut() -> u32> {
        let mut client = client(now);
        let discover = sent(&client.tick(now));
        let request = sent(&answer(&mut client, now, 2, &discover, &[SERVER, HOUR]));
        let leased = answer(&mut client, now, 5, &request, &[SERVER, HOUR]);
        assert!(
            matches!(&leased[..], [Action::Lease(Some(_))]),
            "{leased:?}"
        );
        client
    }

    #[test]
    fn a_lease_is_asked_for_taken_renewed_rebound_and_lost() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut client = bound(start);
        assert_eq!(client.deadline(), Some(at(1800)));
        assert_eq!(client.tick(at(1799)), []);
        let renew = client.tick(at(1800));
        let [Action::Unicast { from, to, .. }] = renew[..] else {
            panic!("no renewal: {renew:?}")
        };
        assert_eq!((from, to), ([10, 0, 2, 15].into(), [10, 0, 2, 2].into()));
        assert_eq!(client.deadline(), Some(at(1800 + 675)));
        let rebind = client.tick(at(3150));
        assert!(matches!(&rebind[..], [Action::Broadcast(_)]), "{rebind:?}");
        let again = answer(&mut client, at(3200), 5, &sent(&rebind), &[SERVER, HOUR]);
        let [Action::Lease(Some(lease))] = &again[..] else {
            panic!("no lease: {again:?}")
        };
        assert_eq!(lease.expires, Some(at(3200 + 3600)));
        client.tick(at(5000));
        let lost = client.tick(at(6800));
        assert!(
            matches!(&lost[..], [Action::Lease(None), Action::Broadcast(_)]),
            "{lost:?}"
        );
    }

    #[test]
    fn a_link_that_comes_up_again_is_asked_on_whether_the_lease_holds_there() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut client = bound(start);
        let asked = sent(&client.attached(at(60)));
        // Nothing is in use yet on this network (`ciaddr`), and the old address is what is asked for.
        assert_eq!(asked[12..16], [0; 4]);
        assert!(asked.windows(6).any(|o| o == [50, 4, 10, 0, 2, 15]));
        let holds = answer(&mut client, at(61), 5, &asked, &[SERVER, HOUR]);
        assert!(matches!(&holds[..], [Action::Lease(Some(_))]), "{holds:?}");
        let asked = sent(&client.attached(at(100)));
        let moved = answer(&mut client, at(101), 6, &asked, &[(54, &[192, 0, 2, 1])]);
        assert_eq!(moved, [Action::Lease(None)]);
        let next = client.deadline().expect("it goes on");
        assert!(matches!(&client.tick(next)[..], [Action::Broadcast(_)]));
    }

    #[test]
    fn a_lease_that_nobody_objects_to_after_its_link_came_up_keeps_its_times() {
        let start = Instant::now();
        let mut client = bound(start);
        client.attached(start + Duration::from_secs(60));
        for _ in 1..REBOOT_TRIES {
            let next = client.deadline().expect("another try");
            assert!(matches!(&client.tick(next)[..], [Action::Broadcast(_)]));
        }
        let next = client.deadline().expect("the last try's end");
        assert_eq!(client.tick(next), []);
        assert_eq!(client.deadline(), Some(start + Duration::from_secs(1800)));
    }

    #[test]
    fn an_unanswered_discover_is_repeated_ever_more_slowly_and_for_ever() {
        let mut now = Instant::now();
        let mut client = client(now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(matches!(&client.tick(now)[..], [Action::Broadcast(_)]));
            let next = client.deadline().expect("it goes on");
            waits.push(next - now);
            now = next;
        }
        assert!(waits[0] <= Duration::from_millis(1250) && waits[11] <= WAIT_MAX.mul_f64(1.25));
        assert!(waits[..6].is_sorted() && waits[11] >= WAIT_MAX.mul_f64(0.75));
    }

    #[test]
    fn a_server_that_answers_after_ten_minutes_is_heard() {
        let start = Instant::now();
        let mut client = client(start);
        let mut discover = sent(&client.tick(start));
        let mut now = start;
        while now < start + Duration::from_secs(600) {
            now = client.deadline().expect("it asks on");
            discover = sent(&client.tick(now));
        }
        assert!(now < start + Duration::from_secs(600) + WAIT_MAX * 5 / 4);
        let request = sent(&answer(&mut client, now, 2, &discover, &[SERVER, HOUR]));
        let leased = answer(&mut client, now, 5, &request, &[SERVER, HOUR]);
        assert!(matches!(&leased[..], [Action::Lease(Some(_))]));
    }

    #[test]
    fn replies_of_strangers_change_nothing() {
        let now = Instant::now();
        let mut client = client(now);
        let discover = sent(&client.tick(now));
        let mut other = discover.clone();
        other[4] ^= 1;
        assert_eq!(
            answer(&mut client, now, 2, &other, &[SERVER, HOUR]),
            [],
            "another transaction"
        );
        let mut other = discover.clone();
        other[28] ^= 4;
        assert_eq!(
            answer(&mut client, now, 2, &other, &[SERVER, HOUR]),
            [],
            "another machine"
        );
        assert_eq!(
            answer(&mut client, now, 5, &discover, &[SERVER, HOUR]),
            [],
            "not asked for"
        );
        let request = sent(&answer(&mut client, now, 2, &discover, &[SERVER, HOUR]));
        let stranger = (54, &[10, 0, 2, 9][..]);
        for kind in [5, 6] {
            assert_eq!(
                answer(&mut client, now, kind, &request, &[stranger, HOUR]),
                [],
                "{kind}"
            );
        }
    }

    #[test]
    fn a_refusal_begins_again_after_a_pause_and_takes_the_lease_away() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut client = bound(start);
        let renew = sent(&client.tick(at(1800)));
        assert_eq!(
            answer(&mut client, at(1800), 6, &renew, &[SERVER]),
            [Action::Lease(None)]
        );
        assert!(client.deadline().is_some_and(|d| d > at(1800)));
        assert!(matches!(&client.tick(at(1802))[..], [Action::Broadcast(_)]));
    }

    #[test]
    fn an_offer_that_is_not_confirmed_is_given_up() {
        let mut now = Instant::now();
        let mut client = client(now);
        let discover = sent(&client.tick(now));
        answer(&mut client, now, 2, &discover, &[SERVER, HOUR]);
        for _ in 0..SELECT_TRIES {
            now = client.deadline().expect("it goes on");
            client.tick(now);
        }
        assert!(
            matches!(client.state, State::Selecting { .. }),
            "{:?}",
            client.state
        );
    }

    proptest! {
        /// Whatever a server says and whenever, the client keeps a deadline (or a lease for ever), and
        /// never asks more often than its limits say.
        #[test]
        fn no_server_can_stop_or_hurry_the_client(events in proptest::collection::vec(
            (0_u32..5000, prop_oneof![Just(2_u8), Just(5), Just(6)], any::<u32>(), any::<[u32; 2]>()), 0..60)
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut client = client(start);
            let (mut requests, mut last) = (0_u32, sent(&client.tick(now)));
            for (pause, kind, seconds, [renewal, rebinding]) in &events {
                let bytes = reply(*kind, &last, [10, 0, 2, 15], &[
                    SERVER, (51, &seconds.to_be_bytes()), (58, &renewal.to_be_bytes()), (59, &rebinding.to_be_bytes()),
                ]);
                let mut actions = client.receive(now, packet::parse(&bytes).expect("a reply"));
                now += Duration::from_millis((*pause).into());
                actions.extend(client.tick(now));
                for action in actions {
                    match action {
                        Action::Broadcast(request) | Action::Unicast { request, .. } => {
                            requests += 1;
                            last = request;
                        }
                        Action::Lease(_) => {}
                    }
                }
                let forever = matches!(&client.state, State::Bound(Held { times: None, .. }));
                assert!(forever || client.deadline().is_some());
            }
            assert!(requests <= 2 * u32::try_from(events.len()).expect("few"));
        }
    }
}
