//! The client's states (RFC 8415 section 18.2), without sockets or clocks.
//!
//! Owns: when what is sent, which answers count, when an address begins and ends.
//! Refuses: answers to another transaction, for another client, or from another server than chosen.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use types::Mac;

use super::packet::{Answer, Ask, Ia, Kind, Lent, Question, client_id, ia_id};
use super::{Mode, Told};

/// RFC 8415 section 7.6: SOL_TIMEOUT, REQ_TIMEOUT and INF_TIMEOUT.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// The longest wait between two tries. The RFC's hour is for a million hosts on one server; a node that has no address
/// waits for nothing else, and RFC 3315 had this.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// REN_TIMEOUT and REN_MAX_RT, which are REB_TIMEOUT and REB_MAX_RT too.
const EXTEND_FIRST: Duration = Duration::from_secs(10);
const EXTEND_MAX: Duration = Duration::from_secs(600);
/// A server that offered and then does not answer is given up after so many requests: 15 s.
const REQUEST_TRIES: u32 = 4;
/// A shorter life is kept as if it were this long: no server can make the node ask without pause.
const LIFE_MIN: Duration = Duration::from_secs(30);
/// When servers of names and time are asked for anew: IRT_DEFAULT, IRT_MINIMUM.
const REFRESH: Duration = Duration::from_secs(86_400);
const REFRESH_MIN: Duration = Duration::from_secs(600);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send to all servers of the link.
    Send(Vec<u8>),
    /// This is what is known from now on.
    Told(Told),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nobody says that there is a server.
    Off,
    Informing,
    /// Until servers are asked for anew.
    Informed,
    Soliciting,
    Requesting {
        server: Vec<u8>,
        address: Ipv6Addr,
    },
    Bound(Held),
    Renewing(Held),
    Rebinding(Held),
}

/// An address and its times; `None`: never.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    server: Vec<u8>,
    address: Ipv6Addr,
    rebind: Option<Instant>,
    expire: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Client<R> {
    mac: Mac,
    random: R,
    mode: Mode,
    state: State,
    transaction: u32,
    /// When this exchange began, and how often was asked in it.
    began: Instant,
    tries: u32,
    deadline: Option<Instant>,
}

impl<R: FnMut() -> u32> Client<R> {
    pub(crate) fn new(mac: Mac, now: Instant, random: R) -> Self {
        Self {
            mac,
            random,
            mode: Mode::Off,
            state: State::Off,
            transaction: 0,
            began: now,
            tries: 0,
            deadline: None,
        }
    }

    /// When [`Self::tick`] wants to be called. `None`: never, unless something arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What routers say that servers are for. Nothing happens where that has not changed.
    pub(crate) fn turn(&mut self, now: Instant, mode: Mode) -> Vec<Action> {
        if mode == self.mode {
            return Vec::new();
        }
        self.mode = mode;
        // What was told before was told of another kind of link.
        let mut actions = vec![Action::Told(Told::default())];
        actions.extend(self.begin(now));
        actions
    }

    /// The link came up, and may lead elsewhere than before. What is held is held until somebody objects.
    pub(crate) fn attached(&mut self, now: Instant) -> Vec<Action> {
        match self.state.clone() {
            State::Off => Vec::new(),
            State::Informing | State::Informed | State::Soliciting | State::Requesting { .. } => {
                self.begin(now)
            }
            State::Bound(held) | State::Renewing(held) | State::Rebinding(held) => {
                self.enter(now, State::Rebinding(held))
            }
        }
    }

    /// To be called at the deadline.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match self.state.clone() {
            State::Off => {
                self.deadline = None;
                Vec::new()
            }
            State::Informing | State::Soliciting => vec![self.ask(now)],
            State::Informed => self.enter(now, State::Informing),
            State::Requesting { .. } if self.tries >= REQUEST_TRIES => self.begin(now),
            State::Requesting { .. } => vec![self.ask(now)],
            State::Bound(held) => {
                let next = if is_over(held.rebind, now) {
                    State::Rebinding(held.clone())
                } else {
                    State::Renewing(held.clone())
                };
                self.extend(now, &held, next)
            }
            State::Renewing(held) if is_over(held.rebind, now) => {
                let next = State::Rebinding(held.clone());
                self.extend(now, &held, next)
            }
            State::Renewing(held) | State::Rebinding(held) if is_over(held.expire, now) => {
                self.lose(now)
            }
            State::Renewing(_) | State::Rebinding(_) => vec![self.ask(now)],
        }
    }

    pub(crate) fn receive(&mut self, now: Instant, answer: Answer) -> Vec<Action> {
        let ours = answer.transaction == self.transaction
            && (answer.client == client_id(self.mac)
                || (self.state == State::Informing && answer.client.is_empty()));
        if !ours || self.tries == 0 {
            return Vec::new();
        }
        let lent = self.lent(&answer);
        match (self.state.clone(), answer.kind) {
            (State::Informing, Kind::Reply) if answer.status == 0 => self.informed(now, answer),
            (State::Soliciting, Kind::Advertise) => match lent {
                Some((_, lent)) => {
                    let (server, address) = (answer.server, lent.address);
                    self.enter(now, State::Requesting { server, address })
                }
                None => Vec::new(),
            },
            (State::Requesting { server, .. }, Kind::Reply) if server == answer.server => {
                match lent {
                    Some((ia, lent)) => self.bind(now, answer, &ia, lent),
                    // Asked anew when the pause is over: a server that always refuses is not asked without one.
                    None => Vec::new(),
                }
            }
            (State::Renewing(held), Kind::Reply) if held.server == answer.server => {
                self.extended(now, &held, answer, lent)
            }
            (State::Rebinding(held), Kind::Reply) => self.extended(now, &held, answer, lent),
            (
                State::Off
                | State::Informing
                | State::Informed
                | State::Soliciting
                | State::Requesting { .. }
                | State::Bound(_)
                | State::Renewing(_)
                | State::Rebinding(_),
                Kind::Advertise | Kind::Reply,
            ) => Vec::new(),
        }
    }

    /// What it lends to this link.
    fn lent(&self, answer: &Answer) -> Option<(Ia, Lent)> {
        let ours = |ia: &&Ia| answer.status == 0 && ia.status == 0 && ia.id == ia_id(self.mac);
        let ia = answer.ia.as_ref().filter(ours)?;
        let lent = ia.addresses.iter().find(|lent| lent.valid > 0)?;
        Some((ia.clone(), *lent))
    }

    fn begin(&mut self, now: Instant) -> Vec<Action> {
        match self.mode {
            Mode::Off => {
                (self.state, self.deadline, self.tries) = (State::Off, None, 0);
                Vec::new()
            }
            Mode::Stateless => self.enter(now, State::Informing),
            Mode::Stateful => self.enter(now, State::Soliciting),
        }
    }

    /// Begins an exchange.
    fn enter(&mut self, now: Instant, state: State) -> Vec<Action> {
        self.state = state;
        self.transaction = (self.random)() & 0x00ff_ffff;
        (self.began, self.tries) = (now, 0);
        vec![self.ask(now)]
    }

    /// Asks, and says when the next try is.
    fn ask(&mut self, now: Instant) -> Action {
        let (ask, server, address, end) = match &self.state {
            State::Off | State::Informed | State::Informing => (Ask::Information, None, None, None),
            State::Soliciting | State::Bound(_) => (Ask::Solicit, None, None, None),
            State::Requesting { server, address } => {
                (Ask::Request, Some(server), Some(*address), None)
            }
            State::Renewing(held) => (
                Ask::Renew,
                Some(&held.server),
                Some(held.address),
                held.rebind,
            ),
            State::Rebinding(held) => (Ask::Rebind, None, Some(held.address), held.expire),
        };
        let hundredths = (now - self.began).as_millis() / 10;
        let question = Question {
            ask,
            transaction: self.transaction,
            mac: self.mac,
            server: server.map(Vec::as_slice),
            address,
            elapsed: u16::try_from(hundredths).unwrap_or(u16::MAX),
        };
        let message = question.encode();
        let (first, most) = match ask {
            Ask::Renew | Ask::Rebind => (EXTEND_FIRST, EXTEND_MAX),
            Ask::Solicit | Ask::Request | Ask::Information => (WAIT_FIRST, WAIT_MAX),
        };
        let next = now + self.wait(first, most);
        self.deadline = Some(end.map_or(next, |end| end.min(next)));
        self.tries = self.tries.saturating_add(1);
        Action::Send(message)
    }

    /// Doubles with each try, and differs by a tenth between machines that started together.
    fn wait(&mut self, first: Duration, most: Duration) -> Duration {
        let wait = first.saturating_mul(1 << self.tries.min(16)).min(most);
        wait.mul_f64(0.9 + 0.2 * f64::from((self.random)()) / f64::from(u32::MAX))
    }

    fn informed(&mut self, now: Instant, answer: Answer) -> Vec<Action> {
        let refresh = answer.refresh.map(|s| Duration::from_secs(s.into()));
        let refresh = refresh.unwrap_or(REFRESH).max(REFRESH_MIN);
        self.state = State::Informed;
        self.tries = 0;
        self.deadline = Some(now + refresh);
        vec![Action::Told(Told {
            address: None,
            dns: answer.dns,
            ntp: answer.ntp,
        })]
    }

    fn bind(&mut self, now: Instant, answer: Answer, ia: &Ia, lent: Lent) -> Vec<Action> {
        let after = |seconds: u32| Duration::from_secs(seconds.into()).max(LIFE_MIN);
        let preferred = after(lent.preferred.min(lent.valid));
        // Zero leaves it to the client (RFC 8415 section 21.4).
        let or = |given: u32, tenths: u32| match given {
            0 => preferred * tenths / 10,
            given => after(given),
        };
        let life = (lent.valid != u32::MAX).then(|| after(lent.valid));
        let within = |at: Duration| life.map(|life| at.min(life));
        let (renew, rebind) = (within(or(ia.renew, 5)), within(or(ia.rebind, 8)));
        let held = Held {
            server: answer.server,
            address: lent.address,
            rebind: rebind.map(|at| now + at),
            expire: life.map(|life| now + life),
        };
        self.state = State::Bound(held);
        self.tries = 0;
        self.deadline = renew.map(|at| now + at);
        vec![Action::Told(Told {
            address: Some(lent.address),
            dns: answer.dns,
            ntp: answer.ntp,
        })]
    }

    /// An answer to who holds an address already.
    fn extended(
        &mut self,
        now: Instant,
        held: &Held,
        answer: Answer,
        lent: Option<(Ia, Lent)>,
    ) -> Vec<Action> {
        /// The server knows nothing of it, or it is none of this link.
        const NO_BINDING: u16 = 3;
        const NOT_ON_LINK: u16 = 4;
        if let Some((ia, lent)) = lent {
            return self.bind(now, answer, &ia, lent);
        }
        let ia = answer.ia.as_ref().filter(|ia| ia.id == ia_id(self.mac));
        let withdrawn = ia.is_some_and(|ia| {
            let ours = |lent: &Lent| lent.address == held.address && lent.valid == 0;
            ia.status == NO_BINDING || ia.status == NOT_ON_LINK || ia.addresses.iter().any(ours)
        });
        if withdrawn || answer.status == NOT_ON_LINK {
            return self.lose(now);
        }
        Vec::new()
    }

    fn extend(&mut self, now: Instant, held: &Held, next: State) -> Vec<Action> {
        if is_over(held.expire, now) {
            return self.lose(now);
        }
        self.enter(now, next)
    }

    fn lose(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::Told(Told::default())];
        actions.extend(self.begin(now));
        actions
    }
}

fn is_over(end: Option<Instant>, now: Instant) -> bool {
    end.is_some_and(|end| now >= end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::tests::{answer, dns_option, ia_option};
    use super::super::parse;
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const TIMES: [u32; 4] = [1800, 2880, 3600, 7200];

    fn client(now: Instant) -> Client<impl FnMut() -> u32> {
        let mut number = 40;
        let random = move || {
            number += 1;
            number
        };
        Client::new(MAC, now, random)
    }

    /// The one message among the actions.
    fn sent(actions: &[Action]) -> Vec<u8> {
        let mut sent = actions.iter().filter_map(|action| match action {
            Action::Send(message) => Some(message.clone()),
            Action::Told(_) => None,
        });
        sent.next().expect("a message")
    }

    fn told(actions: &[Action]) -> Told {
        let mut told = actions.iter().filter_map(|action| match action {
            Action::Told(told) => Some(told.clone()),
            Action::Send(_) => None,
        });
        told.next().expect("news")
    }

    fn hear<R: FnMut() -> u32>(
        client: &mut Client<R>,
        now: Instant,
        kind: u8,
        question: &[u8],
        options: &[(u16, Vec<u8>)],
    ) -> Vec<Action> {
        let bytes = answer(kind, question, options);
        client.receive(now, parse(&bytes).expect("an answer"))
    }

    fn bound(now: Instant) -> Client<impl FnMut() -> u32> {
        let mut client = client(now);
        let solicit = sent(&client.turn(now, Mode::Stateful));
        let lent = [
            ia_option(MAC, "2001:db8::77", TIMES),
            dns_option("2001:db8::53"),
        ];
        let request = sent(&hear(&mut client, now, 2, &solicit, &lent));
        assert_eq!((solicit[0], request[0]), (1, 3));
        let told = told(&hear(&mut client, now, 7, &request, &lent));
        assert_eq!(
            told.address.map(|a| a.to_string()),
            Some("2001:db8::77".into())
        );
        assert_eq!(told.dns.len(), 1);
        client
    }

    #[test]
    fn an_address_is_asked_for_taken_renewed_rebound_and_lost() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut client = bound(start);
        assert_eq!(client.deadline(), Some(at(1800)));
        assert_eq!(client.tick(at(1799)), []);
        let renew = sent(&client.tick(at(1800)));
        assert_eq!(renew[0], 5);
        // Another server's word counts only once everybody is asked.
        let now = at(2880);
        let rebind = sent(&client.tick(now));
        assert_eq!(rebind[0], 6);
        let gone = client.tick(at(7200));
        assert_eq!(told(&gone), Told::default());
        assert_eq!(sent(&gone)[0], 1);
    }

    #[test]
    fn a_server_that_answers_after_ten_minutes_is_heard() {
        let start = Instant::now();
        let mut client = client(start);
        let mut question = sent(&client.turn(start, Mode::Stateful));
        let mut now = start;
        while now < start + Duration::from_secs(600) {
            now = client.deadline().expect("it asks on");
            question = sent(&client.tick(now));
        }
        let lent = [ia_option(MAC, "2001:db8::77", TIMES)];
        let request = sent(&hear(&mut client, now, 2, &question, &lent));
        assert!(
            told(&hear(&mut client, now, 7, &request, &lent))
                .address
                .is_some()
        );
        assert!(now < start + Duration::from_secs(600) + WAIT_MAX * 11 / 10);
    }

    #[test]
    fn servers_of_names_are_asked_for_anew_after_a_day() {
        let start = Instant::now();
        let mut client = client(start);
        let question = sent(&client.turn(start, Mode::Stateless));
        assert_eq!(question[0], 11);
        let told = told(&hear(
            &mut client,
            start,
            7,
            &question,
            &[dns_option("2001:db8::53")],
        ));
        assert_eq!((told.address, told.dns.len()), (None, 1));
        assert_eq!(client.deadline(), Some(start + REFRESH));
        assert_eq!(sent(&client.tick(start + REFRESH))[0], 11);
        assert_eq!(client.turn(start, Mode::Off).len(), 1);
        assert_eq!(client.deadline(), None);
    }

    #[test]
    fn after_the_cable_was_away_all_servers_are_asked_and_one_that_knows_nothing_ends_it() {
        let start = Instant::now();
        let mut client = bound(start);
        let rebind = sent(&client.attached(start));
        assert_eq!(rebind[0], 6);
        let (code, mut ia) = ia_option(MAC, "2001:db8::77", TIMES);
        ia.truncate(12);
        ia.extend([0, 13, 0, 2, 0, 3]);
        let gone = hear(&mut client, start, 7, &rebind, &[(code, ia)]);
        assert_eq!(told(&gone), Told::default());
        assert_eq!(sent(&gone)[0], 1);
    }

    #[test]
    fn answers_to_others_or_from_another_server_are_not_taken() {
        let now = Instant::now();
        let mut client = client(now);
        let solicit = sent(&client.turn(now, Mode::Stateful));
        let lent = [ia_option(MAC, "2001:db8::77", TIMES)];
        let mut other = solicit.clone();
        other[3] ^= 1;
        assert_eq!(hear(&mut client, now, 2, &other, &lent), []);
        assert_eq!(hear(&mut client, now, 7, &solicit, &lent), []);
        let mut bytes = answer(2, &solicit, &lent);
        let request = sent(&client.receive(now, parse(&bytes).expect("an answer")));
        bytes = answer(7, &request, &lent);
        // The last byte of the server's identity.
        let at = 4 + 14 + 4 + 9;
        bytes[at] ^= 1;
        assert_eq!(client.receive(now, parse(&bytes).expect("an answer")), []);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Wait(u32),
        Deadline,
        Mode(Mode),
        Attached,
        Hear(u8, [u32; 4], u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        let mode = prop_oneof![Just(Mode::Off), Just(Mode::Stateless), Just(Mode::Stateful)];
        let time = || prop_oneof![Just(0), Just(u32::MAX), 0..90_u32, any::<u32>()];
        prop_oneof![
            (0..100_000_u32).prop_map(Event::Wait),
            Just(Event::Deadline),
            mode.prop_map(Event::Mode),
            Just(Event::Attached),
            (
                prop_oneof![Just(2_u8), Just(7)],
                [time(), time(), time(), time()],
                0..6_u16
            )
                .prop_map(|(kind, times, status)| Event::Hear(kind, times, status)),
        ]
    }

    proptest! {
        /// Nothing makes it ask without pause, and while servers are there it never stops.
        #[test]
        fn whatever_happens_it_goes_on_and_never_hurries(events in prop::collection::vec(event(), 0..60)) {
            let mut now = Instant::now();
            let mut client = client(now);
            let mut question = sent(&client.turn(now, Mode::Stateful));
            for event in events {
                let actions = match event {
                    Event::Wait(seconds) => {
                        now += Duration::from_secs(seconds.into());
                        client.tick(now)
                    }
                    Event::Deadline => {
                        now = client.deadline().unwrap_or(now).max(now);
                        client.tick(now)
                    }
                    Event::Mode(mode) => client.turn(now, mode),
                    Event::Attached => client.attached(now),
                    Event::Hear(kind, times, status) => {
                        let mut options = vec![ia_option(MAC, "2001:db8::77", times)];
                        if status > 0 {
                            options.push((13, status.to_be_bytes().to_vec()));
                        }
                        hear(&mut client, now, kind, &question, &options)
                    }
                };
                if actions.iter().any(|a| matches!(a, Action::Send(_))) {
                    question = sent(&actions);
                    let wait = client.deadline().expect("a next try") - now;
                    prop_assert!(wait >= Duration::from_millis(900) || matches!(client.state, State::Renewing(_) | State::Rebinding(_)));
                }
                // A tick that has been done leaves nothing for the same moment.
                let again: usize = (0..3).map(|_| client.tick(now).len()).sum();
                prop_assert!(again <= 3, "{again} in {:?}", client.state);
                prop_assert!(client.deadline().is_some() || matches!(client.state, State::Off | State::Bound(Held { expire: None, .. })), "{:?}", client.state);
            }
        }
    }
}
