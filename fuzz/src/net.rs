//! Packets from the network: DHCP servers, routers, guests and name servers, time servers.

use ::net::fuzz::{Autoconf, Dhcp, dns_query, dns_reply, sntp};

use crate::Target;
use crate::choices::{Choices, Made};

pub(crate) const TARGETS: [Target; 5] = [
    Target {
        name: "net-autoconf",
        bytes_max: 4096,
        run: autoconf,
        seeds: links,
    },
    Target {
        name: "net-dhcp",
        bytes_max: 4096,
        run: dhcp,
        seeds: conversations,
    },
    Target {
        name: "net-dns-query",
        bytes_max: 1024,
        run: query,
        seeds: || questions().to_vec(),
    },
    Target {
        name: "net-dns-reply",
        bytes_max: 2048,
        run: reply,
        seeds: replies,
    },
    Target {
        name: "net-sntp",
        bytes_max: 64,
        run: time,
        seeds: times,
    },
];

/// Packets and pauses in any order. A reply can fit the transaction: its number is put in where it says so.
fn dhcp(input: &[u8]) {
    let mut choices = Choices(input);
    let mut client = Dhcp::default();
    let mut said = client.wait(0);
    while !choices.is_empty() {
        let now = match choices.u8() & 7 {
            0 => client.wait(choices.u32()),
            1 | 2 => client.wait_for_deadline(),
            3 => client.hear(choices.long()),
            4 => client.hear_payload(choices.long()),
            _ => {
                let mut payload = choices.long().to_vec();
                if let (Some(request), Some(xid)) = (said.last(), payload.get_mut(4..8)) {
                    xid.copy_from_slice(transaction(request));
                }
                client.hear_payload(&payload)
            }
        };
        if !now.is_empty() {
            said = now;
        }
    }
}

/// Routers and DHCPv6 servers in any order. A server's answer can fit the transaction: its number is put in where it says so.
fn autoconf(input: &[u8]) {
    let mut choices = Choices(input);
    let mut link = Autoconf::default();
    let mut asked = link.wait(0);
    while !choices.is_empty() {
        let now = match choices.u8() & 7 {
            0 => link.wait(choices.u32()),
            1 => link.wait_for_deadline(),
            2 => match choices.u8() {
                0 | 1 => link.attach(),
                router => link.notice(router >> 1 & 1, router & 1 == 0),
            },
            3 => link.hear_router(choices.u8(), choices.u8(), choices.long()),
            4 | 5 => link.hear_router(choices.u8() & 1, 255, choices.long()),
            _ => {
                let mut answer = choices.long().to_vec();
                if let (Some(question), Some(number)) = (asked.last(), answer.get_mut(1..4)) {
                    number.copy_from_slice(&question[1..4]);
                }
                link.hear_server(&answer)
            }
        };
        if !now.is_empty() {
            asked = now;
        }
    }
}

/// A link where addresses follow from a prefix, one where a server lends them, and one that becomes the other.
fn links() -> Vec<Vec<u8>> {
    let prefix = |flags: u8| {
        let mut option = vec![3, 4, 64, flags, 0, 0, 28, 32, 0, 0, 14, 16, 0, 0, 0, 0];
        option.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 7]);
        option.resize(32, 0);
        option
    };
    let advert = |flags: u8, options: &[Vec<u8>]| {
        let mut packet = vec![134, 0, 0, 0, 64, flags, 7, 8];
        packet.resize(16, 0);
        packet.extend(options.concat());
        packet
    };
    let mut dns = vec![25, 3, 0, 0, 0, 0, 4, 0xb0];
    dns.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53]);
    let plain = advert(0, &[prefix(0xc0), dns, vec![5, 1, 0, 0, 0, 0, 5, 0x78]]);
    let managed = advert(0x80, &[prefix(0x80)]);
    let server = |kind: u8| {
        let mut answer = vec![kind, 0, 0, 0, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
        answer.extend_from_slice(&[0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 9, 0, 3, 0, 40]);
        answer.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0, 200, 0, 5, 0, 24]);
        answer.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        answer.extend_from_slice(&[0, 0, 1, 44, 0, 0, 1, 144]);
        answer
    };
    let alone = Made::default().u8(4).u8(1).long(&plain).u8(1).u8(1);
    let bound = Made::default().u8(4).u8(1).long(&managed);
    let bound = bound.u8(6).long(&server(2)).u8(6).long(&server(7));
    let renewed = bound.clone().u8(1).u8(1).u8(6).long(&server(7)).u8(2);
    let turned = bound.clone().u8(4).u8(1).long(&plain).u8(0).u32(9000);
    [alone, bound, renewed, turned].map(|made| made.0).to_vec()
}

/// The transaction's number in a request, with or without its IPv4 and UDP headers.
fn transaction(request: &[u8]) -> &[u8] {
    let payload = match request[0] {
        0x45 => &request[28..],
        _ => request,
    };
    &payload[4..8]
}

/// A server's reply (RFC 2131 section 2) with these options behind the cookie.
fn answer(address: [u8; 4], options: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![2, 1, 6, 0];
    out.resize(16, 0);
    out.extend_from_slice(&address);
    out.resize(28, 0);
    out.extend_from_slice(&[2, 0, 0, 0, 0, 1]);
    out.resize(236, 0);
    out.extend_from_slice(&[99, 130, 83, 99]);
    options.iter().for_each(|o| out.extend_from_slice(o));
    out.push(255);
    out
}

fn conversations() -> Vec<Vec<u8>> {
    let common: [&[u8]; 5] = [
        &[54, 4, 10, 0, 2, 2],
        &[51, 4, 0, 0, 0x0e, 0x10],
        &[1, 4, 255, 255, 255, 0],
        &[3, 4, 10, 0, 2, 2],
        &[6, 8, 10, 0, 2, 3, 1, 1, 1, 1],
    ];
    let kind = |kind: u8| {
        let kind = [53, 1, kind];
        answer([10, 0, 2, 15], &[&[&kind[..]], &common[..]].concat())
    };
    let (offer, ack, nak) = (kind(2), kind(5), kind(6));
    let bound = Made::default().u8(5).long(&offer).u8(5).long(&ack);
    let renewed = bound.clone().u8(1).u8(5).long(&ack).u8(1).u8(1);
    let refused = Made::default().u8(5).long(&offer).u8(5).long(&nak).u8(1);
    let overload = answer(
        [10, 0, 2, 15],
        &[&[53, 1, 2], &[52, 1, 3], &[54, 4, 10, 0, 2, 2]],
    );
    let lost = bound.clone().u8(0).u32(u32::MAX).u8(1);
    let overloaded = Made::default().u8(5).long(&overload);
    [bound, renewed, refused, lost, overloaded]
        .map(|made| made.0)
        .to_vec()
}

fn query(input: &[u8]) {
    if let Some(answer) = dns_query(input) {
        assert!(answer.len() >= 12 && answer[..2] == input[..2]);
        assert_ne!(answer[2] & 0x80, 0, "an answer is a response");
    }
}

/// A question for an address, and one with the options of RFC 6891.
fn questions() -> [Vec<u8>; 2] {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend_from_slice(b"\x03web\x04shop\x00\x00\x01\x00\x01");
    let mut with_options = question.clone();
    with_options[11] = 1;
    with_options.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    [question, with_options]
}

fn reply(input: &[u8]) {
    let mut choices = Choices(input);
    let (id, question) = (choices.u16(), choices.short());
    // A relay's own number and port are chosen by the node: whoever answers may know them.
    dns_reply(question, id, choices.rest());
}

fn replies() -> Vec<Vec<u8>> {
    let [question, with_options] = questions();
    [question, with_options]
        .map(|question| {
            let mut reply = question.clone();
            reply[..2].copy_from_slice(&[1, 2]);
            reply[2] |= 0x80;
            reply.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 1]);
            Made::default().u16(0x0201).short(&question).raw(&reply).0
        })
        .to_vec()
}

fn time(input: &[u8]) {
    let mut choices = Choices(input);
    let (nonce, fits) = (choices.u64(), choices.u8());
    let mut packet = choices.rest().to_vec();
    if let (true, Some(place)) = (fits & 1 != 0, packet.get_mut(24..32)) {
        place.copy_from_slice(&nonce.to_be_bytes());
    }
    if let Some(offset_us) = sntp(&packet, nonce) {
        // 136 years to either side of 2024: a stamp has 32 bits of seconds.
        let limit: i64 = (1 << 32) * 1_000_000 * 2;
        assert!(offset_us.abs() < limit, "{offset_us}");
    }
}

fn times() -> Vec<Vec<u8>> {
    let mut packet = vec![0; 48];
    packet[0] = 4 << 3 | 4;
    packet[1] = 2;
    packet[32..40].copy_from_slice(&0xe900_0000_8000_0000_u64.to_be_bytes());
    packet[40..].copy_from_slice(&0xe900_0000_9000_0000_u64.to_be_bytes());
    vec![Made::default().u64(77).u8(1).raw(&packet).0]
}
