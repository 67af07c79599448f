//! Gateways that answer, are silent or lie.

use std::net::Ipv4Addr;

use proptest::prelude::{any, proptest};

use super::super::message::{Code, Query};
use super::*;
use crate::scratch::on_a_runtime;

fn there() -> Cidr {
    "10.200.2.0/24".parse().expect("a subnet")
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What is believed of a gateway that answers each question so; `None`: not at all.
fn asked(
    of: &[&str],
    answer: impl Fn(&str) -> Option<Option<[u8; 4]>>,
) -> (BTreeMap<String, Said>, usize) {
    on_a_runtime(async {
        let gateway = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let socket = StdSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("set");
        let at = gateway.local_addr().expect("an address");
        socket.connect(at).expect("connected");
        let mut heard = 0;
        let wanted = names(of);
        let asking = ask(socket, there(), &wanted);
        let mut asking = std::pin::pin!(asking);
        let mut buffer = [0; 512];
        loop {
            tokio::select! {
                said = &mut asking => return (said.expect("asked"), heard),
                received = gateway.recv_from(&mut buffer) => {
                    let (length, from) = received.expect("a question");
                    heard += 1;
                    let query = Query::parse(&buffer[..length]).expect("a query");
                    let answer = match answer(&query.name) {
                        None => continue,
                        Some(Some(address)) => query.answer(address.into(), None),
                        Some(None) => query.refuse(Code::NameError),
                    };
                    gateway.send_to(&answer, from).await.expect("sent");
                }
            }
        }
    })
}

#[test]
fn each_name_has_the_answer_that_was_to_it_and_no_address_but_of_that_nodes_subnet_is_believed() {
    let (said, _) = asked(
        &["db.shop", "evil.shop", "gone.shop", "web.shop"],
        |name| match name {
            "web.shop" => Some(Some([10, 200, 2, 9])),
            "db.shop" => Some(Some([10, 200, 2, 10])),
            "evil.shop" => Some(Some([10, 200, 1, 1])),
            _ => Some(None),
        },
    );
    let at = |last| Said::At(Ipv4Addr::new(10, 200, 2, last));
    let said: Vec<Said> = said.into_values().collect();
    assert_eq!(said, [at(10), Said::Nobody, Said::Nobody, at(9)]);
}

#[test]
fn who_is_silent_is_asked_once_more_and_of_the_others_the_answers_count() {
    let (said, heard) = asked(&["db.shop", "web.shop"], |name| {
        (name == "web.shop").then_some(Some([10, 200, 2, 9]))
    });
    assert_eq!(said["web.shop"], Said::At([10, 200, 2, 9].into()));
    assert_eq!(said["db.shop"], Said::Nothing);
    assert_eq!(heard, 3);
}

#[test]
fn of_a_silent_gateway_no_more_is_asked_than_the_first_few() {
    let many: Vec<String> = (0..3 * AT_ONCE).map(|n| format!("m{n}.shop")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (said, heard) = asked(&many, |_| None);
    assert_eq!(said.len(), many.len());
    assert!(said.values().all(|said| *said == Said::Nothing));
    assert_eq!(heard, 2 * AT_ONCE);
    let (said, heard) = asked(&many, |_| Some(Some([10, 200, 2, 9])));
    assert!(said.values().all(|said| matches!(said, Said::At(_))));
    assert_eq!((said.len(), heard), (many.len(), many.len()));
}

#[test]
fn a_question_that_comes_back_is_no_answer() {
    let name = "web.shop".to_owned();
    let mut round = Round::of(&[&name], there()).expect("questions");
    let (query, _) = round.open.values().next().expect("one").clone();
    assert!(!round.hear(&query));
    let other = Query::parse(&query)
        .expect("a query")
        .with_id(message::id(&query).expect("a number").wrapping_add(1));
    let other = Query::parse(&other).expect("a query");
    assert!(!round.hear(&other.answer([10, 200, 2, 9].into(), None)));
    let right = Query::parse(&query).expect("a query");
    let right = right.answer([10, 200, 2, 9].into(), None);
    assert!(round.hear(&right) && !round.hear(&right));
}

proptest! {
    #[test]
    fn whatever_a_gateway_sends_is_an_address_of_its_own_or_none(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6)
    ) {
        let name = "web.shop".to_owned();
        fuzz::hear(&[&name], there(), &packets);
    }

    #[test]
    fn an_answer_with_whatever_behind_the_question_is_an_address_of_its_own_or_none(
        tail in proptest::collection::vec(any::<u8>(), 0..40), address in any::<u32>()
    ) {
        let name = "web.shop".to_owned();
        let mut round = Round::of(&[&name], there()).expect("questions");
        let (query, _) = round.open.values().next().expect("one").clone();
        let query = Query::parse(&query).expect("a query");
        let mut answer = query.answer(address.into(), None);
        let whole = answer.len();
        answer.truncate(whole - 16);
        answer.extend(&tail);
        round.hear(&answer);
        round.hear(&query.answer(address.into(), None));
        for said in round.said.values() {
            if let Said::At(address) = said {
                proptest::prop_assert!(there().contains(*address));
            }
        }
    }
}
